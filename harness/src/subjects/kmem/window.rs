//! The calls about the vmalloc window that the machine hears of.

use super::KmemSubject;
use crate::subject::{Call, Reply, WindowCall};
use kmem::{GfpFlags, PAGE_SIZE, VirtAddr, VmFlags};

impl KmemSubject {
    pub(super) fn window_call(&mut self, call: &Call) -> Option<Reply> {
        Some(match call {
            Call::Vmap { pfns } => self.vmap(pfns, VmFlags::empty(), GfpFlags::KERNEL),
            Call::Window(WindowCall::Vmap { pfns, flags, gfp }) => self.vmap(pfns, *flags, *gfp),
            Call::Window(WindowCall::VmMapRam { pfns, gfp }) => self.vm_map_ram(pfns, *gfp),
            &Call::Window(WindowCall::Protect { addr }) => self.protect(VirtAddr::new(addr)),
            _ => return None,
        })
    }

    /// Whoever changes permissions of an area asks for its frames first, as `set_memory_ro` does.
    fn protect(&self, addr: VirtAddr) -> Reply {
        let pages = self.kmem.kvsize(addr).map_or(0, |bytes| bytes / PAGE_SIZE) as u64;
        let page = |n: u64| self.kmem.vmalloc_to_page(addr.checked_add(n * PAGE_SIZE as u64)?);
        self.machine.protect((0..pages).filter_map(page).map(kmem::Pfn::as_u32));
        Reply::Done
    }
}
