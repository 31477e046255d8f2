//! The memory in which the allocator keeps its own state, and typed slices of it.

use super::backing::Backing;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

/// Memory for the allocator's own state: see [`Kmem::metadata_bytes`](crate::Kmem::metadata_bytes).
///
/// One region serves one allocator at a time; [`Kmem::into_parts`](crate::Kmem::into_parts) gives it back.
pub struct MetaRegion {
    backing: Backing,
    /// Whether every byte is zero still.
    zeroed: bool,
}

impl MetaRegion {
    /// Makes a region of memory that the caller owns.
    ///
    /// # Safety
    ///
    /// `base` is page aligned, valid for reads and writes of `len` bytes for as long as the region or an allocator
    /// made from it exists, and nothing else touches those bytes.
    pub unsafe fn from_raw_parts(base: NonNull<u8>, len: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self { backing: unsafe { Backing::from_raw_parts(base, len) }, zeroed: false }
    }

    /// The same with memory all of whose bytes are zero: what starts as zeros is not written, so that fresh pages of a host
    /// that are never used cost nothing.
    ///
    /// # Safety
    ///
    /// As [`Self::from_raw_parts`], and every byte is zero.
    pub unsafe fn from_zeroed_raw_parts(base: NonNull<u8>, len: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self { backing: unsafe { Backing::from_raw_parts(base, len) }, zeroed: true }
    }

    /// Allocates a region of `len` bytes from the host's heap.
    #[cfg(any(test, feature = "std"))]
    pub fn heap(len: usize) -> Self {
        Self { backing: Backing::heap(len, 0), zeroed: false }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.backing.len()
    }

    /// Tells whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts handing out slices; `None` while slices of an earlier round are alive.
    pub(crate) fn carver(&mut self) -> Option<Carver<'_>> {
        let zeroed = core::mem::take(&mut self.zeroed);
        self.backing.is_unique().then_some(Carver { region: Some(self), at: 0, zeroed })
    }
}

/// Words of the region as they are, for a test that takes single writes back.
#[cfg(test)]
impl MetaRegion {
    /// The words before `bytes`, eight bytes each.
    pub(crate) fn words(&self, bytes: usize) -> std::vec::Vec<u64> {
        let count = bytes.min(self.len()) / size_of::<u64>();
        // SAFETY: the word is inside the region and aligned: the base is page aligned. A region of the heap was filled when
        // it was made.
        (0..count).filter_map(|n| self.word(n)).map(|word| unsafe { word.read_volatile() }).collect()
    }

    /// Writes a word; `false` beyond the end. The value is one that the word had: so it is a valid one of each field in it.
    pub(crate) fn put_word(&self, n: usize, value: u64) -> bool {
        let Some(word) = self.word(n) else { return false };
        // SAFETY: the word is inside the region and aligned. The single thread of the test is in no call of the allocator,
        // and holds no reference into a cell of it.
        unsafe { word.write_volatile(value) };
        true
    }

    fn word(&self, n: usize) -> Option<NonNull<u64>> {
        let inside = n < self.len() / size_of::<u64>();
        // SAFETY: only called for a word inside the region.
        inside.then(|| unsafe { self.backing.base().cast::<u64>().add(n) })
    }
}

impl fmt::Debug for MetaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaRegion").field("len", &self.len()).finish()
    }
}

/// Hands out consecutive slices of a region, or only counts their bytes.
pub(crate) struct Carver<'r> {
    region: Option<&'r mut MetaRegion>,
    at: usize,
    /// Whether the bytes that were not carved yet are zero.
    zeroed: bool,
}

/// Values whose bytes may all be zero: that is where their life begins.
///
/// # Safety
///
/// A value of zero bytes is valid.
pub(crate) unsafe trait ZeroBytes {}

