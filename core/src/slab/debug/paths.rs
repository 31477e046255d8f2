//! What a debug cache does when an object changes hands. Under the cache's lock, so that whoever validates the cache meets
//! no object between two states.

use super::track::Use;
use super::{Inspector, Site, State};
use crate::addr::{Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::bug::SlabFinding;
use crate::error::{AllocError, FreeError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::page::{FrameKind, PageList};
use crate::platform::{Event, Platform};
use crate::slab::free::{KmallocBlock, slab_object};
use crate::slab::node::{LIST_ASIDE, Node, Slabs};
use crate::slab::{SlabFlags, SlabLayer, node_of};

/// How many new slabs an allocation makes before it gives up on other CPUs that take their objects away.
const NEW_SLABS: u32 = 4;

impl SlabLayer {
    /// Paints the slots of a fresh slab of a debug cache, before its objects are constructed. Nobody else sees it yet.
    pub(in crate::slab) fn debug_paint<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        head: Pfn,
    ) {
        self.inspector(pages, id, slabs).into_iter().for_each(|inspector| inspector.paint_slab(head));
    }

    /// Links the objects of a fresh slab of a debug cache. Nobody else sees it yet.
    pub(in crate::slab) fn debug_link<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        head: Pfn,
    ) {
        self.inspector(pages, id, slabs).into_iter().for_each(|inspector| inspector.link_all(head));
    }

    /// Takes an object of a debug cache from its slabs, from a new one, near the node if one is named, and as the last resort
    /// from those of any node.
    ///
    /// # Errors
    ///
    /// Why a new slab was refused.
    pub(in crate::slab) fn alloc_debug<P: Platform>(
        &self,
        inspector: &Inspector<'_, P>,
        gfp: GfpFlags,
        near: Option<NodeId>,
    ) -> Result<PhysAddr, AllocError> {
        let &Inspector { pages, id, slabs, .. } = inspector;
        let mut refused = AllocError::NoPages { order: slabs.shape.orders.min };
        for _ in 0..NEW_SLABS {
            let mut object = None;
            self.take_partial(pages, slabs, |node| {
                object = inspector.take_from(node);
                object.is_some()
            });
            if let Some(object) = object {
                pages.base.event(Event::SlabDirectAlloc);
                return Ok(object);
            }
            match self.grow(pages, slabs, gfp, near) {
                Ok(head) => self.attach(pages, slabs, head),
                Err(error) => {
                    refused = error;
                    break;
                }
            }
        }
        let object = self.nodes_of(id).find_map(|node| inspector.take_from(&mut node.lock())).ok_or(refused)?;
        pages.base.event(Event::PartialLastResort);
        Ok(object)
    }

    /// Takes an object of a debug cache from the partial slabs of a node.
    pub(in crate::slab) fn take_debug_on<P: Platform>(
        &self,
        inspector: &Inspector<'_, P>,
        node: usize,
    ) -> Option<PhysAddr> {
        self.node(inspector.id, node).and_then(|node| inspector.take_from(&mut node.lock()))
    }

    /// Finds the live block that starts at an address; what a debug cache knows about one that was freed before is told.
    ///
    /// # Errors
    ///
    /// As `find_block`.
    pub(in crate::slab) fn find_to_free<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
    ) -> Result<KmallocBlock, FreeError> {
        let found = self.find_block(pages, addr);
        if let Err(FreeError::DoubleFree(_)) = found {
            self.inspect(pages, addr, |inspector, _, object| {
                inspector.tell(inspector.slabs.locate(object).0, Some(object), SlabFinding::AlreadyFree);
            });
        }
        found
    }

    /// Takes back a verified object of a debug cache.
    ///
    /// # Errors
    ///
    /// `DoubleFree`; `Corrupted` if what is around the object was damaged: it is repaired then, and still live.
    pub(in crate::slab) fn debug_free<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        object: PhysAddr,
        site: Site,
    ) -> Result<(), FreeError> {
        if !self.quarantine.is_on() {
            return self.debug_put_back(pages, object, site);
        }
        let addr = pages.base.virt(object);
        let free = |inspector: &Inspector<'_, P>, node: &mut Node, object| inspector.free(node, object, site, None);
        self.inspect(pages, addr, free).unwrap_or(Err(FreeError::Foreign(addr)))?;
        pages.base.event(Event::Quarantined);
        if let Some(oldest) = self.quarantine.push(pages.base.cpu(), object) {
            self.leave_quarantine(pages, oldest);
        }
        Ok(())
    }

    /// As [`Self::debug_free`], past the quarantine.
    ///
    /// # Errors
    ///
    /// As [`Self::debug_free`].
    pub(in crate::slab) fn debug_put_back<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        object: PhysAddr,
        site: Site,
    ) -> Result<(), FreeError> {
        let mut discard = PageList::EMPTY;
        let addr = pages.base.virt(object);
        let freed =
            self.inspect(pages, addr, |inspector, node, object| inspector.free(node, object, site, Some(&mut discard)));
        self.release_slabs(pages, discard);
        freed.unwrap_or(Err(FreeError::Foreign(addr)))
    }

    fn leave_quarantine<P: Platform>(&self, pages: &PageAllocator<P>, object: PhysAddr) -> u64 {
        let mut discard = PageList::EMPTY;
        let addr = pages.base.virt(object);
        self.inspect(pages, addr, |inspector, node, object| inspector.release(node, object, &mut discard));
        self.release_slabs(pages, discard)
    }

    /// Puts all objects of a cache that wait in quarantine back into their slabs; returns how many pages came free.
    pub(in crate::slab) fn flush_quarantine<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> u64 {
        let of_cache =
            |object: PhysAddr| object.pfn().and_then(|frame| pages.base.frames.slab_cache(frame.index())) == Some(id);
        let next = || self.quarantine.take(of_cache);
        core::iter::from_fn(next).map(|object| self.leave_quarantine(pages, object)).sum()
    }

    /// Notes who asked for an object and for how many bytes, if it is one of a debug cache.
    pub(crate) fn stamp<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, size: Option<usize>, site: Site) {
        self.inspect(pages, addr, |inspector, _, object| {
            inspector.set_track(object, Use::Allocated, Some(site));
            if let Some(size) = size {
                inspector.set_requested(object, size);
                inspector.paint_spare(object);
            }
        });
    }

    /// How many bytes of an object were asked for, in a cache that keeps it.
    pub(in crate::slab) fn requested<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<usize> {
        let requested = |inspector: &Inspector<'_, P>, object| {
            inspector.slabs.shape.tracks_size().then(|| inspector.requested(object))
        };
        self.inspect(pages, addr, |inspector, _, object| requested(inspector, object)).flatten()
    }

    /// Keeps another size for an object, in a cache that keeps it, and paints what is beyond.
    pub(in crate::slab) fn resize<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, size: usize) {
        self.inspect(pages, addr, |inspector, _, object| {
            if inspector.slabs.shape.tracks_size() {
                inspector.set_requested(object, size);
                inspector.paint_spare(object);
            }
        });
    }

    /// Works on an object of a debug cache under the lock of its slab; `None` for any other object.
    fn inspect<P: Platform, R>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        work: impl FnOnce(&Inspector<'_, P>, &mut Node, PhysAddr) -> R,
    ) -> Option<R> {
        let (object, id) = slab_object(pages, addr)?;
        let slabs = self.slabs(pages, id)?;
        let inspector = self.inspector(pages, id, &slabs)?;
        let mut node = self.node(id, node_of(pages, object.pfn()?))?.lock();
        Some(work(&inspector, &mut node, object))
    }
}

