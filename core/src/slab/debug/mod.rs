//! Debug caches: bytes around and inside objects that nobody may write, checked when an object changes hands and whenever
//! somebody asks.
//!
//! | byte | value | where |
//! |---|---|---|
//! | `POISON_INUSE` | `5a` | padding, and all of a fresh slab |
//! | `POISON_FREE` | `6b` | an object, until its user writes it and again when it is free |
//! | `POISON_END` | `a5` | its last byte |
//! | `RED_INACTIVE` | `bb` | red zones of a free object |
//! | `RED_ACTIVE` | `cc` | red zones of a live object, and the rest of a class behind the size that was asked for |
//!
//! A debug cache has no sheaves: every allocation and every free takes the cache's lock and goes to the slab. Free objects
//! of a slab form a list whose links lie in the objects, as SLUB's do; but the occupancy bitmap decides who is free, so that
//! a damaged link loses objects and never hands one out twice.
//!
//! | damage | found by | what happens |
//! |---|---|---|
//! | around a live object | its free, with `CONSISTENCY_CHECKS` | repaired; the free is refused once |
//! | in a free object | its allocation, with `CONSISTENCY_CHECKS` | repaired; the slab is set aside, another one serves; when its last live object is freed, its frames are lost |
//! | any | `kmem_cache_validate` | repaired |
//! | a link | whoever follows it | the list ends there; objects behind it are lost until the link is right again |
//!
//! Each report and each repair is told to [`Platform::slab_bug`](crate::Platform::slab_bug) with the cache's lock held.
//!
//! ```text
//! I20.1  each checked byte of an undamaged slot has the value of the table for the slot's state
//! I20.2  objects on the list of a slab are free in its bitmap, and all that are free are on the list
//! I20.3  a slab that was set aside has no free object; lost objects + live objects == objects
//! ```
//!
//! Source: sections 2.7 and 5.2 of the behaviour page.

mod bytes;
mod chain;
mod layout;
mod object;
mod paths;
mod quarantine;
mod report;
mod track;
mod validate;

pub(super) use layout::{Layout, Wish};
pub(super) use quarantine::{Quarantine, paranoid_flags};
pub(super) use track::Sites;

use super::SlabFlags;
use super::SlabLayer;
use super::live::LiveMap;
use super::node::Slabs;
use super::order;
use super::shape::Shape;
use crate::buddy::PageAllocator;
use crate::geometry::Geometry;
use crate::hardening::SlubDebug;
use crate::inspect::CacheName;
use core::cell::Cell;
use core::panic::Location;

/// Padding, and all of a fresh slab.
const POISON_INUSE: u8 = 0x5a;
/// A free object.
const POISON_FREE: u8 = 0x6b;
/// The last byte of a free object.
const POISON_END: u8 = 0xa5;
/// Red zones of a free object.
const RED_INACTIVE: u8 = 0xbb;
/// Red zones of a live object.
const RED_ACTIVE: u8 = 0xcc;

/// Where a call was made.
pub(super) type Site = &'static Location<'static>;

/// The flags that a geometry puts on the kmalloc caches.
pub(super) fn flags(geometry: &Geometry) -> SlabFlags {
    let wanted = geometry.slub_debug;
    let each = [
        (SlubDebug::CONSISTENCY_CHECKS, SlabFlags::CONSISTENCY_CHECKS),
        (SlubDebug::RED_ZONE, SlabFlags::RED_ZONE),
        (SlubDebug::POISON, SlabFlags::POISON),
        (SlubDebug::STORE_USER, SlabFlags::STORE_USER),
        (SlubDebug::TRACE, SlabFlags::TRACE),
    ];
    each.into_iter()
        .filter(|&(option, _)| wanted.contains(option))
        .fold(paranoid_flags(geometry.hardening), |all, (_, flag)| all | flag)
}

/// In whose hands an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Live,
}

