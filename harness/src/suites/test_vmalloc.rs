//! Linux's `lib/test_vmalloc.c`: its thirteen cases, under their own names and with their own numbers.
//!
//! | case | differs from Linux's |
//! |---|---|
//! | `pcpu_alloc_test` | there is no per-CPU allocator: objects of 1024 bytes at alignments of 2..2048 come from caches |
//! | all | one worker, which stays on the first CPU |

use super::kernel::{Kernel, Stop};
use kmem::{GfpFlags, PAGE_SIZE, VmFlags, VmallocArgs};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const KERNEL: GfpFlags = GfpFlags::KERNEL;
/// Twice `THREAD_ALIGN` of x86-64, in bytes.
const TWICE_THREAD_ALIGN: usize = 32 << 10;

/// Defines [`Case`], the list of all and their names from one table.
macro_rules! cases {
    ($($case:ident = $name:literal,)*) => {
        /// A case.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "the names are Linux's")]
        pub enum Case {
            $($case,)*
        }

        use Case::{$($case),*};

        impl Case {
            /// All cases, in Linux's order.
            pub const ALL: [Self; [$($name),*].len()] = [$($case),*];

            /// Its name in Linux.
            pub const fn name(self) -> &'static str {
                match self {
                    $($case => $name,)*
                }
            }
        }
    };
}

cases! {
    FixSizeAlloc = "fix_size_alloc_test",
    FullFitAlloc = "full_fit_alloc_test",
    LongBusyListAlloc = "long_busy_list_alloc_test",
    RandomSizeAlloc = "random_size_alloc_test",
    FixAlignAlloc = "fix_align_alloc_test",
    RandomSizeAlignAlloc = "random_size_align_alloc_test",
    AlignShiftAlloc = "align_shift_alloc_test",
    PcpuAlloc = "pcpu_alloc_test",
    KvfreeRcu1ArgVmalloc = "kvfree_rcu_1_arg_vmalloc_test",
    KvfreeRcu2ArgVmalloc = "kvfree_rcu_2_arg_vmalloc_test",
    VmMapRam = "vm_map_ram_test",
    NoBlockAlloc = "no_block_alloc_test",
    VreallocTest = "vrealloc_test",
}

impl Case {
    /// Nanoseconds of one loop on Linux 5.2-rc6, where somebody published them: other hardware, so a shape and no aim.
    pub const fn published_ns(self) -> Option<u32> {
        match self {
            FixSizeAlloc => Some(969),
            FullFitAlloc => Some(990),
            LongBusyListAlloc => Some(12_896),
            _ => None,
        }
    }

    /// Allocations of one loop.
    pub const fn allocs_per_loop(self) -> u32 {
        match self {
            LongBusyListAlloc => 2,
            VreallocTest => 5,
            _ => 1,
        }
    }

    /// Whether more loops are more work.
    pub const fn is_repeated(self) -> bool {
        !matches!(self, AlignShiftAlloc)
    }
}

/// How much of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How often the body of a case is executed. Linux: 1,000,000.
    pub loops: u64,
    /// Pages of the areas of most cases.
    pub nr_pages: u64,
    /// Areas of that size may be mapped by huge leaves.
    pub use_huge: bool,
    /// Live areas beside which [`Case::LongBusyListAlloc`] works. Linux: 15,000.
    pub busy: usize,
    /// Holes into which [`Case::FullFitAlloc`] allocates; `None`: as many as Linux makes, by the number of CPUs.
    pub holes: Option<usize>,
    /// Objects of [`Case::PcpuAlloc`]. Linux: 35,000.
    pub objects: usize,
    /// Where random sizes begin.
    pub seed: u64,
}

impl Plan {
    /// Linux's numbers, with so many loops.
    pub const fn linux(loops: u64) -> Self {
        Self { loops, nr_pages: 1, use_huge: false, busy: 15_000, holes: None, objects: 35_000, seed: 1 }
    }

    /// What every oracle can look at in a second or two.
    pub const fn judged() -> Self {
        Self { busy: 400, holes: Some(200), objects: 500, ..Self::linux(150) }
    }

    /// Holes as Linux makes them: `fls(cpus)` times the pages of 32 MiB.
    fn holes(&self, cpus: u16) -> usize {
        self.holes.unwrap_or_else(|| (u16::BITS - cpus.leading_zeros()) as usize * ((32 << 20) / PAGE_SIZE))
    }
}