impl<P: Platform> Inspector<'_, P> {
    /// Takes an object from the partial slabs of a node; `None` if none has one that is sound.
    fn take_from(&self, node: &mut Node) -> Option<PhysAddr> {
        // A slab that gives nothing leaves the partial list.
        while let Some(head) = node.partial.head() {
            if let Some(object) = self.take(node, head) {
                return Some(object);
            }
        }
        None
    }

    /// Takes the first object of a slab's list. `None` if that would be a damaged one: the slab is off the partial list.
    fn take(&self, node: &mut Node, head: Pfn) -> Option<PhysAddr> {
        let first = self.first(head).filter(|&index| !self.slabs.occupancy.is_taken(head, index));
        let Some(index) = first else {
            // The list was cut: what it does not reach is lost.
            self.set_first(head, None);
            self.check_chain(node, head);
            return None;
        };
        let object = self.slabs.object(head, index);
        if self.has(SlabFlags::CONSISTENCY_CHECKS) {
            self.check_slab_padding(head);
            if !self.check_object(head, object, State::Free) {
                self.set_aside(node, head);
                return None;
            }
        }
        let next = self.next(head, index);
        self.set_first(head, next);
        self.slabs.occupancy.claim(head, index);
        self.slabs.frames.set_inuse(head, (self.slabs.inuse(head) + 1) as u16);
        node.note_taken(self.slabs, head, 1);
        self.live.mark(self.slabs.shape.live, object);
        self.hand_out(object);
        Some(object)
    }

    fn hand_out(&self, object: PhysAddr) {
        self.trace(Event::SlabTracedAlloc);
        self.set_requested(object, self.layout.object_size);
        self.set_track(object, Use::Allocated, None);
        self.paint_object(object, State::Live);
    }

    /// Takes an object back: into its slab, which goes to `discard` if the cache no longer keeps it, or without that into
    /// quarantine.
    fn free(
        &self,
        node: &mut Node,
        object: PhysAddr,
        site: Site,
        discard: Option<&mut PageList>,
    ) -> Result<(), FreeError> {
        let addr = self.pages.base.virt(object);
        let (head, index) = self.slabs.locate(object);
        let is_aside = self.slabs.frames.list(head) == LIST_ASIDE;
        if !self.is_live(object) {
            self.tell(head, Some(object), SlabFinding::AlreadyFree);
            return Err(FreeError::DoubleFree(addr));
        }
        if self.has(SlabFlags::CONSISTENCY_CHECKS) {
            self.check_slab_padding(head);
            let chain = is_aside || self.check_chain(node, head);
            if !self.check_object(head, object, State::Live) || !chain {
                self.tell(head, Some(object), SlabFinding::NotFreed);
                return Err(FreeError::Corrupted(addr));
            }
        }
        self.live.unmark(self.slabs.shape.live, object);
        self.trace(Event::SlabTracedFree);
        self.set_track(object, Use::Freed, Some(site));
        self.paint_object(object, State::Free);
        match discard {
            Some(discard) if !is_aside => {
                self.push(head, index);
                node.release(self.slabs, object, discard);
            }
            _ => {
                // Where its link is, in the object or behind it, must be none that its user left there.
                self.set_link(object, None);
                node.lost += 1;
            }
        }
        if is_aside {
            self.leak_abandoned(node, head);
        }
        Ok(())
    }

    /// Tells whether a user has an object.
    pub(super) fn is_live(&self, object: PhysAddr) -> bool {
        self.live.is_live(self.slabs.shape.live, object)
    }

    /// Takes a slab out of service: its free objects are never handed out.
    fn set_aside(&self, node: &mut Node, head: Pfn) {
        self.tell(head, None, SlabFinding::SetAside);
        self.set_first(head, None);
        node.set_aside(self.slabs, head);
        self.leak_abandoned(node, head);
    }

    /// Gives a slab that was set aside up for good once nobody has an object of it and no free of one waits for readers.
    fn leak_abandoned(&self, node: &mut Node, head: Pfn) {
        // Asked first: an object is counted before it ceases to be live, and live again before it is no longer counted.
        let waits = || self.slabs.frames.waiting(head) > 0;
        let is_live = |index| self.is_live(self.slabs.object(head, index));
        if !waits() && !(0..self.slabs.objects(head)).any(is_live) && !waits() {
            node.abandon(self.slabs, head);
            let order = self.slabs.frames.order(head);
            self.pages.change_owner(head, order, FrameKind::Leaked);
            self.pages.base.event(Event::SlabAbandoned);
        }
    }

    fn trace(&self, event: Event) {
        if self.has(SlabFlags::TRACE) {
            self.pages.base.event(event);
        }
    }
}
