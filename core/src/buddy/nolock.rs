//! Pages for callers that may not wait for a lock: in an interrupt of any kind, or inside of another allocator call.
//!
//! Each lock is tried once. An allocation that finds one taken is refused. A free never fails for that: if neither the
//! CPU's lists nor the zone can be had, the block is left on a stack of the zone that takes no lock, and whoever takes the
//! zone's lock next frees it. Source of the contract: `alloc_pages_nolock`, `free_pages_nolock`, Linux 7.2.

use super::PageAllocator;
use super::pcp::{PerCpuPages, list_index};
use super::zone::{LockedZone, Zone};
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::error::{AllocError, FreeError};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::panic::Location;

/// What such a request can ask for: zeroed, silent, no reserve.
const GFP: GfpFlags = GfpFlags::ZERO.union(GfpFlags::NOWARN).union(GfpFlags::NOMEMALLOC).union(GfpFlags::COMP);

impl<P: Platform> PageAllocator<P> {
    /// Allocates a zeroed block of an order that CPUs keep lists of, without waiting for any lock.
    ///
    /// # Errors
    ///
    /// [`AllocError::OrderTooLarge`] for other orders, [`AllocError::NoPages`], [`AllocError::Injected`].
    #[track_caller]
    pub(crate) fn alloc_pages_nolock(&self, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let request = self.request(order, GFP, node.unwrap_or_else(|| self.base.node_here()))?;
        if list_index(order, request.route.migrate(), self.blocks.order).is_none() {
            let max = Order::new(crate::order::PAGE_ALLOC_COSTLY_ORDER).unwrap_or(Order::ZERO);
            return Err(AllocError::OrderTooLarge { max });
        }
        if self.base.fault(FaultSite::new(FaultPoint::Page, GFP).with_order(order)) {
            return Err(AllocError::Injected(FaultPoint::Page));
        }
        let first = self.try_zones(&request, FrameKind::Pages, Location::caller())?;
        if order > Order::ZERO {
            self.note_compound(first, true);
        }
        self.zero(first, order);
        Ok(first)
    }

    /// Allocates a block of the memory of one node, as it is, without waiting for any lock, and tags its frames.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_pages_nolock`], without a fault point.
    #[track_caller]
    pub(crate) fn alloc_block_nolock(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: NodeId,
        kind: FrameKind,
    ) -> Result<Pfn, AllocError> {
        let gfp = (gfp | GFP | GfpFlags::THISNODE).difference(GfpFlags::ZERO);
        self.try_zones(&self.request(order, gfp, node)?, kind, Location::caller())
    }

    fn try_zones(
        &self,
        request: &Request,
        kind: FrameKind,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        let zones = || self.zonelists.zones(request).filter_map(|index| self.zones.get(index));
        let mut blocks = core::iter::from_fn(|| zones().find_map(|zone| self.try_zone(zone, request, kind)));
        // A bad block is out of circulation, so the next one is another.
        let sound = blocks.find(|&first| self.passes_checks(first, request.order, GFP, kind, location));
        sound.ok_or_else(|| {
            self.base.event(Event::NolockRefused);
            AllocError::NoPages { order: request.order }
        })
    }

    /// Frees a block without waiting for any lock. One that others use too waits for the zone's, under which they count.
    ///
    /// # Errors
    ///
    /// The misuse found; nothing is changed then.
    pub(crate) fn free_pages_nolock(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        let frames = &self.base.frames;
        match frames.frame(first) {
            Some(frame) if frame.heads(FrameKind::Pages, order) => {}
            _ => return self.free_shared(first, order),
        }
        if !self.passes_free_checks(first, order, FrameKind::Pages) {
            return Ok(());
        }
        let Some(zone) = self.zones.get(usize::from(frames.zone(first))) else { return Err(self.misuse(first)) };
        if self.try_park(zone, first, order) || self.try_free(zone, first, order) {
            return Ok(());
        }
        frames.set_block_kind(first, order, FrameKind::Deferred);
        zone.deferred.push(frames, first);
        self.base.event(Event::FreeDeferred);
        Ok(())
    }

    /// A block from this CPU's lists of the zone or, if that has none at hand, from the zone itself.
    fn try_zone(&self, zone: &Zone, request: &Request, kind: FrameKind) -> Option<Pfn> {
        let list = list_index(request.order, request.route.migrate(), self.blocks.order)?;
        if let Some(pcp) = self.pcp(self.base.cpu(), usize::from(zone.index))
            && let Some(mut lists) = pcp.cell.try_local()
            && let Some(first) = self.unpark(pcp, &mut lists, list, request.order, kind)
        {
            return Some(first);
        }
        self.try_locked(zone, |locked| {
            let pass = Pass::hurried(request);
            if !locked.passes(request, pass) {
                return None;
            }
            let block = locked.take(request, pass)?;
            self.base.frames.set_migrate(block.first, request.route.migrate() as u8);
            self.base.frames.claim_block(block.first, block.order, kind);
            zone.ledger.hand_out(kind, block.order.pages());
            Some(block.first)
        })?
    }

    /// Puts a block on this CPU's lists; they may grow beyond their limit until the next ordinary free.
    fn try_park(&self, zone: &Zone, first: Pfn, order: Order) -> bool {
        let migrate = self.blocks.get(zone.block_base, first);
        let list = list_index(order, migrate, self.blocks.order);
        let pcp: Option<&PerCpuPages> = self.pcp(self.base.cpu(), usize::from(zone.index));
        let (Some(list), Some(parked), Some(pcp)) = (list, migrate.parked(), pcp) else { return false };
        let Some(mut lists) = pcp.cell.try_local() else { return false };
        self.park(first, order, parked);
        lists.push(&self.base.frames, list, first);
        pcp.take_back(FrameKind::Pages, order.pages());
        true
    }

    fn try_free(&self, zone: &Zone, first: Pfn, order: Order) -> bool {
        let freed = self.try_locked(zone, |locked| locked.take_back(first, order));
        freed.is_some()
    }

    /// Runs `body` under a zone's lock, unless somebody has it.
    fn try_locked<R>(&self, zone: &Zone, body: impl FnOnce(&mut LockedZone<'_, P>) -> R) -> Option<R> {
        let Some(mut areas) = zone.areas.try_lock() else {
            self.base.event(Event::NolockContended);
            return None;
        };
        Some(body(&mut LockedZone { base: &self.base, zone, blocks: &self.blocks, areas: &mut areas }))
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Frees what was left for whoever takes the lock.
    #[cold]
    #[inline(never)]
    pub(super) fn free_deferred(&mut self) {
        let mut next = self.zone.deferred.take_all();
        while let Some(first) = next {
            next = self.base.frames.next(first);
            self.take_back(first, self.base.frames.order(first));
        }
    }

    /// Frees a block of pages that was somebody's.
    fn take_back(&mut self, first: Pfn, order: Order) {
        self.zone.ledger.take_back(FrameKind::Pages, order.pages());
        self.free(first, order);
    }
}
