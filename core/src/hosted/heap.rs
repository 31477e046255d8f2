//! `malloc` on two allocators.
//!
//! ```text
//! up to 4 MiB            small: contiguous blocks of private memory      a fork costs them nothing
//! more, or none is free  areas: of a memory file, made when needed       growth remaps, a fork copies
//! ```
//!
//! So the order is kvmalloc's: contiguous if that is to be had without effort, else virtually contiguous. What comes and goes
//! up to that size costs no call of the host, and what grows beyond it is copied once and never again.

use super::kept::{self, Pushed};
use super::sys::{self, Placed};
use super::{Entered, HostConfig, HostCounts, HostError, Hosted, Inner, fork};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr, VirtAddr};
use crate::error::FreeError;
use crate::gfp::GfpFlags;
use crate::page::FrameKind;
use crate::sync::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, SpinLock};
use crate::vmalloc::VmallocArgs;
use core::ptr::{self, NonNull};

/// Areas that shrink below this size become contiguous blocks.
const SHRUNK: usize = 1 << 20;
/// After so many bytes in large blocks were freed, free memory goes back to the host,
const TRIM_AFTER: usize = 64 << 20;
/// but for so many pages of each kind of memory: what comes and goes shall not be taken from the host each time.
const PAGES_KEPT: u64 = (128 << 20) / PAGE_SIZE as u64;
/// A block that has grown lies where it can grow to so many times its size in place, up to the largest contiguous block.
const ROOM_TO_GROW: usize = 16;
const LARGEST_ROOM: usize = PAGE_SIZE << crate::MAX_PAGE_ORDER;
/// Contiguous blocks of more than a page are a bonus: nothing is reclaimed for them.
const EASY: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::NOWARN).difference(GfpFlags::DIRECT_RECLAIM);
/// The sizes between which the memory of a heap is chosen, in bytes, whatever the host has.
const MEMORY: (usize, usize) = (64 << 20, 256 << 30);

/// A heap for a whole process.
pub(super) struct Heap {
    small: Hosted,
    /// Where the private memory begins, and how many bytes of addresses it has.
    private: (u64, u64),
    /// Set once forks know of `small`: from then on threads may take its fast paths without entering.
    has_front: AtomicBool,
    areas: AtomicPtr<Inner>,
    /// Held while the allocator of areas is made.
    making: SpinLock<()>,
    /// Bytes in large blocks that were freed since memory went back to the host.
    freed: AtomicUsize,
    /// What each of the two gets.
    config: HostConfig,
}

impl Heap {
    /// Makes the heap, as large as the host's memory; smaller if there are fewer addresses.
    ///
    /// # Errors
    ///
    /// What the host would not give.
    pub(super) fn new() -> Result<Self, HostError> {
        let memory = sys::memory_bytes().checked_next_power_of_two().unwrap_or(MEMORY.1);
        let mut config = HostConfig::new(memory.clamp(MEMORY.0, MEMORY.1));
        loop {
            match Hosted::private(&config) {
                Ok(small) => return Ok(Self::on(small, config)),
                Err(error) if config.memory <= MEMORY.0 => return Err(error),
                Err(_) => config = HostConfig::new(config.memory / 2),
            }
        }
    }

    fn on(small: Hosted, config: HostConfig) -> Self {
        let areas = AtomicPtr::new(ptr::null_mut());
        let geometry = small.inner.kmem.geometry();
        let private = (geometry.direct_map.as_u64(), u64::from(geometry.frames()) << PAGE_SHIFT);
        let (has_front, making) = (AtomicBool::new(false), SpinLock::new(()));
        Self { small, private, has_front, areas, making, freed: AtomicUsize::new(0), config }
    }

    /// Lets threads take the fast paths of small blocks without entering, if forks can be told; returns where.
    pub(super) fn open_front(&self) -> *mut Inner {
        if !fork::watch_front(&self.small.inner) {
            return ptr::null_mut();
        }
        self.has_front.store(true, Ordering::Release);
        ptr::from_ref::<Inner>(&self.small.inner).cast_mut()
    }

