//! The page allocator: zones of frames in blocks of a power of two, and per-CPU pages in front of them.
//!
//! | room | what lives there |
//! |---|---|
//! | `zone` `populate` | a zone's free areas: split, merge; frames that come to it |
//! | `migrate` `fallback` | migrate types, pageblocks, what happens when a type has run out |
//! | `watermark` `zonelist` | which zones a request may use, how far down, in which order |
//! | `highatomic` | the reserve for urgent requests of several pages |
//! | `pcp` | what a CPU keeps for itself |
//! | `alloc` `free` | the way of a block between zone, CPU and owner: fast path, slow path, refill, drain |
//! | `compact` `relocate` | making large blocks by moving movable ones out of the way |
//! | `isolate` `contig` | taking pageblocks out of circulation; runs of frames of any length |
//! | `nolock` `report` | calls that wait for no lock; free blocks lent to the host |
//! | `refs` | blocks with extra references, and those that are mapped |
//! | `trim` | large blocks of `kmalloc` without the pages that nobody asked for |
//! | `debug` | bad pages, poison, owners: checks that cost |
//! | `request` `bulk` | the calls: one block, exact sizes, misuse; many pages at once |
//! | `usage` `check` | who has how many pages; the auditor |
//!
//! A frame's kind says where it is; these are the moves that this layer makes:
//!
//! | from | to | by | under |
//! |---|---|---|---|
//! | `Free` | `Pcp` | refill | the CPU's cell, then the zone's lock |
//! | `Pcp` | `Free` | drain | the CPU's cell, then the zone's lock |
//! | `Pcp` | an owner's | allocation | the CPU's cell |
//! | an owner's | `Pcp` | free | the CPU's cell |
//! | `Free` | an owner's | allocation of other orders, or without the cell | the zone's lock |
//! | an owner's | `Free` | free of other orders, or without the cell | the zone's lock |
//!
//! Lock order: a CPU's cell (tried only), then one zone's lock. No zone's lock is held while another is taken, and none
//! across a return. A free verifies its argument before it changes anything; two CPUs that free the same block at the
//! same moment are a race of the callers that it does not detect.
//!
//! ```text
//! I7    free + per-CPU + owned pages == managed pages
//! I8    list lengths, the emptiness bits and the ledgers agree with the lists
//! I9    a free block below the largest order has no free buddy of its order in its zone, unless a special type keeps
//!       the two apart
//! I10   a block is aligned to its size and inside one zone; frames outside of zones are never touched
//! I11   a free block is on the list of the migrate type of every pageblock that it overlaps
//! I21   a frame on a per-CPU list is on one list of one CPU, and the ledger counts it
//! ```

mod alloc;
mod bulk;
mod check;
mod compact;
mod contig;
mod debug;
mod fallback;
mod free;
mod highatomic;
mod isolate;
mod migrate;
mod nolock;
mod pcp;
mod populate;
mod refs;
mod relocate;
mod report;
mod request;
mod runs;
#[cfg(test)]
mod tests;
mod trim;
mod usage;
mod watermark;
mod zone;
mod zonelist;

pub(crate) use self::compact::CompactPriority;
pub use self::compact::CompactResult;
use self::debug::{DebugParts, PageChecks};
pub(crate) use self::highatomic::Release;
pub use self::migrate::MigrateType;
use self::migrate::PCP_TYPES;
use self::migrate::Pageblocks;
use self::pcp::{HotPages, PerCpuPages};
pub(crate) use self::relocate::Mover;
pub(crate) use self::request::Missed;
use self::usage::OWNER_CLASSES;
pub(crate) use self::usage::OwnerClass;
use self::zone::{LockedZone, Zone};
use self::zonelist::{LocalRoutes, Zonelists};
use crate::addr::Pfn;
use crate::base::Base;
use crate::geometry::Geometry;
use crate::inspect::{MIGRATE_TYPES, ZoneInfo};
use crate::numa::NodeId;
use crate::order::NR_PAGE_ORDERS;
use crate::page::{FrameKind, HOMES};
use crate::platform::{CpuId, Platform};
use crate::raw::{Carver, MetaSlice, PerCpu};
use crate::statistics::PathCounts;
use crate::sync::Ordering::Relaxed;

/// The metadata of the page allocator.
pub(crate) struct PageParts {
    zones: MetaSlice<Zone>,
    /// CPU after CPU, for each its zones.
    pcps: MetaSlice<PerCpuPages>,
    /// CPU after CPU, for each its zones, for each its types.
    hot: MetaSlice<HotPages>,
    blocks: Pageblocks,
    routes: MetaSlice<LocalRoutes>,
    debug: DebugParts,
}

