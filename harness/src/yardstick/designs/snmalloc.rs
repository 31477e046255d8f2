//! snmalloc's FuzzTest: a list of typed events, as long as the engine likes. Each block has a filler that the fuzzer chose, two
//! may have the same, and an event of its own looks at all blocks; so does the end.

use super::{ALLOC_FREE, any_size, calloc, compare, fill, free, malloc};
use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use crate::trace::OpKind;
use rand::RngExt;

/// The most events of a case.
const EVENTS: usize = 200;

pub(super) const DESIGN: Design = Design {
    name: "snmalloc",
    draws: "up to 200 alloc, calloc, dealloc, look at all",
    checks: "a filler in each block, at each look and free; zeroed memory",
    kinds: &[ALLOC_FREE[0], ALLOC_FREE[1], OpKind::Audit],
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    let events = rng.random_range(0..=EVENTS.min(max_ops));
    let event = |rng: &mut TraceRng| {
        let size = any_size(rng, 17);
        match rng.random_range(0..4u8) {
            0 => malloc(size),
            1 => calloc(size),
            2 => free(rng),
            _ => Op::Audit,
        }
    };
    (0..events).map(|_| event(rng)).collect()
}

struct Asks;

/// One of a few fillers.
fn filler(block: &Held) -> u8 {
    (block.number.wrapping_mul(0x9e37_79b9) >> 7) as u8 & 15
}

impl Stranger for Asks {
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        if block.zeroed {
            compare(memory, block, block.bytes, |_| 0)?;
        }
        fill(memory, block, filler(block))
    }

    fn leaves(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        compare(memory, block, block.bytes, |_| filler(block))
    }

    fn looks(&mut self, memory: &mut dyn Subject, held: &mut dyn Iterator<Item = &Held>) -> Result<(), String> {
        for block in held {
            compare(memory, block, block.bytes, |_| filler(block))?;
        }
        Ok(())
    }
}
