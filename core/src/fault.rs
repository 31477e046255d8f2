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

/// When a filter strikes among the requests that it does not let pass (Linux: `fault_attr`).
///
/// ```text
/// strikes  <=>  times != 0  and  space is used up  and  every interval-th  and  random < probability
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultAttr {
    /// Strikes in so many of a hundred cases; above 100 counts as 100.
    pub probability: u8,
    /// Only every so-manieth request is considered; 0 counts as 1.
    pub interval: u32,
    /// How often it may still strike; `None`: without end.
    pub times: Option<u32>,
    /// How much may still be allocated before the first strike: pages for blocks, objects for caches.
    pub space: u64,
    /// Requests considered so far.
    seen: u32,
}

impl FaultAttr {
    /// Never strikes.
    pub const NEVER: Self = Self { probability: 0, interval: 1, times: Some(0), space: 0, seen: 0 };

    /// Strikes at every `interval`-th request, `times` times.
    pub const fn every(interval: u32, times: u32) -> Self {
        Self { probability: 100, interval, times: Some(times), space: 0, seen: 0 }
    }

    /// Decides about one request of this size; `random` gives a number below 100.
    pub fn strikes(&mut self, size: u64, random: impl FnOnce() -> u8) -> bool {
        if self.times == Some(0) {
            return false;
        }
        if self.space > size {
            self.space -= size;
            return false;
        }
        self.seen = self.seen.wrapping_add(1);
        if !self.seen.is_multiple_of(self.interval.max(1)) || random() >= self.probability {
            return false;
        }
        self.times = self.times.map(|left| left - 1);
        true
    }
}

/// Linux's `fail_page_alloc`: which requests for page blocks may be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailPageAlloc {
    /// When it strikes.
    pub attr: FaultAttr,
    /// Smaller blocks are let pass.
    pub min_order: Order,
    /// Requests with one of these flags are let pass.
    pub ignored: GfpFlags,
}

impl Default for FailPageAlloc {
    /// Linux's: from order 1 on, neither high memory nor callers that may wait; never strikes until told when.
    fn default() -> Self {
        let ignored = GfpFlags::HIGHMEM.union(GfpFlags::DIRECT_RECLAIM);
        Self { attr: FaultAttr::NEVER, min_order: Order::ZERO.up().unwrap_or(Order::ZERO), ignored }
    }
}

impl FailPageAlloc {
    /// Tells whether the filter considers this request. What must not fail never does.
    pub fn considers(&self, site: &FaultSite) -> bool {
        let asks_for_pages = matches!(
            site.point,
            FaultPoint::Page | FaultPoint::NewSlab | FaultPoint::VmallocPages | FaultPoint::PageTable
        );
        asks_for_pages
            && site.order >= self.min_order
            && !site.gfp.contains(GfpFlags::NOFAIL)
            && !site.gfp.intersects(self.ignored)
    }

    /// Decides about one request; `random` gives a number below 100.
    pub fn strikes(&mut self, site: &FaultSite, random: impl FnOnce() -> u8) -> bool {
        self.considers(site) && self.attr.strikes(site.order.pages(), random)
    }
}

/// Linux's `failslab`: which requests for objects may be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailSlab {
    /// When it strikes.
    pub attr: FaultAttr,
    /// Requests with one of these flags are let pass.
    pub ignored: GfpFlags,
    /// The caches concerned.
    pub caches: FailCaches,
}

/// The caches that [`FailSlab`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailCaches {
    /// Every cache.
    All,
    /// Only those that were marked with [`FailSlab::mark`] (Linux: `cache-filter`).
    Marked([u64; 4]),
}

impl FailCaches {
    /// No cache is marked yet.
    pub const NONE_MARKED: Self = Self::Marked([0; 4]);
}

impl Default for FailSlab {
    /// Linux's: all caches, but not for callers that may wait; never strikes until told when.
    fn default() -> Self {
        Self { attr: FaultAttr::NEVER, ignored: GfpFlags::DIRECT_RECLAIM, caches: FailCaches::All }
    }
}

