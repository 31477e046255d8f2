//! A cache's slabs: which have free objects, which are full, and what moves them between the two lists.
//!
//! | slab | list | leaves it when |
//! |---|---|---|
//! | no object out | partial | an object is taken, or the slab is released |
//! | some objects out | partial | the last one is taken (to full), or the last one returns (stays, or released) |
//! | damaged (debug caches) | aside | never |
//! | all objects out | full | one returns: to the partial list's tail, or released if it was the slab's only one |
//!
//! A slab that becomes empty is released at once if the partial list has `min_partial` slabs, itself included.
//!
//! ```text
//! I12.1  slab on the full list  <=>  inuse == objects
//! I12.2  inuse == number of occupancy bits of the slab <= objects
//! I12.3  node.inuse, node.objects and node.pages == the sums over the slabs of both lists
//! ```

use super::args::Ctor;
use super::barn::Barn;
use super::occupancy::Occupancy;
use super::shape::Shape;
use crate::addr::{Pfn, PhysAddr};
use crate::inspect::CacheName;
use crate::page::{FrameTable, PageList, SlabRef};

/// Value of a frame's `list` field: on no list.
pub(super) const LIST_NONE: u8 = 0;
/// On the partial list.
pub(super) const LIST_PARTIAL: u8 = 1;
/// On the full list.
pub(super) const LIST_FULL: u8 = 2;
/// Set aside: damaged, its free objects are never handed out.
pub(super) const LIST_ASIDE: u8 = 3;

/// Slabs with up to this many free objects are sorted by [`Node::sort_partial`]. Source: `mm/slub.c`.
const SHRINK_PROMOTE_MAX: usize = 32;

/// Where the slabs of one cache are and how they are laid out.
pub(super) struct Slabs<'l> {
    /// The cache's number.
    pub(super) id: usize,
    pub(super) frames: &'l FrameTable,
    pub(super) occupancy: &'l Occupancy,
    pub(super) shape: Shape,
}

impl Slabs<'_> {
    /// The address of object `index` of a slab.
    pub(super) fn object(&self, head: Pfn, index: u32) -> PhysAddr {
        let before = u64::from(index) * self.shape.stride as u64 + u64::from(self.shape.left);
        PhysAddr::new(head.addr().as_u64() + before)
    }

    /// The slab around an address in one of its frames, and the object around it.
    pub(super) fn locate(&self, addr: PhysAddr) -> (Pfn, u32) {
        let head = self.frames.slab_head(addr.pfn().unwrap_or_default());
        let offset = addr.as_u64().saturating_sub(head.addr().as_u64());
        (head, self.shape.reciprocal.divide(offset) as u32)
    }

    /// How many objects a slab has.
    pub(super) fn objects(&self, head: Pfn) -> u32 {
        u32::from(self.frames.objects(head))
    }

    /// How many objects of a slab are out of it.
    pub(super) fn inuse(&self, head: Pfn) -> u32 {
        u32::from(self.frames.inuse(head))
    }

    /// Takes up to `wanted` free objects of a slab and hands each to `put`; returns how many.
    pub(super) fn take(&self, head: Pfn, wanted: u32, put: &mut impl FnMut(PhysAddr)) -> u32 {
        let taken = self.occupancy.take(head, self.objects(head), wanted, |index| put(self.object(head, index)));
        self.frames.set_inuse(head, (self.inuse(head) + taken) as u16);
        taken
    }
}

/// What names a cache and builds its objects.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    pub(super) name: CacheName,
    pub(super) ctor: Option<Ctor>,
}

/// The part of a cache that all CPUs share, under the cache's lock.
pub(super) struct Node {
    /// `None`: no cache has this number.
    pub(super) identity: Option<Identity>,
    pub(super) partial: PageList,
    pub(super) full: PageList,
    /// Slabs of a debug cache that were set aside.
    pub(super) aside: PageList,
    /// Objects out of the slabs: live, in a sheaf, or lost.
    pub(super) inuse: u64,
    /// Objects of a debug cache that are neither live nor reachable as free ones: cut off by damage, or in quarantine.
    pub(super) lost: u64,
    /// Objects that all slabs can hold.
    pub(super) objects: u64,
    /// Frames of all slabs.
    pub(super) pages: u64,
    pub(super) barn: Barn,
}