impl PageParts {
    pub(crate) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let nr_zones = geometry.nr_zones();
        let zones = carver.carve(nr_zones, |i| Zone::new(geometry, i));
        let lists = nr_zones * usize::from(geometry.cpus);
        let pcps = carver.carve(lists, |i| PerCpuPages::new(Zone::new(geometry, i % nr_zones).pcp));
        // No more than a kind byte can name, or that of a slab would name one.
        let arrays = (nr_zones * PCP_TYPES).min(HOMES);
        let hot = carver.carve(arrays * usize::from(geometry.cpus), |i| {
            HotPages::new(Zone::new(geometry, i % arrays / PCP_TYPES).pcp)
        });
        let blocks = Pageblocks::carve(geometry, carver);
        let routes = LocalRoutes::carve(geometry, carver);
        Self { zones, pcps, hot, blocks, routes, debug: DebugParts::carve(geometry, carver) }
    }
}

/// The lowest layer that allocates: frames, in blocks of a power of two.
pub(crate) struct PageAllocator<P> {
    pub(crate) base: Base<P>,
    zonelists: Zonelists,
    nr_zones: usize,
    zones: MetaSlice<Zone>,
    pcps: MetaSlice<PerCpuPages>,
    /// For each CPU an array of the newest pages for each zone and type: zone `z`, type `t` at `z * PCP_TYPES + t`.
    hot: PerCpu<HotPages, PCP_TYPES>,
    blocks: Pageblocks,
    routes: PerCpu<LocalRoutes, 1>,
    checks: PageChecks,
}

impl<P: Platform> PageAllocator<P> {
    /// Takes over all frames of all zones; they are free from here on.
    pub(crate) fn new(base: Base<P>, parts: PageParts) -> Self {
        let PageParts { zones, pcps, hot, blocks, routes, debug } = parts;
        let checks = PageChecks::new(&base.geometry, debug);
        let zonelists = Zonelists::new(&base.geometry);
        let cpus = base.geometry.cpus;
        let (hot, routes) = (PerCpu::new(hot, cpus), PerCpu::new(routes, cpus));
        let this = Self { zonelists, nr_zones: zones.len(), zones, pcps, hot, blocks, routes, checks, base };
        for zone in this.zones.iter() {
            for pfn in zone.pfns() {
                this.base.frames.set_zone(pfn, zone.index);
            }
            this.locked(zone, |locked| {
                locked.set_aside();
                locked.populate();
            });
        }
        this.poison_everything();
        this
    }

    /// Gives the platform back; the frames are nobody's from then on.
    pub(crate) fn into_platform(self) -> P {
        self.base.platform
    }

