//! Other people's allocators, as subjects of the harness and of the benchmark.

mod bitmap;
mod buddy_system;
mod dlmalloc;
mod good_memory;
mod linked_list;
mod rlsf;
mod slabmalloc;
mod talc;

pub use bitmap::Peer as Bitmap;
pub use buddy_system::{Frames as BuddySystemFrames, Peer as BuddySystem};
pub use dlmalloc::Peer as Dlmalloc;
pub use good_memory::Peer as GoodMemory;
pub use linked_list::Peer as LinkedList;
pub use rlsf::Peer as Rlsf;
pub use slabmalloc::Peer as Slabmalloc;
pub use talc::Peer as Talc;

use kmem_harness::adapt::Heap;
use std::alloc::{GlobalAlloc, Layout};

/// mimalloc, which has no `Default`.
#[derive(Default)]
pub struct Mimalloc;

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

    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { mimalloc::MiMalloc.realloc(block, layout, new_size) })
    }
}
