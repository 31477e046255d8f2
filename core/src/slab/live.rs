//! Which objects are in a user's hands: what a free is checked against.
//!
//! Two bytes per 64 bytes of memory, found from the address alone: no division, no slab lookup. They say where in their
//! 64 bytes live objects *start*, so that an interior pointer, a pointer to a free object, also one that waits in a
//! sheaf, and a pointer into a slab's unused tail all find something else there.
//!
//! | stride | first byte | second byte | written by |
//! |---|---|---|---|
//! | 64 n, a class of `kmalloc` | the class' mark, 128 and more, or 0 | 0 | plain stores |
//! | 64 and more | the object's [`mark`], below 128, or 0: one object at most starts there | 0 | plain stores |
//! | less | 0 | one bit per 8 bytes, set while an object starts there | read-modify-write: CPUs share it |
//!
//! A class' mark names the cache as well: whoever frees such an object needs to look nowhere else.
//!
//! ```text
//! L1  the byte names a  =>  an object of the slab starts at a, its occupancy bit is set, and it is in no sheaf
//! ```
//!
//! Without hardening only the objects of debug caches are marked, in a map that the fast paths do not look at.
//!
//! Two CPUs that free the same object at the very same moment are told apart for small objects only; of those with a class'
//! mark, a call that interrupts the free of the same object neither.

use super::classes::Class;
use crate::addr::{Pfn, PhysAddr};
use crate::page::{FrameKind, FrameTable};
use crate::raw::{Carver, FrameMaps, GRANULE, GRANULES_PER_FRAME, MetaSlice};
use crate::sync::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// How a cache's objects are marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LiveMode {
    /// Not at all: hardening is off, and nobody debugs the cache.
    Off,
    /// By plain stores: no two objects share a byte.
    Bytes,
    /// By read-modify-write.
    Bits,
    /// By plain stores, with the mark of a class whose objects start at multiples of 64.
    Class(Class),
}

impl LiveMode {
    /// Returns the cheapest mode for objects `stride` bytes apart.
    pub(super) const fn for_stride(stride: usize) -> Self {
        if stride >= GRANULE { Self::Bytes } else { Self::Bits }
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        match (byte, class_of_mark(byte)) {
            (_, Some(class)) => Self::Class(class),
            (1, None) => Self::Bytes,
            (2, None) => Self::Bits,
            _ => Self::Off,
        }
    }

    /// What [`Self::from_byte`] takes.
    pub(super) const fn to_byte(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Bytes => 1,
            Self::Bits => 2,
            Self::Class(class) => class_mark(class),
        }
    }
}

/// Words of second bytes in a frame.
const WORDS_PER_FRAME: usize = GRANULES_PER_FRAME / 8;

/// The bytes of all frames, as they are carved.
pub(super) struct LiveBytes {
    marked: MetaSlice<AtomicU8>,
    bits: MetaSlice<AtomicU64>,
    of_debug: MetaSlice<AtomicU8>,
}

impl LiveBytes {
    /// Carves them for so many frames; without hardening those of debug caches only.
    pub(super) fn carve(frames: usize, hardened: bool, carver: &mut Carver<'_>) -> Self {
        let granules = frames.saturating_mul(GRANULES_PER_FRAME);
        let marked = if hardened { granules } else { 0 };
        Self {
            marked: carver.carve_zeroed(marked),
            bits: carver.carve_zeroed(granules / 8),
            of_debug: carver.carve_zeroed(granules - marked),
        }
    }
}

/// The liveness of all objects, beside the kinds of all frames.
pub(super) struct LiveMap {
    /// The first bytes.
    maps: FrameMaps,
    /// The second bytes, eight in a word: a mark must not be taken for bits.
    bits: MetaSlice<AtomicU64>,
    /// Stands in for `maps` where those are empty: for debug caches, of which no class has marks.
    of_debug: FrameMaps,
}

/// Where an address is in the maps.
#[derive(Clone, Copy)]
pub(super) struct Spot<'l> {
    kind: &'l AtomicU8,
    byte: &'l AtomicU8,
    object: PhysAddr,
}

/// The second byte of an address, and its neighbours.
#[derive(Clone, Copy)]
pub(super) struct SharedSpot<'l> {
    word: &'l AtomicU64,
    object: PhysAddr,
}

