//! Which zones a request may use and how much it must leave in them, derived again from sections 3.1 and 3.5.

use kmem::{Geometry, GfpFlags, MinFree, NR_PAGE_ORDERS, ZoneKind, ZoneSpec};

/// The highest kind of zone that these flags allow; `None` if they contradict each other (section 3.1).
pub fn highest_zone(gfp: GfpFlags) -> Option<ZoneKind> {
    let one_of = [GfpFlags::DMA, GfpFlags::DMA32, GfpFlags::HIGHMEM];
    match one_of.into_iter().filter(|&bit| gfp.contains(bit)).count() {
        0 => Some(ZoneKind::Normal),
        1 if gfp.contains(GfpFlags::DMA) => Some(ZoneKind::Dma),
        1 if gfp.contains(GfpFlags::DMA32) => Some(ZoneKind::Dma32),
        1 if gfp.contains(GfpFlags::MOVABLE) => Some(ZoneKind::Movable),
        1 => Some(ZoneKind::Normal),
        _ => None,
    }
}

/// Tells whether the two mobility bits contradict each other.
pub fn bad_mobility(gfp: GfpFlags) -> bool {
    gfp.contains(GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE)
}

/// The flags with which a slab gets its pages: a slab honours neither DMA32 nor HIGHMEM, its pages never move, and the
/// zone is the cache's (section 2.1, last row).
pub fn slab_page_flags(gfp: GfpFlags) -> GfpFlags {
    gfp.difference(GfpFlags::DMA32 | GfpFlags::HIGHMEM | GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE)
}

/// The flags with which a large `kmalloc` asks for its pages.
pub fn large_page_flags(gfp: GfpFlags) -> GfpFlags {
    gfp.difference(GfpFlags::DMA32 | GfpFlags::HIGHMEM)
}

/// One zone's three marks, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Only reserves are below it.
    pub min: u64,
    /// The first attempt stops here.
    pub low: u64,
    /// Reclaim stops here.
    pub high: u64,
}

/// The marks of each zone of the geometry.
///
/// A given number of pages is divided over all zones by their sizes. The automatic one is computed from, and divided over,
/// the zones below the movable one, which has a mark of its own (section 3.5).
pub fn watermarks(geometry: &Geometry) -> Vec<Watermarks> {
    let is_low = |zone: &&ZoneSpec| zone.kind != ZoneKind::Movable;
    let low_pages: u64 = geometry.zones().iter().filter(is_low).map(|z| z.frames.get()).sum();
    let marks = |zone: &ZoneSpec| {
        let managed = zone.frames.get();
        let min = match geometry.min_free {
            MinFree::Pages(n) => u64::from(n) * managed / geometry.managed().get(),
            MinFree::Auto if zone.kind == ZoneKind::Movable => (managed / 1024).clamp(32, 128),
            MinFree::Auto => (low_pages * 4 * 16).isqrt().clamp(128, 262_144) / 4 * managed / low_pages,
        };
        let step = (min / 4).max(managed * 10 / 10_000);
        Watermarks { min, low: min + step, high: min + 2 * step }
    };
    geometry.zones().iter().map(marks).collect()
}

/// Pages that zone `index` keeps back from requests that could have used higher zones of its node.
pub fn lowmem_reserve(geometry: &Geometry, index: usize, highest: ZoneKind) -> u64 {
    let Some(zone) = geometry.zones().get(index) else { return 0 };
    let ratio = match zone.kind {
        ZoneKind::Dma | ZoneKind::Dma32 => 256,
        ZoneKind::Normal => 32,
        ZoneKind::Movable => return 0,
    };
    let above = |z: &&ZoneSpec| z.node == zone.node && z.kind > zone.kind && z.kind <= highest;
    geometry.zones().iter().filter(above).map(|z| z.frames.get()).sum::<u64>() / ratio
}

/// Pages that a request must leave free in a zone whose min mark is `min`; `None` if it may take all.
///
/// Where the contract can be read in two ways (`HIGH` without reclaim but with `NOMEMALLOC`) the answer is the larger
/// one, so that what is demanded of the subject is what both readings demand.
pub fn reserve_mark(gfp: GfpFlags, min: u64) -> Option<u64> {
    if gfp.contains(GfpFlags::MEMALLOC) && !gfp.contains(GfpFlags::NOMEMALLOC) {
        return None;
    }
    if !gfp.contains(GfpFlags::HIGH) {
        return Some(min);
    }
    let half = min - min / 2;
    let blocking = gfp.intersects(GfpFlags::DIRECT_RECLAIM | GfpFlags::NOMEMALLOC);
    Some(if blocking { half } else { half - half / 4 })
}

/// Free pages and blocks of one zone, real or imagined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneState {
    /// Pages in free blocks.
    pub free_pages: u64,
    /// Free blocks of each order.
    pub blocks: [u32; NR_PAGE_ORDERS],
}

/// The zones as one request sees them.
#[derive(Clone, Debug)]
pub struct ZoneRules {
    /// Of each zone of the geometry: `None` if the request may not use it, else what it must leave free there,
    /// `Some(None)` meaning nothing.
    marks: Vec<Option<Option<u64>>>,
}

