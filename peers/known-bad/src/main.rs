//! `hammer` with old releases whose bugs are known; each has to be caught (`ci/peers.sh`).

use kmem_harness::adapt::{Heap, Pages, Reuse, hosted, pages, region};
use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;

#[path = "../../src/linked_list.rs"]
mod linked_list;

fn main() -> ExitCode {
    kmem_harness::cli::main_with(&[
        region::<linked_list::Peer>("linked_list_allocator@0.10.1"),
        pages::<Frames>("buddy_system_allocator-frames@0.6.0"),
        hosted::<Mimalloc>("mimalloc@0.1.32"),
    ])
}

/// Its `dealloc` merges with a block that is no buddy.
struct Frames(buddy_system_allocator::FrameAllocator);

impl Pages for Frames {
    const REUSE: Reuse = Reuse::Whole;

    fn new(frames: usize) -> Self {
        let mut heap = buddy_system_allocator::FrameAllocator::new();
        heap.add_frame(0, frames);
        Self(heap)
    }

    fn alloc(&mut self, order: u8) -> Option<usize> {
        self.0.alloc(1 << order)
    }

    fn free(&mut self, first: usize, order: u8) {
        self.0.dealloc(first, 1 << order);
    }
}

/// RUSTSEC-2022-0094: it does not always align.
#[derive(Default)]
struct Mimalloc;

impl Heap for Mimalloc {
    const LARGEST: usize = 1 << 22;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: the same condition.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: the same condition.
        unsafe { mimalloc::MiMalloc.dealloc(block, layout) }
    }
}
