//! `hammer` with the current releases of other people's allocators: `--subject talc`, and so on.

use kmem_harness::adapt::{Global, hosted, pages, region};
use kmem_peers::{
    Bitmap, BuddySystem, BuddySystemFrames, Dlmalloc, GoodMemory, LinkedList, Mimalloc, Rlsf, Slabmalloc, Talc,
};
use std::alloc::System;
use std::process::ExitCode;

fn main() -> ExitCode {
    kmem_harness::cli::main_with(&[
        region::<Talc>("talc"),
        region::<Rlsf>("rlsf"),
        region::<Dlmalloc>("dlmalloc"),
        region::<GoodMemory>("good_memory_allocator"),
        region::<LinkedList>("linked_list_allocator"),
        region::<BuddySystem>("buddy_system_allocator"),
        pages::<BuddySystemFrames>("buddy_system_allocator-frames"),
        pages::<Bitmap>("bitmap-allocator"),
        region::<Slabmalloc>("slabmalloc"),
        hosted::<Global<System>>("glibc"),
        hosted::<Mimalloc>("mimalloc"),
    ])
}
