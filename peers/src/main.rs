//! `hammer` with the current releases of other people's allocators: `--subject talc`, and so on.

mod bitmap;
mod buddy_system;
mod dlmalloc;
mod good_memory;
mod linked_list;
mod rlsf;
mod slabmalloc;
mod talc;

use kmem_harness::adapt::{Global, Heap, hosted, pages, region};
use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;

fn main() -> ExitCode {
    kmem_harness::cli::main_with(&[
        region::<talc::Peer>("talc"),
        region::<rlsf::Peer>("rlsf"),
        region::<dlmalloc::Peer>("dlmalloc"),
        region::<good_memory::Peer>("good_memory_allocator"),
        region::<linked_list::Peer>("linked_list_allocator"),
        region::<buddy_system::Peer>("buddy_system_allocator"),
        pages::<buddy_system::Frames>("buddy_system_allocator-frames"),
        pages::<bitmap::Peer>("bitmap-allocator"),
        region::<slabmalloc::Peer>("slabmalloc"),
        hosted::<Global<System>>("glibc"),
        hosted::<Mimalloc>("mimalloc"),
    ])
}

/// mimalloc, which has no `Default`.
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

    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { mimalloc::MiMalloc.realloc(block, layout, new_size) })
    }
}
