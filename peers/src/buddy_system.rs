//! buddy_system_allocator: the heap, and the allocator of frames.

use buddy_system_allocator::{FrameAllocator, Heap as Buddy};
use kmem_harness::adapt::{Heap, Pages, Region, Reuse};
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// The allocator.
pub struct Peer(Buddy<32>);

impl Heap for Peer {
    const REUSE: Reuse = Reuse::Whole;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        self.0.alloc(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the block was given for this layout.
        unsafe { self.0.dealloc(block, layout) };
    }
}

impl Region for Peer {
    const SMALL: &'static [usize] = &[0, 1, 7, 8, 9, 16, 24, 100];

    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let mut heap = Buddy::empty();
        // SAFETY: the memory is the heap's alone.
        unsafe { heap.init(memory.cast::<u8>().as_ptr() as usize, memory.len()) };
        Some(Self(heap))
    }
}

/// The allocator of frames.
pub struct Frames(FrameAllocator<32>);

impl Pages for Frames {
    const REUSE: Reuse = Reuse::Whole;

    fn new(frames: usize) -> Self {
        let mut heap = FrameAllocator::new();
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
