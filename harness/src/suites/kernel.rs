//! What a test of the kernel's needs of a kernel.

use crate::machine::{SimMachine, SimPlatform};
use kmem::{
    AllocError, CacheArgs, CacheId, Geometry, GeometryError, GfpFlags, Kmem, MetaRegion, Pfn, VirtAddr, VmallocArgs,
};
use std::rc::Rc;

/// What a bare kernel's blocks are marked with.
const MARK: u8 = b'a';

/// Why a test cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// The kernel did not do what the test demands.
    Failed(String),
    /// An oracle objected; the report of the run says what to.
    Objection,
}

impl Stop {
    /// A demand of the test was not met.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::Failed(what.into())
    }
}

/// A kernel on which a test runs. Addresses are virtual; a refusal of a request is an answer, not a [`Stop`].
///
/// # Errors
///
/// Every function: why the test cannot go on.
#[allow(clippy::missing_errors_doc, reason = "said once for all")]
pub trait Kernel {
    /// How many CPUs it has.
    fn cpus(&self) -> u16;

    /// `__vmalloc_node_range`.
    fn vmalloc(&mut self, args: &VmallocArgs) -> Result<Result<u64, AllocError>, Stop>;

    /// `vfree`.
    fn vfree(&mut self, addr: u64) -> Result<(), Stop>;

    /// `vrealloc`; address 0 is null.
    fn vrealloc(&mut self, addr: u64, size: usize, gfp: GfpFlags) -> Result<Result<u64, AllocError>, Stop>;

    /// `kvfree_rcu`, with a head inside of the block or none.
    fn kvfree_rcu(&mut self, addr: u64, head: Option<usize>) -> Result<(), Stop>;

    /// Waits until all that `kvfree_rcu` put off is freed.
    fn kvfree_rcu_barrier(&mut self) -> Result<(), Stop>;

    /// A cache of objects of this size and alignment.
    fn cache(&mut self, size: usize, align: usize) -> Result<CacheId, Stop>;

    /// `kmem_cache_alloc`.
    fn cache_alloc(&mut self, cache: CacheId) -> Result<Result<u64, AllocError>, Stop>;

    /// `kmem_cache_free`.
    fn cache_free(&mut self, cache: CacheId, addr: u64) -> Result<(), Stop>;

    /// `kmem_cache_destroy`.
    fn cache_destroy(&mut self, cache: CacheId) -> Result<(), Stop>;

    /// `alloc_pages_bulk`: up to so many pages, by their direct-map addresses.
    fn pages(&mut self, count: usize) -> Result<Vec<u64>, Stop>;

    /// `free_pages` of order 0.
    fn free_page(&mut self, addr: u64) -> Result<(), Stop>;

    /// `vm_map_ram` of single pages, given by their direct-map addresses.
    fn vm_map_ram(&mut self, pages: &[u64]) -> Result<Result<u64, AllocError>, Stop>;

    /// `vm_unmap_ram`.
    fn vm_unmap_ram(&mut self, addr: u64, count: usize) -> Result<(), Stop>;

    /// Writes a mark at the start of a mapping, through the processor, and finds it in the page that is mapped there.
    fn mark_mapped(&mut self, addr: u64, page: u64) -> Result<(), Stop>;

    /// Writes a mark at the start of a block, through the processor.
    fn mark(&mut self, addr: u64) -> Result<(), Stop>;

    /// Tells whether the mark is there.
    fn is_marked(&mut self, addr: u64) -> Result<bool, Stop>;
}

/// The allocator on the simulated machine and nothing else: for measurements.
pub struct Bare {
    kmem: Kmem<SimPlatform>,
    machine: Rc<SimMachine>,
}

impl Bare {
    /// Boots a machine.
    ///
    /// # Errors
    ///
    /// What is wrong with the geometry.
    pub fn new(geometry: &Geometry) -> Result<Self, GeometryError> {
        let bytes = Kmem::<SimPlatform>::metadata_bytes(geometry)?;
        let machine = Rc::new(SimMachine::new(geometry));
        let kmem = Kmem::new(SimPlatform::new(Rc::clone(&machine)), geometry, MetaRegion::heap(bytes))?;
        Ok(Self { kmem, machine })
    }

    /// The allocator.
    pub fn kmem(&self) -> &Kmem<SimPlatform> {
        &self.kmem
    }
}

/// A free that was rejected.
fn rejected(error: impl std::fmt::Display) -> Stop {
    Stop::failed(error.to_string())
}

