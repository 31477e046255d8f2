//! Handing objects out: this CPU's main sheaf first, then the steps of the per-CPU layer down to a new slab.

use super::classes::{self, Class, KmallocType, Served};
use super::debug::Site;
use super::{SlabLayer, cache_id};
use crate::addr::{PageCount, Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{AllocError, CacheId};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{CpuId, Event, Platform};
use crate::warn::Warning;

/// Why the fast path did not serve a request. The fault point is asked once per request, so the slow path does not ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missed {
    /// The fault plan made the request fail.
    Fault,
    /// The plan was asked, and this CPU's main sheaf has nothing.
    Empty,
    /// The plan was not asked: the request is not one for the fast path.
    NotAsked,
}

impl SlabLayer {
    /// Hands out `size` bytes from the class that holds them, or from the page allocator above the largest class.
    ///
    /// # Errors
    ///
    /// `TooLarge` above the largest block, `NoPages` when a slab or block is refused, `Injected`.
    pub(crate) fn kmalloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let cpu = pages.base.platform.cpu();
        self.kmalloc_fast(pages, cpu, size, gfp).or_else(|missed| self.kmalloc_slow(pages, size, gfp, missed))
    }

    /// Serves what most requests are: ordinary memory, from the main sheaf of this CPU, whose number the caller knows.
    ///
    /// # Errors
    ///
    /// Why [`Self::kmalloc_slow`] must be asked; it needs to know.
    #[inline(always)]
    pub(crate) fn kmalloc_fast<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, Missed> {
        let &Served { class, mark } = classes::served_by(size).ok_or(Missed::NotAsked)?;
        if gfp.intersects(KmallocType::SPECIAL.union(GfpFlags::ZERO)) {
            return Err(Missed::NotAsked);
        }
        if pages.base.fault(slab_site(class.get(), gfp)) {
            return Err(Missed::Fault);
        }
        match mark {
            0 => self.kmalloc_unmarked(pages, cpu, class),
            mark => self.kmalloc_marked(pages, cpu, class, mark),
        }
        .ok_or(Missed::Empty)
    }

    /// The part of [`Self::kmalloc_fast`] for the classes of most requests, in as few steps as there can be; `None` if it is
    /// another class or there is nothing. No fault plan is asked.
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn kmalloc_fastest<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        size: usize,
    ) -> Option<VirtAddr> {
        match *classes::served_by(size)? {
            Served { mark: 0, .. } => None,
            Served { class, mark } => self.kmalloc_marked(pages, cpu, class, mark),
        }
    }

    /// The rest of [`Self::kmalloc_fast`] for a class with a mark of its own in the liveness map.
    #[inline(always)]
    fn kmalloc_marked<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        class: Class,
        mark: u8,
    ) -> Option<VirtAddr> {
        let mark = |object| self.live.mark_with(mark, object);
        let object = self.cells.known(cpu, class).pop_and(P::STATISTICS, mark)?;
        pages.base.event(Event::SheafHit);
        Some(pages.base.virt(object))
    }

    /// The rest of [`Self::kmalloc_fast`] for a class without a mark of its own.
    #[inline(never)]
    fn kmalloc_unmarked<P: Platform>(&self, pages: &PageAllocator<P>, cpu: CpuId, class: Class) -> Option<VirtAddr> {
        let mark = |object| match class.get() {
            ..classes::FIRST_LINE_CLASS => self.live.mark_shared(object),
            _ => self.live.mark_line(object),
        };
        let object = self.cells.known(cpu, class).pop_and(P::STATISTICS, mark)?;
        pages.base.event(Event::SheafHit);
        Some(pages.base.virt(object))
    }

    /// Serves what [`Self::kmalloc_fast`] did not.
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`].
    #[inline(never)]
    pub(crate) fn kmalloc_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        size: usize,
        gfp: GfpFlags,
        missed: Missed,
    ) -> Result<VirtAddr, AllocError> {
        let Some(class) = classes::class_of(size).map(Class::get) else {
            return self.kmalloc_large(pages, size, gfp, None);
        };
        let id = self.kmalloc_cache(class, gfp);
        if missed == Missed::Fault || (missed == Missed::NotAsked && pages.base.fault(slab_site(id, gfp))) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        if size > self.kmalloc_max {
            return Err(self.too_large(pages, size, gfp));
        }
        self.alloc_any(pages, id, gfp)
    }

    /// The number of the cache that serves a class to these flags. Without a DMA zone there is no set for it, and the other
    /// flags decide.
    #[inline(always)]
    pub(super) fn kmalloc_cache(&self, class: usize, gfp: GfpFlags) -> usize {
        let known = if self.has_dma { gfp } else { gfp - GfpFlags::DMA };
        KmallocType::of(known).first_cache() + class
    }

    /// Serves the sizes that have no class: zero, and more than the largest.
    #[cold]
    #[inline(never)]
    pub(super) fn kmalloc_large<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        size: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        if size == 0 {
            return Ok(VirtAddr::ZERO_SIZE);
        }
        let order = Order::for_bytes(size).filter(|_| size <= self.kmalloc_max);
        let order = order.ok_or_else(|| self.too_large(pages, size, gfp))?;
        if pages.base.fault(FaultSite::new(FaultPoint::Page, gfp).with_order(order)) {
            return Err(AllocError::Injected(FaultPoint::Page));
        }
        let gfp = super::grow::supported(pages, gfp) | GfpFlags::COMP;
        let first: Pfn = pages.alloc_block_on(order, gfp, node, FrameKind::LargeKmalloc)?;
        pages.keep_pages(first, order, if pages.base.geometry.trim_large { pages_of(size) } else { order.pages() });
        Ok(pages.base.virt(first.addr()))
    }

    /// The refusal of more than the largest block, with its warning.
    #[cold]
    fn too_large<P: Platform>(&self, pages: &PageAllocator<P>, size: usize, gfp: GfpFlags) -> AllocError {
        pages.base.warn(gfp, Warning::TooLarge { bytes: size });
        AllocError::TooLarge { requested: size, limit: self.kmalloc_max }
    }

    /// Hands out an object of a user's cache.
    ///
    /// # Errors
    ///
    /// `BadFlags` for a cache that does not exist and for a zeroed object of one with a constructor, `NoPages`,
    /// `Injected`.
    #[inline(always)]
    pub(crate) fn cache_alloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
        site: Site,
    ) -> Result<VirtAddr, AllocError> {
        let cpu = pages.base.platform.cpu();
        if pages.base.fault(slab_site(cache.index(), gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        // Without room for such objects it is a cache of small ones, an internal one, or none.
        let cell = self.cell(cpu, cache.index()).filter(|cell| cell.takes_lines() && !gfp.wants_zero());
        let mark = |object| self.live.mark_line(object);
        if let Some(object) = cell.and_then(|cell| cell.pop_and(P::STATISTICS, mark)) {
            pages.base.event(Event::SheafHit);
            return Ok(pages.base.virt(object));
        }
        self.cache_alloc_slow(pages, cache, gfp, site)
    }

    #[inline(never)]
    fn cache_alloc_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
        site: Site,
    ) -> Result<VirtAddr, AllocError> {
        let id = self.root(cache.index());
        self.check_request(id, gfp)?;
        let object = self.alloc_any(pages, id, gfp)?;
        self.stamp(pages, object, None, site);
        Ok(object)
    }

    /// Refuses what makes no sense: zeroing over what a constructor wrote, and the allocator's own caches.
    pub(super) fn check_request(&self, id: usize, gfp: GfpFlags) -> Result<(), AllocError> {
        if self.is_internal(id) {
            return Err(AllocError::BadFlags);
        }
        if !gfp.wants_zero() {
            return Ok(());
        }
        let constructed = self.identity(id).is_some_and(|identity| identity.ctor.is_some());
        if constructed { Err(AllocError::BadFlags) } else { Ok(()) }
    }

    /// Hands out an object of a layer's own cache; that layer has asked its own fault point.
    pub(crate) fn internal_alloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        self.alloc_any(pages, cache.index(), gfp)
    }

    /// Hands out an object of any cache, zeroed if asked.
    fn alloc_any<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let object = match self.alloc_cached(pages, id) {
            Some(object) => object,
            None => self.alloc_slow(pages, id, gfp)?,
        };
        if gfp.wants_zero() {
            self.zero(pages, id, object);
        }
        Ok(pages.base.virt(object))
    }

    /// Pops this CPU's main sheaf, whatever the objects' size.
    fn alloc_cached<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> Option<PhysAddr> {
        let live = self.shapes.get(id)?.live();
        let mark = |object| self.live.mark(live, object);
        let object = self.cell(pages.base.platform.cpu(), id)?.pop_and(P::STATISTICS, mark)?;
        pages.base.event(Event::SheafHit);
        Some(object)
    }

    pub(super) fn zero<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, object: PhysAddr) {
        let size = self.shapes.get(id).map_or(0, |record| record.object_size());
        let zeroed = pages.base.mem.fill(object, size, 0);
        debug_assert!(zeroed, "object {object} is outside memory");
    }
}

/// How many pages hold `size` bytes.
pub(super) fn pages_of(size: usize) -> u64 {
    PageCount::from_bytes_up(size).get()
}

/// The question that the fault plan is asked for one object.
#[inline(always)]
pub(super) fn slab_site(id: usize, gfp: GfpFlags) -> FaultSite {
    FaultSite::new(FaultPoint::Slab, gfp).with_cache(cache_id(id))
}
