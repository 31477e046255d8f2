//! What is tested: anything that answers [`Call`]s.
//!
//! A subject chooses addresses and the harness checks that the choice was allowed. A subject that cannot do something
//! answers [`Reply::Unsupported`]; the step is then skipped, not failed.

mod objects;
mod window;

pub use objects::{ObjectsCall, SHEAF_ROOM};
pub use window::WindowCall;

use crate::machine::{LeafRun, Nested, Remembered, RememberedTable};
use crate::model::RcuCall;
use crate::model::caches::CacheSpec;
use kmem::{AllocError, CacheError, CacheId, Destroyed, FaultPoint, FreeError, GfpFlags, NodeId, RemapError};

/// Where a reallocated block has to be, besides what its kind says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Near {
    /// Its address is a multiple of so many bytes.
    pub align: usize,
    /// Its memory is of this node: a wish, or with `THISNODE` a condition.
    pub node: Option<NodeId>,
}

impl Near {
    /// Anywhere.
    pub const ANY: Self = Self { align: 1, node: None };
}

/// One resolved call: picks have become addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are the arguments of the call that the variant names")]
pub enum Call {
    /// `alloc_pages`; `order` may be above the largest.
    AllocPages { order: u8, gfp: GfpFlags },
    /// `alloc_pages_node`; without a node it is that of the calling CPU.
    AllocPagesNode { order: u8, gfp: GfpFlags, node: Option<NodeId> },
    /// `free_pages` of a block that `alloc_pages` gave.
    FreePages { addr: u64, order: u8 },
    /// `alloc_pages_exact`.
    AllocPagesExact { size: usize, gfp: GfpFlags },
    /// `free_pages_exact` with the size of the allocation.
    FreePagesExact { addr: u64, size: usize },
    /// `alloc_pages_bulk`.
    AllocPagesBulk { count: usize, gfp: GfpFlags },
    /// `kmalloc`.
    Kmalloc { size: usize, gfp: GfpFlags },
    /// `kmalloc_array`.
    KmallocArray { n: usize, size: usize, gfp: GfpFlags },
    /// `krealloc`; address 0 is null.
    Krealloc { addr: u64, size: usize, gfp: GfpFlags },
    /// `kfree`.
    Kfree { addr: u64 },
    /// `kfree_sensitive`.
    KfreeSensitive { addr: u64 },
    /// `ksize`.
    Ksize { addr: u64 },
    /// `kmalloc_size_roundup`.
    KmallocSizeRoundup { size: usize },
    /// `kmem_cache_create`.
    CacheCreate { spec: CacheSpec },
    /// `kmem_cache_validate` of every cache: answers [`Reply::Size`] with the sum of what was found.
    Validate,
    /// `kmem_cache_alloc`.
    CacheAlloc { cache: CacheId, gfp: GfpFlags },
    /// `kmem_cache_free`.
    CacheFree { cache: CacheId, addr: u64 },
    /// `kmem_cache_shrink`.
    CacheShrink { cache: CacheId },
    /// `kmem_cache_destroy`.
    CacheDestroy { cache: CacheId },
    /// `vmalloc` with flags (`ZERO` makes it `vzalloc`).
    Vmalloc { size: usize, gfp: GfpFlags },
    /// `vfree`.
    Vfree { addr: u64 },
    /// `vrealloc_node_align`; address 0 is null.
    Vrealloc { addr: u64, size: usize, gfp: GfpFlags, near: Near },
    /// `vmap` of these frames.
    Vmap { pfns: Vec<u32> },
    /// `vunmap`.
    Vunmap { addr: u64 },
    /// `vmalloc_to_page`: answers [`Reply::Frame`].
    VmallocToPage { addr: u64 },
    /// `vmalloc_node_range`.
    VmallocRange(AreaCall),
    /// `kvmalloc_node_align`.
    KvmallocNode { size: usize, align: usize, gfp: GfpFlags, node: Option<NodeId> },
    /// `kvmalloc` with flags (`ZERO` makes it `kvzalloc`).
    Kvmalloc { size: usize, gfp: GfpFlags },
    /// `kvmalloc_array` (`ZERO` makes it `kvcalloc`).
    KvmallocArray { n: usize, size: usize, gfp: GfpFlags },
    /// `kvrealloc`; address 0 is null.
    Kvrealloc { addr: u64, size: usize, gfp: GfpFlags },
    /// `kvfree`.
    Kvfree { addr: u64 },
    /// `kvfree_sensitive` of a block of `len` bytes.
    KvfreeSensitive { addr: u64, len: usize },
    // Moving pages.
    /// `split_page` of a block that `alloc_pages` gave.
    SplitPage { addr: u64, order: u8 },
    /// `alloc_contig_range`.
    AllocContigRange { start: u32, pages: usize, gfp: GfpFlags },
    /// `alloc_contig_pages`.
    AllocContigPages { pages: usize, gfp: GfpFlags },
    /// `free_contig_range` of all that one of the two gave.
    FreeContigRange { addr: u64, pages: usize },
    /// `compact_memory`.
    CompactMemory,
    /// `alloc_pages_nolock`.
    AllocPagesNolock { order: u8 },
    /// `free_pages_nolock`.
    FreePagesNolock { addr: u64, order: u8 },
    /// `report_free_pages` to a host that takes this many blocks.
    ReportFree { blocks: u32 },
    /// The program pins a page block: it must not be moved.
    Pin { addr: u64 },
    /// The program takes one pin back.
    Unpin { addr: u64 },
    /// `pin_vmalloc_page`: answers [`Reply::Frame`].
    PinArea { addr: u64 },
    /// `unpin_vmalloc_page`.
    UnpinArea { frame: u32 },

