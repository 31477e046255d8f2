//! Objects obtained beforehand, so that allocations where nothing may fail cannot fail.
//!
//! A [`PrefilledSheaf`] is filled while its owner can still be refused, and emptied later, object by object. Its objects
//! are out of their slabs and not live: nobody can free them, and they are counted as reserved. A sheaf that asks for
//! more than the cache's sheaves hold is *oversize*: it is filled straight from slabs, from sheaves only if memory runs out,
//! and what is left in it goes straight back. Source: section 2.10.
//!
//! ```text
//! P1  len <= N;  the first len objects are out of their slabs and in no other sheaf, and not live but in debug caches
//! P2  reserved objects of a cache == sum of len over its prefilled sheaves
//! ```

use super::alloc::slab_site;
use super::node::Slabs;
use super::{SlabLayer, cache_id};
use crate::addr::VirtAddr;
use crate::buddy::PageAllocator;
use crate::error::{AllocError, CacheId};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::platform::{Event, Platform};
use crate::sync::{AtomicU64, Ordering::Relaxed};
use core::fmt;

/// Where the objects of a prefilled sheaf come from and go back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    /// It fits the cache's own sheaves: their objects are used, and get what is left.
    Usual,
    /// It does not: straight from slabs, and straight back.
    Oversize,
}

/// At most `N` objects of one cache, obtained beforehand: that many allocations cannot fail.
///
/// Made by [`Kmem::kmem_cache_prefill_sheaf`](crate::Kmem::kmem_cache_prefill_sheaf). It must be given back with
/// [`Kmem::kmem_cache_return_sheaf`](crate::Kmem::kmem_cache_return_sheaf); what is in a dropped one is lost.
#[must_use = "the objects in it are lost unless it is returned"]
pub struct PrefilledSheaf<const N: usize> {
    cache: CacheId,
    size: Size,
    objects: [VirtAddr; N],
    len: usize,
}

impl<const N: usize> PrefilledSheaf<N> {
    /// The cache whose objects it holds.
    pub fn cache(&self) -> CacheId {
        self.cache
    }

    /// How many objects are left: so many allocations cannot fail.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether no object is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn left(&self) -> &[VirtAddr] {
        self.objects.get(..self.len).unwrap_or_default()
    }
}

impl<const N: usize> fmt::Debug for PrefilledSheaf<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, len, .. } = self;
        f.debug_struct("PrefilledSheaf").field("cache", cache).field("len", len).finish_non_exhaustive()
    }
}

