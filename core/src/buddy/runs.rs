//! Pages in a row for an owner who needs single ones: to have them side by side is welcome, not needed.

use super::PageAllocator;
use super::watermark::Watermark;
use super::zone::Zone;
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::{Order, PAGE_ALLOC_COSTLY_ORDER};
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::panic::Location;

/// What a run gives no right to: whoever insists shall insist on single pages.
const INSISTING: GfpFlags = GfpFlags::HIGH.union(GfpFlags::MEMALLOC).union(GfpFlags::NOFAIL);

impl<P: Platform> PageAllocator<P> {
    /// Takes 2^`order` pages in a row, aligned to their size, each of which is a page of its own from then on; `None` if the
    /// nearest node with memory has none above its low watermarks.
    ///
    /// Nothing is reclaimed for a run, no reserve is touched, and the lists of CPUs are left alone: what it does not get,
    /// single pages may.
    pub(crate) fn alloc_run(&self, order: Order, gfp: GfpFlags, node: Option<NodeId>, kind: FrameKind) -> Option<Pfn> {
        let gfp = (gfp | GfpFlags::NOMEMALLOC | GfpFlags::NOWARN) - INSISTING;
        let request = self.request(order, gfp, node.unwrap_or_else(|| self.base.node_here())).ok()?;
        loop {
            let first = self.run_from_zones(&request, kind)?;
            // A bad run is out of circulation, so the next one is another.
            if self.passes_checks(first, order, gfp, kind, Location::caller()) {
                self.owner_split(first, order);
                if gfp.wants_zero() {
                    self.zero(first, order);
                }
                return Some(first);
            }
        }
    }

    fn run_from_zones(&self, request: &Request, kind: FrameKind) -> Option<Pfn> {
        let nearest = self.zones_of(request).next()?.node;
        for pass in self.zonelists.passes(request).filter(|pass| pass.mark == Watermark::Low) {
            for zone in self.zones_of(request).take_while(|zone| zone.node == nearest) {
                if self.zonelists.ends_before(request, pass, usize::from(zone.index)) {
                    break;
                }
                if let Some(first) = self.run_from_zone(zone, request, pass, kind) {
                    return Some(first);
                }
            }
        }
        None
    }

    fn run_from_zone(&self, zone: &Zone, request: &Request, pass: Pass, kind: FrameKind) -> Option<Pfn> {
        let frames = &self.base.frames;
        self.locked(zone, |locked| {
            if !locked.passes(request, pass) {
                return None;
            }
            let block = locked.take(request, pass)?;
            for page in (0..block.order.pages()).map_while(|offset| block.first.checked_add(offset)) {
                frames.claim_block(page, Order::ZERO, kind);
                frames.set_migrate(page, request.route.migrate() as u8);
            }
            zone.ledger.hand_out(kind, block.order.pages());
            Some(block.first)
        })
    }

    /// Gives back `count` pages in a row, each of which is a page of its own and in use by the same kind of owner.
    ///
    /// The lists of the CPU keep small blocks for the next request. What lies in larger ones is joined again without them:
    /// one step for the block, not one for each of its pages.
    pub(crate) fn free_run(&self, first: Pfn, count: u64) {
        let kind = self.base.frames.kind(first);
        let mut freed = 0;
        while let Some(at) = first.checked_add(freed).filter(|_| freed < count) {
            let order = self.largest_block(at, count - freed);
            if !self.free_row(at, order, kind) {
                (0..order.pages())
                    .filter_map(|n| at.checked_add(n))
                    .for_each(|page| self.free_block(page, Order::ZERO));
            }
            freed += order.pages();
        }
    }

    /// The largest block, within a pageblock, that starts at a page and has at most so many.
    fn largest_block(&self, at: Pfn, pages: u64) -> Order {
        let largest = self.blocks.order.min(self.base.geometry.max_order).get();
        let aligned = at.as_u32().trailing_zeros().min(u32::from(largest));
        Order::new(aligned.min(pages.max(1).ilog2()) as u8).unwrap_or(Order::ZERO)
    }

    /// Gives pages back that together are a block; `false`, with nothing done, if they have to be looked at one by one.
    fn free_row(&self, first: Pfn, order: Order, kind: FrameKind) -> bool {
        let last = first.checked_add(order.pages() - 1);
        let [of_first, of_last] = [Some(first), last].map(|page| page.map(|page| self.base.frames.zone(page)));
        let zone = of_first.filter(|_| of_first == of_last).and_then(|zone| self.zones.get(usize::from(zone)));
        let Some(zone) = zone.filter(|_| order.get() > PAGE_ALLOC_COSTLY_ORDER) else { return false };
        if !self.row_passes_free_checks(first, order) {
            return false;
        }
        self.locked(zone, |locked| {
            zone.ledger.take_back(kind, order.pages());
            self.base.frames.join_block(first, order);
            locked.free(first, order);
        });
        self.base.event(Event::RunFreed);
        true
    }
}
