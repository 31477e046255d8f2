//! Areas that were freed and keep their pages and their mapping, for the next request that they fit.
//!
//! Making an area and taking it away are dozens of calls of the host; a program that comes back for as much has them done
//! once. What is kept is bounded, is given back when it was not asked for again ([`Kept::age`]), with a trim, when memory
//! is short, and before a fork, which would copy it.
//!
//! ```text
//! K1  bytes == sum of the bytes of the areas kept <= MOST_BYTES
//! K2  an area is kept once at most, and is live for the allocator: nobody else frees it
//! ```
//!
//! Whoever takes the lock is inside ([`cpus::enter`](super::cpus::enter)), so nobody holds it while a process forks.

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::sync::SpinLock;

/// Most areas that are kept, and most bytes.
const MOST_AREAS: usize = 32;
const MOST_BYTES: usize = 128 << 20;
/// One that is larger is no case for keeping: it would drive out all others.
const LARGEST: usize = MOST_BYTES / 8;
/// How many looks for old areas one outlives.
const MOST_LOOKS: u32 = 4;
/// Sizes of areas are rounded up to so many steps for each doubling: programs ask for almost the same size more often than
/// for the same.
const STEPS: usize = 8;

/// An area that nobody has.
#[derive(Clone, Copy)]
struct Area {
    addr: VirtAddr,
    bytes: usize,
    /// Looks for old areas that it has seen.
    looks: u32,
}

/// What became of an area that was to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pushed {
    /// It is kept.
    Kept,
    /// It is among them already: it was freed twice.
    Twice,
    /// It is too large.
    TooLarge,
    /// There is no room: this one is kept no longer, and is to be freed before another try.
    Instead(VirtAddr),
}

/// The areas of an allocator that are kept, the oldest first.
pub(super) struct Kept(SpinLock<List>);

struct List {
    areas: [Area; MOST_AREAS],
    len: usize,
    bytes: usize,
    reused: u64,
}

const NONE: Area = Area { addr: VirtAddr::NULL, bytes: 0, looks: 0 };

impl Kept {
    pub(super) const fn new() -> Self {
        Self(SpinLock::new(List { areas: [NONE; MOST_AREAS], len: 0, bytes: 0, reused: 0 }))
    }

    /// Keeps an area of so many bytes that its owner has given up.
    pub(super) fn push(&self, addr: VirtAddr, bytes: usize) -> Pushed {
        let mut list = self.0.lock();
        if list.position(addr).is_some() {
            return Pushed::Twice;
        }
        if bytes > LARGEST {
            return Pushed::TooLarge;
        }
        if list.len == MOST_AREAS || list.bytes + bytes > MOST_BYTES {
            return list.remove(0).map_or(Pushed::TooLarge, Pushed::Instead);
        }
        let at = list.len;
        if let Some(slot) = list.areas.get_mut(at) {
            *slot = Area { addr, bytes, looks: 0 };
        }
        (list.len, list.bytes) = (at + 1, list.bytes + bytes);
        Pushed::Kept
    }

    /// Takes the area that fits best: at least `size` bytes, and not more than half as many beyond.
    pub(super) fn take(&self, size: usize, align: usize) -> Option<VirtAddr> {
        let mut list = self.0.lock();
        let fits = |area: &Area| {
            (size..=size.saturating_add(size / 2)).contains(&area.bytes) && area.addr.is_aligned(align as u64)
        };
        let (best, _) =
            list.all().iter().enumerate().filter(|(_, area)| fits(area)).min_by_key(|(_, area)| area.bytes)?;
        list.reused += 1;
        list.remove(best)
    }

    /// Tells whether an area is kept: then it is nobody's.
    pub(super) fn has(&self, addr: VirtAddr) -> bool {
        self.0.lock().position(addr).is_some()
    }

    /// Takes the oldest one, to be freed.
    pub(super) fn pop(&self) -> Option<VirtAddr> {
        self.0.lock().remove(0)
    }

    /// Takes one that has seen enough looks, to be freed; `None` ends the look.
    pub(super) fn age(&self) -> Option<VirtAddr> {
        let mut list = self.0.lock();
        if let Some(old) = list.all().iter().position(|area| area.looks >= MOST_LOOKS) {
            return list.remove(old);
        }
        list.areas.iter_mut().for_each(|area| area.looks += 1);
        None
    }

