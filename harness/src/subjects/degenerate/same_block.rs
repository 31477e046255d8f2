//! Gives the same block for every request that fits in it.

use crate::subjects::{Flaw, Heap};
use std::ops::Range;

/// See the module.
#[derive(Default)]
pub(super) struct SameBlock {
    block: Option<Range<u64>>,
}

impl Flaw for SameBlock {
    fn name(&self) -> &'static str {
        "same-block"
    }

    fn place(&mut self, heap: &mut Heap, size: u64, align: u64) -> Option<Range<u64>> {
        let fits = |block: &Range<u64>| block.end - block.start >= size && block.start.is_multiple_of(align);
        if !self.block.as_ref().is_some_and(fits) {
            self.block = heap.take(size, align);
        }
        self.block.clone()
    }
}
