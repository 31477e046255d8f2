//! The vmalloc window: gaps between areas, and the page tables that a new area needs.

use kmem::Geometry;
use std::collections::BTreeSet;

/// log2 of the pages under one entry of each level above the last: 2 MiB, 1 GiB, 512 GiB.
const TABLE_SHIFTS: [u32; 3] = [9, 18, 27];

/// One area of the window, in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// Its first page, as a virtual page number.
    pub start: u64,
    /// Pages of address space, without the guard.
    pub pages: u64,
    /// Pages that have an entry in the page table.
    pub mapped: u64,
}

/// The window with its areas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    start: u64,
    end: u64,
    spans: Vec<Span>,
    /// Freed and flushed ranges that wait for an area of their size; they stand in nobody's way (section 4.1: any failure
    /// to find addresses empties the pools).
    pooled: Vec<Span>,
}

impl Window {
    /// The window of a geometry with these areas, in any order.
    pub fn new(geometry: &Geometry, mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let start = geometry.vmalloc_start.vpn().as_u64();
        Self { start, end: start + geometry.vmalloc_pages.get(), spans, pooled: Vec::new() }
    }

    /// The same window with these ranges in pools.
    #[must_use]
    pub fn with_pools(self, pooled: Vec<Span>) -> Self {
        Self { pooled, ..self }
    }

    /// The most page tables that an area of so many pages anywhere may need: where it goes is the lowest gap, or a pooled
    /// range of its size; `None` if there is no gap.
    pub fn tables_needed(&self, pages: u64) -> Option<u64> {
        let gap = self.lowest_gap(pages)?;
        let pooled = self.pooled.iter().filter(|span| span.pages == pages).map(|span| span.start);
        pooled.chain([gap]).map(|start| self.new_tables(start, pages)).max()
    }

    /// The lowest page at which `pages` pages and their guard fit (section 4.1: lowest address first); `None` if there
    /// is no such gap.
    pub fn lowest_gap(&self, pages: u64) -> Option<u64> {
        let needed = pages.checked_add(1)?;
        let mut from = self.start;
        for span in &self.spans {
            if span.start.saturating_sub(from) >= needed {
                return Some(from);
            }
            from = from.max(span.start + span.pages + 1);
        }
        (self.end.saturating_sub(from) >= needed).then_some(from)
    }

    /// How many page tables do not exist yet for `pages` pages from `start` on, if the tables that exist are exactly
    /// those above a mapped page, and the root.
    pub fn new_tables(&self, start: u64, pages: u64) -> u64 {
        TABLE_SHIFTS.into_iter().map(|shift| self.new_tables_of_level(start, pages, shift)).sum()
    }

    fn new_tables_of_level(&self, start: u64, pages: u64, shift: u32) -> u64 {
        let tables = |start: u64, pages: u64| start >> shift..=(start + pages.max(1) - 1) >> shift;
        let mut wanted: BTreeSet<u64> = tables(start, pages).collect();
        for span in self.spans.iter().filter(|span| span.mapped > 0) {
            for table in tables(span.start, span.mapped) {
                wanted.remove(&table);
            }
        }
        wanted.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::PageCount;

    fn window(pages: u64, spans: &[(u64, u64)]) -> Window {
        let mut geometry = Geometry::flat(64);
        geometry.vmalloc_pages = PageCount::new(pages);
        let base = geometry.vmalloc_start.vpn().as_u64();
        let span = |&(start, pages): &(u64, u64)| Span { start: base + start, pages, mapped: pages };
        Window::new(&geometry, spans.iter().map(span).collect())
    }

    #[test]
    fn a_gap_must_hold_the_guard_page_too() {
        let at = |w: &Window, pages| w.lowest_gap(pages).map(|p| p - w.start);
        let w = window(16, &[(0, 3), (8, 3)]);
        assert_eq!(at(&w, 3), Some(4), "pages 4 to 6 and the guard at 7");
        assert_eq!(at(&w, 4), None);
        assert_eq!(at(&window(16, &[(0, 3)]), 11), Some(4));
        assert_eq!(at(&window(16, &[(0, 3)]), 12), None);
        assert_eq!(at(&window(16, &[]), 15), Some(0));
        assert_eq!(at(&window(16, &[]), 16), None);
        assert_eq!(at(&window(16, &[]), u64::MAX), None);
    }

    #[test]
    fn tables_are_counted_once_per_level() {
        let empty = window(4096, &[]);
        assert_eq!(empty.new_tables(empty.start, 1), 3);
        assert_eq!(empty.new_tables(empty.start, 513), 4);
        assert_eq!(empty.new_tables(empty.start + 511, 2), 4);
        let used = window(4096, &[(0, 1)]);
        assert_eq!(used.new_tables(used.start + 2, 100), 0);
        assert_eq!(used.new_tables(used.start + 2, 511), 1);
    }
}
