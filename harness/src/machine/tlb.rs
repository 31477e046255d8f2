//! A translation cache that forgets nothing on its own account.

use kmem::{Pfn, Vpn};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// How many translations one CPU remembers; a power of two.
const ENTRIES: usize = 1024;

/// One remembered translation.
#[derive(Clone, Copy)]
struct Entry {
    /// The page number, or [`NOTHING`].
    vpn: u64,
    pfn: u32,
    writable: bool,
}

/// A number that is no page: page numbers have 52 bits.
const NOTHING: u64 = u64::MAX;
const EMPTY: Entry = Entry { vpn: NOTHING, pfn: 0, writable: false };

/// The translations that one CPU remembers.
///
/// A real one evicts at will, which hides a forgotten flush most of the time. In this one an entry goes only when it is
/// flushed: whatever stale entry a missing flush leaves behind stays usable. It is direct mapped; what another page drives
/// out of its slot moves to a list without an end.
///
/// ```text
/// T1  entries[i].vpn != NOTHING  =>  entries[i].vpn mod ENTRIES == i
/// T2  used == number of entries with vpn != NOTHING
/// T3  a page has an entry in its slot or in `driven_out`, not in both
/// ```
pub(crate) struct Tlb {
    entries: Box<[Cell<Entry>]>,
    used: Cell<usize>,
    /// Entries by page that had to leave their slots.
    driven_out: RefCell<BTreeMap<u64, Entry>>,
}

impl Default for Tlb {
    fn default() -> Self {
        Self {
            entries: vec![Cell::new(EMPTY); ENTRIES].into_boxed_slice(),
            used: Cell::new(0),
            driven_out: RefCell::default(),
        }
    }
}

impl Tlb {
    fn slot(&self, vpn: u64) -> &Cell<Entry> {
        &self.entries[vpn as usize % ENTRIES]
    }

    /// Returns the remembered frame and whether it may be written; `None` if there is no entry.
    #[inline]
    pub(crate) fn lookup(&self, vpn: Vpn) -> Option<(Pfn, bool)> {
        let entry = self.slot(vpn.as_u64()).get();
        if entry.vpn == vpn.as_u64() {
            return Some((Pfn::new(entry.pfn), entry.writable));
        }
        let driven_out = self.driven_out.borrow();
        let entry = if driven_out.is_empty() { None } else { driven_out.get(&vpn.as_u64()) };
        entry.map(|entry| (Pfn::new(entry.pfn), entry.writable))
    }

    /// Remembers a translation.
    pub(crate) fn fill(&self, vpn: Vpn, pfn: Pfn, writable: bool) {
        let slot = self.slot(vpn.as_u64());
        let mut driven_out = self.driven_out.borrow_mut();
        driven_out.remove(&vpn.as_u64());
        match slot.get() {
            Entry { vpn: NOTHING, .. } => self.used.set(self.used.get() + 1),
            old if old.vpn != vpn.as_u64() => {
                driven_out.insert(old.vpn, old);
            }
            _ => {}
        }
        slot.set(Entry { vpn: vpn.as_u64(), pfn: pfn.as_u32(), writable });
    }

    /// Forgets the translations of `pages` pages from `start` on.
    pub(crate) fn flush(&self, start: Vpn, pages: u64) {
        if self.used.get() == 0 && self.driven_out.borrow().is_empty() {
            return;
        }
        let end = start.as_u64().saturating_add(pages);
        self.driven_out.borrow_mut().retain(|vpn, _| !(start.as_u64()..end).contains(vpn));
        if pages >= ENTRIES as u64 {
            self.entries.iter().for_each(|slot| self.forget(slot, start.as_u64(), end));
        } else {
            (start.as_u64()..end).for_each(|vpn| self.forget(self.slot(vpn), start.as_u64(), end));
        }
    }

    fn forget(&self, slot: &Cell<Entry>, start: u64, end: u64) {
        let vpn = slot.get().vpn;
        if vpn != NOTHING && (start..end).contains(&vpn) {
            slot.set(EMPTY);
            self.used.set(self.used.get() - 1);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.driven_out.borrow_mut().clear();
        if self.used.replace(0) > 0 {
            self.entries.iter().for_each(|slot| slot.set(EMPTY));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_stays_until_its_own_page_is_flushed() {
        let tlb = Tlb::default();
        tlb.fill(Vpn::new(7), Pfn::new(3), true);
        tlb.flush(Vpn::new(8), 5);
        tlb.flush(Vpn::new(0), 7);
        assert_eq!(tlb.lookup(Vpn::new(7)), Some((Pfn::new(3), true)));
        tlb.flush(Vpn::new(7), 1);
        assert_eq!(tlb.lookup(Vpn::new(7)), None);
        assert_eq!(tlb.used.get(), 0);
    }

    #[test]
    fn an_entry_that_lost_its_slot_is_remembered_all_the_same() {
        let tlb = Tlb::default();
        let (page, far) = (Vpn::new(7), Vpn::new(7 + ENTRIES as u64));
        tlb.fill(page, Pfn::new(3), true);
        tlb.fill(far, Pfn::new(4), true);
        assert_eq!((tlb.lookup(page), tlb.lookup(far)), (Some((Pfn::new(3), true)), Some((Pfn::new(4), true))));
        tlb.flush(page, 1);
        assert_eq!((tlb.lookup(page), tlb.lookup(far)), (None, Some((Pfn::new(4), true))));
    }

    #[test]
    fn a_flush_of_more_pages_than_entries_reaches_all_of_them() {
        let tlb = Tlb::default();
        for n in 0..ENTRIES as u64 {
            tlb.fill(Vpn::new(n * 3), Pfn::new(n as u32), false);
        }
        tlb.flush(Vpn::new(0), u64::MAX);
        assert!((0..ENTRIES as u64).all(|n| tlb.lookup(Vpn::new(n * 3)).is_none()));
        assert_eq!(tlb.used.get(), 0);
    }
}
