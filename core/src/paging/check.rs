//! Recounts the page tables. The numbers are those of the equations in the module's text.

use super::{ENTRIES, HUGE, LEAF, PageTables, Pte};
use crate::addr::{Pfn, PhysAddr};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{Invariant, Violation};
use crate::page::FrameKind;
use crate::platform::Platform;

/// Words that are read at once: a cache line.
const LINE: usize = 8;

/// What hangs below a table, itself included.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct TableCount {
    /// Tables.
    pub(crate) tables: u64,
    /// Pages that have an entry, or a part in one.
    pub(crate) pages: u64,
}

impl PageTables {
    /// Checks I17.1 to I17.4 and I17.8, and tells how many pages are mapped or unmapped but not yet taken.
    ///
    /// # Errors
    ///
    /// The first broken invariant.
    pub(crate) fn check_invariants<P: Platform>(&self, pages: &PageAllocator<P>) -> Result<TableCount, Violation> {
        let nr_tables = self.nr_tables.lock();
        check_kind(&pages.base, self.root)?;
        let found = count_below(&pages.base, self.root, 0)?;
        let what = "page tables reached from the root, against the counter (I17.3)";
        Violation::check_eq(Invariant::I17Statistics, what, self.root.index() as u64, *nr_tables, found.tables)?;
        Ok(found)
    }
}

fn count_below<P>(base: &Base<P>, table: Pfn, level: usize) -> Result<TableCount, Violation> {
    let mut count = TableCount { tables: 1, pages: 0 };
    let mut inuse = 0;
    for line in (0..ENTRIES).step_by(LINE) {
        let Some(entries) = load_line(base, table, line) else { continue };
        for (at, entry) in (line..).zip(entries).filter(|(_, entry)| !entry.is_empty()) {
            inuse += 1;
            let below = match level {
                LEAF => TableCount { tables: 0, pages: 1 },
                HUGE if entry.is_huge() => huge(base, table, at, entry)?,
                _ => child(base, table, at, entry, level)?,
            };
            count.tables += below.tables;
            count.pages += below.pages;
        }
    }
    check_inuse(base, table, level, inuse)?;
    Ok(count)
}

/// Checks the run of frames that a huge entry names.
fn huge<P>(base: &Base<P>, table: Pfn, at: u64, entry: Pte) -> Result<TableCount, Violation> {
    let frames = u64::from(base.frames.frames());
    let fits = |first: Pfn| (first.index() as u64).is_multiple_of(ENTRIES) && first.index() as u64 + ENTRIES <= frames;
    if entry.frame().is_some_and(fits) {
        return Ok(TableCount { tables: 0, pages: ENTRIES });
    }
    let what = "a huge entry names no aligned run of frames (I17.8)";
    Err(Violation::new(Invariant::I17Statistics, what, u64::from(table.as_u32()), at, entry.to_word()))
}

/// Checks the table that an entry names, and everything below it.
fn child<P>(base: &Base<P>, parent: Pfn, at: u64, entry: Pte, level: usize) -> Result<TableCount, Violation> {
    let invariant = Invariant::I17Statistics;
    let place = u64::from(parent.as_u32());
    let table = match entry.frame() {
        Some(table) if entry.is_present() && !entry.is_huge() && table.as_u32() < base.frames.frames() => table,
        _ => {
            let what = "the entry names no table (I17.2)";
            return Err(Violation::new(invariant, what, place, at, entry.to_word()));
        }
    };
    check_kind(base, table)?;
    let what = "the table's parent, as it remembers (I17.2)";
    let at_table = u64::from(table.as_u32());
    Violation::check_eq(invariant, what, at_table, place, u64::from(base.frames.private(table)))?;
    let what = "the table's place in its parent, as it remembers (I17.2)";
    Violation::check_eq(invariant, what, at_table, at, u64::from(base.frames.objects(table)))?;
    count_below(base, table, level + 1)
}

fn check_kind<P>(base: &Base<P>, table: Pfn) -> Result<(), Violation> {
    let what = "kind of a frame that is a page table (I17.4)";
    let (expected, found) = (FrameKind::PageTable.to_byte(), base.frames.kind_byte(table));
    Violation::check_eq(Invariant::I17Statistics, what, table.index() as u64, expected.into(), found.into())
}

fn check_inuse<P>(base: &Base<P>, table: Pfn, level: usize, inuse: u64) -> Result<(), Violation> {
    let place = u64::from(table.as_u32());
    let what = "entries in use of a page table (I17.1)";
    Violation::check_eq(Invariant::I17Statistics, what, place, inuse, base.frames.inuse(table).into())?;
    if inuse == 0 && level > 0 {
        let what = "a page table below the root is empty (I17.1)";
        return Err(Violation::new(Invariant::I17Statistics, what, place, 1, 0));
    }
    Ok(())
}

/// Reads a cache line of entries at once; `None` if all are empty, as nearly all lines of nearly all tables are.
fn load_line<P>(base: &Base<P>, table: Pfn, first: u64) -> Option<[Pte; LINE]> {
    let mut bytes = [0; 8 * LINE];
    let at = PhysAddr::new(table.addr().as_u64() + 8 * first);
    if !base.mem.read(at, &mut bytes) || bytes == [0; 8 * LINE] {
        return None;
    }
    let mut line = [Pte::EMPTY; LINE];
    for (entry, word) in line.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *entry = Pte::from_word(u64::from_le_bytes(*word));
    }
    Some(line)
}
