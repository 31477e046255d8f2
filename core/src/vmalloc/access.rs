//! Copying and filling memory by virtual address: through the direct map, or page by page through the page tables.

use super::Vmalloc;
use crate::PAGE_SIZE;
use crate::addr::{PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::platform::Platform;

impl Vmalloc {
    /// The physical address behind a direct-map address or a mapped address of the window.
    pub(crate) fn phys_behind<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<PhysAddr> {
        let direct = pages.base.phys(addr);
        direct.or_else(|| self.vmalloc_to_page(pages, addr)?.addr().checked_add(addr.page_offset() as u64))
    }

    /// Copies `len` bytes between two blocks that do not overlap. `false` at the first page that is not mapped; what
    /// lies before it is copied.
    #[must_use]
    pub(crate) fn copy<P: Platform>(&self, pages: &PageAllocator<P>, from: VirtAddr, to: VirtAddr, len: usize) -> bool {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(self.step(from, done)).min(self.step(to, done));
            let copied = self.at(pages, from, done).zip(self.at(pages, to, done));
            if !copied.is_some_and(|(from, to)| pages.base.mem.copy(from, to, piece)) {
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
            if !self.at(pages, addr, done).is_some_and(|phys| act(phys, piece)) {
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

    fn at<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, done: usize) -> Option<PhysAddr> {
        self.phys_behind(pages, addr.checked_add(done as u64)?)
    }
}
