//! What was taken out of the tables and is not yet flushed, as values that cannot be forgotten.
//!
//! ```text
//! unmap ─► TlbFlush ────────────┐
//!                               ├─ and ─► flush ─► Flushed ─┐
//! take ──► Detached ─ to_flush ─┘                           ├─► release: the frames go back to the page allocator
//!             └─────────────────────────────────────────────┘
//! ```
//!
//! A frame that a TLB may still reach is only in a [`Detached`], and the only way out of that needs a [`Flushed`],
//! which only the flush makes: reuse before the flush does not type-check.

use super::range::VpnRange;
use crate::addr::{Pfn, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::page::{FrameTable, PageList};
use crate::platform::Platform;

/// A range of pages whose old translations the processors may still remember.
#[must_use = "until the flush, processors may still use the old translation"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TlbFlush {
    first: u64,
    end: u64,
}

/// The proof that a flush happened.
pub(crate) struct Flushed {
    range: TlbFlush,
}

impl TlbFlush {
    /// Nothing to flush.
    pub(crate) const NONE: Self = Self { first: u64::MAX, end: 0 };

    /// All pages of a range.
    pub(crate) const fn of(range: VpnRange) -> Self {
        if range.pages() == 0 { Self::NONE } else { Self { first: range.start().as_u64(), end: range.end() } }
    }

    /// The smallest range that covers both: one flush of it costs less than two.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), end: self.end.max(other.end) }
    }

    /// Tells whether flushing this flushes every page of `range`.
    pub(crate) fn covers(&self, range: VpnRange) -> bool {
        range.pages() == 0 || (self.first <= range.start().as_u64() && range.end() <= self.end)
    }

    /// Makes every processor forget the range.
    pub(crate) fn flush<P: Platform>(self, platform: &P) -> Flushed {
        if self.first < self.end {
            platform.flush_tlb(Vpn::new(self.first), self.end - self.first);
        }
        Flushed { range: self }
    }
}

/// Frames that no table names any more and that wait for the flush.
///
/// The lists are threaded through the frames' own descriptors, so that any number of frames can wait.
#[must_use = "the frames in it are lost unless released"]
#[derive(Debug)]
pub(crate) struct Detached {
    /// Pages that the areas owned.
    pages: PageList,
    /// Tables that became empty.
    tables: PageList,
    /// What the flush has to cover.
    ranges: TlbFlush,
}

impl Detached {
    /// Nothing waits.
    pub(crate) const fn new() -> Self {
        Self { pages: PageList::EMPTY, tables: PageList::EMPTY, ranges: TlbFlush::NONE }
    }

    pub(super) fn add_page(&mut self, frames: &FrameTable, frame: Pfn) {
        self.pages.push_tail(frames, frame);
    }

    pub(super) fn add_table(&mut self, frames: &FrameTable, frame: Pfn) {
        self.tables.push_tail(frames, frame);
    }

    pub(super) fn add_range(&mut self, range: VpnRange) {
        self.ranges = self.ranges.and(TlbFlush::of(range));
    }

    /// Makes the pages unusable by their addresses in the direct map, which the flush has to cover from now on.
    pub(crate) fn hide_aliases<P: Platform>(&mut self, base: &Base<P>) {
        for frame in self.pages.iter(&base.frames) {
            base.platform.set_direct_map_invalid(frame);
            self.ranges = self.ranges.and(TlbFlush::of(VpnRange::new(base.virt(frame.addr()).vpn(), 1)));
        }
    }

    /// Makes them usable again as all memory is, now that no processor remembers what they were.
    pub(crate) fn restore_aliases<P: Platform>(&self, base: &Base<P>, flushed: &Flushed) {
        debug_assert_eq!(flushed.range.and(self.ranges), flushed.range, "the flush missed an alias");
        self.pages.iter(&base.frames).for_each(|frame| base.platform.set_direct_map_default(frame));
    }

    /// What has to be flushed before [`Self::release`].
    pub(crate) fn to_flush(&self) -> TlbFlush {
        self.ranges
    }

    /// Gives the frames back to the page allocator and tells how many there were.
    pub(crate) fn release<P: Platform>(mut self, pages: &PageAllocator<P>, flushed: &Flushed) -> u64 {
        debug_assert_eq!(flushed.range.and(self.ranges), flushed.range, "the flush missed a range");
        let released = u64::from(self.pages.len()) + u64::from(self.tables.len());
        free_list(pages, &mut self.pages);
        free_list(pages, &mut self.tables);
        released
    }
}

/// Gives single frames back to the page allocator, those that follow each other in memory and on the list together.
pub(crate) fn free_list<P: Platform>(pages: &PageAllocator<P>, list: &mut PageList) {
    let frames = &pages.base.frames;
    while let Some(first) = list.pop_head(frames) {
        let mut count = 1;
        while list.head().is_some_and(|next| first.checked_add(count) == Some(next)) {
            list.pop_head(frames);
            count += 1;
        }
        pages.free_run(first, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> VpnRange {
        VpnRange::new(Vpn::new(start), pages)
    }

    #[test]
    fn two_flushes_together_cover_both_ranges() {
        let both = TlbFlush::of(range(10, 2)).and(TlbFlush::of(range(3, 1)));
        assert!(both.covers(range(10, 2)) && both.covers(range(3, 1)));
        assert!(!both.covers(range(2, 1)) && !both.covers(range(11, 2)));
        assert_eq!(both.and(TlbFlush::NONE), both);
        assert_eq!(TlbFlush::of(range(7, 0)), TlbFlush::NONE);
    }
}
