//! linked_list_allocator. "If the freed block is adjacent to another free block, the blocks are merged again."

use kmem_harness::adapt::{Heap, Region, Reuse};
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// The allocator.
pub struct Peer(linked_list_allocator::Heap);

impl Heap for Peer {
    const REUSE: Reuse = Reuse::Whole;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        self.0.allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the block was given for this layout.
        unsafe { self.0.deallocate(block, layout) };
    }
}

impl Region for Peer {
    /// Two words are enough where the region is aligned; less has to panic, as documented.
    const SMALL: &'static [usize] = &[0, 8, 16, 24];

    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        let mut heap = linked_list_allocator::Heap::empty();
        // SAFETY: the memory is the heap's alone.
        unsafe { heap.init(memory.cast().as_ptr(), memory.len()) };
        Some(Self(heap))
    }
}
