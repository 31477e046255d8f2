//! Taking objects back: verified, then onto this CPU's main sheaf, or through the steps of the per-CPU layer to slabs.

use super::SlabLayer;
use super::classes::FIRST_LINE_CLASS;
use super::live::Spot;
use super::shape::Role;
use super::sheaf::CpuCell;
use crate::addr::{PAGE_SHIFT, Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, CacheId, FreeError};
use crate::page::FrameKind;
use crate::platform::{CpuId, Platform};

/// A block that `kfree` takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum KmallocBlock {
    /// A live object of this cache.
    Object { object: PhysAddr, id: usize },
    /// Pages of the page allocator.
    Large { first: Pfn, pages: u64 },
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
        let cpu = pages.base.platform.cpu();
        let freed = if self.live.is_off() {
            self.free_unmarked(pages, cpu, addr, |_| true)
        } else {
            self.kfree_fast(pages, cpu, addr) || self.kfree_other(pages, cpu, addr)
        };
        if freed { Ok(()) } else { self.kfree_slow(pages, addr) }
    }

    /// Takes back what most blocks are: an object of a class with a mark, onto the main sheaf of this CPU, whose number the
    /// caller knows. `false` if that is not what the address is, or the sheaf is full or in use.
    #[inline(always)]
    pub(crate) fn kfree_fast<P: Platform>(&self, pages: &PageAllocator<P>, cpu: CpuId, addr: VirtAddr) -> bool {
        let object = pages.base.direct.phys_unchecked(addr);
        let Some((class, mark)) = self.live.class_at(object) else { return false };
        self.cells.known(cpu, class).push_line(object, P::STATISTICS, || {
            mark.unmark();
            true
        })
    }

    /// Takes back what [`Self::kfree_fast`] did not if it is an object: of a class without a mark, or of a user's cache. `false`
    /// if it is none, or the sheaf is full or in use.
    #[inline(never)]
    pub(crate) fn kfree_other<P: Platform>(&self, pages: &PageAllocator<P>, cpu: CpuId, addr: VirtAddr) -> bool {
        self.live
            .spot(pages.base.direct.phys_unchecked(addr))
            .is_some_and(|spot| self.free_at(spot, cpu, P::STATISTICS))
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
        if self.free_fast(pages, pages.base.platform.cpu(), addr, |id| id == cache.index()) {
            Ok(())
        } else {
            self.cache_free_slow(pages, cache, addr)
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

    /// Pushes onto this CPU's main sheaf, if a live object of a cache that is `accepted` starts at the address and there is
    /// room.
    #[inline(always)]
    fn free_fast<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        addr: VirtAddr,
        accepted: impl Fn(usize) -> bool,
    ) -> bool {
        let object = pages.base.direct.phys_unchecked(addr);
        let Some(spot) = self.live.spot(object) else { return self.free_unmarked(pages, cpu, addr, accepted) };
        accepted(spot.cache()) && self.free_at(spot, cpu, P::STATISTICS)
    }

    #[inline(always)]
    fn free_at(&self, spot: Spot<'_>, cpu: CpuId, counted: bool) -> bool {
        let (id, object) = (spot.cache(), spot.object());
        let Some(cell) = self.cell(cpu, id) else { return false };
        if id < FIRST_LINE_CLASS {
            return self.free_shared(cell, object, counted);
        }
        cell.push_line(object, counted, || spot.unmark_line()) || self.free_small(cell, object, counted)
    }

    /// The same without hardening: whatever the address is, it belongs to a slab.
    #[inline(always)]
    fn free_unmarked<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        addr: VirtAddr,
        accepted: impl Fn(usize) -> bool,
    ) -> bool {
        if !self.live.is_off() {
            return false;
        }
        let Some((object, id)) = slab_object(pages, addr).filter(|&(_, id)| accepted(id)) else { return false };
        let cell = self.cell(cpu, id);
        cell.is_some_and(|cell| cell.push_line(object, P::STATISTICS, || true))
    }

    /// Pushes an object that shares its byte of the liveness map.
    #[inline(always)]
    fn free_shared(&self, cell: &CpuCell, object: PhysAddr, counted: bool) -> bool {
        cell.push_shared(object, counted, || self.live.shared_spot(object).is_some_and(|spot| spot.unmark_shared()))
    }

    /// The same for objects of a user's cache.
    #[inline(never)]
    fn free_small(&self, cell: &CpuCell, object: PhysAddr, counted: bool) -> bool {
        self.free_shared(cell, object, counted)
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
            KmallocBlock::Large { first, .. } => {
                pages.free_large(first);
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
            KmallocBlock::Object { object, id } if id == self.root(cache.index()) => self.free_slow(pages, id, object),
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
            FrameKind::Leaked => Err(FreeError::Leaked(addr)),
            FrameKind::Free | FrameKind::Pcp | FrameKind::LargePending => Err(FreeError::DoubleFree(addr)),
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
        if self.live.is_live(slabs.shape.live, phys) {
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
    Ok(KmallocBlock::Large { first, pages: pages.kept_pages(first) })
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
