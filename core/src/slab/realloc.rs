//! `krealloc`, `ksize`, and what a request is rounded up to.

use super::SlabLayer;
use super::classes;
use super::free::KmallocBlock;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{AllocError, FreeError};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::{GFP_SLAB_BUG_MASK, GfpFlags};
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};

impl SlabLayer {
    /// Resizes a block of `kmalloc`: in place while it fits, or if it is a large one and what is behind it is free, else into
    /// a new block. A block never moves to a smaller class. With `ZERO`, the bytes from `size` to the end of the object are zeroed in place, so that a chain of
    /// zeroing calls always finds what it grows into zeroed.
    ///
    /// # Errors
    ///
    /// `BadAddress` if no block starts at `addr`; why `kmalloc` refused. The old block is as it was.
    #[track_caller]
    pub(crate) fn krealloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let bad_address = |_: FreeError| AllocError::BadAddress(addr);
        if size == 0 {
            return self.free_repaired(pages, addr).map(|()| VirtAddr::ZERO_SIZE).map_err(bad_address);
        }
        if addr.is_zero_or_null() {
            return self.kmalloc(pages, size, gfp);
        }
        let block = self.find_block(pages, addr).map_err(bad_address)?;
        let room = self.room(block);
        if size > room {
            if self.grow_block(pages, block, size, gfp) {
                return Ok(addr);
            }
            return self.move_block(pages, addr, block, size, gfp);
        }
        let old = self.requested(pages, addr);
        if gfp.wants_zero() {
            match old {
                Some(old) if old < size => zero_tail(pages, block_start(block), old, size),
                _ => zero_tail(pages, block_start(block), size, room),
            }
        }
        if old.is_some() {
            self.resize(pages, addr, size);
        }
        pages.base.event(Event::ReallocInPlace);
        Ok(addr)
    }

    /// Makes a large block bigger without moving it; `false`, with nothing changed, if it cannot be or is no such block.
    pub(crate) fn krealloc_in_place<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        size: usize,
        gfp: GfpFlags,
    ) -> bool {
        self.find_block(pages, addr).is_ok_and(|block| self.grow_block(pages, block, size, gfp))
    }

    /// Makes a large block, even if a class would serve the size, where it can grow to `room` bytes as long as what is behind it
    /// stays free. Without [`Geometry::trim_large`](crate::Geometry::trim_large), or without so large a block, it is what `kmalloc`
    /// gives.
    #[track_caller]
    pub(crate) fn kmalloc_with_room<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        (size, room): (usize, usize),
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let order = Order::for_bytes(room.max(size)).filter(|&order| order <= pages.base.geometry.max_order);
        let Some(order) = order.filter(|_| pages.base.geometry.trim_large && size > 0) else {
            return self.kmalloc(pages, size, gfp);
        };
        if pages.base.fault(FaultSite::new(FaultPoint::Page, gfp).with_order(order)) {
            return Err(AllocError::Injected(FaultPoint::Page));
        }
        let flags = super::grow::supported(pages, gfp) | GfpFlags::COMP;
        match pages.alloc_block_on(order, flags, None, FrameKind::LargeKmalloc) {
            Ok(first) => {
                pages.keep_pages(first, order, size.div_ceil(PAGE_SIZE) as u64);
                Ok(pages.base.virt(first.addr()))
            }
            Err(_) => self.kmalloc(pages, size, gfp),
        }
    }

    /// Gives a large block the pages behind it that it lacks.
    fn grow_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        block: KmallocBlock,
        size: usize,
        gfp: GfpFlags,
    ) -> bool {
        let KmallocBlock::Large { first, .. } = block else { return false };
        // Flags that no slab honours are reported where a new block is made.
        let honoured = !gfp.intersects(GFP_SLAB_BUG_MASK);
        honoured && size <= self.kmalloc_max && pages.grow_large(first, size.div_ceil(PAGE_SIZE) as u64, gfp)
    }

    /// Allocates, copies what fits, and frees the old block.
    #[track_caller]
    fn move_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        block: KmallocBlock,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let new = self.kmalloc(pages, size, gfp)?;
        if let Some(to) = pages.base.phys(new) {
            let old = self.owned_size(pages, addr).unwrap_or(0);
            let copied = pages.base.mem.copy(block_start(block), to, old.min(size));
            debug_assert!(copied, "a block lies outside memory");
        }
        let freed = self.free_repaired(pages, addr);
        debug_assert!(freed.is_ok(), "the old block was found before");
        pages.base.event(Event::ReallocMoved);
        Ok(new)
    }

    /// Frees a block for a caller who has got another one for it: damage around it is repaired and no reason to keep it.
    #[track_caller]
    pub(crate) fn free_repaired<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        match self.kfree(pages, addr) {
            Err(FreeError::Corrupted(_)) => self.kfree(pages, addr),
            answer => answer,
        }
    }

    /// Tells how many bytes of a block are its user's: all that are usable, or what was asked for where that is kept.
    ///
    /// # Errors
    ///
    /// What is wrong with the address.
    pub(crate) fn owned_size<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<usize, FreeError> {
        let usable = self.usable_size(pages, addr)?;
        Ok(self.requested(pages, addr).unwrap_or(usable))
    }

    /// Tells how many bytes the caller may use, and lets him: where the requested size is kept, it grows to that.
    ///
    /// # Errors
    ///
    /// What is wrong with the address.
    pub(crate) fn ksize<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<usize, FreeError> {
        let usable = self.usable_size(pages, addr)?;
        self.resize(pages, addr, usable);
        Ok(usable)
    }

    /// Tells how many bytes the block has for its user: all up to the next object, or up to what a debug cache keeps behind
    /// it. 0 for null and the zero-size address.
    ///
    /// # Errors
    ///
    /// What is wrong with the address.
    pub(crate) fn usable_size<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
    ) -> Result<usize, FreeError> {
        if addr.is_zero_or_null() {
            return Ok(0);
        }
        self.find_block(pages, addr).map(|block| self.usable(block))
    }

    /// Tells how many bytes `kmalloc(size)` would give: the class, the block (or, if blocks are trimmed, its pages), or `size` itself where it would refuse.
    pub(crate) fn size_roundup(&self, size: usize, trimmed: bool) -> usize {
        if size > self.kmalloc_max {
            return size;
        }
        match classes::class_size(size) {
            Some(bytes) => bytes,
            None if size == 0 => 0,
            None if trimmed => size.next_multiple_of(PAGE_SIZE),
            None => Order::for_bytes(size).map_or(size, Order::bytes),
        }
    }

    /// Bytes from the block's start to the next block: what `ksize` tells.
    fn usable(&self, block: KmallocBlock) -> usize {
        match block {
            KmallocBlock::Object { id, .. } => self.shape(id).map_or(0, |shape| shape.usable()),
            KmallocBlock::Large { pages, .. } => (pages as usize) << PAGE_SHIFT,
        }
    }

    /// Bytes up to which a block is resized in place: the size that its cache was made for.
    fn room(&self, block: KmallocBlock) -> usize {
        match block {
            KmallocBlock::Object { id, .. } => self.shapes.get(id).map_or(0, |record| record.object_size()),
            KmallocBlock::Large { pages, .. } => (pages as usize) << PAGE_SHIFT,
        }
    }
}

fn block_start(block: KmallocBlock) -> PhysAddr {
    match block {
        KmallocBlock::Object { object, .. } => object,
        KmallocBlock::Large { first, .. } => first.addr(),
    }
}

/// Zeroes bytes `from..to` of a block.
fn zero_tail<P: Platform>(pages: &PageAllocator<P>, start: PhysAddr, from: usize, to: usize) {
    let Some(tail) = start.checked_add(from as u64) else { return };
    let zeroed = pages.base.mem.fill(tail, to.saturating_sub(from), 0);
    debug_assert!(zeroed, "a block lies outside memory");
}