/// How a case ended that was not stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Passed {
    /// Everything was as demanded.
    Plainly,
    /// A refusal that Linux expects (`xfail`), after so many requests that were granted.
    WithRefusal(u64),
}

/// Runs a case on a kernel.
///
/// # Errors
///
/// What the case demands and the kernel did not do, or that an oracle objected.
pub fn run(case: Case, kernel: &mut dyn Kernel, plan: &Plan) -> Result<Passed, Stop> {
    let mut test = Test { kernel, plan, rng: Xoshiro256PlusPlus::seed_from_u64(plan.seed) };
    match case {
        FixSizeAlloc => test.repeat(|test| test.alloc_write_free(plan.nr_pages, 1)),
        FullFitAlloc => test.full_fit(),
        LongBusyListAlloc => test.long_busy_list(),
        RandomSizeAlloc => test.repeat(|test| {
            let pages = test.rng.random_range(1..=100);
            test.alloc_write_free(pages, 1)
        }),
        FixAlignAlloc => test.repeat(|test| test.alloc_write_free(5, TWICE_THREAD_ALIGN)),
        RandomSizeAlignAlloc => test.repeat(|test| {
            let align = 1 << test.rng.random_range(0..23);
            let pages = test.rng.random_range(1..=10);
            test.alloc_write_free(pages, align)
        }),
        AlignShiftAlloc => test.align_shift(),
        PcpuAlloc => test.pcpu(),
        KvfreeRcu1ArgVmalloc => test.kvfree_rcu(None),
        KvfreeRcu2ArgVmalloc => test.kvfree_rcu(Some(0)),
        VmMapRam => test.vm_map_ram(),
        NoBlockAlloc => test.no_block(),
        VreallocTest => test.repeat(Test::vrealloc),
    }
}

/// A case that runs.
struct Test<'a> {
    kernel: &'a mut dyn Kernel,
    plan: &'a Plan,
    rng: Xoshiro256PlusPlus,
}

