//! Puts every block at the next multiple of 8, whatever alignment was asked for.

use crate::subjects::{Flaw, Heap};
use std::ops::Range;

/// See the module.
#[derive(Default)]
pub(super) struct IgnoresAlignment;

impl Flaw for IgnoresAlignment {
    fn name(&self) -> &'static str {
        "ignores-alignment"
    }

    fn place(&mut self, heap: &mut Heap, size: u64, _align: u64) -> Option<Range<u64>> {
        heap.take(size, 8)
    }
}
