//! Blocks of frames: what a first frame says of those after it.

use super::{FrameKind, FrameTable, TAIL};
use crate::addr::Pfn;
use crate::order::Order;
use crate::sync::Ordering::Relaxed;

impl FrameTable {
    /// Marks a block, or an aligned part of one, as given to `kind`.
    #[inline]
    pub(crate) fn claim_block(&self, first: Pfn, order: Order, kind: FrameKind) {
        let page = self.page(first);
        page.order.store(order.get(), Relaxed);
        page.list.store(0, Relaxed);
        self.set_block_kind(first, order, kind);
    }

    /// Marks a block as free and of a type's list; whatever else was known about it before, it is a new one.
    #[inline]
    pub(crate) fn mark_free(&self, first: Pfn, order: Order, migrate: u8) {
        let page = self.page(first);
        page.order.store(order.get(), Relaxed);
        page.migrate.store(migrate, Relaxed);
        page.private.store(0, Relaxed);
        self.set_kind(first, FrameKind::Free);
    }

    /// Sets the kind of a block.
    #[inline]
    pub(crate) fn set_block_kind(&self, first: Pfn, order: Order, kind: FrameKind) {
        let (Some(byte), to) = (self.kinds.get(first.index()), kind.to_byte()) else { return };
        let everywhere = FrameKind::is_everywhere(byte.load(Relaxed)) || FrameKind::is_everywhere(to);
        if everywhere && order > Order::ZERO {
            self.set_tails(first, order, kind);
        }
        byte.store(to, Relaxed);
    }

    /// Makes one block of frames that headed blocks of their own, or none.
    pub(crate) fn join_block(&self, first: Pfn, order: Order) {
        let span = first.index()..first.index().saturating_add(order.pages() as usize);
        let tails = self.kinds.get(span).and_then(|kinds| kinds.get(1..)).unwrap_or_default();
        tails.iter().for_each(|kind| kind.store(TAIL, Relaxed));
    }

    /// Makes a frame that headed a block a part of the larger one that begins before it.
    #[inline]
    pub(crate) fn set_tail(&self, pfn: Pfn) {
        if let Some(byte) = self.kinds.get(pfn.index()) {
            byte.store(TAIL, Relaxed);
        }
    }

    /// Marks the frames after the first of a block that was a slab or becomes one.
    #[inline(never)]
    fn set_tails(&self, first: Pfn, order: Order, kind: FrameKind) {
        let everywhere = FrameKind::is_everywhere(kind.to_byte());
        for distance in 1..order.pages() as u32 {
            let Some(tail) = first.checked_add(u64::from(distance)) else { return };
            self.set_head_distance(tail, if everywhere { distance } else { 0 });
            if everywhere { self.set_kind(tail, kind) } else { self.set_tail(tail) }
        }
    }

    /// Returns the first frame of the block around `pfn`.
    #[inline]
    pub(crate) fn head_of(&self, pfn: Pfn) -> Pfn {
        if self.kind_byte(pfn) == TAIL { self.head_of_tail(pfn) } else { self.slab_head(pfn) }
    }

    /// How many frames there are of the block that a frame heads: large blocks of `kmalloc` may have lost their last pages.
    pub(crate) fn pages_of(&self, first: Pfn) -> u64 {
        match FrameKind::from_byte(self.kind_byte(first)) {
            FrameKind::LargeKmalloc | FrameKind::LargePending => u64::from(self.private(first)),
            _ => self.order(first).pages(),
        }
    }

    /// As [`Self::head_of`], for a frame of a slab.
    #[inline(always)]
    pub(crate) fn slab_head(&self, pfn: Pfn) -> Pfn {
        Pfn::new(pfn.as_u32().saturating_sub(self.head_distance(pfn)))
    }

    /// The nearest frame at a multiple of a power of two that is no tail: blocks are aligned to their size.
    #[inline(never)]
    fn head_of_tail(&self, pfn: Pfn) -> Pfn {
        let candidates = Order::ZERO.up_to(Order::MAX).skip(1).map(|order| order.align_down(pfn));
        candidates.into_iter().find(|&first| self.kind_byte(first) != TAIL).unwrap_or(pfn)
    }
}
