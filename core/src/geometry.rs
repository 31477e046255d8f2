//! The shape of a machine, as a value.

use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::hardening::{Hardening, PageDebug, SlubDebug};
use crate::mobility::{CmaArea, MAX_CMA_AREAS, Mobility};
use crate::numa::{Distances, NodeId};
use crate::order::{MAX_PAGE_ORDER, Order};
use crate::platform::CpuId;
use core::fmt;

/// How many zones a machine may have: four kinds on each of four nodes.
pub const MAX_ZONES: usize = 16;
/// How many CPUs a machine may have.
pub const MAX_CPUS: u16 = 256;

/// The fewest and the most caches: room for the kmalloc classes and a few more, and what a kind byte can name.
pub(crate) const CACHES: core::ops::RangeInclusive<u16> = 48..=223;

/// A kind of zone; requests fall back from later kinds to earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ZoneKind {
    /// Memory that old devices can address.
    Dma,
    /// Memory below 4 GiB.
    Dma32,
    /// Ordinary memory.
    Normal,
    /// Memory that holds movable pages only.
    Movable,
}

impl ZoneKind {
    /// Returns Linux's name, as `/proc/buddyinfo` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dma => "DMA",
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
            Self::Movable => "Movable",
        }
    }
}

/// One zone: a run of frames on one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ZoneSpec {
    /// What requests may use it.
    pub kind: ZoneKind,
    /// The node it belongs to.
    pub node: NodeId,
    /// Its first frame.
    pub start: Pfn,
    /// How many frames it spans.
    pub frames: PageCount,
}

impl ZoneSpec {
    /// Returns the frame after the zone's last; `None` past the frame number space.
    pub const fn end(&self) -> Option<Pfn> {
        self.start.checked_add(self.frames.get())
    }
}

/// How much memory the watermarks keep back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MinFree {
    /// Linux's formula: `min_free_kbytes = clamp(sqrt(16 * lowmem_kB), 128, 262144)`.
    #[default]
    Auto,
    /// That many pages over all zones, divided by their sizes.
    Pages(u32),
}

/// Which new caches share the slabs of an existing one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SlabMerge {
    /// Those whose objects would lie exactly alike.
    #[default]
    Similar,
    /// None (Linux: `slab_nomerge`).
    Never,
}

/// The shape of a machine: memory, zones, CPUs, the vmalloc window, and how cautious to be.
///
/// The defaults are Linux's for x86-64. Tests use tiny ones, so that every boundary is a few operations away.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// The zones in ascending order of frames; the first [`Self::nr_zones`] entries count.
    zones: [ZoneSpec; MAX_ZONES],
    nr_zones: u8,
    /// How many frames of the last zone are there from the start. The others are absent, and cost nothing, until a request
    /// finds nothing free: then more come, half as many again as there are (Linux: deferred struct pages). Watermarks stay
    /// those of this many. All by default; whole blocks of the largest order come.
    pub boot_pages: PageCount,
    /// How many CPUs call the allocator, 1 to [`MAX_CPUS`].
    pub cpus: u16,
    /// The node that each CPU belongs to, by the CPU's number; a node may have CPUs and no memory, or the reverse.
    pub cpu_nodes: [NodeId; MAX_CPUS as usize],
    /// How far the nodes are from each other; requests prefer near ones.
    pub distances: Distances,
    /// The largest order that the page allocator hands out; blocks never merge beyond it.
    pub max_order: Order,
    /// The order of a pageblock, the unit that has a migrate type; at most [`Self::max_order`].
    pub pageblock_order: Order,
    /// How pages of different mobility are kept apart.
    pub mobility: Mobility,
    /// What is set aside for contiguous ranges.
    pub cma: [CmaArea; MAX_CMA_AREAS],
    /// Where physical address 0 appears in the virtual address space.
    pub direct_map: VirtAddr,
    /// Start of the window in which vmalloc maps; page aligned.
    pub vmalloc_start: VirtAddr,
    /// Size of that window.
    pub vmalloc_pages: PageCount,
    /// Whether areas that ask for it may be mapped in runs of 512 pages, if the largest order allows (Linux:
    /// `vmap_allow_huge`).
    pub vmap_allow_huge: bool,
    /// What the watermarks keep back.
    pub min_free: MinFree,
    /// How many object caches may exist at once, the kmalloc classes included; 48 to 223.
    pub max_caches: u16,
    /// How far frees are checked.
    pub hardening: Hardening,
    /// What paranoid hardening derives its random choices from. Who knows it can predict them: give a number that nobody can
    /// guess.
    pub secret: u64,
    /// What the kmalloc caches check; none by default.
    pub slub_debug: SlubDebug,
    /// How many places of calls the records of `STORE_USER` caches can name; 0 by default: they name none.
    pub track_sites: u16,
    /// Which caches share slabs.
    pub slab_merge: SlabMerge,
    /// Checks of pages that cost; none is Linux's default.
    pub page_debug: PageDebug,
    /// Blocks below this order that are left over when a block is cut become guards, nobody's until the block is free
    /// again; 0: none do. None is as large as a pageblock. At most half the largest order (Linux: `debug_guardpage_minorder`).
    pub guardpage_minorder: Order,
    /// Whether `kmalloc` above the largest class gives the pages back that its power of two has too many; Linux does not. A
    /// block of five pages then is one of five, and not of eight, for `ksize` and `krealloc` too.
    pub trim_large: bool,
    /// How many full sheaves of each cache a CPU keeps for itself before it gives any to the barn, where all CPUs of its memory
    /// node meet; Linux: none.
    pub pocket: u8,
}

