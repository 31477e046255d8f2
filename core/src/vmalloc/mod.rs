//! Virtually contiguous memory: a window of addresses in which single frames are mapped side by side.
//!
//! | room | what lives there |
//! |---|---|
//! | `area` `record` | an area, and how it is kept in a slab object |
//! | `tree` | areas by address; the free ranges are the gaps between them |
//! | `nodes` | vmap nodes: live areas, lazy areas and pools, divided by address so that CPUs do not meet |
//! | `pool` | freed and flushed address ranges, by size |
//! | `alloc` | `vmalloc`, `vmap`: record, addresses, frames, page tables, and the way back from each |
//! | `flags` | what kind of area |
//! | `frames` | the frames of an area: long runs first |
//! | `runs` | how many runs and entries map an area |
//! | `lazy` | `vfree`, `vunmap`, and the purge that flushes before anything is reused |
//! | `realloc` `resize` | `vrealloc`: in place, and growing by more addresses or by other ones |
//! | `migrate` | pages of movable areas that go to other frames |
//! | `access` | copying and filling through the page tables |
//! | `deferred` | `vfree_atomic`: frees of callers that may not wait |
//! | `read` | `vread` of any place, frames for a user's address space |
//! | `ram` | `vm_map_ram`: mappings that come and go, cut from blocks |
//! | `check` | the recount |
//!
//! # Freeing is lazy, and stronger than Linux's
//!
//! `vfree` takes the translations away at once, but a TLB may remember them. The addresses *and the frames* therefore
//! stay out of use until [`Vmalloc::purge`] has flushed, once for all lazy areas. (Linux frees the frames at once and
//! holds only the addresses back, so a stale translation can reach a frame's next owner.)
//!
//! | state | addresses | entries | frames | leaves by |
//! |---|---|---|---|---|
//! | Reserved | taken | being filled | in the caller's hands | the caller gets the address, or the call fails |
//! | Vmalloc | taken | present | owned | `vfree`, `vrealloc` |
//! | Vmap | taken | present | somebody else's, or shared with others | `vunmap`, `vfree` |
//! | Block | taken | some present, some unmapped | somebody else's | all mappings came and went; a purge |
//! | Lazy | taken | unmapped | owned if `vmalloc`ed; of a mapping, those of which it had the last reference | purge |
//! | Pooled | taken | none | none | a new area of the same size; a purge, or a shortage, that gives them back |
//!
//! # No page array
//!
//! The page table is the array of an area's frames; between the page allocator and the table they travel on a list
//! through their own descriptors. So nothing here needs memory that grows with the area, and unwinding never allocates.
//!
//! # Locks
//!
//! `purging` > `space` > a queue of blocks > a vmap node > page tables > slab > zone. `space` protects the tree of all areas, a
//! node's lock its live areas with their records, its lazy list and its pools; `space` is held for a number of steps
//! logarithmic in the number of areas, a node's lock for a few. An area in a state that only its own call may leave (Reserved,
//! or Lazy and not yet on the list) is worked on without them. The common calls take node locks only: see `nodes`.
//!
//! # Invariants
//!
//! Those of `tree`, `nodes` and `paging`, and with `mapped(a)` of an area `a`:
//!
//! ```text
//! I7.1   sum of own(a) over owning a == frames of kind Vmalloc;   nr_tables == frames of kind PageTable
//! I1.2   the frame behind page p of an owning area has kind Vmalloc, private == p mod 2^32 (so it is no other page's);
//!        own(a) counts those.  own(a) == mapped(a) unless a had only references to its pages
//! I15.1  a is lazy  =>  none of its entries is present, and the deferred flush covers them
//! I16.1  page i of a: i < mapped(a) => its entry names a frame (present if a is live);  else, and for the guard, empty
//! I16.2  sum of mapped(a) over all a == number of entries in the tables                 (so gaps are unmapped)
//!        of a block, mapped(a) is the number of its entries that are not empty;  its pages: R1..R4 of `ram`
//! I16.4  every entry of a maps 2^leaf(a) pages;  start(a), pages(a) and mapped(a) are multiples of that
//! I17.5  the lazy list of node k holds exactly the lazy areas with node_of(start) == k, and its counters are their sums
//! I17.6  no area is Reserved, and no purge has areas, while no call is under way
//! I17.7  lazy_pages == sum over all nodes of the pages on their lazy lists
//! I17.8  sum over frames of the mappings that they count == pages of areas that show frames of others
//! ```

