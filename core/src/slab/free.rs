//! Taking objects back: verified, then onto this CPU's main sheaf, or through the steps of the per-CPU layer to slabs.

use super::SlabLayer;
use super::node::Slabs;
use super::shape::Role;
use super::sheaf::{CpuCell, CpuSheaves, Stored};
use crate::addr::{PAGE_SHIFT, Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, CacheId, FreeError};
use crate::geometry::Hardening;
use crate::order::Order;
use crate::page::{FrameKind, PageList};
use crate::platform::{Event, Platform};

/// How many objects go back to their slabs under one hold of the cache's lock. Source: `PCS_BATCH_MAX`, `mm/slub.c`.
const PCS_BATCH_MAX: usize = 32;

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
    fn kfree_slow<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        if addr.is_zero_or_null() {
            return Ok(());
        }
        match self.find_block(pages, addr)? {
            KmallocBlock::Object { object, id } => self.free_slow(pages, id, object),
            KmallocBlock::Large { first, order } => {
                pages.free_block(first, order);
                Ok(())
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn cache_free_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        if addr == VirtAddr::NULL {
            return Ok(());
        }
        match self.find_block(pages, addr)? {
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

    /// Takes back a verified object.
    fn free_slow<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, object: PhysAddr) -> Result<(), FreeError> {
        let addr = pages.base.virt(object);
        let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
        if !self.live.unmark(slabs.shape.live, object) {
            // Another CPU freed it since it was verified.
            return Err(FreeError::DoubleFree(addr));
        }
        let sheaves = self.cell(pages.base.cpu(), id).and_then(|cell| cell.try_local());
        if let Some(mut sheaves) = sheaves.filter(|_| slabs.shape.capacity > 0) {
            let capacity = u32::from(slabs.shape.capacity);
            if sheaves.main.len() >= capacity {
                self.make_room(pages, id, &slabs, &mut sheaves);
            }
            if sheaves.main.push(capacity, object) {
                return Ok(());
            }
        }
        self.return_objects(pages, id, &slabs, &[object]);
        Ok(())
    }

    /// Empties the full main sheaf, wholly or in part: into the spare, the barn, or the slabs.
    fn make_room<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, slabs: &Slabs<'_>, sheaves: &mut CpuSheaves) {
        if sheaves.spare.is_none() {
            sheaves.spare = self.empty_buffer(id);
        }
        if self.move_main_to_spare(pages, sheaves) {
            return;
        }
        let stored = self.nodes.get(id).map(|node| node.lock().barn.store(&self.pool, &mut sheaves.main));
        match (stored, &sheaves.spare) {
            (Some(Stored::Done), _) => pages.base.event(Event::BarnPut),
            (_, Some(spare)) => {
                self.pool.with(spare, |spare| {
                    self.return_objects(pages, id, slabs, spare.objects());
                    spare.clear();
                });
                pages.base.event(Event::SheafFlush);
                self.move_main_to_spare(pages, sheaves);
            }
            (_, None) => self.return_newest_half(pages, id, slabs, sheaves),
        }
    }

    fn empty_buffer(&self, id: usize) -> Option<super::sheaf::SheafId> {
        let kept = self.nodes.get(id).and_then(|node| node.lock().barn.empty.pop());
        kept.or_else(|| self.pool.take())
    }

    /// Moves the main sheaf's objects into the spare; `false` if there is no spare or it has objects.
    fn move_main_to_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        let Some(spare) = spare else { return false };
        let moved = self.pool.with(spare, |spare| {
            let empty = spare.is_empty();
            if empty {
                main.move_to(spare);
            }
            empty
        });
        if moved == Some(true) {
            pages.base.event(Event::SheafSwap);
        }
        moved == Some(true)
    }

    /// Without a buffer to move to, half of the objects go back to the slabs: room for as many frees, and as many
    /// allocations stay fast.
    fn return_newest_half<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
    ) {
        let kept = sheaves.main.len() / 2;
        let newest = sheaves.main.objects().get(kept as usize..).unwrap_or_default();
        self.return_objects(pages, id, slabs, newest);
        pages.base.event(Event::SheafFlush);
        sheaves.main.truncate(kept);
    }

    /// Puts objects back into their slabs, in batches. Slabs that are no longer kept give their frames back; returns
    /// how many frames.
    pub(super) fn return_objects<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        objects: &[PhysAddr],
    ) -> u64 {
        let Some(node) = self.nodes.get(id) else { return 0 };
        let mut released = 0;
        for batch in objects.chunks(PCS_BATCH_MAX) {
            let mut discard = PageList::EMPTY;
            let mut node = node.lock();
            batch.iter().for_each(|&object| node.release(slabs, object, &mut discard));
            drop(node);
            released += self.release_slabs(pages, discard);
        }
        released
    }
}

/// The slab object that an address would be, by the kind of its frame alone: its place and the number of its cache.
#[inline(always)]
fn slab_object<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr) -> Option<(PhysAddr, usize)> {
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
