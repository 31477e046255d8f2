//! Two dense maps of memory, looked into together with one check.

use super::region::MetaSlice;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PhysAddr};
use crate::sync::AtomicU8;

/// Memory that one byte of the fine map stands for.
pub(crate) const GRANULE: usize = 64;
/// Bytes of the fine map per frame.
pub(crate) const GRANULES_PER_FRAME: usize = PAGE_SIZE / GRANULE;

/// A map with a byte for each frame and one with a byte for each 64 bytes of memory.
///
/// # Invariants
///
/// ```text
/// M1  frames <= length of coarse;  frames * 64 <= length of fine
/// ```
pub(crate) struct FrameMaps {
    coarse: MetaSlice<AtomicU8>,
    fine: MetaSlice<AtomicU8>,
    frames: usize,
}

impl FrameMaps {
    /// Puts two maps of the same memory together. The fine one may be shorter, and even empty.
    pub(crate) fn new(coarse: MetaSlice<AtomicU8>, fine: MetaSlice<AtomicU8>) -> Self {
        let frames = coarse.len().min(fine.len() / GRANULES_PER_FRAME);
        Self { coarse, fine, frames }
    }

    /// The bytes of both maps for an address; `None` where one of them has none.
    #[inline(always)]
    pub(crate) fn at(&self, addr: PhysAddr) -> Option<(&AtomicU8, &AtomicU8)> {
        let frame = (addr.as_u64() >> PAGE_SHIFT) as usize;
        if frame >= self.frames {
            return None;
        }
        let granule = (addr.as_u64() / GRANULE as u64) as usize;
        // SAFETY: M1: the frame is below the length of the coarse map.
        let coarse = unsafe { self.coarse.get_unchecked(frame) };
        // SAFETY: M1: the granule is below (frame + 1) * 64, which is at most the length of the fine map.
        let fine = unsafe { self.fine.get_unchecked(granule) };
        Some((coarse, fine))
    }

    /// The fine map.
    #[inline(always)]
    pub(crate) fn fine(&self) -> &[AtomicU8] {
        &self.fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;
    use crate::sync::Ordering::Relaxed;

    fn maps(coarse: usize, fine: usize) -> FrameMaps {
        let mut region = MetaRegion::heap(1 << 16);
        let mut carver = region.carver().unwrap();
        let coarse = carver.carve(coarse, |i| AtomicU8::new(i as u8));
        let fine = carver.carve(fine, |i| AtomicU8::new(i as u8));
        FrameMaps::new(coarse, fine)
    }

    #[test]
    fn an_address_leads_to_its_bytes_and_none_beyond_the_shorter_map_does() {
        let maps = maps(3, 2 * GRANULES_PER_FRAME);
        let at = |addr| maps.at(PhysAddr::new(addr)).map(|(c, f)| (c.load(Relaxed), f.load(Relaxed)));
        assert_eq!(at(0), Some((0, 0)));
        assert_eq!(at(4096 + 130), Some((1, 66)));
        assert_eq!(at(2 * 4096 - 1), Some((1, 127)));
        assert_eq!(at(2 * 4096), None);
        assert_eq!(at(u64::MAX), None);
    }

    #[test]
    fn without_a_fine_map_no_address_is_found() {
        let maps = maps(3, 0);
        assert!(maps.at(PhysAddr::new(0)).is_none() && maps.fine().is_empty());
    }
}
