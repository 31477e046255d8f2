//! Copies one byte too few when it moves a block.

use crate::subjects::Flaw;

/// See the module.
#[derive(Default)]
pub(super) struct ReallocLosesAByte;

impl Flaw for ReallocLosesAByte {
    fn name(&self) -> &'static str {
        "realloc-loses-a-byte"
    }

    fn copied(&mut self, bytes: usize) -> usize {
        bytes.saturating_sub(1)
    }
}