/// Why a [`Geometry`] cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GeometryError {
    /// No zone, or more than [`MAX_ZONES`].
    ZoneCount(usize),
    /// The zone at this index is empty, overlaps its predecessor, or ends beyond 2^32 frames.
    ZoneSpan(usize),
    /// Guards of an order above half the largest.
    GuardOrder(u8),
    /// No CPU, or more than [`MAX_CPUS`].
    Cpus(u16),
    /// The pageblock order is above the largest order.
    PageblockOrder {
        /// The pageblock order asked for.
        pageblock: u8,
        /// The largest order asked for.
        max: u8,
    },
    /// The CMA area at this index does not consist of whole pageblocks of one zone.
    CmaArea(usize),
    /// The vmalloc window is empty, unaligned, overlaps the direct map, or leaves one half of the 48-bit space.
    VmallocWindow,
    /// The direct map is unaligned, covers address 0..=16, or leaves one half of the 48-bit space.
    DirectMap,
    /// Fewer than 48 or more than 223 caches.
    Caches(u16),
    /// The metadata region is too small.
    Metadata {
        /// Bytes that [`Geometry`] needs.
        needed: usize,
        /// Bytes that the region has.
        given: usize,
    },
    /// The physical memory window has fewer frames than the zones name.
    Memory {
        /// Frames that the zones span.
        needed: u64,
        /// Frames that the window has.
        given: u64,
    },
    /// Not enough free frames for the boot-time page tables and caches.
    Boot,
    /// The metadata region is still used by another allocator.
    RegionInUse,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZoneCount(n) => write!(f, "{n} zones; use 1 to {MAX_ZONES}"),
            Self::ZoneSpan(i) => write!(f, "zone {i} is empty, overlaps the zone before it, or ends beyond 2^32 frames"),
            Self::GuardOrder(n) => write!(f, "guards below order {n}; use 0 to {}", MAX_PAGE_ORDER / 2),
            Self::Cpus(n) => write!(f, "{n} CPUs; use 1 to {MAX_CPUS}"),
            Self::PageblockOrder { pageblock, max } => {
                write!(f, "pageblock order {pageblock} is above the largest order {max}; lower it")
            }
            Self::CmaArea(i) => write!(f, "CMA area {i} does not consist of whole pageblocks of one zone"),
            Self::VmallocWindow => f.write_str(
                "the vmalloc window is empty, not page aligned, overlaps the direct map, or is not within one half of the 48-bit address space",
            ),
            Self::DirectMap => f.write_str(
                "the direct map is not page aligned, covers the null page, or is not within one half of the 48-bit address space",
            ),
            Self::Caches(n) => write!(f, "{n} caches; use 48 to 223"),
            Self::Metadata { needed, given } => write!(f, "the metadata region has {given} bytes; {needed} are needed"),
            Self::Memory { needed, given } => write!(f, "the memory window has {given} frames; the zones span {needed}"),
            Self::Boot => f.write_str("not enough memory for the allocator's own first frames; add frames"),
            Self::RegionInUse => f.write_str("the metadata region is still used by another allocator; drop that first"),
        }
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// One Normal zone of `frames` frames, one CPU, Linux's orders, and Linux's addresses on x86-64.
    pub fn flat(frames: u32) -> Self {
        let zone = ZoneSpec {
            kind: ZoneKind::Normal,
            node: NodeId::ZERO,
            start: Pfn::new(0),
            frames: PageCount::new(u64::from(frames)),
        };
        Self {
            zones: [zone; MAX_ZONES],
            nr_zones: 1,
            boot_pages: PageCount::new(u64::MAX),
            cpus: 1,
            cpu_nodes: [NodeId::ZERO; MAX_CPUS as usize],
            distances: Distances::default(),
            max_order: Order::MAX,
            pageblock_order: Order::new(MAX_PAGE_ORDER - 1).unwrap_or(Order::MAX),
            mobility: Mobility::Grouped,
            cma: [CmaArea::NONE; MAX_CMA_AREAS],
            direct_map: VirtAddr::new(0xffff_8880_0000_0000),
            vmalloc_start: VirtAddr::new(0xffff_c900_0000_0000),
            vmalloc_pages: PageCount::new(1 << 33),
            vmap_allow_huge: true,
            min_free: MinFree::Auto,
            max_caches: 64,
            hardening: Hardening::Checked,
            secret: 0x005e_ed0f_7e57,
            slub_debug: SlubDebug::empty(),
            track_sites: 0,
            slab_merge: SlabMerge::Similar,
            page_debug: PageDebug::empty(),
            guardpage_minorder: Order::ZERO,
            trim_large: false,
            pocket: 0,
        }
    }

    /// Replaces the zones.
    ///
    /// # Errors
    ///
    /// [`GeometryError::ZoneCount`] if there is none or more than [`MAX_ZONES`].
    pub fn with_zones(mut self, zones: &[ZoneSpec]) -> Result<Self, GeometryError> {
        let (Some(first), true) = (zones.first(), zones.len() <= MAX_ZONES) else {
            return Err(GeometryError::ZoneCount(zones.len()));
        };
        self.zones = [*first; MAX_ZONES];
        for (slot, zone) in self.zones.iter_mut().zip(zones) {
            *slot = *zone;
        }
        self.nr_zones = zones.len() as u8;
        Ok(self)
    }

    /// Says which node each CPU belongs to, from CPU 0 on; CPUs beyond the list stay where they are.
    #[must_use]
    pub fn with_cpu_nodes(mut self, nodes: &[NodeId]) -> Self {
        for (slot, node) in self.cpu_nodes.iter_mut().zip(nodes) {
            *slot = *node;
        }
        self
    }

    /// The node of a CPU; that of CPU 0 for one that cannot exist.
    #[inline(always)]
    pub fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        self.cpu_nodes.get(cpu.index()).copied().unwrap_or(self.cpu_nodes[0])
    }

    /// How many CPUs belong to a node.
    pub fn cpus_of_node(&self, node: NodeId) -> u16 {
        let cpus = self.cpu_nodes.iter().take(usize::from(self.cpus));
        cpus.filter(|&&of_cpu| of_cpu == node).count() as u16
    }

    /// The nodes that have memory, in ascending order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        NodeId::all().filter(|&node| self.zones().iter().any(|zone| zone.node == node))
    }

    /// The zones, in ascending order of frames.
    pub fn zones(&self) -> &[ZoneSpec] {
        &self.zones[..usize::from(self.nr_zones)]
    }

    /// How many zones there are.
    pub fn nr_zones(&self) -> usize {
        usize::from(self.nr_zones)
    }

    /// How many frames the machine spans, holes included: the end of the last zone.
    pub fn frames(&self) -> u32 {
        self.zones().iter().filter_map(ZoneSpec::end).map(Pfn::as_u32).max().unwrap_or(0)
    }

    /// Frames of the zone at this index that are there from the start.
    pub(crate) fn boot_frames(&self, index: usize) -> u64 {
        let frames = self.zones().get(index).map_or(0, |zone| zone.frames.get());
        if index + 1 < self.nr_zones() {
            return frames;
        }
        let least = self.max_order.pages();
        self.boot_pages.get().max(least).checked_next_multiple_of(least).unwrap_or(u64::MAX).min(frames)
    }

    /// Frames that zones own at most: what `MemTotal` counts once all are there.
    pub fn managed(&self) -> PageCount {
        PageCount::new(self.zones().iter().map(|z| z.frames.get()).sum())
    }

    /// The address after the vmalloc window.
    pub fn vmalloc_end(&self) -> VirtAddr {
        let bytes = self.vmalloc_pages.bytes().unwrap_or(usize::MAX) as u64;
        VirtAddr::new(self.vmalloc_start.as_u64().saturating_add(bytes))
    }

    /// Tells whether `addr` lies in the vmalloc window; a pure range test, as in Linux.
    pub fn is_vmalloc_addr(&self, addr: VirtAddr) -> bool {
        addr >= self.vmalloc_start && addr < self.vmalloc_end()
    }

    /// Checks that the parts fit each other.
    ///
    /// # Errors
    ///
    /// The first [`GeometryError`] found.
    pub fn validate(&self) -> Result<(), GeometryError> {
        self.validate_zones()?;
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(GeometryError::Cpus(self.cpus));
        }
        if self.pageblock_order > self.max_order {
            let (pageblock, max) = (self.pageblock_order.get(), self.max_order.get());
            return Err(GeometryError::PageblockOrder { pageblock, max });
        }
        self.validate_cma()?;
        if self.guardpage_minorder.get() > MAX_PAGE_ORDER / 2 {
            return Err(GeometryError::GuardOrder(self.guardpage_minorder.get()));
        }
        if !CACHES.contains(&self.max_caches) {
            return Err(GeometryError::Caches(self.max_caches));
        }
        self.validate_windows()
    }

    fn validate_zones(&self) -> Result<(), GeometryError> {
        let mut free_from = Pfn::new(0);
        for (i, zone) in self.zones().iter().enumerate() {
            let end = zone.end().ok_or(GeometryError::ZoneSpan(i))?;
            if zone.frames == PageCount::ZERO || zone.start < free_from {
                return Err(GeometryError::ZoneSpan(i));
            }
            free_from = end;
        }
        Ok(())
    }

    fn validate_cma(&self) -> Result<(), GeometryError> {
        let whole_blocks = |area: &CmaArea| {
            self.pageblock_order.is_aligned(area.start) && area.pages.get().is_multiple_of(self.pageblock_order.pages())
        };
        let in_zone = |area: &CmaArea| {
            let end = area.end();
            self.zones().iter().any(|zone| zone.start <= area.start && end.is_some() && end <= zone.end())
        };
        let bad = |area: &CmaArea| area.pages != PageCount::ZERO && !(whole_blocks(area) && in_zone(area));
        self.cma.iter().position(bad).map_or(Ok(()), |i| Err(GeometryError::CmaArea(i)))
    }

    fn validate_windows(&self) -> Result<(), GeometryError> {
        let direct_bytes = u64::from(self.frames()) << crate::addr::PAGE_SHIFT;
        let direct = Window::new(self.direct_map, Some(direct_bytes)).ok_or(GeometryError::DirectMap)?;
        let vmalloc_bytes = self.vmalloc_pages.bytes().map(|b| b as u64);
        let vmalloc = Window::new(self.vmalloc_start, vmalloc_bytes).ok_or(GeometryError::VmallocWindow)?;
        if direct.overlaps(vmalloc) {
            return Err(GeometryError::VmallocWindow);
        }
        Ok(())
    }
}