fn number(answer: Result<VirtAddr, AllocError>) -> Result<Result<u64, AllocError>, Stop> {
    Ok(answer.map(VirtAddr::as_u64))
}

impl Kernel for Bare {
    fn cpus(&self) -> u16 {
        self.kmem.geometry().cpus
    }

    fn vmalloc(&mut self, args: &VmallocArgs) -> Result<Result<u64, AllocError>, Stop> {
        number(self.kmem.vmalloc_node_range(args))
    }

    fn vfree(&mut self, addr: u64) -> Result<(), Stop> {
        self.kmem.vfree(VirtAddr::new(addr)).map_err(rejected)
    }

    fn vrealloc(&mut self, addr: u64, size: usize, gfp: GfpFlags) -> Result<Result<u64, AllocError>, Stop> {
        number(self.kmem.vrealloc(VirtAddr::new(addr), size, gfp))
    }

    fn kvfree_rcu(&mut self, addr: u64, head: Option<usize>) -> Result<(), Stop> {
        let addr = VirtAddr::new(addr);
        match head {
            Some(head) => self.kmem.kvfree_rcu(addr, head),
            None => self.kmem.kvfree_rcu_mightsleep(addr),
        }
        .map_err(rejected)
    }

    fn kvfree_rcu_barrier(&mut self) -> Result<(), Stop> {
        self.kmem.kvfree_rcu_barrier();
        Ok(())
    }

    fn cache(&mut self, size: usize, align: usize) -> Result<CacheId, Stop> {
        let args = CacheArgs { align, ..CacheArgs::new(size) };
        self.kmem.kmem_cache_create("test_vmalloc", &args).map_err(rejected)
    }

    fn cache_alloc(&mut self, cache: CacheId) -> Result<Result<u64, AllocError>, Stop> {
        number(self.kmem.kmem_cache_alloc(cache, GfpFlags::KERNEL))
    }

    fn cache_free(&mut self, cache: CacheId, addr: u64) -> Result<(), Stop> {
        self.kmem.kmem_cache_free(cache, VirtAddr::new(addr)).map_err(rejected)
    }

    fn cache_destroy(&mut self, cache: CacheId) -> Result<(), Stop> {
        self.kmem.kmem_cache_destroy(cache).map(drop).map_err(rejected)
    }

    fn pages(&mut self, count: usize) -> Result<Vec<u64>, Stop> {
        let mut slots = vec![None; count];
        self.kmem.alloc_pages_bulk(GfpFlags::KERNEL, &mut slots);
        Ok(slots.into_iter().flatten().map(|pfn: Pfn| self.kmem.page_address(pfn).as_u64()).collect())
    }

    fn free_page(&mut self, addr: u64) -> Result<(), Stop> {
        let pfn = self.kmem.virt_to_pfn(VirtAddr::new(addr)).ok_or_else(|| Stop::failed("no page"))?;
        self.kmem.free_pages(pfn, kmem::Order::ZERO).map_err(rejected)
    }

    fn vm_map_ram(&mut self, pages: &[u64]) -> Result<Result<u64, AllocError>, Stop> {
        let frame = |&page: &u64| self.kmem.virt_to_pfn(VirtAddr::new(page)).ok_or_else(|| Stop::failed("no page"));
        let frames = pages.iter().map(frame).collect::<Result<Vec<Pfn>, Stop>>()?;
        number(self.kmem.vm_map_ram(&frames, GfpFlags::KERNEL))
    }

    fn vm_unmap_ram(&mut self, addr: u64, count: usize) -> Result<(), Stop> {
        self.kmem.vm_unmap_ram(VirtAddr::new(addr), count).map_err(rejected)
    }

    fn mark_mapped(&mut self, addr: u64, page: u64) -> Result<(), Stop> {
        self.mark(addr)?;
        if self.is_marked(page)? { Ok(()) } else { Err(Stop::failed(format!("{addr:#x} does not show {page:#x}"))) }
    }

    fn mark(&mut self, addr: u64) -> Result<(), Stop> {
        self.machine.write(addr, &[MARK]).map_err(|fault| Stop::failed(format!("{fault:?}")))
    }

    fn is_marked(&mut self, addr: u64) -> Result<bool, Stop> {
        let mut byte = [0];
        self.machine.read(addr, &mut byte).map_err(|fault| Stop::failed(format!("{fault:?}")))?;
        Ok(byte == [MARK])
    }
}
