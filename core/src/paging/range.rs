//! Runs of virtual pages, cut where page tables end.

use super::ENTRIES;
use crate::addr::Vpn;

/// A run of virtual pages: `pages` of them from `start` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VpnRange {
    start: u64,
    pages: u64,
}

impl VpnRange {
    /// Makes a range; it ends at the last page of the address space at the latest.
    pub(crate) const fn new(start: Vpn, pages: u64) -> Self {
        let start = start.as_u64();
        let room = Vpn::new(u64::MAX).as_u64() - start + 1;
        Self { start, pages: if pages < room { pages } else { room } }
    }

    /// The first page.
    pub(crate) const fn start(self) -> Vpn {
        Vpn::new(self.start)
    }

    /// How many pages.
    pub(crate) const fn pages(self) -> u64 {
        self.pages
    }

    /// The number after the last page's.
    pub(crate) const fn end(self) -> u64 {
        self.start + self.pages
    }

    /// The first `n` pages, or all if there are fewer.
    pub(crate) const fn first(self, n: u64) -> Self {
        Self { start: self.start, pages: if n < self.pages { n } else { self.pages } }
    }

    /// The pages after the first `n`.
    pub(crate) const fn after(self, n: u64) -> Self {
        let skip = if n < self.pages { n } else { self.pages };
        Self { start: self.start + skip, pages: self.pages - skip }
    }

    /// The pages one by one.
    pub(crate) fn iter(self) -> impl Iterator<Item = Vpn> {
        (self.start..self.end()).map(Vpn::new)
    }

    /// The range cut into pieces that lie in one last-level table each.
    pub(crate) fn by_table(self) -> impl Iterator<Item = Self> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let piece = rest.first(ENTRIES - rest.start % ENTRIES);
            rest = rest.after(piece.pages);
            (piece.pages > 0).then_some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_in_order_and_stay_in_one_table() {
        for (start, pages) in [(0, 0), (0, 1), (511, 2), (500, 1024), (512, 512), (1, 511)] {
            let range = VpnRange::new(Vpn::new(start), pages);
            let mut next = start;
            for piece in range.by_table() {
                assert_eq!(piece.start().as_u64(), next);
                assert_eq!(piece.start().as_u64() / ENTRIES, (piece.end() - 1) / ENTRIES);
                next = piece.end();
            }
            assert_eq!(next, start + pages);
        }
    }

    #[test]
    fn a_range_never_runs_past_the_last_page() {
        let last = Vpn::new(u64::MAX);
        assert_eq!(VpnRange::new(last, 7).pages(), 1);
        assert_eq!(VpnRange::new(last, 7).iter().count(), 1);
    }
}
