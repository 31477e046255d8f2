//! Which zones a request may use and how much it must leave in them, derived again from sections 3.1 and 3.5.

use kmem::{Geometry, GfpFlags, MigrateType, MinFree, Mobility, NR_PAGE_ORDERS, NodeId, ZoneKind, ZoneSpec};

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

/// One zone's marks, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// Only reserves are below it.
    pub min: u64,
    /// The first attempt stops here.
    pub low: u64,
    /// Reclaim stops here.
    pub high: u64,
    /// Promotion of pages from slower memory stops here.
    pub promo: u64,
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
        Watermarks { min, low: min + step, high: min + 2 * step, promo: min + 3 * step }
    };
    geometry.zones().iter().map(marks).collect()
}

/// The most by which a zone's marks can be boosted: 150 percent of high, a pageblock at least, and nothing where there are
/// less than four pageblocks or no reserve (section 3.3, last row).
pub fn most_boost(geometry: &Geometry, index: usize) -> u64 {
    let (Some(zone), Some(marks)) = (geometry.zones().get(index), watermarks(geometry).get(index).copied()) else {
        return 0;
    };
    let pageblock = geometry.pageblock_order.pages();
    if zone.frames.get() < 4 * pageblock || marks.high == 0 { 0 } else { (marks.high * 15_000 / 10_000).max(pageblock) }
}

/// The most pages in the HIGHATOMIC reserve of a zone: it takes no more pageblocks once it has a hundredth of the zone, and
/// none if that is less than one (section 3.3).
pub fn most_highatomic(geometry: &Geometry, zone: &ZoneSpec) -> u64 {
    let (hundredth, pageblock) = (zone.frames.get() / 100, geometry.pageblock_order.pages());
    if hundredth < pageblock {
        return 0;
    }
    // One page less than full, it takes a last block, which can be larger than a pageblock.
    hundredth.next_multiple_of(pageblock) - pageblock + geometry.max_order.pages().max(pageblock)
}

/// Tells whether a request with these flags may use CMA pageblocks (sections 3.3 and 3.5).
pub fn may_use_cma(geometry: &Geometry, gfp: GfpFlags) -> bool {
    gfp.contains(GfpFlags::MOVABLE) && geometry.mobility != Mobility::Mixed
}

/// Tells whether a request keeps clear of direct reclaim and may use what is kept for such.
fn is_non_blocking(gfp: GfpFlags) -> bool {
    !gfp.intersects(GfpFlags::DIRECT_RECLAIM | GfpFlags::NOMEMALLOC)
}

/// The nodes in the order in which `from` falls back to them: by distance, of equally near ones those above `from` first
/// (section 3.1).
pub fn fallback_order(geometry: &Geometry, from: NodeId) -> Vec<NodeId> {
    let mut order = Vec::new();
    while let Some(next) = NodeId::all().filter(|node| !order.contains(node)).min_by_key(|&node| {
        u32::from(geometry.distances.get(from, node)) * 100 + u32::from((node.get() + 4 - from.get()) % 4)
    }) {
        order.push(next);
    }
    order
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

/// What a free page's pageblock means for requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// Any request may use it, if it must.
    Ordinary,
    /// The HIGHATOMIC reserve.
    HighAtomic,
    /// Set aside for contiguous ranges.
    Cma,
}

impl Class {
    /// The class of a type; `None` for what is out of circulation.
    pub fn of(migrate: MigrateType) -> Option<Self> {
        match migrate {
            MigrateType::Unmovable | MigrateType::Movable | MigrateType::Reclaimable => Some(Self::Ordinary),
            MigrateType::HighAtomic => Some(Self::HighAtomic),
            MigrateType::Cma => Some(Self::Cma),
            MigrateType::Isolate => None,
        }
    }
}

/// Free blocks of one zone, real or imagined.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneState {
    /// Free blocks of each class and order.
    pub blocks: [[u32; NR_PAGE_ORDERS]; 3],
    /// Pages on top of the marks.
    pub boost: u64,
}

impl ZoneState {
    /// What a zone shows.
    pub fn of(info: &kmem::ZoneInfo) -> Self {
        let mut state = Self { boost: info.boost, ..Self::default() };
        for (migrate, blocks) in MigrateType::ALL.into_iter().zip(info.free_by_type) {
            if let Some(class) = Class::of(migrate) {
                state.blocks[class as usize].iter_mut().zip(blocks).for_each(|(sum, n)| *sum += n);
            }
        }
        state
    }

