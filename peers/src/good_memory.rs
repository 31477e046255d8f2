//! good_memory_allocator. It must not move once it has memory.

use good_memory_allocator::{Allocator, DEFAULT_ALIGNMENT_SUB_BINS_AMOUNT, DEFAULT_SMALLBINS_AMOUNT};
use kmem_harness::adapt::{Heap, Region};
use std::alloc::Layout;
use std::ptr::NonNull;

/// The allocator.
pub struct Peer(Box<Allocator<DEFAULT_SMALLBINS_AMOUNT, DEFAULT_ALIGNMENT_SUB_BINS_AMOUNT>>);

impl Heap for Peer {
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: it has memory, and the size is not zero.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&mut self, block: *mut u8, _: Layout) {
        // SAFETY: the block was given.
        unsafe { self.0.dealloc(block) };
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the block was given for this layout, and the size is not zero.
        Some(unsafe { self.0.realloc(block, layout, new_size) })
    }
}

impl Region for Peer {
    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let mut heap = Box::new(Allocator::empty());
        // SAFETY: the memory is the heap's alone, and the box does not move.
        unsafe { heap.init(memory.cast::<u8>().as_ptr() as usize, memory.len()) };
        Some(Self(heap))
    }
}
