//! How well an area is backed: runs of frames, and entries that map them.

use super::Vmalloc;
use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::FreeError;
use crate::platform::Platform;

/// How the pages of an area are backed and mapped; the fewer runs and entries, the less a processor has to look up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AreaMapping {
    /// Pages that are mapped.
    pub pages: PageCount,
    /// Runs of frames that follow each other in memory as the pages do in the window.
    pub runs: u64,
    /// Page-table entries that map them.
    pub entries: u64,
}

impl Vmalloc {
    /// How the live area that starts at `addr` is backed.
    ///
    /// # Errors
    ///
    /// Which misuse freeing the address would be.
    pub(crate) fn mapping_of<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
    ) -> Result<AreaMapping, FreeError> {
        let (_, node) = self.live_at(&pages.base, addr)?;
        let entries = node.mapped >> node.leaf.get();
        let mut mapping = AreaMapping { pages: PageCount::new(node.mapped), runs: 0, entries };
        let mut before: Option<Pfn> = None;
        self.tables.visit(pages, node.mapped_range(), |_, entry| {
            let frame = entry.frame();
            let follows = before.and_then(|before| before.checked_add(1)) == frame;
            mapping.runs += u64::from(!(follows && frame.is_some()));
            before = frame;
        });
        Ok(mapping)
    }
}
