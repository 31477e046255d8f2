//! Large blocks of `kmalloc` that give back what their caller did not ask for.
//!
//! Pages come in powers of two. A block of five pages takes eight; with [`Geometry::trim_large`](crate::Geometry::trim_large)
//! the last three go back at once, and the five later, each time in the largest aligned pieces. The first frame keeps the
//! order of the whole, which says how the block is aligned, and the number of pages that are left of it.
//!
//! ```text
//! 1 <= private(head) <= 2^order(head)    for a head of kind LargeKmalloc or LargePending
//! ```

use super::PageAllocator;
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};

impl<P: Platform> PageAllocator<P> {
    /// Notes how many pages of a new large block its owner keeps, and gives the others back.
    pub(crate) fn keep_pages(&self, first: Pfn, order: Order, kept: u64) {
        self.base.frames.set_private(first, kept as u32);
        if kept < order.pages() {
            self.free_pieces(first, kept, order.pages());
            self.base.event(Event::LargeTrimmed);
        }
    }

    /// How many pages there are of the large block that a frame heads.
    pub(crate) fn kept_pages(&self, first: Pfn) -> u64 {
        u64::from(self.base.frames.private(first))
    }

    /// Frees a large block.
    pub(crate) fn free_large(&self, first: Pfn) {
        let (order, kept) = (self.base.frames.order(first), self.kept_pages(first));
        if kept == order.pages() {
            self.free_block(first, order);
        } else {
            self.free_pieces(first, 0, kept);
        }
    }

    /// Frees the pages from number `from` up to, but without, number `to` of a block that `first` heads.
    fn free_pieces(&self, first: Pfn, from: u64, to: u64) {
        let migrate = self.base.frames.migrate(first);
        let mut at = from;
        while at < to {
            // The largest piece that is aligned within the block and not too long.
            let aligned = if at == 0 { u32::from(Order::MAX.get()) } else { at.trailing_zeros() };
            let order = Order::new(aligned.min((to - at).ilog2()) as u8).unwrap_or(Order::ZERO);
            let Some(piece) = first.checked_add(at) else { return };
            self.base.frames.claim_block(piece, order, FrameKind::LargeKmalloc);
            self.base.frames.set_migrate(piece, migrate);
            self.free_block(piece, order);
            at += order.pages();
        }
    }
}
