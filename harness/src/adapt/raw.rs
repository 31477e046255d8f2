//! The only unsafe code of the harness but for the tests beside it and a write in `subjects/hosted/`: real memory, and calls to allocators that are handed raw pointers.
//!
//! An allocator under test may be wrong in every way. What it answers is therefore looked at before it is used: a block that
//! does not lie in the memory that the allocator was given is reported and never touched. What cannot be prevented is that
//! the allocator itself writes elsewhere; the commands run subjects like this in a process of their own.
#![allow(unsafe_code)]

use super::{Grant, Placed, Reuse};
use std::alloc::{GlobalAlloc, Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::{self, NonNull};

/// What memory holds before anybody writes it: not zero, so that a missing zeroing shows.
const JUNK: u8 = 0xa5;
/// What the bytes around the memory hold.
const CANARY: u8 = 0xc3;
/// So many bytes on each side are nobody's.
const MARGIN: usize = 4096;
/// Bytes behind a small region that must stay as they are.
const BEHIND: usize = 256;
/// The largest alignment of memory: no heap promises more.
const MOST_ALIGNED: usize = 1 << 30;

/// An allocator of blocks of any size and alignment; [`Region`] says how it gets its memory, if it brings none.
///
/// Whatever implements [`GlobalAlloc`] and [`Default`] is one by itself, through [`Global`].
pub trait Heap {
    /// What becomes of memory that was freed.
    const REUSE: Reuse = Reuse::Modest;
    /// Larger blocks, and blocks of a larger alignment, are never asked for.
    const LARGEST: usize = usize::MAX;

    /// Allocates a block; null is a refusal.
    ///
    /// # Safety
    ///
    /// The layout has a size above zero.
    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8;

    /// Frees a block.
    ///
    /// # Safety
    ///
    /// The block was given by this allocator for this layout and was not freed.
    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout);

    /// Allocates a block of zeros; `None` if the allocator has no such call, and the harness zeroes the block itself.
    ///
    /// # Safety
    ///
    /// As for [`Self::alloc`].
    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        let _ = layout;
        None
    }

    /// Resizes a block; null is a refusal and leaves the block as it was. `None` if the allocator has no such call, and the
    /// harness allocates, copies and frees itself.
    ///
    /// # Safety
    ///
    /// As for [`Self::dealloc`]; the new size is above zero, and with the alignment of the layout it makes a valid layout.
    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        let _ = (block, layout, new_size);
        None
    }
}

/// A heap in memory that it is given.
pub trait Region: Heap + Sized {
    /// Sizes of regions that it has to live in besides ordinary ones, or refuse, by `None` or by a panic: too
    /// small for anything, or nearly so.
    const SMALL: &'static [usize] = &[];

    /// Makes a heap of this memory; `None` if it is too small.
    ///
    /// # Safety
    ///
    /// The memory is the heap's alone for as long as the heap lives.
    unsafe fn over(memory: NonNull<[u8]>) -> Option<Self>;
}

/// An allocator that implements [`GlobalAlloc`] and brings its own memory.
#[derive(Default)]
pub struct Global<T>(pub T);

impl<T: GlobalAlloc> Heap for Global<T> {
    /// The harness does not want to fill the machine's memory.
    const LARGEST: usize = 1 << 22;

    unsafe fn alloc(&mut self, layout: Layout) -> *mut u8 {
        // SAFETY: the same condition.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&mut self, block: *mut u8, layout: Layout) {
        // SAFETY: the same condition.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&mut self, layout: Layout) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { self.0.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&mut self, block: *mut u8, layout: Layout, new_size: usize) -> Option<*mut u8> {
        // SAFETY: the same condition.
        Some(unsafe { self.0.realloc(block, layout, new_size) })
    }
}

