//! Who allocated and who freed an object: two records behind it, and the table of places that they name.
//!
//! A record lies in memory that users can damage, so it holds numbers only: the place is an index into a table outside of
//! that memory. An index that no place has reads as "unknown".

use super::layout::WORD;
use crate::addr::PhysAddr;
use crate::bug::Track;
use crate::raw::{Carver, MetaSlice, PhysMem};
use crate::sync::{AtomicU64, Ordering::Relaxed, SpinLock};
use core::panic::Location;

/// Bytes of a record: the sequence number; then place, CPU, and whether it was written.
pub(super) const TRACK_BYTES: usize = 2 * WORD;
/// Says that a record was written.
const WRITTEN: u64 = 0x7ac4 << 48;

/// Which of an object's two records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Allocated,
    Freed,
}

type Place = &'static Location<'static>;

/// The places of calls, and how many records were written.
pub(in crate::slab) struct Sites {
    places: MetaSlice<SpinLock<Option<Place>>>,
    sequence: AtomicU64,
}

impl Sites {
    pub(in crate::slab) fn carve(places: usize, carver: &mut Carver<'_>) -> Self {
        Self { places: carver.carve(places, |_| SpinLock::new(None)), sequence: AtomicU64::new(0) }
    }

    /// The number of a place, from 1 on; 0 if the table is full or there is none.
    fn number(&self, place: Place) -> u32 {
        let slots = self.places.len();
        let from = (place.line() as usize).wrapping_mul(31).wrapping_add(place.column() as usize);
        let probe = |step: usize| {
            let at = from.wrapping_add(step) % slots;
            let mut slot = self.places.get(at)?.lock();
            let found = *slot.get_or_insert(place);
            (found == place).then_some(at as u32 + 1)
        };
        (0..slots).find_map(probe).unwrap_or(0)
    }

    fn place(&self, number: u32) -> Option<Place> {
        let at = (number as usize).checked_sub(1)?;
        self.places.get(at).and_then(|slot| *slot.lock())
    }

    /// The next record of a call.
    pub(super) fn stamp(&self, cpu: u16, site: Option<Place>) -> Track {
        Track { site, cpu, sequence: self.sequence.fetch_add(1, Relaxed) }
    }

    /// Writes a record.
    pub(super) fn write(&self, mem: &PhysMem, at: PhysAddr, track: &Track) {
        let number = track.site.map_or(0, |place| self.number(place));
        let second = WRITTEN | u64::from(track.cpu) << 32 | u64::from(number);
        let done = mem.write_u64(at, track.sequence) && mem.write_u64(at.saturating_add(WORD), second);
        debug_assert!(done, "a slab lies outside memory");
    }

    /// Marks a record as not written.
    pub(super) fn clear(mem: &PhysMem, at: PhysAddr) {
        let done = mem.fill(at, TRACK_BYTES, 0);
        debug_assert!(done, "a slab lies outside memory");
    }

    /// Reads a record; `None` if it was not written, or was damaged.
    pub(super) fn read(&self, mem: &PhysMem, at: PhysAddr) -> Option<Track> {
        let (sequence, second) = (mem.read_u64(at)?, mem.read_u64(at.saturating_add(WORD))?);
        let is_written = second >> 48 == WRITTEN >> 48;
        is_written.then(|| Track { site: self.place(second as u32), cpu: (second >> 32) as u16, sequence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;

    fn sites(places: usize) -> Sites {
        Sites::carve(places, &mut MetaRegion::heap(4096).carver().unwrap())
    }

    fn read_back(sites: &Sites, site: Option<Place>) -> Option<Track> {
        let mem = PhysMem::heap(1, 0xa5);
        let at = PhysAddr::new(48);
        assert_eq!(sites.read(&mem, at), None, "junk is no record");
        sites.write(&mem, at, &sites.stamp(3, site));
        let read = sites.read(&mem, at);
        Sites::clear(&mem, at);
        assert_eq!(sites.read(&mem, at), None);
        read
    }

    #[test]
    fn a_record_is_read_back_with_its_place_while_the_table_has_room() {
        let sites = sites(2);
        let (here, there, third) = (Location::caller(), Location::caller(), Location::caller());
        for place in [here, there, here] {
            let track = read_back(&sites, Some(place)).unwrap();
            assert_eq!((track.site, track.cpu), (Some(place), 3));
        }
        assert_eq!(read_back(&sites, Some(third)).unwrap().site, None);
        assert_eq!(read_back(&sites, None).unwrap().sequence, 4, "each record has a number of its own");
    }

    #[test]
    fn without_a_table_the_rest_is_still_recorded() {
        let track = read_back(&sites(0), Some(Location::caller())).unwrap();
        assert_eq!((track.site, track.cpu, track.sequence), (None, 3, 0));
    }
}
