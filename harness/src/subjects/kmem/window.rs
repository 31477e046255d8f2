//! The calls about the vmalloc window besides the plain ones.

use super::KmemSubject;
use crate::subject::{Call, Reply, WindowCall};
use kmem::{PAGE_SIZE, VirtAddr, VmallocArgs};

/// What a buffer holds before it is read into.
const UNREAD: u8 = 0x5a;

impl KmemSubject {
    pub(super) fn window_call(&mut self, call: &Call) -> Option<Reply> {
        let Call::Window(call) = call else { return None };
        Some(match call {
            &WindowCall::Vmalloc { size, gfp, flags } => {
                self.block(self.kmem.vmalloc_node_range(&VmallocArgs { flags, ..VmallocArgs::new(size, gfp) }))
            }
            WindowCall::Vmap { pfns, flags, gfp } => self.vmap(pfns, *flags, *gfp),
            WindowCall::VmMapRam { pfns, gfp } => self.vm_map_ram(pfns, *gfp),
            &WindowCall::VmUnmapRam { addr, count } => super::done(self.kmem.vm_unmap_ram(VirtAddr::new(addr), count)),
            &WindowCall::Vread { addr, len } => self.vread(VirtAddr::new(addr), len),
            &WindowCall::Remap { addr, offset, size } => {
                let mut frames = Vec::new();
                let see = |frame: kmem::Pfn| frames.push(frame.as_u32());
                let answer = self.kmem.remap_vmalloc_range(VirtAddr::new(addr), offset, size, see);
                Reply::Frames(answer.map(|()| frames))
            }
            &WindowCall::VfreeAtomic { addr, kv } => {
                let addr = VirtAddr::new(addr);
                super::done(if kv { self.kmem.kvfree_atomic(addr) } else { self.kmem.vfree_atomic(addr) })
            }
            WindowCall::DrainDeferred => Reply::Size(self.kmem.drain_deferred_vfree() as usize),
            &WindowCall::Protect { addr } => self.protect(VirtAddr::new(addr)),
        })
    }

    fn vread(&self, addr: VirtAddr, len: usize) -> Reply {
        let mut bytes = vec![UNREAD; len];
        let filled = self.kmem.vread(addr, &mut bytes);
        bytes.truncate(filled);
        Reply::Bytes(bytes)
    }

    /// Whoever changes permissions of an area asks for its frames first, as `set_memory_ro` does.
    fn protect(&self, addr: VirtAddr) -> Reply {
        let pages = self.kmem.kvsize(addr).map_or(0, |bytes| bytes / PAGE_SIZE) as u64;
        let page = |n: u64| self.kmem.vmalloc_to_page(addr.checked_add(n * PAGE_SIZE as u64)?);
        self.machine.protect((0..pages).filter_map(page).map(kmem::Pfn::as_u32));
        Reply::Done
    }
}
