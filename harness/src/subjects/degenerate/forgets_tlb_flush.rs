//! `kmem` on a machine that loses every request to flush the TLB.

use crate::machine::TlbFlushes;
use crate::subjects::Twist;

/// See the module.
#[derive(Default)]
pub(super) struct ForgetsTlbFlush;

impl Twist for ForgetsTlbFlush {
    fn name(&self) -> &'static str {
        "forgets-tlb-flush"
    }

    fn flushes(&self) -> TlbFlushes {
        TlbFlushes::Lost
    }
}
