//! The walk of x86-64 page tables, written from the processor's manual and not from the allocator under test.
//!
//! ```text
//!   63  62      52 51                     12 11   8  7  6  5    2  1  0
//!   NX  ignored    frame of table or page    ign.   PS  D  A        W  P
//! ```

use kmem::{Pfn, PhysAddr, PhysMem, Vpn};
use std::ops::Range;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const HUGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Levels above the last, by the number of low page-number bits that each leaves to the next.
const SHIFTS: [u32; 4] = [27, 18, 9, 0];

/// What a walk found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    /// The frame behind the page.
    pub(crate) pfn: Pfn,
    /// Whether every level allows writing.
    pub(crate) writable: bool,
    /// log2 of the pages that the entry maps.
    pub(crate) leaf_order: u8,
    /// Where the entry is that maps the page.
    entry: PhysAddr,
}

/// Walks the tables below `root`; `None` if an entry on the way is not present or leads out of memory.
pub(crate) fn walk(memory: &PhysMem, root: Pfn, vpn: Vpn) -> Option<Translation> {
    let mut table = root.addr();
    let mut writable = true;
    for (level, shift) in SHIFTS.into_iter().enumerate() {
        let at = table.checked_add((vpn.as_u64() >> shift & 0x1ff) * 8)?;
        let entry = memory.read_u64(at)?;
        if entry & PRESENT == 0 {
            return None;
        }
        writable &= entry & WRITE != 0;
        let huge = entry & HUGE != 0 && matches!(level, 1 | 2);
        if shift == 0 || huge {
            let inside = vpn.as_u64() & ((1 << shift) - 1);
            // The low frame bits of a large page are reserved: set, they raise a fault.
            if entry & FRAME & (((1 << shift) - 1) << 12) != 0 {
                return None;
            }
            let pfn = PhysAddr::new(entry & FRAME).pfn()?.checked_add(inside)?;
            return Some(Translation { pfn, writable, leaf_order: shift as u8, entry: at });
        }
        table = PhysAddr::new(entry & FRAME);
    }
    None
}

/// The tables below the root on the way to a page, each with log2 of the pages below it.
pub(crate) fn tables_above(memory: &PhysMem, root: Pfn, vpn: Vpn) -> impl Iterator<Item = (u32, Pfn)> {
    let mut table = Some(root.addr());
    SHIFTS.into_iter().take(3).map_while(move |shift| {
        let at = table.take()?.checked_add((vpn.as_u64() >> shift & 0x1ff) * 8)?;
        let entry = memory.read_u64(at).filter(|entry| entry & PRESENT != 0 && entry & HUGE == 0)?;
        let next = PhysAddr::new(entry & FRAME);
        table = Some(next);
        Some((shift, next.pfn()?))
    })
}

/// Pages next to each other that lead to frames next to each other, by entries of one size and with the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafRun {
    /// Number of the first page.
    pub vpn: u64,
    /// How many pages.
    pub pages: u64,
    /// The frame behind the first.
    pub pfn: u32,
    /// log2 of the pages that each entry maps.
    pub order: u8,
    /// Whether every level allows writing.
    pub writable: bool,
}

impl LeafRun {
    /// Tells whether a leaf goes on where the run ends.
    fn goes_on(&self, leaf: &Self) -> bool {
        let next = (self.vpn + self.pages, u64::from(self.pfn) + self.pages, self.order, self.writable);
        next == (leaf.vpn, u64::from(leaf.pfn), leaf.order, leaf.writable)
    }
}

/// Everything that the tables below `root` map of these pages; missing tables are stepped over.
pub(crate) fn leaf_runs(memory: &PhysMem, root: Pfn, pages: Range<u64>) -> Vec<LeafRun> {
    let mut runs: Vec<LeafRun> = Vec::new();
    let mut vpn = pages.start;
    while vpn < pages.end {
        let page = Vpn::new(vpn);
        let Some(found) = walk(memory, root, page) else {
            let shift = SHIFTS[tables_above(memory, root, page).count()];
            vpn = (vpn >> shift).saturating_add(1) << shift;
            continue;
        };
        let end = (((vpn >> found.leaf_order) + 1) << found.leaf_order).min(pages.end);
        let leaf = LeafRun {
            vpn,
            pages: end - vpn,
            pfn: found.pfn.as_u32(),
            order: found.leaf_order,
            writable: found.writable,
        };
        match runs.last_mut().filter(|run| run.goes_on(&leaf)) {
            Some(run) => run.pages += leaf.pages,
            None => runs.push(leaf),
        }
        vpn = end;
    }
    runs
}

