//! The works on frames. Memory itself is not touched.

use crate::objects::Random;
use crate::subjects::{Sample, Subject};
use std::hint::black_box;
use std::time::Instant;

/// Frames that every allocator has: 256 MiB.
pub(crate) const FRAMES: u32 = 1 << 16;
/// Frames of the bulk work: 64 MiB.
const BULK: usize = 1 << 14;
/// Pairs of the other works.
const PAIRS: u64 = 200_000;

const WORKS: [&str; 3] = ["order 0, hot", "64 MiB in bulk, random frees", "orders 0 to 9, half of memory used"];

/// An allocator of frames.
pub(crate) trait Frames {
    fn alloc(&self, order: u8) -> Option<usize>;
    fn free(&self, first: usize, order: u8);
}

pub(crate) struct Pages<F> {
    name: &'static str,
    make: fn() -> F,
}

impl<F: Frames> Pages<F> {
    pub(crate) fn new(name: &'static str, make: fn() -> F) -> Self {
        Self { name, make }
    }

    fn work(&self, frames: &F, work: usize, pairs: u64) -> u64 {
        match work {
            0 => hot(frames, pairs),
            1 => (0..pairs.div_ceil(BULK as u64)).map(|seed| bulk(frames, seed)).sum(),
            _ => mixed(frames, pairs),
        }
    }
}

impl<F: Frames> Subject for Pages<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn works(&self) -> &'static [&'static str] {
        &WORKS
    }

    fn is_counted(&self, _: usize) -> bool {
        true
    }

    fn run(&self, work: usize) -> Sample {
        let frames = (self.make)();
        self.work(&frames, work, BULK as u64);
        let pairs = if work == 1 { 4 * BULK as u64 } else { PAIRS };
        let start = Instant::now();
        let refused = self.work(&frames, work, pairs);
        let nanoseconds = start.elapsed().as_nanos() as f64 / pairs as f64;
        Sample { nanoseconds, refused: refused as f64 / pairs as f64 }
    }

    fn repeat(&self, work: usize, times: u64) -> u64 {
        let frames = (self.make)();
        (0..times).map(|_| self.work(&frames, work, self.pairs(work))).sum()
    }

    fn pairs(&self, _: usize) -> u64 {
        BULK as u64
    }
}

/// One frame, again and again; returns how many requests were refused.
fn hot(frames: &impl Frames, pairs: u64) -> u64 {
    let mut refused = 0;
    for _ in 0..pairs {
        match black_box(frames.alloc(0)) {
            Some(frame) => frames.free(frame, 0),
            None => refused += 1,
        }
    }
    refused
}

/// A quarter of memory, freed in a random order.
fn bulk(frames: &impl Frames, seed: u64) -> u64 {
    let mut taken: Vec<usize> = (0..BULK).filter_map(|_| frames.alloc(0)).collect();
    let refused = BULK - taken.len();
    Random::new(seed + 1).shuffle(&mut taken);
    taken.into_iter().for_each(|frame| frames.free(frame, 0));
    refused as u64
}

/// Blocks of all orders come and go while half of memory, and up to four fifths, is in use.
fn mixed(frames: &impl Frames, pairs: u64) -> u64 {
    let mut random = Random::new(7);
    let (mut live, mut used, mut refused) = (Vec::new(), 0u64, 0);
    for _ in 0..pairs {
        let order = (random.next() % 10) as u8;
        match frames.alloc(order) {
            Some(first) => {
                live.push((first, order));
                used += 1 << order;
            }
            None => refused += 1,
        }
        while used > u64::from(FRAMES) / 10 * 8 || (used > u64::from(FRAMES) / 2 && random.next() % 2 == 0) {
            let (first, order) = live.swap_remove(random.below(live.len()));
            used -= 1 << order;
            frames.free(first, order);
        }
    }
    live.into_iter().for_each(|(first, order)| frames.free(first, order));
    refused
}
