//! The machine that a trace runs on, as a few numbers that are always valid.

use kmem::{
    CmaArea, Geometry, Hardening, MAX_NODES, MinFree, Mobility, NodeId, Order, PageCount, PageDebug, Pfn, SlubDebug,
    ZoneKind, ZoneSpec,
};
use serde::{Deserialize, Serialize};

/// The fewest frames: enough for the allocator's own first frames and something to allocate.
pub const MIN_FRAMES: u32 = 16;
/// The most frames, 256 MiB: a machine must be quick to make.
pub const MAX_FRAMES: u32 = 1 << 16;
/// The fewest frames of a Normal zone, if memory has as many.
const MIN_NORMAL: u32 = 48;
/// The most CPUs.
pub const MAX_TRACE_CPUS: u16 = 64;
/// The largest vmalloc window: 4 GiB.
pub const MAX_VMALLOC_PAGES: u32 = 1 << 20;

/// The shape of the machine: zones without holes, on the first node DMA, DMA32, Normal and Movable, on the others Normal and
/// Movable, of which each node has an equal part.
///
/// Every value that [`Self::normalized`] leaves alone gives a valid [`Geometry`]; a text file with another value is an
/// error, bytes with another value are moved to the nearest valid one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeometrySpec {
    /// Frames of all zones together.
    pub frames: u32,
    /// How many of them are in a DMA zone at the bottom; 0: there is none.
    pub dma_frames: u32,
    /// How many of them are in a DMA32 zone above that; 0: there is none.
    pub dma32_frames: u32,
    /// How many of them are in Movable zones at the top of each node; 0: there are none.
    pub movable_frames: u32,
    /// Nodes that have memory, 1 to 4.
    pub nodes: u8,
    /// CPUs.
    pub cpus: u16,
    /// Nodes that have CPUs, 1 to 4: CPU `n` is on node `n` modulo this. They may be more or fewer than those with memory.
    pub cpu_nodes: u8,
    /// The largest order.
    pub max_order: u8,
    /// The order of a pageblock.
    pub pageblock_order: u8,
    /// Pageblocks at the top of the first Normal zone that are set aside for contiguous ranges, at most half of it.
    pub cma_blocks: u8,
    /// How pages of different mobility are kept apart.
    #[serde(with = "MobilityName")]
    pub mobility: Mobility,
    /// Pages of the vmalloc window.
    pub vmalloc_pages: u32,
    /// Whether areas may be mapped in runs of 512 pages.
    pub huge: bool,
    /// Pages that the watermarks keep back, over all zones; 0: Linux's formula.
    pub min_free: u32,
    /// What frees verify.
    #[serde(with = "HardeningName")]
    pub hardening: Hardening,
    /// Checks of pages, as the bits of [`kmem::PageDebug`]: 1 check, 2 poison, 4 owner.
    pub page_debug: u8,
    /// Below which order what is left over when a block is cut becomes a guard.
    pub guard_order: u8,
    /// What the kmalloc caches check: F 1, Z 2, P 4, U 8, T 16.
    pub slub_debug: u8,
    /// Whether large blocks of `kmalloc` keep only the pages that were asked for.
    pub trim_large: bool,
    /// How many full sheaves each CPU keeps for itself; at most 3.
    pub pocket: u8,
}

/// How serde sees `kmem`'s hardening levels: by their names.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Hardening")]
enum HardeningName {
    Off,
    Checked,
    Paranoid,
}

/// How serde sees `kmem`'s ways with mobility: by their names.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Mobility")]
enum MobilityName {
    Grouped,
    Defrag,
    Mixed,
}

impl Default for GeometrySpec {
    /// 4 MiB with every kind of boundary close by: a DMA zone, 64 pageblocks, one block of the largest order.
    fn default() -> Self {
        Self {
            frames: 1024,
            dma_frames: 64,
            dma32_frames: 0,
            movable_frames: 0,
            nodes: 1,
            cpus: 2,
            cpu_nodes: 1,
            max_order: 9,
            pageblock_order: 4,
            cma_blocks: 0,
            mobility: Mobility::Grouped,
            vmalloc_pages: 4096,
            huge: true,
            min_free: 16,
            hardening: Hardening::Checked,
            page_debug: 0,
            guard_order: 0,
            slub_debug: 0,
            trim_large: false,
            pocket: 0,
        }
    }
}

