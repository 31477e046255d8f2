//! Migrate types: which frames may lie next to which, so that long-lived pages do not break up large blocks.
//!
//! A pageblock (Linux: 2 MiB) has one type and requests prefer blocks of their own. A pageblock here never spans two
//! zones: one that a zone boundary cuts counts as two, each with its own type under its zone's lock.

use crate::addr::Pfn;
use crate::geometry::{Geometry, ZoneSpec};
use crate::gfp::GfpFlags;
use crate::inspect::MIGRATE_TYPES;
use crate::mobility::Mobility;
use crate::order::Order;
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU8, Ordering::Relaxed};

/// How the pages of a request behave, and the type of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MigrateType {
    /// Stay where they are until they are freed.
    Unmovable,
    /// May be moved by whoever owns them.
    Movable,
    /// Stay, but can be given back under pressure.
    Reclaimable,
    /// Kept for urgent requests of higher orders.
    HighAtomic,
    /// Set aside for large contiguous requests.
    Cma,
    /// Taken out of circulation.
    Isolate,
}

use MigrateType::{Cma, HighAtomic, Isolate, Movable, Reclaimable, Unmovable};

/// Marks the stored type of a pageblock that is isolated; the type it had is kept beside the mark. The whole byte reads
/// as [`MigrateType::Isolate`].
const ISOLATED: u8 = 1 << 7;

/// How many types have per-CPU lists of their own.
pub(super) const PCP_TYPES: usize = 3;

const _: () = assert!(Isolate as usize + 1 == MIGRATE_TYPES);

impl MigrateType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; MIGRATE_TYPES] = [Unmovable, Movable, Reclaimable, HighAtomic, Cma, Isolate];

    /// The type that the flags ask for; `None` if they ask for two.
    pub(super) const fn of(gfp: GfpFlags) -> Option<Self> {
        match (gfp.contains(GfpFlags::MOVABLE), gfp.contains(GfpFlags::RECLAIMABLE)) {
            (false, false) => Some(Unmovable),
            (true, false) => Some(Movable),
            (false, true) => Some(Reclaimable),
            (true, true) => None,
        }
    }

    /// The type by which pages of this one are kept apart.
    pub(super) const fn kept_apart(self, mobility: Mobility) -> Self {
        match mobility {
            Mobility::Mixed => Unmovable,
            Mobility::Grouped | Mobility::Defrag => self,
        }
    }

    /// Reads a stored type; unused values read as `Isolate`, which nobody allocates from.
    pub(super) const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Unmovable,
            1 => Movable,
            2 => Reclaimable,
            3 => HighAtomic,
            4 => Cma,
            _ => Isolate,
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Where a request looks when its own type has no block left: the type nearest in behaviour first.
    pub(super) const fn fallbacks(self) -> &'static [Self] {
        match self {
            Unmovable => &[Reclaimable, Movable],
            Movable => &[Reclaimable, Unmovable],
            Reclaimable => &[Unmovable, Movable],
            HighAtomic | Cma | Isolate => &[],
        }
    }

    /// Tells whether a pageblock of this type may merge with one of another type, taking over one of the two.
    pub(super) const fn is_ordinary(self) -> bool {
        matches!(self, Unmovable | Movable | Reclaimable)
    }

    /// The type of the per-CPU list on which pages of such a pageblock are parked; `None` if they may not be.
    pub(super) const fn parked(self) -> Option<Self> {
        match self {
            Unmovable | Movable | Reclaimable => Some(self),
            HighAtomic | Cma => Some(Movable),
            Isolate => None,
        }
    }
}

/// How many pageblocks a zone touches.
pub(super) fn nr_pageblocks(zone: &ZoneSpec, order: Order) -> u32 {
    let last = zone.start.as_u32() + (zone.frames.get() as u32 - 1);
    (last >> order.get()) - (zone.start.as_u32() >> order.get()) + 1
}

/// The types of all pageblocks, zone after zone; each byte changes under its zone's lock only.
pub(super) struct Pageblocks {
    types: MetaSlice<AtomicU8>,
    /// Which pageblocks compaction need not look at again: nothing in them could be moved, or nothing in them was free.
    skips: MetaSlice<AtomicU8>,
    pub(super) order: Order,
}

