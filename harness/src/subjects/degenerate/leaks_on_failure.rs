//! Loses a page whenever an allocation fails because the fault plan says so.

use crate::subject::{Call, Reply, Subject};
use crate::subjects::{KmemSubject, Twist};
use kmem::GfpFlags;

/// See the module.
#[derive(Default)]
pub(super) struct LeaksOnFailure;

impl Twist for LeaksOnFailure {
    fn name(&self) -> &'static str {
        "leaks-on-failure"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        let reply = inner.call(call);
        if matches!(&reply, Reply::Refused(error) if error.is_exhaustion()) {
            inner.call(&Call::AllocPages { order: 0, gfp: GfpFlags::KERNEL | GfpFlags::NOWARN });
        }
        reply
    }
}
