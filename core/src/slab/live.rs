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
//! Two CPUs that free the same object at the very same moment are told apart for small objects only.

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr};
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU8, Ordering::Relaxed};

/// Memory that one byte of the map stands for.
const GRANULE: usize = 64;
/// Bytes of the map per frame.
const BYTES_PER_FRAME: usize = PAGE_SIZE / GRANULE;

/// How a cache's objects are marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum LiveMode {
    /// Not at all: hardening is off.
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

/// The bits of all frames.
pub(super) struct LiveMap {
    bytes: MetaSlice<AtomicU8>,
}

impl LiveMap {
    pub(super) fn carve(frames: usize, carver: &mut Carver<'_>) -> Self {
        Self { bytes: carver.carve(frames.saturating_mul(BYTES_PER_FRAME), |_| AtomicU8::new(0)) }
    }

    #[inline(always)]
    fn byte(&self, object: PhysAddr) -> Option<&AtomicU8> {
        self.bytes.get((object.as_u64() / GRANULE as u64) as usize)
    }

    /// Marks an object as handed out, whose stride is at least 64.
    #[inline(always)]
    pub(super) fn mark_line(&self, object: PhysAddr) {
        if let Some(byte) = self.byte(object) {
            byte.store(mark(object), Relaxed);
        }
    }

    /// Marks an object as given back, whose stride is at least 64; `false`, and nothing is changed, if no live object
    /// starts at the address. Without hardening there is no map, and every object counts as live.
    #[inline(always)]
    pub(super) fn unmark_line(&self, object: PhysAddr) -> bool {
        let Some(byte) = self.byte(object) else { return self.is_off() };
        let live = byte.load(Relaxed) == mark(object);
        if live {
            byte.store(0, Relaxed);
        }
        live
    }

    #[cold]
    fn is_off(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Marks an object as handed out that shares its byte.
    #[inline(always)]
    pub(super) fn mark_shared(&self, object: PhysAddr) {
        if let Some(byte) = self.byte(object) {
            byte.fetch_or(bit(object), Relaxed);
        }
    }

    /// Marks an object as given back that shares its byte; as [`Self::unmark_line`] otherwise.
    #[inline(always)]
    pub(super) fn unmark_shared(&self, object: PhysAddr) -> bool {
        let Some(byte) = self.byte(object) else { return self.is_off() };
        object.is_aligned(8) && byte.fetch_and(!bit(object), Relaxed) & bit(object) != 0
    }

    /// Marks an object as handed out.
    pub(super) fn mark(&self, mode: LiveMode, object: PhysAddr) {
        match mode {
            LiveMode::Off => (),
            LiveMode::Bytes => self.mark_line(object),
            LiveMode::Bits => self.mark_shared(object),
        }
    }

    /// Marks the object as given back; `false`, and nothing is changed, if no live object starts at the address.
    pub(super) fn unmark(&self, mode: LiveMode, object: PhysAddr) -> bool {
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => self.unmark_line(object),
            LiveMode::Bits => self.unmark_shared(object),
        }
    }

    /// Tells whether a live object starts at the address; always, if the mode keeps no record.
    pub(super) fn is_live(&self, mode: LiveMode, object: PhysAddr) -> bool {
        let byte = self.byte(object).map_or(0, |byte| byte.load(Relaxed));
        match mode {
            LiveMode::Off => true,
            LiveMode::Bytes => byte == mark(object),
            LiveMode::Bits => object.is_aligned(8) && byte & bit(object) != 0,
        }
    }

    /// Counts the live objects that start in a frame and share bytes.
    pub(super) fn count_bits(&self, frame: Pfn) -> u32 {
        let from = frame.index() * BYTES_PER_FRAME;
        let bytes = self.bytes.get(from..from + BYTES_PER_FRAME).unwrap_or_default();
        bytes.iter().map(|byte| byte.load(Relaxed).count_ones()).sum()
    }
}

/// What the byte of a live object holds if no other object shares it: the object's place in its 64 bytes, and never 0.
/// No two addresses of the 64 have the same mark.
#[inline(always)]
const fn mark(object: PhysAddr) -> u8 {
    object.as_u64() as u8 | 0xc0
}

/// The bit of an address in a byte that objects share.
#[inline(always)]
const fn bit(object: PhysAddr) -> u8 {
    1 << (object.as_u64() / 8 % 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;

    fn map() -> LiveMap {
        LiveMap::carve(2, &mut MetaRegion::heap(4096).carver().unwrap())
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
    fn addresses_outside_memory_are_never_live() {
        let map = map();
        map.mark(LiveMode::Bytes, PhysAddr::new(1 << 30));
        assert!(!map.unmark(LiveMode::Bytes, PhysAddr::new(1 << 30)));
        assert!(!map.unmark(LiveMode::Bits, PhysAddr::new(1 << 30)));
        assert!(map.unmark(LiveMode::Off, PhysAddr::new(1 << 30)));
    }
}