impl FailSlab {
    /// Marks a cache, so that the filter, if it looks at marks, considers it (Linux: `SLAB_FAILSLAB`).
    pub fn mark(&mut self, cache: CacheId) {
        if let FailCaches::Marked(marks) = &mut self.caches
            && let Some(word) = marks.get_mut(cache.index() / 64)
        {
            *word |= 1 << (cache.index() % 64);
        }
    }

    /// Tells whether the filter considers this request. What must not fail never does.
    pub fn considers(&self, site: &FaultSite) -> bool {
        let concerned = match (&self.caches, site.cache) {
            (FailCaches::All, _) => true,
            (FailCaches::Marked(marks), Some(cache)) => {
                marks.get(cache.index() / 64).is_some_and(|word| word >> (cache.index() % 64) & 1 == 1)
            }
            (FailCaches::Marked(_), None) => false,
        };
        site.point == FaultPoint::Slab
            && concerned
            && !site.gfp.contains(GfpFlags::NOFAIL)
            && !site.gfp.intersects(self.ignored)
    }

    /// Decides about one request; `random` gives a number below 100.
    pub fn strikes(&mut self, site: &FaultSite, random: impl FnOnce() -> u8) -> bool {
        self.considers(site) && self.attr.strikes(1, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(order: u8, gfp: GfpFlags) -> FaultSite {
        FaultSite::new(FaultPoint::Page, gfp).with_order(Order::new(order).unwrap())
    }

    #[test]
    fn fail_page_alloc_passes_what_linux_passes() {
        let filter = FailPageAlloc::default();
        assert!(filter.considers(&block(1, GfpFlags::ATOMIC)));
        assert!(!filter.considers(&block(0, GfpFlags::ATOMIC)), "below min_order");
        assert!(!filter.considers(&block(1, GfpFlags::KERNEL)), "may wait");
        assert!(!filter.considers(&block(1, GfpFlags::ATOMIC | GfpFlags::HIGHMEM)), "high memory");
        let harsh = FailPageAlloc { min_order: Order::ZERO, ignored: GfpFlags::empty(), ..filter };
        assert!(harsh.considers(&block(0, GfpFlags::KERNEL | GfpFlags::HIGHMEM)));
        assert!(!harsh.considers(&block(0, GfpFlags::KERNEL | GfpFlags::NOFAIL)), "must not fail");
        assert!(!harsh.considers(&FaultSite::new(FaultPoint::Slab, GfpFlags::ATOMIC)), "an object is no page");
        assert!(!harsh.considers(&FaultSite::new(FaultPoint::VirtualSpace, GfpFlags::ATOMIC)));
    }

    #[test]
    fn failslab_passes_what_linux_passes() {
        let site = |gfp| FaultSite::new(FaultPoint::Slab, gfp).with_cache(CacheId::new(70));
        let filter = FailSlab::default();
        assert!(filter.considers(&site(GfpFlags::NOWAIT)));
        assert!(!filter.considers(&site(GfpFlags::KERNEL)), "may wait");
        assert!(!filter.considers(&site(GfpFlags::NOWAIT | GfpFlags::NOFAIL)), "must not fail");
        assert!(!filter.considers(&block(1, GfpFlags::NOWAIT)), "a page is no object");
        let mut marked = FailSlab { caches: FailCaches::NONE_MARKED, ..filter };
        assert!(!marked.considers(&site(GfpFlags::NOWAIT)));
        marked.mark(CacheId::new(71));
        assert!(!marked.considers(&site(GfpFlags::NOWAIT)));
        marked.mark(CacheId::new(70));
        assert!(marked.considers(&site(GfpFlags::NOWAIT)));
    }

    #[test]
    fn an_attribute_strikes_after_its_space_at_its_interval_its_times() {
        let mut attr = FaultAttr { space: 5, ..FaultAttr::every(3, 2) };
        let struck: std::vec::Vec<bool> = (0..12).map(|_| attr.strikes(2, || 0)).collect();
        // 5 and 3 are more than 2; 1 is not: from the third request on, every third.
        let expected = [false, false, false, false, true, false, false, true, false, false, false, false];
        assert_eq!(struck, expected);
        let mut rare = FaultAttr { probability: 30, times: None, ..FaultAttr::every(1, 0) };
        assert!(rare.strikes(1, || 29) && !rare.strikes(1, || 30));
    }
}
