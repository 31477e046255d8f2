//! talc. It reserves the start of the region for itself and merges what is freed at once.

use kmem_harness::adapt::{Heap, Region, Reuse};
use std::alloc::Layout;
use std::ptr::{self, NonNull};
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

/// The allocator.
pub struct Peer(Talc<Manual, DefaultBinning>);

impl Heap for Peer {
    const REUSE: Reuse = Reuse::Whole;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is not zero.
        unsafe { self.0.allocate(layout) }.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: the block was given for this layout.
        unsafe { self.0.deallocate(block, layout) };
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the block was given for this layout, and the size is not zero.
        unsafe { self.0.try_realloc_in_place(block, layout, new_size) }.then_some(block)
    }
}

impl Region for Peer {
    const SMALL: &'static [usize] = &[0, 1, 8, 16, 64, 512, 1000];

    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let mut heap = Talc::new(Manual);
        // SAFETY: the memory is the heap's alone.
        unsafe { heap.claim(memory.cast().as_ptr(), memory.len()) }?;
        Some(Self(heap))
    }
}
