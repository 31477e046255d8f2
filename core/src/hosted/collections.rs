//! Allocators for collections, under the names that Rust for Linux gives them.

use super::Hosted;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::error::{AllocError as Refused, FreeError};
use crate::gfp::GfpFlags;
use crate::vmalloc::VmallocArgs;
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// What requests of collections may do: wait, reclaim, and fail without a warning.
const GFP: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::NOWARN);

/// Collections whose blocks are contiguous, of up to 4 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Kmalloc<'h>(pub &'h Hosted);

/// Collections whose blocks are areas: whole pages, each block followed by one that faults. Growth copies nothing.
#[derive(Clone, Copy, Debug)]
pub struct Vmalloc<'h>(pub &'h Hosted);

/// Collections whose blocks are contiguous if that is easy, else areas.
#[derive(Clone, Copy, Debug)]
pub struct KVmalloc<'h>(pub &'h Hosted);

/// One family of calls.
trait Family {
    fn hosted(&self) -> &Hosted;
    fn allocate(&self, size: usize, align: usize, gfp: GfpFlags) -> Result<VirtAddr, Refused>;
    fn release(&self, addr: VirtAddr) -> Result<(), FreeError>;
    /// As `krealloc` and its like, for an alignment that the block has.
    fn resize(&self, addr: VirtAddr, size: usize, align: usize) -> Result<VirtAddr, Refused>;

    fn block(&self, layout: Layout, gfp: GfpFlags) -> Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            // A block of nothing is nowhere; its address has the alignment.
            let nowhere = NonNull::new(ptr::without_provenance_mut(layout.align())).ok_or(AllocError)?;
            return Ok(NonNull::slice_from_raw_parts(nowhere, 0));
        }
        let size = layout.pad_to_align().size();
        let addr = self.allocate(size, layout.align(), gfp).map_err(|_| AllocError)?;
        slice(addr, layout.size())
    }

    fn resized(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if old.size() == 0 {
            return self.block(new, GFP);
        }
        if new.size() == 0 {
            self.give_back(block, old);
            return self.block(new, GFP);
        }
        let addr = VirtAddr::new(block.as_ptr().expose_provenance() as u64);
        let size = new.pad_to_align().size();
        let moved = self.resize(addr, size, new.align()).map_err(|_| AllocError)?;
        slice(moved, new.size())
    }

    fn give_back(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            let addr = VirtAddr::new(block.as_ptr().expose_provenance() as u64);
            if let Err(error) = self.release(addr) {
                super::global::refuse(error);
            }
        }
    }
}

fn slice(addr: VirtAddr, len: usize) -> Result<NonNull<[u8]>, AllocError> {
    let first = NonNull::new(ptr::with_exposed_provenance_mut(addr.as_u64() as usize)).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(first, len))
}

impl Family for Kmalloc<'_> {
    fn hosted(&self) -> &Hosted {
        self.0
    }

    fn allocate(&self, size: usize, _align: usize, gfp: GfpFlags) -> Result<VirtAddr, Refused> {
        self.0.enter().kmalloc(size, gfp)
    }

    fn release(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.0.enter().kfree(addr)
    }

    fn resize(&self, addr: VirtAddr, size: usize, align: usize) -> Result<VirtAddr, Refused> {
        let kmem = self.0.enter();
        if addr.is_aligned(align as u64) {
            return kmem.krealloc(addr, size, GFP);
        }
        drop(kmem);
        copied(self, addr, size, align)
    }
}

impl Family for Vmalloc<'_> {
    fn hosted(&self) -> &Hosted {
        self.0
    }

    fn allocate(&self, size: usize, align: usize, gfp: GfpFlags) -> Result<VirtAddr, Refused> {
        self.0.enter().vmalloc_node_range(&VmallocArgs { align, ..VmallocArgs::new(size, gfp) })
    }

    fn release(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.0.enter().vfree(addr)
    }

    fn resize(&self, addr: VirtAddr, size: usize, align: usize) -> Result<VirtAddr, Refused> {
        let kmem = self.0.enter();
        if addr.is_aligned(align as u64) {
            return kmem.vrealloc_node_align(addr, size, align, GFP, None);
        }
        drop(kmem);
        copied(self, addr, size, align)
    }
}

impl Family for KVmalloc<'_> {
    fn hosted(&self) -> &Hosted {
        self.0
    }

    fn allocate(&self, size: usize, align: usize, gfp: GfpFlags) -> Result<VirtAddr, Refused> {
        let kmem = self.0.enter();
        // Beyond a page kvmalloc promises an area's alignment only if it is told.
        if align <= PAGE_SIZE { kmem.kvmalloc(size, gfp) } else { kmem.kvmalloc_node_align(size, align, gfp, None) }
    }

    fn release(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.0.enter().kvfree(addr)
    }

    fn resize(&self, addr: VirtAddr, size: usize, align: usize) -> Result<VirtAddr, Refused> {
        let kmem = self.0.enter();
        if addr.is_aligned(align as u64) && align <= PAGE_SIZE {
            return kmem.kvrealloc(addr, size, GFP);
        }
        drop(kmem);
        copied(self, addr, size, align)
    }
}

/// A new block, the contents copied: where no call of the family keeps the alignment.
fn copied(family: &(impl Family + ?Sized), old: VirtAddr, size: usize, align: usize) -> Result<VirtAddr, Refused> {
    let usable = family.hosted().enter().kvsize(old).map_err(|_| Refused::BadAddress(old))?;
    let new = family.allocate(size, align, GFP)?;
    let at = |addr: VirtAddr| NonNull::new(ptr::with_exposed_provenance_mut::<u8>(addr.as_u64() as usize));
    if let (Some(from), Some(to)) = (at(old), at(new)) {
        super::sys::copy_block(from, to, usable.min(size));
    }
    family.release(old).map_err(|_| Refused::BadAddress(old))?;
    Ok(new)
}

macro_rules! allocators {
    ($($name:ident)*) => {$(
        // SAFETY: blocks that are live do not overlap, have the size and the alignment that was asked for, and stay until they
        // are given back, also if the allocator is copied or moved: all copies are of one `Hosted`.
        unsafe impl Allocator for $name<'_> {
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                self.block(layout, GFP)
            }

            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
                self.block(layout, GFP | GfpFlags::ZERO)
            }

            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                self.give_back(block, layout);
            }

            unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
                self.resized(block, old, new)
            }

            unsafe fn grow_zeroed(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, AllocError> {
                let grown = self.resized(block, old, new)?;
                super::sys::zero_tail(grown, old.size());
                Ok(grown)
            }

            unsafe fn shrink(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
                self.resized(block, old, new)
            }
        }
    )*};
}
allocators! { Kmalloc Vmalloc KVmalloc }