/// Sets the accessed and dirty bits of the entry that a walk ended at, as a processor does when it fills its TLB.
pub(crate) fn mark_used(memory: &PhysMem, found: Translation) {
    if let Some(entry) = memory.read_u64(found.entry) {
        let dirty = if found.writable { DIRTY } else { 0 };
        let done = memory.write_u64(found.entry, entry | ACCESSED | dirty);
        debug_assert!(done, "the entry was read from there");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> PhysMem {
        let memory = PhysMem::heap(8, 0);
        let write = |frame: u64, index: u64, entry: u64| {
            assert!(memory.write_u64(PhysAddr::new(frame * 4096 + index * 8), entry));
        };
        write(0, 402, 0x1000 | PRESENT | WRITE);
        write(1, 1, 0x2000 | PRESENT | WRITE);
        write(2, 2, 0x3000 | PRESENT | WRITE);
        write(3, 3, 0x7000 | PRESENT | 1 << 63);
        write(2, 4, 0x20_0000 | PRESENT | WRITE | HUGE);
        memory
    }

    fn vpn(indexes: [u64; 4]) -> Vpn {
        Vpn::new(indexes.iter().zip(SHIFTS).map(|(i, s)| i << s).sum())
    }

    #[test]
    fn four_levels_lead_to_the_frame_and_the_weakest_right_counts() {
        let found = walk(&tables(), Pfn::new(0), vpn([402, 1, 2, 3])).unwrap();
        assert_eq!((found.pfn, found.writable), (Pfn::new(7), false));
    }

    #[test]
    fn a_missing_entry_on_any_level_is_no_translation() {
        for hole in [[401, 1, 2, 3], [402, 0, 2, 3], [402, 1, 0, 3], [402, 1, 2, 0]] {
            assert_eq!(walk(&tables(), Pfn::new(0), vpn(hole)), None, "{hole:?}");
        }
    }

    #[test]
    fn a_large_page_keeps_the_low_bits_of_the_page_number() {
        let found = walk(&tables(), Pfn::new(0), vpn([402, 1, 4, 5])).unwrap();
        assert_eq!((found.pfn, found.leaf_order), (Pfn::new(512 + 5), 9));
    }

    #[test]
    fn the_runs_are_what_page_by_page_walks_find() {
        let memory = tables();
        let write = |frame: u64, index: u64, entry: u64| {
            assert!(memory.write_u64(PhysAddr::new(frame * 4096 + index * 8), entry));
        };
        write(3, 4, 0x4000 | PRESENT | WRITE);
        write(3, 5, 0x5000 | PRESENT | WRITE);
        write(3, 6, 0x7000 | PRESENT | WRITE);
        let (first, end) = (vpn([402, 0, 0, 0]).as_u64(), vpn([402, 2, 0, 0]).as_u64());
        let runs = leaf_runs(&memory, Pfn::new(0), first..end);
        let page =
            |at: u64| walk(&memory, Pfn::new(0), Vpn::new(at)).map(|t| (t.pfn.as_u32(), t.leaf_order, t.writable));
        let in_run = |at: u64| {
            let run = runs.iter().find(|run| (run.vpn..run.vpn + run.pages).contains(&at))?;
            Some((run.pfn + (at - run.vpn) as u32, run.order, run.writable))
        };
        assert!((first..end).all(|at| page(at) == in_run(at)));
        assert_eq!(
            runs.iter().map(|run| (run.pages, run.order)).collect::<Vec<_>>(),
            [(1, 0), (2, 0), (1, 0), (512, 9)]
        );
        assert_eq!(leaf_runs(&memory, Pfn::new(0), first + 515..first + 517).len(), 0, "a hole");
    }

    #[test]
    fn the_used_entry_keeps_its_frame_and_gains_the_bits() {
        let memory = tables();
        let page = vpn([402, 1, 2, 3]);
        mark_used(&memory, walk(&memory, Pfn::new(0), page).unwrap());
        assert_eq!(memory.read_u64(PhysAddr::new(0x3018)), Some(0x7000 | PRESENT | ACCESSED | 1 << 63));
        assert_eq!(walk(&memory, Pfn::new(0), page).unwrap().pfn, Pfn::new(7));
    }
}