    /// Enters the allocator of small blocks, and has this thread do without from now on where it can.
    #[inline(always)]
    fn enter_small(&self) -> Entered<'_> {
        let small = self.small.enter();
        if self.has_front.load(Ordering::Acquire) {
            small._cpu.set_front(&self.small.inner);
        }
        small
    }

    /// At least `size` bytes at a multiple of `align`, a power of two. The fast path had nothing.
    pub(super) fn allocate(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        let rounded = round_up(size, align)?;
        let zero = if zeroed { GfpFlags::ZERO } else { GfpFlags::empty() };
        let (rounded, gfp) = match rounded {
            ..=PAGE_SIZE => (rounded, GfpFlags::KERNEL | GfpFlags::NOWARN),
            // In few pieces, so that giving back what is behind it and, later, the rest takes few steps.
            _ => (kept::rounded(rounded), EASY),
        };
        match self.enter_small().kmalloc_after_miss(rounded, gfp | zero) {
            Ok(addr) => pointer(addr),
            Err(_) => self.allocate_area(size, align, zeroed),
        }
    }

    /// The virtually contiguous attempt.
    #[cold]
    #[inline(never)]
    fn allocate_area(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        if size <= PAGE_SIZE && align <= PAGE_SIZE {
            return None;
        }
        drop(self.areas()?);
        let inner = self.areas_inner()?;
        let areas = inner.enter();
        let make = |size| {
            let args = VmallocArgs { align, ..VmallocArgs::new(size, GfpFlags::KERNEL | GfpFlags::NOWARN) };
            areas.vmalloc_node_range(&args).ok()
        };
        let made = inner.kept.take(size, align).or_else(|| make(kept::rounded(size)));
        let made = made.or_else(|| if inner.free_kept() { make(size) } else { None });
        let area = pointer(made?)?;
        if zeroed {
            // Through the area's own addresses: its pages are touched once only.
            sys::zero_block(area, size);
        }
        Some(area)
    }

    /// Takes a block back.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    pub(super) fn release(&self, block: NonNull<u8>) -> Result<(), FreeError> {
        let (addr, small) = (address(block), self.enter_small());
        // Large blocks and areas begin with a page, as few objects do.
        if addr.page_offset() == 0 && !matches!(self.kind(&small, addr), Some(FrameKind::Slab(_))) {
            drop(small);
            return self.release_large(addr);
        }
        small.kfree(addr)
    }

    /// A large block, an area, or neither.
    #[cold]
    #[inline(never)]
    fn release_large(&self, addr: VirtAddr) -> Result<(), FreeError> {
        let small = self.small.enter();
        if self.kind(&small, addr).is_none() {
            drop(small);
            return self.release_area(addr);
        }
        let bytes = small.kvsize(addr)?;
        small.kfree(addr)?;
        drop(small);
        self.count_freed(bytes);
        Ok(())
    }

    #[cold]
    fn release_area(&self, addr: VirtAddr) -> Result<(), FreeError> {
        let Some(areas) = self.areas_now() else { return self.release_without_areas(addr) };
        let bytes = areas.kvsize(addr)?;
        match self.areas_inner().filter(|_| areas.is_vmalloc_addr(addr)) {
            Some(inner) => keep_area(inner, addr, bytes)?,
            None => areas.vfree(addr)?,
        }
        drop(areas);
        self.count_freed(bytes);
        Ok(())
    }

    /// Whether an address of an area is that of one which was freed and is kept.
    fn is_kept(&self, addr: VirtAddr) -> bool {
        self.areas_inner().is_some_and(|inner| inner.kept.has(addr))
    }

    /// In a fork's child whose areas are lost, a free of one of them is no mistake.
    fn release_without_areas(&self, addr: VirtAddr) -> Result<(), FreeError> {
        if self.areas_inner().is_some_and(Inner::is_dead) { Ok(()) } else { Err(FreeError::Foreign(addr)) }
    }

    /// Changes the size of a block; it moves if it must, its contents with it. `None` leaves it as it is.
    pub(super) fn resize(&self, block: NonNull<u8>, size: usize, align: usize) -> Option<NonNull<u8>> {
        let addr = address(block);
        let small = self.small.enter();
        if self.kind(&small, addr).is_none() {
            drop(small);
            return self.resize_area(block, size, align);
        }
        let usable = small.kvsize(addr).ok()?;
        let fits = size <= usable && (usable <= 2 * PAGE_SIZE || size >= usable / 4);
        if addr.is_aligned(align as u64) && (fits || (size > usable && is_grown(&small, addr, size))) {
            return Some(block);
        }
        drop(small);
        let new = if size > usable { self.allocate_growing(size, align) } else { self.allocate(size, align, false) };
        self.replace(block, usable.min(size), new?)
    }

    /// A block for somebody whose last one became too small: it will do so again.
    fn allocate_growing(&self, size: usize, align: usize) -> Option<NonNull<u8>> {
        let room = size.saturating_mul(ROOM_TO_GROW);
        if size < PAGE_SIZE || room > LARGEST_ROOM {
            return self.allocate(size, align, false);
        }
        let rounded = kept::rounded(round_up(size, align)?);
        match self.small.enter().kmalloc_with_room(rounded, room.max(rounded), EASY) {
            Ok(addr) => pointer(addr),
            Err(_) => self.allocate_area(size, align, false),
        }
    }

    #[cold]
    fn resize_area(&self, block: NonNull<u8>, size: usize, align: usize) -> Option<NonNull<u8>> {
        let (addr, areas) = (address(block), self.areas_now()?);
        if self.is_kept(addr) {
            return None;
        }
        let usable = areas.kvsize(addr).ok()?;
        if size >= SHRUNK {
            let moved = areas.vrealloc_node_align(addr, size, align, GfpFlags::KERNEL | GfpFlags::NOWARN, None);
            if let Some(moved) = moved.ok().and_then(pointer) {
                return Some(moved);
            }
        }
        drop(areas);
        self.replace(block, usable.min(size), self.allocate(size, align, false)?)
    }

    /// Copies what a block holds to another one and takes it back.
    fn replace(&self, old: NonNull<u8>, keep: usize, new: NonNull<u8>) -> Option<NonNull<u8>> {
        sys::copy_block(old, new, keep);
        let released = self.release(old);
        debug_assert_eq!(released, Ok(()), "the block was found before");
        Some(new)
    }

    /// How many bytes of a block its owner may use.
    ///
    /// # Errors
    ///
    /// Which misuse freeing it would have been.
    pub(super) fn usable(&self, block: NonNull<u8>) -> Result<usize, FreeError> {
        let (addr, small) = (address(block), self.small.enter());
        if self.kind(&small, addr).is_some() {
            return small.kvsize(addr);
        }
        drop(small);
        let areas = self.areas_now().ok_or(FreeError::Foreign(addr))?;
        if self.is_kept(addr) { Err(FreeError::DoubleFree(addr)) } else { areas.kvsize(addr) }
    }

    /// What the host did for areas; all zeros if there are none.
    pub(super) fn host_counts(&self) -> HostCounts {
        match (self.areas_now(), self.areas_inner()) {
            (Some(_areas), Some(inner)) => inner.host_counts(),
            _ => HostCounts::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn audit(&self) -> Result<(), crate::Violation> {
        self.small.enter().audit()
    }

    /// Gives memory back to the host; returns how many pages.
    pub(super) fn trim(&self) -> u64 {
        if let (Some(_areas), Some(inner)) = (self.areas_now(), self.areas_inner()) {
            inner.free_kept();
        }
        self.trim_beyond(0)
    }

    /// The same for what is free beyond so many pages, as is done now and then; areas that nobody came back for go as well.
    #[cold]
    #[inline(never)]
    fn trim_sometimes(&self) {
        if let (Some(_areas), Some(inner)) = (self.areas_now(), self.areas_inner()) {
            core::iter::from_fn(|| inner.kept.age()).for_each(|area| inner.free_area(area));
        }
        self.trim_beyond(PAGES_KEPT);
    }

    fn trim_beyond(&self, kept: u64) -> u64 {
        let of_areas = self.areas_now().map_or(0, |areas| {
            areas.vm_unmap_aliases();
            areas.report_free_pages_beyond(kept)
        });
        of_areas + self.small.enter().report_free_pages_beyond(kept)
    }

    #[inline]
    fn count_freed(&self, bytes: usize) {
        let before = self.freed.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) >= TRIM_AFTER && self.freed.swap(0, Ordering::Relaxed) >= TRIM_AFTER {
            self.trim_sometimes();
        }
    }

    /// What the frame behind an address of the private memory is; `None` for any other address.
    #[inline(always)]
    fn kind(&self, small: &Entered<'_>, addr: VirtAddr) -> Option<FrameKind> {
        let (start, len) = self.private;
        let offset = addr.as_u64().wrapping_sub(start);
        let frame = PhysAddr::new(offset).pfn().filter(|_| offset < len)?;
        Some(small.frame_kind(frame))
    }

    fn areas_inner(&self) -> Option<&Inner> {
        sys::placed(&self.areas)
    }

    /// The allocator of areas, if there is one that can be used.
    fn areas_now(&self) -> Option<Entered<'_>> {
        self.areas_inner().filter(|inner| !inner.is_dead()).map(Inner::enter)
    }

    /// The allocator of areas, made if there is none; `None` if the host has nothing for one.
    fn areas(&self) -> Option<Entered<'_>> {
        self.areas_now().or_else(|| self.make_areas())
    }

    #[cold]
    fn make_areas(&self) -> Option<Entered<'_>> {
        let making = self.making.lock();
        if let Some(made) = self.areas_now() {
            return Some(made);
        }
        let mut config = self.config;
        let made = loop {
            match Hosted::new(&config) {
                Ok(made) => break made,
                Err(_) if config.memory <= MEMORY.0 => return None,
                Err(_) => config = HostConfig::new(config.memory / 2),
            }
        };
        self.areas.store(made.leak(), Ordering::Release);
        drop(making);
        self.areas_now()
    }
}

