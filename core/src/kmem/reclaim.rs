//! Refusing is the last resort.

use super::Kmem;
use crate::buddy::{CompactPriority, CompactResult, OwnerClass};
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::platform::{Event, Platform};
use crate::warn::Warning;

/// The largest order that may be demanded without failing.
const NOFAIL_MAX_ORDER: u8 = 1;

impl<P: Platform> Kmem<P> {
    /// Gives back everything that nobody holds, and returns how many pages that freed.
    ///
    /// In this order, so that one round is enough: lazily freed vmalloc ranges are flushed and their frames, page
    /// tables and descriptors released; the sheaves of all CPUs are flushed into their slabs and empty slabs released;
    /// the per-CPU pages of all CPUs go back to the buddy and merge.
    pub fn reclaim(&self) -> u64 {
        let free = || self.pages.owned(OwnerClass::Free);
        let before = free();
        self.pages.base.event(Event::ReclaimVa);
        self.vmalloc.purge(&self.pages, &self.slab);
        self.pages.base.event(Event::ReclaimSlab);
        self.slab.reclaim(&self.pages);
        self.pages.base.event(Event::ReclaimPcp);
        self.pages.drain_all_pages();
        free().saturating_sub(before)
    }

    /// Runs one attempt and, if memory ran out and the caller may wait, one more after reclaim.
    ///
    /// An injected fault is not retried: the plan wants to see the refusal.
    #[inline(always)]
    pub(super) fn with_reclaim<T>(
        &self,
        gfp: GfpFlags,
        mut attempt: impl FnMut() -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        match attempt() {
            Err(error) if is_shortage(&error) => self.attempt_after_reclaim_slow(gfp, error, attempt),
            answer => answer,
        }
    }

    #[cold]
    #[inline(never)]
    fn attempt_after_reclaim_slow<T>(
        &self,
        gfp: GfpFlags,
        error: AllocError,
        mut attempt: impl FnMut() -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        self.warn_nofail(gfp, &error);
        if !gfp.may_block() {
            self.pages.base.event(Event::RefusedWithoutReclaim);
            self.warn_refused(gfp, &error);
            return Err(error);
        }
        self.reclaim();
        let mut answer = attempt();
        if let Err(AllocError::NoPages { order }) = answer
            && self.pages.compact(order, gfp, None, CompactPriority::SyncLight) == CompactResult::Success
        {
            answer = attempt();
        }
        if let Err(error) = &answer {
            self.pages.base.event(Event::RefusedAfterReclaim);
            self.warn_refused(gfp, error);
        }
        answer
    }

    /// Warns of a request that fails for want of memory or addresses. A fault that was injected is no surprise.
    fn warn_refused(&self, gfp: GfpFlags, error: &AllocError) {
        match *error {
            AllocError::NoPages { order } => self.pages.base.warn(gfp, Warning::AllocFailed { order, gfp }),
            AllocError::NoVirtualSpace { pages } => {
                let bytes = pages.bytes().unwrap_or(usize::MAX);
                self.pages.base.warn(gfp, Warning::VmallocFailed { bytes });
            }
            _ => {}
        }
    }

    /// Warns of a request that must not fail though it is of a kind that can.
    fn warn_nofail(&self, gfp: GfpFlags, error: &AllocError) {
        if !gfp.contains(GfpFlags::NOFAIL) {
            return;
        }
        if let AllocError::NoPages { order } = *error
            && order.get() > NOFAIL_MAX_ORDER
        {
            self.pages.base.warn(gfp, Warning::NofailOrder { order });
        }
        if !gfp.may_block() {
            self.pages.base.warn(gfp, Warning::NofailCannotWait);
        }
    }
}

/// Tells whether giving memory back could turn the refusal into an answer.
fn is_shortage(error: &AllocError) -> bool {
    matches!(error, AllocError::NoPages { .. } | AllocError::NoVirtualSpace { .. })
}
