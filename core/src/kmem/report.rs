//! Audits over all layers, and what `inspect` shows.

use super::Kmem;
use crate::addr::VirtAddr;
use crate::buddy::OwnerClass;
use crate::error::{CacheId, Invariant, Violation};
use crate::inspect::{BuddyInfo, CacheInfo, MemInfo, PageOwner, PageTypeInfo, VmallocEntry};
use crate::platform::{CpuId, Platform};
use crate::statistics::PathCounts;

impl<P: Platform> Kmem<P> {
    /// Checks the invariants of each layer by itself.
    ///
    /// # Errors
    ///
    /// The first invariant found broken.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        self.pages.check_invariants()?;
        self.slab.check_invariants(&self.pages)?;
        self.vmalloc.check_invariants(&self.pages)
    }

    /// Checks each layer, and the layers against each other: what one says it gave, the other says it has.
    ///
    /// ```text
    /// I7.1  free + pcp + pages + large kmalloc + slab + vmalloc + lazy + page tables + leaked + guards + bad
    ///       == managed
    /// I7.2  slab pages == sum over caches of slabs * pages per slab
    /// I7.3  vmalloc pages + lazy pages == frames that the vmalloc layer owns
    /// I7.4  page-table pages == tables that the paging layer uses
    /// ```
    ///
    /// # Errors
    ///
    /// The first invariant found broken.
    pub fn audit(&self) -> Result<(), Violation> {
        self.check_invariants()?;
        let info = self.meminfo();
        let conserved =
            |what, expected, found| Violation::check_eq(Invariant::I7Conservation, what, 0, expected, found);
        conserved("sum of pages by owner", info.managed, info.owned_total())?;
        conserved("pages in slabs", info.slab, self.slab.nr_pages())?;
        let owned = self.pages.owned(OwnerClass::Vmalloc);
        conserved("pages of vmalloc areas", owned, info.vmalloc + info.vmalloc_lazy)?;
        conserved("page-table pages", info.page_tables, self.vmalloc.nr_tables())
    }

    /// Free blocks of every zone and order.
    pub fn buddyinfo(&self) -> BuddyInfo {
        BuddyInfo::new((0..self.geometry().nr_zones()).filter_map(|zone| self.pages.zone_info(zone)))
    }

    /// Free blocks and pageblocks of every zone by migrate type.
    pub fn pagetypeinfo(&self) -> PageTypeInfo {
        let zones = (0..self.geometry().nr_zones())
            .filter_map(|zone| Some((self.pages.zone_info(zone)?, self.pages.pageblock_counts(zone)?)));
        PageTypeInfo::new(self.geometry().pageblock_order, zones)
    }

    /// Calls `each` for every cache that exists, in the order of their numbers.
    pub fn slabinfo(&self, each: impl FnMut(CacheInfo)) {
        let caches = 0..self.geometry().max_caches;
        caches.filter_map(|n| self.slab.cache_info(&self.pages, CacheId::new(n))).for_each(each);
    }

    /// How often the fast and slow paths of a cache were used, on all CPUs together; see
    /// [`Platform::STATISTICS`].
    pub fn slab_statistics(&self, cache: CacheId) -> PathCounts {
        self.slab.statistics(cache)
    }

    /// How often the fast and slow paths of the page allocator were used on a CPU; see [`Platform::STATISTICS`].
    pub fn page_statistics(&self, cpu: CpuId) -> PathCounts {
        if cpu.get() < self.geometry().cpus { self.pages.statistics(cpu) } else { PathCounts::default() }
    }

    /// Calls `each` for every area of the vmalloc window, lazily freed ones included, in the order of their addresses.
    pub fn vmallocinfo(&self, each: impl FnMut(VmallocEntry)) {
        self.vmalloc.for_each_area(&self.pages, each);
    }

    /// The area that has `addr` in its pages, also one that only waits to be freed or flushed, or that a pool keeps.
    pub fn find_vm_area(&self, addr: VirtAddr) -> Option<VmallocEntry> {
        self.vmalloc.find_vm_area(&self.pages, addr)
    }

    /// Calls `each` for every block of pages that is in use, in the order of frames: a leak report, if nothing should
    /// be. Only where the geometry has [`PageDebug::OWNER`](crate::PageDebug::OWNER).
    pub fn page_owner(&self, each: impl FnMut(PageOwner)) {
        self.pages.page_owner(each);
    }

    /// Pages by owner.
    pub fn meminfo(&self) -> MemInfo {
        let owners = self.pages.owners();
        let owned = |class: OwnerClass| owners[class as usize];
        let lazy = self.vmalloc.lazy_frames();
        MemInfo {
            managed: self.pages.managed(),
            free: owned(OwnerClass::Free),
            pcp: owned(OwnerClass::Pcp),
            pages: owned(OwnerClass::Pages),
            large_kmalloc: owned(OwnerClass::LargeKmalloc),
            slab: owned(OwnerClass::Slab),
            vmalloc: owned(OwnerClass::Vmalloc).saturating_sub(lazy),
            vmalloc_lazy: lazy,
            page_tables: owned(OwnerClass::PageTable),
            leaked: owned(OwnerClass::Leaked),
            guard: owned(OwnerClass::Guard),
            bad: owned(OwnerClass::Bad),
        }
    }
}
