//! What the processors of the machine may remember at worst.
//!
//! A processor may fill its TLB with any translation that the tables have at any moment, keep it until it is flushed, and
//! the same for the upper levels of the tables. So this remembers, for all CPUs alike, *every* translation and every table
//! that was seen in the tables since the last flush of its pages: whatever a real CPU could still use is among it. The
//! tables are looked at when an area is handed out, when a processor walks them, while tables are being made, and after
//! each flush, which live translations survive by being filled in again.
//!
//! ```text
//! S1  a translation page -> frame goes only when its page is flushed
//! S2  a table goes only when a page below it is flushed (and comes back if the walk still finds it)
//! ```

use super::mmu;
use kmem::{FrameKind, Pfn, PhysMem, Vpn};
use std::collections::{BTreeMap, BTreeSet};

/// Levels of tables below the root.
const LEVELS_BELOW_ROOT: usize = 3;
/// Pages below a table of the last level.
const PAGES_OF_TABLE: u64 = 512;

/// A translation that some processor may still use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Number of the page.
    pub vpn: u64,
    /// The frame that it led to.
    pub pfn: u32,
    /// Whether the frame was the area's own, which is free only after the flush; another's owner may free it before.
    pub owned: bool,
}

/// A table that some processor's walk may still go through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RememberedTable {
    /// log2 of the pages below it.
    pub shift: u32,
    /// Number of the first page below it, divided by that.
    pub prefix: u64,
    /// Its frame.
    pub pfn: u32,
}

/// Everything that some processor may still use.
#[derive(Default)]
pub(super) struct Speculation {
    pages: BTreeMap<(u64, u32), bool>,
    tables: BTreeSet<RememberedTable>,
    /// The first reuse before a flush that was seen when the flush came.
    early: Option<String>,
}

impl Speculation {
    /// Fills in what the tables say of so many pages.
    pub(super) fn fill(
        &mut self,
        memory: &PhysMem,
        root: Pfn,
        pages: std::ops::Range<u64>,
        kind: impl Fn(Pfn) -> FrameKind,
    ) {
        let mut vpn = pages.start;
        while vpn < pages.end {
            match mmu::walk(memory, root, Vpn::new(vpn)) {
                Some(found) => {
                    let owned = kind(found.pfn) == FrameKind::Vmalloc;
                    self.pages.entry((vpn, found.pfn.as_u32())).or_insert(owned);
                    self.fill_tables(memory, root, vpn);
                }
                // Where there is no last-level table, none of its pages is mapped.
                None if mmu::tables_above(memory, root, Vpn::new(vpn)).count() < LEVELS_BELOW_ROOT => {
                    vpn |= PAGES_OF_TABLE - 1;
                }
                None => {}
            }
            vpn += 1;
        }
    }

    fn fill_tables(&mut self, memory: &PhysMem, root: Pfn, vpn: u64) {
        for (shift, table) in mmu::tables_above(memory, root, Vpn::new(vpn)) {
            self.tables.insert(RememberedTable { shift, prefix: vpn >> shift, pfn: table.as_u32() });
        }
    }

    /// All frames to which some processor may still take a page.
    pub(super) fn frames(&self, vpn: u64) -> impl Iterator<Item = u32> {
        self.pages.range((vpn, 0)..=(vpn, u32::MAX)).map(|(&(_, pfn), _)| pfn)
    }

    /// Everything remembered of pages.
    pub(super) fn pages(&self) -> impl Iterator<Item = Remembered> {
        self.pages.iter().map(|(&(vpn, pfn), &owned)| Remembered { vpn, pfn, owned })
    }

    /// Everything remembered of tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = RememberedTable> {
        self.tables.iter().copied()
    }

    /// What was reused too early, once.
    pub(super) fn take_early(&mut self) -> Option<String> {
        self.early.take()
    }

    /// Forgets pages and the tables above them, and fills in again what the tables still have. What the flush finds must
    /// not have been given back already.
    pub(super) fn flush(
        &mut self,
        memory: &PhysMem,
        root: Pfn,
        range: std::ops::Range<u64>,
        keep_tables: bool,
        kind: impl Fn(Pfn) -> FrameKind,
    ) {
        let flushed: Vec<(u64, u32)> =
            self.pages.range((range.start, 0)..(range.end, 0)).map(|(&key, _)| key).collect();
        for key in &flushed {
            let owned = self.pages.remove(key);
            let found = kind(Pfn::new(key.1));
            if owned == Some(true) && found != FrameKind::Vmalloc {
                let (page, frame) = (key.0 << 12, key.1);
                let message =
                    format!("the flush of {page:#x} comes after its frame {frame:#x} was given back ({found:?})");
                self.early.get_or_insert(message);
            }
        }
        if !keep_tables {
            self.flush_tables(&range, &kind);
        }
        let pages: BTreeSet<u64> = flushed.into_iter().map(|(vpn, _)| vpn).collect();
        pages.into_iter().for_each(|vpn| self.fill(memory, root, vpn..vpn + 1, &kind));
    }

    fn flush_tables(&mut self, range: &std::ops::Range<u64>, kind: &impl Fn(Pfn) -> FrameKind) {
        let below = |table: &RememberedTable| {
            let first = table.prefix << table.shift;
            first < range.end && range.start < first + (1 << table.shift)
        };
        for table in self.tables.iter().filter(|table| below(table)) {
            let found = kind(Pfn::new(table.pfn));
            if found != FrameKind::PageTable {
                let message = format!("the flush comes after {table:x?} was given back ({found:?})");
                self.early.get_or_insert(message);
            }
        }
        self.tables.retain(|table| !below(table));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::PhysAddr;

    /// Page 3 of the first table leads to `frame`; tables are in frames 0 to 3.
    fn memory(frame: u64) -> PhysMem {
        let memory = PhysMem::heap(8, 0);
        for (table, index, target) in [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 3, frame)] {
            assert!(memory.write_u64(PhysAddr::new(table * 4096 + index * 8), target << 12 | 3));
        }
        memory
    }

    const fn kind(pfn: Pfn) -> FrameKind {
        if pfn.as_u32() < 4 { FrameKind::PageTable } else { FrameKind::Vmalloc }
    }

    #[test]
    fn every_translation_that_was_ever_there_stays_until_its_page_is_flushed() {
        let mut all = Speculation::default();
        let root = Pfn::new(0);
        all.fill(&memory(5), root, 0..8, kind);
        all.fill(&memory(6), root, 0..8, kind);
        assert_eq!(all.frames(3).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(all.tables().count(), 3);
        all.flush(&memory(6), root, 4..100, false, kind);
        assert_eq!(all.frames(3).collect::<Vec<_>>(), [5, 6]);
        all.flush(&memory(6), root, 3..4, false, kind);
        assert_eq!(all.frames(3).collect::<Vec<_>>(), [6], "what is still mapped comes back");
        assert_eq!(all.tables().count(), 3);
        assert_eq!(all.take_early(), None);
    }

    #[test]
    fn a_frame_or_a_table_that_was_given_back_before_the_flush_is_seen() {
        let root = Pfn::new(0);
        let empty = PhysMem::heap(8, 0);
        for lost in [5, 3] {
            let mut all = Speculation::default();
            all.fill(&memory(5), root, 0..8, kind);
            all.flush(&empty, root, 0..8, false, |pfn| if pfn.as_u32() == lost { FrameKind::Free } else { kind(pfn) });
            assert!(all.take_early().is_some_and(|message| message.contains("given back")), "frame {lost}");
            assert_eq!((all.pages().count(), all.tables().count()), (0, 0));
        }
    }
}
