#![allow(unsafe_code, reason = "the allocators of these tests are handed raw pointers, as real ones are")]

use super::*;
use crate::engines::{Budget, Engine, Job, Live, random::Random};
use crate::oracle::OracleId;
use crate::run::{RunOptions, Runner};
use crate::trace::{Gfp, Op, Trace};
use std::ptr::NonNull;

/// What a toy does wrong.
const RIGHT: u8 = 0;
const OUTSIDE: u8 = 1;
const TRESPASSES: u8 = 2;
const FORGETS: u8 = 3;
const OVERLAPS: u8 = 4;
const UNALIGNED: u8 = 5;
const SMALL_HEAPS: u8 = 6;
const HOMELESS: u8 = 7;

/// A bump allocator that starts anew when its last block is freed.
struct Toy<const FLAW: u8> {
    start: usize,
    next: usize,
    end: usize,
    live: usize,
}

impl<const FLAW: u8> Heap for Toy<FLAW> {
    const REUSE: Reuse = Reuse::Whole;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        let align = if FLAW == UNALIGNED { 1 } else { layout.align() };
        let Some(block) = self.next.checked_next_multiple_of(align) else { return std::ptr::null_mut() };
        let Some(end) = block.checked_add(layout.size()).filter(|&end| end <= self.end) else {
            return if FLAW == OUTSIDE { self.end as *mut u8 } else { std::ptr::null_mut() };
        };
        self.next = if FLAW == OVERLAPS { end - 1 } else { end };
        self.live += 1;
        if FLAW == TRESPASSES && self.live == 3 {
            // SAFETY: the harness keeps a margin behind the region for this.
            unsafe { (self.end as *mut u8).write(0) };
        }
        block as *mut u8
    }

    unsafe fn dealloc(&mut self, _: *mut u8, _: Layout) {
        self.live -= 1;
        if self.live == 0 {
            self.next = if FLAW == FORGETS { self.start + 64 } else { self.start };
        }
    }
}

impl<const FLAW: u8> Region for Toy<FLAW> {
    const SMALL: &'static [usize] = &[0, 8];

    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        if FLAW == HOMELESS {
            return None;
        }
        let start = memory.cast::<u8>().as_ptr() as usize;
        if FLAW == SMALL_HEAPS && memory.len() < 16 {
            // SAFETY: the harness keeps bytes behind a small region for this.
            unsafe { (start as *mut [usize; 2]).write([0; 2]) };
        }
        Some(Self { start, next: start, end: start + memory.len(), live: 0 })
    }
}

/// What the engines make of a subject.
fn killer(kind: SubjectKind) -> Option<OracleId> {
    kind.targets().iter().find_map(|&target| {
        let job = Job { subject: kind, target, seed: 1, budget: Budget::cases(60), seeds: &[], max_ops: 200 };
        Some(Random.run(&job, &Live::default()).unwrap().finding?.violation.oracle)
    })
}

#[test]
fn each_mistake_of_a_heap_in_a_region_is_caught_by_its_oracle() {
    assert_eq!(killer(region::<Toy<RIGHT>>("toy")), None);
    assert_eq!(killer(region::<Toy<OUTSIDE>>("toy")), Some(OracleId::O3Bounds));
    assert_eq!(killer(region::<Toy<TRESPASSES>>("toy")), Some(OracleId::O3Bounds));
    assert_eq!(killer(region::<Toy<SMALL_HEAPS>>("toy")), Some(OracleId::O3Bounds));
    assert_eq!(killer(region::<Toy<FORGETS>>("toy")), Some(OracleId::O12Quiescence));
    assert_eq!(killer(region::<Toy<OVERLAPS>>("toy")), Some(OracleId::O1Overlap));
    assert_eq!(killer(region::<Toy<UNALIGNED>>("toy")), Some(OracleId::O2Alignment));
    assert_eq!(killer(region::<Toy<HOMELESS>>("toy")), Some(OracleId::O9RefusalJustified));
}

#[test]
fn the_allocator_of_this_system_keeps_its_word() {
    assert_eq!(killer(hosted::<Global<std::alloc::System>>("system")), None);
}

/// A bitmap of frames, with or without care for alignment.
struct Bits<const ALIGNED: bool>(Vec<bool>);

impl<const ALIGNED: bool> Pages for Bits<ALIGNED> {
    const REUSE: Reuse = Reuse::Whole;

    fn new(frames: usize) -> Self {
        Self(vec![false; frames])
    }

    fn alloc(&mut self, order: u8) -> Option<usize> {
        let step = if ALIGNED { 1 << order } else { 1 };
        let last = self.0.len().checked_sub(1 << order)?;
        let first = (0..=last).step_by(step).find(|&n| self.0[n..n + (1 << order)].iter().all(|used| !used))?;
        self.0[first..first + (1 << order)].fill(true);
        Some(first)
    }

    fn free(&mut self, first: usize, order: u8) {
        self.0[first..first + (1 << order)].fill(false);
    }
}

#[test]
fn a_page_allocator_is_judged_as_well() {
    assert_eq!(killer(pages::<Bits<true>>("bits")), None);
    assert_eq!(killer(pages::<Bits<false>>("bits")), Some(OracleId::O2Alignment));
}

#[test]
fn memory_has_the_alignment_that_its_largest_block_may_want_and_reads_back() {
    let ops = vec![
        Op::Kmalloc { size: 1 << 20, gfp: Gfp::KERNEL },
        Op::KvmallocNode { size: 24, align: 12, gfp: Gfp::KERNEL, node: 0 },
        Op::Free { pick: 0 },
    ];
    let report = Runner::new().run(&Trace::new(ops), region::<Toy<RIGHT>>("toy"), &RunOptions::default());
    assert_eq!((report.violation, report.ops), (None, 3));
}

/// A heap of one block, which a reallocation moves down by eight bytes, over itself.
struct Slides {
    start: usize,
    end: usize,
    at: usize,
}

impl Heap for Slides {
    const REUSE: Reuse = Reuse::Never;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        let block = (self.start + 64).next_multiple_of(layout.align());
        let fits = self.at == 0 && block + layout.size() <= self.end;
        self.at = if fits { block } else { self.at };
        if fits { block as *mut u8 } else { std::ptr::null_mut() }
    }

    unsafe fn dealloc(&mut self, _: *mut u8, _: Layout) {
        self.at = 0;
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        let to = (block as usize - 8) as *mut u8;
        let fits = to as usize >= self.start && to as usize + new_size <= self.end && layout.align() <= 8;
        if !fits {
            return Some(std::ptr::null_mut());
        }
        // SAFETY: both places are in the region, and the block has so many bytes.
        unsafe { std::ptr::copy(block, to, layout.size().min(new_size)) };
        self.at = to as usize;
        Some(to)
    }
}

impl Region for Slides {
    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let start = memory.cast::<u8>().as_ptr() as usize;
        Some(Self { start, end: start + memory.len(), at: 0 })
    }
}

#[test]
fn a_block_may_be_moved_over_itself() {
    let gfp = Gfp::KERNEL;
    let ops = vec![Op::Kmalloc { size: 33, gfp }, Op::Krealloc { pick: 0, size: 41, gfp }, Op::Read { pick: 0 }];
    let report = Runner::new().run(&Trace::new(ops), region::<Slides>("slides"), &RunOptions::default());
    assert_eq!((report.violation, report.peak_live), (None, 1));
    assert_eq!(killer(region::<Slides>("slides")), None);
}