impl Hosted {
    /// Keeps the allocator for as long as the process lives.
    fn leak(self) -> *mut Inner {
        let this = core::mem::ManuallyDrop::new(self);
        ptr::from_ref::<Inner>(&this.inner).cast_mut()
    }
}

/// Whether a block could be made bigger where it is.
fn is_grown(small: &Entered<'_>, addr: VirtAddr, size: usize) -> bool {
    addr.page_offset() == 0 && small.krealloc_in_place(addr, kept::rounded(size), EASY)
}

/// Keeps an area that its owner has given up, for whoever comes next, or frees it. The caller is inside.
fn keep_area(inner: &Inner, addr: VirtAddr, bytes: usize) -> Result<(), FreeError> {
    loop {
        match inner.kept.push(addr, bytes) {
            Pushed::Kept => return Ok(()),
            Pushed::Twice => return Err(FreeError::DoubleFree(addr)),
            Pushed::TooLarge => return inner.kmem.vfree(addr),
            Pushed::Instead(oldest) => inner.free_area(oldest),
        }
    }
}

/// A size of which `kmalloc` promises this alignment.
fn round_up(size: usize, align: usize) -> Option<usize> {
    let rest = align.checked_sub(1)?;
    Some(size.max(1).checked_add(rest)? & !rest)
}

#[inline(always)]
pub(super) fn pointer(addr: VirtAddr) -> Option<NonNull<u8>> {
    NonNull::new(ptr::with_exposed_provenance_mut(addr.as_u64() as usize))
}

#[inline(always)]
pub(super) fn address(block: NonNull<u8>) -> VirtAddr {
    VirtAddr::new(block.as_ptr().expose_provenance() as u64)
}

/// Makes a heap that lives as long as the process.
pub(super) fn make() -> Result<*mut Heap, HostError> {
    let heap = Placed::new(Heap::new()?).ok_or(HostError::Memory { bytes: size_of::<Heap>() })?;
    Ok(heap.leak())
}