// SAFETY: an atomic is as valid as the integer in it.
unsafe impl ZeroBytes for crate::sync::AtomicU8 {}
// SAFETY: the same.
unsafe impl ZeroBytes for crate::sync::AtomicU64 {}
// SAFETY: the same, for each of an array.
unsafe impl<T: ZeroBytes, const N: usize> ZeroBytes for [T; N] {}
// SAFETY: all fields are atomics.
unsafe impl ZeroBytes for crate::page::Page {}

impl Carver<'_> {
    /// A carver without a region: it counts what a layout needs and gives empty slices.
    pub(crate) fn measuring() -> Carver<'static> {
        Carver { region: None, at: 0, zeroed: false }
    }

    /// How many bytes have been asked for.
    pub(crate) fn bytes(&self) -> usize {
        self.at
    }

    /// Carves `n` values on a cache line of their own, each made by `init` from its index.
    ///
    /// Beyond the end of the region the slice is empty; the caller compares [`Self::bytes`] with the region's size.
    pub(crate) fn carve<T>(&mut self, n: usize, mut init: impl FnMut(usize) -> T) -> MetaSlice<T> {
        const { assert!(!core::mem::needs_drop::<T>() && align_of::<T>() <= 4096) };
        let Some((first, backing)) = self.place::<T>(n) else { return MetaSlice::empty() };
        for i in 0..n {
            // SAFETY: the place has room for `n` values.
            let slot = unsafe { first.add(i) };
            // SAFETY: the slot is valid for writes and aligned: the base is page aligned and the place's offset a multiple of
            // `T`'s alignment. No slice of an earlier round exists, and rounds never overlap themselves.
            unsafe { slot.write(init(i)) };
        }
        MetaSlice { first, len: n, _backing: Some(backing), _owns: PhantomData }
    }

    /// Carves `n` values all of whose bytes are zero. Those of a region that is known to be zero are not written.
    pub(crate) fn carve_zeroed<T: ZeroBytes>(&mut self, n: usize) -> MetaSlice<T> {
        const { assert!(!core::mem::needs_drop::<T>() && align_of::<T>() <= 4096) };
        let Some((first, backing)) = self.place::<T>(n) else { return MetaSlice::empty() };
        if !self.zeroed {
            // SAFETY: the place has room for `n` values, and nobody else writes there, as in `carve`.
            unsafe { first.write_bytes(0, n) };
        }
        MetaSlice { first, len: n, _backing: Some(backing), _owns: PhantomData }
    }

    /// Room for `n` values on a cache line of their own; `None` beyond the end, or if nothing but bytes is counted.
    fn place<T>(&mut self, n: usize) -> Option<(NonNull<T>, Backing)> {
        let start = self.at.next_multiple_of(align_of::<T>().max(64));
        #[cfg(test)]
        crate::testing::note_slice::<T>(start);
        self.at = start.saturating_add(size_of::<T>().saturating_mul(n));
        let region = self.region.as_ref().filter(|region| self.at <= region.len())?;
        // SAFETY: `start <= self.at <= len`, so the result stays inside the region.
        let first = unsafe { region.backing.base().add(start) }.cast::<T>();
        Some((first, region.backing.clone()))
    }
}

/// A slice of a region, holding initialised values; keeps the region's memory alive.
pub(crate) struct MetaSlice<T> {
    first: NonNull<T>,
    len: usize,
    _backing: Option<Backing>,
    _owns: PhantomData<T>,
}

impl<T> MetaSlice<T> {
    fn empty() -> Self {
        Self { first: NonNull::dangling(), len: 0, _backing: None, _owns: PhantomData }
    }

    /// Another handle on the same values.
    pub(crate) fn share(&self) -> Self {
        Self { first: self.first, len: self.len, _backing: self._backing.clone(), _owns: PhantomData }
    }
}

impl<T> Deref for MetaSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `carve` initialised `len` values from `first` on, nobody else writes them, and `_backing` keeps the
        // memory alive. An empty slice has a dangling, aligned pointer.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}
