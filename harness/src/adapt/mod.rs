//! Anybody's allocator as a subject, in about thirty lines.
//!
//! | an allocator that | implements | becomes a subject by |
//! |---|---|---|
//! | brings its own memory | [`std::alloc::GlobalAlloc`] and [`Default`] | [`hosted::<Global<T>>`](hosted) |
//! | brings its own memory, with an interface of its own | [`Heap`] and [`Default`] | [`hosted`] |
//! | is given a region | [`Heap`] and [`Region`] | [`region`] |
//! | hands out page frames | [`Pages`] | [`pages`] |
//!
//! All of them are judged by what every allocator promises ([`Strength::Loose`](crate::subject::Strength)): blocks do not
//! overlap (O1), are aligned (O2), lie in the allocator's memory and nothing outside is written (O3), keep their contents
//! (O4, O6), are zeroed if asked (O5), and with nothing live a modest request is served (O9). What is asked beyond that is
//! what the implementation says of itself by [`Reuse`].
//!
//! A region is real memory of the harness, which the model sees at the start of the direct map; so a read or a write beyond
//! it is a fault that an oracle reports. A heap that brings its own memory is seen at its real addresses, which differ from
//! run to run.

mod frames;
mod heap;
mod raw;

pub use frames::Pages;
pub use raw::{Global, Heap, Memory, Region};

use crate::generate::Target;
use crate::subjects::SubjectKind;
use std::alloc::Layout;

/// What becomes of memory that was freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// Nobody promises anything: a bump allocator, or slabs that stay what they are. A refusal is never wrong.
    Never,
    /// With nothing live, a block of up to a sixteenth of the memory is to be had.
    Modest,
    /// With nothing live, a block as large as in a new heap is to be had.
    Whole,
}

/// What a heap answered to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Grant {
    /// A block at this address.
    Block(u64),
    /// A block at an address that cannot be the heap's; it is not touched.
    Outside(u64),
    /// Null.
    Refused,
}

/// Where a live block really is.
#[derive(Clone, Copy)]
struct Placed {
    block: *mut u8,
    layout: Layout,
}

/// Addresses below are never mapped, so that null pointers fault.
const LOWEST: u64 = 4096;
/// Addresses from here on are the kernel's.
const HIGHEST: u64 = 1 << 47;

/// Tells whether a block of a program can be here.
fn may_be_real(addr: u64, bytes: usize) -> bool {
    addr >= LOWEST && addr.checked_add(bytes as u64).is_some_and(|end| end <= HIGHEST)
}

/// What the engines aim at on heaps, and on page allocators.
const HEAPS: &[Target] = &[Target::Kvmalloc, Target::Slab, Target::Trace, Target::Pages];
const FRAMES: &[Target] = &[Target::Pages];

/// A subject of an allocator that brings its own memory.
pub const fn hosted<A: Heap + Default + 'static>(name: &'static str) -> SubjectKind {
    SubjectKind::foreign(name, heap::build_hosted::<A>, HEAPS)
}

/// A subject of a heap in a region of memory.
pub const fn region<A: Region + 'static>(name: &'static str) -> SubjectKind {
    SubjectKind::foreign(name, heap::build_region::<A>, HEAPS)
}

/// A subject of an allocator of page frames.
pub const fn pages<A: Pages + 'static>(name: &'static str) -> SubjectKind {
    SubjectKind::foreign(name, frames::build::<A>, FRAMES)
}

#[cfg(test)]
mod tests;