impl GeometrySpec {
    /// Returns the nearest valid specification; a valid one comes back unchanged.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let frames = self.frames.clamp(MIN_FRAMES, MAX_FRAMES);
        let normal = MIN_NORMAL.min(frames);
        let dma_frames = self.dma_frames.min(frames - normal);
        let dma32_frames = self.dma32_frames.min(frames - normal - dma_frames);
        let above = frames - dma_frames - dma32_frames;
        let movable_frames = self.movable_frames.min(above - normal);
        let max_order = self.max_order.min(kmem::MAX_PAGE_ORDER);
        let pageblock_order = self.pageblock_order.min(max_order);
        let most_nodes = ((above - movable_frames) / normal).clamp(1, MAX_NODES as u32) as u8;
        let nodes = self.nodes.clamp(1, most_nodes);
        let first_normal = (above - movable_frames) / u32::from(nodes);
        Self {
            frames,
            dma_frames,
            dma32_frames,
            movable_frames,
            nodes,
            cpus: self.cpus.clamp(1, MAX_TRACE_CPUS),
            cpu_nodes: self.cpu_nodes.clamp(1, MAX_NODES as u8),
            max_order,
            pageblock_order,
            cma_blocks: self
                .cma_blocks
                .min((first_normal >> pageblock_order).div_ceil(2).saturating_sub(1).min(255) as u8),
            mobility: self.mobility,
            vmalloc_pages: self.vmalloc_pages.clamp(2, MAX_VMALLOC_PAGES),
            huge: self.huge,
            min_free: self.min_free.min(frames / 8),
            hardening: self.hardening,
            page_debug: self.page_debug & PageDebug::all().bits(),
            guard_order: self.guard_order.min(kmem::MAX_PAGE_ORDER / 2),
            slub_debug: self.slub_debug & SlubDebug::all().bits(),
            trim_large: self.trim_large,
            pocket: self.pocket.min(3),
        }
    }

    /// Returns the first field that [`Self::normalized`] would change: its name, its value, and the nearest valid one.
    pub fn out_of_range(&self) -> Option<(&'static str, u64, u64)> {
        let near = self.normalized();
        [
            ("frames", u64::from(self.frames), u64::from(near.frames)),
            ("dma_frames", u64::from(self.dma_frames), u64::from(near.dma_frames)),
            ("dma32_frames", u64::from(self.dma32_frames), u64::from(near.dma32_frames)),
            ("movable_frames", u64::from(self.movable_frames), u64::from(near.movable_frames)),
            ("nodes", u64::from(self.nodes), u64::from(near.nodes)),
            ("cpus", u64::from(self.cpus), u64::from(near.cpus)),
            ("cpu_nodes", u64::from(self.cpu_nodes), u64::from(near.cpu_nodes)),
            ("max_order", u64::from(self.max_order), u64::from(near.max_order)),
            ("pageblock_order", u64::from(self.pageblock_order), u64::from(near.pageblock_order)),
            ("cma_blocks", u64::from(self.cma_blocks), u64::from(near.cma_blocks)),
            ("vmalloc_pages", u64::from(self.vmalloc_pages), u64::from(near.vmalloc_pages)),
            ("min_free", u64::from(self.min_free), u64::from(near.min_free)),
            ("page_debug", u64::from(self.page_debug), u64::from(near.page_debug)),
            ("guard_order", u64::from(self.guard_order), u64::from(near.guard_order)),
            ("slub_debug", u64::from(self.slub_debug), u64::from(near.slub_debug)),
        ]
        .into_iter()
        .find(|(_, found, nearest)| found != nearest)
    }

    /// Returns one of the machines that are worth trying: the default for most `n`, tiny or odd ones for the others.
    pub fn preset(n: u64) -> Self {
        let default = Self::default();
        match n % 16 {
            // Blocks of 2 MiB are there for huge mappings: on one node, on two, and in a window without room for many.
            1 => Self { frames: 4096, max_order: 10, pageblock_order: 9, ..default },
            2 => Self { frames: 6144, nodes: 2, cpu_nodes: 2, cpus: 4, pageblock_order: 5, ..default },
            3 => Self { frames: 2560, dma_frames: 0, cpus: 1, vmalloc_pages: 2100, ..default },
            // Every check of pages, and guards beside small blocks.
            4 => Self { page_debug: PageDebug::all().bits(), ..default },
            5 => Self { page_debug: PageDebug::all().bits(), guard_order: 2, frames: 512, ..default },
            // Two nodes, CPUs on both; a HIGHATOMIC reserve and a CMA area are possible.
            6 => Self { nodes: 2, cpu_nodes: 2, cpus: 4, pageblock_order: 2, cma_blocks: 16, ..default },
            // All kinds of zone, four nodes, CPUs on two of them and on none of the others.
            7 => Self {
                frames: 2048,
                dma32_frames: 256,
                movable_frames: 256,
                nodes: 4,
                cpus: 6,
                cpu_nodes: 2,
                pageblock_order: 3,
                mobility: Mobility::Defrag,
                ..default
            },
            // A CPU whose node has no memory, types that may mix, and large blocks without the pages that nobody asked for.
            8 => Self {
                cpus: 4,
                cpu_nodes: 3,
                nodes: 2,
                mobility: Mobility::Mixed,
                trim_large: true,
                pocket: 2,
                ..default
            },
            // A large CMA area, a DMA32 zone, and room for the HIGHATOMIC reserve.
            9 => Self { frames: 1536, dma32_frames: 128, pageblock_order: 3, cma_blocks: 64, cpus: 3, ..default },
            // Linux's orders: a block of the largest order cannot exist.
            10 => Self { max_order: 10, pageblock_order: 9, ..default },
            // A zone boundary inside a block, and a Movable zone.
            11 => Self { dma_frames: 37, movable_frames: 259, cpus: 4, ..default },
            // A window that is full after a few areas.
            12 => Self { vmalloc_pages: 96, ..default },
            // As small as it gets: every allocation is near the watermark.
            13 => {
                Self { frames: 128, dma_frames: 0, cpus: 1, max_order: 6, pageblock_order: 3, min_free: 4, ..default }
            }
            // Linux's watermarks.
            14 => Self { frames: 4096, max_order: 10, pageblock_order: 5, cpus: 8, min_free: 0, ..default },
            // Only single pages merge, and frees believe their callers.
            15 => Self { max_order: 1, pageblock_order: 0, hardening: Hardening::Off, ..default },
            _ => default,
        }
    }

    /// Returns the geometry; out of range numbers are moved to the nearest valid ones.
    pub fn to_geometry(&self) -> Geometry {
        let spec = self.normalized();
        let flat = Geometry::flat(spec.frames);
        let zones = spec.zones();
        let cpu_node = |cpu: u16| NodeId::new((cpu % u16::from(spec.cpu_nodes)) as u8).unwrap_or_default();
        let cpu_nodes: Vec<NodeId> = (0..spec.cpus).map(cpu_node).collect();
        let mut geometry = flat.clone().with_zones(&zones).unwrap_or(flat).with_cpu_nodes(&cpu_nodes);
        geometry.cpus = spec.cpus;
        geometry.max_order = Order::new(spec.max_order).unwrap_or(Order::MAX);
        geometry.pageblock_order = Order::new(spec.pageblock_order).unwrap_or(geometry.max_order);
        geometry.vmalloc_pages = PageCount::new(u64::from(spec.vmalloc_pages));
        geometry.vmap_allow_huge = spec.huge;
        geometry.min_free = if spec.min_free == 0 { MinFree::Auto } else { MinFree::Pages(spec.min_free) };
        geometry.hardening = spec.hardening;
        geometry.mobility = spec.mobility;
        geometry.cma[0] = spec.cma_area(&zones);
        geometry.page_debug = PageDebug::from_bits_truncate(spec.page_debug);
        geometry.guardpage_minorder = Order::new(spec.guard_order).unwrap_or(Order::ZERO);
        geometry.trim_large = spec.trim_large;
        geometry.pocket = spec.pocket;
        geometry.slub_debug = SlubDebug::from_bits_truncate(spec.slub_debug);
        geometry.track_sites = if geometry.slub_debug.contains(SlubDebug::STORE_USER) { 8 } else { 0 };
        geometry
    }

    /// The topmost whole pageblocks of the first Normal zone.
    fn cma_area(&self, zones: &[ZoneSpec]) -> CmaArea {
        let pageblock = 1 << self.pageblock_order;
        let normal = zones.iter().find(|zone| zone.kind == ZoneKind::Normal).and_then(ZoneSpec::end);
        let end = normal.map_or(0, Pfn::as_u32) / pageblock * pageblock;
        let pages = u32::from(self.cma_blocks) * pageblock;
        CmaArea { start: Pfn::new(end - pages), pages: PageCount::new(u64::from(pages)) }
    }

    /// The zones that have frames, from the bottom.
    fn zones(&self) -> Vec<ZoneSpec> {
        let normal = self.frames - self.dma_frames - self.dma32_frames - self.movable_frames;
        let nodes = u32::from(self.nodes);
        // What does not divide evenly is the last node's.
        let part = |frames: u32, node: u32| frames / nodes + if node + 1 == nodes { frames % nodes } else { 0 };
        let of_node = |node: u32| {
            let low = if node == 0 { [self.dma_frames, self.dma32_frames] } else { [0, 0] };
            let kinds = [ZoneKind::Dma, ZoneKind::Dma32, ZoneKind::Normal, ZoneKind::Movable];
            let frames = [low[0], low[1], part(normal, node), part(self.movable_frames, node)];
            kinds.into_iter().zip(frames).map(move |(kind, frames)| (kind, node, frames))
        };
        let mut start = 0;
        (0..nodes)
            .flat_map(of_node)
            .filter(|&(_, _, frames)| frames > 0)
            .map(|(kind, node, frames)| {
                let node = NodeId::new(node as u8).unwrap_or_default();
                let zone = ZoneSpec { kind, node, start: Pfn::new(start), frames: PageCount::new(u64::from(frames)) };
                start += frames;
                zone
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(seed: u64) -> GeometrySpec {
        let n = |i: u32| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i * 7) >> (seed % 50)) as u32;
        GeometrySpec {
            frames: n(0),
            dma_frames: n(1),
            dma32_frames: n(8) >> (seed % 9),
            movable_frames: n(2),
            nodes: n(9) as u8 % 6,
            cpus: n(3) as u16,
            cpu_nodes: n(10) as u8,
            cma_blocks: n(11) as u8,
            mobility: [Mobility::Grouped, Mobility::Defrag, Mobility::Mixed][seed as usize % 3],
            max_order: n(4) as u8,
            pageblock_order: n(5) as u8,
            vmalloc_pages: n(6),
            huge: seed.is_multiple_of(2),
            min_free: n(7),
            page_debug: n(8) as u8,
            guard_order: n(9) as u8,
            slub_debug: n(8) as u8,
            trim_large: seed & 4 != 0,
            pocket: n(8) as u8,
            hardening: [Hardening::Off, Hardening::Checked, Hardening::Paranoid][seed as usize % 3],
        }
    }

    #[test]
    fn every_specification_gives_a_valid_geometry() {
        for seed in 0..20_000 {
            let spec = any(seed);
            assert_eq!(spec.to_geometry().validate(), Ok(()), "{spec:?}");
            assert_eq!(spec.normalized().normalized(), spec.normalized());
        }
    }

    #[test]
    fn every_preset_is_in_range() {
        for n in 0..16 {
            assert_eq!(GeometrySpec::preset(n).out_of_range(), None, "preset {n}");
        }
        assert_eq!(GeometrySpec { frames: 3, ..GeometrySpec::default() }.out_of_range(), Some(("frames", 3, 16)));
    }

    #[test]
    fn the_default_is_in_range_and_has_one_block_of_the_largest_order() {
        let spec = GeometrySpec::default();
        assert_eq!(spec.normalized(), spec);
        let geometry = spec.to_geometry();
        assert_eq!(geometry.zones().len(), 2);
        assert_eq!(geometry.managed(), PageCount::new(1024));
    }
}
