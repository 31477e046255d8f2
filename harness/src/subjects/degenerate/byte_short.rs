//! Gives one byte less than there is room for, which is too few for sizes that need no rounding.

use crate::subjects::Flaw;

/// See the module.
#[derive(Default)]
pub(super) struct ByteShort;

impl Flaw for ByteShort {
    fn name(&self) -> &'static str {
        "byte-short"
    }

    fn usable(&mut self, bytes: usize) -> usize {
        bytes.saturating_sub(1)
    }
}
