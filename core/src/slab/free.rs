//! Taking objects back: verified, then onto this CPU's main sheaf, or through the steps of the per-CPU layer to slabs.

use super::SlabLayer;
use super::shape::Role;
use super::sheaf::{CpuCell, CpuSheaves};
use crate::addr::{PAGE_SHIFT, Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, CacheId, FreeError};
use crate::hardening::Hardening;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Platform;

/// A block that `kfree` takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum KmallocBlock {
    /// A live object of this cache.
    Object { object: PhysAddr, id: usize },
    /// A block of the page allocator.
    Large { first: Pfn, order: Order },
}

impl SlabLayer {
    /// Takes back what `kmalloc` or a user's cache gave. Null and the zero-size address are ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing was changed.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn kfree<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        match slab_object(pages, addr).and_then(|(object, id)| self.free_fast(pages, id, object)) {
            Some(()) => Ok(()),
            None => self.kfree_slow(pages, addr),
        }
    }

    /// Takes back an object of the given cache. Null is ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing was changed.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn cache_free<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        let own = slab_object(pages, addr).filter(|&(_, id)| id == cache.index());
        match own.and_then(|(object, id)| self.free_fast(pages, id, object)) {
            Some(()) => Ok(()),
            None => self.cache_free_slow(pages, cache, addr),
        }
    }

    /// Takes back an object of a layer's own cache.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing was changed.
    pub(crate) fn internal_free<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        let (object, id) = slab_object(pages, addr).ok_or(FreeError::Foreign(addr))?;
        if id != cache.index() {
            return Err(FreeError::WrongCache { addr, owner: super::cache_id(id) });
        }
        self.verify_object(pages, id, object)?;
        self.free_slow(pages, id, object)
    }

    /// Pushes onto this CPU's main sheaf, if the object is live and there is room. A CPU that the geometry does not
    /// have has no cell.
    #[inline(always)]
    fn free_fast<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, object: PhysAddr) -> Option<()> {
        let cell = self.cell(pages.base.platform.cpu(), id)?;
        let mut sheaves = cell.try_local()?;
        if sheaves.main.push_if(cell.line_capacity(), object, || self.live.unmark_line(object)) {
            return Some(());
        }
        self.free_shared(cell, &mut sheaves, object).then_some(())
    }

    /// The same for objects that share a byte of the liveness map.
    #[inline(never)]
    fn free_shared(&self, cell: &CpuCell, sheaves: &mut CpuSheaves, object: PhysAddr) -> bool {
        sheaves.main.push_if(cell.shared_capacity(), object, || self.live.unmark_shared(object))
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn kfree_slow<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        if addr.is_zero_or_null() {
            return Ok(());
        }
        match self.find_to_free(pages, addr)? {
            KmallocBlock::Object { object, id } => self.free_slow(pages, id, object),
            KmallocBlock::Large { first, order } => {
                pages.free_block(first, order);
                Ok(())
            }
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn cache_free_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        if addr == VirtAddr::NULL {
            return Ok(());
        }
        match self.find_to_free(pages, addr)? {
            KmallocBlock::Object { object, id } if id == cache.index() => self.free_slow(pages, id, object),
            KmallocBlock::Object { id, .. } => Err(FreeError::WrongCache { addr, owner: super::cache_id(id) }),
            KmallocBlock::Large { .. } => Err(wrong_kind(addr, BlockKind::LargeKmalloc)),
        }
    }

    /// Finds the live block that starts at an address.
    ///
    /// # Errors
    ///
    /// What the address is instead.
    pub(super) fn find_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
    ) -> Result<KmallocBlock, FreeError> {
        let Some(phys) = pages.base.phys(addr) else { return Err(outside_memory(pages, addr)) };
        let frame = phys.pfn().ok_or(FreeError::Foreign(addr))?;
        match pages.base.frames.kind(frame) {
            FrameKind::Slab(cache) if self.is_internal(cache.index()) => Err(wrong_kind(addr, BlockKind::Internal)),
            FrameKind::Slab(cache) => {
                self.verify_object(pages, cache.index(), phys)?;
                Ok(KmallocBlock::Object { object: phys, id: cache.index() })
            }
            FrameKind::LargeKmalloc | FrameKind::LargeTail => large_block(pages, addr, frame),
            FrameKind::Absent => Err(FreeError::Foreign(addr)),
            FrameKind::Free | FrameKind::Pcp => Err(FreeError::DoubleFree(addr)),
            other => Err(wrong_kind(addr, other.block_kind())),
        }
    }

    /// Tells whether the cache belongs to a layer above.
    #[inline(always)]
    pub(super) fn is_internal(&self, id: usize) -> bool {
        self.shapes.get(id).is_some_and(|record| record.role() == Role::Internal)
    }

    /// Checks that a live object of the cache starts at an address in one of its slabs.
    fn verify_object<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, phys: PhysAddr) -> Result<(), FreeError> {
        let addr = pages.base.virt(phys);
        let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
        if pages.base.geometry.hardening == Hardening::Off || self.live.is_live(slabs.shape.live, phys) {
            return Ok(());
        }
        let (head, index) = slabs.locate(phys);
        let start = slabs.object(head, index);
        if index >= slabs.objects(head) {
            Err(FreeError::Foreign(addr))
        } else if start != phys {
            Err(FreeError::Interior { addr, start: pages.base.virt(start) })
        } else {
            Err(FreeError::DoubleFree(addr))
        }
    }
}

/// The slab object that an address would be, by the kind of its frame alone: its place and the number of its cache.
#[inline(always)]
pub(super) fn slab_object<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr) -> Option<(PhysAddr, usize)> {
    let phys = pages.base.direct.phys_unchecked(addr);
    let cache = pages.base.frames.slab_cache((phys.as_u64() >> PAGE_SHIFT) as usize)?;
    Some((phys, cache))
}

/// The large block that starts at an address in `frame`.
fn large_block<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr, frame: Pfn) -> Result<KmallocBlock, FreeError> {
    let first = pages.base.frames.head_of(frame);
    let start = pages.base.virt(first.addr());
    if addr != start {
        return Err(FreeError::Interior { addr, start });
    }
    Ok(KmallocBlock::Large { first, order: pages.base.frames.order(first) })
}

/// What an address that is not in the direct map is.
fn outside_memory<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr) -> FreeError {
    if pages.base.geometry.is_vmalloc_addr(addr) {
        wrong_kind(addr, BlockKind::Vmalloc)
    } else {
        FreeError::Foreign(addr)
    }
}

fn wrong_kind(addr: VirtAddr, found: BlockKind) -> FreeError {
    FreeError::WrongKind { addr, expected: BlockKind::Slab, found }
}
