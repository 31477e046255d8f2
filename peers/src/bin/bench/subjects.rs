//! The allocators.

use crate::objects::{self, Objects};
use crate::pages::{Frames, Pages};
use kmem::hosted::KmemAlloc;
use kmem::{CpuId, Geometry, GfpFlags, Hardening, Kmem, MetaRegion, Order, Pfn, PhysMem, Platform, Vpn};
use kmem_harness::adapt::{Heap, Pages as PeerPages, Region};
use kmem_peers::{Bitmap, BuddySystem, BuddySystemFrames, Dlmalloc, GoodMemory, LinkedList, Rlsf, Talc};
use spin::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the region that an allocator of a region has.
const REGION: usize = 256 << 20;

/// What one work came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Nanoseconds of a pair, or of what the work counts.
    pub(crate) nanoseconds: f64,
    /// The share of requests that were refused.
    pub(crate) refused: f64,
}

/// An allocator at work.
pub(crate) trait Subject {
    fn name(&self) -> &'static str;
    /// Whether it is ours.
    fn is_ours(&self) -> bool {
        self.name().starts_with("kmem")
    }
    /// Whether it is no allocator, but the cost of measuring.
    fn is_floor(&self) -> bool {
        self.name().starts_with('(')
    }
    /// The names of what it can do.
    fn works(&self) -> &'static [&'static str];
    /// Which of them make no threads, so that instructions can be counted.
    fn is_counted(&self, work: usize) -> bool;
    /// Does a work once.
    fn run(&self, work: usize) -> Sample;
    /// Does a tenth of a work so many times; returns how many requests were refused.
    fn repeat(&self, work: usize, times: u64) -> u64;
    /// How many pairs that is each time.
    fn pairs(&self, work: usize) -> u64;
}

pub(crate) fn object_subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Objects::new("(floor)", Bump::new())),
        Box::new(Objects::new("kmem, hosted", KmemAlloc::new())),
        Box::new(Objects::new("glibc", System)),
        Box::new(Objects::new("mimalloc", mimalloc::MiMalloc)),
        Box::new(Objects::new("jemalloc", tikv_jemallocator::Jemalloc)),
        Box::new(Objects::new("talc", Locked::<Talc>::new())),
        Box::new(Objects::new("rlsf", Locked::<Rlsf>::new())),
        Box::new(Objects::new("dlmalloc", Locked::<Dlmalloc>::new())),
        Box::new(Objects::new("good_memory_allocator", Locked::<GoodMemory>::new())),
        Box::new(Objects::new("linked_list_allocator", Locked::<LinkedList>::new())),
        Box::new(Objects::new("buddy_system_allocator", Locked::<BuddySystem>::new())),
    ]
}

pub(crate) fn page_subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Pages::new("(floor)", || NoFrames(AtomicUsize::new(0)))),
        Box::new(Pages::new("kmem", || machine(Hardening::Checked))),
        Box::new(Pages::new("kmem, hardening off", || machine(Hardening::Off))),
        Box::new(Pages::new("bitmap-allocator", LockedFrames::<Bitmap>::new)),
        Box::new(Pages::new("buddy_system_allocator", LockedFrames::<BuddySystemFrames>::new)),
    ]
}

/// No allocator: addresses one after the other, over and over. Its time is that of the measuring.
pub(crate) struct Bump {
    memory: usize,
    next: AtomicUsize,
}

impl Bump {
    fn new() -> Self {
        Self { memory: objects::host_memory(REGION).as_ptr().cast::<u8>() as usize, next: AtomicUsize::new(0) }
    }
}

// SAFETY: every address is one of the memory, which nothing else uses. Blocks overlap after a round: the works write to them
// and do not rely on what they read.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let step = layout.size().next_multiple_of(16);
        let at = self.next.load(Ordering::Relaxed);
        let at = if at + step > REGION { 0 } else { at };
        self.next.store(at + step, Ordering::Relaxed);
        ptr::with_exposed_provenance_mut(self.memory + at)
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    unsafe fn realloc(&self, block: *mut u8, _: Layout, _: usize) -> *mut u8 {
        block
    }
}

