//! Making, trimming, destroying and describing caches.

use super::debug::paranoid_flags;
use super::node::Identity;
use super::shape::{Role, Shape};
use super::{CacheArgs, SlabFlags, SlabLayer, order};
use crate::addr::PAGE_SIZE;
use crate::buddy::PageAllocator;
use crate::error::{CacheError, CacheId};
use crate::fault::{FaultPoint, FaultSite};
use crate::geometry::{Geometry, SlabMerge, ZoneKind};
use crate::gfp::GfpFlags;
use crate::inspect::{CacheInfo, CacheName};
use crate::numa::MAX_NODES;
use crate::platform::{Event, Platform};

impl SlabLayer {
    /// Makes a cache, on slabs of its own or on those of a similar one. Names need not be unique; an event tells of a
    /// name that another cache has already.
    ///
    /// # Errors
    ///
    /// What is wrong with the arguments, `TooMany`, `Injected`; nothing was changed.
    pub(crate) fn cache_create<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        name: &str,
        args: &CacheArgs,
    ) -> Result<CacheId, CacheError> {
        let (identity, shape) = plan(pages, name, args, Role::User)?;
        if pages.base.fault(FaultSite::new(FaultPoint::Cache, GfpFlags::KERNEL)) {
            return Err(CacheError::Injected(FaultPoint::Cache));
        }
        let installed = self.install_or_merge(pages.base.geometry.slab_merge, args, &shape, identity)?;
        if installed.known_name {
            pages.base.event(Event::CacheNameTaken);
        }
        pages.base.event(if installed.is_alias { Event::CacheMerged } else { Event::CacheCreated });
        Ok(installed.cache)
    }

    /// Makes a cache for the descriptors of a layer above. It has no sheaves, so that whatever that layer does not use
    /// goes back to the page allocator, and users can neither free into it nor destroy it.
    ///
    /// # Errors
    ///
    /// As [`Self::cache_create`], without a fault point: the allocator itself is being made.
    pub(crate) fn internal_create<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        name: &str,
        args: &CacheArgs,
    ) -> Result<CacheId, CacheError> {
        let (identity, shape) = plan(pages, name, args, Role::Internal)?;
        self.install_or_merge(SlabMerge::Never, args, &shape, identity).map(|installed| installed.cache)
    }

    /// Returns the number that has the slabs of a cache which a user may name.
    pub(super) fn known(&self, cache: CacheId) -> Result<usize, CacheError> {
        match self.role(cache.index()) {
            Role::Vacant | Role::Orphan => Err(CacheError::Unknown(cache.get())),
            Role::Kmalloc | Role::User | Role::Internal | Role::Alias => Ok(self.root(cache.index())),
        }
    }

    /// Gives empty slabs back and sorts the rest; `true` if no slab is left.
    ///
    /// # Errors
    ///
    /// `Unknown`.
    pub(crate) fn cache_shrink<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
    ) -> Result<bool, CacheError> {
        let id = self.known(cache)?;
        self.trim(pages, id);
        let slabs = self.slabs(pages, id).ok_or(CacheError::Unknown(cache.get()))?;
        self.nodes_of(id).for_each(|node| node.lock().sort_partial(&slabs));
        Ok(self.nr_slabs(id) == 0)
    }

    /// Describes a cache with slabs of its own; `None` if there is none with this number.
    pub(crate) fn cache_info<P: Platform>(&self, pages: &PageAllocator<P>, cache: CacheId) -> Option<CacheInfo> {
        let id = cache.index();
        let shape = self.shape(id).filter(|shape| shape.role != Role::Alias)?;
        // The sheaves come first: no lock may be held while waiting for another CPU's.
        let on_cpus = self.objects_on_cpus(pages, id);
        let (mut in_sheaves, mut inuse, mut objects, mut nr_slabs, mut nr_partial) = (on_cpus, 0, 0, 0, 0);
        let (mut lost, deferred) = (0, self.nr_deferred(pages, id));
        let mut free_by_node = [0; MAX_NODES];
        for (node, free) in self.nodes_of(id).zip(&mut free_by_node) {
            let node = node.lock();
            *free = node.objects.saturating_sub(node.inuse);
            in_sheaves += node.barn.full.iter().map(|sheaf| self.buffered(sheaf)).sum::<u64>();
            inuse += node.inuse;
            lost += node.lost;
            objects += node.objects;
            nr_slabs += node.nr_slabs();
            nr_partial += u64::from(node.partial.len());
        }
        let rcu_pending = self.rcu.pending(id);
        Some(CacheInfo {
            id: cache,
            name: self.identity(id)?.name,
            active_objs: inuse.saturating_sub(in_sheaves + lost + self.nr_reserved(id) + deferred + rcu_pending),
            deferred,
            reserved: self.nr_reserved(id),
            num_objs: objects,
            in_sheaves,
            lost,
            free_in_slabs: objects.saturating_sub(inuse),
            free_by_node,
            object_size: shape.object_size,
            size: shape.stride,
            align: shape.align,
            objects_per_slab: shape.objects_in(shape.orders.preferred),
            order: shape.orders.preferred,
            min_order: shape.orders.min,
            nr_slabs,
            nr_partial,
            sheaf_capacity: shape.capacity,
            rcu_pending,
            aliases: self.users(id).saturating_sub(1),
            flags: shape.flags,
        })
    }
}