    /// Bytes that are kept, and how often an area was used again.
    pub(super) fn counts(&self) -> (usize, u64) {
        let list = self.0.lock();
        (list.bytes, list.reused)
    }
}

impl List {
    fn all(&self) -> &[Area] {
        self.areas.get(..self.len).unwrap_or_default()
    }

    fn position(&self, addr: VirtAddr) -> Option<usize> {
        self.all().iter().position(|area| area.addr == addr)
    }

    fn remove(&mut self, at: usize) -> Option<VirtAddr> {
        let area = *self.all().get(at)?;
        self.areas.get_mut(at..self.len)?.rotate_left(1);
        (self.len, self.bytes) = (self.len - 1, self.bytes - area.bytes);
        Some(area.addr)
    }
}

/// The size that a large block or an area is made with for a request: whole pages, and few different numbers of them. Larger
/// ones than are kept have the size that was asked for.
pub(super) const fn rounded(size: usize) -> usize {
    if size > LARGEST {
        return size;
    }
    let step = size.next_power_of_two() / 2 / STEPS;
    size.next_multiple_of(if step < PAGE_SIZE { PAGE_SIZE } else { step })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn addr(n: usize) -> VirtAddr {
        VirtAddr::new((n * 32 * MIB) as u64)
    }

    #[test]
    fn the_best_fit_is_taken_and_nothing_that_wastes_more_than_a_half() {
        let kept = Kept::new();
        for (n, bytes) in [(1, 8 * MIB), (2, 6 * MIB), (3, 5 * MIB)] {
            assert_eq!(kept.push(addr(n), bytes), Pushed::Kept);
        }
        assert_eq!(kept.take(3 * MIB, 4096), None, "five are more than a half beyond");
        assert_eq!(kept.take(5 * MIB + 1, 4096), Some(addr(2)));
        assert_eq!(kept.take(5 * MIB, 64 * MIB), None, "not aligned so");
        assert_eq!(kept.take(5 * MIB, 4096), Some(addr(3)));
        assert_eq!(kept.counts(), (8 * MIB, 2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let kept = Kept::new();
        assert_eq!(kept.push(addr(1), 17 * MIB), Pushed::TooLarge);
        (1..=8).for_each(|n| assert_eq!(kept.push(addr(n), 16 * MIB), Pushed::Kept));
        assert_eq!(kept.push(addr(2), 16 * MIB), Pushed::Twice);
        assert_eq!(kept.push(addr(9), 4096), Pushed::Instead(addr(1)));
        (9..=33).for_each(|n| assert_eq!(kept.push(addr(n), 4096), Pushed::Kept));
        assert_eq!(kept.push(addr(34), 4096), Pushed::Instead(addr(2)));
        assert_eq!(kept.push(addr(34), 4096), Pushed::Kept);
        assert_eq!(kept.counts().0, 6 * 16 * MIB + 26 * 4096);
    }

    #[test]
    fn an_area_that_nobody_asks_for_is_old_in_the_end() {
        let kept = Kept::new();
        assert_eq!(kept.push(addr(1), MIB), Pushed::Kept);
        (0..MOST_LOOKS).for_each(|_| assert_eq!(kept.age(), None));
        assert_eq!(kept.push(addr(2), MIB), Pushed::Kept);
        assert_eq!((kept.age(), kept.age()), (Some(addr(1)), None));
        assert!(kept.has(addr(2)) && !kept.has(addr(1)));
        assert_eq!((kept.pop(), kept.pop(), kept.counts().0), (Some(addr(2)), None, 0));
    }

    #[test]
    fn sizes_are_rounded_up_by_an_eighth_at_most() {
        assert_eq!(rounded(4 * MIB + 1), 4 * MIB + MIB / 2);
        assert_eq!(rounded(5 * MIB), 5 * MIB);
        assert_eq!(rounded(8 * MIB), 8 * MIB);
        assert_eq!(rounded(20 * MIB + 1), 20 * MIB + 1);
        for size in (4 * MIB..16 * MIB).step_by(77_777) {
            assert!((size..=size + size / 8).contains(&rounded(size)), "{size}");
        }
    }
}
