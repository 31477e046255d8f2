//! Tests of the whole layer on the test machine, over the real page allocator.

mod bulk;
mod caches;
mod corruption;
mod debug;
mod destroy;
mod faults;
mod kmalloc;
mod many_cpus;
mod merge;
mod misuse;
mod nodes;
mod nolock;
mod prefill;
mod random;
mod sheaves;

use super::{CacheArgs, Destroyed, SlabLayer, SlabParts};
use crate::addr::{PhysAddr, VirtAddr};
use crate::buddy::{OwnerClass, PageAllocator, PageParts};
use crate::error::{AllocError, CacheError, CacheId, FreeError};
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::inspect::CacheInfo;
use crate::platform::Event;
use crate::testing::{self, TestPlatform};
use std::vec::Vec;

/// The two layers on a test machine.
pub(super) struct Machine {
    pub(super) pages: PageAllocator<TestPlatform>,
    pub(super) slab: SlabLayer,
}

impl Machine {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let pages = PageAllocator::new(testing::base(geometry), testing::carve(geometry, PageParts::carve));
        let slab = SlabLayer::new(&pages, testing::carve(geometry, SlabParts::carve));
        Self { pages, slab }
    }

    /// 1024 frames and this many CPUs.
    pub(super) fn with_cpus(cpus: u16) -> Self {
        let mut geometry = testing::flat(1024);
        geometry.cpus = cpus;
        Self::new(&geometry)
    }

    pub(super) fn run_on(&self, cpu: u16) {
        self.pages.base.platform.cpu.set(cpu);
    }

    pub(super) fn try_kmalloc(&self, size: usize) -> Result<VirtAddr, AllocError> {
        self.slab.kmalloc(&self.pages, size, GfpFlags::KERNEL)
    }

    pub(super) fn kmalloc(&self, size: usize) -> VirtAddr {
        self.try_kmalloc(size).unwrap()
    }

    pub(super) fn kfree(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.kfree(&self.pages, addr)
    }

    pub(super) fn cache(&self, args: &CacheArgs) -> CacheId {
        self.slab.cache_create(&self.pages, "test", args).unwrap()
    }

    #[track_caller]
    pub(super) fn alloc(&self, cache: CacheId, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.slab.cache_alloc(&self.pages, cache, gfp, std::panic::Location::caller())
    }

    pub(super) fn destroy(&self, cache: CacheId) -> Result<Destroyed, CacheError> {
        self.slab.cache_destroy(&self.pages, cache, &mut |_| (), &|| ())
    }

    pub(super) fn objects(&self, cache: CacheId, n: usize) -> Vec<VirtAddr> {
        (0..n).map(|_| self.alloc(cache, GfpFlags::KERNEL).unwrap()).collect()
    }

    pub(super) fn free_all(&self, cache: CacheId, objects: impl IntoIterator<Item = VirtAddr>) {
        for object in objects {
            self.slab.cache_free(&self.pages, cache, object).unwrap();
        }
    }

    pub(super) fn reclaim(&self) -> u64 {
        self.slab.reclaim(&self.pages)
    }

    pub(super) fn info(&self, cache: CacheId) -> CacheInfo {
        self.slab.cache_info(&self.pages, cache).unwrap()
    }

    /// The cache of the normal kmalloc class at this position.
    pub(super) fn class(n: u16) -> CacheId {
        CacheId::new(n)
    }

    pub(super) fn count(&self, event: Event) -> u64 {
        self.pages.base.platform.count(event)
    }

    pub(super) fn check(&self) {
        self.pages.check_invariants().unwrap();
        self.slab.check_invariants(&self.pages).unwrap();
    }

    /// Pages of each owner; the per-CPU pages go back first.
    pub(super) fn use_of_pages(&self) -> [u64; OwnerClass::ALL.len()] {
        self.pages.drain_all_pages();
        OwnerClass::ALL.map(|class| self.pages.owned(class))
    }

    pub(super) fn phys(&self, addr: VirtAddr) -> PhysAddr {
        self.pages.base.phys(addr).unwrap()
    }

    pub(super) fn fill(&self, addr: VirtAddr, len: usize, value: u8) {
        assert!(self.pages.base.mem.fill(self.phys(addr), len, value));
    }

    pub(super) fn bytes(&self, addr: VirtAddr, len: usize) -> Vec<u8> {
        let mut bytes = std::vec![0; len];
        assert!(self.pages.base.mem.read(self.phys(addr), &mut bytes));
        bytes
    }
}
