//! The port: everything that the library needs from outside.

use crate::addr::{Pfn, Vpn};
use crate::bug::SlabBug;
use crate::fault::FaultSite;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::raw::PhysMem;
use crate::warn::Warning;

/// A CPU's number, below the geometry's `cpus`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CpuId(u16);

impl CpuId {
    /// Names a CPU.
    pub const fn new(n: u16) -> Self {
        Self(n)
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names a grace period of the machine's readers; what the number means is up to the platform.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RcuCookie(pub u64);

/// Defines [`Event`], the list of its kinds and their families from one table.
macro_rules! events {
    ($($family:literal: $($(#[$doc:meta])* $name:ident;)*)*) => {
        /// Something that happened inside, for tracing and coverage; costs nothing where the hook is empty.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Event {
            $($($(#[$doc])* $name,)*)*
        }

        impl Event {
            /// How many kinds of event there are.
            pub const COUNT: usize = [$($(stringify!($name)),*),*].len();

            /// All kinds, in the order of their numbers.
            pub const ALL: [Self; Self::COUNT] = [$($(Self::$name),*),*];

            /// Returns what the event is about, in a few words that related events share.
            pub const fn family(self) -> &'static str {
                match self {
                    $($(Self::$name)|* => $family,)*
                }
            }

            /// Returns the event's number, below [`Self::COUNT`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

events! {
    "per-CPU pages":
    /// A block was served from this CPU's page lists.
    PcpHit;
    /// This CPU's page lists were refilled from the buddy.
    PcpRefill;
    /// This CPU's page lists gave a batch back.
    PcpDrain;

    "references, guards and owners":
    /// A block got an extra reference.
    PageGet;
    /// An extra reference was dropped, not the last.
    PagePut;
    /// The last reference was dropped by `put_page`.
    PagePutLast;
    /// A block was freed, and an extra reference kept it.
    FreeKeptByReference;
    /// A block was freed piecewise, because an extra reference kept its first page.
    FreePiecewise;
    /// A part of a block that was cut became a guard.
    GuardSet;
    /// A guard became free memory again.
    GuardCleared;
    /// The note of a block's owner followed it to another place.
    OwnerMoved;

    "zones and migrate types":
    /// A larger block was split.
    Split;
    /// Two buddies were merged.
    Merge;
    /// Single pages that lie in a row were given back as the block that they are.
    RunFreed;
    /// A pageblock changed its migrate type to serve a request.
    PageblockClaimed;
    /// A block of another migrate type was taken without changing the pageblock.
    MigrateSteal;
    /// A request fell back to a lower zone.
    ZoneFallback;
    /// A request fell back to another node.
    NodeFallback;
    /// A request went on to other zones, or another pass, rather than mix types in a zone.
    FragmentationAvoided;
    /// Several pages were handed out in one call, from one zone.
    BulkServed;
    /// A call for several pages got one the ordinary way, because no near zone has so many to spare.
    BulkCutOff;
    /// Too little of a pageblock was free or of the wanted type, so that it kept its type.
    ClaimRefused;
    /// A zone's watermarks were raised because types had to mix.
    WatermarkBoosted;
    /// A single page for an urgent request was given in spite of the boost.
    BoostIgnored;
    /// A zone's watermarks were lowered again after reclaim.
    BoostDropped;

    "migrate types claimed":
    /// An unmovable request took over a reclaimable pageblock.
    ClaimUnmovableOfReclaimable;
    /// An unmovable request took over a movable pageblock.
    ClaimUnmovableOfMovable;
    /// A movable request took over a reclaimable pageblock.
    ClaimMovableOfReclaimable;
    /// A movable request took over an unmovable pageblock.
    ClaimMovableOfUnmovable;
    /// A reclaimable request took over an unmovable pageblock.
    ClaimReclaimableOfUnmovable;
    /// A reclaimable request took over a movable pageblock.
    ClaimReclaimableOfMovable;

    "migrate types stolen":
    /// An unmovable request took a block of a reclaimable pageblock.
    StealUnmovableOfReclaimable;
    /// An unmovable request took a block of a movable pageblock.
    StealUnmovableOfMovable;
    /// A movable request took a block of a reclaimable pageblock.
    StealMovableOfReclaimable;
    /// A movable request took a block of an unmovable pageblock.
    StealMovableOfUnmovable;
    /// A reclaimable request took a block of an unmovable pageblock.
    StealReclaimableOfUnmovable;
    /// A reclaimable request took a block of a movable pageblock.
    StealReclaimableOfMovable;

    "reserves":
    /// A request was served from below the low watermark.
    BelowLow;
    /// A request was served with a right to the reserve below the min watermark.
    BelowMin;
    /// A request was served without regard to the watermarks.
    WatermarkIgnored;
    /// A pageblock joined the HIGHATOMIC reserve.
    HighAtomicReserved;
    /// An urgent request of several pages was served from the HIGHATOMIC reserve.
    HighAtomicUsed;
    /// Another request that cannot wait was served from the HIGHATOMIC reserve because there was nothing else.
    HighAtomicLastResort;
    /// A pageblock left the HIGHATOMIC reserve.
    HighAtomicReleased;
    /// A movable request was served from CMA pageblocks, where most of the free memory is.
    CmaBalanced;
    /// A movable request was served from CMA pageblocks because there was nothing else of its type.
    CmaFallback;

    "warnings":
    /// Warned of a block above the largest order.
    WarnTooLarge;
    /// Warned of a block of more than two pages that must not fail.
    WarnNofailOrder;
    /// Warned of a request that must not fail and may not wait.
    WarnNofailCannotWait;
    /// Warned of flags that the slab allocator removed.
    WarnFlagsSlab;
    /// Warned of flags that `alloc_pages_exact` removed.
    WarnFlagsExact;
    /// Warned of flags that `vmalloc` removed.
    WarnFlagsVmalloc;
    /// Warned of a block that could not be had.
    WarnAllocFailed;
    /// Warned of an area that could not be made.
    WarnVmallocFailed;
    /// Warned of an area of no bytes.
    WarnVmallocZero;
    /// Warned of a `vrealloc` of something that is no area.
    WarnVreallocAddress;
    /// Warned of a `vrealloc` that asked for a larger alignment.
    WarnVreallocAlign;
    /// Warned of too large a `kvmalloc`.
    WarnKvmallocTooLarge;
    /// A warning: a mapping with permissions to reset.
    WarnVmapResetsPerms;
    /// A warning: a mapping without a guard page.
    WarnVmapWithoutGuard;
    /// A warning: a mapping of no pages.
    WarnVmMapRamZero;
    /// A warning: what was to be unmapped is no mapping of its own.
    WarnVmUnmapRamOfNothing;
    /// A warning: a late look at an address that is no area's.
    WarnVfreeOfNothing;
    /// Warned of a bad page found when it was freed.
    WarnBadPageFreed;
    /// Warned of a bad page found when it was to be handed out.
    WarnBadPageAllocated;
    /// Warned of a single flipped bit in a free page.
    WarnPoisonBitFlip;
    /// Warned of a free page that was written to.
    WarnPoisonCorruption;

    "sheaves":
    /// An object was served from this CPU's main sheaf.
    SheafHit;
    /// Main and spare sheaf were swapped.
    SheafSwap;
    /// A full sheaf came from the barn.
    BarnGet;
    /// A full sheaf went to the barn.
    BarnPut;
    /// A full sheaf went to the CPU's pocket.
    PocketPut;
    /// A full sheaf came from the CPU's pocket.
    PocketGet;
    /// A sheaf was refilled from slabs.
    SheafRefill;
    /// A sheaf was flushed to its slabs.
    SheafFlush;

    "slab steps":
    /// A refill got fewer objects than a sheaf holds, because no new slab could be had.
    SheafRefillShort;
    /// A full main sheaf was flushed in part, because no empty sheaf could be had.
    SheafNoBuffer;
    /// An object was taken straight from a slab.
    SlabDirectAlloc;
    /// An object went straight to its slab.
    SlabDirectFree;
    /// An object of another memory node went past the sheaves to its slab.
    RemoteNodeFree;
    /// Partial slabs of another memory node were looked at, because that node has more than it keeps.
    PartialRemote;
    /// An object of another memory node's last partial slabs, or one of the sheaves that is of another node than the caller
    /// prefers, was taken, because no new slab could be had.
    PartialLastResort;
    /// A caller that names its own memory node went past the sheaves, whose objects are all of other ones.
    SheafOfOtherNode;
    /// A caller that prefers a memory node was served from wherever there was something.
    SlabOtherNode;
    /// Many objects were handed out in one call.
    BulkAlloc;
    /// A call for many objects was undone, because not all could be had.
    BulkUndone;
    /// Many objects were taken back in one call.
    BulkFree;
    /// A call to take back many objects was undone, because one was wrong.
    BulkFreeUndone;
    /// A sheaf was filled beforehand.
    SheafPrefilled;
    /// A sheaf larger than those of the cache was filled beforehand, straight from slabs.
    SheafPrefilledOversize;
    /// An object was served from a prefilled sheaf.
    SheafPrefilledHit;
    /// A prefilled sheaf was given back.
    SheafReturned;
    /// A call that may not wait found the sheaves in use.
    NolockSheafInUse;
    /// A call that may not wait found the lists of the slabs in use.
    NolockSlabInUse;
    /// A call that may not wait was served from the next larger class.
    NolockNextClass;
    /// A free that may not wait was put off.
    NolockDeferred;
    /// A free that had been put off was done.
    NolockDrained;
    /// A free that may not wait could not even be put off.
    NolockFreeRefused;

    "slabs":
    /// A new slab was made.
    SlabNew;
    /// An empty slab gave its frames back.
    SlabRelease;
    /// A slab of the smallest order was used because the preferred order was refused.
    SlabMinOrder;

    "debug caches":
    /// A red zone was overwritten.
    DebugRedZone;
    /// The rest of a kmalloc object behind the size that was asked for was overwritten.
    DebugKmallocRedZone;
    /// A free object was written.
    DebugPoison;
    /// Padding was overwritten.
    DebugPadding;
    /// The free pointer of an object led nowhere.
    DebugFreePointer;
    /// The free list of a slab was broken.
    DebugFreeChain;
    /// A slab counted other objects than its free list left.
    DebugObjectCount;
    /// An object was freed that is on the free list.
    DebugAlreadyFree;
    /// Overwritten bytes got their value back.
    DebugRestored;
    /// The counts of a slab were made to agree with its free list.
    DebugCountAdjusted;
    /// A free was refused because of damaged bytes.
    DebugNotFreed;
    /// A slab was taken out of service because of a damaged object.
    SlabSetAside;
    /// A slab that was set aside lost its last user: its frames are lost.
    SlabAbandoned;
    /// A freed object went into quarantine.
    Quarantined;
    /// A cache with `TRACE` handed an object out.
    SlabTracedAlloc;
    /// A cache with `TRACE` took an object back.
    SlabTracedFree;
    "caches":
    /// A cache got slabs of its own.
    CacheCreated;
    /// A cache was made on the slabs of a similar one.
    CacheMerged;
    /// A cache was made under a name that another one has.
    CacheNameTaken;
    /// A cache was destroyed whose slabs others use.
    CacheShared;
    /// A cache was destroyed and gave all slabs back.
    CacheReleased;
    /// A cache was destroyed with live objects.
    CacheLeaked;

    "frees that wait for readers":
    /// An object waits in an rcu sheaf of this CPU.
    RcuSheaf;
    /// An rcu sheaf was full and joined a batch.
    RcuSheafFull;
    /// An rcu sheaf that was not full joined a batch.
    RcuSheafCollected;
    /// An object waits in the bulk buffer.
    RcuBulk;
    /// An object waits in a chain, by the head inside it.
    RcuHead;
    /// A large block waits.
    RcuLarge;
    /// A vmalloc area waits.
    RcuArea;
    /// There was no place to wait in: the caller waited.
    RcuSynchronized;
    /// A batch began to wait for a grace period.
    RcuBatch;
    /// A batch was freed after its grace period.
    RcuBatchFreed;
    /// A barrier waited for a grace period.
    RcuBarrier;
    /// A chain was cut off: an object in it was written after it was freed.
    RcuChainLost;
    /// A slab of a `TYPESAFE_BY_RCU` cache waits.
    SlabPutOff;
    /// A cache was destroyed after its last objects had waited.
    CacheWaited;
    /// Reclaim waited for a grace period.
    ReclaimRcu;

    "kvmalloc and vmalloc":
    /// kvmalloc was served physically contiguous.
    KvContiguous;
    /// kvmalloc fell back to vmalloc.
    KvFallback;
    /// An area was mapped in runs of 512 pages.
    HugeMapped;
    /// An area that could have been mapped in runs of 512 pages was tried again with single ones.
    HugeRetried;
    /// An area of single pages got a run of them as one block.
    VmallocRun;
    /// Lazily freed address space was flushed and merged back.
    Purge;
    /// An area got the addresses of a freed one of its size.
    VmapPoolTaken;
    /// A purged area's addresses went into a pool.
    VmapPoolRefilled;
    /// A purge gave a part of the pools back to the window.
    VmapPoolDecayed;
    /// All pools were given back to the window, because addresses or memory ran short.
    VmapPoolsEmptied;
    /// A mapping was cut from a block of the CPU.
    VmapRunTaken;
    /// A CPU got a new block for such mappings.
    VmapBlockMade;
    /// All mappings of a block came and went.
    VmapBlockDirty;
    /// A purge took a block that nobody used, before it was used up.
    VmapBlockPurged;
    /// An area waits to be freed by somebody who may wait.
    VfreeDeferred;
    /// What was freed could not even be looked at: its address waits.
    VfreeNoted;
    /// The pages of an area got their usual permissions back.
    PermsReset;
    /// A mapping dropped a reference that it had to a page, and others are left.
    VmapPut;
    /// A mapping had the last reference to a page.
    VmapPutLast;
    /// A reallocation stayed in place.
    ReallocInPlace;
    /// A reallocation moved.
    ReallocMoved;
    /// A large block of kmalloc took the free pages behind it.
    ReallocGrown;
    /// A large block of kmalloc gave back the pages that its order has too many.
    LargeTrimmed;
    /// vrealloc returned tail pages.
    VreallocShrunk;
    /// vrealloc grew into the addresses behind the area.
    VreallocExtended;
    /// vrealloc grew by mapping the same frames at other addresses.
    VreallocRemapped;
    /// vrealloc copied to a new area: another node, or huge entries.
    VreallocCopied;

    "reclaim and refusal":
    /// Reclaim drained the per-CPU pages of all CPUs.
    ReclaimPcp;
    /// Reclaim flushed sheaves and released empty slabs.
    ReclaimSlab;
    /// Reclaim purged the vmalloc window.
    ReclaimVa;
    /// The platform gave memory back.
    ReclaimPlatform;
    /// A request that must not fail was refused because it may not wait.
    NofailMayNotWait;
    /// A costly `NORETRY` request was refused without reclaim: compaction had no prospect.
    GaveUpNoProspect;
    /// A `NORETRY` request was refused after one round.
    GaveUpNoRetry;
    /// A costly request was refused after one round.
    GaveUpCostly;
    /// A request was refused because nobody had anything left to give back.
    GaveUpNoProgress;
    /// A request was refused although there was progress, after all rounds that it has.
    GaveUpTooManyRounds;
    /// A request that must not fail was given leave to use the reserve.
    NofailReserve;
    /// A request that must not fail was refused: the platform had nothing left to give.
    NofailUnanswered;
    /// A request that may not wait was refused without reclaim.
    RefusedWithoutReclaim;

    // Moving pages.
    /// A block's owner took another block instead.
    BlockMoved;
    /// A block's owner refused to move it.
    BlockPinned;
    /// A page of a movable area went to another frame.
    VmallocPageMoved;
    /// A page of a movable area could not be moved.
    VmallocPagePinned;
    /// Compaction was not tried: too few free pages, or the shortage is not one of large blocks.
    CompactSkipped;
    /// Compaction was not tried: it failed a short while ago.
    CompactDeferred;
    /// Compaction made a block that fits.
    CompactSuccess;
    /// Compaction walked a whole zone without making a block that fits.
    CompactComplete;
    /// Compaction walked what was left of a zone without making a block that fits.
    CompactPartial;
    /// Compaction left a pageblock out that brought nothing the last time.
    CompactHint;
    /// Compaction had no room left for what it wanted to move.
    CompactNoRoom;
    /// Before a refusal, compaction filled up a pageblock for what cannot move.
    CompactSpoils;
    /// A pageblock was taken out of circulation.
    PageblockIsolated;
    /// A range of frames was allocated.
    ContigAllocated;
    /// A range was refused: something in it cannot be moved.
    ContigBusy;
    /// A range was refused: there is no room elsewhere for what is in it.
    ContigNoRoom;
    /// A block became single pages.
    PageSplit;
    /// A request that waits for no lock was refused.
    NolockRefused;
    /// A call that waits for no lock found one taken.
    NolockContended;
    /// A free that waits for no lock was left to the next holder of the zone's lock.
    FreeDeferred;
    /// A free block was reported to the host.
    FreeReported;
    /// A movable block went to a lower zone because its own had no room.
    MovedToLowerZone;
}

/// What a request lacks that may wait, when the platform is asked to give memory back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// A block of this order is wanted.
    pub order: Order,
    /// With these flags; without `IO` and `FS` the answer must not start either.
    pub gfp: GfpFlags,
    /// How often this request has asked, this time included.
    pub round: u32,
}

/// What the library needs from the machine that it runs on.
///
/// All methods take `&self`; none but [`Self::reclaim`] calls back into the allocator. An implementation is safe as long as the
/// allocator is used from one thread; to share it between threads see [`SmpPlatform`](crate::SmpPlatform).
pub trait Platform {
    /// Whether the allocator counts how often each CPU went through fast and slow paths; see
    /// [`Kmem::slab_statistics`](crate::Kmem::slab_statistics). What is not counted costs nothing.
    const STATISTICS: bool = false;

    /// Whether processors read the page tables themselves. Where they do not, [`Self::map_pages`] and
    /// [`Self::unmap_pages`] are called for all that the tables say; else neither is, and they cost nothing.
    const WALKS_TABLES: bool = true;

    /// The window through which physical memory is reached: at least as many frames as the zones span.
    fn memory(&self) -> &PhysMem;

    /// The CPU that executes this call. A number that the geometry does not have is treated as one that it has.
    fn cpu(&self) -> CpuId;

    /// Makes translations of `pages` pages from `start` on unusable on every CPU, before it returns.
    fn flush_tlb(&self, start: Vpn, pages: u64);

    /// Makes `pages` pages from `start` on show the neighbouring frames from `first` on: the tables say so already. A frame
    /// may be shown at several addresses. `false` refuses the request; nothing of this run is shown then.
    ///
    /// Called without locks of the page tables, and only where [`Self::WALKS_TABLES`] is `false`.
    fn map_pages(&self, start: Vpn, first: Pfn, pages: u64) -> bool {
        let _ = (start, first, pages);
        true
    }

    /// Hears that the tables no longer say what `pages` pages from `start` on show: some of them were mapped by
    /// [`Self::map_pages`]. They must be unusable when the next [`Self::flush_tlb`] that covers them returns. Called only
    /// where [`Self::WALKS_TABLES`] is `false`; locks are held.
    fn unmap_pages(&self, start: Vpn, pages: u64) {
        let _ = (start, pages);
    }

    /// Makes the address of a frame in the direct map fault. Old translations may stay until the next flush that covers it.
    ///
    /// This and [`Self::set_direct_map_default`] are for the pages of areas whose user changes their permissions
    /// ([`VmFlags::FLUSH_RESET_PERMS`](crate::VmFlags::FLUSH_RESET_PERMS)); a machine without permissions needs neither.
    fn set_direct_map_invalid(&self, frame: Pfn) {
        let _ = frame;
    }

    /// Makes the address of a frame in the direct map readable and writable, as it was before anybody changed that. No
    /// processor has a translation of it when this is called.
    fn set_direct_map_default(&self, frame: Pfn) {
        let _ = frame;
    }

    /// Tells the MMU where the top-level page table is. Called once, when the allocator is made.
    fn set_page_table(&self, root: Pfn) {
        let _ = root;
    }

    /// Executes a full memory barrier on every CPU that may run the allocator (an IPI, or `membarrier`).
    fn heavy_fence(&self) {}

    /// Asks the owner of a block to use another one from now on: whoever called `alloc_pages` with `MOVABLE`.
    ///
    /// `true` promises three things: the block at `from` was live, of this order and movable; its contents were copied to
    /// `to`; and its owner, who uses and frees `to` from now on, no longer touches or frees `from`. `false` means that the
    /// owner cannot let go of it now, or that there is no such block (any more): nothing has changed then. The question
    /// comes with no lock of the allocator held, and it is up to the platform to answer it in one piece with the owner's
    /// own frees. The default refuses everything: nothing ever moves.
    fn migrate(&self, from: Pfn, to: Pfn, order: Order) -> bool {
        let _ = (from, to, order);
        false
    }

    /// Hears that a page of the vmalloc window is behind another frame from now on, with the same contents: whoever keeps
    /// physical addresses of areas that were asked for with `MOVABLE` follows. Locks are held.
    fn page_moved(&self, page: Vpn, from: Pfn, to: Pfn) {
        let _ = (page, from, to);
    }

    /// Lends a large free block to the host, which may drop its contents; touching it later takes it back. `false`: there is
    /// no host, or it wants no more now. Called with no lock held; nobody is given the block during the call. Never called
    /// where the geometry has free pages poisoned, whose bytes must stay.
    fn report_free(&self, first: Pfn, order: Order) -> bool {
        let _ = (first, order);
        false
    }

    /// Returns a name for the grace period that begins now: it ends once every reader that is inside a read-side section
    /// now has left it. A machine without such readers needs none of the three: every grace period has ended at once.
    fn rcu_cookie(&self) -> RcuCookie {
        RcuCookie::default()
    }

    /// Tells whether a grace period has ended. Never waits.
    fn rcu_done(&self, cookie: RcuCookie) -> bool {
        let _ = cookie;
        true
    }

    /// Waits until every grace period that has begun has ended. Called with no lock held, by callers that may wait.
    fn synchronize_rcu(&self) {}

    /// Tells the CPU that it waits in a loop.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// Asks the fault plan whether this request fails now. The empty plan compiles to nothing.
    #[inline(always)]
    fn fault(&self, site: FaultSite) -> bool {
        let _ = site;
        false
    }

    /// Hears what the checks of a debug cache found or repaired: see [`SlabBug`], whose `Display` is a report. Locks are
    /// held.
    fn slab_bug(&self, bug: &SlabBug) {
        let _ = bug;
    }

    /// Gives memory back that only the platform can spare, and returns about how many pages that was: shrinks its caches,
    /// ends a victim, or waits for somebody who frees. Asked in each round of a request that may wait; 0 means that asking
    /// again is of no use, also to a request that must not fail.
    ///
    /// Called with no lock held: unlike the other methods it may call the allocator, with flags without `DIRECT_RECLAIM`
    /// only, so that it is not asked again meanwhile.
    fn reclaim(&self, shortage: &Shortage) -> u64 {
        let _ = shortage;
        0
    }

    /// Hears of an event. The empty hook compiles to nothing.
    #[inline(always)]
    fn event(&self, event: Event) {
        let _ = event;
    }

    /// Hears of a warning: what Linux would write to its log. No lock that the hook could want is free to be taken: it
    /// must not call the allocator.
    fn warn(&self, warning: Warning) {
        let _ = warning;
    }
}
