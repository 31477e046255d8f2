//! talc: a derived list of `alloc`, `dealloc` and `realloc` with layouts. Memory is never read; what is wrong is left to the
//! allocator's own scan for errors, before and after each call.

use super::{Design, Op, Stranger, Subject, TraceRng};
use super::{MALLOC, arbitrary, free, layout, malloc, own_audit, realloc};
use rand::{Rng, RngExt};

pub(super) const DESIGN: Design = Design {
    name: "talc",
    draws: "derived list of alloc, dealloc, realloc with layouts",
    checks: "the allocator's own scan after each call",
    kinds: MALLOC,
    draw,
    guided: true,
    asks: || Box::new(Asks),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    arbitrary::grown(rng, max_ops, |rng| {
        let size = u64::from(rng.next_u32() as u16);
        match rng.random_range(0..3u8) {
            0 => malloc(layout(size, rng.random_range(0..12))),
            1 => free(rng),
            _ => realloc(rng, size),
        }
    })
}

struct Asks;

impl Stranger for Asks {
    fn called(&mut self, memory: &mut dyn Subject) -> Result<(), String> {
        own_audit(memory)
    }
}
