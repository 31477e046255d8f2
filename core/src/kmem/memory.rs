//! Copying and wiping by virtual address: through the direct map, or page by page through the page tables.

use super::Kmem;
use crate::addr::VirtAddr;
use crate::platform::Platform;

impl<P: Platform> Kmem<P> {
    /// Copies between two live blocks of any kind; both have at least `len` bytes.
    pub(super) fn copy(&self, from: VirtAddr, to: VirtAddr, len: usize) {
        let copied = self.vmalloc.copy(&self.pages, from, to, len);
        debug_assert!(copied, "a live block has an unmapped page");
    }

    /// Wipes the first `len` bytes of a live block of any kind.
    pub(super) fn wipe(&self, addr: VirtAddr, len: usize) {
        let wiped = self.vmalloc.wipe(&self.pages, addr, len);
        debug_assert!(wiped, "a live block has an unmapped page");
    }
}
