//! What the allocator shows of itself, as values and as Linux-looking text.

use crate::addr::Pfn;
use crate::error::CacheId;
use crate::geometry::{MAX_ZONES, ZoneKind};
use crate::gfp::GfpFlags;
use crate::numa::{MAX_NODES, NodeId};
use crate::order::{NR_PAGE_ORDERS, Order};
use crate::page::FrameKind;
use crate::platform::CpuId;
use crate::slab::SlabFlags;
use core::fmt;
use core::panic::Location;

mod areas;
mod zones;
pub use self::areas::{AreaKind, VmallocEntry};
pub(crate) use self::zones::Fill;
pub use self::zones::PageTypeInfo;

/// How many migrate types there are, the special ones included.
pub const MIGRATE_TYPES: usize = 6;

/// One zone's free blocks and watermarks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneInfo {
    /// The node that it belongs to.
    pub node: NodeId,
    /// What kind of zone it is.
    pub kind: ZoneKind,
    /// Its first frame.
    pub start: Pfn,
    /// Pages that it manages.
    pub managed: u64,
    /// Free blocks of each order, all migrate types together; per-CPU pages are not among them.
    pub free: [u32; NR_PAGE_ORDERS],
    /// Free blocks of each migrate type and order.
    pub free_by_type: [[u32; NR_PAGE_ORDERS]; MIGRATE_TYPES],
    /// Pages in those blocks.
    pub free_pages: u64,
    /// Pages on per-CPU lists.
    pub pcp_pages: u64,
    /// The min watermark in pages.
    pub min: u64,
    /// The low watermark in pages.
    pub low: u64,
    /// The high watermark in pages.
    pub high: u64,
    /// The promo watermark in pages.
    pub promo: u64,
    /// Pages that are on top of each watermark at present.
    pub boost: u64,
    /// Pages of the pageblocks in the HIGHATOMIC reserve, in use or free.
    pub reserved_highatomic: u64,
}

impl ZoneInfo {
    pub(crate) const EMPTY: Self = Self {
        node: NodeId::ZERO,
        kind: ZoneKind::Normal,
        start: Pfn::new(0),
        managed: 0,
        free: [0; NR_PAGE_ORDERS],
        free_by_type: [[0; NR_PAGE_ORDERS]; MIGRATE_TYPES],
        free_pages: 0,
        pcp_pages: 0,
        min: 0,
        low: 0,
        high: 0,
        promo: 0,
        boost: 0,
        reserved_highatomic: 0,
    };
}

/// The free blocks of all zones; its text is `/proc/buddyinfo`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BuddyInfo {
    zones: [ZoneInfo; MAX_ZONES],
    nr_zones: usize,
}

impl BuddyInfo {
    /// Makes a listing of these zones; zones beyond [`MAX_ZONES`] are left out.
    pub fn new(zones: impl Iterator<Item = ZoneInfo>) -> Self {
        let mut info = Self { zones: [ZoneInfo::EMPTY; MAX_ZONES], nr_zones: 0 };
        for (slot, zone) in info.zones.iter_mut().zip(zones) {
            *slot = zone;
            info.nr_zones += 1;
        }
        info
    }

    /// The zones, in ascending order of frames.
    pub fn zones(&self) -> &[ZoneInfo] {
        &self.zones[..self.nr_zones]
    }
}

impl fmt::Debug for BuddyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.zones()).finish()
    }
}

