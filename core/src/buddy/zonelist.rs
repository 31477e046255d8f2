//! Which zones a request may use, in which order.

use super::migrate::MigrateType;
use super::watermark::{self, Watermark};
use crate::geometry::{Geometry, MAX_ZONES, ZoneKind};
use crate::gfp::GfpFlags;
use crate::order::Order;

/// Where a request starts to look, in one word: the fast path takes it apart without a branch.
///
/// ```text
/// bits  0..16  index of the preferred zone; beyond all zones if no zone fits
/// bits 16..24  migrate type
/// bits 24..32  the highest kind of zone that the flags allow
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route(u32);

impl Route {
    /// The flags contradict each other. As a zone it is beyond all zones, so that the fast path stops there.
    const BAD: Self = Self(u32::MAX);
    const NO_ZONE: u16 = u16::MAX;

    const fn new(zone: u16, migrate: MigrateType, highest: ZoneKind) -> Self {
        Self(zone as u32 | (migrate as u32) << 16 | (highest as u32) << 24)
    }

    pub(super) fn is_bad(self) -> bool {
        self == Self::BAD
    }

    /// Index of the preferred zone.
    #[inline(always)]
    pub(super) const fn zone(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    #[inline(always)]
    pub(super) const fn migrate_byte(self) -> u8 {
        (self.0 >> 16) as u8
    }

    pub(super) const fn migrate(self) -> MigrateType {
        MigrateType::from_byte(self.migrate_byte())
    }

    /// The highest kind of zone allowed, as an index.
    pub(super) const fn highest(self) -> usize {
        (self.0 >> 24) as usize
    }
}

/// A request as the zones see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) order: Order,
    pub(super) gfp: GfpFlags,
    pub(super) route: Route,
}

/// One walk over the zones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pass {
    pub(super) mark: Watermark,
    /// Rather try the next zone than mix types within a pageblock.
    pub(super) nofragment: bool,
}

/// The flags that decide the route are the lowest five.
const ROUTES: usize = 1 << 5;

/// The zones for each highest kind, and a table from flags to routes.
pub(super) struct Zonelists {
    routes: [Route; ROUTES],
    zones: [[u8; MAX_ZONES]; ZONE_KINDS.len()],
    lens: [u8; ZONE_KINDS.len()],
    /// The node of each zone.
    nodes: [u8; MAX_ZONES],
    /// For each zone: whether requests that prefer it walk all zones before they fragment one.
    nofragment: [bool; MAX_ZONES],
}

pub(super) const ZONE_KINDS: [ZoneKind; 4] = [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::Movable];

impl Zonelists {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let mut lists = Self {
            routes: [Route::BAD; ROUTES],
            zones: [[0; MAX_ZONES]; ZONE_KINDS.len()],
            lens: [0; ZONE_KINDS.len()],
            nodes: [0; MAX_ZONES],
            nofragment: [false; MAX_ZONES],
        };
        for (i, zone) in geometry.zones().iter().enumerate() {
            lists.nodes[i] = zone.node;
            lists.nofragment[i] = zone.kind == ZoneKind::Normal && defers_fragmenting(geometry, zone.node);
        }
        for highest in ZONE_KINDS {
            lists.fill(geometry, highest);
        }
        for bits in 0..ROUTES {
            lists.routes[bits] = lists.compute_route(GfpFlags::from_bits_truncate(bits as u32));
        }
        lists
    }

    /// Nodes in ascending order, and on each the kinds from the highest allowed down.
    fn fill(&mut self, geometry: &Geometry, highest: ZoneKind) {
        let (list, len) = (&mut self.zones[highest as usize], &mut self.lens[highest as usize]);
        for node in 0..crate::geometry::MAX_NODES {
            for kind in ZONE_KINDS.iter().rev().filter(|&&kind| kind <= highest) {
                let fits = |z: &crate::geometry::ZoneSpec| z.node == node && z.kind == *kind;
                for (i, _) in geometry.zones().iter().enumerate().filter(|(_, z)| fits(z)) {
                    list[usize::from(*len)] = i as u8;
                    *len += 1;
                }
            }
        }
    }

    fn compute_route(&self, gfp: GfpFlags) -> Route {
        let (Some(highest), Some(migrate)) = (highest_zone(gfp), MigrateType::of(gfp)) else { return Route::BAD };
        let zone = self.list(highest as usize).first().map_or(Route::NO_ZONE, |&i| u16::from(i));
        Route::new(zone, migrate, highest)
    }

    fn list(&self, highest: usize) -> &[u8] {
        let len = self.lens.get(highest).copied().unwrap_or(0);
        self.zones.get(highest).and_then(|list| list.get(..usize::from(len))).unwrap_or_default()
    }

    /// Where a request with these flags starts.
    #[inline(always)]
    pub(super) fn route(&self, gfp: GfpFlags) -> Route {
        self.routes[gfp.bits() as usize % ROUTES]
    }

    /// The zones that a request may use, best first. `THISNODE` keeps to the node of the first.
    pub(super) fn zones(&self, request: &Request) -> impl Iterator<Item = usize> + '_ {
        let list = self.list(request.route.highest());
        let only = request.gfp.contains(GfpFlags::THISNODE).then(|| list.first().map(|&i| self.node(i))).flatten();
        list.iter().filter(move |&&i| only.is_none_or(|node| self.node(i) == node)).map(|&i| usize::from(i))
    }

    fn node(&self, zone: u8) -> u8 {
        self.nodes.get(usize::from(zone)).copied().unwrap_or(0)
    }

    /// The walks that a request makes until one succeeds: politely at first, then with all its rights.
    pub(super) fn passes(&self, request: &Request) -> impl Iterator<Item = Pass> + use<> {
        let nofragment = self.nofragment.get(request.route.zone()).copied().unwrap_or(false);
        let marks = [
            Some(Watermark::Low),
            Some(Watermark::Min),
            watermark::may_ignore(request.gfp).then_some(Watermark::Ignored),
        ];
        let pass =
            move |mark| [nofragment.then_some(Pass { mark, nofragment: true }), Some(Pass { mark, nofragment: false })];
        marks.into_iter().flatten().flat_map(pass).flatten()
    }
}