    /// Pages in the free blocks of a class.
    pub fn pages(&self, class: Class) -> u64 {
        self.blocks[class as usize].iter().enumerate().map(|(order, &n)| u64::from(n) << order).sum()
    }

    /// Tells whether a class has a block of at least this order.
    pub fn has(&self, class: Class, order: u8) -> bool {
        self.blocks[class as usize].iter().skip(usize::from(order)).any(|&n| n > 0)
    }
}

/// One zone as a request sees it.
#[derive(Clone, Copy, Debug)]
struct ZoneRule {
    marks: Watermarks,
    reserve: u64,
    most_boost: u64,
    node: NodeId,
}

/// The zones as one request sees them.
#[derive(Clone, Debug)]
pub struct ZoneRules {
    gfp: GfpFlags,
    cma: bool,
    /// Each block that is split below this order leaves guards: a single page costs so much.
    guard_order: u8,
    /// Of each zone of the geometry: `None` if the request may not use it.
    zones: Vec<Option<ZoneRule>>,
}

impl ZoneRules {
    /// Derives them for a request made for a node; one with contradicting flags may use no zone.
    pub fn new(geometry: &Geometry, gfp: GfpFlags, node: NodeId) -> Self {
        let rule = |(index, (zone, marks)): (usize, (&ZoneSpec, Watermarks))| {
            let highest = highest_zone(gfp).filter(|&highest| zone.kind <= highest)?;
            if gfp.contains(GfpFlags::THISNODE) && zone.node != node {
                return None;
            }
            let reserve = lowmem_reserve(geometry, index, highest);
            Some(ZoneRule { marks, reserve, most_boost: most_boost(geometry, index), node: zone.node })
        };
        let zones = geometry.zones().iter().zip(watermarks(geometry)).enumerate().map(rule).collect();
        let guard_order = geometry.guardpage_minorder.get();
        Self { gfp, cma: may_use_cma(geometry, gfp), guard_order, zones }
    }

    /// The zones that the request may use.
    pub fn eligible(&self) -> impl Iterator<Item = usize> {
        self.zones.iter().enumerate().filter(|(_, m)| m.is_some()).map(|(i, _)| i)
    }

    fn rule(&self, index: usize) -> Option<&ZoneRule> {
        self.zones.get(index)?.as_ref()
    }

    /// Free pages that count for the request: without CMA and the HIGHATOMIC reserve, unless it has a right to them.
    fn usable(&self, state: &ZoneState, has_rights: bool) -> u64 {
        let reserves = has_rights && (self.gfp.contains(GfpFlags::HIGH) || is_non_blocking(self.gfp));
        let optional = [(self.cma, Class::Cma), (reserves, Class::HighAtomic)];
        let more = optional.into_iter().filter(|(may, _)| *may).map(|(_, class)| state.pages(class));
        state.pages(Class::Ordinary) + more.sum::<u64>()
    }

    /// Tells whether zone `index` must serve a block of this order from this state (section 3.5, "Test").
    pub fn admits(&self, index: usize, order: u8, state: &ZoneState) -> bool {
        let urgent = is_non_blocking(self.gfp) && (order == 0 || self.gfp.contains(GfpFlags::HIGH));
        self.passes(index, order, state) && self.has_block(order, state, urgent)
    }

    /// Tells whether zone `index` may serve a block of this order from this state.
    pub fn may_admit(&self, index: usize, order: u8, state: &ZoneState) -> bool {
        self.passes(index, order, state) && self.has_block(order, state, is_non_blocking(self.gfp))
    }

    fn has_block(&self, order: u8, state: &ZoneState, highatomic: bool) -> bool {
        state.has(Class::Ordinary, order)
            || (self.cma && state.has(Class::Cma, order))
            || (highatomic && state.has(Class::HighAtomic, order))
    }

