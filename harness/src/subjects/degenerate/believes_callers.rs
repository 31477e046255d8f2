//! Says that a wrong free was done.

use crate::model::freed_address;
use crate::subject::{Call, Reply, Subject};
use crate::subjects::{KmemSubject, Twist};

/// See the module.
#[derive(Default)]
pub(super) struct BelievesCallers;

impl Twist for BelievesCallers {
    fn name(&self) -> &'static str {
        "believes-callers"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        match inner.call(call) {
            Reply::Rejected(_) if freed_address(call).is_some() => Reply::Done,
            reply => reply,
        }
    }
}
