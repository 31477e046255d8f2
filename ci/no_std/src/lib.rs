//! Proves that `kmem` needs nothing but `core`: this crate has its own panic handler, as a kernel does.
#![no_std]

use kmem::{CpuId, Geometry, GeometryError, GfpFlags, Kmem, MetaRegion, PhysMem, Platform, VirtAddr, Vpn};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A machine with one CPU whose memory the boot code passes in.
pub struct Machine {
    memory: PhysMem,
}

impl Platform for Machine {
    fn memory(&self) -> &PhysMem {
        &self.memory
    }

    fn cpu(&self) -> CpuId {
        CpuId::new(0)
    }

    fn flush_tlb(&self, _start: Vpn, _pages: u64) {}
}

/// What a kernel does first with its allocator.
///
/// # Errors
///
/// What is wrong with the memory that the boot code found.
pub fn boot(memory: PhysMem, region: MetaRegion) -> Result<Kmem<Machine>, GeometryError> {
    let frames = u32::try_from(memory.frames()).unwrap_or(u32::MAX);
    Kmem::new(Machine { memory }, &Geometry::flat(frames), region)
}

/// One call of each tier, so that every layer is compiled.
pub fn exercise(kmem: &Kmem<Machine>) -> [Option<VirtAddr>; 3] {
    let gfp = GfpFlags::KERNEL;
    [kmem.kmalloc(64, gfp).ok(), kmem.vmalloc(1 << 16, gfp).ok(), kmem.kvmalloc(1 << 20, gfp).ok()]
}