    /// Per-CPU pages of all CPUs go back to the buddy.
    DrainPages,
    /// `vm_unmap_aliases`: lazily freed ranges are flushed and reusable.
    Purge,
    /// Everything that can be given back is: ranges purged, sheaves flushed, empty slabs released, pages drained.
    Reclaim,
    /// When memory runs short, the machine claims so often to have given something back.
    ClaimProgress { times: u32 },
    /// Further calls come from this CPU.
    SetCpu { cpu: u16 },
    /// Several objects, or the promise of them, or one of a memory node.
    Objects(ObjectsCall),
    /// The `nth` question from now on (0: the next) about this fault point is answered with "fail", once.
    FailNth { point: FaultPoint, nth: u32 },

    // References, and filters of faults.
    /// `get_page`: answers with the number of references.
    GetPage { addr: u64 },
    /// `put_page`: answers with the number of references that are left.
    PutPage { addr: u64 },
    /// `fail_page_alloc`: from now on every `interval`-th block of at least this order fails, `times` times, unless the
    /// request has an ignored flag or must not fail.
    FailPages { min_order: u8, ignored: GfpFlags, interval: u32, times: u32 },
    /// `failslab`: the same for objects, of one cache if that is given.
    FailSlabs { cache: Option<CacheId>, ignored: GfpFlags, interval: u32, times: u32 },
    /// A call about frees that wait for readers, or about the readers.
    Rcu(RcuCall),
    /// A call about the vmalloc window besides the plain ones.
    Window(WindowCall),
}

impl Call {
    /// Tells whether a refusal of this call for want of memory is a failure worth a warning: the caller asked for a block
    /// in the ordinary way.
    pub fn is_ordinary_allocation(&self) -> bool {
        matches!(self, Self::Objects(call) if call.gfp().is_some())
            || matches!(
                self,
                Self::Window(WindowCall::Vmalloc { .. } | WindowCall::Vmap { .. } | WindowCall::VmMapRam { .. })
            )
            || matches!(
                self,
                Self::AllocPages { .. }
                    | Self::AllocPagesExact { .. }
                    | Self::AllocPagesBulk { .. }
                    | Self::Kmalloc { .. }
                    | Self::KmallocArray { .. }
                    | Self::Krealloc { .. }
                    | Self::CacheAlloc { .. }
                    | Self::Vmalloc { .. }
                    | Self::VmallocRange(_)
                    | Self::KvmallocNode { .. }
                    | Self::Vrealloc { .. }
                    | Self::Kvmalloc { .. }
                    | Self::KvmallocArray { .. }
                    | Self::Kvrealloc { .. }
            )
    }
}

/// A request for an area with everything that can be said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AreaCall {
    /// Bytes.
    pub size: usize,
    /// The address is to be a multiple of this.
    pub align: usize,
    /// The pages of the address space, by number, in which the area must lie with its guard: the first, and the one after
    /// the last.
    pub within: Option<(u64, u64)>,
    /// How hard to try.
    pub gfp: GfpFlags,
    /// Where its pages come from.
    pub node: Option<NodeId>,
    /// Whether a page that is never mapped follows.
    pub guard: bool,
    /// Whether it may be mapped in runs of 512 pages.
    pub huge: bool,
}

