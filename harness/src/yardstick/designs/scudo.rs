//! Scudo's allocator fuzzer: actions out of bytes, with an alignment each. Every block is written, its alignment and its usable
//! size are looked at; nothing is read back.

use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use super::{MALLOC, aligned, any_size, arbitrary, calloc, fill, free, layout, malloc, realloc};
use rand::RngExt;

pub(super) const DESIGN: Design = Design {
    name: "scudo",
    draws: "actions out of bytes: memalign, calloc, realloc, free",
    checks: "alignment, usable size, that blocks can be written",
    kinds: MALLOC,
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    arbitrary::grown(rng, max_ops, |rng| {
        let size = any_size(rng, 20);
        match rng.random_range(0..4u8) {
            0 => malloc(layout(size, rng.random_range(3..13))),
            1 => calloc(size),
            2 => realloc(rng, size),
            _ => free(rng),
        }
    })
}

struct Asks;

impl Stranger for Asks {
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        aligned(block)?;
        if block.usable < block.bytes {
            return Err(format!("{} bytes of {} may be used", block.usable, block.bytes));
        }
        fill(memory, block, 0xab)
    }
}