impl Spot<'_> {
    /// The number of the cache that owns the frame; a number that no cache has if no cache does.
    #[inline(always)]
    pub(super) fn cache(self) -> usize {
        FrameKind::cache_number(self.kind.load(Relaxed))
    }

    /// The address.
    #[inline(always)]
    pub(super) fn object(self) -> PhysAddr {
        self.object
    }

    /// Marks an object as given back, whose stride is at least 64 and whose class has no mark; `false`, and nothing is
    /// changed, if no live object starts at the address.
    #[inline(always)]
    pub(super) fn unmark_line(self) -> bool {
        self.unmark(mark(self.object))
    }

    #[inline(always)]
    fn unmark(self, mark: u8) -> bool {
        let live = self.byte.load(Relaxed) == mark;
        if live {
            self.byte.store(0, Relaxed);
        }
        live
    }
}

impl SharedSpot<'_> {
    /// Marks an object as given back that shares its byte; as [`Spot::unmark_line`] otherwise.
    #[inline(always)]
    pub(super) fn unmark_shared(self) -> bool {
        let bit = bit(self.object);
        self.object.is_aligned(8) && self.word.fetch_and(!bit, Relaxed) & bit != 0
    }
}

/// The place of the mark of a live object.
pub(super) struct ClassMark<'l>(&'l AtomicU8);

impl ClassMark<'_> {
    /// Marks the object as given back.
    #[inline(always)]
    pub(super) fn unmark(self) {
        self.0.store(0, Relaxed);
    }
}

impl LiveMap {
    /// Puts the bytes beside the kinds of the frames; those of `of_debug` count if there are no others.
    pub(super) fn new(frames: &FrameTable, bytes: LiveBytes) -> Self {
        let beside = |bytes| FrameMaps::new(frames.share_kinds(), bytes);
        Self { maps: beside(bytes.marked), bits: bytes.bits, of_debug: beside(bytes.of_debug) }
    }

    /// The class whose mark a live object has that starts at the address, and the mark's place.
    ///
    /// An address that is no multiple of 64 is outside memory once its lowest bits are turned to the top.
    #[inline(always)]
    pub(super) fn class_at(&self, object: PhysAddr) -> Option<(Class, ClassMark<'_>)> {
        let byte = self.byte(usize::try_from(object.as_u64().rotate_right(GRANULE.trailing_zeros())).ok()?)?;
        Some((class_of_mark(byte.load(Relaxed))?, ClassMark(byte)))
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

    /// Looks an address up whose object shares its byte; `None` outside memory.
    #[inline(always)]
    pub(super) fn shared_spot(&self, object: PhysAddr) -> Option<SharedSpot<'_>> {
        self.bits.get(granule(object) / 8).map(|word| SharedSpot { word, object })
    }

    /// Tells whether the fast paths need not look at marks: hardening is off.
    #[inline(always)]
    pub(super) fn is_off(&self) -> bool {
        self.maps.fine().is_empty()
    }

    #[inline(always)]
    fn byte(&self, granule: usize) -> Option<&AtomicU8> {
        self.maps.fine().get(granule)
    }

    /// Marks an object as handed out, whose stride is at least 64 and whose class has no mark.
    #[inline(always)]
    pub(super) fn mark_line(&self, object: PhysAddr) {
        self.mark_with(mark(object), object);
    }

    /// Marks an object as handed out with the mark of its class.
    #[inline(always)]
    pub(super) fn mark_with(&self, mark: u8, object: PhysAddr) {
        if let Some(byte) = self.byte(granule(object)) {
            byte.store(mark, Relaxed);
        }
    }

    /// Marks an object as handed out that shares its byte.
    #[inline(always)]
    pub(super) fn mark_shared(&self, object: PhysAddr) {
        if let Some(spot) = self.shared_spot(object) {
            spot.word.fetch_or(bit(object), Relaxed);
        }
    }

    /// Marks an object as handed out.
    pub(super) fn mark(&self, mode: LiveMode, object: PhysAddr) {
        match mode {
            LiveMode::Off => (),
            LiveMode::Bytes => self.recorded(object).iter().for_each(|spot| spot.byte.store(mark(object), Relaxed)),
            LiveMode::Class(class) => self.mark_with(class_mark(class), object),
            LiveMode::Bits => self.mark_shared(object),
        }
    }

