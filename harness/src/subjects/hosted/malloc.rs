//! The allocator of whole programs, [`KmemAlloc`], by the calls of [`GlobalAlloc`].

use crate::adapt::Heap;
use kmem::hosted::KmemAlloc;
use std::alloc::{GlobalAlloc, Layout};

/// One for all traces, as a program has one: what it took from the host it never gives back.
static ALLOCATOR: KmemAlloc = KmemAlloc::new();

/// The calls.
#[derive(Default)]
pub(crate) struct Malloc;

impl Heap for Malloc {
    /// Blocks of more than 4 MiB are areas, and the engines shall have some.
    const LARGEST: usize = 1 << 24;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        unsafe { ALLOCATOR.alloc(layout) }
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { ALLOCATOR.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        // SAFETY: passed on to the caller.
        Some(unsafe { ALLOCATOR.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, size: usize) -> Option<*mut u8> {
        // SAFETY: passed on to the caller.
        Some(unsafe { ALLOCATOR.realloc(block, layout, size) })
    }
}