impl fmt::Display for BuddyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for zone in self.zones() {
            write!(f, "Node {}, zone {:>8}", zone.node, zone.kind.name())?;
            for blocks in zone.free {
                write!(f, " {blocks:>6}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A cache's name, kept in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheName {
    bytes: [u8; crate::CACHE_NAME_MAX],
    len: u8,
}

impl CacheName {
    /// Copies a name; `None` if it is empty or longer than [`CACHE_NAME_MAX`](crate::CACHE_NAME_MAX) bytes.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; crate::CACHE_NAME_MAX];
        if name.is_empty() {
            return None;
        }
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { bytes, len: name.len() as u8 })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What `/proc/slabinfo` begins with: its version, and the names of the columns.
pub const SLABINFO_HEADER: &str = concat!(
    "slabinfo - version: 2.1\n",
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>",
    " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
);

/// One object cache; its text is a line of `/proc/slabinfo`. Objects in sheaves count as active there: only those in
/// slabs are free. There are no tunables, and every slab counts as active.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheInfo {
    /// The cache.
    pub id: CacheId,
    /// Its name.
    pub name: CacheName,
    /// Objects that users hold.
    pub active_objs: u64,
    /// Objects that all slabs together can hold.
    pub num_objs: u64,
    /// Free objects in per-CPU sheaves and the barn.
    pub in_sheaves: u64,
    /// Objects whose free waits, because everything was in use when they were given back.
    pub deferred: u64,
    /// The free objects in slabs, by memory node.
    pub free_by_node: [u64; MAX_NODES],
    /// Objects of a debug cache that are neither live nor free: what damage cost, and what is in quarantine.
    pub lost: u64,
    /// Objects in prefilled sheaves of users.
    pub reserved: u64,
    /// Free objects in slabs.
    pub free_in_slabs: u64,
    /// Bytes that a user asked for per object.
    pub object_size: usize,
    /// Bytes from one object to the next.
    pub size: usize,
    /// Alignment of every object.
    pub align: usize,
    /// Objects in a slab of the preferred order.
    pub objects_per_slab: u32,
    /// The preferred order of a slab.
    pub order: Order,
    /// The order used when the preferred one is refused.
    pub min_order: Order,
    /// Slabs that exist.
    pub nr_slabs: u64,
    /// Slabs on the partial lists.
    pub nr_partial: u64,
    /// Objects in a sheaf; 0 for a cache without sheaves.
    pub sheaf_capacity: u16,
    /// Objects that were freed and wait for a grace period.
    pub rcu_pending: u64,
    /// Other caches that use the same slabs.
    pub aliases: u32,
    /// What it was created with.
    pub flags: SlabFlags,
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<17} {:>6} {:>6} {:>6} {:>4} {:>4} : tunables {:>4} {:>4} {:>4} : slabdata {:>6} {:>6} {:>6}",
            self.name,
            self.num_objs - self.free_in_slabs.min(self.num_objs),
            self.num_objs,
            self.size,
            self.objects_per_slab,
            self.order.pages(),
            0,
            0,
            0,
            self.nr_slabs,
            self.nr_slabs,
            0
        )
    }
}

/// Who has a block of pages; its text is an entry of Linux's `page_owner` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageOwner {
    /// The block's first frame.
    pub first: Pfn,
    /// Its order.
    pub order: Order,
    /// What it is used for.
    pub kind: FrameKind,
    /// The flags of the request.
    pub gfp: GfpFlags,
    /// The CPU that asked.
    pub cpu: CpuId,
    /// How many blocks had been handed out before.
    pub sequence: u64,
    /// Where it was asked for.
    pub location: &'static Location<'static>,
}

impl fmt::Display for PageOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, order, kind, gfp, cpu, sequence, location } = self;
        writeln!(
            f,
            "Page allocated via order {order}, mask {:#x}({gfp:?}), cpu {}, seq {sequence}",
            gfp.bits(),
            cpu.get()
        )?;
        writeln!(f, "PFN {first} type {kind:?}")?;
        writeln!(f, " {location}")
    }
}

/// Pages by owner. The owners' sum is `managed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemInfo {
    /// All pages of all zones.
    pub managed: u64,
    /// In the buddy's free lists.
    pub free: u64,
    /// On per-CPU lists.
    pub pcp: u64,
    /// Given by `alloc_pages` and its relatives.
    pub pages: u64,
    /// Behind large `kmalloc` blocks.
    pub large_kmalloc: u64,
    /// In slabs.
    pub slab: u64,
    /// Behind live vmalloc areas.
    pub vmalloc: u64,
    /// Behind vmalloc areas that are freed but not yet flushed.
    pub vmalloc_lazy: u64,
    /// Page tables.
    pub page_tables: u64,
    /// In slabs with live objects whose caches were destroyed.
    pub leaked: u64,
    /// Guards beside used blocks.
    pub guard: u64,
    /// Bad pages, out of circulation.
    pub bad: u64,
}

impl MemInfo {
    /// The sum of all owners' pages.
    pub const fn owned_total(&self) -> u64 {
        self.free
            + self.pcp
            + self.pages
            + self.large_kmalloc
            + self.slab
            + self.vmalloc
            + self.vmalloc_lazy
            + self.page_tables
            + self.leaked
            + self.guard
            + self.bad
    }
}

impl fmt::Display for MemInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |pages: u64| pages * (crate::PAGE_SIZE as u64 / 1024);
        let rows = [
            ("MemTotal:", self.managed),
            ("MemFree:", self.free + self.pcp),
            ("PerCpuPages:", self.pcp),
            ("Pages:", self.pages),
            ("LargeKmalloc:", self.large_kmalloc),
            ("Slab:", self.slab),
            ("VmallocUsed:", self.vmalloc),
            ("VmallocLazy:", self.vmalloc_lazy),
            ("PageTables:", self.page_tables),
            ("Leaked:", self.leaked),
            ("Guard:", self.guard),
            ("BadPages:", self.bad),
        ];
        for (name, pages) in rows {
            writeln!(f, "{name:<15}{:>9} kB", kib(pages))?;
        }
        Ok(())
    }
}
