//! Loses a page whenever an allocation fails because the fault plan says so.

use crate::subject::{Call, Reply, Subject};
use crate::subjects::{KmemSubject, Twist};
use kmem::{AllocError, GfpFlags};

/// See the module.
#[derive(Default)]
pub(super) struct LeaksOnFailure;

impl Twist for LeaksOnFailure {
    fn name(&self) -> &'static str {
        "leaks-on-failure"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        let reply = inner.call(call);
        // A failure that nobody injected is warned of, and the second call would hide the warning.
        if matches!(&reply, Reply::Refused(AllocError::Injected(_))) {
            inner.call(&Call::AllocPages { order: 0, gfp: GfpFlags::KERNEL });
        }
        reply
    }
}
