//! dlmalloc, whose system gives the region once.

use dlmalloc::{Allocator, Dlmalloc};
use kmem_harness::adapt::{Heap, Region};
use std::alloc::Layout;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

/// A system with one piece of memory.
struct Once {
    memory: NonNull<[u8]>,
    taken: AtomicBool,
}

// SAFETY: the memory belongs to whoever has this.
unsafe impl Send for Once {}

// SAFETY: the memory is given once, with its size, and never taken back.
unsafe impl Allocator for Once {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if size > self.memory.len() || self.taken.swap(true, Ordering::Relaxed) {
            return (ptr::null_mut(), 0, 0);
        }
        (self.memory.cast().as_ptr(), self.memory.len(), 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        4096
    }
}

/// The allocator.
pub struct Peer(Dlmalloc<Once>);

impl Heap for Peer {
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: a layout is what it wants.
        unsafe { self.0.malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: the block was given for this layout.
        unsafe { self.0.free(block, layout.size(), layout.align()) };
    }

    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        // SAFETY: a layout is what it wants.
        Some(unsafe { self.0.calloc(layout.size(), layout.align()) })
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the block was given for this layout.
        Some(unsafe { self.0.realloc(block, layout.size(), layout.align(), new_size) })
    }
}

impl Region for Peer {
    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        Some(Self(Dlmalloc::new_with_allocator(Once { memory, taken: AtomicBool::new(false) })))
    }
}
