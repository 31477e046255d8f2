//! Calls about moving pages, and the machine's book of who owns what may be moved.

use super::super::calls::block;
use super::KmemSubject;
use crate::subject::{Call, Reply, WindowCall};
use kmem::{FrameKind, GfpFlags, Order, PAGE_SIZE, Pfn, VirtAddr, VmFlags};

impl KmemSubject {
    pub(super) fn moving_call(&mut self, call: &Call) -> Option<Reply> {
        Some(match *call {
            Call::ReportFree { blocks } => {
                self.machine.open_to_lending(blocks);
                Reply::Size(self.kmem.report_free_pages() as usize)
            }
            Call::Pin { .. } | Call::Unpin { .. } => Reply::Done,
            _ => return None,
        })
    }

    /// Keeps the machine's book of movable blocks and pins after a call.
    pub(super) fn follow_owners(&self, call: &Call, reply: &Reply) {
        let owners = self.machine.owners();
        let frame = |addr: u64| self.kmem.virt_to_pfn(VirtAddr::new(addr)).unwrap_or(Pfn::new(0));
        match (call, reply) {
            (Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. }, Reply::Block { addr, .. })
                if gfp.contains(GfpFlags::MOVABLE) =>
            {
                owners.add(frame(*addr), Order::new(*order).unwrap_or_default());
            }
            (Call::AllocPagesBulk { gfp, .. }, Reply::Pages(pages)) if gfp.contains(GfpFlags::MOVABLE) => {
                pages.iter().for_each(|&addr| owners.add(frame(addr), Order::ZERO));
            }
            (Call::FreePages { addr, .. } | Call::FreePagesNolock { addr, .. }, Reply::Done) => {
                owners.remove(frame(*addr))
            }
            // The last reference is that of the block's user.
            (Call::PutPage { addr }, Reply::Size(0)) => owners.remove(frame(*addr)),
            (Call::SplitPage { addr, .. }, Reply::Done) => owners.split(frame(*addr)),
            (
                Call::Vfree { addr } | Call::Vunmap { addr } | Call::Window(WindowCall::VmUnmapRam { addr, .. }),
                Reply::Done,
            ) => {
                self.forget_gone(owners.unmap(*addr));
            }
            (Call::Window(WindowCall::VfreeAtomic { addr, .. }), Reply::Done) => owners.leave(*addr),
            (Call::Pin { addr }, _) => owners.pin(frame(*addr)),
            (Call::Unpin { addr }, _) => owners.unpin(frame(*addr)),
            _ => {}
        }
        self.forget_gone(owners.left(|addr| self.kmem.vmalloc_to_page(VirtAddr::new(addr))));
    }

    /// Of frames that a mapping showed, those whose last reference it had are nobody's now. Other pages of a block than the
    /// first have no count, and are its as ever.
    fn forget_gone(&self, frames: Vec<u32>) {
        let is_of_block = |kind| matches!(kind, FrameKind::Pages | FrameKind::PagesShared | FrameKind::PagesTail);
        let is_gone = |frame: &Pfn| !is_of_block(self.kmem.frame_kind(*frame));
        let gone = frames.into_iter().map(Pfn::new).filter(is_gone);
        gone.for_each(|frame| self.machine.owners().remove(frame));
    }

    /// `vmap`; the frames are pinned before, for the call itself might move them.
    pub(super) fn vmap(&mut self, pfns: &[u32], flags: VmFlags, gfp: GfpFlags) -> Reply {
        self.map_pinned(pfns, |s, frames| block(&s.kmem, s.kmem.vmap(frames, flags, gfp)))
    }

    /// `vm_map_ram`, likewise. What is usable is what was asked for: nothing else knows these mappings by their address.
    pub(super) fn vm_map_ram(&mut self, pfns: &[u32], gfp: GfpFlags) -> Reply {
        self.map_pinned(pfns, |s, frames| match s.kmem.vm_map_ram(frames, gfp) {
            Ok(addr) => Reply::Block { addr: addr.as_u64(), usable: frames.len() * PAGE_SIZE },
            Err(error) => Reply::Refused(error),
        })
    }

    fn map_pinned(&mut self, pfns: &[u32], map: impl FnOnce(&Self, &[Pfn]) -> Reply) -> Reply {
        self.frames.clear();
        self.frames.extend(pfns.iter().map(|&pfn| Pfn::new(pfn)));
        let owners = self.machine.owners();
        self.frames.iter().for_each(|&frame| owners.pin(frame));
        let reply = map(self, &self.frames);
        if let Reply::Block { addr, .. } = reply {
            owners.map(addr, &self.frames);
        }
        self.frames.iter().for_each(|&frame| owners.unpin(frame));
        reply
    }
}
