//! The allocator of a whole program.

use super::heap::{self, Heap};
use super::{Inner, cpus, fork, sys};
use crate::addr::VirtAddr;
use crate::error::FreeError;
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use core::alloc::{GlobalAlloc, Layout};
use core::fmt::{self, Write as _};
use core::ptr::{self, NonNull};

/// What the making of the heap has come to.
const NOT_BEGUN: u32 = 0;
const UNDER_WAY: u32 = 1;
const MADE: u32 = 2;

/// The allocator as the one of a whole program.
///
/// Blocks of up to 4 MiB are contiguous, in private memory; larger ones are areas, which grow by remapping. It makes itself at the first call, without allocating; it can be used before and after `main`, while
/// thread-local values are dropped, and in a fork's child. A wrong free ends the process with a message that names it.
///
/// # Examples
///
/// ```
/// use kmem::hosted::KmemAlloc;
///
/// #[global_allocator]
/// static ALLOCATOR: KmemAlloc = KmemAlloc::new();
///
/// let words: Vec<String> = (0..100).map(|n| n.to_string()).collect();
/// assert!(ALLOCATOR.usable_size(words[7].as_ptr().cast_mut()).is_ok_and(|bytes| bytes >= 1));
/// ```
pub struct KmemAlloc {
    /// The part of the heap whose fast paths threads may take without entering; null if there is none, or not yet.
    front: AtomicPtr<Inner>,
    heap: AtomicPtr<Heap>,
    state: AtomicU32,
}

impl Default for KmemAlloc {
    fn default() -> Self {
        Self::new()
    }
}

impl KmemAlloc {
    /// An allocator that has nothing yet. Each value is one of its own; what it took from the host it never gives up.
    pub const fn new() -> Self {
        let (front, heap) = (AtomicPtr::new(ptr::null_mut()), AtomicPtr::new(ptr::null_mut()));
        Self { front, heap, state: AtomicU32::new(NOT_BEGUN) }
    }

    /// Allocates at least `size` bytes at a multiple of `align`, all zeros if they shall be; size 0 counts as 1. `None` if there
    /// is no memory, or the alignment is no power of two.
    #[inline(always)]
    pub fn allocate(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        if align.is_power_of_two() { self.allocate_valid(size, align, zeroed) } else { None }
    }

    /// The same with an alignment that is a power of two.
    #[inline(always)]
    fn allocate_valid(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        if let Some((inner, cpu)) = cpus::front(&self.front)
            && let Some(addr) = inner.kmem.kmalloc_fast(cpu, round_up(size, align))
        {
            return zeroed_block(heap::pointer(addr), zeroed, size);
        }
        self.allocate_other(size, align, zeroed)
    }

    /// What is not of a usual size, or not at hand.
    #[inline(never)]
    fn allocate_other(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        if let Some((inner, cpu)) = cpus::front(&self.front)
            && let Some(addr) = inner.kmem.kmalloc_any_fast(cpu, round_up(size, align))
        {
            return zeroed_block(heap::pointer(addr), zeroed, size);
        }
        self.allocate_slow(size, align, zeroed)
    }

    #[cold]
    #[inline(never)]
    fn allocate_slow(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        self.heap()?.allocate(size, align, zeroed)
    }

    /// Takes a block back; null is ignored.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    #[inline(always)]
    pub fn release(&self, block: *mut u8) -> Result<(), FreeError> {
        let addr = VirtAddr::new(block.expose_provenance() as u64);
        match cpus::front(&self.front) {
            Some((inner, cpu)) if inner.kmem.kfree_fast(cpu, addr) => Ok(()),
            _ => self.release_other(block),
        }
    }

    /// Takes a block back; null is ignored. A wrong free ends the process, as [`Self::refuse`] does: a program that frees
    /// wrongly once has no state that can be relied on.
    #[inline(always)]
    pub fn free(&self, block: *mut u8) {
        let addr = VirtAddr::new(block.expose_provenance() as u64);
        match cpus::front(&self.front) {
            Some((inner, cpu)) if inner.kmem.kfree_fast(cpu, addr) => (),
            _ => self.free_other(block),
        }
    }

    #[inline(never)]
    fn free_other(&self, block: *mut u8) {
        if let Err(error) = self.release_other(block) {
            refuse(error);
        }
    }

    /// Takes back what is no object of the usual kind.
    #[inline(never)]
    fn release_other(&self, block: *mut u8) -> Result<(), FreeError> {
        let Some(block) = NonNull::new(block) else { return Ok(()) };
        let addr = heap::address(block);
        match cpus::front(&self.front) {
            Some((inner, cpu)) if inner.kmem.kfree_any_fast(cpu, addr) => Ok(()),
            _ => self.release_slow(block),
        }
    }

    #[cold]
    #[inline(never)]
    fn release_slow(&self, block: NonNull<u8>) -> Result<(), FreeError> {
        match self.heap() {
            Some(heap) => heap.release(block),
            None => Err(FreeError::Foreign(heap::address(block))),
        }
    }

