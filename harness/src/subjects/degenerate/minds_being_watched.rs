//! Puts blocks elsewhere after memory was looked at often enough.

use crate::subjects::{Flaw, Heap};
use std::ops::Range;

/// See the module.
#[derive(Default)]
pub(super) struct MindsBeingWatched {
    looks: u64,
}

impl Flaw for MindsBeingWatched {
    fn name(&self) -> &'static str {
        "minds-being-watched"
    }

    fn looked(&mut self) {
        self.looks += 1;
    }

    fn place(&mut self, heap: &mut Heap, size: u64, align: u64) -> Option<Range<u64>> {
        heap.take(size, if self.looks % 512 > 256 { align.max(64) } else { align })
    }
}
