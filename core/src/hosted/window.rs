//! The host's mappings as an MMU: which frame each page of the window shows, and what is yet to be hidden.
//!
//! ```text
//! W1  shown[p] == f + 1  <=>  the host maps page p of the window to frame f;   shown[p] == 0  <=>  page p faults
//! W2  mappings == 1 + number of pages p with a seam between p and p + 1        (what the host counts for the window)
//! W3  mappings <= limit
//! W4  a page that was unmapped and is still shown is in `pending`
//! W5  a page in `pending` that is shown was unmapped
//! ```
//!
//! There is no seam between two pages that both fault, nor between two that show neighbouring frames: the host merges them.
//!
//! Calls of the host are what costs, so runs are mapped as one, and what is unmapped waits in `pending` for the flush, where
//! ranges that touch are hidden together. Frames that are shown elsewhere already, as those of an area that grows, bring
//! their translations along: no page faults a second time.

use super::sys::{self, Words};
use crate::PAGE_SHIFT;
use crate::addr::{Pfn, Vpn};
use crate::sync::{
    Ordering::{Acquire, Relaxed},
    SpinLock,
};

/// Pages between two ranges that are hidden together, if nothing is shown there: guards.
const GAP: u64 = 8;

/// What the window has had the host do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct HostCounts {
    /// Mappings that the window consists of now.
    pub mappings: usize,
    /// The most that it may consist of: half of what the host allows a process.
    pub limit: usize,
    /// Calls that showed a run of frames.
    pub shows: u64,
    /// Pages in them.
    pub shown_pages: u64,
    /// Pages that brought their translations along from other addresses.
    pub moved_pages: u64,
    /// Calls that had a range fault again.
    pub hides: u64,
    /// Runs that were refused because of the limit.
    pub refused: u64,
    /// Bytes in areas that were freed and keep their mapping for the next request; for [`KmemAlloc`](super::KmemAlloc) only.
    pub kept_bytes: usize,
    /// Requests that were given such an area.
    pub reused: u64,
}

/// The part of the address space where areas are.
pub(super) struct Window {
    /// Where frame 0 is mapped, in bytes.
    direct: usize,
    /// Its first page, as a page number of the address space.
    first: u64,
    pages: u64,
    /// For each page, the frame that it shows plus one.
    shown: Words,
    /// For each frame, the page where it was shown last plus one: a hint.
    last_at: Words,
    state: SpinLock<State>,
}

struct State {
    /// Pages of the window that are to be hidden: from the first up to, but without, the second.
    pending: (u64, u64),
    /// One more than the highest page that was ever shown.
    highest: u64,
    counts: HostCounts,
}

const NOTHING: (u64, u64) = (0, 0);

impl Window {
    /// A window of which nothing is shown; `direct` and `start` are addresses of reserved regions. `None` if the host has no
    /// memory for the books.
    pub(super) fn new(direct: usize, frames: u64, start: usize, pages: u64) -> Option<Self> {
        let counts = HostCounts { mappings: 1, limit: (sys::most_mappings() / 2).max(2), ..HostCounts::default() };
        Some(Self {
            direct,
            first: (start >> PAGE_SHIFT) as u64,
            pages,
            shown: Words::new(usize::try_from(pages).ok()?)?,
            last_at: Words::new(usize::try_from(frames).ok()?)?,
            state: SpinLock::new(State { pending: NOTHING, highest: 0, counts }),
        })
    }

    /// What was done so far.
    pub(super) fn counts(&self) -> HostCounts {
        self.state.lock().counts
    }

    /// Sets the most mappings that the window may consist of.
    pub(super) fn set_limit(&self, limit: usize) {
        self.state.lock().counts.limit = limit;
    }

    /// Shows neighbouring frames at neighbouring pages; `false` if the limit or the host forbids it, with nothing shown.
    pub(super) fn map(&self, start: Vpn, first: Pfn, pages: u64) -> bool {
        let Some(at) = self.page(start).filter(|at| at + pages <= self.pages) else { return false };
        let mut state = self.state.lock();
        // Ranges that wait are joined over what lies between them and is nobody's: until somebody has it, who must not lose it
        // by their flush (W5).
        if at < state.pending.1 && state.pending.0 < at + pages {
            self.hide_pending(&mut state);
        }
        let before = self.seams(at, pages);
        self.note(at, pages, |offset| first.as_u32().wrapping_add(offset as u32).wrapping_add(1));
        let mappings = state.counts.mappings + self.seams(at, pages) - before;
        let (allowed, done) = match mappings <= state.counts.limit {
            true => (true, self.show(&mut state.counts, at, first, pages)),
            false => (false, false),
        };
        state.counts.refused += u64::from(!allowed);
        if !done {
            self.note(at, pages, |_| 0);
            // The call is over what may have been shown in part.
            let hidden = !allowed || sys::hide(self.addr(at), bytes(pages));
            debug_assert!(hidden, "what was just mapped cannot be unmapped");
            return false;
        }
        state.counts.mappings = mappings;
        state.highest = state.highest.max(at + pages);
        for offset in 0..pages {
            self.last_at(first, offset).into_iter().for_each(|word| word.store((at + offset + 1) as u32, Relaxed));
        }
        true
    }

