//! rlsf: TLSF, which merges what is freed at once.

use kmem_harness::adapt::{Heap, Region, Reuse};
use rlsf::Tlsf;
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// The allocator.
pub struct Peer(Tlsf<'static, u32, u32, 20, 32>);

impl Heap for Peer {
    const REUSE: Reuse = Reuse::Whole;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        self.0.allocate(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the block was given for this alignment.
        unsafe { self.0.deallocate(block, layout.align()) };
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        let (block, new) = (NonNull::new(block)?, Layout::from_size_align(new_size, layout.align()).ok()?);
        // SAFETY: the block was given for this alignment.
        Some(unsafe { self.0.reallocate(block, new) }.map_or(ptr::null_mut(), NonNull::as_ptr))
    }
}

impl Region for Peer {
    const SMALL: &'static [usize] = &[0, 1, 8, 16, 31, 32, 33, 64];

    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let mut heap = Tlsf::new();
        // SAFETY: the memory is the heap's alone.
        unsafe { heap.insert_free_block_ptr(memory) }?;
        Some(Self(heap))
    }
}
