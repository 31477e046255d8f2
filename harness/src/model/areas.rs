//! The vmalloc window: what a request says about its area, gaps between areas, and the page tables that a new one needs.

use super::{ram_block_pages, request};
use crate::subject::{Call, WindowCall};
use kmem::{Geometry, GfpFlags, NodeId, PAGE_SIZE};
use std::collections::BTreeSet;

/// log2 of the pages that one entry of the last level but one can map: 2 MiB.
pub const HUGE_ORDER: u8 = 9;
/// Those pages.
pub const HUGE_PAGES: u64 = 1 << HUGE_ORDER;

/// log2 of the pages under one entry of each level above the last: 2 MiB, 1 GiB, 512 GiB.
const TABLE_SHIFTS: [u32; 3] = [9, 18, 27];

/// What a request says about its area, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaWish {
    /// Pages that are to be mapped.
    pub pages: u64,
    /// Pages after them that are to stay empty: 1, or 0.
    pub guard: u64,
    /// Of what the first page's number is to be a multiple; a power of two.
    pub align: u64,
    /// Where it may lie: the first page, and the one after the last; `None`: anywhere in the window.
    pub within: Option<(u64, u64)>,
    /// Whether it may be mapped by entries of 512 pages (section 4.4).
    pub huge: bool,
    /// Where its pages are to come from.
    pub node: Option<NodeId>,
    /// With which flags.
    pub gfp: GfpFlags,
}

impl AreaWish {
    /// What a call that makes a new area wishes for; `None` if it can make none.
    pub fn of(geometry: &Geometry, call: &Call) -> Option<Self> {
        let (size, gfp) = request(call)?;
        let pages = size.div_ceil(PAGE_SIZE) as u64;
        let plain = Self { pages, guard: 1, align: 1, within: None, huge: false, node: None, gfp };
        // The caller must be able to wait, 2 MiB must be asked for, and the machine must have such blocks.
        let may_be_huge = gfp.may_block()
            && size >= PAGE_SIZE << HUGE_ORDER
            && !gfp.contains(GfpFlags::MOVABLE)
            && geometry.vmap_allow_huge
            && geometry.max_order.get() >= HUGE_ORDER;
        match *call {
            Call::Window(WindowCall::VmMapRam { .. }) => Some(Self { guard: 0, ..plain }),
            Call::Vmalloc { .. } | Call::Vmap { .. } | Call::Window(_) => Some(plain),
            Call::Vrealloc { near, .. } => Some(Self { align: in_pages(near.align), node: near.node, ..plain }),
            Call::Kvmalloc { .. } | Call::KvmallocArray { .. } => Some(Self { huge: may_be_huge, ..plain }),
            // What is an area already is moved as `vrealloc` does it.
            Call::Kvrealloc { addr, .. } => {
                let is_area = geometry.is_vmalloc_addr(kmem::VirtAddr::new(addr));
                Some(Self { huge: may_be_huge && !is_area, ..plain })
            }
            Call::KvmallocNode { align, node, .. } => {
                Some(Self { huge: may_be_huge, align: in_pages(align), node, ..plain })
            }
            Call::VmallocRange(ref area) => Some(Self {
                guard: u64::from(area.guard),
                align: in_pages(area.align),
                within: area.within,
                huge: may_be_huge && area.huge,
                node: area.node,
                ..plain
            }),
            _ => None,
        }
    }

    /// What a new block for mappings of `vm_map_ram` wishes for, and how hard it may try: of its size, aligned to that, no guard.
    pub fn ram_block(geometry: &Geometry, gfp: GfpFlags) -> Self {
        let pages = ram_block_pages(geometry) as u64;
        Self { pages, guard: 0, align: pages, within: None, huge: false, node: None, gfp }
    }

    /// The same area mapped by entries of 512 pages: size and alignment grow to multiples of that.
    pub fn as_huge(self) -> Self {
        Self { pages: self.pages.next_multiple_of(HUGE_PAGES), align: self.align.max(HUGE_PAGES), ..self }
    }

    /// The area that came of the wish, if its first page is mapped by an entry of 2^`leaf` pages.
    pub fn as_mapped(self, leaf: u8) -> Self {
        if self.huge && leaf == HUGE_ORDER { self.as_huge() } else { self }
    }
}

/// An alignment in pages; a page at least.
fn in_pages(align: usize) -> u64 {
    (align.checked_next_power_of_two().unwrap_or(1 << 62).max(PAGE_SIZE) / PAGE_SIZE) as u64
}

