//! Pure random: any operation with any numbers, a fixed number of times, and no question but whether it crashes.

use super::{Design, Op, Stranger, TraceRng, arbitrary};
use crate::trace::OpKind;
use rand::RngExt;

pub(super) const DESIGN: Design = Design {
    name: "pure-random",
    draws: "any operations, any numbers",
    checks: "nothing but crashes",
    kinds: &OpKind::ALL,
    draw,
    guided: false,
    asks: || Box::new(Nothing),
};

fn draw(rng: &mut TraceRng, max_ops: usize) -> Vec<Op> {
    (0..rng.random_range(0..=max_ops)).map(|_| arbitrary::uniform(rng)).collect()
}

struct Nothing;

impl Stranger for Nothing {}