    /// Changes the size of a block, which moves if it must, its contents with it, to a multiple of `align`. `None` leaves the
    /// block as it is: there is no memory, or it is none of this allocator's.
    pub fn resize(&self, block: NonNull<u8>, size: usize, align: usize) -> Option<NonNull<u8>> {
        if !align.is_power_of_two() {
            return None;
        }
        self.heap()?.resize(block, size.max(1), align)
    }

    /// How many bytes of a block its owner may use.
    ///
    /// # Errors
    ///
    /// Which misuse freeing it would have been.
    pub fn usable_size(&self, block: *mut u8) -> Result<usize, FreeError> {
        let foreign = FreeError::Foreign(VirtAddr::new(block as u64));
        match (NonNull::new(block), self.heap()) {
            (Some(block), Some(heap)) => heap.usable(block),
            _ => Err(foreign),
        }
    }

    /// Gives free memory back to the host; returns how many pages. It is done now and then by itself too.
    pub fn trim(&self) -> u64 {
        self.heap().map_or(0, Heap::trim)
    }

    /// What the host did for large areas so far.
    pub fn host_counts(&self) -> super::HostCounts {
        self.heap().map(Heap::host_counts).unwrap_or_default()
    }

    /// Ends the process with a message that names a wrong free: a program that frees wrongly once has no state that can be
    /// relied on.
    pub fn refuse(error: FreeError) -> ! {
        refuse(error)
    }

    /// What the auditor says of the small blocks. Nobody else may be inside.
    #[cfg(test)]
    pub(super) fn audit(&self) -> Result<(), crate::Violation> {
        self.heap().map_or(Ok(()), Heap::audit)
    }

    #[inline(always)]
    fn heap(&self) -> Option<&Heap> {
        match sys::placed(&self.heap) {
            Some(heap) => Some(heap),
            None => self.heap_slow(),
        }
    }

    #[cold]
    #[inline(never)]
    fn heap_slow(&self) -> Option<&Heap> {
        if self.state.compare_exchange(NOT_BEGUN, UNDER_WAY, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.make();
        }
        while self.state.load(Ordering::Acquire) == UNDER_WAY {
            sys::yield_now();
        }
        sys::placed(&self.heap)
    }

    /// Makes the heap; if that fails, the next call tries again. Whoever is called then may allocate already.
    fn make(&self) {
        match heap::make() {
            Ok(heap) => {
                self.heap.store(heap, Ordering::Release);
                self.state.store(MADE, Ordering::Release);
                fork::register();
                if let Some(heap) = sys::placed(&self.heap) {
                    self.front.store(heap.open_front(), Ordering::Release);
                }
            }
            Err(error) => {
                tell(format_args!("kmem: {error}\n"));
                self.state.store(NOT_BEGUN, Ordering::Release);
            }
        }
    }
}

impl fmt::Debug for KmemAlloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = self.state.load(Ordering::Relaxed) == MADE;
        f.debug_struct("KmemAlloc").field("made", &made).finish_non_exhaustive()
    }
}

// SAFETY: blocks that are live do not overlap, have the size and the alignment that was asked for, and stay until they are
// released; no call unwinds.
unsafe impl GlobalAlloc for KmemAlloc {
    // As short as a call of C's `malloc` has to be; to repeat it wherever a program allocates would not make it faster.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        or_null(self.allocate_valid(layout.size(), layout.align(), false))
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        self.free(block);
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        or_null(self.allocate_valid(layout.size(), layout.align(), true))
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        or_null(NonNull::new(block).and_then(|block| self.resize(block, size, layout.align())))
    }
}

/// A size whose blocks have this alignment, a power of two; every block has 8. What wraps becomes 0, which no fast path serves.
#[inline(always)]
fn round_up(size: usize, align: usize) -> usize {
    if align <= 8 { size } else { size.wrapping_add(align - 1) & !(align - 1) }
}

#[inline(always)]
fn zeroed_block(block: Option<NonNull<u8>>, zeroed: bool, size: usize) -> Option<NonNull<u8>> {
    if zeroed {
        block.iter().for_each(|block| sys::zero_block(*block, size));
    }
    block
}

#[inline(always)]
fn or_null(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Ends the process: a program that frees wrongly once has no state that can be relied on.
#[cold]
#[inline(never)]
pub(super) fn refuse(error: FreeError) -> ! {
    let mut text = Text { bytes: [0; 160], len: 0 };
    let _cut = writeln!(text, "kmem: wrong free: {error}");
    sys::die(text.bytes.get(..text.len).unwrap_or_default())
}

/// Writes a line to the standard error output.
#[cold]
fn tell(message: fmt::Arguments<'_>) {
    let mut text = Text { bytes: [0; 160], len: 0 };
    let _cut = text.write_fmt(message);
    sys::write_error(text.bytes.get(..text.len).unwrap_or_default());
}

/// A line of text that is made without allocating; what does not fit is cut off.
struct Text {
    bytes: [u8; 160],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let fits = text.len().min(room.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.len += fits;
        Ok(())
    }
}