impl ZoneRules {
    /// Derives them; a request with contradicting flags may use no zone.
    pub fn new(geometry: &Geometry, gfp: GfpFlags) -> Self {
        let mark = |(index, (zone, marks)): (usize, (&ZoneSpec, Watermarks))| {
            let highest = highest_zone(gfp).filter(|&highest| zone.kind <= highest)?;
            Some(reserve_mark(gfp, marks.min).map(|m| m + lowmem_reserve(geometry, index, highest)))
        };
        Self { marks: geometry.zones().iter().zip(watermarks(geometry)).enumerate().map(mark).collect() }
    }

    /// The zones that the request may use.
    pub fn eligible(&self) -> impl Iterator<Item = usize> {
        self.marks.iter().enumerate().filter(|(_, m)| m.is_some()).map(|(i, _)| i)
    }

    /// Tells whether zone `index` must serve a block of this order from this state (section 3.5, "Test").
    pub fn admits(&self, index: usize, order: u8, state: &ZoneState) -> bool {
        let Some(Some(mark)) = self.marks.get(index) else { return false };
        let has_block = state.blocks.iter().skip(usize::from(order)).any(|&n| n > 0);
        let passes = mark.is_none_or(|mark| state.free_pages > mark + (1 << order) - 1);
        has_block && passes
    }

    /// How many single pages zone `index` must give one after another.
    pub fn single_pages(&self, index: usize, state: &ZoneState) -> u64 {
        match self.marks.get(index) {
            Some(Some(mark)) => state.free_pages.saturating_sub(mark.unwrap_or(0)),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::{PageCount, Pfn};

    #[test]
    fn zones_follow_the_flags() {
        assert_eq!(highest_zone(GfpFlags::KERNEL), Some(ZoneKind::Normal));
        assert_eq!(highest_zone(GfpFlags::MOVABLE), Some(ZoneKind::Normal));
        assert_eq!(highest_zone(GfpFlags::HIGHUSER_MOVABLE), Some(ZoneKind::Movable));
        assert_eq!(highest_zone(GfpFlags::DMA | GfpFlags::MOVABLE), Some(ZoneKind::Dma));
        assert_eq!(highest_zone(GfpFlags::DMA | GfpFlags::DMA32), None);
        assert_eq!(highest_zone(GfpFlags::DMA32 | GfpFlags::HIGHMEM), None);
    }

    /// The golden vectors of section 3.5: `(managed MiB, min, low, high)`.
    #[test]
    fn marks_are_the_golden_ones() {
        for (mib, min, low, high) in [(16, 128, 160, 192), (64, 256, 320, 384), (1024, 1024, 1286, 1548)] {
            let marks = watermarks(&Geometry::flat(mib * 256));
            assert_eq!(marks, [Watermarks { min, low, high }], "{mib} MiB");
        }
    }

    #[test]
    fn reserve_rights_are_those_of_section_3_5() {
        assert_eq!(reserve_mark(GfpFlags::KERNEL, 128), Some(128));
        assert_eq!(reserve_mark(GfpFlags::KERNEL | GfpFlags::HIGH, 128), Some(64));
        assert_eq!(reserve_mark(GfpFlags::ATOMIC, 128), Some(48));
        assert_eq!(reserve_mark(GfpFlags::NOWAIT, 128), Some(128));
        assert_eq!(reserve_mark(GfpFlags::MEMALLOC, 128), None);
        assert_eq!(reserve_mark(GfpFlags::MEMALLOC | GfpFlags::NOMEMALLOC, 128), Some(128));
    }

    #[test]
    fn a_lower_zone_keeps_pages_back_from_requests_for_a_higher_one() {
        let zone = |kind, start, frames| ZoneSpec {
            kind,
            node: kmem::NodeId::ZERO,
            start: Pfn::new(start),
            frames: PageCount::new(frames),
        };
        let zones =
            [zone(ZoneKind::Dma, 0, 512), zone(ZoneKind::Normal, 512, 5120), zone(ZoneKind::Movable, 5632, 640)];
        let geometry = Geometry::flat(1).with_zones(&zones).unwrap();
        assert_eq!(lowmem_reserve(&geometry, 0, ZoneKind::Normal), 20);
        assert_eq!(lowmem_reserve(&geometry, 0, ZoneKind::Dma), 0);
        assert_eq!(lowmem_reserve(&geometry, 0, ZoneKind::Movable), 22);
        assert_eq!(lowmem_reserve(&geometry, 1, ZoneKind::Movable), 20);
    }

    #[test]
    fn the_test_fails_at_the_mark_and_passes_above_it() {
        let mut geometry = Geometry::flat(64);
        geometry.min_free = MinFree::Pages(16);
        let rules = ZoneRules::new(&geometry, GfpFlags::KERNEL);
        let state = |free_pages, order: usize| {
            let mut blocks = [0; NR_PAGE_ORDERS];
            blocks[order] = 1;
            ZoneState { free_pages, blocks }
        };
        assert!(!rules.admits(0, 0, &state(16, 4)) && rules.admits(0, 0, &state(17, 4)));
        assert!(!rules.admits(0, 2, &state(19, 4)) && rules.admits(0, 2, &state(20, 4)));
        assert!(!rules.admits(0, 5, &state(60, 4)), "no block of order 5");
        assert_eq!(rules.single_pages(0, &state(20, 4)), 4);
    }
}
