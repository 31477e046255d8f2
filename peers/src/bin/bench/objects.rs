//! The works on objects. The first word of each block is written, and read before the block is freed.

use crate::subjects::{Sample, Subject};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::Instant;

/// Pairs of a work, and of the slow ones.
const PAIRS: u64 = 400_000;
const FEW: u64 = 20_000;
/// Blocks that are live in the works with several.
const LIVE: usize = 10_000;
const BATCH: usize = 1_000;
const LARGE: usize = 24;
/// Slots of the ring between two threads.
const RING: usize = 1_024;

const WORKS: [&str; 8] = [
    "64 B, hot",
    "8 B to 8 KiB, 10,000 live",
    "1,000 of 64 B, random frees",
    "realloc doubling 64 B to 64 KiB, a call",
    "64 KiB to 8 MiB, 24 live",
    "64 B, hot, two threads",
    "1,000 of 64 B, random frees, two threads",
    "64 B freed by another thread",
];

/// Memory that nothing else uses, for ever.
pub(crate) fn host_memory(bytes: usize) -> NonNull<[u8]> {
    let layout = Layout::from_size_align(bytes, 1 << 21).unwrap_or_else(|_| unreachable!("a power of two"));
    // SAFETY: the size is not zero.
    let memory = NonNull::new(unsafe { System.alloc(layout) });
    let memory = memory.unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
    NonNull::slice_from_raw_parts(memory, bytes)
}

/// Numbers without a pattern: xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Less than `n`, which is less than 2^32.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) * n as u64 >> 32) as usize
    }

    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        (1..all.len()).rev().for_each(|i| all.swap(i, self.below(i + 1)));
    }

    /// Between two powers of two, each octave as often as any other.
    fn log_uniform(&mut self, from: u32, to: u32) -> usize {
        let octave = from + self.below((to - from) as usize) as u32;
        (1 << octave) + self.below(1 << octave)
    }
}

/// A block and its layout.
#[derive(Clone, Copy)]
struct Block(NonNull<u8>, Layout);

pub(crate) struct Objects<A> {
    name: &'static str,
    allocator: A,
}

impl<A: GlobalAlloc + Sync> Objects<A> {
    pub(crate) fn new(name: &'static str, allocator: A) -> Self {
        Self { name, allocator }
    }

    fn alloc(&self, size: usize) -> Option<Block> {
        let layout = Layout::from_size_align(size, 8).ok()?;
        // SAFETY: no work asks for a block of no bytes.
        let block = NonNull::new(unsafe { self.allocator.alloc(layout) })?;
        // SAFETY: every block has at least eight bytes, at a multiple of eight.
        unsafe { block.cast::<usize>().write_volatile(size) };
        Some(Block(block, layout))
    }

    fn free(&self, Block(block, layout): Block) {
        // SAFETY: as in `alloc`.
        black_box(unsafe { block.cast::<usize>().read_volatile() });
        // SAFETY: the block was given for this layout, and is given up.
        unsafe { self.allocator.dealloc(block.as_ptr(), layout) };
    }

    /// One block, again and again; returns how many requests were refused.
    fn hot(&self, pairs: u64) -> u64 {
        (0..pairs)
            .map(|_| {
                self.alloc(64).map_or(1, |block| {
                    self.free(block);
                    0
                })
            })
            .sum()
    }

    /// Blocks of many sizes take each other's place.
    fn replaced(&self, pairs: u64, live: usize, size: impl Fn(&mut Random) -> usize) -> u64 {
        let mut random = Random::new(11);
        let mut blocks: Vec<Option<Block>> = (0..live).map(|_| self.alloc(size(&mut random))).collect();
        let mut refused = 0;
        for _ in 0..pairs {
            let n = random.below(live);
            let Some(slot) = blocks.get_mut(n) else { continue };
            slot.take().into_iter().for_each(|block| self.free(block));
            *slot = self.alloc(size(&mut random));
            refused += u64::from(slot.is_none());
        }
        blocks.into_iter().flatten().for_each(|block| self.free(block));
        refused
    }

    /// A thousand blocks, freed in a random order.
    fn batches(&self, pairs: u64, seed: u64) -> u64 {
        let mut order: Vec<usize> = (0..BATCH).collect();
        Random::new(seed).shuffle(&mut order);
        let mut blocks = vec![None; BATCH];
        let mut refused = 0;
        for _ in 0..pairs / BATCH as u64 {
            blocks.iter_mut().for_each(|slot| *slot = self.alloc(64));
            for &n in &order {
                match blocks.get_mut(n).and_then(Option::take) {
                    Some(block) => self.free(block),
                    None => refused += 1,
                }
            }
        }
        refused
    }

