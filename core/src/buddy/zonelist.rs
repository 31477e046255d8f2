//! Which zones a request may use, in which order.
//!
//! Each node has a list of zones for each highest kind that flags can allow: the zones of the node itself from the highest
//! kind down, then those of the other nodes, the nearest first. A request starts at the list of the node that it names, or
//! of the CPU that makes it.

use super::migrate::{MigrateType, PCP_TYPES};
use super::watermark::{self, AllocFlags, Watermark};
use crate::geometry::{Geometry, MAX_ZONES, ZoneKind, ZoneSpec};
use crate::gfp::GfpFlags;
use crate::mobility::Mobility;
use crate::numa::{MAX_NODES, NodeId};
use crate::order::Order;
use crate::page::HOMES;
use crate::raw::{Carver, MetaSlice};

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
    /// The node whose list is walked.
    pub(super) node: NodeId,
    /// A block that was taken for it was bad, and another one is wanted.
    pub(super) replaces: bool,
}

/// One walk over the zones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pass {
    pub(super) mark: Watermark,
    pub(super) rights: AllocFlags,
    /// Rather try the next zone than mix types within a pageblock.
    pub(super) nofragment: NoFragment,
}

impl Pass {
    /// How room is found for a movable block that must go elsewhere.
    pub(super) const MOVING: Self = Self { mark: Watermark::Min, rights: AllocFlags::CMA, nofragment: NoFragment::No };

    /// The walk in which a request uses its rights and types may mix.
    pub(super) fn hurried(request: &Request) -> Self {
        let rights = AllocFlags::entitled(request.order, request.gfp, request.route.migrate());
        Self { mark: Watermark::Min, rights, nofragment: NoFragment::No }
    }
}

/// How far a walk goes to keep types apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoFragment {
    /// Types may mix.
    No,
    /// Not on the node of the preferred zone, and the walk ends there: nearness matters more.
    OnNode,
    /// Nowhere.
    Everywhere,
}

/// The flags that decide the route are the lowest five.
const ROUTES: usize = 1 << 5;

/// The zones of one list, best first; the first `len` entries count.
#[derive(Clone, Copy)]
struct ZoneRefs {
    zones: [u8; MAX_ZONES],
    len: u8,
}

impl ZoneRefs {
    const EMPTY: Self = Self { zones: [0; MAX_ZONES], len: 0 };

    fn push(&mut self, zone: u8) {
        if let Some(slot) = self.zones.get_mut(usize::from(self.len)) {
            *slot = zone;
            self.len += 1;
        }
    }

