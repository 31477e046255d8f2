//! Pageblocks out of circulation: whoever empties a range of frames must not have them handed out again meanwhile.
//!
//! An isolated pageblock keeps its type beside the mark. Its free blocks are on the `Isolate` lists, from which nobody
//! allocates; what is freed in it goes there too, past the per-CPU lists; and it does not merge with its neighbours.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::zone::{LockedZone, Zone};
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::ops::Range;

/// Pageblocks of one zone that are isolated; to be given back to [`PageAllocator::end_isolation`].
#[must_use = "pageblocks would stay isolated for ever"]
pub(super) struct Isolation {
    /// Whole pageblocks, as far as they are in the zone.
    pub(super) span: Range<u32>,
}

impl<P: Platform> PageAllocator<P> {
    /// Isolates the pageblocks around these frames of the zone.
    ///
    /// # Errors
    ///
    /// The first frame of a pageblock that somebody else has isolated; none is isolated then.
    pub(super) fn isolate(&self, zone: &Zone, frames: &Range<u32>) -> Result<Isolation, Pfn> {
        let first = self.pageblock_span(zone, Pfn::new(frames.start)).start;
        let end = self.pageblock_span(zone, Pfn::new(frames.end - 1)).end;
        let mut isolation = Isolation { span: first..first };
        while isolation.span.end < end {
            let pageblock = self.pageblock_span(zone, Pfn::new(isolation.span.end));
            let start = Pfn::new(pageblock.start);
            let isolated = self.locked(zone, |locked| {
                locked.forget_homes(start);
                locked.isolate_pageblock(&pageblock)
            });
            if !isolated {
                self.end_isolation(zone, isolation);
                return Err(start);
            }
            self.base.event(Event::PageblockIsolated);
            isolation.span.end = pageblock.end;
        }
        Ok(isolation)
    }

    /// Puts isolated pageblocks back into circulation.
    pub(super) fn end_isolation(&self, zone: &Zone, isolation: Isolation) {
        let Isolation { span } = isolation;
        let mut at = span.start;
        while at < span.end {
            let pageblock = self.pageblock_span(zone, Pfn::new(at));
            self.locked(zone, |locked| {
                self.blocks.unisolate(zone.block_base, Pfn::new(pageblock.start));
                locked.rehome(&pageblock);
            });
            at = pageblock.end;
        }
    }
}

impl<P: Platform> LockedZone<'_, P> {
    fn isolate_pageblock(&mut self, pageblock: &Range<u32>) -> bool {
        let isolated = self.blocks.isolate(self.zone.block_base, Pfn::new(pageblock.start));
        if isolated {
            self.rehome(pageblock);
        }
        isolated
    }

    /// Frees the free blocks of a pageblock again, now that its type has changed.
    fn rehome(&mut self, pageblock: &Range<u32>) {
        let mut at = pageblock.start;
        while at < pageblock.end {
            let Some((first, order)) = self.free_block_around(Pfn::new(at)) else {
                at += 1;
                continue;
            };
            let block = self.remove(first);
            // Until it is free again, no part of it must look like somebody's free buddy.
            self.base.frames.set_block_kind(block.first, block.order, FrameKind::Pcp);
            self.free(block.first, block.order);
            at = first.as_u32().saturating_add(order.pages() as u32);
        }
    }

    /// Frees a block larger than a pageblock in parts, each to the lists of its own pageblock.
    #[cold]
    pub(super) fn free_by_pageblock(&mut self, first: Pfn, order: Order) {
        for offset in (0..order.pages()).step_by(self.blocks.order.pages() as usize) {
            let Some(part) = first.checked_add(offset) else { return };
            self.free_whole(part, self.blocks.order);
        }
    }

    /// Tells whether one of the pageblocks of a block is isolated.
    pub(super) fn is_partly_isolated(&self, first: Pfn, order: Order) -> bool {
        let mut parts = (0..order.pages()).step_by(self.blocks.order.pages() as usize);
        let isolated = |part: Pfn| self.block_type(part) == MigrateType::Isolate;
        parts.any(|offset| first.checked_add(offset).is_some_and(isolated))
    }

    /// Free pages that nobody can allocate because they are isolated.
    pub(super) fn isolated_pages(&self) -> u64 {
        let lists = Order::ZERO.up_to(Order::MAX).zip(&self.areas.lists);
        lists.map(|(order, lists)| u64::from(lists[MigrateType::Isolate.index()].len()) * order.pages()).sum()
    }
}
