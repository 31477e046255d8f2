//! The HIGHATOMIC reserve: pageblocks kept for urgent requests of several pages, which cannot wait until one is free.
//!
//! A pageblock from which such a request was served below the low watermark joins the reserve, up to a hundredth of the
//! zone. Before anybody is refused for good, the reserve goes back.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::watermark::AllocFlags;
use super::zone::{FreeBlock, LockedZone, Zone};
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::platform::{Event, Platform};

/// How much of the reserve is given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Release {
    /// Of reserves of more than one pageblock.
    Polite,
    /// Of any reserve: the alternative is to refuse.
    Last,
}

impl<P: Platform> PageAllocator<P> {
    /// Reserves the pageblock of a block that an entitled request was given, as long as there is room in the reserve.
    pub(super) fn reserve_highatomic(&self, zone: &Zone, first: Pfn, order: Order, pass: Pass) {
        if pass.rights.contains(AllocFlags::HIGHATOMIC) {
            self.locked(zone, |locked| locked.reserve_highatomic(first, order));
        }
    }

    /// Gives a pageblock of the reserve back, from the first zone that the request could use and that has one; tells
    /// whether there was one.
    pub(crate) fn unreserve_highatomic(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
        release: Release,
    ) -> bool {
        let node = node.unwrap_or_else(|| self.base.node_here());
        let Ok(request) = self.request(order, gfp, node) else { return false };
        let released = self
            .zones_of(&request)
            .any(|zone| self.locked(zone, |locked| locked.unreserve_highatomic(&request, release)).is_some());
        if released {
            self.base.event(Event::HighAtomicReleased);
        }
        released
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// The most pages that the reserve may have before it takes another pageblock; 0 if a hundredth of the zone is less
    /// than a pageblock.
    fn most_highatomic(&self) -> u64 {
        let (hundredth, pageblock) = (self.zone.frames() / 100, self.blocks.order.pages());
        if hundredth < pageblock { 0 } else { hundredth.next_multiple_of(pageblock) }
    }

    fn reserve_highatomic(&mut self, first: Pfn, order: Order) {
        let pageblock = self.blocks.order;
        let size = order.max(pageblock);
        let start = size.align_down(first);
        let whole = self.zone.spans(start, size);
        if self.areas.reserved_highatomic >= self.most_highatomic() || !whole || !self.block_type(first).is_ordinary() {
            return;
        }
        if order < pageblock {
            self.move_free_blocks(first, MigrateType::HighAtomic);
        }
        for offset in (0..size.pages()).step_by(pageblock.pages() as usize) {
            start.checked_add(offset).into_iter().for_each(|pfn| self.forget_homes(pfn));
        }
        self.set_type_of(&FreeBlock { first: start, order: size }, MigrateType::HighAtomic);
        self.areas.reserved_highatomic += size.pages();
        self.base.event(Event::HighAtomicReserved);
    }

    /// Turns the pageblocks of the first free block of the reserve over to the request's type.
    fn unreserve_highatomic(&mut self, request: &Request, release: Release) -> Option<()> {
        let pageblock = self.blocks.order;
        if release == Release::Polite && self.areas.reserved_highatomic <= pageblock.pages() {
            return None;
        }
        let reserve = MigrateType::HighAtomic;
        let order = self.areas.smallest(Order::ZERO, reserve)?;
        let first = self.areas.lists[order.index()][reserve.index()].head()?;
        let wanted = request.route.migrate();
        let size = order.max(pageblock);
        if order < pageblock {
            self.move_free_blocks(first, wanted);
            self.forget_homes(first);
            self.blocks.set(self.zone.block_base, first, wanted);
        } else {
            let block = self.remove(first);
            self.set_type_of(&block, wanted);
            self.settle(block);
        }
        self.areas.reserved_highatomic -= size.pages();
        Some(())
    }
}