impl Node {
    pub(super) const VACANT: Self = Self {
        identity: None,
        partial: PageList::EMPTY,
        full: PageList::EMPTY,
        aside: PageList::EMPTY,
        inuse: 0,
        lost: 0,
        objects: 0,
        pages: 0,
        barn: Barn::EMPTY,
    };

    /// How many slabs there are.
    pub(super) fn nr_slabs(&self) -> u64 {
        u64::from(self.partial.len()) + u64::from(self.full.len()) + u64::from(self.aside.len())
    }

    pub(super) fn partial_head(&self) -> Option<Pfn> {
        self.partial.head()
    }

    pub(super) fn full_head(&self) -> Option<Pfn> {
        self.full.head()
    }

    pub(super) fn aside_head(&self) -> Option<Pfn> {
        self.aside.head()
    }

    /// Adds a slab that is on no list.
    pub(super) fn attach(&mut self, slabs: &Slabs<'_>, head: Pfn) {
        self.objects += u64::from(slabs.objects(head));
        self.pages += slabs.frames.order(head).pages();
        self.inuse += u64::from(slabs.inuse(head));
        if slabs.inuse(head) == slabs.objects(head) {
            self.full.push_head(slabs.frames, head);
            slabs.frames.set_list(head, LIST_FULL);
        } else {
            self.partial.push_head(slabs.frames, head);
            slabs.frames.set_list(head, LIST_PARTIAL);
        }
    }

    /// Takes up to `wanted` objects from the partial slabs, first slab first, and hands each to `put`; returns how many.
    pub(super) fn take(&mut self, slabs: &Slabs<'_>, wanted: u32, put: &mut impl FnMut(PhysAddr)) -> u32 {
        let mut total = 0;
        while total < wanted {
            let Some(head) = self.partial.head() else { break };
            let taken = slabs.take(head, wanted - total, put);
            self.note_taken(slabs, head, taken);
            total += taken;
        }
        total
    }

    /// Counts objects taken from a partial slab, and moves it to the full list when none is left. A slab that gave
    /// nothing is full whatever its counter says: it moves too, so that no caller meets it again.
    pub(super) fn note_taken(&mut self, slabs: &Slabs<'_>, head: Pfn, taken: u32) {
        self.inuse += u64::from(taken);
        if taken == 0 || slabs.inuse(head) == slabs.objects(head) {
            self.partial.remove(slabs.frames, head);
            self.full.push_head(slabs.frames, head);
            slabs.frames.set_list(head, LIST_FULL);
        }
    }

    /// Puts a slab whose counter changed on the list where it belongs.
    pub(super) fn relist(&mut self, slabs: &Slabs<'_>, head: Pfn) {
        let is_full = slabs.inuse(head) == slabs.objects(head);
        match slabs.frames.list(head) {
            LIST_PARTIAL if is_full => {
                self.partial.remove(slabs.frames, head);
                self.full.push_head(slabs.frames, head);
                slabs.frames.set_list(head, LIST_FULL);
            }
            LIST_FULL if !is_full => {
                self.full.remove(slabs.frames, head);
                self.partial.push_tail(slabs.frames, head);
                slabs.frames.set_list(head, LIST_PARTIAL);
            }
            _ => {}
        }
    }

    /// Takes a partial slab out of service: its free objects are lost.
    pub(super) fn set_aside(&mut self, slabs: &Slabs<'_>, head: Pfn) {
        let objects = slabs.objects(head);
        let lost = slabs.occupancy.take(head, objects, objects, |_| ());
        slabs.frames.set_inuse(head, objects as u16);
        self.inuse += u64::from(lost);
        self.lost += u64::from(lost);
        self.partial.remove(slabs.frames, head);
        self.aside.push_tail(slabs.frames, head);
        slabs.frames.set_list(head, LIST_ASIDE);
    }

    /// Gives an object back to its slab. A slab that the cache no longer keeps goes to `discard`.
    pub(super) fn release(&mut self, slabs: &Slabs<'_>, object: PhysAddr, discard: &mut PageList) {
        let Some((head, slab, left)) = self.put(slabs, object) else { return };
        if left == 0 && self.partial.len() >= slabs.shape.min_partial() {
            self.detach(slabs, head, discard);
        } else if slab.list() == LIST_FULL {
            self.note_free(slabs, head);
        }
    }

