//! Leaves the last eight bytes of a zeroed block as they were.

use crate::subjects::Flaw;

/// See the module.
#[derive(Default)]
pub(super) struct DirtyZero;

impl Flaw for DirtyZero {
    fn name(&self) -> &'static str {
        "dirty-zero"
    }

    fn zeroed(&mut self, bytes: usize) -> usize {
        bytes.saturating_sub(8)
    }
}