    fn as_slice(&self) -> &[u8] {
        self.zones.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// One CPU's table from flags to the array of newest pages that a request which names no node takes from: what the fast
/// path needs of a [`Route`] whose node is that of the CPU. An entry without an array is beyond all arrays: so is one for
/// memory of another node, as the fast path does not look whether the flags say `THISNODE`, and one for movable pages where
/// types are not kept apart, as it does not note that they can be moved.
pub(super) struct LocalRoutes([u8; ROUTES]);

impl LocalRoutes {
    pub(super) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> MetaSlice<Self> {
        let lists = Zonelists::new(geometry);
        let array = |cpu: usize, bits: usize| {
            let node = geometry.cpu_nodes.get(cpu).copied().unwrap_or_default();
            let gfp = GfpFlags::from_bits_truncate(bits as u32);
            let route = lists.route(node, gfp);
            let is_near = lists.nodes.get(route.zone()) == Some(&node);
            let is_noted = geometry.mobility == Mobility::Mixed && gfp.contains(GfpFlags::MOVABLE);
            let array = route.zone() * PCP_TYPES + usize::from(route.migrate_byte());
            if is_near && !is_noted && array < HOMES && usize::from(route.migrate_byte()) < PCP_TYPES {
                array as u8
            } else {
                u8::MAX
            }
        };
        carver.carve(usize::from(geometry.cpus), |cpu| Self(core::array::from_fn(|bits| array(cpu, bits))))
    }

    /// The number of the array.
    #[inline(always)]
    pub(super) fn get(&self, gfp: GfpFlags) -> usize {
        self.0[gfp.bits() as usize % ROUTES].into()
    }
}

/// The zones for each node and highest kind, and a table from flags to routes.
pub(super) struct Zonelists {
    routes: [[Route; ROUTES]; MAX_NODES],
    lists: [[ZoneRefs; ZONE_KINDS.len()]; MAX_NODES],
    /// The node of each zone.
    nodes: [NodeId; MAX_ZONES],
    /// For each zone: how far requests that prefer it go before they mix types.
    nofragment: [NoFragment; MAX_ZONES],
    mobility: Mobility,
}

pub(super) const ZONE_KINDS: [ZoneKind; 4] = [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::Movable];

impl Zonelists {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let mut lists = Self {
            routes: [[Route::BAD; ROUTES]; MAX_NODES],
            lists: [[ZoneRefs::EMPTY; ZONE_KINDS.len()]; MAX_NODES],
            nodes: [NodeId::ZERO; MAX_ZONES],
            nofragment: [NoFragment::No; MAX_ZONES],
            mobility: geometry.mobility,
        };
        for (i, zone) in geometry.zones().iter().enumerate() {
            lists.nodes[i] = zone.node;
            lists.nofragment[i] = nofragment_of(geometry, zone);
        }
        for node in NodeId::all() {
            lists.lists[node.index()] = ZONE_KINDS.map(|highest| zones_from(geometry, node, highest));
            for bits in 0..ROUTES {
                let gfp = GfpFlags::from_bits_truncate(bits as u32);
                lists.routes[node.index()][bits] = lists.compute_route(node, gfp);
            }
        }
        lists
    }

    fn compute_route(&self, node: NodeId, gfp: GfpFlags) -> Route {
        let (Some(highest), Some(migrate)) = (highest_zone(gfp), MigrateType::of(gfp)) else { return Route::BAD };
        let migrate = migrate.kept_apart(self.mobility);
        let zone = self.list(node, highest as usize).first().map_or(Route::NO_ZONE, |&i| u16::from(i));
        Route::new(zone, migrate, highest)
    }

    fn list(&self, node: NodeId, highest: usize) -> &[u8] {
        self.lists[node.index()].get(highest).map(ZoneRefs::as_slice).unwrap_or_default()
    }

    /// Where a request with these flags starts if it is made for this node.
    pub(super) fn route(&self, node: NodeId, gfp: GfpFlags) -> Route {
        self.routes[node.index()][gfp.bits() as usize % ROUTES]
    }

    /// The zones that a request may use, best first. `THISNODE` keeps to the request's node, even if that has no memory.
    pub(super) fn zones(&self, request: &Request) -> impl Iterator<Item = usize> + '_ {
        let list = self.list(request.node, request.route.highest());
        let only = request.gfp.contains(GfpFlags::THISNODE).then_some(request.node);
        list.iter().filter(move |&&i| only.is_none_or(|node| self.node(i) == node)).map(|&i| usize::from(i))
    }

    fn node(&self, zone: u8) -> NodeId {
        self.nodes.get(usize::from(zone)).copied().unwrap_or_default()
    }

    /// The walks that a request makes until one succeeds: politely at first, then with all its rights.
    pub(super) fn passes(&self, request: &Request) -> impl Iterator<Item = Pass> + use<> {
        let nofragment = self.nofragment.get(request.route.zone()).copied().unwrap_or(NoFragment::No);
        let migrate = request.route.migrate();
        let entitled = AllocFlags::entitled(request.order, request.gfp, migrate);
        let marks = [
            Some((Watermark::Low, AllocFlags::polite(migrate))),
            Some((Watermark::Min, entitled)),
            watermark::may_ignore(request.gfp).then_some((Watermark::Ignored, entitled)),
        ];
        let walks = [Some(nofragment).filter(|&walk| walk != NoFragment::No), Some(NoFragment::No)];
        let pass =
            move |(mark, rights)| walks.into_iter().flatten().map(move |nofragment| Pass { mark, rights, nofragment });
        marks.into_iter().flatten().flat_map(pass)
    }