    /// Gives an object back to its slab, which is kept although it may be empty now.
    pub(super) fn release_kept(&mut self, slabs: &Slabs<'_>, object: PhysAddr) {
        if let Some((head, ..)) = self.put(slabs, object).filter(|(_, slab, _)| slab.list() == LIST_FULL) {
            self.note_free(slabs, head);
        }
    }

    /// Marks an object free in its slab and counts it; returns the slab, which may be on the wrong list now, and how many of
    /// its objects are out.
    #[inline(always)]
    fn put<'l>(&mut self, slabs: &Slabs<'l>, object: PhysAddr) -> Option<(Pfn, SlabRef<'l>, u16)> {
        let (head, index) = slabs.locate(object);
        if !slabs.occupancy.release(head, index) {
            debug_assert!(false, "object {object} of slab {head} is in the slab already");
            return None;
        }
        let slab = slabs.frames.slab(head);
        self.inuse = self.inuse.saturating_sub(1);
        Some((head, slab, slab.take_back()))
    }

    /// Moves a slab with a free object from the full list to the partial one's tail.
    #[cold]
    fn note_free(&mut self, slabs: &Slabs<'_>, head: Pfn) {
        self.full.remove(slabs.frames, head);
        self.partial.push_tail(slabs.frames, head);
        slabs.frames.set_list(head, LIST_PARTIAL);
    }

    /// Takes an empty slab off its list, onto `discard`.
    fn detach(&mut self, slabs: &Slabs<'_>, head: Pfn, discard: &mut PageList) {
        let list = match slabs.frames.list(head) {
            LIST_FULL => &mut self.full,
            LIST_ASIDE => &mut self.aside,
            _ => &mut self.partial,
        };
        list.remove(slabs.frames, head);
        slabs.frames.set_list(head, LIST_NONE);
        self.objects = self.objects.saturating_sub(u64::from(slabs.objects(head)));
        self.pages = self.pages.saturating_sub(slabs.frames.order(head).pages());
        discard.push_tail(slabs.frames, head);
    }

    /// Moves all slabs to `to`, with whatever is out of them.
    pub(super) fn detach_all(&mut self, slabs: &Slabs<'_>, to: &mut PageList) {
        while let Some(head) = self.partial.head().or_else(|| self.full.head()).or_else(|| self.aside.head()) {
            self.inuse = self.inuse.saturating_sub(u64::from(slabs.inuse(head)));
            self.detach(slabs, head, to);
        }
        self.lost = 0;
    }

    /// Forgets a slab that was set aside and all of whose objects are lost.
    pub(super) fn abandon(&mut self, slabs: &Slabs<'_>, head: Pfn) {
        let objects = u64::from(slabs.objects(head));
        self.inuse = self.inuse.saturating_sub(objects);
        self.lost = self.lost.saturating_sub(objects);
        let mut gone = PageList::EMPTY;
        self.detach(slabs, head, &mut gone);
        gone.pop_head(slabs.frames);
    }

    /// Moves all empty slabs to `discard`.
    pub(super) fn detach_empty(&mut self, slabs: &Slabs<'_>, discard: &mut PageList) {
        let mut at = self.partial.head();
        while let Some(head) = at {
            at = slabs.frames.next(head);
            if slabs.inuse(head) == 0 {
                self.detach(slabs, head, discard);
            }
        }
    }

    /// Brings the partial slabs with few free objects to the front, fullest first, so that new objects fill them up
    /// and the emptiest slabs get a chance to empty. Slabs with more free objects keep their order at the end.
    pub(super) fn sort_partial(&mut self, slabs: &Slabs<'_>) {
        let mut buckets = [PageList::EMPTY; SHRINK_PROMOTE_MAX];
        let mut at = self.partial.head();
        while let Some(head) = at {
            at = slabs.frames.next(head);
            let free = slabs.objects(head).saturating_sub(slabs.inuse(head));
            if let Some(bucket) = (free as usize).checked_sub(1).and_then(|i| buckets.get_mut(i)) {
                self.partial.remove(slabs.frames, head);
                bucket.push_tail(slabs.frames, head);
            }
        }
        for bucket in buckets.iter_mut().rev() {
            while let Some(head) = bucket.pop_tail(slabs.frames) {
                self.partial.push_head(slabs.frames, head);
            }
        }
    }
}
