//! Keeps freed pages away from the page allocator: for ever, or on a little stack of single pages.

use crate::subject::{Call, Reply, Subject, WhiteBox};
use crate::subjects::{Hidden, KmemSubject, Twist};
use kmem::{GfpFlags, PAGE_SIZE};

/// The frame at a direct-map address.
fn frame(inner: &KmemSubject, addr: u64) -> u32 {
    ((addr - inner.geometry().direct_map.as_u64()) / PAGE_SIZE as u64) as u32
}

/// Whether nobody but the caller has a reference to the page.
fn is_sole(inner: &KmemSubject, addr: u64) -> bool {
    inner.kmem().page_count(kmem::Pfn::new(frame(inner, addr))) == 1
}

/// Forgets every page block that is freed, and says that it is free.
#[derive(Default)]
pub(super) struct NeverReuses {
    lost: Vec<Hidden>,
}

impl Twist for NeverReuses {
    fn name(&self) -> &'static str {
        "never-reuses"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        match *call {
            Call::FreePages { addr, order } if is_sole(inner, addr) => {
                self.lost.push(Hidden { pfn: frame(inner, addr), order })
            }
            Call::FreePagesExact { addr, size } if is_sole(inner, addr) => {
                let first = frame(inner, addr);
                let pages = size.div_ceil(PAGE_SIZE) as u32;
                self.lost.extend((first..first + pages).map(|pfn| Hidden { pfn, order: 0 }));
            }
            _ => return inner.call(call),
        }
        Reply::Done
    }

    fn hidden(&self) -> &[Hidden] {
        &self.lost
    }
}

/// How many pages [`NeverCoalesces`] keeps.
const STACK: usize = 2;

/// Keeps a few freed pages for the next single-page request and never merges them with their buddies.
#[derive(Default)]
pub(super) struct NeverCoalesces {
    stack: Vec<Hidden>,
}

impl Twist for NeverCoalesces {
    fn name(&self) -> &'static str {
        "never-coalesces"
    }

    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        match *call {
            Call::FreePages { addr, order: 0 } if self.stack.len() < STACK && is_sole(inner, addr) => {
                self.stack.push(Hidden { pfn: frame(inner, addr), order: 0 });
                Reply::Done
            }
            Call::AllocPages { order: 0, gfp } if gfp == GfpFlags::KERNEL => match self.stack.pop() {
                Some(page) => {
                    let offset = u64::from(page.pfn) * PAGE_SIZE as u64;
                    Reply::Block { addr: inner.geometry().direct_map.as_u64() + offset, usable: PAGE_SIZE }
                }
                None => inner.call(call),
            },
            _ => inner.call(call),
        }
    }

    fn hidden(&self) -> &[Hidden] {
        &self.stack
    }
}
