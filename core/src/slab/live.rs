//! Which objects are in a user's hands: what a free is checked against.
//!
//! One byte per 64 bytes of memory, found from the address alone: no division, no slab lookup. It says where in its
//! 64 bytes live objects *start*, so that an interior pointer, a pointer to a free object, also one that waits in a
//! sheaf, and a pointer into a slab's unused tail all find something else there.
//!
//! | stride | byte | written by |
//! |---|---|---|
//! | 64 and more | the object's [`mark`], or 0: at most one object starts in the 64 bytes | plain stores |
//! | less | one bit per 8 bytes, set while an object starts there | read-modify-write: CPUs share the byte |
//!
//! ```text
//! L1  the byte names a  =>  an object of the slab starts at a, its occupancy bit is set, and it is in no sheaf
//! ```
//!
//! Without hardening only the objects of debug caches are marked, in a map that the fast paths do not look at.
//!
//! Two CPUs that free the same object at the very same moment are told apart for small objects only.

use crate::addr::{Pfn, PhysAddr};
use crate::page::{FrameKind, FrameTable};
use crate::raw::{Carver, FrameMaps, GRANULE, GRANULES_PER_FRAME, MetaSlice};
use crate::sync::{AtomicU8, Ordering::Relaxed};

/// How a cache's objects are marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum LiveMode {
    /// Not at all: hardening is off, and nobody debugs the cache.
    Off,
    /// By plain stores: no two objects share a byte.
    Bytes,
    /// By read-modify-write.
    Bits,
}

impl LiveMode {
    /// Returns the cheapest mode for objects `stride` bytes apart.
    pub(super) const fn for_stride(stride: usize) -> Self {
        if stride >= GRANULE { Self::Bytes } else { Self::Bits }
    }

    pub(super) const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Bytes,
            2 => Self::Bits,
            _ => Self::Off,
        }
    }
}

/// The bytes of all frames, as they are carved.
pub(super) struct LiveBytes(MetaSlice<AtomicU8>);

impl LiveBytes {
    pub(super) fn carve(frames: usize, carver: &mut Carver<'_>) -> Self {
        Self(carver.carve_zeroed(frames.saturating_mul(GRANULES_PER_FRAME)))
    }
}

/// The liveness of all objects, beside the kinds of all frames.
pub(super) struct LiveMap {
    maps: FrameMaps,
    /// Stands in for `maps` where those are empty: for debug caches.
    of_debug: FrameMaps,
}

/// Where an address is in both maps.
#[derive(Clone, Copy)]
pub(super) struct Spot<'l> {
    kind: &'l AtomicU8,
    byte: &'l AtomicU8,
    object: PhysAddr,
}

impl Spot<'_> {
    /// The number of the cache that owns the frame; a number that no cache has if no cache does.
    #[inline(always)]
    pub(super) fn cache(self) -> usize {
        FrameKind::cache_number(self.kind.load(Relaxed))
    }

    /// Marks an object as given back, whose stride is at least 64; `false`, and nothing is changed, if no live object
    /// starts at the address.
    #[inline(always)]
    pub(super) fn unmark_line(self) -> bool {
        let live = self.byte.load(Relaxed) == mark(self.object);
        if live {
            self.byte.store(0, Relaxed);
        }
        live
    }

    /// Marks an object as given back that shares its byte; as [`Self::unmark_line`] otherwise.
    #[inline(always)]
    pub(super) fn unmark_shared(self) -> bool {
        let bit = bit(self.object);
        self.object.is_aligned(8) && self.byte.fetch_and(!bit, Relaxed) & bit != 0
    }
}

impl LiveMap {
    /// Puts the bytes beside the kinds of the frames; those of `of_debug` count if there are no others.
    pub(super) fn new(frames: &FrameTable, bytes: LiveBytes, of_debug: LiveBytes) -> Self {
        let beside = |bytes: LiveBytes| FrameMaps::new(frames.share_kinds(), bytes.0);
        Self { maps: beside(bytes), of_debug: beside(of_debug) }
    }