/// Real memory with bytes on both sides that nobody may change.
///
/// ```text
/// R1  start..start + layout.size() is one allocation, all of it initialised
/// R2  base = start + layout.align(), and base + len + MARGIN <= start + layout.size()
/// ```
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    base: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// Allocates `len` bytes aligned to the power of two above them, all of them junk.
    pub(super) fn new(len: usize) -> Self {
        let align = len.next_power_of_two().clamp(MARGIN, MOST_ALIGNED);
        let layout = Layout::from_size_align(align + len + MARGIN, align).unwrap_or_else(|_| Layout::new::<[u8; 1]>());
        // SAFETY: the size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: R1, the allocation is `align` bytes longer than what follows.
        let base = unsafe { start.add(align) };
        let memory = Self { start, layout, base, len };
        // SAFETY: R1 and R2; the bytes below the margin are initialised too, once.
        unsafe { start.write_bytes(CANARY, align) };
        memory.reset();
        memory
    }

    /// Makes every byte junk again.
    pub(super) fn reset(&self) {
        // SAFETY: R2.
        unsafe { self.base.write_bytes(JUNK, self.len) };
        // SAFETY: R2, the margin is at least so long on this side.
        unsafe { self.at(-(MARGIN as isize)).write_bytes(CANARY, MARGIN) };
        // SAFETY: R2.
        unsafe { self.at(self.len as isize).write_bytes(CANARY, MARGIN) };
    }

    /// The address so many bytes from the start.
    fn at(&self, offset: isize) -> *mut u8 {
        self.base.as_ptr().wrapping_offset(offset)
    }

    /// Bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Where a block lies in the memory; `None` unless it does with all its bytes.
    fn offset_of(&self, block: *mut u8, bytes: usize) -> Option<usize> {
        let offset = (block as usize).checked_sub(self.base.as_ptr() as usize)?;
        (offset.checked_add(bytes)? <= self.len).then_some(offset)
    }

    /// The first byte around the memory that was changed, as its distance from the memory's start.
    fn trespass(&self) -> Option<isize> {
        let at = |offset: isize| {
            // SAFETY: both margins are part of the allocation, by R2.
            unsafe { self.at(offset).read_volatile() }
        };
        let (margin, len) = (MARGIN as isize, self.len as isize);
        (-margin..0).chain(len..len + margin).find(|&offset| at(offset) != CANARY)
    }

    /// The memory from its start on.
    fn slice(&self, len: usize) -> NonNull<[u8]> {
        NonNull::slice_from_raw_parts(self.base, len.min(self.len))
    }

    /// Makes a heap of each small region in turn and looks at the bytes behind.
    fn try_small<A: Region>(&self) -> Option<String> {
        let fits = |bytes: &&usize| bytes.checked_add(BEHIND).is_some_and(|end| end <= self.len);
        let wrong = A::SMALL.iter().filter(fits).find_map(|&bytes| {
            self.reset();
            // SAFETY: the last heap is gone, and nobody else uses the memory.
            let make = || drop(unsafe { A::over(self.slice(bytes)) });
            // Where it is documented a panic is a refusal like any other.
            drop(crate::run::catch_panic(make));
            // SAFETY: R2, and the region with what is looked at behind it fits the memory.
            let changed = |&n: &usize| unsafe { self.at(n as isize).read_volatile() } != JUNK;
            let behind = (bytes..bytes + BEHIND).find(changed)?;
            Some(format!("a heap in a region of {bytes} bytes changed the byte {} behind its end", behind - bytes))
        });
        self.reset();
        wrong
    }
}

