//! acid_alloc's alloc_hater: a derived list of allocations and frees. Each block is filled with a byte of its own and looked at
//! when it is freed; what is left in the end is not.

use super::{ALLOC_FREE, arbitrary, compare, fill, free, layout, malloc};
use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use rand::{Rng, RngExt};

pub(super) const DESIGN: Design = Design {
    name: "acid_alloc",
    draws: "derived list of alloc and dealloc with layouts",
    checks: "a byte of its own in each block, when it is freed",
    kinds: ALLOC_FREE,
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    arbitrary::grown(rng, max_ops, |rng| match rng.random_range(0..2u8) {
        0 => malloc(layout(u64::from(rng.next_u32() as u16), rng.random_range(0..12))),
        _ => free(rng),
    })
}

struct Asks;

impl Stranger for Asks {
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        fill(memory, block, block.number as u8)
    }

    fn leaves(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        compare(memory, block, block.bytes, |_| block.number as u8)
    }
}
