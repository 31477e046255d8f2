//! One word of a page table.

use crate::addr::{Pfn, PhysAddr};

/// A page-table entry as the x86-64 processor reads it.
///
/// ```text
///  63  62..52   51..12   11..10   9      8   7     6      5         4..2    1      0
///  NX  ignored  frame    ignored  FIRST  0   HUGE  DIRTY  ACCESSED  0       WRITE  PRESENT
/// ```
///
/// `HUGE` ends the walk one level early: the entry maps a run of frames, where it would else name a table.
///
/// `FIRST` means nothing to the processor: the page is the first of a mapping that is unmapped as a whole.
///
/// An entry is in one of three states, told apart by [`Self::is_present`] and [`Self::is_empty`]:
///
/// | state | bits | the processor | we |
/// |---|---|---|---|
/// | empty | all 0 | faults | nothing is here |
/// | present | `PRESENT` | translates | mapped |
/// | unmapped | some, not `PRESENT` | faults, unless a TLB still remembers | know which frame to free after the flush |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pte(u64);

impl Pte {
    /// Nothing is mapped and nothing was.
    pub(crate) const EMPTY: Self = Self(0);

    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    /// Set from the start, as Linux does for kernel pages: the processor then never has to write the entry.
    const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
    const HUGE: u64 = 1 << 7;
    const FIRST: u64 = 1 << 9;
    const NO_EXECUTE: u64 = 1 << 63;
    const FRAME: u64 = ((1 << 52) - 1) & !0xfff;

    /// An entry that maps a page: writable, not executable.
    pub(crate) const fn page(frame: Pfn) -> Self {
        Self(frame.addr().as_u64() | Self::PRESENT | Self::WRITE | Self::ACCESSED_DIRTY | Self::NO_EXECUTE)
    }

    /// An entry that maps a run of frames from `first` on, as many as a table of the next level could map.
    pub(crate) const fn huge(first: Pfn) -> Self {
        Self(Self::page(first).0 | Self::HUGE)
    }

    /// An entry that points to the table of the next level; what it forbids would be forbidden to all pages below.
    pub(crate) const fn table(frame: Pfn) -> Self {
        Self(frame.addr().as_u64() | Self::PRESENT | Self::WRITE | Self::ACCESSED_DIRTY)
    }

    /// The same entry, for the first page of a mapping.
    pub(super) const fn first(self) -> Self {
        Self(self.0 | Self::FIRST)
    }

    /// Tells whether a mapping begins, or began, with this page.
    pub(crate) const fn is_first(self) -> bool {
        self.0 & Self::FIRST != 0
    }

    /// Reads an entry from its word in memory.
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word to write to memory.
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    /// Tells whether the processor translates through this entry.
    pub(crate) const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Tells whether the entry maps a run of frames, or did until it was unmapped.
    pub(crate) const fn is_huge(self) -> bool {
        self.0 & Self::HUGE != 0
    }

    /// The entry that would map page `index` of a huge one's run by itself, in the same state.
    pub(super) const fn part(self, index: u64) -> Self {
        Self((self.0 & !Self::HUGE).wrapping_add(index << crate::PAGE_SHIFT))
    }

    /// Tells whether the entry is free for a new mapping.
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The frame that the entry names, present or unmapped; `None` if it is empty.
    pub(crate) const fn frame(self) -> Option<Pfn> {
        if self.is_empty() { None } else { PhysAddr::new(self.0 & Self::FRAME).pfn() }
    }

    /// The same entry without `PRESENT`. It stays different from an empty one, also for frame 0, by its other bits.
    pub(crate) const fn unmapped(self) -> Self {
        Self(self.0 & !Self::PRESENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmapped_entry_faults_but_still_names_its_frame() {
        for frame in [0, 1, 0x1234, u32::MAX].map(Pfn::new) {
            let entry = Pte::page(frame).unmapped();
            assert!(!entry.is_present() && !entry.is_empty());
            assert_eq!(entry.frame(), Some(frame));
        }
        assert_eq!(Pte::EMPTY.frame(), None);
    }

    #[test]
    fn entries_have_the_bits_of_the_processor_manual() {
        assert_eq!(Pte::page(Pfn::new(5)).to_word(), 0x8000_0000_0000_5063);
        assert_eq!(Pte::table(Pfn::new(5)).to_word(), 0x5063);
        assert_eq!(Pte::huge(Pfn::new(512)).to_word(), 0x8000_0000_0020_00e3);
    }

    #[test]
    fn the_parts_of_a_huge_entry_are_what_its_pages_would_have() {
        let huge = Pte::huge(Pfn::new(1024));
        assert!(huge.is_huge() && huge.unmapped().is_huge() && !Pte::table(Pfn::new(1024)).is_huge());
        assert_eq!(huge.part(511), Pte::page(Pfn::new(1024 + 511)));
        assert_eq!(huge.unmapped().part(3), Pte::page(Pfn::new(1027)).unmapped());
    }
}
