//! Reserves 8 bytes too few for every 7th block, so that its end overlaps the block that is put behind it.

use crate::subjects::{Flaw, Heap};
use std::ops::Range;

/// See the module.
#[derive(Default)]
pub(super) struct Overlap {
    placed: u64,
}

impl Flaw for Overlap {
    fn name(&self) -> &'static str {
        "overlap-8-every-7th"
    }

    fn place(&mut self, heap: &mut Heap, size: u64, align: u64) -> Option<Range<u64>> {
        self.placed += 1;
        let short = if self.placed.is_multiple_of(7) && size > 8 { 8 } else { 0 };
        heap.take(size - short, align)
    }
}