/// The highest kind of zone that the flags allow; `None` for combinations without meaning.
fn highest_zone(gfp: GfpFlags) -> Option<ZoneKind> {
    let has = |flag| gfp.contains(flag);
    match (has(GfpFlags::DMA), has(GfpFlags::DMA32), has(GfpFlags::HIGHMEM)) {
        (false, false, false) => Some(ZoneKind::Normal),
        (true, false, false) => Some(ZoneKind::Dma),
        (false, true, false) => Some(ZoneKind::Dma32),
        (false, false, true) if has(GfpFlags::MOVABLE) => Some(ZoneKind::Movable),
        (false, false, true) => Some(ZoneKind::Normal),
        _ => None,
    }
}

/// Linux rather uses a lower zone than mix types when all memory is near, or when the node has a DMA32 zone to use.
fn defers_fragmenting(geometry: &Geometry, node: u8) -> bool {
    let zones = geometry.zones();
    let one_node = zones.iter().all(|z| z.node == node);
    one_node || zones.iter().any(|z| z.node == node && z.kind == ZoneKind::Dma32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::zoned;
    use ZoneKind::{Dma, Dma32, Movable, Normal};
    use std::vec::Vec;

    const MACHINE: [(ZoneKind, u32, u32); 4] = [(Dma, 0, 16), (Dma32, 16, 16), (Normal, 32, 16), (Movable, 48, 16)];

    fn walk(lists: &Zonelists, gfp: GfpFlags) -> Vec<usize> {
        lists.zones(&Request { order: Order::ZERO, gfp, route: lists.route(gfp) }).collect()
    }

    #[test]
    fn flags_select_the_highest_zone_and_the_walk_goes_down_from_there() {
        let lists = Zonelists::new(&zoned(&MACHINE));
        let kernel = GfpFlags::KERNEL;
        for (flags, zones) in [
            (kernel, &[2, 1, 0][..]),
            (kernel | GfpFlags::DMA, &[0]),
            (kernel | GfpFlags::DMA32, &[1, 0]),
            (kernel | GfpFlags::HIGHMEM, &[2, 1, 0]),
            (kernel | GfpFlags::MOVABLE, &[2, 1, 0]),
            (kernel | GfpFlags::HIGHMEM | GfpFlags::MOVABLE, &[3, 2, 1, 0]),
            (kernel | GfpFlags::DMA | GfpFlags::MOVABLE, &[0]),
            (kernel | GfpFlags::DMA32 | GfpFlags::RECLAIMABLE, &[1, 0]),
        ] {
            assert_eq!(walk(&lists, flags), zones, "{flags:?}");
        }
    }

    #[test]
    fn contradicting_flags_have_no_route_and_a_missing_kind_has_no_zone() {
        let lists = Zonelists::new(&zoned(&[(Normal, 0, 16)]));
        let two = |a, b| lists.route(a | b).is_bad();
        assert!(two(GfpFlags::DMA, GfpFlags::DMA32) && two(GfpFlags::DMA, GfpFlags::HIGHMEM));
        assert!(two(GfpFlags::DMA32, GfpFlags::HIGHMEM) && two(GfpFlags::MOVABLE, GfpFlags::RECLAIMABLE));
        assert!(!lists.route(GfpFlags::DMA).is_bad());
        assert!(walk(&lists, GfpFlags::DMA).is_empty());
    }

    #[test]
    fn a_request_is_polite_first_and_uses_its_rights_last() {
        let lists = Zonelists::new(&zoned(&MACHINE));
        let passes = |gfp| {
            let request = Request { order: Order::ZERO, gfp, route: lists.route(gfp) };
            lists.passes(&request).map(|p| (p.mark, p.nofragment)).collect::<Vec<_>>()
        };
        let usual = [(Watermark::Low, true), (Watermark::Low, false), (Watermark::Min, true), (Watermark::Min, false)];
        assert_eq!(passes(GfpFlags::KERNEL), usual);
        assert_eq!(passes(GfpFlags::KERNEL | GfpFlags::MEMALLOC)[..4], usual);
        assert_eq!(passes(GfpFlags::KERNEL | GfpFlags::MEMALLOC).last(), Some(&(Watermark::Ignored, false)));
        assert_eq!(passes(GfpFlags::DMA), [(Watermark::Low, false), (Watermark::Min, false)]);
    }
}