    fn passes(&self, index: usize, order: u8, state: &ZoneState) -> bool {
        let Some(rule) = self.rule(index) else { return false };
        let usable = self.usable(state, true);
        let above = |boost: u64| {
            let mark = reserve_mark(self.gfp, rule.marks.min + boost);
            mark.is_none_or(|mark| usable > mark + rule.reserve + (1 << order) - 1)
        };
        // A single page for an urgent caller need not leave the boost standing.
        above(state.boost) || (order == 0 && self.gfp.contains(GfpFlags::HIGH) && above(0))
    }

    /// Tells whether zone `index` serves a block of this order in the first attempt, which leaves the low mark standing
    /// and uses no rights.
    pub fn admits_politely(&self, index: usize, order: u8, state: &ZoneState) -> bool {
        let Some(rule) = self.rule(index) else { return false };
        let mark = rule.marks.low + state.boost + rule.reserve;
        self.usable(state, false) > mark + (1 << order) - 1 && self.has_block(order, state, false)
    }

    /// How many single pages zone `index` must give before it is down to its low mark, however much that is boosted meanwhile.
    pub fn polite_pages(&self, index: usize, state: &ZoneState) -> u64 {
        let Some(rule) = self.rule(index) else { return 0 };
        let mark = rule.marks.low + rule.most_boost.max(state.boost) + rule.reserve;
        let pages = state.pages(Class::Ordinary).saturating_sub(mark);
        if self.guard_order == 0 { pages } else { 0 }
    }

    /// Tells whether zone `index` has so many single pages above its low mark that a bulk comes from it (section 3.7).
    pub fn has_for_bulk(&self, index: usize, pages: u64, state: &ZoneState) -> bool {
        let Some(rule) = self.rule(index) else { return false };
        self.usable(state, false) > rule.marks.low + state.boost + rule.reserve + pages
    }

    /// The node of zone `index`, if the request may use it.
    pub fn node(&self, index: usize) -> Option<NodeId> {
        self.rule(index).map(|rule| rule.node)
    }

    /// How many single pages zone `index` must give one after another. Unless reclaim has run for the request (section 3.3),
    /// its marks may be boosted meanwhile.
    ///
    /// With guards (section 3.8) each page takes a block of their order off the free pages, or a smaller one as a whole.
    pub fn single_pages(&self, index: usize, state: &ZoneState, reclaimed: bool) -> u64 {
        let Some(rule) = self.rule(index) else { return 0 };
        let boost = if reclaimed { 0 } else { rule.most_boost };
        let mark = reserve_mark(self.gfp, rule.marks.min + boost).map_or(0, |mark| mark + rule.reserve);
        let usable = state.pages(Class::Ordinary) + if self.cma { state.pages(Class::Cma) } else { 0 };
        let above = usable.saturating_sub(mark).div_ceil(1 << self.guard_order);
        let pages = |class: Class| -> u64 {
            let blocks = state.blocks[class as usize].iter().enumerate();
            blocks.map(|(order, &n)| u64::from(n) << (order as u32).saturating_sub(self.guard_order.into())).sum()
        };
        above.min(pages(Class::Ordinary) + if self.cma { pages(Class::Cma) } else { 0 })
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
            assert_eq!(marks, [Watermarks { min, low, high, promo: high + (high - low) }], "{mib} MiB");
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
        let rules = ZoneRules::new(&geometry, GfpFlags::KERNEL, NodeId::ZERO);
        let state = |free_pages: u32, order: usize| {
            let mut state = ZoneState::default();
            state.blocks[0][order] = free_pages >> order;
            state.blocks[0][0] += free_pages % (1 << order);
            state
        };
        assert!(!rules.admits(0, 0, &state(16, 4)) && rules.admits(0, 0, &state(17, 4)));
        assert!(!rules.admits(0, 2, &state(19, 4)) && rules.admits(0, 2, &state(20, 4)));
        assert!(!rules.admits(0, 5, &state(60, 4)), "no block of order 5");
        assert_eq!(rules.single_pages(0, &state(20, 4), false), 4);
        geometry.guardpage_minorder = kmem::Order::new(2).unwrap();
        let rules = ZoneRules::new(&geometry, GfpFlags::KERNEL, NodeId::ZERO);
        assert_eq!(rules.single_pages(0, &state(25, 3), false), 3, "four each, the last may go below the mark");
        assert_eq!(rules.single_pages(0, &state(63, 0), false), 12);
    }
}
