//! Destroying caches, also those whose objects are still live.
//!
//! A cache with live objects cannot be kept from going: its user has said that it is gone. The objects stay where they
//! are for ever, since somebody may still use them; the frames of their slabs become `Leaked`, so that no later cache
//! with the same number is mistaken for the owner. Every object is reported.

use super::SlabLayer;
use super::merge::LetGo;
use super::node::{LIST_NONE, Slabs};
use crate::addr::{Pfn, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{CacheError, CacheId};
use crate::inspect::CacheName;
use crate::page::{FrameKind, PageList};
use crate::platform::{Event, Platform};
use core::fmt;

/// What became of a cache that was destroyed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Destroyed {
    /// Only its name went: other caches use the slabs.
    Shared {
        /// How many they are.
        users: u32,
    },
    /// Everything went back.
    Released,
    /// Objects were live. They stay where they are, and no call takes them any more.
    Leaked {
        /// How many objects.
        objects: u64,
        /// Frames of their slabs, which nobody gets again.
        pages: u64,
    },
}

impl Destroyed {
    /// How many reports it was worth: one for the cache, and one for each object.
    pub const fn errors(&self) -> u64 {
        match *self {
            Self::Shared { .. } | Self::Released => 0,
            Self::Leaked { objects, .. } => 1 + objects,
        }
    }
}

impl fmt::Display for Destroyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { users } => write!(f, "the slabs stay for {users} more caches"),
            Self::Released => f.write_str("all slabs went back"),
            Self::Leaked { objects, pages } => write!(f, "{objects} objects remain; {pages} pages are lost"),
        }
    }
}

/// An object that was live when its cache was destroyed; its text is a line of the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeakedObject {
    /// Name of the cache.
    pub cache: CacheName,
    /// Where the object starts.
    pub addr: VirtAddr,
    /// First frame of its slab.
    pub slab: Pfn,
    /// Distance from the slab's first byte.
    pub offset: usize,
}

impl fmt::Display for LeakedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, addr, slab, offset } = self;
        write!(f, "object {addr} at offset {offset} of the slab at frame {slab} remains in cache {cache}")
    }
}

impl SlabLayer {
    /// Destroys a cache. The last one that uses its slabs gives them back; those with live objects are lost, and `each`
    /// hears of every object. `barrier` waits for what was put off until a grace period has passed.
    ///
    /// # Errors
    ///
    /// `Unknown`, `BuiltIn`; `Busy` while a CPU is inside a call on the cache, or a prefilled sheaf has objects of it. The
    /// cache is as before then.
    pub(crate) fn cache_destroy<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
        each: &mut dyn FnMut(LeakedObject),
        barrier: &dyn Fn(),
    ) -> Result<Destroyed, CacheError> {
        let root = self.known(cache)?;
        if self.users(root) == 1 {
            if self.rcu.pending(root) > 0 {
                pages.base.event(Event::CacheWaited);
                barrier();
            }
            let promised = self.rcu.pending(root) + self.nr_reserved(root);
            if promised > 0 || !self.empty_sheaves(pages, root) {
                return Err(CacheError::Busy(cache.get()));
            }
        }
        let id = match self.let_go(cache)? {
            LetGo::Shared(users) => {
                pages.base.event(Event::CacheShared);
                return Ok(Destroyed::Shared { users });
            }
            LetGo::Last(id) => id,
        };
        self.set_capacities(id, 0, 0);
        self.trim(pages, id);
        let (objects, lost) = self.leak_slabs(pages, id, each);
        if self.is_typesafe(id) {
            // The frames of the slabs still name the cache.
            barrier();
        }
        self.vacate(id);
        if objects == 0 {
            pages.base.event(Event::CacheReleased);
            return Ok(Destroyed::Released);
        }
        pages.base.event(Event::CacheLeaked);
        Ok(Destroyed::Leaked { objects, pages: lost })
    }

    /// Returns all cached objects to their slabs; `false` if a CPU could not be asked for its own.
    fn empty_sheaves<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> bool {
        self.strip(pages, id);
        let is_empty =
            |cpu| self.with_sheaves(pages, cpu, id, |sheaves| sheaves.main.is_empty() && sheaves.spare.is_none());
        self.nr_deferred(pages, id) == 0 && self.cpus(pages).all(|cpu| is_empty(cpu) == Some(true))
    }

    /// Takes the slabs that are left from a cache; returns how many objects and frames are lost with them.
    fn leak_slabs<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        each: &mut dyn FnMut(LeakedObject),
    ) -> (u64, u64) {
        let (Some(slabs), Some(identity)) = (self.slabs(pages, id), self.identity(id)) else { return (0, 0) };
        let mut lost = PageList::EMPTY;
        self.nodes_of(id).for_each(|node| node.lock().detach_all(&slabs, &mut lost));
        let (mut objects, mut frames) = (0, 0);
        let mut discard = PageList::EMPTY;
        while let Some(head) = lost.pop_head(slabs.frames) {
            let (order, live) = (slabs.frames.order(head), self.report_slab(pages, &slabs, identity.name, head, each));
            if live == 0 {
                // It was set aside because of damage, and nobody uses it.
                discard.push_tail(slabs.frames, head);
                continue;
            }
            objects += live;
            frames += order.pages();
            pages.change_owner(head, order, FrameKind::Leaked);
        }
        self.release_slabs(pages, discard);
        (objects, frames)
    }

    /// Reports the live objects of a slab, and forgets that they are live; returns how many. Without a record of which
    /// are live, all that are out of the slab are.
    fn report_slab<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        cache: CacheName,
        head: Pfn,
        each: &mut dyn FnMut(LeakedObject),
    ) -> u64 {
        debug_assert!(slabs.frames.list(head) == LIST_NONE, "slab {head} is on a list");
        let mut reported = 0;
        for index in (0..slabs.objects(head)).filter(|&index| slabs.occupancy.is_taken(head, index)) {
            let object = slabs.object(head, index);
            if !self.live.unmark(slabs.shape.live, object) {
                continue;
            }
            let offset = index as usize * slabs.shape.stride;
            each(LeakedObject { cache, addr: pages.base.virt(object), slab: head, offset });
            reported += 1;
        }
        reported
    }
}
