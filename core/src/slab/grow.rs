//! Making slabs and giving their frames back.

use super::node::{LIST_NONE, Slabs};
use super::{CtorObject, SlabLayer, cache_id};
use crate::addr::Pfn;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::{GFP_SLAB_BUG_MASK, GfpFlags};
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::{FrameKind, PageList};
use crate::platform::{Event, Platform};
use crate::warn::{FlagsRemovedBy, Warning};

/// What of a request for an object also counts for the slab's frames: how hard to try, not where or for whom.
const SLAB_GFP_MASK: GfpFlags = GfpFlags::RECLAIM
    .union(GfpFlags::HIGH)
    .union(GfpFlags::IO)
    .union(GfpFlags::FS)
    .union(GfpFlags::NOWARN)
    .union(GfpFlags::RETRY_MAYFAIL)
    .union(GfpFlags::NOFAIL)
    .union(GfpFlags::NORETRY)
    .union(GfpFlags::MEMALLOC)
    .union(GfpFlags::NOMEMALLOC)
    .union(GfpFlags::HARDWALL)
    .union(GfpFlags::THISNODE);

impl SlabLayer {
    /// Makes a slab with all objects free and constructed, near the node if one is named. It is on no list yet: nobody else can see it.
    ///
    /// # Errors
    ///
    /// Why the smallest block was refused; nothing was changed.
    pub(super) fn grow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<Pfn, AllocError> {
        let (head, order) = slab_frames(pages, slabs, gfp, node)?;
        slabs.lay_out(head, order);
        let is_debug = slabs.shape.is_debug();
        if is_debug {
            self.debug_paint(pages, slabs.id, slabs, head);
        }
        self.construct(pages, slabs, head);
        if is_debug {
            self.debug_link(pages, slabs.id, slabs, head);
        }
        pages.base.event(Event::SlabNew);
        Ok(head)
    }

    fn construct<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, head: Pfn) {
        // Copied out, so that the constructor runs without the lock.
        let Some(ctor) = self.identity(slabs.id).and_then(|identity| identity.ctor) else { return };
        for index in 0..slabs.objects(head) {
            let object = slabs.object(head, index);
            ctor(&mut CtorObject::new(&pages.base.mem, object, slabs.shape.object_size));
        }
    }

    /// Gives the frames of detached slabs back; returns how many.
    pub(super) fn release_slabs<P: Platform>(&self, pages: &PageAllocator<P>, mut discard: PageList) -> u64 {
        let frames = &pages.base.frames;
        let mut released = 0;
        while let Some(head) = discard.pop_head(frames) {
            let order = frames.order(head);
            if frames.slab_cache(head.index()).is_some_and(|id| self.is_typesafe(id)) {
                self.rcu.put_slab(frames, head);
                pages.base.event(Event::SlabPutOff);
                continue;
            }
            pages.free_block(head, order);
            pages.base.event(Event::SlabRelease);
            released += order.pages();
        }
        released
    }
}

impl Slabs<'_> {
    /// Makes a slab of frames: all of its objects are free, and it is on no list.
    pub(super) fn lay_out(&self, head: Pfn, order: Order) {
        let objects = self.shape.objects_in(order);
        self.frames.set_objects(head, objects as u16);
        self.frames.set_inuse(head, 0);
        self.frames.set_list(head, LIST_NONE);
        self.frames.clear_waiting(head);
        self.occupancy.clear(head, objects);
    }
}

/// Gets frames of the preferred order, or of the smallest one if that is refused.
fn slab_frames<P: Platform>(
    pages: &PageAllocator<P>,
    slabs: &Slabs<'_>,
    gfp: GfpFlags,
    node: Option<NodeId>,
) -> Result<(Pfn, Order), AllocError> {
    let gfp = (supported(pages, gfp) & SLAB_GFP_MASK) | slabs.shape.alloc_gfp;
    let orders = slabs.shape.orders;
    if orders.preferred > orders.min {
        let order = orders.preferred;
        if let Ok(head) = attempt(pages, slabs.id, order, opportunistic(gfp), node) {
            return Ok((head, order));
        }
        pages.base.event(Event::SlabMinOrder);
    }
    attempt(pages, slabs.id, orders.min, gfp, node).map(|head| (head, orders.min))
}

/// The flags without those that no slab honours; says so if there were any.
pub(super) fn supported<P: Platform>(pages: &PageAllocator<P>, gfp: GfpFlags) -> GfpFlags {
    let removed = gfp & GFP_SLAB_BUG_MASK;
    if !removed.is_empty() {
        pages.base.warn(gfp, Warning::FlagsRemoved { by: FlagsRemovedBy::Slab, flags: removed });
    }
    gfp - removed
}

/// The flags for a block that would be nice to have: without effort or warning, and from callers that could wait
/// without the reserve.
fn opportunistic(gfp: GfpFlags) -> GfpFlags {
    let modest = gfp.difference(GfpFlags::NOFAIL) | GfpFlags::NOWARN | GfpFlags::NORETRY;
    if gfp.may_block() { modest.difference(GfpFlags::DIRECT_RECLAIM) | GfpFlags::NOMEMALLOC } else { modest }
}

fn attempt<P: Platform>(
    pages: &PageAllocator<P>,
    id: usize,
    order: Order,
    gfp: GfpFlags,
    node: Option<NodeId>,
) -> Result<Pfn, AllocError> {
    let site = FaultSite::new(FaultPoint::NewSlab, gfp).with_order(order).with_cache(cache_id(id));
    if pages.base.fault(site) {
        return Err(AllocError::Injected(FaultPoint::NewSlab));
    }
    pages.alloc_block_on(order, gfp, node, FrameKind::Slab(cache_id(id)))
}