    /// The first of [`Self::passes`].
    #[inline]
    pub(super) fn first_pass(&self, request: &Request) -> Pass {
        let nofragment = self.nofragment.get(request.route.zone()).copied().unwrap_or(NoFragment::No);
        Pass { mark: Watermark::Low, rights: AllocFlags::polite(request.route.migrate()), nofragment }
    }

    /// Tells whether a walk that keeps types apart ends before this zone.
    pub(super) fn ends_before(&self, request: &Request, pass: Pass, zone: usize) -> bool {
        let node_of = |zone: usize| self.nodes.get(zone);
        pass.nofragment == NoFragment::OnNode && node_of(zone) != node_of(request.route.zone())
    }
}

/// The zones that a request of this node may use if `highest` is the highest kind: the nearest node first, and on each node
/// the kinds from the highest down.
fn zones_from(geometry: &Geometry, node: NodeId, highest: ZoneKind) -> ZoneRefs {
    let mut refs = ZoneRefs::EMPTY;
    for node in geometry.distances.nearest_first(node) {
        for kind in ZONE_KINDS.into_iter().rev().filter(|&kind| kind <= highest) {
            for (i, zone) in geometry.zones().iter().enumerate() {
                if zone.node == node && zone.kind == kind {
                    refs.push(i as u8);
                }
            }
        }
    }
    refs
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
fn nofragment_of(geometry: &Geometry, preferred: &ZoneSpec) -> NoFragment {
    let zones = geometry.zones();
    let one_node = || zones.iter().all(|z| z.node == preferred.node);
    let has_dma32 = || zones.iter().any(|z| z.node == preferred.node && z.kind == ZoneKind::Dma32);
    match geometry.mobility {
        Mobility::Defrag => NoFragment::Everywhere,
        Mobility::Mixed => NoFragment::No,
        Mobility::Grouped if preferred.kind == ZoneKind::Normal && (one_node() || has_dma32()) => NoFragment::OnNode,
        Mobility::Grouped => NoFragment::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::zoned;
    use ZoneKind::{Dma, Dma32, Movable, Normal};
    use std::vec::Vec;

    const MACHINE: [(ZoneKind, u32, u32); 4] = [(Dma, 0, 16), (Dma32, 16, 16), (Normal, 32, 16), (Movable, 48, 16)];

    fn request(lists: &Zonelists, gfp: GfpFlags, node: NodeId) -> Request {
        Request { order: Order::ZERO, gfp, route: lists.route(node, gfp), node, replaces: false }
    }

    fn walk(lists: &Zonelists, gfp: GfpFlags) -> Vec<usize> {
        lists.zones(&request(lists, gfp, NodeId::ZERO)).collect()
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
        let two = |a, b| lists.route(NodeId::ZERO, a | b).is_bad();
        assert!(two(GfpFlags::DMA, GfpFlags::DMA32) && two(GfpFlags::DMA, GfpFlags::HIGHMEM));
        assert!(two(GfpFlags::DMA32, GfpFlags::HIGHMEM) && two(GfpFlags::MOVABLE, GfpFlags::RECLAIMABLE));
        assert!(!lists.route(NodeId::ZERO, GfpFlags::DMA).is_bad());
        assert!(walk(&lists, GfpFlags::DMA).is_empty());
    }

    #[test]
    fn a_request_is_polite_first_and_uses_its_rights_last() {
        let lists = Zonelists::new(&zoned(&MACHINE));
        let passes = |gfp| {
            let request = request(&lists, gfp, NodeId::ZERO);
            lists.passes(&request).map(|p| (p.mark, p.nofragment != NoFragment::No)).collect::<Vec<_>>()
        };
        let usual = [(Watermark::Low, true), (Watermark::Low, false), (Watermark::Min, true), (Watermark::Min, false)];
        assert_eq!(passes(GfpFlags::KERNEL), usual);
        assert_eq!(passes(GfpFlags::KERNEL | GfpFlags::MEMALLOC)[..4], usual);
        assert_eq!(passes(GfpFlags::KERNEL | GfpFlags::MEMALLOC).last(), Some(&(Watermark::Ignored, false)));
        assert_eq!(passes(GfpFlags::DMA), [(Watermark::Low, false), (Watermark::Min, false)]);
    }
}
