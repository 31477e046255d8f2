//! Values of operations that are one of a few.

use kmem::FaultPoint;
use serde::{Deserialize, Serialize};

/// The tier that a [`Op::Burst`](super::Op::Burst) allocates from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum BurstTier {
    /// `alloc_pages` of the smallest order that holds the size.
    Pages,
    /// `kmalloc`.
    #[default]
    Kmalloc,
    /// `kmem_cache_alloc` of cache number `size` modulo the caches.
    Cache,
    /// `vmalloc`.
    Vmalloc,
    /// `kvmalloc`.
    Kvmalloc,
}

impl BurstTier {
    /// All tiers.
    pub const ALL: [Self; 5] = [Self::Pages, Self::Kmalloc, Self::Cache, Self::Vmalloc, Self::Kvmalloc];
}

/// What a caller does wrong with a live block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Misuse {
    /// Frees it twice.
    #[default]
    Again,
    /// Frees an address in its middle.
    Inside,
    /// Frees it by a call for another kind of block.
    OtherCall,
    /// Frees an object to a cache that it is not of.
    OtherCache,
    /// Frees a page block of another order, or unmaps another number of pages.
    OtherOrder,
    /// Reallocates an address in its middle.
    ReallocInside,
    /// Frees or reallocates an address that nobody ever gave.
    Nowhere,
    /// Destroys one of the allocator's own caches.
    BuiltInCache,
    /// Shrinks a cache that does not exist.
    UnknownCache,
    /// Frees it twice in one bulk, among others.
    TwiceInBulk,
    /// Frees, in one bulk with others, an address in its middle.
    InsideInBulk,
    /// Destroys a cache of which a prefilled sheaf has objects.
    BusyCache,
    /// Frees an object whose cache was destroyed before.
    OfGoneCache,
    /// Frees an object of another cache in a bulk for one cache.
    OtherCacheInBulk,
}

impl Misuse {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Again,
        Self::Inside,
        Self::OtherCall,
        Self::OtherCache,
        Self::OtherOrder,
        Self::ReallocInside,
        Self::Nowhere,
        Self::BuiltInCache,
        Self::UnknownCache,
        Self::TwiceInBulk,
        Self::InsideInBulk,
        Self::BusyCache,
        Self::OfGoneCache,
        Self::OtherCacheInBulk,
    ];
}

/// How serde sees `kmem`'s fault points: by their names.
#[derive(Serialize, Deserialize)]
#[serde(remote = "FaultPoint")]
pub(crate) enum FaultPointName {
    Page,
    Slab,
    NewSlab,
    VirtualSpace,
    Descriptor,
    VmallocPages,
    PageTable,
    Cache,
}