/// What a call answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// A block. For page blocks the address is that of the direct map.
    Block {
        /// Its first byte.
        addr: u64,
        /// Bytes that the caller may use.
        usable: usize,
    },
    /// Several single pages.
    Pages(Vec<u64>),
    /// Objects: first byte, and bytes that the caller may use.
    Objects(Vec<(u64, usize)>),
    /// The number of a prefilled sheaf.
    Sheaf(u32),
    /// It worked and there is nothing to tell.
    Done,
    /// A number: bytes for `ksize`, objects or slabs left for `kmem_cache_shrink`.
    Size(usize),
    /// The frame behind a virtual page, if mapped.
    Frame(Option<u32>),
    /// The frames behind a part of an area, or why they are not shown.
    Frames(Result<Vec<u32>, RemapError>),
    /// The bytes that were read.
    Bytes(Vec<u8>),
    /// The new cache.
    Cache(CacheId),
    /// The cache is gone.
    Destroyed {
        /// What became of its slabs.
        what: Destroyed,
        /// The objects that were reported as still live.
        named: Vec<u64>,
    },
    /// The allocation was refused.
    Refused(AllocError),
    /// The free was rejected as misuse.
    Rejected(FreeError),
    /// The cache call was refused.
    CacheRefused(CacheError),
    /// The subject has no such call.
    Unsupported,
}

/// A page block that moved during a call, whose owner uses another address from then on; or the page of an area, which keeps
/// its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moved {
    /// Where it was.
    pub from: u64,
    /// Where it is.
    pub to: u64,
    /// log2 of its pages.
    pub order: u8,
    /// The address of the page, if it is one of an area; the other two are where it is in the direct map.
    pub page: Option<u64>,
}

/// Why an access by the simulated processor failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFault {
    /// No translation.
    NotMapped(u64),
    /// The address is in neither window, or beyond memory.
    BusError(u64),
}

/// How much of the contract a subject claims to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// What any correct allocator keeps: intervals, sizes, alignment, contents.
    Loose,
    /// `kmem`'s whole contract: tiers, reasons of refusal, counts, statistics.
    Tight,
}

/// A system under test.
pub trait Subject {
    /// What it is called in reports.
    fn name(&self) -> &str;

    /// What may be demanded of it.
    fn strength(&self) -> Strength;

    /// The machine as it is, of a subject that does not have the one of the trace: where its windows are is for its host to say.
    fn own_geometry(&self) -> Option<kmem::Geometry> {
        None
    }

    /// Hears that the next call is the first of a step.
    fn begin_step(&mut self) {}

    /// Executes a call.
    fn call(&mut self, call: &Call) -> Reply;

    /// The blocks that moved since the last call of this function, in order.
    fn take_moved(&mut self) -> Vec<Moved> {
        Vec::new()
    }

    /// Says which page blocks, by address and order, the machine may free during the next call if memory runs short.
    fn set_evictable(&mut self, blocks: &[(u64, u8)]) {
        let _ = blocks;
    }

    /// The page blocks that the machine has freed since the last look, each with how many blocks had moved before.
    fn take_evicted(&mut self) -> Vec<(u64, usize)> {
        Vec::new()
    }

    /// The free blocks lent to the host since the last call of this function: address, and log2 of the pages.
    fn take_lent(&mut self) -> Vec<(u64, u8)> {
        Vec::new()
    }

    /// Reads through the simulated processor: direct map or TLB and page walk.
    ///
    /// # Errors
    ///
    /// The fault that the processor would raise; `into` may be partly written.
    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault>;

    /// Writes through the simulated processor.
    ///
    /// # Errors
    ///
    /// The fault that the processor would raise; bytes before it are written.
    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault>;

    /// The physical address behind a virtual one, by a walk that is independent of the subject's own code and of the TLB.
    fn translate(&self, addr: u64) -> Option<u64>;

    /// log2 of the pages that the page-table entry maps by which `addr` is reached, by the same walk; 0 if there is none.
    fn leaf_order(&self, addr: u64) -> u8 {
        let _ = addr;
        0
    }

    /// What the page tables map of the vmalloc window, by the same walk; nothing for a subject without one.
    fn leaf_runs(&self) -> Vec<LeafRun> {
        Vec::new()
    }