/// One look at the slabs of a debug cache, under the cache's lock.
pub(super) struct Inspector<'l, P> {
    pages: &'l PageAllocator<P>,
    slabs: &'l Slabs<'l>,
    layout: Layout,
    sites: &'l Sites,
    live: &'l LiveMap,
    id: usize,
    name: CacheName,
    /// What free pointers are mixed with; 0 for plain ones.
    secret: u64,
    /// Reports and repairs so far.
    findings: Cell<u32>,
}

impl<P> Inspector<'_, P> {
    fn flags(&self) -> SlabFlags {
        self.slabs.shape.flags
    }

    /// The value of the red zones. With a secret it is the cache's own for live objects, and never that of free ones.
    fn red(&self, state: State) -> u8 {
        match state {
            State::Free => RED_INACTIVE,
            State::Live if self.secret == 0 => RED_ACTIVE,
            State::Live => RED_INACTIVE ^ (1 + (self.secret >> 8) as u8 % 255),
        }
    }

    fn has(&self, flag: SlabFlags) -> bool {
        self.flags().contains(flag)
    }

    /// Whether bytes of a free object are checked: nobody else has a right to them.
    fn poisons_objects(&self) -> bool {
        self.has(SlabFlags::POISON) && !self.has(SlabFlags::TYPESAFE_BY_RCU) && !self.slabs.shape.has_ctor
    }
}

impl Shape {
    /// Tells whether each allocation and free goes to the slab, with its checks.
    pub(super) const fn is_debug(&self) -> bool {
        self.flags.intersects(SlabFlags::DEBUG)
    }

    /// Tells whether requests are smaller than the objects, and their sizes are kept.
    pub(super) const fn tracks_size(&self) -> bool {
        self.flags.contains(SlabFlags::STORE_USER) && self.is_kmalloc()
    }

    const fn is_kmalloc(&self) -> bool {
        self.flags.contains(SlabFlags::KMALLOC)
    }

    /// How many bytes of an object its user may have: what `ksize` tells.
    pub(super) fn usable(&self) -> usize {
        let Some(layout) = self.layout().filter(|_| self.is_debug()) else { return self.stride };
        if self.flags.intersects(SlabFlags::RED_ZONE.union(SlabFlags::POISON)) {
            self.object_size
        } else if layout.has_metadata() {
            layout.inuse
        } else {
            self.stride
        }
    }

    /// The distance of the objects that their size, alignment and flags ask for.
    pub(super) fn wanted_stride(&self) -> Option<usize> {
        if self.is_debug() {
            self.layout().map(|layout| layout.stride())
        } else {
            order::plain_stride(self.object_size, self.align)
        }
    }

    /// How many bytes before an object are not the object's.
    pub(super) fn wanted_left(&self) -> u32 {
        self.layout().filter(|_| self.is_debug()).map_or(0, |layout| layout.left as u32)
    }

    /// The parts of a slot of a debug cache.
    fn layout(&self) -> Option<Layout> {
        Layout::new(&Wish {
            object_size: self.object_size,
            align: self.align,
            flags: self.flags,
            has_ctor: self.has_ctor,
            freeptr_offset: self.freeptr_offset.map(|offset| offset as usize),
            is_kmalloc: self.is_kmalloc(),
        })
    }
}

impl SlabLayer {
    /// Prepares an inspection of the slabs of a debug cache; `None` for any other cache. The caller holds no lock of the
    /// cache, and takes that of the memory node whose slabs it looks at.
    pub(super) fn inspector<'l, P>(
        &'l self,
        pages: &'l PageAllocator<P>,
        id: usize,
        slabs: &'l Slabs<'l>,
    ) -> Option<Inspector<'l, P>> {
        if !slabs.shape.is_debug() {
            return None;
        }
        let layout = slabs.shape.layout()?;
        Some(Inspector {
            pages,
            slabs,
            layout,
            sites: &self.sites,
            live: &self.live,
            id,
            name: self.identity(id)?.name,
            secret: if self.quarantine.is_on() {
                quarantine::mix(pages.base.geometry.secret ^ id as u64) | 1
            } else {
                0
            },
            findings: Cell::new(0),
        })
    }
}