impl Test<'_> {
    fn repeat(&mut self, mut body: impl FnMut(&mut Self) -> Result<(), Stop>) -> Result<Passed, Stop> {
        (0..self.plan.loops).try_for_each(|_| body(self))?;
        Ok(Passed::Plainly)
    }

    fn args(&self, pages: u64, align: usize) -> VmallocArgs {
        let mut args = VmallocArgs { align, ..VmallocArgs::new(pages as usize * PAGE_SIZE, KERNEL) };
        args.flags.set(VmFlags::ALLOW_HUGE_VMAP, self.plan.use_huge);
        args
    }

    /// An area, which has to be granted, with its first byte written.
    fn alloc_write(&mut self, pages: u64, align: usize) -> Result<u64, Stop> {
        let args = self.args(pages, align);
        let granted = self.kernel.vmalloc(&args)?;
        let addr = granted.map_err(|refused| Stop::failed(format!("{pages} pages at {align}: {refused}")))?;
        if !addr.is_multiple_of(align as u64) {
            return Err(Stop::failed(format!("{addr:#x} is no multiple of {align:#x}")));
        }
        self.kernel.mark(addr)?;
        Ok(addr)
    }

    fn alloc_write_free(&mut self, pages: u64, align: usize) -> Result<(), Stop> {
        let addr = self.alloc_write(pages, align)?;
        self.kernel.vfree(addr)
    }

    /// Pairs of areas, of which the second ones are freed: as many holes of one page.
    fn full_fit(&mut self) -> Result<Passed, Stop> {
        let mut pairs = Vec::new();
        for _ in 0..self.plan.holes(self.kernel.cpus()) {
            let args = self.args(1, 1);
            let (Ok(keep), Ok(free)) = (self.kernel.vmalloc(&args)?, self.kernel.vmalloc(&args)?) else { break };
            pairs.push((keep, free));
        }
        pairs.iter().try_for_each(|&(_, free)| self.kernel.vfree(free))?;
        let passed = self.repeat(|test| test.alloc_write_free(1, 1))?;
        pairs.iter().try_for_each(|&(keep, _)| self.kernel.vfree(keep))?;
        Ok(passed)
    }

    fn long_busy_list(&mut self) -> Result<Passed, Stop> {
        let busy: Vec<u64> = (0..self.plan.busy).map(|_| self.alloc_write(1, 1)).collect::<Result<_, _>>()?;
        let passed = self.repeat(|test| {
            let (large, small) = (test.alloc_write(100, 1)?, test.alloc_write(1, 1)?);
            test.kernel.vfree(large)?;
            test.kernel.vfree(small)
        })?;
        busy.into_iter().try_for_each(|addr| self.kernel.vfree(addr))?;
        Ok(passed)
    }

    /// One page at every alignment there is, once; from some on they are refused, which Linux expects.
    fn align_shift(&mut self) -> Result<Passed, Stop> {
        if self.plan.loops == 0 {
            return Ok(Passed::Plainly);
        }
        for shift in 0..usize::BITS {
            let args = self.args(1, 1 << shift);
            let Ok(addr) = self.kernel.vmalloc(&args)? else { return Ok(Passed::WithRefusal(u64::from(shift))) };
            if !addr.is_multiple_of(1 << shift) {
                return Err(Stop::failed(format!("{addr:#x} is no multiple of 2^{shift}")));
            }
            self.kernel.vfree(addr)?;
        }
        Ok(Passed::Plainly)
    }

    fn pcpu(&mut self) -> Result<Passed, Stop> {
        let caches = (1..=11).map(|shift| self.kernel.cache(1024, 1 << shift)).collect::<Result<Vec<_>, _>>()?;
        let mut objects = Vec::new();
        for _ in 0..self.plan.objects {
            let cache = caches[self.rng.random_range(0..caches.len())];
            let granted = self.kernel.cache_alloc(cache)?;
            let addr = granted.map_err(|refused| Stop::failed(format!("an object: {refused}")))?;
            self.kernel.mark(addr)?;
            objects.push((cache, addr));
        }
        objects.into_iter().try_for_each(|(cache, addr)| self.kernel.cache_free(cache, addr))?;
        caches.into_iter().try_for_each(|cache| self.kernel.cache_destroy(cache))?;
        Ok(Passed::Plainly)
    }

    fn kvfree_rcu(&mut self, head: Option<usize>) -> Result<Passed, Stop> {
        let passed = self.repeat(|test| {
            let addr = test.alloc_write(1, 1)?;
            test.kernel.kvfree_rcu(addr, head)
        })?;
        self.kernel.kvfree_rcu_barrier()?;
        Ok(passed)
    }

    /// Pages of one bulk, mapped, written through the mapping and unmapped in each loop.
    fn vm_map_ram(&mut self) -> Result<Passed, Stop> {
        let wanted = self.plan.nr_pages as usize;
        let pages = self.kernel.pages(wanted)?;
        if pages.len() != wanted {
            return Err(Stop::failed(format!("a bulk of {wanted} pages gave {}", pages.len())));
        }
        let passed = self.repeat(|test| {
            let granted = test.kernel.vm_map_ram(&pages)?;
            let addr = granted.map_err(|refused| Stop::failed(format!("a mapping of {wanted} pages: {refused}")))?;
            test.kernel.mark_mapped(addr, pages[0])?;
            test.kernel.vm_unmap_ram(addr, wanted)
        })?;
        pages.into_iter().try_for_each(|page| self.kernel.free_page(page))?;
        Ok(passed)
    }

    fn no_block(&mut self) -> Result<Passed, Stop> {
        for n in 0..self.plan.loops {
            let gfp = if self.rng.random_range(0..2) == 0 { GfpFlags::ATOMIC } else { GfpFlags::NOWAIT };
            let args = VmallocArgs { gfp, ..self.args(self.plan.nr_pages, 1) };
            let Ok(addr) = self.kernel.vmalloc(&args)? else { return Ok(Passed::WithRefusal(n)) };
            self.kernel.mark(addr)?;
            self.kernel.vfree(addr)?;
        }
        Ok(Passed::Plainly)
    }

    /// Null to one page, to four, to one, to half a page, to one; the first byte is there each time.
    fn vrealloc(&mut self) -> Result<(), Stop> {
        let mut addr = 0;
        for size in [PAGE_SIZE, 4 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE / 2, PAGE_SIZE] {
            let granted = self.kernel.vrealloc(addr, size, KERNEL)?;
            let new = granted.map_err(|refused| Stop::failed(format!("{size} bytes: {refused}")))?;
            if addr != 0 && !self.kernel.is_marked(new)? {
                return Err(Stop::failed(format!("the first byte was lost on the way to {size} bytes")));
            }
            self.kernel.mark(new)?;
            addr = new;
        }
        self.kernel.vfree(addr)
    }
}