    /// Marks the object as given back; `false`, and nothing is changed, if no live object starts at the address.
    pub(super) fn unmark(&self, mode: LiveMode, object: PhysAddr) -> bool {
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => self.recorded(object).is_some_and(Spot::unmark_line),
            LiveMode::Bits => self.shared_spot(object).is_some_and(SharedSpot::unmark_shared),
            LiveMode::Class(class) => {
                let spot = self.spot(object).filter(|_| object.is_aligned(GRANULE as u64));
                spot.is_some_and(|spot| spot.unmark(class_mark(class)))
            }
        }
    }

    /// Tells whether a live object starts at the address; always, if the mode keeps no record.
    pub(super) fn is_live(&self, mode: LiveMode, object: PhysAddr) -> bool {
        let byte = || self.recorded(object).map_or(0, |spot| spot.byte.load(Relaxed));
        let bits = || self.shared_spot(object).map_or(0, |spot| spot.word.load(Relaxed));
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => byte() == mark(object),
            LiveMode::Bits => object.is_aligned(8) && bits() & bit(object) != 0,
            LiveMode::Class(class) => object.is_aligned(GRANULE as u64) && byte() == class_mark(class),
        }
    }

    /// Counts the live objects that start in a frame and share bytes.
    pub(super) fn count_bits(&self, frame: Pfn) -> u32 {
        let from = frame.index() * WORDS_PER_FRAME;
        let words = self.bits.get(from..from + WORDS_PER_FRAME).unwrap_or_default();
        words.iter().map(|word| word.load(Relaxed).count_ones()).sum()
    }
}

/// What the byte of a live object holds if no other object shares it: the object's place in its 64 bytes, and never 0.
/// No two addresses of the 64 have the same mark.
#[inline(always)]
const fn mark(object: PhysAddr) -> u8 {
    (object.as_u64() % GRANULE as u64 * 2 + 1) as u8
}

/// The mark of the first class; every [`mark`] is below.
const FIRST_CLASS_MARK: u8 = 2 * GRANULE as u8;

/// The mark of a class.
pub(super) const fn class_mark(class: Class) -> u8 {
    FIRST_CLASS_MARK + class.get() as u8
}

/// The class that has this mark.
#[inline(always)]
fn class_of_mark(mark: u8) -> Option<Class> {
    Class::new(usize::from(mark).wrapping_sub(FIRST_CLASS_MARK as usize))
}

/// The number of the 64 bytes that an address is in.
#[inline(always)]
const fn granule(object: PhysAddr) -> usize {
    (object.as_u64() / GRANULE as u64) as usize
}

/// The bit of an address in a word that objects share.
#[inline(always)]
const fn bit(object: PhysAddr) -> u64 {
    1 << (object.as_u64() / 8 % 64)
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
        LiveMap::new(&frames, LiveBytes::carve(2, true, &mut carver))
    }

    #[test]
    fn only_the_exact_start_of_a_live_object_is_accepted_and_only_once() {
        let class = LiveMode::Class(Class::new(5).unwrap());
        for (mode, start) in [(LiveMode::Bytes, 96), (LiveMode::Bits, 4096 + 24), (class, 128)] {
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
    fn the_mark_of_a_class_names_it_and_bits_are_never_taken_for_one() {
        let map = map();
        let found = |at| map.class_at(PhysAddr::new(at)).map(|(class, _)| class.get());
        for (number, class) in (0..super::super::classes::NR_CLASSES).filter_map(Class::new).enumerate() {
            assert_eq!(LiveMode::from_byte(LiveMode::Class(class).to_byte()), LiveMode::Class(class));
            map.mark(LiveMode::Class(class), PhysAddr::new(64));
            assert_eq!((found(64), found(72), found(128), found(64 + (1 << 30))), (Some(number), None, None, None));
        }
        assert!(map.unmark(LiveMode::Class(Class::new(12).unwrap()), PhysAddr::new(64)));
        for start in (64..128).step_by(8).map(PhysAddr::new) {
            map.mark(LiveMode::Bits, start);
            assert_eq!((found(64), found(start.as_u64())), (None, None));
            map.mark(LiveMode::Bytes, start);
            assert_eq!((found(64), found(start.as_u64())), (None, None));
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
        let map = LiveMap::new(&frames, LiveBytes::carve(2, false, &mut carver));
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
