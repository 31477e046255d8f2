//! Objects and blocks near a memory node that the caller names.
//!
//! | caller | in this order |
//! |---|---|
//! | names the node of its CPU | an object of that node from the sheaves; then as below |
//! | `THISNODE` | partial slabs of the node, a new slab on it |
//! | otherwise | the same without effort; then what a request without a node gets, new slabs near the node; the sheaves |
//!
//! A caller that names no node may get an object of any node from its sheaves, also with `THISNODE`. Source:
//! section 2.3 and `mm/slub.c` of Linux 7.2.

use super::alloc::slab_site;
use super::node::Slabs;
use super::{SlabLayer, classes, node_of};
use crate::addr::{PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{AllocError, CacheId};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::platform::{Event, Platform};

/// What a request to a node that is only preferred keeps of the caller's flags.
const MODEST: GfpFlags = GfpFlags::KSWAPD_RECLAIM.union(GfpFlags::NOMEMALLOC).union(GfpFlags::NORETRY);

impl SlabLayer {
    /// Hands out `size` bytes near a node.
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`].
    pub(crate) fn kmalloc_node<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        size: usize,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Result<VirtAddr, AllocError> {
        let Some(class) = classes::class_of(size).map(classes::Class::get) else {
            return self.kmalloc_large(pages, size, gfp, Some(node));
        };
        let id = self.kmalloc_cache(class, gfp);
        if pages.base.fault(slab_site(id, gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        if size > self.kmalloc_max {
            return Err(AllocError::TooLarge { requested: size, limit: self.kmalloc_max });
        }
        self.alloc_any_on(pages, id, gfp, node)
    }

    /// Hands out an object of a user's cache near a node.
    ///
    /// # Errors
    ///
    /// As [`Self::cache_alloc`].
    pub(crate) fn cache_alloc_node<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Result<VirtAddr, AllocError> {
        let id = self.root(cache.index());
        if pages.base.fault(slab_site(id, gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        self.check_request(id, gfp)?;
        self.alloc_any_on(pages, id, gfp, node)
    }

    /// Hands out an object of any cache near a node, zeroed if asked.
    fn alloc_any_on<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Result<VirtAddr, AllocError> {
        let slabs = self.slabs(pages, id).ok_or(AllocError::BadFlags)?;
        let object = match self.cached_on(pages, &slabs, gfp, node) {
            Some(object) => object,
            None => self.alloc_direct_on(pages, &slabs, gfp, node)?,
        };
        self.live.mark(slabs.shape.live, object);
        if gfp.wants_zero() {
            self.zero(pages, id, object);
        }
        Ok(pages.base.virt(object))
    }

    /// Takes an object of the node from this CPU's sheaves, if this CPU is of the node. A refill that went to other nodes as
    /// well may have taken the last one that the node had: it is looked for among all.
    fn cached_on<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Option<PhysAddr> {
        if slabs.shape.capacity == 0 || node.index() != self.node_here(pages) {
            return None;
        }
        let mut sheaves = self.cell(pages.base.cpu(), slabs.id)?.try_local()?;
        if sheaves.main.is_empty() {
            self.refill_main(pages, slabs, &mut sheaves, gfp);
        }
        let taken = sheaves.main.pop_wanted(|object| node_of(pages, object.pfn().unwrap_or_default()) == node.index());
        if taken.is_none() {
            pages.base.event(Event::SheafOfOtherNode);
        }
        taken
    }

    /// Takes one object straight from a slab of the node, or if the caller does not insist, of any.
    fn alloc_direct_on<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Result<PhysAddr, AllocError> {
        let insists = gfp.contains(GfpFlags::THISNODE);
        // A node that is only preferred is asked for what it has: it waits for nothing, and wakes nobody whom the caller would not.
        let modest = (gfp & MODEST) | GfpFlags::NOWARN | GfpFlags::THISNODE;
        let near = if insists { gfp } else { modest };
        match self.take_on(pages, slabs, near, node) {
            Err(_) if !insists => {
                pages.base.event(Event::SlabOtherNode);
                let direct = self.alloc_direct(pages, slabs, gfp, Some(node));
                direct.or_else(|refused| self.cached_anywhere(pages, slabs).ok_or(refused))
            }
            answer => answer,
        }
    }

    /// Takes an object of whatever node from the sheaves that this CPU reaches: when no slab has any, one that was passed over
    /// before.
    fn cached_anywhere<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>) -> Option<PhysAddr> {
        let cell = self.cell(pages.base.cpu(), slabs.id).filter(|_| slabs.shape.capacity > 0)?;
        let mut sheaves = cell.try_local()?;
        if sheaves.main.is_empty()
            && !self.swap_with_spare(pages, &mut sheaves)
            && !self.take_from_pocket(pages, &mut sheaves)
        {
            self.exchange_with_barn(pages, slabs.id, &mut sheaves);
        }
        let object = sheaves.main.pop()?;
        pages.base.event(Event::PartialLastResort);
        Some(object)
    }

    /// Takes one object from a partial slab of the node or from a new one on it.
    fn take_on<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: NodeId,
    ) -> Result<PhysAddr, AllocError> {
        let mut object = self.take_partial_on(pages, slabs, node);
        if object.is_none() {
            let head = self.grow(pages, slabs, gfp, Some(node))?;
            self.attach(pages, slabs, head);
            object = self.take_partial_on(pages, slabs, node);
        }
        pages.base.event(Event::SlabDirectAlloc);
        object.ok_or(AllocError::NoPages { order: slabs.shape.orders.min })
    }

    /// Takes one object from a partial slab of the node.
    fn take_partial_on<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        node: NodeId,
    ) -> Option<PhysAddr> {
        if let Some(inspector) = self.inspector(pages, slabs.id, slabs) {
            return self.take_debug_on(&inspector, node.index());
        }
        let mut object = None;
        self.node(slabs.id, node.index())?.lock().take(slabs, 1, &mut |taken| object = Some(taken));
        object
    }
}
