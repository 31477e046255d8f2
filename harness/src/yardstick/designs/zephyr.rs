//! Zephyr's sys_heap stress: allocations and frees that steer towards a level, sizes of every magnitude. The heap validates itself
//! after each operation, and blocks are aligned; contents are not looked at.

use super::{ALLOC_FREE, aligned, any_size, free, malloc, own_audit};
use super::{Design, Held, Op, Stranger, Subject, TraceRng};
use rand::RngExt;

pub(super) const DESIGN: Design = Design {
    name: "zephyr",
    draws: "long runs of alloc and free towards a level",
    checks: "the heap's own validation after each call, alignment",
    kinds: ALLOC_FREE,
    draw,
    guided: false,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    let level = 4 << rng.random_range(0..6u32);
    let mut live = 0;
    let step = |rng: &mut TraceRng| {
        // Below the level three of four allocate, above it three of four free.
        let allocates = rng.random_range(0..4) < if live < level { 3 } else { 1 };
        live = if allocates { live + 1 } else { live.max(1) - 1 };
        if allocates { malloc(any_size(rng, 16)) } else { free(rng) }
    };
    std::iter::repeat_with({
        let mut step = step;
        move || step(rng)
    })
    .take(max_ops)
    .collect()
}

struct Asks;

impl Stranger for Asks {
    fn granted(&mut self, _: &mut dyn Subject, block: &Held) -> Result<(), String> {
        aligned(block)
    }

    fn called(&mut self, memory: &mut dyn Subject) -> Result<(), String> {
        own_audit(memory)
    }
}
