//! Who has how many pages.

use crate::page::FrameKind;
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Whoever can own a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum OwnerClass {
    /// The buddy's free lists.
    Free,
    /// Per-CPU page lists.
    Pcp,
    /// Callers of `alloc_pages` and its relatives.
    Pages,
    /// Callers of `kmalloc` with a large size.
    LargeKmalloc,
    /// Slabs.
    Slab,
    /// vmalloc areas.
    Vmalloc,
    /// Page tables.
    PageTable,
    /// Live objects of destroyed caches.
    Leaked,
    /// Nobody: guards beside used blocks.
    Guard,
    /// Nobody: blocks with something wrong.
    Bad,
}

/// How many owners there are.
pub(crate) const OWNER_CLASSES: usize = OwnerClass::Bad as usize + 1;

impl OwnerClass {
    #[cfg(test)]
    pub(crate) const ALL: [Self; OWNER_CLASSES] = [
        Self::Free,
        Self::Pcp,
        Self::Pages,
        Self::LargeKmalloc,
        Self::Slab,
        Self::Vmalloc,
        Self::PageTable,
        Self::Leaked,
        Self::Guard,
        Self::Bad,
    ];

    /// The owner of a frame of this kind; `None` outside every zone.
    #[inline(always)]
    pub(crate) const fn of(kind: FrameKind) -> Option<Self> {
        Some(match kind {
            FrameKind::Absent => return None,
            FrameKind::Free => Self::Free,
            FrameKind::Pcp => Self::Pcp,
            // A late free is booked as its owner's until it has happened.
            FrameKind::Pages | FrameKind::PagesTail | FrameKind::PagesShared | FrameKind::Deferred => Self::Pages,
            FrameKind::Guard => Self::Guard,
            FrameKind::Bad => Self::Bad,
            FrameKind::LargeKmalloc | FrameKind::LargePending | FrameKind::LargeTail => Self::LargeKmalloc,
            FrameKind::Vmalloc => Self::Vmalloc,
            FrameKind::PageTable => Self::PageTable,
            FrameKind::Slab(_) => Self::Slab,
            FrameKind::Leaked => Self::Leaked,
        })
    }
}

/// The owner of a frame that is known to have one.
#[inline(always)]
fn owner(kind: FrameKind) -> OwnerClass {
    OwnerClass::of(kind).unwrap_or(OwnerClass::Pages)
}

/// Pages by owner, as deltas modulo 2^64: pages may be taken on one CPU and given back on another, so only the sum over
/// all ledgers of a machine is a number of pages. `Free` is kept in the zones' ledgers only, `Pcp` in the CPUs' only.
///
/// Whoever holds the lock of the zone or the cell of the CPU writes; anybody may read, without a lock.
pub(super) struct Ledger([AtomicU64; OWNER_CLASSES]);

impl Ledger {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; OWNER_CLASSES])
    }

    #[inline(always)]
    pub(super) fn get(&self, class: OwnerClass) -> u64 {
        self.0[class as usize].load(Relaxed)
    }

    /// Adds this ledger's share to a sum over all of them.
    pub(super) fn add_to(&self, sum: &mut [u64; OWNER_CLASSES]) {
        for (total, pages) in sum.iter_mut().zip(&self.0) {
            *total = total.wrapping_add(pages.load(Relaxed));
        }
    }

    /// A load and a store, not an atomic addition: there is one writer at a time.
    #[inline(always)]
    pub(super) fn add(&self, class: OwnerClass, pages: u64) {
        self.0[class as usize].store(self.get(class).wrapping_add(pages), Relaxed);
    }

    #[inline(always)]
    pub(super) fn sub(&self, class: OwnerClass, pages: u64) {
        self.add(class, pages.wrapping_neg());
    }

    /// Notes that pages went to the owner of frames of this kind.
    #[inline(always)]
    pub(super) fn hand_out(&self, kind: FrameKind, pages: u64) {
        self.add(owner(kind), pages);
    }

    /// Notes that pages counted for the owner of one kind are those of another's.
    #[inline(always)]
    pub(super) fn move_between(&self, from: FrameKind, to: FrameKind, pages: u64) {
        self.take_back(from, pages);
        self.hand_out(to, pages);
    }

    /// Notes that pages came back from the owner of frames of this kind.
    #[inline(always)]
    pub(super) fn take_back(&self, kind: FrameKind, pages: u64) {
        self.sub(owner(kind), pages);
    }
}