impl SlabLayer {
    /// Obtains `count` objects of a user's cache.
    ///
    /// # Errors
    ///
    /// `ZeroSize` for none, `TooLarge` for more than `N`, otherwise as [`Self::cache_alloc`].
    pub(crate) fn prefill_sheaf<const N: usize, P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
        count: usize,
    ) -> Result<PrefilledSheaf<N>, AllocError> {
        if count == 0 {
            return Err(AllocError::ZeroSize);
        }
        let mut sheaf = PrefilledSheaf { cache, size: Size::Usual, objects: [VirtAddr::NULL; N], len: 0 };
        self.refill_sheaf(pages, &mut sheaf, gfp, count)?;
        pages.base.event(if sheaf.size == Size::Usual { Event::SheafPrefilled } else { Event::SheafPrefilledOversize });
        Ok(sheaf)
    }

    /// Makes sure that at least `count` objects are in a sheaf.
    ///
    /// # Errors
    ///
    /// As [`Self::prefill_sheaf`]; the sheaf is as it was.
    pub(crate) fn refill_sheaf<const N: usize, P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        sheaf: &mut PrefilledSheaf<N>,
        gfp: GfpFlags,
        count: usize,
    ) -> Result<(), AllocError> {
        let id = self.root(sheaf.cache.index());
        self.check_request(id, gfp.difference(GfpFlags::ZERO))?;
        let slabs = self.slabs(pages, id).ok_or(AllocError::BadFlags)?;
        let too_large = AllocError::TooLarge { requested: count, limit: N };
        let Some(missing) = sheaf.objects.get_mut(sheaf.len..count.max(sheaf.len)) else { return Err(too_large) };
        if missing.is_empty() {
            return Ok(());
        }
        if pages.base.fault(slab_site(id, gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        let size = if count > usize::from(slabs.shape.capacity) { Size::Oversize } else { sheaf.size };
        match size {
            Size::Usual => self.collect(pages, &slabs, gfp, missing)?,
            Size::Oversize => self.collect_oversize(pages, &slabs, gfp, missing)?,
        }
        self.reserve(id, missing.len() as u64);
        (sheaf.size, sheaf.len) = (size, count);
        Ok(())
    }

    /// Fills all places straight from slabs. If memory runs out, what lies in the cache's sheaves is better than a refusal.
    ///
    /// # Errors
    ///
    /// As [`Self::collect`].
    fn collect_oversize<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        places: &mut [VirtAddr],
    ) -> Result<(), AllocError> {
        match self.collect_from_slabs(pages, slabs, gfp, places, 0) {
            Err(AllocError::NoPages { .. }) if slabs.shape.capacity > 0 => self.collect(pages, slabs, gfp, places),
            filled => filled,
        }
    }

    /// Hands out an object of a sheaf, zeroed if asked.
    ///
    /// # Errors
    ///
    /// `SheafEmpty` if none is left, `BadFlags` for a zeroed object of a cache with a constructor, `BadAddress` if the
    /// cache was destroyed meanwhile.
    pub(crate) fn alloc_from_sheaf<const N: usize, P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        sheaf: &mut PrefilledSheaf<N>,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let id = self.root(sheaf.cache.index());
        self.check_request(id, gfp)?;
        let &addr = sheaf.left().last().ok_or(AllocError::SheafEmpty)?;
        let object = pages.base.phys(addr).ok_or(AllocError::BadAddress(addr))?;
        let slabs = self.slabs(pages, id).filter(|slabs| slabs.holds(object)).ok_or(AllocError::BadAddress(addr))?;
        sheaf.len -= 1;
        self.unreserve(id, 1);
        self.live.mark(slabs.shape.live, object);
        if gfp.wants_zero() {
            self.zero(pages, id, object);
        }
        pages.base.event(Event::SheafPrefilledHit);
        Ok(addr)
    }

    /// Gives what is left in a sheaf back: to this CPU's sheaves, or from an oversize one to the slabs.
    #[track_caller]
    pub(crate) fn return_sheaf<const N: usize, P: Platform>(&self, pages: &PageAllocator<P>, sheaf: PrefilledSheaf<N>) {
        let id = self.root(sheaf.cache.index());
        let is_whole = |slabs: &Slabs<'_>| {
            let holds = |&addr: &VirtAddr| pages.base.phys(addr).is_some_and(|object| slabs.holds(object));
            sheaf.left().iter().all(holds)
        };
        // Objects of a cache that was destroyed meanwhile are lost with it.
        let Some(slabs) = self.slabs(pages, id).filter(is_whole) else { return };
        self.unreserve(id, sheaf.len as u64);
        match sheaf.size {
            Size::Usual if !slabs.shape.is_debug() => self.give_all(pages, &slabs, sheaf.left()),
            Size::Usual | Size::Oversize => self.put_back(pages, &slabs, sheaf.left()),
        }
        pages.base.event(Event::SheafReturned);
    }

    fn reserve(&self, id: usize, objects: u64) {
        if let Some(count) = self.reserved.get(id) {
            count.fetch_add(objects, Relaxed);
        }
    }

    fn unreserve(&self, id: usize, objects: u64) {
        if let Some(count) = self.reserved.get(id) {
            count.fetch_sub(objects, Relaxed);
        }
    }

    /// Objects of a cache in prefilled sheaves.
    pub(super) fn nr_reserved(&self, id: usize) -> u64 {
        self.reserved.get(id).map_or(0, |count| count.load(Relaxed))
    }
}

impl Slabs<'_> {
    /// Tells whether an object of a slab of this cache starts at the address and is out of its slab.
    fn holds(&self, object: crate::addr::PhysAddr) -> bool {
        let frame = object.pfn().unwrap_or_default();
        let (head, index) = self.locate(object);
        self.frames.kind(frame) == crate::page::FrameKind::Slab(cache_id(self.id))
            && index < self.objects(head)
            && self.object(head, index) == object
            && self.occupancy.is_taken(head, index)
    }
}

/// Objects in prefilled sheaves, for each cache.
pub(super) type Reserved = crate::raw::MetaSlice<AtomicU64>;
