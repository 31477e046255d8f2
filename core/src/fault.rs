//! Fault injection: the places that can fail, and Linux's rules for which requests are made to fail.

use crate::error::CacheId;
use crate::gfp::GfpFlags;
use crate::order::Order;

/// A place at which an allocation can fail. The platform's fault plan is asked before anything is changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FaultPoint {
    /// A block from the page allocator, asked for by its user (Linux: `fail_page_alloc`).
    Page,
    /// An object from a slab cache (Linux: `failslab`).
    Slab,
    /// A new slab's frames.
    NewSlab,
    /// A range of the vmalloc window.
    VirtualSpace,
    /// The descriptor of a vmalloc area.
    Descriptor,
    /// The frames behind a vmalloc area.
    VmallocPages,
    /// A frame for a page table.
    PageTable,
    /// A cache's control block.
    Cache,
}

impl FaultPoint {
    /// All points.
    pub const ALL: [Self; 8] = [
        Self::Page,
        Self::Slab,
        Self::NewSlab,
        Self::VirtualSpace,
        Self::Descriptor,
        Self::VmallocPages,
        Self::PageTable,
        Self::Cache,
    ];
}

/// One question to the fault plan: where, and for what request, so that a plan can choose as Linux's filters do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FaultSite {
    /// The place.
    pub point: FaultPoint,
    /// The flags of the request.
    pub gfp: GfpFlags,
    /// The order of the block asked for; 0 where no block is asked for.
    pub order: Order,
    /// The cache that asks, at the points of the slab allocator.
    pub cache: Option<CacheId>,
}

impl FaultSite {
    /// A place that serves no particular cache and asks for at most a page.
    #[inline(always)]
    pub const fn new(point: FaultPoint, gfp: GfpFlags) -> Self {
        Self { point, gfp, order: Order::ZERO, cache: None }
    }

    /// The same for a block of an order.
    #[inline(always)]
    pub const fn with_order(self, order: Order) -> Self {
        Self { order, ..self }
    }

    /// The same for a cache.
    #[inline(always)]
    pub const fn with_cache(self, cache: CacheId) -> Self {
        Self { cache: Some(cache), ..self }
    }
}