    /// Looks an address up for a free; `None` outside memory, and everywhere if nothing is marked.
    #[inline(always)]
    pub(super) fn spot(&self, object: PhysAddr) -> Option<Spot<'_>> {
        let (kind, byte) = self.maps.at(object)?;
        Some(Spot { kind, byte, object })
    }

    /// Looks an address up whose object is marked for certain, in whichever map there is.
    fn recorded(&self, object: PhysAddr) -> Option<Spot<'_>> {
        let of_debug = || self.of_debug.at(object).map(|(kind, byte)| Spot { kind, byte, object });
        self.spot(object).or_else(of_debug)
    }

    /// Tells whether the fast paths need not look at marks: hardening is off.
    #[inline(always)]
    pub(super) fn is_off(&self) -> bool {
        self.maps.fine().is_empty()
    }

    #[inline(always)]
    fn byte(&self, object: PhysAddr) -> Option<&AtomicU8> {
        self.maps.fine().get((object.as_u64() / GRANULE as u64) as usize)
    }

    /// Marks an object as handed out, whose stride is at least 64.
    #[inline(always)]
    pub(super) fn mark_line(&self, object: PhysAddr) {
        if let Some(byte) = self.byte(object) {
            byte.store(mark(object), Relaxed);
        }
    }

    /// Marks an object as handed out that shares its byte.
    #[inline(always)]
    pub(super) fn mark_shared(&self, object: PhysAddr) {
        if let Some(byte) = self.byte(object) {
            byte.fetch_or(bit(object), Relaxed);
        }
    }

    /// Marks an object as handed out.
    pub(super) fn mark(&self, mode: LiveMode, object: PhysAddr) {
        let Some(spot) = self.recorded(object) else { return };
        match mode {
            LiveMode::Off => (),
            LiveMode::Bytes => spot.byte.store(mark(object), Relaxed),
            LiveMode::Bits => {
                spot.byte.fetch_or(bit(object), Relaxed);
            }
        }
    }

    /// Marks the object as given back; `false`, and nothing is changed, if no live object starts at the address.
    pub(super) fn unmark(&self, mode: LiveMode, object: PhysAddr) -> bool {
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => self.recorded(object).is_some_and(Spot::unmark_line),
            LiveMode::Bits => self.recorded(object).is_some_and(Spot::unmark_shared),
        }
    }

    /// Tells whether a live object starts at the address; always, if the mode keeps no record.
    pub(super) fn is_live(&self, mode: LiveMode, object: PhysAddr) -> bool {
        let byte = self.recorded(object).map_or(0, |spot| spot.byte.load(Relaxed));
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => byte == mark(object),
            LiveMode::Bits => object.is_aligned(8) && byte & bit(object) != 0,
        }
    }

    /// Counts the live objects that start in a frame and share bytes.
    pub(super) fn count_bits(&self, frame: Pfn) -> u32 {
        let from = frame.index() * GRANULES_PER_FRAME;
        let map = if self.is_off() { &self.of_debug } else { &self.maps };
        let bytes = map.fine().get(from..from + GRANULES_PER_FRAME).unwrap_or_default();
        bytes.iter().map(|byte| byte.load(Relaxed).count_ones()).sum()
    }
}

/// What the byte of a live object holds if no other object shares it: the object's place in its 64 bytes, and never 0.
/// No two addresses of the 64 have the same mark.
#[inline(always)]
const fn mark(object: PhysAddr) -> u8 {
    object.as_u64().wrapping_mul(2).wrapping_add(1) as u8
}

/// The bit of an address in a byte that objects share.
#[inline(always)]
const fn bit(object: PhysAddr) -> u8 {
    1 << (object.as_u64() / 8 % 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use crate::raw::MetaRegion;

    fn map() -> LiveMap {
        let mut region = MetaRegion::heap(4096);
        let mut carver = region.carver().unwrap();
        let frames = FrameTable::carve(&Geometry::flat(2), &mut carver);
        LiveMap::new(&frames, LiveBytes::carve(2, &mut carver), LiveBytes::carve(0, &mut carver))
    }

    #[test]
    fn only_the_exact_start_of_a_live_object_is_accepted_and_only_once() {
        for (mode, start) in [(LiveMode::Bytes, 96), (LiveMode::Bits, 4096 + 24)] {
            let map = map();
            map.mark(mode, PhysAddr::new(start));
            for wrong in (start - 70..start + 70).filter(|&wrong| wrong != start) {
                assert!(!map.unmark(mode, PhysAddr::new(wrong)), "{wrong} for {start}");
            }
            assert!(map.is_live(mode, PhysAddr::new(start)));
            assert!(map.unmark(mode, PhysAddr::new(start)));
            assert!(!map.unmark(mode, PhysAddr::new(start)));
        }
    }

    #[test]
    fn neighbours_that_share_a_byte_do_not_disturb_each_other() {
        let map = map();
        for object in (0..64).step_by(8) {
            map.mark(LiveMode::Bits, PhysAddr::new(object));
        }
        assert!(map.unmark(LiveMode::Bits, PhysAddr::new(16)));
        assert_eq!(map.count_bits(Pfn::new(0)), 7);
        assert!(!map.is_live(LiveMode::Bits, PhysAddr::new(16)));
    }

    #[test]
    fn without_hardening_the_objects_of_debug_caches_are_marked_aside() {
        let mut region = MetaRegion::heap(4096);
        let mut carver = region.carver().unwrap();
        let frames = FrameTable::carve(&Geometry::flat(2), &mut carver);
        let map = LiveMap::new(&frames, LiveBytes::carve(0, &mut carver), LiveBytes::carve(2, &mut carver));
        map.mark(LiveMode::Bits, PhysAddr::new(24));
        assert!(map.is_off() && map.spot(PhysAddr::new(24)).is_none());
        assert_eq!(map.count_bits(Pfn::new(0)), 1);
        assert!(map.unmark(LiveMode::Bits, PhysAddr::new(24)) && !map.unmark(LiveMode::Bits, PhysAddr::new(24)));
    }

    #[test]
    fn addresses_outside_memory_are_never_live() {
        let map = map();
        map.mark(LiveMode::Bytes, PhysAddr::new(1 << 30));
        assert!(!map.unmark(LiveMode::Bytes, PhysAddr::new(1 << 30)));
        assert!(!map.unmark(LiveMode::Bits, PhysAddr::new(1 << 30)));
        assert!(map.unmark(LiveMode::Off, PhysAddr::new(1 << 30)));
    }
}
