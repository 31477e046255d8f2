//! linked_list_allocator: a derived list of allocations and frees. Memory is neither read nor written; in the end, when all is
//! free, one block must be had that takes most of it.

use super::{ALLOC_FREE, arbitrary, free, layout, malloc};
use super::{Design, Op, Stranger, Subject, TraceRng};
use crate::subject::{Call, Reply};
use kmem::GfpFlags;
use rand::{Rng, RngExt};

pub(super) const DESIGN: Design = Design {
    name: "linked_list_allocator",
    draws: "derived list of alloc and free with layouts",
    checks: "in the end one large block is there",
    kinds: ALLOC_FREE,
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    arbitrary::grown(rng, max_ops, |rng| match rng.random_range(0..2u8) {
        0 => malloc(layout(u64::from(rng.next_u32() as u16), rng.random_range(0..8))),
        _ => free(rng),
    })
}

struct Asks;

impl Stranger for Asks {
    /// A machine with planned failures, or with a window too small for the block, promises nothing.
    fn ends(&mut self, memory: &mut dyn Subject, bytes: usize) -> Result<(), String> {
        let promises = |inside: &dyn crate::subject::WhiteBox| {
            inside.faults_struck() == 0 && inside.geometry().vmalloc_pages.get() >= 4096
        };
        if !memory.white_box().is_none_or(promises) {
            return Ok(());
        }
        match memory.call(&Call::Kvmalloc { size: bytes, gfp: GfpFlags::KERNEL }) {
            Reply::Block { addr, .. } => {
                memory.call(&Call::Kvfree { addr });
                Ok(())
            }
            Reply::Refused(error) => Err(format!("{bytes} bytes of free memory are refused: {error}")),
            _ => Ok(()),
        }
    }
}
