//! Goes on where the run before it stopped: its counter is the program's, not the allocator's.

use crate::subjects::{Flaw, Heap};
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static PLACED: Cell<u64> = const { Cell::new(0) };
}

/// See the module.
#[derive(Default)]
pub(super) struct Unrepeatable;

impl Flaw for Unrepeatable {
    fn name(&self) -> &'static str {
        "unrepeatable"
    }

    /// Every eleventh block of all runs lies at a multiple of 64.
    fn place(&mut self, heap: &mut Heap, size: u64, align: u64) -> Option<Range<u64>> {
        let n = PLACED.replace(PLACED.get() + 1);
        heap.take(size, if n % 11 == 10 { align.max(64) } else { align })
    }
}
