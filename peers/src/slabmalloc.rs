//! slabmalloc, whose user brings pages: of 4 KiB from the bottom of the region, of 2 MiB from its top. A page stays with the
//! class that it was brought for, so a refusal is never wrong.

use kmem_harness::adapt::{Heap, Region, Reuse};
use slabmalloc::{AllocationError, Allocator, LargeObjectPage, ObjectPage, ZoneAllocator};
use std::alloc::Layout;
use std::ptr::{self, NonNull};

/// The allocator.
pub struct Peer {
    zone: ZoneAllocator<'static>,
    memory: NonNull<u8>,
    /// Offsets of what is left of the region.
    left: std::ops::Range<usize>,
}

impl Peer {
    /// Brings a page of the kind that this layout needs; `false` if none is left.
    fn bring(&mut self, layout: Layout) -> bool {
        let large = layout.size() > ZoneAllocator::MAX_BASE_ALLOC_SIZE;
        let bytes = if large { size_of::<LargeObjectPage<'_>>() } else { size_of::<ObjectPage<'_>>() };
        let Some(top) = self.left.end.checked_sub(bytes).map(|top| if large { top / bytes * bytes } else { top })
        else {
            return false;
        };
        if top < self.left.start {
            return false;
        }
        let at = if large { top } else { self.left.start };
        if large {
            self.left.end = at
        } else {
            self.left.start += bytes
        }
        // SAFETY: what is left of the region is nobody's.
        let page = unsafe { self.memory.add(at) };
        // SAFETY: the same, and the page is as long.
        unsafe { page.write_bytes(0, bytes) };
        // SAFETY: the page is empty, aligned to its size as the region is, and nobody else's.
        let brought = match large {
            true => unsafe { self.zone.refill_large(layout, page.cast::<LargeObjectPage<'static>>().as_mut()) },
            false => unsafe { self.zone.refill(layout, page.cast::<ObjectPage<'static>>().as_mut()) },
        };
        brought.is_ok()
    }
}

impl Heap for Peer {
    const REUSE: Reuse = Reuse::Never;
    const LARGEST: usize = ZoneAllocator::MAX_ALLOC_SIZE;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        let mut block = self.zone.allocate(layout);
        if matches!(block, Err(AllocationError::OutOfMemory)) && self.bring(layout) {
            block = self.zone.allocate(layout);
        }
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(block) {
            self.zone.deallocate(block, layout).expect("the block was given for this layout");
        }
    }
}

impl Region for Peer {
    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self> {
        Some(Self { zone: ZoneAllocator::new(), left: 0..memory.len(), memory: memory.cast() })
    }
}
