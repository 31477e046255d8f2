//! Many objects in one call.
//!
//! An allocation is all or nothing: objects are collected first, from the sheaves of this CPU and then straight from
//! slabs, and become live only when all are there. A free is all or nothing as well: each address is verified and its
//! object claimed before the first one is given back, so that a wrong address in the middle, or one that occurs twice,
//! leaves everything as it was. Source: section 2.11.

use super::alloc::slab_site;
use super::debug::Inspector;
use super::flush::PCS_BATCH_MAX;
use super::free::KmallocBlock;
use super::node::Slabs;
use super::{SlabLayer, cache_id};
use crate::addr::{PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{AllocError, BlockKind, CacheId, FreeError};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::platform::{Event, Platform};
use core::panic::Location;

impl SlabLayer {
    /// Hands out as many objects of a user's cache as `objects` has places, or none.
    ///
    /// # Errors
    ///
    /// `ZeroSize` for no places, otherwise as [`Self::cache_alloc`]; what is in the places then means nothing.
    pub(crate) fn cache_alloc_bulk<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        gfp: GfpFlags,
        objects: &mut [VirtAddr],
    ) -> Result<(), AllocError> {
        let id = self.root(cache.index());
        if objects.is_empty() {
            return Err(AllocError::ZeroSize);
        }
        if pages.base.fault(slab_site(id, gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        self.check_request(id, gfp)?;
        let slabs = self.slabs(pages, id).ok_or(AllocError::BadFlags)?;
        self.collect(pages, &slabs, gfp, objects)?;
        for object in objects.iter().filter_map(|&object| pages.base.phys(object)) {
            self.live.mark(slabs.shape.live, object);
            if gfp.wants_zero() {
                self.zero(pages, id, object);
            }
        }
        pages.base.event(Event::BulkAlloc);
        Ok(())
    }

    /// Fills all places with objects that are out of their slabs and, but for those of debug caches, not live.
    ///
    /// # Errors
    ///
    /// Why not all could be had; those that could are back in their slabs, and no slab was left behind.
    pub(super) fn collect<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        places: &mut [VirtAddr],
    ) -> Result<(), AllocError> {
        let taken = self.collect_cached(pages, slabs, places);
        self.collect_from_slabs(pages, slabs, gfp, places, taken)
    }

    /// Fills all places from the `taken`-th on straight from slabs.
    ///
    /// # Errors
    ///
    /// As [`Self::collect`].
    pub(super) fn collect_from_slabs<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        places: &mut [VirtAddr],
        mut taken: usize,
    ) -> Result<(), AllocError> {
        if let Some(inspector) = self.inspector(pages, slabs.id, slabs) {
            return self.collect_debug(pages, slabs, &inspector, gfp, places);
        }
        let wanted = (places.len() - taken) as u32;
        let mut put = |object| {
            if let Some(place) = places.get_mut(taken) {
                *place = pages.base.virt(object);
                taken += 1;
            }
        };
        let (from_slabs, refused) = self.take_from_slabs(pages, slabs, gfp, None, wanted, &mut put);
        let missing = wanted - from_slabs;
        match refused {
            Some(refused) if self.take_anywhere(pages, slabs, missing, &mut put) < missing => {
                self.put_back(pages, slabs, places.get(..taken).unwrap_or_default());
                self.release_empty(pages, slabs.id, slabs);
                pages.base.event(Event::BulkUndone);
                Err(refused)
            }
            _ => Ok(()),
        }
    }

    /// Fills places from the sheaves of this CPU and the barn; returns how many.
    fn collect_cached<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        places: &mut [VirtAddr],
    ) -> usize {
        let cell = self.cell(pages.base.cpu(), slabs.id).filter(|_| slabs.shape.capacity > 0);
        let Some(mut sheaves) = cell.and_then(|cell| cell.try_local()) else { return 0 };
        for (taken, place) in places.iter_mut().enumerate() {
            let more = !sheaves.main.is_empty()
                || self.swap_with_spare(pages, &mut sheaves)
                || self.exchange_with_barn(pages, slabs.id, &mut sheaves);
            match sheaves.main.pop().filter(|_| more) {
                Some(object) => *place = pages.base.virt(object),
                None => return taken,
            }
        }
        places.len()
    }

    /// Fills all places with objects of a debug cache, which are live at once.
    fn collect_debug<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        inspector: &Inspector<'_, P>,
        gfp: GfpFlags,
        places: &mut [VirtAddr],
    ) -> Result<(), AllocError> {
        for taken in 0..places.len() {
            match (self.alloc_debug(inspector, gfp, None), places.get_mut(taken)) {
                (Ok(object), Some(place)) => *place = pages.base.virt(object),
                (Err(refused), _) => {
                    self.put_back(pages, slabs, places.get(..taken).unwrap_or_default());
                    self.release_empty(pages, slabs.id, slabs);
                    pages.base.event(Event::BulkUndone);
                    return Err(refused);
                }
                (Ok(_), None) => (),
            }
        }
        Ok(())
    }

    /// Gives objects that are not live to this CPU's sheaves, or where they may not lie there to their slabs.
    pub(super) fn give_all<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, objects: &[VirtAddr]) {
        in_batches(pages, objects, |batch| self.give_batch(pages, slabs, batch));
    }

    /// Puts collected objects back into their slabs, past the sheaves.
    #[track_caller]
    pub(super) fn put_back<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, objects: &[VirtAddr]) {
        let site = Location::caller();
        in_batches(pages, objects, |batch| {
            if slabs.shape.is_debug() {
                // What was damaged meanwhile was reported and stays where it is.
                for &object in batch {
                    let _ = self.debug_put_back(pages, object, site);
                }
                return;
            }
            self.return_objects(pages, slabs.id, slabs, batch);
        });
    }

    /// Takes back many objects at once: of one cache, or without a cache of any caches and large blocks too. Null is
    /// ignored, and so is the zero-size address where no cache is named.
    ///
    /// # Errors
    ///
    /// What is wrong with the first wrong address; nothing was changed. Or, of debug caches, that objects were damaged:
    /// they were repaired and are still live, the others are free.
    #[track_caller]
    pub(crate) fn free_bulk<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: Option<CacheId>,
        addresses: &[VirtAddr],
    ) -> Result<(), FreeError> {
        for (n, &addr) in addresses.iter().enumerate() {
            let claimed = addresses.get(..n).unwrap_or_default();
            if let Err(misuse) = self.claim(pages, cache, addr, claimed) {
                self.unclaim(pages, claimed);
                pages.base.event(Event::BulkFreeUndone);
                return Err(misuse);
            }
        }
        let (mut rest, mut damaged) = (addresses, None);
        while let Some(&first) = rest.first() {
            let of = owner(pages, first);
            let run = rest.iter().take_while(|&&addr| owner(pages, addr) == of).count();
            let (group, others) = rest.split_at(run.clamp(1, rest.len()));
            damaged = self.give_group(pages, of, group).or(damaged);
            rest = others;
        }
        pages.base.event(Event::BulkFree);
        damaged.map_or(Ok(()), Err)
    }

    /// Verifies one address of a bulk and takes its object out of the user's hands. Large blocks and objects of debug
    /// caches stay as they are, so that one that occurs twice is looked for among those before it.
    fn claim<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: Option<CacheId>,
        addr: VirtAddr,
        before: &[VirtAddr],
    ) -> Result<(), FreeError> {
        if addr == VirtAddr::NULL || (cache.is_none() && addr.is_zero_or_null()) {
            return Ok(());
        }
        match (self.find_to_free(pages, addr)?, cache) {
            (KmallocBlock::Object { id, .. }, Some(cache)) if id != self.root(cache.index()) => {
                Err(FreeError::WrongCache { addr, owner: cache_id(id) })
            }
            (KmallocBlock::Object { id, .. }, _) if self.is_debug(id) => {
                if before.contains(&addr) {
                    Err(FreeError::DoubleFree(addr))
                } else {
                    Ok(())
                }
            }
            (KmallocBlock::Object { object, id }, _) => {
                let live = self.shape(id).is_some_and(|shape| self.live.unmark(shape.live, object));
                if live { Ok(()) } else { Err(FreeError::DoubleFree(addr)) }
            }
            (KmallocBlock::Large { .. }, Some(_)) => {
                Err(FreeError::WrongKind { addr, expected: BlockKind::Slab, found: BlockKind::LargeKmalloc })
            }
            (KmallocBlock::Large { .. }, None) if before.contains(&addr) => Err(FreeError::DoubleFree(addr)),
            (KmallocBlock::Large { .. }, None) => Ok(()),
        }
    }

    /// Gives claimed objects back to the user.
    fn unclaim<P: Platform>(&self, pages: &PageAllocator<P>, claimed: &[VirtAddr]) {
        for &addr in claimed {
            let shape = owner(pages, addr).and_then(|id| self.shape(id));
            let shape = shape.filter(|shape| !shape.is_debug());
            if let (Some(shape), Some(object)) = (shape, pages.base.phys(addr)) {
                self.live.mark(shape.live, object);
            }
        }
    }

    /// Gives claimed blocks back that all belong to one cache, or to none; returns what a debug cache found.
    #[track_caller]
    fn give_group<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: Option<usize>,
        group: &[VirtAddr],
    ) -> Option<FreeError> {
        let site = Location::caller();
        match cache.and_then(|id| self.slabs(pages, id)) {
            Some(slabs) if slabs.shape.is_debug() => {
                let objects = group.iter().filter_map(|&addr| pages.base.phys(addr));
                return objects.filter_map(|object| self.debug_free(pages, object, site).err()).last();
            }
            Some(slabs) => self.give_all(pages, &slabs, group),
            None => group.iter().filter(|addr| !addr.is_zero_or_null()).for_each(|&addr| free_large(pages, addr)),
        }
        None
    }

    fn is_debug(&self, id: usize) -> bool {
        self.shape(id).is_some_and(|shape| shape.is_debug())
    }

    /// Gives objects that are not live to this CPU's sheaves, and those that may not lie there to their slabs.
    fn give_batch<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, batch: &[PhysAddr]) {
        let capacity = u32::from(slabs.shape.capacity);
        let cell = self.cell(pages.base.cpu(), slabs.id).filter(|_| capacity > 0);
        let Some(mut sheaves) = cell.and_then(|cell| cell.try_local()) else {
            pages.base.event(Event::SlabDirectFree);
            self.return_objects(pages, slabs.id, slabs, batch);
            return;
        };
        let mut past = [PhysAddr::new(0); PCS_BATCH_MAX];
        let mut nr_past = 0;
        for &object in batch {
            if self.is_near(pages, object) {
                if sheaves.main.len() >= capacity {
                    self.make_room(pages, slabs.id, slabs, &mut sheaves);
                }
                if sheaves.main.push(capacity, object) {
                    continue;
                }
            } else {
                pages.base.event(Event::RemoteNodeFree);
            }
            if let Some(slot) = past.get_mut(nr_past) {
                *slot = object;
                nr_past += 1;
            }
        }
        drop(sheaves);
        self.return_objects(pages, slabs.id, slabs, past.get(..nr_past).unwrap_or_default());
    }
}

/// The number of the cache whose slab an address is in; `None` for every other address.
fn owner<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr) -> Option<usize> {
    let frame = pages.base.phys(addr)?.pfn()?;
    pages.base.frames.slab_cache(frame.index())
}

/// Gives a verified large block back.
fn free_large<P: Platform>(pages: &PageAllocator<P>, addr: VirtAddr) {
    if let Some(first) = pages.base.phys(addr).and_then(PhysAddr::pfn) {
        pages.free_large(first);
    }
}

/// Calls `work` with the places of the objects, at most [`PCS_BATCH_MAX`] at a time.
fn in_batches<P: Platform>(pages: &PageAllocator<P>, objects: &[VirtAddr], mut work: impl FnMut(&[PhysAddr])) {
    for chunk in objects.chunks(PCS_BATCH_MAX) {
        let mut batch = [PhysAddr::new(0); PCS_BATCH_MAX];
        let places = chunk.iter().filter_map(|&object| pages.base.phys(object));
        let filled = batch.iter_mut().zip(places).map(|(slot, object)| *slot = object).count();
        work(batch.get(..filled).unwrap_or_default());
    }
}