    /// The physical address that the current CPU's TLB would reach for `addr` right now, stale entries included;
    /// `None` if it has no entry.
    fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        let _ = addr;
        None
    }

    /// Lets every CPU fill its TLB with the translations of so many pages from `addr` on, as a processor may at any time.
    fn speculate(&mut self, addr: u64, pages: usize) {
        let _ = (addr, pages);
    }

    /// All physical addresses to which some CPU may still take `addr`, whatever it has been mapped to since its last flush.
    fn remembered(&self, addr: u64) -> Vec<u64> {
        self.tlb_lookup(addr).into_iter().collect()
    }

    /// Every translation that some CPU may still use although the tables do not have it any more.
    fn stale(&self) -> Vec<Remembered> {
        Vec::new()
    }

    /// Every table that some CPU's walk may still go through.
    fn remembered_tables(&self) -> Vec<RememberedTable> {
        Vec::new()
    }

    /// What a flush found to have been given back before it, since the last question.
    fn take_early_reuse(&mut self) -> Option<String> {
        None
    }

    /// Tells whether a block may lie here at all: asked of loose subjects, before the block is touched.
    fn has_memory(&self, addr: u64, bytes: usize) -> bool {
        let _ = (addr, bytes);
        true
    }

    /// What the subject has written that is not its own.
    fn trespass(&self) -> Option<String> {
        None
    }

    /// What cannot be had any more although nothing is live, of a subject that promises to have it again.
    fn lost(&mut self) -> Option<String> {
        None
    }

    /// What the subject's own audit objects to, if it has one and no white box.
    fn recount(&self) -> Option<String> {
        None
    }

    /// Access to what only `kmem` shows: counters, lists, audits. `None` for a loose subject.
    fn white_box(&self) -> Option<&dyn WhiteBox> {
        None
    }
}

/// The inside of a tight subject, as values.
pub trait WhiteBox {
    /// The geometry that it was built with.
    fn geometry(&self) -> &kmem::Geometry;
    /// Pages by owner, from counters.
    fn page_use(&self) -> kmem::MemInfo;
    /// Free blocks by zone and order.
    fn buddyinfo(&self) -> kmem::BuddyInfo;
    /// Caches.
    fn slabinfo(&self) -> Vec<kmem::CacheInfo>;
    /// vmalloc areas, live and lazy.
    fn vmallocinfo(&self) -> Vec<kmem::VmallocEntry>;
    /// The area that starts at an address.
    fn vm_area(&self, addr: u64) -> Option<kmem::VmallocEntry> {
        self.vmallocinfo().into_iter().find(|area| area.start.as_u64() == addr)
    }
    /// Who owns a frame.
    fn frame_kind(&self, pfn: u32) -> kmem::FrameKind;
    /// The migrate type of the pageblock around a frame; `None` outside all zones.
    fn pageblock_type(&self, pfn: u32) -> Option<kmem::MigrateType>;
    /// Recounts everything.
    ///
    /// # Errors
    ///
    /// The first broken invariant.
    fn audit(&self) -> Result<(), kmem::Violation>;
    /// How often something happened inside.
    fn event_count(&self, event: kmem::Event) -> u64;
    /// How often each [`kmem::Event`] happened, by [`kmem::Event::index`].
    fn events(&self) -> Vec<u64> {
        kmem::Event::ALL.iter().map(|&event| self.event_count(event)).collect()
    }
    /// How many reports and repairs debug caches have told of since the machine was made.
    fn slab_findings(&self) -> u64;
    /// The text of `pagetypeinfo`.
    fn pagetypeinfo(&self) -> String;
    /// Who has each block of pages, where that is noted.
    fn page_owner(&self) -> Vec<kmem::PageOwner>;
    /// What the calls of this step warned of.
    fn warnings(&self) -> &[kmem::Warning];
    /// What each fault point was asked during the calls of this step, and for what memory reclaim was asked.
    fn nested(&self) -> &Nested;
    /// How often injected faults struck since the machine was made.
    fn faults_struck(&self) -> u64;
    /// The CPU on which calls are made.
    fn cpu(&self) -> u16;
    /// How many flushes of the TLB were asked for.
    fn flushed(&self) -> u64 {
        0
    }
    /// Frames whose addresses in the direct map do not allow everything on every CPU.
    fn unusual_aliases(&self) -> Vec<u32> {
        Vec::new()
    }
    /// What was done in the wrong order when such addresses were restored.
    fn alias_mistakes(&self) -> Vec<String> {
        Vec::new()
    }
    /// The clock of the machine's readers, and the last grace period that has ended.
    fn grace_periods(&self) -> (u64, u64);
}
