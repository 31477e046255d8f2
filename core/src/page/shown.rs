//! Frames that mappings show, and whether what they hold may move.

use super::{FrameKind, FrameTable, MAY_MOVE};
use crate::addr::Pfn;
use crate::sync::Ordering::Relaxed;

impl FrameTable {
    /// Says whether what a frame behind a vmalloc area holds may be moved to another frame.
    pub(crate) fn set_movable(&self, pfn: Pfn, movable: bool) {
        self.set_list(pfn, if movable { MAY_MOVE } else { 0 });
    }

    /// Tells whether a frame is behind a vmalloc area whose pages may move, and nothing else shows it.
    pub(crate) fn may_move(&self, pfn: Pfn) -> bool {
        self.kind(pfn) == FrameKind::Vmalloc && self.list(pfn) == MAY_MOVE && self.mappings(pfn) == 0
    }

    /// How many mappings show a frame; 0 beyond the table.
    pub(crate) fn mappings(&self, pfn: Pfn) -> u32 {
        self.pages.get(pfn.index()).map_or(0, |page| page.mappings.load(Relaxed))
    }

    /// Mappings that all frames count; those of vmalloc's own frames are pins.
    pub(crate) fn all_mappings(&self) -> u64 {
        let all = self.pages.iter().zip(self.kinds.iter());
        let shown = all.filter(|(_, kind)| kind.load(Relaxed) != FrameKind::Vmalloc.to_byte());
        shown.map(|(page, _)| u64::from(page.mappings.load(Relaxed))).sum()
    }

    /// Counts one more mapping of a frame.
    pub(crate) fn add_mapping(&self, pfn: Pfn) {
        if let Some(page) = self.pages.get(pfn.index()) {
            page.mappings.fetch_add(1, Relaxed);
        }
    }

    /// Counts one mapping less; returns how many are left.
    pub(crate) fn remove_mapping(&self, pfn: Pfn) -> u32 {
        self.pages.get(pfn.index()).map_or(0, |page| page.mappings.fetch_sub(1, Relaxed).saturating_sub(1))
    }
}
