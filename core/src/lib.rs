//! Linux's kernel memory allocator stack: pages, slab, vmalloc, kvmalloc.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(unsafe_code)]

mod addr;
mod base;
mod buddy;
mod bug;
mod error;
mod fault;
mod geometry;
mod gfp;
mod hardening;
#[cfg(all(feature = "std", target_os = "linux", target_pointer_width = "64"))]
pub mod hosted;
mod inspect;
mod kmem;
mod mobility;
mod numa;
mod order;
mod page;
mod paging;
mod platform;
#[allow(unsafe_code, reason = "the one room that may")]
mod raw;
mod slab;
mod statistics;
mod sync;
#[cfg(test)]
mod testing;
mod vmalloc;
mod warn;

pub use addr::{PAGE_SHIFT, PAGE_SIZE, PageCount, Pfn, PhysAddr, VirtAddr, Vpn};
pub use buddy::{CompactResult, MigrateType};
pub use bug::{DebugZone, SlabBug, SlabFinding, Track};
pub use error::{AllocError, BlockKind, CacheError, CacheId, FreeError, Invariant, RemapError, Violation};
pub use fault::{FailCaches, FailPageAlloc, FailSlab, FaultAttr, FaultPoint, FaultSite};
pub use geometry::{Geometry, GeometryError, MAX_CPUS, MAX_ZONES, MinFree, SlabMerge, ZoneKind, ZoneSpec};
pub use gfp::GfpFlags;
pub use hardening::{Hardening, PageDebug, SlubDebug};
pub use inspect::{
    AreaKind, BuddyInfo, CacheInfo, CacheName, MIGRATE_TYPES, MemInfo, PageOwner, PageTypeInfo, SLABINFO_HEADER,
    VmallocEntry, ZoneInfo,
};
pub use kmem::Kmem;
pub use mobility::{CmaArea, MAX_CMA_AREAS, Mobility};
pub use numa::{Distances, LOCAL_DISTANCE, MAX_NODES, NodeId, REMOTE_DISTANCE};
pub use order::{MAX_PAGE_ORDER, NR_PAGE_ORDERS, Order, PAGE_ALLOC_COSTLY_ORDER};
pub use page::FrameKind;
pub use platform::{CpuId, Event, Platform, RcuCookie, Shortage};
pub use raw::{MetaRegion, PhysMem, SmpPlatform};
pub use slab::{CacheArgs, Ctor, CtorObject, Destroyed, LeakedObject, PrefilledSheaf, SlabFlags};
pub use statistics::PathCounts;
pub use vmalloc::{AreaMapping, VmFlags, VmallocArgs};
pub use warn::{BadReason, FlagsRemovedBy, Found, PoisonDamage, Warning};

/// The most bytes in the name of a cache.
pub const CACHE_NAME_MAX: usize = 31;