impl Memory {
    /// The largest block that a heap in this memory gives first; each question is put to a new heap.
    fn largest<A: Region>(&self) -> usize {
        largest(self.len.min(A::LARGEST), |bytes| {
            // SAFETY: the last heap is gone, and nobody else uses the memory.
            let heap = unsafe { A::over(self.slice(self.len)) };
            let (Some(mut heap), Ok(layout)) = (heap, Layout::from_size_align(bytes, size_of::<u64>())) else {
                return false;
            };
            // SAFETY: the size is not zero, since least < most.
            !unsafe { heap.alloc(layout) }.is_null()
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: R1.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// The largest number of bytes, up to a limit and to the word, that can be had.
fn largest(limit: usize, mut can_have: impl FnMut(usize) -> bool) -> usize {
    let words = |n: usize| n * size_of::<u64>();
    let (mut least, mut most) = (0, limit / size_of::<u64>());
    while least < most {
        let middle = (least + most).div_ceil(2);
        if can_have(words(middle)) { least = middle } else { most = middle - 1 }
    }
    words(least)
}

/// A heap, its memory, and the blocks that it gave.
///
/// ```text
/// S1  every block in `live` was given by `heap` for its layout and was not freed since
/// S2  with `memory`, every block in `live` lies in it
/// ```
pub(super) struct Seat<A> {
    // Dropped before the memory that it is in.
    heap: A,
    memory: Option<Memory>,
    /// By the address under which the model knows them.
    live: BTreeMap<u64, Placed>,
    /// The address at which the model sees the start of the memory.
    origin: u64,
    /// The largest block of the heap when it was new, if it promises to have it again.
    whole: usize,
    /// What was wrong before the first call.
    stillborn: Option<String>,
}

impl<A: Heap + Default> Seat<A> {
    /// Seats a heap that has memory of its own; the model sees real addresses.
    pub(super) fn hosted() -> Self {
        Self { heap: A::default(), memory: None, live: BTreeMap::new(), origin: 0, whole: 0, stillborn: None }
    }
}

impl<A: Region> Seat<A> {
    /// Seats a heap in memory that the model sees at `origin`; `None` if the heap does not want it.
    pub(super) fn within(memory: Memory, origin: u64) -> Option<Self> {
        memory.reset();
        let stillborn = memory.try_small::<A>();
        let whole = if A::REUSE == Reuse::Whole { memory.largest::<A>() } else { 0 };
        memory.reset();
        // SAFETY: no other heap is left in the memory, and the seat keeps it for as long as the heap.
        let heap = unsafe { A::over(memory.slice(memory.len())) }?;
        Some(Self { heap, memory: Some(memory), live: BTreeMap::new(), origin, whole, stillborn })
    }
}

impl<A: Heap> Seat<A> {
    /// Allocates a block.
    pub(super) fn alloc(&mut self, layout: Layout, zeroed: bool) -> Grant {
        // SAFETY: the size is not zero, as the callers see to.
        let own = if zeroed { unsafe { self.heap.alloc_zeroed(layout) } } else { None };
        // SAFETY: the same.
        let block = own.unwrap_or_else(|| unsafe { self.heap.alloc(layout) });
        let grant = self.admit(block, layout);
        if let Grant::Block(addr) = grant
            && zeroed
            && own.is_none()
        {
            self.fill(addr, 0, layout.size());
        }
        grant
    }

    /// Notes a block if it may be used at all.
    fn admit(&mut self, block: *mut u8, layout: Layout) -> Grant {
        if block.is_null() {
            return Grant::Refused;
        }
        let Some(addr) = self.address(block, layout.size()) else {
            let base = self.memory.as_ref().map_or(0, |memory| memory.base.as_ptr() as u64);
            return Grant::Outside(self.origin.wrapping_add((block as u64).wrapping_sub(base)));
        };
        self.live.insert(addr, Placed { block, layout });
        Grant::Block(addr)
    }

    /// The address of a block for the model; `None` if the block lies where no block can.
    fn address(&self, block: *mut u8, bytes: usize) -> Option<u64> {
        match &self.memory {
            Some(memory) => Some(self.origin + memory.offset_of(block, bytes)? as u64),
            None => super::may_be_real(block as u64, bytes).then_some(block as u64),
        }
    }

    /// Frees a block; `false` if there is none.
    pub(super) fn free(&mut self, addr: u64) -> bool {
        let Some(Placed { block, layout }) = self.live.remove(&addr) else { return false };
        // SAFETY: S1.
        unsafe { self.heap.dealloc(block, layout) };
        true
    }

    /// The layout of a live block.
    pub(super) fn layout(&self, addr: u64) -> Option<Layout> {
        Some(self.live.get(&addr)?.layout)
    }

    /// Resizes a live block by the heap's own call, which keeps the alignment; `None` if it has none.
    pub(super) fn realloc(&mut self, addr: u64, new_size: usize) -> Option<Grant> {
        let Placed { block, layout } = *self.live.get(&addr)?;
        let new_layout = Layout::from_size_align(new_size, layout.align()).ok()?;
        // SAFETY: S1, and the new layout is valid; the callers see to it that the size is not zero.
        let new = unsafe { self.heap.realloc(block, layout, new_size) }?;
        if !new.is_null() {
            self.live.remove(&addr);
        }
        Some(self.admit(new, new_layout))
    }

    /// Copies the first bytes of a live block to another one, which may overlap it.
    pub(super) fn copy(&mut self, from: u64, to: u64, bytes: usize) {
        let (Some(from), Some(to)) = (self.live.get(&from), self.live.get(&to)) else { return };
        let bytes = bytes.min(from.layout.size()).min(to.layout.size());
        // SAFETY: both blocks have so many bytes, by S1 and S2.
        unsafe { ptr::copy(from.block, to.block, bytes) };
    }

    /// Writes zeros to a part of a live block.
    pub(super) fn fill(&mut self, addr: u64, from: usize, to: usize) {
        let Some(placed) = self.live.get(&addr).filter(|placed| from <= to && to <= placed.layout.size()) else {
            return;
        };
        // SAFETY: the part lies in the block.
        let start = unsafe { placed.block.add(from) };
        // SAFETY: the same; S1 and S2.
        unsafe { start.write_bytes(0, to - from) };
    }

    /// Where bytes of the heap's are: anywhere in its memory, or in a live block if it brings its own.
    fn locate(&self, addr: u64, bytes: usize) -> Option<*mut u8> {
        if let Some(memory) = &self.memory {
            let offset = usize::try_from(addr.checked_sub(self.origin)?).ok()?;
            // SAFETY: R2, since all of it lies in the memory.
            return (offset.checked_add(bytes)? <= memory.len).then(|| unsafe { memory.base.as_ptr().add(offset) });
        }
        let (&start, placed) = self.live.range(..=addr).next_back()?;
        let offset = usize::try_from(addr - start).ok()?;
        // SAFETY: the bytes lie in a live block, S1.
        (offset.checked_add(bytes)? <= placed.layout.size()).then(|| unsafe { placed.block.add(offset) })
    }

    /// Tells whether a block may lie here.
    pub(super) fn holds(&self, addr: u64, bytes: usize) -> bool {
        match &self.memory {
            Some(_) => self.locate(addr, bytes).is_some(),
            None => super::may_be_real(addr, bytes),
        }
    }

    /// Reads; `false` if the address is not the heap's.
    pub(super) fn read(&self, addr: u64, into: &mut [u8]) -> bool {
        let Some(from) = self.locate(addr, into.len()) else { return false };
        // SAFETY: `from` has so many bytes, and nobody else's reference is about them.
        unsafe { ptr::copy(from, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Writes; `false` if the address is not the heap's.
    pub(super) fn write(&mut self, addr: u64, from: &[u8]) -> bool {
        let Some(to) = self.locate(addr, from.len()) else { return false };
        // SAFETY: `to` has so many bytes, and nobody else's reference is about them.
        unsafe { ptr::copy(from.as_ptr(), to, from.len()) };
        true
    }

    /// What was changed that is not the heap's.
    pub(super) fn trespass(&self) -> Option<String> {
        if self.stillborn.is_some() {
            return self.stillborn.clone();
        }
        let memory = self.memory.as_ref()?;
        let at = memory.trespass()?;
        let len = memory.len;
        Some(match usize::try_from(at) {
            Ok(at) => format!("the byte {} behind the end of the heap's {len} bytes was changed", at - len),
            Err(_) => format!("the byte {} before the heap's {len} bytes was changed", -at),
        })
    }

    /// What of the memory cannot be had again although nothing is live.
    pub(super) fn lost(&mut self) -> Option<String> {
        let whole = self.whole;
        if whole == 0 || self.can_have(whole) {
            return None;
        }
        let now = self.largest();
        Some(format!("a new heap gave a block of {whole} bytes; with everything freed the largest is {now} bytes"))
    }

    /// The largest block that is to be had, to the word.
    fn largest(&mut self) -> usize {
        let len = self.memory.as_ref().map_or(0, Memory::len);
        largest(len.min(A::LARGEST), |bytes| self.can_have(bytes))
    }

    /// Tells whether a block is to be had now; it is given back at once.
    fn can_have(&mut self, bytes: usize) -> bool {
        let Ok(layout) = Layout::from_size_align(bytes, size_of::<u64>()) else { return false };
        match if bytes > 0 { self.alloc(layout, false) } else { Grant::Refused } {
            Grant::Block(addr) => self.free(addr),
            Grant::Outside(_) | Grant::Refused => false,
        }
    }

    /// Ends the heap and returns its memory.
    pub(super) fn into_memory(self) -> Option<Memory> {
        let Self { heap, memory, .. } = self;
        drop(heap);
        memory
    }
}
