//! Sharing one allocator between CPUs that run in parallel.

use crate::platform::Platform;

/// A platform whose CPUs run in parallel: with it, a `&Kmem` may be used from many threads.
///
/// # Safety
///
/// * While a thread is inside a call of the allocator, [`Platform::cpu`] returns a number below the geometry's `cpus` that
///   no other thread inside a call gets. (A kernel disables preemption, a hosted platform leases slots.)
/// * [`Platform::heavy_fence`] makes every such thread execute a full memory barrier before it returns.
/// * The memory window and the metadata region were made by `from_raw_parts`, not on the host's heap, whose handles are
///   counted without synchronisation; or no handle is cloned or dropped while the allocator is shared.
pub unsafe trait SmpPlatform: Platform + Sync {}

// SAFETY: all state is atomics, spin locks, and per-CPU cells, whose exclusion holds by the first two promises of
// `SmpPlatform`; the third makes the memory window's and the slices' handles, which are only read, safe to share.
unsafe impl<P: SmpPlatform> Sync for crate::kmem::Kmem<P> {}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use crate::addr::{PageCount, Pfn, VirtAddr, Vpn};
    use crate::{CpuId, Geometry, GfpFlags, Kmem, MetaRegion, PhysMem, Platform};
    use core::cell::Cell;
    use core::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    const CPUS: u16 = 3;
    const FRAMES: u32 = 2048;

    std::thread_local! {
        static CPU: Cell<u16> = const { Cell::new(0) };
    }

    /// One thread is one CPU; the heavy fence is the kernel's `membarrier`.
    struct Threads(PhysMem);

    // SAFETY: the window is only read through `&self` here; its handle is cloned and dropped by the main thread alone.
    unsafe impl Sync for Threads {}

    // SAFETY: each thread sets its own CPU number before its first call, `membarrier` is the barrier that is asked for, and
    // handles are cloned and dropped by the main thread alone, while no other thread exists.
    unsafe impl super::SmpPlatform for Threads {}

    impl Platform for Threads {
        fn memory(&self) -> &PhysMem {
            &self.0
        }

        fn cpu(&self) -> CpuId {
            CpuId::new(CPU.get())
        }

        fn flush_tlb(&self, _start: Vpn, _pages: u64) {}

        fn heavy_fence(&self) {
            const MEMBARRIER: i64 = 324;
            const CMD_GLOBAL: i64 = 1;
            let result: i64;
            // SAFETY: `membarrier` with CMD_GLOBAL and no flags touches no memory; `rcx` and `r11` are clobbered by `syscall`.
            unsafe {
                core::arch::asm!("syscall", inlateout("rax") MEMBARRIER => result, in("rdi") CMD_GLOBAL, in("rsi") 0,
                    in("rdx") 0, lateout("rcx") _, lateout("r11") _);
            }
            assert_eq!(result, 0, "membarrier");
        }

        fn relax(&self) {
            std::thread::yield_now();
        }
    }

    fn small_work(kmem: &Kmem<Threads>, round: usize) {
        let size = 8 << (round % 9);
        let block = kmem.kmalloc(size, GfpFlags::KERNEL).unwrap();
        let page = kmem.alloc_pages(crate::Order::ZERO, GfpFlags::KERNEL).unwrap();
        kmem.kfree(block).unwrap();
        kmem.free_pages(page, crate::Order::ZERO).unwrap();
        // Refused while somebody has the locks; the free never is.
        if let Ok(page) = kmem.alloc_pages_nolock(crate::Order::ZERO, None) {
            kmem.free_pages_nolock(page, crate::Order::ZERO).unwrap();
        }
    }

    #[test]
    fn threads_exchange_blocks_while_another_drains_and_nothing_is_lost() {
        let mut geometry = Geometry::flat(FRAMES);
        geometry.cpus = CPUS;
        let region = MetaRegion::heap(Kmem::<Threads>::metadata_bytes(&geometry).unwrap());
        let kmem = Kmem::new(Threads(PhysMem::heap(FRAMES, 0x5a)), &geometry, region).unwrap();
        let before = kmem.meminfo();
        let done = AtomicBool::new(false);
        let (give, take) = mpsc::sync_channel::<VirtAddr>(64);
        std::thread::scope(|scope| {
            let (kmem, done) = (&kmem, &done);
            scope.spawn(move || {
                CPU.set(1);
                for round in 0..20_000 {
                    give.send(kmem.kvmalloc(8 << (round % 12), GfpFlags::KERNEL).unwrap()).unwrap();
                    small_work(kmem, round);
                }
            });
            scope.spawn(move || {
                CPU.set(2);
                for (round, block) in take.into_iter().enumerate() {
                    kmem.kvfree(block).unwrap();
                    small_work(kmem, round);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                kmem.reclaim();
                // Pageblocks go out of circulation and come back while the others free into them.
                let (start, pages) = (Pfn::new(FRAMES / 2), PageCount::new(40));
                if kmem.alloc_contig_range(start, pages, GfpFlags::KERNEL).is_ok() {
                    kmem.free_contig_range(start, pages).unwrap();
                }
            }
        });
        kmem.reclaim();
        assert_eq!(kmem.audit(), Ok(()));
        assert_eq!(kmem.meminfo(), before);
    }
}
