//! rlsf: a hundred random steps of `alloc`, `dealloc` and `realloc` against a shadow map of regions. No two blocks may overlap,
//! and each is aligned; contents are not looked at.

use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use super::{MALLOC, aligned, any_size, free, layout, malloc, realloc};
use rand::RngExt;
use std::collections::BTreeMap;

/// The most steps of a case.
const STEPS: usize = 100;

pub(super) const DESIGN: Design = Design {
    name: "rlsf",
    draws: "up to 100 alloc, dealloc, realloc with layouts",
    checks: "a shadow map: overlap, alignment",
    kinds: MALLOC,
    draw,
    guided: false,
    asks: || Box::new(Shadow::default()),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    let steps = rng.random_range(0..=STEPS.min(max_ops));
    let step = |rng: &mut TraceRng| {
        let size = any_size(rng, 16);
        match rng.random_range(0..8u8) {
            0..3 => malloc(layout(size, rng.random_range(0..8))),
            3..5 => realloc(rng, size),
            _ => free(rng),
        }
    };
    (0..steps).map(|_| step(rng)).collect()
}

/// Where blocks are: the first byte, the one after the last, and the block's number.
#[derive(Default)]
struct Shadow(BTreeMap<u64, (u64, u64)>);

impl Stranger for Shadow {
    fn granted(&mut self, _: &mut dyn Subject, block: &Held) -> Result<(), String> {
        let end = block.addr + block.bytes as u64;
        let before = self.0.range(..end).next_back().filter(|(_, (other, _))| *other > block.addr);
        if let Some((start, (other, _))) = before {
            return Err(format!("{:#x}..{end:#x} overlaps {start:#x}..{other:#x}", block.addr));
        }
        self.0.insert(block.addr, (end, block.number));
        aligned(block)
    }

    fn gone(&mut self, block: &Held) {
        if self.0.get(&block.addr).is_some_and(|(_, number)| *number == block.number) {
            self.0.remove(&block.addr);
        }
    }
}
