//! Copying and filling memory by virtual address: through the direct map, or page by page through the page tables, whose
//! lock keeps a page that may move where it is while it is worked on.

use super::Vmalloc;
use crate::PAGE_SIZE;
use crate::addr::{Pfn, PhysAddr, VirtAddr, Vpn};
use crate::buddy::PageAllocator;
use crate::platform::Platform;

impl Vmalloc {
    /// The physical address behind a direct-map address or a mapped address of the window.
    #[cfg(test)]
    pub(crate) fn phys_behind<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<PhysAddr> {
        self.tables.hold(pages, |translate| place(pages, addr, 0, translate))
    }

    /// Copies `len` bytes between two blocks that do not overlap. `false` at the first page that is not mapped; what
    /// lies before it is copied.
    #[must_use]
    pub(crate) fn copy<P: Platform>(&self, pages: &PageAllocator<P>, from: VirtAddr, to: VirtAddr, len: usize) -> bool {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(self.step(from, done)).min(self.step(to, done));
            let copied = self.tables.hold(pages, |translate| {
                let both = place(pages, from, done, translate).zip(place(pages, to, done, translate));
                both.is_some_and(|(from, to)| pages.base.mem.copy(from, to, piece))
            });
            if !copied {
                return false;
            }
            done += piece;
        }
        true
    }

    /// Sets `len` bytes to zero. `false` at the first page that is not mapped.
    #[must_use]
    pub(crate) fn zero<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, len: usize) -> bool {
        self.each_page(pages, addr, len, |phys, piece| pages.base.mem.fill(phys, piece, 0))
    }

    /// Sets `len` bytes to zero in a way that the compiler keeps. `false` at the first page that is not mapped.
    #[must_use]
    pub(crate) fn wipe<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, len: usize) -> bool {
        self.each_page(pages, addr, len, |phys, piece| pages.base.mem.wipe(phys, piece))
    }

    fn each_page<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        len: usize,
        mut act: impl FnMut(PhysAddr, usize) -> bool,
    ) -> bool {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(self.step(addr, done));
            let done_here = self
                .tables
                .hold(pages, |translate| place(pages, addr, done, translate).is_some_and(|phys| act(phys, piece)));
            if !done_here {
                return false;
            }
            done += piece;
        }
        true
    }

    /// Bytes from `addr + done` to the end of its page.
    fn step(&self, addr: VirtAddr, done: usize) -> usize {
        PAGE_SIZE - addr.page_offset().wrapping_add(done) % PAGE_SIZE
    }
}

/// The physical address behind `addr + done`: a direct-map address, or one of the window that is mapped.
fn place<P: Platform>(
    pages: &PageAllocator<P>,
    addr: VirtAddr,
    done: usize,
    translate: &dyn Fn(Vpn) -> Option<Pfn>,
) -> Option<PhysAddr> {
    let addr = addr.checked_add(done as u64)?;
    if let Some(direct) = pages.base.phys(addr) {
        return Some(direct);
    }
    let inside = pages.base.geometry.is_vmalloc_addr(addr);
    translate(addr.vpn()).filter(|_| inside)?.addr().checked_add(addr.page_offset() as u64)
}