    /// Has the host show a run: those frames that are shown elsewhere in the same order come with their translations.
    fn show(&self, counts: &mut HostCounts, at: u64, first: Pfn, pages: u64) -> bool {
        let mut done = 0;
        while done < pages {
            let (to, frame) = (self.addr(at + done), u64::from(first.as_u32()) + done);
            let (from, together) = self.shown_elsewhere(frame, pages - done);
            counts.shows += 1;
            if together > 0 && sys::show_moved(self.addr(from), to, bytes(together)) {
                counts.moved_pages += together;
                counts.shown_pages += together;
                done += together;
            } else if sys::show(self.direct + bytes(frame), to, bytes(pages - done)) {
                counts.shown_pages += pages - done;
                done = pages;
            } else {
                return false;
            }
        }
        true
    }

    /// Where the frames from `frame` on were shown last, and how many of them are shown there one after the other.
    fn shown_elsewhere(&self, frame: u64, most: u64) -> (u64, u64) {
        let hint = self.last_at.get(frame as usize).map_or(0, |word| word.load(Relaxed));
        let Some(from) = u64::from(hint).checked_sub(1) else { return (0, 0) };
        let same = |offset: &u64| self.shown(from + offset) == frame as u32 + *offset as u32 + 1;
        (from, (0..most).take_while(same).count() as u64)
    }

    /// Has a range hidden by the next flush.
    pub(super) fn unmap(&self, start: Vpn, pages: u64) {
        let Some(at) = self.page(start) else { return };
        let range = (at, (at + pages).min(self.pages));
        let mut state = self.state.lock();
        match self.joined(state.pending, range) {
            Some(both) => state.pending = both,
            None => {
                self.hide_pending(&mut state);
                state.pending = range;
            }
        }
    }

    /// One range that covers both, if nothing lies between them that is shown.
    fn joined(&self, a: (u64, u64), b: (u64, u64)) -> Option<(u64, u64)> {
        if a == NOTHING {
            return Some(b);
        }
        let (low, high) = if a.0 <= b.0 { (a, b) } else { (b, a) };
        let gap = low.1..high.0;
        let near = high.0 <= low.1 + GAP && gap.into_iter().all(|page| self.shown(page) == 0);
        near.then_some((low.0, low.1.max(high.1)))
    }

    /// Hides all that waits.
    pub(super) fn flush(&self) {
        self.hide_pending(&mut self.state.lock());
    }

    /// What the host would not hide stays shown, and is counted so: it refuses only a process that has too many mappings, and
    /// the next run that is mapped there replaces it.
    fn hide_pending(&self, state: &mut State) {
        let (from, to) = core::mem::replace(&mut state.pending, NOTHING);
        let is_shown = (from..to).any(|page| self.shown(page) != 0);
        if !is_shown || !sys::hide(self.addr(from), bytes(to - from)) {
            return;
        }
        let before = self.seams(from, to - from);
        self.note(from, to - from, |_| 0);
        state.counts.mappings = state.counts.mappings + self.seams(from, to - from) - before;
        state.counts.hides += 1;
    }

    /// Maps all of the window anew: in a fork's child the memory behind it is another one. `false` if the host would not.
    pub(super) fn show_again(&self) -> bool {
        let mut state = self.state.lock();
        if !sys::hide(self.addr(0), bytes(self.pages)) {
            return false;
        }
        let mut at = 0;
        while at < state.highest {
            let Some(frame) = self.shown(at).checked_sub(1) else {
                at += 1;
                continue;
            };
            let pages = 1 + (at + 1..state.highest).take_while(|&page| !self.has_seam(page - 1)).count() as u64;
            if !sys::show(self.direct + bytes(u64::from(frame)), self.addr(at), bytes(pages)) {
                return false;
            }
            state.counts.shows += 1;
            at += pages;
        }
        true
    }

    /// Seams at both ends of a range and inside.
    fn seams(&self, at: u64, pages: u64) -> usize {
        (at.saturating_sub(1)..at + pages).filter(|&page| self.has_seam(page)).count()
    }

    /// Whether the host needs one mapping for a page and another for the next. A seam would be at the end of the window too,
    /// if what is behind it were ever shown.
    fn has_seam(&self, page: u64) -> bool {
        let (left, right) = (self.shown(page), self.shown(page + 1));
        let inside = page + 1 < self.pages;
        inside && !(left == 0 && right == 0 || left != 0 && right == left.wrapping_add(1))
    }

    /// The frame that a page shows, plus one.
    fn shown(&self, page: u64) -> u32 {
        self.shown.get(page as usize).map_or(0, |word| word.load(Acquire))
    }

    fn note(&self, at: u64, pages: u64, frame: impl Fn(u64) -> u32) {
        let words = self.shown.get(at as usize..(at + pages) as usize).unwrap_or_default();
        (0..).zip(words).for_each(|(offset, word)| word.store(frame(offset), Relaxed));
    }

    fn last_at(&self, first: Pfn, offset: u64) -> Option<&crate::sync::AtomicU32> {
        self.last_at.get(first.index() + offset as usize)
    }

    fn page(&self, page: Vpn) -> Option<u64> {
        page.as_u64().checked_sub(self.first).filter(|&at| at < self.pages)
    }

    fn addr(&self, page: u64) -> usize {
        ((self.first + page) as usize) << PAGE_SHIFT
    }

    /// Recounts the seams of what was ever shown: W2.
    #[cfg(test)]
    pub(super) fn recount(&self) -> usize {
        let highest = self.state.lock().highest;
        1 + (0..highest).filter(|&page| self.has_seam(page)).count()
    }
}

const fn bytes(pages: u64) -> usize {
    (pages as usize) << PAGE_SHIFT
}
