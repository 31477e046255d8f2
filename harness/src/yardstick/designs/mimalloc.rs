//! mimalloc's test-stress: long runs on a few hundred slots from several threads, here CPUs by turns; sizes small, now and then a
//! hundred times as large. A cookie that depends on the place is in each word and looked at when the block is freed; the
//! allocator's own checks run at the end.

use super::{ALLOC_FREE, calloc, compare, fill_with, free, malloc, own_audit, realloc};
use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use crate::trace::OpKind;
use rand::RngExt;

pub(super) const DESIGN: Design = Design {
    name: "mimalloc",
    draws: "long runs of alloc, free, realloc on several CPUs",
    checks: "cookies by place, when blocks are freed or resized; the allocator's own scan in the end",
    kinds: &[ALLOC_FREE[0], ALLOC_FREE[1], OpKind::Kvrealloc, OpKind::SetCpu],
    draw,
    guided: false,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    let step = |rng: &mut TraceRng| {
        let size = usual_size(rng);
        match rng.random_range(0..100u8) {
            0..48 => malloc(size),
            48..52 => calloc(size),
            52..90 => free(rng),
            90..96 => realloc(rng, size),
            _ => Op::SetCpu { cpu: rng.random_range(0..8) },
        }
    };
    (0..max_ops).map(|_| step(rng)).collect()
}

/// One to 32 words, rarely a hundred times as many.
fn usual_size(rng: &mut TraceRng) -> u64 {
    let words = rng.random_range(1..=32u64);
    8 * if rng.random_ratio(1, 100) { words * 100 } else { words }
}

struct Asks;

/// The byte of a word's cookie.
fn cookie(at: usize) -> u8 {
    ((0xbf58_476d_1ce4_e5b9u64 ^ (at as u64 / 8 + 1)) >> (at % 8 * 8)) as u8
}

impl Stranger for Asks {
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        if block.zeroed {
            compare(memory, block, block.bytes, |_| 0)?;
        }
        fill_with(memory, block, cookie)
    }

    fn leaves(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        compare(memory, block, block.bytes, cookie)
    }

    fn resized(&mut self, memory: &mut dyn Subject, old: &Held, new: &Held) -> Result<(), String> {
        compare(memory, new, old.bytes.min(new.bytes), cookie)?;
        fill_with(memory, new, cookie)
    }

    fn ends(&mut self, memory: &mut dyn Subject, _: usize) -> Result<(), String> {
        own_audit(memory)
    }
}
