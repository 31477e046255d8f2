//! Refuses allocations although memory is there: all of them, or one now and then.

use super::allocates;
use crate::subject::{Call, Reply, Subject};
use crate::subjects::{KmemSubject, Twist};
use kmem::{AllocError, Order};

const REFUSAL: Reply = Reply::Refused(AllocError::NoPages { order: Order::ZERO });

/// Refuses everything.
#[derive(Default)]
pub(super) struct AlwaysRefuses;

impl Twist for AlwaysRefuses {
    fn name(&self) -> &'static str {
        "always-refuses"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        if allocates(call) { REFUSAL } else { inner.call(call) }
    }
}

/// Refuses every 31st allocation.
#[derive(Default)]
pub(super) struct RefusesAlthoughItFits {
    asked: u64,
}

impl Twist for RefusesAlthoughItFits {
    fn name(&self) -> &'static str {
        "refuses-although-it-fits"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        self.asked += u64::from(allocates(call));
        if allocates(call) && self.asked.is_multiple_of(31) { REFUSAL } else { inner.call(call) }
    }
}
