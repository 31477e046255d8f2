//! Serves `kvmalloc` from the vmalloc window although a contiguous block is there.

use crate::subject::{Call, Reply, Subject};
use crate::subjects::{KmemSubject, Twist};
use kmem::PAGE_SIZE;

/// See the module.
#[derive(Default)]
pub(super) struct WrongTier;

impl Twist for WrongTier {
    fn name(&self) -> &'static str {
        "wrong-tier"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        match *call {
            Call::Kvmalloc { size, gfp } if size > PAGE_SIZE => inner.call(&Call::Vmalloc { size, gfp }),
            _ => inner.call(call),
        }
    }
}
