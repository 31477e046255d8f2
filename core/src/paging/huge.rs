//! Entries that map 512 pages in a row: one level of tables less, and one place in a TLB instead of 512.
//!
//! They are made by [`PageTables::map_huge`] only; the other functions find out themselves what they meet. A range that
//! has some is worked on in whole runs.

use super::{Detached, ENTRIES, HUGE, LEAF, MapError, PageTables, Path, Pte, VpnRange, add_inuse, index, load, store};
use crate::addr::{Pfn, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Platform;
use crate::raw::PhysMem;

/// log2 of the pages that one huge entry maps.
pub(crate) const HUGE_ORDER: u8 = ENTRIES.trailing_zeros() as u8;

impl PageTables {
    /// Maps the pages of `range` in runs of 512 to the blocks whose first frames `next` names; missing tables are made.
    ///
    /// Range and blocks begin at multiples of 512 pages. A run for which `next` has no block, or of which a page is
    /// mapped already, stays as it is.
    ///
    /// # Errors
    ///
    /// A [`MapError`] if a table's frame was refused. No empty table stays behind, and `next` was asked for the
    /// mapped runs only.
    pub(crate) fn map_huge<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        gfp: GfpFlags,
        mut next: impl FnMut() -> Option<Pfn>,
    ) -> Result<(), MapError> {
        self.map_pieces(pages, range, gfp, HUGE + 1, |path, piece| map_piece(&pages.base, path, piece, &mut next))
    }

    /// log2 of the pages that the entry maps which maps this page; `None` if there is no entry.
    pub(crate) fn leaf_order<P: Platform>(&self, pages: &PageAllocator<P>, page: Vpn) -> Option<Order> {
        let mem = &pages.base.mem;
        let _lock = self.nr_tables.lock();
        let path = self.path(mem, page);
        if path.huge(mem, page).is_some() {
            return Order::new(HUGE_ORDER);
        }
        (!path.entry(mem, page).is_empty()).then_some(Order::ZERO)
    }
}

fn map_piece<P>(base: &Base<P>, path: &Path, piece: VpnRange, next: &mut impl FnMut() -> Option<Pfn>) {
    let (table, at) = (path.tables[HUGE], index(piece.start(), HUGE));
    if piece.pages() != ENTRIES || !load(&base.mem, table, at).is_empty() {
        debug_assert!(false, "{} is mapped already, or no run begins there", piece.start());
        return;
    }
    let Some(first) = next() else { return };
    store(&base.mem, table, at, Pte::huge(first));
    add_inuse(base, table, 1);
}

/// The entry that maps exactly the pages of a piece.
fn entry_of(mem: &PhysMem, path: &Path, piece: VpnRange) -> Option<Pte> {
    let entry = path.huge(mem, piece.start())?;
    debug_assert_eq!(piece.pages(), ENTRIES, "a part of a huge entry's run, from {} on", piece.start());
    (piece.pages() == ENTRIES).then_some(entry)
}

pub(super) fn unmap_piece(mem: &PhysMem, path: &Path, piece: VpnRange) {
    if let Some(entry) = entry_of(mem, path, piece) {
        store(mem, path.tables[HUGE], index(piece.start(), HUGE), entry.unmapped());
    }
}

pub(super) fn take_piece<P>(base: &Base<P>, path: &Path, piece: VpnRange, owned: bool, gone: &mut Detached) {
    let Some(entry) = entry_of(&base.mem, path, piece) else { return };
    store(&base.mem, path.tables[HUGE], index(piece.start(), HUGE), Pte::EMPTY);
    add_inuse(base, path.tables[HUGE], -1);
    if owned {
        for frame in piece.iter().filter_map(|page| entry.part(index(page, LEAF)).frame()) {
            gone.add_page(&base.frames, frame);
        }
    }
}
