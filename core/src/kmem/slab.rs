//! The slab allocator's public calls.

use super::Kmem;
use crate::addr::VirtAddr;
use crate::error::{AllocError, CacheError, CacheId, FreeError};
use crate::gfp::GfpFlags;
use crate::platform::Platform;
use crate::slab::{CacheArgs, Missed};
use core::panic::Location;

impl<P: Platform> Kmem<P> {
    /// Allocates at least `size` bytes, physically contiguous; up to 4 MiB with Linux's orders.
    ///
    /// Size 0 gives [`VirtAddr::ZERO_SIZE`]. A power-of-two size is aligned to itself, any other size to the largest
    /// power of two that divides it, at least 8.
    ///
    /// # Errors
    ///
    /// [`AllocError::TooLarge`] above the largest block; exhaustion otherwise.
    #[inline(always)]
    #[track_caller]
    pub fn kmalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        match self.slab.kmalloc_fast(&self.pages, size, gfp) {
            Ok(addr) => Ok(addr),
            Err(missed) => self.kmalloc_slow(size, gfp, missed),
        }
    }

    #[inline(never)]
    #[track_caller]
    fn kmalloc_slow(&self, size: usize, gfp: GfpFlags, missed: Missed) -> Result<VirtAddr, AllocError> {
        let addr = self.with_reclaim(gfp, || self.slab.kmalloc_slow(&self.pages, size, gfp, missed))?;
        self.slab.stamp(&self.pages, addr, Some(size), Location::caller());
        Ok(addr)
    }

    /// [`Self::kmalloc`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`].
    #[track_caller]
    pub fn kzalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kmalloc(size, gfp | GfpFlags::ZERO)
    }

    /// [`Self::kmalloc`] of `n` elements.
    ///
    /// # Errors
    ///
    /// [`AllocError::Overflow`] if the product wraps; as [`Self::kmalloc`] otherwise.
    #[track_caller]
    pub fn kmalloc_array(&self, n: usize, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kmalloc(n.checked_mul(size).ok_or(AllocError::Overflow)?, gfp)
    }

    /// [`Self::kmalloc_array`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc_array`].
    #[track_caller]
    pub fn kcalloc(&self, n: usize, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kmalloc_array(n, size, gfp | GfpFlags::ZERO)
    }

    /// Changes the size of a block of [`Self::kmalloc`]; it moves if it must, and its contents with it.
    ///
    /// A null or zero-size address is a plain [`Self::kmalloc`]; size 0 frees and gives [`VirtAddr::ZERO_SIZE`].
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`], and [`AllocError::BadAddress`] for an address that is not the start of a live block; the old
    /// block is untouched then.
    #[track_caller]
    pub fn krealloc(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        let new = self.with_reclaim(gfp, || self.slab.krealloc(&self.pages, addr, size, gfp))?;
        if new != addr {
            self.slab.stamp(&self.pages, new, Some(size), Location::caller());
        }
        Ok(new)
    }

    /// Frees a block of [`Self::kmalloc`] or an object of any cache. Null and zero-size addresses are ignored.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    #[inline(always)]
    #[track_caller]
    pub fn kfree(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.kfree(&self.pages, addr)
    }

    /// Wipes the whole usable size of a block, then frees it.
    ///
    /// # Errors
    ///
    /// As [`Self::kfree`]; nothing is wiped then.
    #[track_caller]
    pub fn kfree_sensitive(&self, addr: VirtAddr) -> Result<(), FreeError> {
        let usable = self.ksize(addr)?;
        self.wipe(addr, usable);
        self.kfree(addr)
    }

    /// Returns how many bytes of a block its owner may use, and lets him: a debug cache that keeps the requested size takes
    /// it for that many bytes from now on. 0 for null and zero-size addresses.
    ///
    /// # Errors
    ///
    /// Which misuse freeing it would have been.
    pub fn ksize(&self, addr: VirtAddr) -> Result<usize, FreeError> {
        self.slab.ksize(&self.pages, addr)
    }

    /// Returns how many bytes [`Self::kmalloc`] would really give for `size`; sizes that it refuses are unchanged.
    pub fn kmalloc_size_roundup(&self, size: usize) -> usize {
        self.slab.size_roundup(size)
    }

    /// Makes a cache of objects of one size.
    ///
    /// # Errors
    ///
    /// What is wrong with the arguments, or [`CacheError::TooMany`].
    pub fn kmem_cache_create(&self, name: &str, args: &CacheArgs) -> Result<CacheId, CacheError> {
        self.slab.cache_create(&self.pages, name, args)
    }

    /// Allocates an object.
    ///
    /// # Errors
    ///
    /// [`AllocError::BadFlags`] for zeroed memory of a cache with a constructor or a cache that does not exist;
    /// exhaustion otherwise.
    #[track_caller]
    pub fn kmem_cache_alloc(&self, cache: CacheId, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        let site = Location::caller();
        self.with_reclaim(gfp, || self.slab.cache_alloc(&self.pages, cache, gfp, site))
    }

    /// Frees an object of this cache.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been, another cache's object included; nothing is changed then.
    #[track_caller]
    pub fn kmem_cache_free(&self, cache: CacheId, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.cache_free(&self.pages, cache, addr)
    }

    /// Checks every slab of a debug cache, tells the platform what is damaged, repairs it, and returns how many reports and
    /// repairs that took. Caches without debug flags have nothing to check.
    ///
    /// # Errors
    ///
    /// [`CacheError::Unknown`].
    pub fn kmem_cache_validate(&self, cache: CacheId) -> Result<u32, CacheError> {
        self.slab.cache_validate(&self.pages, cache)
    }

    /// Releases a cache's empty slabs; `true` if no slab is left.
    ///
    /// # Errors
    ///
    /// [`CacheError::Unknown`].
    pub fn kmem_cache_shrink(&self, cache: CacheId) -> Result<bool, CacheError> {
        self.slab.cache_shrink(&self.pages, cache)
    }

    /// Destroys a cache. Linux leaks the memory of a cache with live objects; here it stays as it was.
    ///
    /// # Errors
    ///
    /// [`CacheError::LiveObjects`], [`CacheError::BuiltIn`], [`CacheError::Unknown`].
    pub fn kmem_cache_destroy(&self, cache: CacheId) -> Result<(), CacheError> {
        self.slab.cache_destroy(&self.pages, cache)
    }
}
