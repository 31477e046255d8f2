//! Ranges of addresses, given first-fit.

use std::collections::BTreeMap;
use std::ops::Range;

/// Free ranges by start.
///
/// ```text
/// H1  ranges are disjoint and not empty
/// H2  no range ends where another starts
/// ```
#[derive(Clone, Debug)]
pub struct Heap {
    free: BTreeMap<u64, u64>,
}

impl Heap {
    /// Makes a heap of one range.
    pub fn new(all: Range<u64>) -> Self {
        Self { free: [(all.start, all.end)].into() }
    }

    /// Takes the lowest range of `size` bytes whose start is a multiple of `align`; `None` if none fits.
    pub fn take(&mut self, size: u64, align: u64) -> Option<Range<u64>> {
        let (hole, taken) = self.free.iter().find_map(|(&start, &end)| {
            let first = start.checked_next_multiple_of(align)?;
            let last = first.checked_add(size)?;
            (last <= end).then_some((start..end, first..last))
        })?;
        self.free.remove(&hole.start);
        self.insert(hole.start..taken.start);
        self.insert(taken.end..hole.end);
        Some(taken)
    }

    /// Takes a range back.
    pub fn give(&mut self, mut range: Range<u64>) {
        if let Some(end) = self.free.remove(&range.end) {
            range.end = end;
        }
        let below = self.free.range(..range.start).next_back().map(|(&start, &end)| (start, end));
        if let Some((start, end)) = below
            && end == range.start
        {
            range.start = start;
        }
        self.insert(range);
    }

    fn insert(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.free.insert(range.start, range.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_merges_on_both_sides() {
        let mut heap = Heap::new(0..64);
        let blocks: Vec<_> = (0..4).map(|_| heap.take(16, 16).unwrap()).collect();
        assert_eq!(heap.take(1, 1), None);
        for i in [0, 2, 3, 1] {
            heap.give(blocks[i].clone());
        }
        assert_eq!(heap.take(64, 64), Some(0..64));
    }

    #[test]
    fn alignment_leaves_the_skipped_bytes_free() {
        let mut heap = Heap::new(8..64);
        assert_eq!(heap.take(16, 32), Some(32..48));
        assert_eq!(heap.take(24, 8), Some(8..32));
        assert_eq!(heap.take(16, 16), Some(48..64));
    }
}