    /// Runs `body` under a zone's lock.
    fn locked<R>(&self, zone: &Zone, body: impl FnOnce(&mut LockedZone<'_, P>) -> R) -> R {
        let mut areas = zone.areas.lock();
        let mut locked = LockedZone { base: &self.base, zone, blocks: &self.blocks, areas: &mut areas };
        if !zone.deferred.is_empty() {
            locked.free_deferred();
        }
        body(&mut locked)
    }

    /// Frames that the zones have.
    pub(crate) fn managed(&self) -> u64 {
        self.zones.iter().map(Zone::frames).sum()
    }

    /// Has more frames of the last zone come, if not all are there; `false` if none came.
    #[cold]
    pub(crate) fn grow(&self) -> bool {
        let last = self.zones.iter().last().filter(|zone| zone.frames() < zone.most_frames);
        last.is_some_and(|zone| self.locked(zone, |locked| locked.grow()) > 0)
    }

    /// A CPU's pages of a zone.
    fn pcp(&self, cpu: CpuId, zone: usize) -> Option<&PerCpuPages> {
        if zone < self.nr_zones { self.pcps.get(cpu.index() * self.nr_zones + zone) } else { None }
    }

    /// The migrate type of the pageblock around a frame; `None` outside all zones.
    pub(crate) fn pageblock_type(&self, pfn: Pfn) -> Option<MigrateType> {
        if self.base.frames.kind(pfn) == FrameKind::Absent {
            return None;
        }
        let zone = self.zones.get(usize::from(self.base.frames.zone(pfn)))?;
        Some(self.blocks.get(zone.block_base, pfn))
    }

    /// How many pageblocks of a zone have each migrate type; `None` if there is no such zone. A pageblock that the zone
    /// shares with another counts in both.
    pub(crate) fn pageblock_counts(&self, zone: usize) -> Option<[u64; MIGRATE_TYPES]> {
        let zone = self.zones.get(zone)?;
        let mut counts = [0; MIGRATE_TYPES];
        let order = self.blocks.order.get();
        let (first, last) = (zone.start.as_u32() >> order, (zone.end() - 1) as u32 >> order);
        self.locked(zone, |locked| {
            for block in first..=last {
                let pfn = Pfn::new(block << order).max(zone.start);
                if let Some(count) = counts.get_mut(locked.block_type(pfn) as usize) {
                    *count += 1;
                }
            }
        });
        Some(counts)
    }

    /// Lowers the watermarks of all zones to what they are without a boost: reclaim has run.
    pub(crate) fn drop_boosts(&self) {
        for zone in self.zones.iter().filter(|zone| zone.boost() > 0) {
            self.locked(zone, |locked| locked.drop_boost());
        }
    }

    /// Runs what a request does after reclaim, while no watermark is raised, for anybody: the pages of an area are many
    /// requests, and what one of them takes from another type must not have the next one refused.
    pub(crate) fn without_boosts<R>(&self, body: impl FnOnce() -> R) -> R {
        self.zones.iter().for_each(Zone::begin_retry);
        let result = body();
        self.zones.iter().for_each(Zone::end_retry);
        result
    }

    /// The node of a frame's memory; `None` outside all zones.
    pub(crate) fn node_of(&self, pfn: Pfn) -> Option<NodeId> {
        if self.base.frames.kind(pfn) == FrameKind::Absent {
            return None;
        }
        self.zones.get(usize::from(self.base.frames.zone(pfn))).map(|zone| zone.node)
    }

    /// A CPU's newest pages of a zone and type.
    fn hot(&self, cpu: CpuId, zone: usize, migrate: usize) -> Option<&HotPages> {
        if migrate < PCP_TYPES { self.hot.get(cpu, zone * PCP_TYPES + migrate) } else { None }
    }

    /// How many pages of a zone a CPU keeps, on its lists and in its arrays.
    fn pcp_pages(&self, cpu: CpuId, zone: usize) -> u64 {
        let hot = (0..PCP_TYPES).filter_map(|migrate| self.hot(cpu, zone, migrate)).map(HotPages::len);
        self.pcp(cpu, zone).map_or(0, PerCpuPages::pages) + hot.sum::<u64>()
    }

    /// How often the paths of one CPU were used.
    pub(crate) fn statistics(&self, cpu: CpuId) -> PathCounts {
        let zones = (0..self.nr_zones).filter_map(|zone| self.pcp(cpu, zone)).map(|pcp| PathCounts {
            alloc_slowpath: pcp.slow_allocs.load(Relaxed).into(),
            free_slowpath: pcp.slow_frees.load(Relaxed).into(),
            ..PathCounts::default()
        });
        let arrays = (0..self.nr_zones * PCP_TYPES).filter_map(|array| self.hot.get(cpu, array)).map(|hot| {
            let (allocs, frees) = hot.hits();
            PathCounts { alloc_fastpath: allocs.into(), free_fastpath: frees.into(), ..PathCounts::default() }
        });
        zones.chain(arrays).fold(PathCounts::default(), PathCounts::plus)
    }

    /// Pages that an owner has. Exact while nobody else allocates or frees.
    pub(crate) fn owned(&self, class: OwnerClass) -> u64 {
        let zones = self.zones.iter().map(|zone| zone.ledger.get(class));
        let cpus = self.pcps.iter().map(|pcp| pcp.ledger.get(class));
        let hot = self.hot.iter().map(|hot| match class {
            OwnerClass::Pcp => hot.len(),
            OwnerClass::Pages => hot.out(),
            _ => 0,
        });
        zones.chain(cpus).chain(hot).fold(0, u64::wrapping_add)
    }

    /// Pages of every owner, by [`OwnerClass`]. Exact while nobody else allocates or frees.
    pub(crate) fn owners(&self) -> [u64; OWNER_CLASSES] {
        let mut pages = [0; OWNER_CLASSES];
        for zone in self.zones.iter() {
            zone.ledger.add_to(&mut pages);
        }
        for pcp in self.pcps.iter() {
            pcp.ledger.add_to(&mut pages);
        }
        for hot in self.hot.iter() {
            for (class, more) in [(OwnerClass::Pcp, hot.len()), (OwnerClass::Pages, hot.out())] {
                pages[class as usize] = pages[class as usize].wrapping_add(more);
            }
        }
        pages
    }

    /// One zone's free blocks and watermarks; `None` if there is no such zone.
    pub(crate) fn zone_info(&self, zone: usize) -> Option<ZoneInfo> {
        let zone = self.zones.get(zone)?;
        let on_cpu = |cpu| self.pcp_pages(CpuId::new(cpu), usize::from(zone.index));
        let mut info = ZoneInfo {
            node: zone.node,
            kind: zone.kind,
            start: zone.start,
            managed: zone.frames(),
            free: [0; NR_PAGE_ORDERS],
            free_by_type: [[0; NR_PAGE_ORDERS]; MIGRATE_TYPES],
            free_pages: 0,
            pcp_pages: (0..self.base.geometry.cpus).map(on_cpu).sum(),
            min: zone.marks.min,
            low: zone.marks.low,
            high: zone.marks.high,
            promo: zone.marks.promo,
            boost: zone.boost(),
            reserved_highatomic: 0,
        };
        self.locked(zone, |locked| {
            info.free_pages = zone.free_pages();
            info.reserved_highatomic = locked.areas.reserved_highatomic;
            for (order, lists) in locked.areas.lists.iter().enumerate() {
                for (migrate, list) in lists.iter().enumerate() {
                    info.free[order] += list.len();
                    info.free_by_type[migrate][order] = list.len();
                }
            }
        });
        Some(info)
    }
}