/// An allocator of a region behind a spin lock, as its users have it.
pub(crate) struct Locked<H>(Mutex<Owned<H>>);

/// A heap that threads use one at a time.
struct Owned<H>(H);

// SAFETY: a heap has nothing of the thread that made it: its memory is its own.
unsafe impl<H> Send for Owned<H> {}

impl<H: Region> Locked<H> {
    fn new() -> Self {
        // SAFETY: the memory is used by nobody else, and stays for ever.
        let heap = unsafe { H::over(objects::host_memory(REGION)) };
        let heap = heap.unwrap_or_else(|| unreachable!("{REGION} bytes are enough for every allocator"));
        Self(Mutex::new(Owned(heap)))
    }
}

// SAFETY: each call has the heap for itself, and passes the caller's promises on.
unsafe impl<H: Heap> GlobalAlloc for Locked<H> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same condition.
        unsafe { self.0.lock().0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the same condition.
        unsafe { self.0.lock().0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the same condition.
        let resized = unsafe { self.0.lock().0.realloc(block, layout, size) };
        resized.unwrap_or_else(|| {
            // SAFETY: the alignment is one that a block has, and sizes of the works do not overflow.
            let to = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
            // SAFETY: the size is not zero.
            let new = unsafe { self.alloc(to) };
            if !new.is_null() {
                // SAFETY: both have the smaller size, and the new one is nobody else's.
                unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
                // SAFETY: the block is the caller's, who gives it up.
                unsafe { self.dealloc(block, layout) };
            }
            new
        })
    }
}

/// A machine of one CPU without anything that a simulation costs.
struct OneCpu(PhysMem);

impl Platform for OneCpu {
    fn memory(&self) -> &PhysMem {
        &self.0
    }

    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }

    fn flush_tlb(&self, _: Vpn, _: u64) {}
}

fn machine(hardening: Hardening) -> impl Frames {
    let mut geometry = Geometry::flat(crate::pages::FRAMES);
    geometry.hardening = hardening;
    let bytes = Kmem::<OneCpu>::metadata_bytes(&geometry);
    let memory = PhysMem::heap(crate::pages::FRAMES, 0);
    let made = bytes.and_then(|bytes| Kmem::new(OneCpu(memory), &geometry, MetaRegion::heap(bytes)));
    made.unwrap_or_else(|error| unreachable!("the machine is sound: {error}"))
}

impl Frames for Kmem<OneCpu> {
    fn alloc(&self, order: u8) -> Option<usize> {
        let page = self.alloc_pages(Order::new(order)?, GfpFlags::KERNEL | GfpFlags::NOWARN).ok()?;
        Some(page.as_u32() as usize)
    }

    fn free(&self, first: usize, order: u8) {
        let freed = Order::new(order).map(|order| self.free_pages(Pfn::new(first as u32), order));
        debug_assert_eq!(freed, Some(Ok(())));
    }
}

/// An allocator of frames behind a spin lock.
struct LockedFrames<P>(Mutex<P>);

impl<P: PeerPages> LockedFrames<P> {
    fn new() -> Self {
        Self(Mutex::new(P::new(crate::pages::FRAMES as usize)))
    }
}

impl<P: PeerPages> Frames for LockedFrames<P> {
    fn alloc(&self, order: u8) -> Option<usize> {
        self.0.lock().alloc(order)
    }

    fn free(&self, first: usize, order: u8) {
        self.0.lock().free(first, order);
    }
}

/// No allocator of frames.
struct NoFrames(AtomicUsize);

impl Frames for NoFrames {
    fn alloc(&self, order: u8) -> Option<usize> {
        let at = self.0.load(Ordering::Relaxed);
        self.0.store((at + (1 << order)) % crate::pages::FRAMES as usize, Ordering::Relaxed);
        Some(at)
    }

    fn free(&self, _: usize, _: u8) {}
}
