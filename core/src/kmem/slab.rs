//! The slab allocator's public calls.

use super::Kmem;
use crate::addr::VirtAddr;
use crate::error::{AllocError, CacheError, CacheId, FreeError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
#[cfg(feature = "std")]
use crate::platform::CpuId;
use crate::platform::Platform;
use crate::slab::{CacheArgs, Destroyed, LeakedObject, Missed, PrefilledSheaf};
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
        match self.slab.kmalloc_fast(&self.pages, self.platform().cpu(), size, gfp) {
            Ok(addr) => Ok(addr),
            Err(missed) => self.kmalloc_slow(size, gfp, missed),
        }
    }

    /// The first step of [`Self::kmalloc`] for ordinary memory, by a caller that knows the number of its CPU; `None` if the
    /// rest is needed, [`Self::kmalloc_any_fast`].
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn kmalloc_fast(&self, cpu: CpuId, size: usize) -> Option<VirtAddr> {
        self.slab.kmalloc_fastest(&self.pages, cpu, size)
    }

    /// The second step, for objects of any size; `None` if the rest is needed, [`Self::kmalloc_after_miss`].
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn kmalloc_any_fast(&self, cpu: CpuId, size: usize) -> Option<VirtAddr> {
        self.slab.kmalloc_fast(&self.pages, cpu, size, GfpFlags::KERNEL).ok()
    }

    /// [`Self::kmalloc`] without its first steps.
    #[cfg(feature = "std")]
    #[track_caller]
    pub(crate) fn kmalloc_after_miss(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kmalloc_slow(size, gfp, Missed::NotAsked)
    }

    /// The first step of [`Self::kfree`], by a caller that knows the number of its CPU; `false` if the rest is needed,
    /// [`Self::kfree`].
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn kfree_fast(&self, cpu: CpuId, addr: VirtAddr) -> bool {
        self.slab.kfree_fast(&self.pages, cpu, addr)
    }

    /// The second step of [`Self::kfree`], for objects of any kind.
    #[cfg(feature = "std")]
    #[inline(always)]
    pub(crate) fn kfree_any_fast(&self, cpu: CpuId, addr: VirtAddr) -> bool {
        self.slab.kfree_other(&self.pages, cpu, addr)
    }

    /// Stops the fast paths of a CPU: none begins after the next heavy fence.
    #[cfg(feature = "std")]
    pub(crate) fn close_cpu(&self, cpu: CpuId) {
        self.slab.close_cpu(cpu, self.platform());
    }

    /// Waits until none is under way there.
    #[cfg(feature = "std")]
    pub(crate) fn wait_for_cpu(&self, cpu: CpuId) {
        self.slab.wait_for_cpu(cpu, self.platform());
    }

    /// They may begin again.
    #[cfg(feature = "std")]
    pub(crate) fn open_cpu(&self, cpu: CpuId) {
        self.slab.open_cpu(cpu);
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn kmalloc_slow(&self, size: usize, gfp: GfpFlags, missed: Missed) -> Result<VirtAddr, AllocError> {
        let mut missed = missed;
        // The plan is asked once per request, not once per attempt.
        let mut once = || core::mem::replace(&mut missed, Missed::Empty);
        let addr = self.with_reclaim(gfp, |gfp| self.slab.kmalloc_slow(&self.pages, size, gfp, once()))?;
        self.slab.stamp(&self.pages, addr, Some(size), Location::caller());
        Ok(addr)
    }

    /// [`Self::kmalloc`] from the memory of `node`; if that has none to give, from the nearest that has, unless the flags
    /// say [`THISNODE`](GfpFlags::THISNODE). Without a node it is a plain [`Self::kmalloc`].
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`].
    #[track_caller]
    pub fn kmalloc_node(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        let Some(node) = node else { return self.kmalloc(size, gfp) };
        let addr = self.with_reclaim_on(gfp, Some(node), |gfp| self.slab.kmalloc_node(&self.pages, size, gfp, node))?;
        self.slab.stamp(&self.pages, addr, Some(size), Location::caller());
        Ok(addr)
    }

    /// Allocates at most 8 KiB in any context, also in one that interrupted the allocator: it waits for nothing and fails
    /// instead. Of the flags, [`ZERO`](GfpFlags::ZERO), [`ACCOUNT`](GfpFlags::ACCOUNT) and
    /// [`THISNODE`](GfpFlags::THISNODE) are accepted.
    ///
    /// # Errors
    ///
    /// [`AllocError::WouldBlock`] if what would have served is in use, [`AllocError::BadFlags`] for other flags,
    /// [`AllocError::TooLarge`] above the largest class, [`AllocError::NoPages`].
    pub fn kmalloc_nolock(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        self.slab.kmalloc_nolock(&self.pages, size, gfp, node)
    }

    /// Frees an object in any context; it waits for nothing. Null and zero-size addresses are ignored. An object that finds
    /// everything in use is kept aside and freed later.
    ///
    /// # Errors
    ///
    /// As [`Self::kfree`], [`FreeError::WrongKind`] for a large block too, and [`FreeError::WouldBlock`] if everything is in
    /// use and too many frees wait already; nothing is changed then.
    pub fn kfree_nolock(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.kfree_nolock(&self.pages, addr)
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
        let new = self.with_reclaim(gfp, |gfp| self.slab.krealloc(&self.pages, addr, size, gfp))?;
        if new != addr {
            self.slab.stamp(&self.pages, new, Some(size), Location::caller());
        }
        Ok(new)
    }

    /// Makes a block of [`Self::kmalloc`] that is larger than the largest class bigger without moving it; `false`, with nothing
    /// changed, if what is behind it is not free or may not be had without effort. [`Self::krealloc`] tries that first.
    pub fn krealloc_in_place(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> bool {
        self.slab.krealloc_in_place(&self.pages, addr, size, gfp)
    }

    /// As [`Self::kmalloc`], for a block that will probably grow to `room` bytes: where
    /// [`Geometry::trim_large`](crate::Geometry::trim_large) is set it lies where it can do so in place, as long as nobody takes what is
    /// behind it. Nothing is reserved.
    ///
    /// # Errors
    ///
    /// As [`Self::kmalloc`].
    #[track_caller]
    pub fn kmalloc_with_room(&self, size: usize, room: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.with_reclaim(gfp, |gfp| self.slab.kmalloc_with_room(&self.pages, (size, room), gfp))
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
    /// As [`Self::kfree`]; nothing is wiped then, unless it is [`FreeError::Corrupted`]: what is around a block is looked at
    /// last.
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
        self.slab.size_roundup(size, self.geometry().trim_large)
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
        self.with_reclaim(gfp, |gfp| self.slab.cache_alloc(&self.pages, cache, gfp, site))
    }

    /// [`Self::kmem_cache_alloc`] from the memory of `node`, as [`Self::kmalloc_node`].
    ///
    /// # Errors
    ///
    /// As [`Self::kmem_cache_alloc`].
    #[track_caller]
    pub fn kmem_cache_alloc_node(
        &self,
        cache: CacheId,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        let Some(node) = node else { return self.kmem_cache_alloc(cache, gfp) };
        let addr =
            self.with_reclaim_on(gfp, Some(node), |gfp| self.slab.cache_alloc_node(&self.pages, cache, gfp, node))?;
        self.slab.stamp(&self.pages, addr, None, Location::caller());
        Ok(addr)
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

    /// Allocates as many objects as `objects` has places, or none.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`] for no places; as [`Self::kmem_cache_alloc`] otherwise. What is in the places then means
    /// nothing.
    #[track_caller]
    pub fn kmem_cache_alloc_bulk(
        &self,
        cache: CacheId,
        gfp: GfpFlags,
        objects: &mut [VirtAddr],
    ) -> Result<(), AllocError> {
        let site = Location::caller();
        self.with_reclaim(gfp, |gfp| self.slab.cache_alloc_bulk(&self.pages, cache, gfp, objects))?;
        objects.iter().for_each(|&object| self.slab.stamp(&self.pages, object, None, site));
        Ok(())
    }

    /// Frees many objects: of this cache, or without a cache of any caches, and large blocks of [`Self::kmalloc`] too.
    /// Null addresses are ignored.
    ///
    /// # Errors
    ///
    /// Which misuse the first wrong address would have been, one that occurs twice included; nothing is freed then. Or, of
    /// debug caches, [`FreeError::Corrupted`]: those objects were repaired and are still live, the others are free.
    #[track_caller]
    pub fn kmem_cache_free_bulk(&self, cache: Option<CacheId>, objects: &[VirtAddr]) -> Result<(), FreeError> {
        self.slab.free_bulk(&self.pages, cache, objects)
    }

    /// Obtains a sheaf with `count` objects: that many [`Self::kmem_cache_alloc_from_sheaf`] cannot fail.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`] for no object, [`AllocError::TooLarge`] for more than `N`; as [`Self::kmem_cache_alloc`]
    /// otherwise.
    pub fn kmem_cache_prefill_sheaf<const N: usize>(
        &self,
        cache: CacheId,
        gfp: GfpFlags,
        count: usize,
    ) -> Result<PrefilledSheaf<N>, AllocError> {
        self.with_reclaim(gfp, |gfp| self.slab.prefill_sheaf(&self.pages, cache, gfp, count))
    }

    /// Makes sure that at least `count` objects are in a sheaf.
    ///
    /// # Errors
    ///
    /// As [`Self::kmem_cache_prefill_sheaf`]; the sheaf is as it was.
    pub fn kmem_cache_refill_sheaf<const N: usize>(
        &self,
        sheaf: &mut PrefilledSheaf<N>,
        gfp: GfpFlags,
        count: usize,
    ) -> Result<(), AllocError> {
        self.with_reclaim(gfp, |gfp| self.slab.refill_sheaf(&self.pages, sheaf, gfp, count))
    }

    /// Allocates an object from a sheaf. Of the flags, [`ZERO`](GfpFlags::ZERO) matters.
    ///
    /// # Errors
    ///
    /// [`AllocError::SheafEmpty`] if none is left, [`AllocError::BadFlags`] for zeroed memory of a cache with a
    /// constructor, [`AllocError::BadAddress`] if the cache was destroyed meanwhile.
    #[track_caller]
    pub fn kmem_cache_alloc_from_sheaf<const N: usize>(
        &self,
        sheaf: &mut PrefilledSheaf<N>,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let addr = self.slab.alloc_from_sheaf(&self.pages, sheaf, gfp)?;
        self.slab.stamp(&self.pages, addr, None, Location::caller());
        Ok(addr)
    }

    /// Gives a sheaf back with what is left in it.
    #[track_caller]
    pub fn kmem_cache_return_sheaf<const N: usize>(&self, sheaf: PrefilledSheaf<N>) {
        self.slab.return_sheaf(&self.pages, sheaf);
    }

    /// Releases a cache's empty slabs; `true` if no slab is left.
    ///
    /// # Errors
    ///
    /// [`CacheError::Unknown`].
    pub fn kmem_cache_shrink(&self, cache: CacheId) -> Result<bool, CacheError> {
        self.slab.cache_shrink(&self.pages, cache)
    }

    /// Destroys a cache. A cache that shares its slabs with others only loses its name.
    ///
    /// Waits for a grace period if objects of the cache do ([`Self::kfree_rcu`]), or its slabs.
    ///
    /// Objects that are still live are a mistake of the caller: the cache goes all the same, and its number and name are
    /// free; the objects stay where they are, and their memory is lost. [`Self::kmem_cache_destroy_with`] names them.
    ///
    /// # Errors
    ///
    /// [`CacheError::Unknown`], also for a cache that was destroyed before; [`CacheError::BuiltIn`];
    /// [`CacheError::Busy`] while a CPU is inside a call on the cache.
    pub fn kmem_cache_destroy(&self, cache: CacheId) -> Result<Destroyed, CacheError> {
        self.kmem_cache_destroy_with(cache, |_| ())
    }

    /// [`Self::kmem_cache_destroy`], calling `report` for each object that is lost.
    ///
    /// # Errors
    ///
    /// As [`Self::kmem_cache_destroy`].
    pub fn kmem_cache_destroy_with(
        &self,
        cache: CacheId,
        mut report: impl FnMut(LeakedObject),
    ) -> Result<Destroyed, CacheError> {
        self.slab.cache_destroy(&self.pages, cache, &mut report, &|| self.kvfree_rcu_barrier())
    }
}
