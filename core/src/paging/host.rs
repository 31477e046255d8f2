//! Telling a machine whose processors do not read the tables what they say: a host's mappings stand for the entries.
//!
//! Mapped pages are told as runs of neighbouring frames, read back from the tables after all of a range is in them: a run
//! does not end where a table does, and the host works while no lock is held here. The range is its caller's alone, so
//! nobody changes it in between. Where processors do read the tables, all of this compiles to nothing.

use super::{MapError, PageTables, VpnRange};
use crate::addr::{PageCount, Pfn, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::platform::Platform;

/// Pages that show neighbouring frames.
#[derive(Clone, Copy)]
struct Run {
    start: Vpn,
    first: Pfn,
    pages: u64,
}

impl Run {
    /// Adds a page, if it goes on where the run ends.
    fn extend(&mut self, page: Vpn, frame: Pfn) -> bool {
        let follows = page.as_u64() == self.start.as_u64() + self.pages;
        let goes_on = follows && self.first.checked_add(self.pages) == Some(frame);
        self.pages += u64::from(goes_on);
        goes_on
    }

    fn tell<P: Platform>(self, platform: &P) -> bool {
        platform.map_pages(self.start, self.first, self.pages)
    }
}

impl PageTables {
    /// Tells the platform what the entries of a range say that has just been mapped, if it wants to know.
    ///
    /// # Errors
    ///
    /// [`AllocError::HostRefused`], with all of the range to be taken back: the entries are there.
    #[inline(always)]
    pub(super) fn tell_mapped<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange) -> Result<(), MapError> {
        if P::WALKS_TABLES || self.tell_runs(pages, range) {
            return Ok(());
        }
        let error = AllocError::HostRefused { pages: PageCount::new(range.pages()) };
        Err(MapError { error, mapped: range.pages() })
    }

    fn tell_runs<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange) -> bool {
        let platform = &pages.base.platform;
        let mut open: Option<Run> = None;
        for piece in range.by_table() {
            // The frames of a piece are noted first: the platform is called without the lock.
            let mut frames = [None; super::ENTRIES as usize];
            self.visit(pages, piece, |page, entry| {
                let slot = frames.get_mut((page.as_u64() - piece.start().as_u64()) as usize);
                if let (Some(slot), true) = (slot, entry.is_present()) {
                    *slot = entry.frame();
                }
            });
            for (page, frame) in piece.iter().zip(frames) {
                let Some(frame) = frame else { continue };
                if open.as_mut().is_some_and(|run| run.extend(page, frame)) {
                    continue;
                }
                let ended = open.replace(Run { start: page, first: frame, pages: 1 });
                if ended.is_some_and(|run| !run.tell(platform)) {
                    return false;
                }
            }
        }
        open.is_none_or(|run| run.tell(platform))
    }
}

/// Tells the platform that the entries of a range were emptied, if it wants to know.
#[inline(always)]
pub(super) fn tell_unmapped<P: Platform>(base: &Base<P>, range: VpnRange) {
    if !P::WALKS_TABLES {
        base.platform.unmap_pages(range.start(), range.pages());
    }
}
