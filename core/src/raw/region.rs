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
        Self { backing: unsafe { Backing::from_raw_parts(base, len) } }
    }

    /// Allocates a region of `len` bytes from the host's heap.
    #[cfg(any(test, feature = "std"))]
    pub fn heap(len: usize) -> Self {
        Self { backing: Backing::heap(len, 0) }
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
        self.backing.is_unique().then_some(Carver { region: Some(self), at: 0 })
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
}

impl Carver<'_> {
    /// A carver without a region: it counts what a layout needs and gives empty slices.
    pub(crate) fn measuring() -> Carver<'static> {
        Carver { region: None, at: 0 }
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
        let start = self.at.next_multiple_of(align_of::<T>().max(64));
        self.at = start.saturating_add(size_of::<T>().saturating_mul(n));
        let Some(region) = &self.region else { return MetaSlice::empty() };
        if self.at > region.len() {
            return MetaSlice::empty();
        }
        // SAFETY: `start <= self.at <= len`, so the result stays inside the region.
        let first = unsafe { region.backing.base().add(start) }.cast::<T>();
        for i in 0..n {
            // SAFETY: `start + (i + 1) * size_of::<T>() <= self.at`, so the slot is inside the region.
            let slot = unsafe { first.add(i) };
            // SAFETY: the slot is valid for writes and aligned: the base is page aligned and `start` a multiple of
            // `T`'s alignment. No slice of an earlier round exists, and rounds never overlap themselves.
            unsafe { slot.write(init(i)) };
        }
        MetaSlice { first, len: n, _backing: Some(region.backing.clone()), _owns: PhantomData }
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