mod access;
mod alloc;
mod area;
mod check;
mod check_nodes;
mod check_ram;
mod deferred;
mod flags;
mod frames;
mod lazy;
mod live;
mod migrate;
mod nodes;
mod pending;
mod pool;
mod ram;
mod read;
mod realloc;
mod record;
mod resize;
mod runs;
#[cfg(test)]
mod tests;
mod tree;

use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{AllocError, BlockKind, CacheId, FreeError};
use crate::inspect::VmallocEntry;
use crate::page::FrameKind;
use crate::paging::PageTables;
use crate::platform::Platform;
use crate::slab::{CacheArgs, SlabFlags, SlabLayer};
use crate::sync::{AtomicU64, SpinLock};
pub use flags::{VmFlags, VmallocArgs};
pub(crate) use migrate::VmallocMover;
pub use runs::AreaMapping;

pub(crate) use nodes::VmallocParts;

use area::Node;
use deferred::Deferred;
use lazy::lazy_max_pages;
use nodes::Nodes;
use ram::RamBlocks;
use record::{RECORD_BYTES, Records};
use tree::Tree;

/// The name of the cache of area records, as `slabinfo` shows it.
const RECORD_CACHE: &str = "vmap_area";
/// How many areas a walk over all of them reads at a time, while it has the window's lock.
const SHOWN_AT_ONCE: usize = 16;

/// The vmalloc window: its areas, and the page tables behind them.
pub(crate) struct Vmalloc {
    tables: PageTables,
    /// The cache of area records.
    records: CacheId,
    /// Number of the window's first page, and the number after its last.
    window: (u64, u64),
    /// More lazy pages than this are purged without being asked for.
    lazy_max: u64,
    /// Pages of address space that wait on the lazy lists.
    lazy_pages: AtomicU64,
    nodes: Nodes,
    deferred: Deferred,
    ram: RamBlocks,
    space: SpinLock<Space>,
    /// Held while a purge is under way, so that whoever waits for it finds its pages free.
    purging: SpinLock<()>,
}

/// What the window's lock protects.
struct Space {
    /// All areas.
    tree: Tree,
}

impl Vmalloc {
    /// Makes an empty window, its root page table and the cache of its records.
    ///
    /// # Errors
    ///
    /// That of the page allocator if there is no frame for the root, or [`AllocError::BadFlags`] if the geometry has no
    /// room for one more cache.
    pub(crate) fn new<P: Platform>(
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        parts: VmallocParts,
    ) -> Result<Self, AllocError> {
        let geometry = &pages.base.geometry;
        let args = CacheArgs { align: RECORD_BYTES, flags: SlabFlags::NO_MERGE, ..CacheArgs::new(RECORD_BYTES) };
        let records = slab.internal_create(pages, RECORD_CACHE, &args).map_err(|_| AllocError::BadFlags)?;
        let first = geometry.vmalloc_start.vpn().as_u64();
        let (nodes, deferred, ram) = parts.into_nodes();
        Ok(Self {
            tables: PageTables::new(pages)?,
            records,
            window: (first, first + geometry.vmalloc_pages.get()),
            lazy_pages: AtomicU64::new(0),
            nodes,
            deferred,
            ram,
            lazy_max: lazy_max_pages(geometry.cpus, geometry.managed().get()),
            space: SpinLock::new(Space { tree: Tree::of_window(geometry) }),
            purging: SpinLock::new(()),
        })
    }

    /// The frame behind an address of the window; `None` if nothing is mapped there.
    pub(crate) fn vmalloc_to_page<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<Pfn> {
        if !pages.base.geometry.is_vmalloc_addr(addr) {
            return None;
        }
        self.tables.translate(pages, addr.vpn())
    }