    /// A block that grows from 64 bytes to 64 KiB, ten times doubled, and its first word with it.
    fn doubled(&self, calls: u64) -> u64 {
        let mut refused = 0;
        for _ in 0..calls / 10 {
            let Some(Block(mut block, mut layout)) = self.alloc(64) else { continue };
            for _ in 0..10 {
                let size = 2 * layout.size();
                // SAFETY: the block was given for this layout; the size is not zero and does not overflow.
                let Some(grown) = NonNull::new(unsafe { self.allocator.realloc(block.as_ptr(), layout, size) }) else {
                    refused += 1;
                    break;
                };
                block = grown;
                layout = Layout::from_size_align(size, 8).unwrap_or(layout);
            }
            self.free(Block(block, layout));
        }
        refused
    }

    /// A work in two threads at once; the pairs are those of each. Each takes its own time: whoever waits for both may be
    /// woken late. Returns the nanoseconds of the slower one.
    fn two_threads(&self, work: impl Fn(u64) -> u64 + Sync) -> (f64, u64) {
        let (barrier, slower, refused) = (Barrier::new(2), AtomicU64::new(0), AtomicU64::new(0));
        let both = |thread| {
            barrier.wait();
            let start = Instant::now();
            refused.fetch_add(work(thread), Ordering::Relaxed);
            slower.fetch_max(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| both(1));
            both(2);
        });
        (slower.load(Ordering::Relaxed) as f64, refused.load(Ordering::Relaxed))
    }

    /// One thread allocates, the other one frees.
    fn remote(&self, blocks: u64) -> (f64, u64) {
        let ring: Vec<AtomicPtr<u8>> = (0..RING).map(|_| AtomicPtr::default()).collect();
        let layout = Layout::from_size_align(64, 8).unwrap_or(Layout::new::<u64>());
        self.two_threads(|thread| {
            let slots = (0..blocks).zip(ring.iter().cycle());
            if thread == 1 {
                for (_, slot) in slots {
                    let Some(Block(block, _)) = self.alloc(64) else { return 1 };
                    while !slot.load(Ordering::Relaxed).is_null() {
                        std::hint::spin_loop();
                    }
                    slot.store(block.as_ptr(), Ordering::Release);
                }
            } else {
                for (_, slot) in slots {
                    let block = std::iter::repeat_with(|| slot.load(Ordering::Acquire)).find_map(NonNull::new);
                    slot.store(std::ptr::null_mut(), Ordering::Relaxed);
                    block.into_iter().for_each(|block| self.free(Block(block, layout)));
                }
            }
            0
        })
    }

    fn work(&self, work: usize, pairs: u64) -> (Option<f64>, u64) {
        let threads = |(time, refused): (f64, u64)| (Some(time), refused);
        match work {
            0 => (None, self.hot(pairs)),
            1 => (None, self.replaced(pairs, LIVE, |random| random.log_uniform(3, 13))),
            2 => (None, self.batches(pairs, 5)),
            3 => (None, self.doubled(pairs)),
            4 => (None, self.replaced(pairs, LARGE, |random| random.log_uniform(16, 23))),
            5 => threads(self.two_threads(|_| self.hot(pairs))),
            6 => threads(self.two_threads(|thread| self.batches(pairs, thread))),
            _ => threads(self.remote(pairs)),
        }
    }
}

impl<A: GlobalAlloc + Sync> Subject for Objects<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn works(&self) -> &'static [&'static str] {
        &WORKS
    }

    fn is_counted(&self, work: usize) -> bool {
        work < 5
    }

    fn run(&self, work: usize) -> Sample {
        // The lists of some are as long as what is live: they do less, and nobody waits for an hour.
        let slow = matches!(self.name, "linked_list_allocator" | "buddy_system_allocator") && work == 1;
        let pairs = if slow || work == 3 || work == 4 { FEW } else { PAIRS };
        self.work(work, pairs / 20);
        let start = Instant::now();
        let (time, refused) = self.work(work, pairs);
        let nanoseconds = time.unwrap_or_else(|| start.elapsed().as_nanos() as f64) / pairs as f64;
        Sample { nanoseconds, refused: refused as f64 / pairs as f64 }
    }

    fn repeat(&self, work: usize, times: u64) -> u64 {
        (0..times).map(|_| self.work(work, self.pairs(work)).1).sum()
    }

    fn pairs(&self, work: usize) -> u64 {
        if work == 0 { FEW } else { FEW / 4 }
    }
}