/// One area of the window, in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    /// Its first page, as a virtual page number.
    pub start: u64,
    /// Pages of address space, without the guard.
    pub pages: u64,
    /// Pages after it that are nobody's: 1, or 0 for an area without a guard.
    pub guard: u64,
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

    /// Where pools have a range for an area: of its size, aligned, and only if it may lie anywhere.
    pub fn pooled_for(&self, wish: &AreaWish) -> impl Iterator<Item = u64> {
        let (span, align) = (wish.pages + wish.guard, wish.align);
        let anywhere = wish.within.is_none_or(|(first, end)| first <= self.start && self.end <= end);
        let fits =
            move |pooled: &&Span| anywhere && pooled.pages + pooled.guard == span && pooled.start.is_multiple_of(align);
        self.pooled.iter().filter(fits).map(|pooled| pooled.start)
    }

    /// The most page tables that an area may need: where it goes is the lowest gap, or a pooled range of its size; `None`
    /// if there is no gap.
    pub fn tables_needed(&self, wish: &AreaWish) -> Option<u64> {
        let gap = self.lowest_gap(wish)?;
        self.pooled_for(wish).chain([gap]).map(|start| self.new_tables(start, wish.pages)).max()
    }

    /// The lowest page at which the area and its guard fit (section 4.1: lowest address first); `None` if there is no such
    /// place.
    pub fn lowest_gap(&self, wish: &AreaWish) -> Option<u64> {
        let needed = wish.pages.checked_add(wish.guard)?;
        let (first, end) = wish.within.unwrap_or((self.start, self.end));
        let (first, end) = (first.max(self.start), end.min(self.end));
        let mut from = first.checked_next_multiple_of(wish.align)?;
        for span in &self.spans {
            if span.start >= from.checked_add(needed)? {
                break;
            }
            if span.start + span.pages + span.guard > from {
                from = (span.start + span.pages + span.guard).checked_next_multiple_of(wish.align)?;
            }
        }
        (from.checked_add(needed)? <= end).then_some(from)
    }

    /// Tells whether the area that starts at `start` can have `span` pages, its guard counted, where it is. A pooled range
    /// behind it stands in its way.
    pub fn can_grow(&self, start: u64, span: u64) -> bool {
        let others = self.spans.iter().chain(&self.pooled).map(|span| span.start);
        let next = others.filter(|&other| other > start).min().unwrap_or(self.end);
        start.checked_add(span).is_some_and(|end| end <= next)
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
        let span = |&(start, pages): &(u64, u64)| Span { start: base + start, pages, guard: 1, mapped: pages };
        Window::new(&geometry, spans.iter().map(span).collect())
    }

    fn wish(pages: u64) -> AreaWish {
        let gfp = GfpFlags::KERNEL;
        AreaWish { pages, guard: 1, align: 1, within: None, huge: false, node: None, gfp }
    }

    #[test]
    fn a_place_is_aligned_and_in_the_range_and_the_lowest_of_all() {
        let w = window(4096, &[(0, 3), (8, 3), (600, 1)]);
        let at = |wish: AreaWish| w.lowest_gap(&wish).map(|p| p - w.start);
        assert_eq!(at(AreaWish { align: 2, ..wish(2) }), Some(4));
        assert_eq!(at(AreaWish { align: 4, ..wish(4) }), Some(12), "of pages 4 to 7 none is left for the guard");
        assert_eq!(at(AreaWish { align: 4, guard: 0, ..wish(4) }), Some(4));
        let within = |from: u64, end: u64| Some((w.start + from, w.start + end));
        assert_eq!(at(AreaWish { within: within(5, 8), ..wish(2) }), Some(5), "exactly what it needs");
        assert_eq!(at(AreaWish { within: within(5, 7), ..wish(2) }), None);
        assert_eq!(at(AreaWish { within: within(4000, 9000), ..wish(200) }), None, "the window ends before the range");
        assert_eq!(at(wish(300).as_huge()), Some(1024));
    }

    #[test]
    fn what_may_be_huge_waits_and_is_large_and_asks_for_it() {
        let geometry = Geometry::flat(4096);
        let huge = |call| AreaWish::of(&geometry, &call).unwrap().huge;
        let kvmalloc = |size, gfp| Call::Kvmalloc { size, gfp };
        assert!(huge(kvmalloc(2 << 20, GfpFlags::KERNEL)) && !huge(kvmalloc((2 << 20) - 1, GfpFlags::KERNEL)));
        assert!(!huge(kvmalloc(2 << 20, GfpFlags::ATOMIC)));
        assert!(!huge(Call::Vmalloc { size: 4 << 20, gfp: GfpFlags::KERNEL }));
        let mut off = geometry.clone();
        off.vmap_allow_huge = false;
        assert!(!AreaWish::of(&off, &kvmalloc(2 << 20, GfpFlags::KERNEL)).unwrap().huge);
    }

    #[test]
    fn a_gap_must_hold_the_guard_page_too() {
        let at = |w: &Window, pages| w.lowest_gap(&wish(pages)).map(|p| p - w.start);
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
    fn an_area_grows_up_to_the_next_one_or_the_end_of_the_window() {
        let w = window(16, &[(0, 3), (8, 3)]);
        assert!(w.can_grow(w.start, 8) && !w.can_grow(w.start, 9), "the next one is at page 8");
        assert!(w.can_grow(w.start + 8, 8) && !w.can_grow(w.start + 8, 9) && !w.can_grow(w.start + 8, u64::MAX));
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