    /// Usable bytes of the live area that starts at `addr`: its mapped pages.
    ///
    /// # Errors
    ///
    /// Which misuse freeing the address would be.
    pub(crate) fn size_of<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<usize, FreeError> {
        let (_, node) = self.live_at(&pages.base, addr)?;
        let mapped = node.entry().and_then(|entry| entry.mapped.bytes());
        mapped.ok_or(FreeError::Foreign(addr))
    }

    /// Shows every area in address order, lazy ones too. Areas that come and go meanwhile may be missed.
    pub(crate) fn for_each_area<P: Platform>(&self, pages: &PageAllocator<P>, mut see: impl FnMut(VmallocEntry)) {
        let mut from = 0;
        let mut batch = [None; SHOWN_AT_ONCE];
        loop {
            let shown = self.areas_from(&pages.base, from, &mut batch);
            for node in batch.iter().take(shown).flatten() {
                from = node.end();
                if let Some(entry) = self.entry(pages, node) {
                    see(entry);
                }
            }
            if shown < SHOWN_AT_ONCE {
                return;
            }
        }
    }

    /// The area, of whatever state, that has `addr` in its pages.
    pub(crate) fn find_vm_area<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<VmallocEntry> {
        let (_, node) = self.area_around(&pages.base, addr)?;
        self.entry(pages, &node)
    }

    /// What is shown of an area; nothing of one that is only about to be.
    fn entry<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> Option<VmallocEntry> {
        let mut entry = node.entry()?;
        if node.state.is_live() {
            self.count_pages(pages, node, &mut entry);
        }
        Some(entry)
    }

    /// Counts the mapped pages of a live area, and how many have their frames on each memory node.
    fn count_pages<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node, into: &mut VmallocEntry) {
        let mut mapped = 0;
        self.tables.visit(pages, node.whole_range(), |_, entry| {
            let frame = entry.frame().filter(|_| entry.is_present());
            mapped += u64::from(frame.is_some());
            let home = frame.and_then(|frame| pages.node_of(frame));
            if let Some(count) = home.and_then(|home| into.on_nodes.get_mut(home.index())) {
                *count += 1;
            }
        });
        into.mapped = PageCount::new(mapped);
    }

    /// Frames that `vfree` gave back and that wait for the flush.
    pub(crate) fn lazy_frames(&self) -> u64 {
        let frames = |of: &SpinLock<nodes::VmapNode>| {
            let of = of.lock();
            of.lazy.frames() + of.purging.frames()
        };
        self.nodes.all().map(frames).sum()
    }

    /// How many page tables there are.
    pub(crate) fn nr_tables(&self) -> u64 {
        self.tables.nr_tables()
    }
}

/// The records of all areas, as they are in memory.
fn records<P>(base: &Base<P>) -> Records<'_> {
    Records { mem: &base.mem }
}

/// What an address outside the window is, for the call that frees `expected`.
fn misplaced<P>(base: &Base<P>, addr: VirtAddr, expected: BlockKind) -> Option<FreeError> {
    let frame = base.direct.phys(addr)?.pfn()?;
    match base.frames.kind(frame) {
        FrameKind::Vmalloc => None,
        kind => match kind.block_kind() {
            BlockKind::Internal => None,
            found => Some(FreeError::WrongKind { addr, expected, found }),
        },
    }
}

/// What all of memory is, in bytes.
fn ram_bytes<P>(base: &Base<P>) -> usize {
    base.geometry.managed().bytes().unwrap_or(usize::MAX)
}

/// How many pages hold `size` bytes, if the call accepts that size.
fn checked_pages<P>(base: &Base<P>, size: usize) -> Result<PageCount, AllocError> {
    let limit = ram_bytes(base);
    match size {
        0 => Err(AllocError::ZeroSize),
        _ if size > limit => Err(AllocError::TooLarge { requested: size, limit }),
        _ => Ok(PageCount::from_bytes_up(size)),
    }
}
