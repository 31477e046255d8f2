//! One object: painting it for a state, and checking that it still looks so.

use super::track::{Sites, Use};
use super::{Inspector, POISON_END, POISON_FREE, POISON_INUSE, State};
use crate::addr::{Pfn, PhysAddr};
use crate::bug::{DebugZone, SlabFinding, Track};
use crate::platform::Platform;
use crate::slab::SlabFlags;
use crate::slab::debug::track::TRACK_BYTES;

impl<P: Platform> Inspector<'_, P> {
    /// Paints the red zones and, where objects are poisoned, the object. A live object of a class is painted as large as
    /// the request was.
    pub(super) fn paint_object(&self, object: PhysAddr, state: State) {
        let layout = &self.layout;
        let red_zone = self.has(SlabFlags::RED_ZONE);
        let own = if red_zone && state == State::Live { self.requested(object) } else { layout.object_size };
        if red_zone {
            self.paint(self.left_of(object), layout.left, self.red(state));
            self.paint(object.saturating_add(own), layout.inuse - own, self.red(state));
        }
        if let Some(last) = own.checked_sub(1).filter(|_| self.poisons_objects()) {
            self.paint(object, last, POISON_FREE);
            self.paint(object.saturating_add(last), 1, POISON_END);
        }
    }

    /// Makes the slots of a fresh slab, before their constructors run.
    pub(super) fn paint_slab(&self, head: Pfn) {
        if self.has(SlabFlags::POISON) {
            self.paint(head.addr(), self.slabs.frames.order(head).bytes(), POISON_INUSE);
        }
        for index in 0..self.slabs.objects(head) {
            let object = self.slabs.object(head, index);
            self.paint_object(object, State::Free);
            if let Some(tracks) = self.layout.tracks {
                Sites::clear(&self.pages.base.mem, object.saturating_add(tracks));
                Sites::clear(&self.pages.base.mem, object.saturating_add(tracks + TRACK_BYTES));
            }
            self.set_requested(object, self.layout.object_size);
        }
    }

    /// Checks every byte of a slot that nobody may have written; `false` after telling and repairing each part that
    /// was damaged.
    pub(super) fn check_object(&self, head: Pfn, object: PhysAddr, state: State) -> bool {
        let zones = self.check_around(head, object, state);
        let poison = self.check_poison(head, object, state);
        let padding = self.check_padding(head, object);
        let pointer = self.check_pointer(head, object, state);
        zones && poison && padding && pointer
    }

    /// The red zones; without them, the bytes that align what follows the object.
    fn check_around(&self, head: Pfn, object: PhysAddr, state: State) -> bool {
        let layout = &self.layout;
        let rest = (object.saturating_add(layout.object_size), layout.inuse - layout.object_size);
        let intact = |zone, range, value| self.intact(head, Some(object), zone, range, value);
        if !self.has(SlabFlags::RED_ZONE) {
            return !self.has(SlabFlags::POISON) || intact(DebugZone::AlignmentPadding, rest, POISON_INUSE);
        }
        let left = intact(DebugZone::LeftRedZone, (self.left_of(object), layout.left), self.red(state));
        let right = intact(DebugZone::RightRedZone, rest, self.red(state));
        let requested = if state == State::Live { self.requested(object) } else { layout.object_size };
        let spare = (object.saturating_add(requested), layout.object_size - requested);
        let asked_for = intact(DebugZone::KmallocRedZone, spare, self.red(state));
        left && right && asked_for
    }

    fn check_poison(&self, head: Pfn, object: PhysAddr, state: State) -> bool {
        let Some(last) = self.layout.object_size.checked_sub(1) else { return true };
        if state == State::Live || !self.poisons_objects() {
            return true;
        }
        let intact = |zone, range, value| self.intact(head, Some(object), zone, range, value);
        let body = intact(DebugZone::Poison, (object, last), POISON_FREE);
        let end = intact(DebugZone::EndPoison, (object.saturating_add(last), 1), POISON_END);
        body && end
    }

    fn check_padding(&self, head: Pfn, object: PhysAddr) -> bool {
        let padding = (object.saturating_add(self.layout.info_end), self.layout.end - self.layout.info_end);
        !self.has(SlabFlags::POISON) || self.intact(head, Some(object), DebugZone::ObjectPadding, padding, POISON_INUSE)
    }

    /// The free pointer, where its bytes are not the user's. A wrong one is cut off: what it led to is lost.
    fn check_pointer(&self, head: Pfn, object: PhysAddr, state: State) -> bool {
        let is_ours = state == State::Free || self.layout.free_pointer_outside();
        if !is_ours || self.link(head, object).is_some() {
            return true;
        }
        self.tell(head, Some(object), SlabFinding::FreePointer);
        self.set_link(object, None);
        false
    }

    /// Checks the bytes after the last slot of a slab.
    pub(super) fn check_slab_padding(&self, head: Pfn) -> bool {
        let stride = self.slabs.shape.stride;
        let used = stride * self.slabs.objects(head) as usize;
        let left = self.slabs.frames.order(head).bytes().saturating_sub(used);
        !self.has(SlabFlags::POISON)
            || self.intact(head, None, DebugZone::SlabPadding, (head.addr().saturating_add(used), left), POISON_INUSE)
    }

    /// How many bytes of an object were asked for; a size word that was damaged reads as all of them.
    pub(super) fn requested(&self, object: PhysAddr) -> usize {
        let all = self.layout.object_size;
        let word = self.layout.size_word.and_then(|at| self.pages.base.mem.read_u64(object.saturating_add(at)));
        word.and_then(|bytes| usize::try_from(bytes).ok()).map_or(all, |bytes| bytes.min(all))
    }

    /// Keeps the size of a request, where sizes are kept.
    pub(super) fn set_requested(&self, object: PhysAddr, bytes: usize) {
        let Some(at) = self.layout.size_word else { return };
        let written = self.pages.base.mem.write_u64(object.saturating_add(at), bytes as u64);
        debug_assert!(written, "a slab lies outside memory");
    }

    /// Paints what a live object has beyond the size that was asked for.
    pub(super) fn paint_spare(&self, object: PhysAddr) {
        let requested = self.requested(object);
        if self.has(SlabFlags::RED_ZONE) {
            self.paint(object.saturating_add(requested), self.layout.object_size - requested, self.red(State::Live));
        }
    }

    /// Reads one of an object's records; `None` where there is none.
    pub(super) fn track(&self, object: PhysAddr, which: Use) -> Option<Track> {
        self.sites.read(&self.pages.base.mem, self.track_at(object, which)?)
    }

    /// Writes one of an object's records, where they are kept.
    pub(super) fn set_track(&self, object: PhysAddr, which: Use, site: Option<super::Site>) {
        let Some(at) = self.track_at(object, which) else { return };
        let track = self.sites.stamp(self.pages.base.cpu().get(), site);
        self.sites.write(&self.pages.base.mem, at, &track);
    }

    fn track_at(&self, object: PhysAddr, which: Use) -> Option<PhysAddr> {
        let tracks = self.layout.tracks?;
        let second = if which == Use::Freed { TRACK_BYTES } else { 0 };
        Some(object.saturating_add(tracks + second))
    }

    fn left_of(&self, object: PhysAddr) -> PhysAddr {
        PhysAddr::new(object.as_u64().saturating_sub(self.layout.left as u64))
    }
}
