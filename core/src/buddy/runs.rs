//! Pages in a row for an owner who needs single ones: to have them side by side is welcome, not needed.

use super::PageAllocator;
use super::watermark::Watermark;
use super::zone::Zone;
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Platform;
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
}