/// Checks a user's wishes and lays the cache out.
fn plan<P: Platform>(
    pages: &PageAllocator<P>,
    name: &str,
    args: &CacheArgs,
    role: Role,
) -> Result<(Identity, Shape), CacheError> {
    let name = CacheName::new(name).ok_or(CacheError::BadName)?;
    let checked = if role == Role::User { paranoid_flags(pages.base.geometry.hardening) } else { SlabFlags::empty() };
    let args = &CacheArgs { flags: args.flags | checked, ..*args };
    if args.align > PAGE_SIZE || (args.align != 0 && !args.align.is_power_of_two()) {
        return Err(CacheError::BadAlign(args.align));
    }
    check_flags(args)?;
    let hwcache = args.flags.contains(SlabFlags::HWCACHE_ALIGN);
    let align = order::object_align(args.size, args.align, hwcache);
    let shape = super::shape(&pages.base.geometry, role, args, align, alloc_gfp(&pages.base.geometry, args.flags));
    Ok((Identity { name, ctor: args.ctor }, shape.ok_or(CacheError::BadSize(args.size))?))
}

/// Refuses what the allocator does not do, or what contradicts itself.
fn check_flags(args: &CacheArgs) -> Result<(), CacheError> {
    let zones = SlabFlags::CACHE_DMA | SlabFlags::CACHE_DMA32;
    if !SlabFlags::PERMITTED.contains(args.flags) || args.flags.contains(zones) {
        return Err(CacheError::BadFlags);
    }
    let Some(offset) = args.freeptr_offset else { return Ok(()) };
    // The constructor's work must survive in a free object, or a reader's view of it.
    let kept = args.ctor.is_some() || args.flags.contains(SlabFlags::TYPESAFE_BY_RCU);
    let inside = offset < args.size && offset.is_multiple_of(size_of::<usize>());
    if kept && inside { Ok(()) } else { Err(CacheError::BadFreePointer(offset)) }
}

/// The flags that a cache adds to each request for frames. A machine without the zone has nothing that is too high.
pub(super) fn alloc_gfp(geometry: &Geometry, flags: SlabFlags) -> GfpFlags {
    let has = |kind| geometry.zones().iter().any(|zone| zone.kind == kind);
    let each = [
        (SlabFlags::CACHE_DMA, GfpFlags::DMA, has(ZoneKind::Dma)),
        (SlabFlags::CACHE_DMA32, GfpFlags::DMA32, has(ZoneKind::Dma32)),
        (SlabFlags::RECLAIM_ACCOUNT, GfpFlags::RECLAIMABLE, true),
    ];
    let wanted = each.into_iter().filter(|&(flag, _, useful)| useful && flags.contains(flag));
    wanted.fold(GfpFlags::empty(), |gfp, (_, bit, _)| gfp | bit)
}
