//! bitmap-allocator, as an allocator of frames.

use bitmap_allocator::{BitAlloc, BitAlloc64K};
use kmem_harness::adapt::{Pages, Reuse};

/// The allocator.
pub struct Peer(Box<BitAlloc64K>);

impl Pages for Peer {
    const REUSE: Reuse = Reuse::Whole;

    fn new(frames: usize) -> Self {
        let mut bits = Box::new(BitAlloc64K::DEFAULT);
        bits.insert(0..frames);
        Self(bits)
    }

    fn alloc(&mut self, order: u8) -> Option<usize> {
        self.0.alloc_contiguous(None, 1 << order, order.into())
    }

    fn free(&mut self, first: usize, order: u8) {
        self.0.dealloc_contiguous(first, 1 << order);
    }
}
