//! Mappings that lie side by side in one area, told apart by their first pages.

use super::entry::Pte;
use super::{Detached, LEAF, MapError, PageTables, VpnRange, add_inuse, host, index, load, store};
use crate::addr::{Pfn, Vpn};
use crate::buddy::PageAllocator;
use crate::gfp::GfpFlags;
use crate::platform::Platform;

impl PageTables {
    /// [`Self::map`], with the first page of the range marked: from its entry on, a neighbour cannot be taken for more of the
    /// mapping before.
    ///
    /// # Errors
    ///
    /// Those of [`Self::map`].
    pub(crate) fn map_run<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        gfp: GfpFlags,
        mut next: impl FnMut() -> Option<Pfn>,
    ) -> Result<(), MapError> {
        let mut is_first = true;
        self.map_entries(pages, range, gfp, || {
            let entry = Pte::page(next()?);
            Some(if core::mem::take(&mut is_first) { entry.first() } else { entry })
        })
    }

    /// How many pages the mapping has that begins with this page, out of `most`; none if no mapping begins there.
    pub(crate) fn run_at<P: Platform>(&self, pages: &PageAllocator<P>, first: Vpn, most: u64) -> u64 {
        let (mut found, mut ended) = (0, false);
        self.visit(pages, VpnRange::new(first, most), |page, entry| {
            ended |= !entry.is_present() || entry.is_first() != (page == first);
            found += u64::from(!ended);
        });
        found
    }

    /// Empties those entries of `range` that are unmapped, and cuts off tables that become empty; mapped ones stay.
    pub(crate) fn take_unmapped<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange, gone: &mut Detached) {
        let mem = &pages.base.mem;
        for piece in range.by_table() {
            let mut nr_tables = self.nr_tables.lock();
            let path = self.path(mem, piece.start());
            let Some(leaf) = path.leaf() else { continue };
            let mut emptied = 0;
            for page in piece.iter() {
                let at = index(page, LEAF);
                let entry = load(mem, leaf, at);
                if !entry.is_empty() && !entry.is_present() {
                    store(mem, leaf, at, Pte::EMPTY);
                    host::tell_unmapped(&pages.base, VpnRange::new(page, 1));
                    emptied -= 1;
                }
            }
            add_inuse(&pages.base, leaf, emptied);
            *nr_tables -= self.cut_empty(&pages.base, &path, piece.start(), gone);
        }
        gone.add_range(range);
    }
}