/// A non-empty, page-aligned range inside one canonical half of the 48-bit address space, above the null page.
#[derive(Clone, Copy)]
struct Window {
    first: u64,
    last: u64,
}

impl Window {
    fn new(start: VirtAddr, bytes: Option<u64>) -> Option<Self> {
        let first = start.as_u64();
        let last = first.checked_add(bytes?.checked_sub(1)?)?;
        let half = |a: u64| (a as i64) >> 47;
        let canonical = matches!(half(first), 0 | -1) && half(first) == half(last);
        let aligned = start.page_offset() == 0;
        (canonical && aligned && first >= crate::addr::PAGE_SIZE as u64).then_some(Self { first, last })
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_defaults_are_valid() {
        assert_eq!(Geometry::flat(1024).validate(), Ok(()));
    }

    #[test]
    fn each_bad_part_is_named() {
        let bad = |change: fn(&mut Geometry)| {
            let mut g = Geometry::flat(64);
            change(&mut g);
            g.validate().unwrap_err()
        };
        assert_eq!(bad(|g| g.cpus = 0), GeometryError::Cpus(0));
        assert_eq!(bad(|g| g.vmalloc_pages = PageCount::ZERO), GeometryError::VmallocWindow);
        assert_eq!(bad(|g| g.vmalloc_start = g.direct_map), GeometryError::VmallocWindow);
        assert_eq!(bad(|g| g.vmalloc_start = VirtAddr::new(0x8000_0000_0000)), GeometryError::VmallocWindow);
        assert_eq!(bad(|g| g.direct_map = VirtAddr::new(0)), GeometryError::DirectMap);
        fn area(start: u32, pages: u64) -> CmaArea {
            CmaArea { start: Pfn::new(start), pages: PageCount::new(pages) }
        }
        fn order(n: u8) -> Order {
            Order::new(n).unwrap()
        }
        assert_eq!(bad(|g| g.cma[1] = area(0, 512)), GeometryError::CmaArea(1), "beyond the zone");
        assert_eq!(bad(|g| (g.pageblock_order, g.cma[0]) = (Order::ZERO, area(63, 2))), GeometryError::CmaArea(0));
        assert_eq!(bad(|g| (g.pageblock_order, g.cma[0]) = (order(2), area(2, 4))), GeometryError::CmaArea(0));
        assert_eq!(bad(|g| (g.pageblock_order, g.cma[0]) = (order(2), area(4, 6))), GeometryError::CmaArea(0));
        assert_eq!(bad(|g| g.max_caches = 3), GeometryError::Caches(3));
        assert_eq!(bad(|g| g.max_order = Order::ZERO), GeometryError::PageblockOrder { pageblock: 9, max: 0 });
        assert_eq!(Geometry::flat(0).validate(), Err(GeometryError::ZoneSpan(0)));
        assert_eq!(Geometry::flat(8).with_zones(&[]).unwrap_err(), GeometryError::ZoneCount(0));
    }
}