impl Pageblocks {
    pub(super) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let order = geometry.pageblock_order;
        let count: u32 = geometry.zones().iter().map(|zone| nr_pageblocks(zone, order)).sum();
        // Everything starts movable: a request that is not turns pageblocks over one by one, as few as it needs.
        let first = Movable.kept_apart(geometry.mobility);
        let types = carver.carve(count as usize, |_| AtomicU8::new(first as u8));
        let skips = carver.carve(count as usize, |_| AtomicU8::new(0));
        Self { types, skips, order }
    }

    /// Where the pageblock of `pfn` is in the map; `base` is the zone's [`Zone::block_base`](super::zone::Zone).
    #[inline(always)]
    fn index(&self, base: u32, pfn: Pfn) -> usize {
        base.wrapping_add(pfn.as_u32() >> self.order.get()) as usize
    }

    /// The stored type of the pageblock around `pfn`.
    #[inline(always)]
    pub(super) fn get_byte(&self, base: u32, pfn: Pfn) -> u8 {
        self.types.get(self.index(base, pfn)).map_or(Isolate as u8, |byte| byte.load(Relaxed))
    }

    pub(super) fn get(&self, base: u32, pfn: Pfn) -> MigrateType {
        MigrateType::from_byte(self.get_byte(base, pfn))
    }

    /// Tells whether compaction has found the pageblock around `pfn` fruitless.
    pub(super) fn skips(&self, base: u32, pfn: Pfn) -> bool {
        self.skips.get(self.index(base, pfn)).is_some_and(|skip| skip.load(Relaxed) != 0)
    }

    pub(super) fn set_skip(&self, base: u32, pfn: Pfn, skip: bool) {
        if let Some(byte) = self.skips.get(self.index(base, pfn)) {
            byte.store(u8::from(skip), Relaxed);
        }
    }

    /// Marks a pageblock as isolated; `false` if it is already.
    pub(super) fn isolate(&self, base: u32, pfn: Pfn) -> bool {
        let Some(byte) = self.types.get(self.index(base, pfn)) else { return false };
        let stored = byte.load(Relaxed);
        byte.store(stored | ISOLATED, Relaxed);
        stored & ISOLATED == 0
    }

    /// Gives an isolated pageblock the type back that it had.
    pub(super) fn unisolate(&self, base: u32, pfn: Pfn) {
        if let Some(byte) = self.types.get(self.index(base, pfn)) {
            byte.store(byte.load(Relaxed) & !ISOLATED, Relaxed);
        }
    }

    pub(super) fn set(&self, base: u32, pfn: Pfn, migrate: MigrateType) {
        if let Some(byte) = self.types.get(self.index(base, pfn)) {
            byte.store(migrate as u8, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ZoneKind;
    use crate::testing::{carve, zoned};

    #[test]
    fn each_type_falls_back_to_the_other_two_in_the_order_of_linux() {
        assert_eq!(Unmovable.fallbacks(), [Reclaimable, Movable]);
        assert_eq!(Movable.fallbacks(), [Reclaimable, Unmovable]);
        assert_eq!(Reclaimable.fallbacks(), [Unmovable, Movable]);
    }

    #[test]
    fn stored_types_read_back() {
        for migrate in MigrateType::ALL {
            assert_eq!(MigrateType::from_byte(migrate as u8), migrate);
        }
    }

    #[test]
    fn zones_that_share_a_pageblock_have_an_entry_each() {
        let mut geometry = zoned(&[(ZoneKind::Dma, 0, 20), (ZoneKind::Normal, 20, 13)]);
        geometry.pageblock_order = Order::new(3).unwrap();
        let counts: std::vec::Vec<u32> =
            geometry.zones().iter().map(|zone| nr_pageblocks(zone, geometry.pageblock_order)).collect();
        assert_eq!(counts, [3, 3], "16..24 belongs to both");
        let blocks = carve(&geometry, Pageblocks::carve);
        let (dma, normal) = (0, 3u32.wrapping_sub(20 >> 3));
        blocks.set(normal, Pfn::new(22), Reclaimable);
        assert_eq!(blocks.get(normal, Pfn::new(20)), Reclaimable);
        assert_eq!(blocks.get(dma, Pfn::new(19)), Movable);
        assert_eq!(blocks.get(normal, Pfn::new(24)), Movable);
    }
}
