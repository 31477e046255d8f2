//! dlmalloc-rs: `malloc`, `calloc`, `realloc` and `free` while a coin says so. Zeroed memory must be zero, a reallocated block
//! must begin as the old one did; every block holds the same byte, so that an overlap is not seen. A refusal is a write to
//! null.

use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use super::{MALLOC, any_size, arbitrary, calloc, compare, fill, free, malloc, realloc};
use crate::run::Refused;
use rand::RngExt;

/// What every block holds.
const FILL: u8 = 0xce;

pub(super) const DESIGN: Design = Design {
    name: "dlmalloc-rs",
    draws: "malloc, calloc, realloc, free while a coin says so",
    checks: "zeroed memory, what a reallocation keeps, no null",
    kinds: MALLOC,
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    arbitrary::grown(rng, max_ops, |rng| {
        let size = any_size(rng, 16);
        match rng.random_range(0..4u8) {
            0 => malloc(size),
            1 => calloc(size),
            2 => realloc(rng, size),
            _ => free(rng),
        }
    })
}

struct Asks;

impl Stranger for Asks {
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        if block.zeroed {
            compare(memory, block, block.bytes, |_| 0)?;
        }
        fill(memory, block, FILL)
    }

    fn resized(&mut self, memory: &mut dyn Subject, old: &Held, new: &Held) -> Result<(), String> {
        compare(memory, new, old.bytes.min(new.bytes), |_| FILL)?;
        fill(memory, new, FILL)
    }

    fn refused(&mut self, request: &Refused) -> Result<(), String> {
        if request.is_out_of_the_blue() { Err("a write to null".to_owned()) } else { Ok(()) }
    }
}
