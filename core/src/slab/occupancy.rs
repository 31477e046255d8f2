//! Which objects of a slab are out of it: a bitmap outside the objects, so that no user can damage it.
//!
//! ```text
//! O1  bit i of a slab is set  <=>  object i is live or in a sheaf
//! O2  bits from the slab's object count on are clear
//! ```
//!
//! 64 bytes per frame, one bit per 8 bytes of memory, hold the largest number of objects that fits. A slab uses the
//! words of its frames from the first frame's on, densely. Changed under the lock of the slab's cache only.

use crate::addr::{PAGE_SIZE, Pfn};
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU64, Ordering::Relaxed};

/// Words per frame.
const WORDS_PER_FRAME: usize = PAGE_SIZE / 8 / 64;

/// The bits of all frames.
pub(super) struct Occupancy {
    words: MetaSlice<AtomicU64>,
}

impl Occupancy {
    pub(super) fn carve(frames: usize, carver: &mut Carver<'_>) -> Self {
        Self { words: carver.carve_zeroed(frames.saturating_mul(WORDS_PER_FRAME)) }
    }

    /// The words of the slab that starts at `head` and has `objects` objects.
    fn words(&self, head: Pfn, objects: u32) -> &[AtomicU64] {
        let from = head.index() * WORDS_PER_FRAME;
        self.words.get(from..from + objects.div_ceil(64) as usize).unwrap_or_default()
    }

    fn word(&self, head: Pfn, index: u32) -> Option<&AtomicU64> {
        self.words.get(head.index() * WORDS_PER_FRAME + (index / 64) as usize)
    }

    /// Makes all objects of a new slab free.
    pub(super) fn clear(&self, head: Pfn, objects: u32) {
        self.words(head, objects).iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Takes up to `wanted` free objects, lowest first, and tells their indices to `take`; returns how many.
    pub(super) fn take(&self, head: Pfn, objects: u32, wanted: u32, mut take: impl FnMut(u32)) -> u32 {
        let mut taken = 0;
        for (base, word) in (0..objects).step_by(64).zip(self.words(head, objects)) {
            let old = word.load(Relaxed);
            let mut free = !old & valid_bits(objects - base);
            let mut new = old;
            while free != 0 && taken < wanted {
                take(base + free.trailing_zeros());
                new |= free & free.wrapping_neg();
                free &= free - 1;
                taken += 1;
            }
            word.store(new, Relaxed);
            if taken == wanted {
                break;
            }
        }
        taken
    }

    /// Takes one object out; `false`, and nothing is changed, if it is out.
    pub(super) fn claim(&self, head: Pfn, index: u32) -> bool {
        let Some(word) = self.word(head, index) else { return false };
        let old = word.load(Relaxed);
        word.store(old | 1 << (index % 64), Relaxed);
        old & (1 << (index % 64)) == 0
    }

    /// Makes one object free; `false`, and nothing is changed, if it is free.
    pub(super) fn release(&self, head: Pfn, index: u32) -> bool {
        let Some(word) = self.word(head, index) else { return false };
        let old = word.load(Relaxed);
        word.store(old & !(1 << (index % 64)), Relaxed);
        old & (1 << (index % 64)) != 0
    }

    /// Tells whether an object is out of its slab.
    pub(super) fn is_taken(&self, head: Pfn, index: u32) -> bool {
        self.word(head, index).is_some_and(|word| word.load(Relaxed) & (1 << (index % 64)) != 0)
    }

    /// Counts the objects that are out of the slab, and the set bits that stand for no object.
    pub(super) fn count(&self, head: Pfn, objects: u32) -> (u32, u32) {
        let mut counts = (0, 0);
        for (base, word) in (0..objects).step_by(64).zip(self.words(head, objects)) {
            let (bits, valid) = (word.load(Relaxed), valid_bits(objects - base));
            counts.0 += (bits & valid).count_ones();
            counts.1 += (bits & !valid).count_ones();
        }
        counts
    }

    /// Flips a bit, so that a test can see the auditor find it.
    #[cfg(test)]
    pub(super) fn corrupt(&self, head: Pfn, index: u32) {
        self.word(head, index).unwrap().fetch_xor(1 << (index % 64), Relaxed);
    }
}

/// The bits of a word that stand for the `left` remaining objects.
const fn valid_bits(left: u32) -> u64 {
    if left >= 64 { u64::MAX } else { (1 << left) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;
    use std::vec::Vec;

    fn map() -> Occupancy {
        Occupancy::carve(4, &mut MetaRegion::heap(4096).carver().unwrap())
    }

    fn take(map: &Occupancy, objects: u32, wanted: u32) -> Vec<u32> {
        let mut indices = Vec::new();
        let taken = map.take(Pfn::new(1), objects, wanted, |index| indices.push(index));
        assert_eq!(taken as usize, indices.len());
        indices
    }

    #[test]
    fn the_lowest_free_objects_are_taken_and_never_one_past_the_end() {
        let map = map();
        assert_eq!(take(&map, 70, 3), [0, 1, 2]);
        assert!(map.release(Pfn::new(1), 1));
        assert_eq!(take(&map, 70, 2), [1, 3]);
        assert_eq!(take(&map, 70, 100).len(), 66);
        assert_eq!(take(&map, 70, 1), []);
        assert_eq!(map.count(Pfn::new(1), 70), (70, 0));
    }

    #[test]
    fn a_free_object_is_not_released_again() {
        let map = map();
        take(&map, 512, 512);
        assert!(map.release(Pfn::new(1), 511));
        assert!(!map.release(Pfn::new(1), 511));
        assert!(!map.is_taken(Pfn::new(1), 511) && map.is_taken(Pfn::new(1), 510));
        assert!(map.claim(Pfn::new(1), 511) && !map.claim(Pfn::new(1), 511));
        assert_eq!(map.count(Pfn::new(1), 512), (512, 0));
    }

    #[test]
    fn slabs_do_not_share_words_and_a_new_slab_starts_free() {
        let map = map();
        take(&map, 512, 512);
        assert_eq!(map.count(Pfn::new(0), 512), (0, 0));
        assert_eq!(map.count(Pfn::new(2), 512), (0, 0));
        map.clear(Pfn::new(1), 512);
        assert_eq!(map.count(Pfn::new(1), 512), (0, 0));
    }

    #[test]
    fn bits_beyond_the_last_object_are_counted_apart() {
        let map = map();
        map.corrupt(Pfn::new(0), 42);
        assert_eq!(map.count(Pfn::new(0), 42), (0, 1));
    }
}
