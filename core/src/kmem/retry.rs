//! The retry policy: what is tried before a request is refused, and why it is refused then.

use super::Kmem;
use crate::buddy::{CompactPriority, CompactResult, Release};
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::{Order, PAGE_ALLOC_COSTLY_ORDER};
use crate::platform::{Event, Platform, Shortage};
use crate::warn::Warning;

/// The largest order that may be demanded without failing.
const NOFAIL_MAX_ORDER: u8 = 1;

/// After so many rounds even a platform that gives something back each time is not asked again. Source:
/// `MAX_RECLAIM_RETRIES`, `mm/internal.h`.
const MAX_ROUNDS: u32 = 16;
/// How often compaction alone is worth another round; a quarter of that for costly orders. Source: `MAX_COMPACT_RETRIES`.
const MAX_COMPACT_RETRIES: u32 = 16;

/// Why the allocator stopped trying.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GaveUp {
    /// The caller may not wait.
    MayNotWait,
    /// `NOFAIL` without leave to wait: nobody could keep that promise.
    NofailMayNotWait,
    /// `NORETRY` of a costly order, and compaction has no prospect.
    NoProspect,
    /// `NORETRY`: one round was made.
    NoRetry,
    /// A costly order is worth one round, unless the caller says `RETRY_MAYFAIL`.
    Costly,
    /// Nobody has anything to give back.
    NoProgress,
    /// There was progress, and still no block after so many rounds.
    TooManyRounds,
    /// `NOFAIL`, and the platform says that it has nothing left to give.
    NofailUnanswered,
}

impl GaveUp {
    const fn event(self) -> Event {
        match self {
            Self::MayNotWait => Event::RefusedWithoutReclaim,
            Self::NofailMayNotWait => Event::NofailMayNotWait,
            Self::NoProspect => Event::GaveUpNoProspect,
            Self::NoRetry => Event::GaveUpNoRetry,
            Self::Costly => Event::GaveUpCostly,
            Self::NoProgress => Event::GaveUpNoProgress,
            Self::TooManyRounds => Event::GaveUpTooManyRounds,
            Self::NofailUnanswered => Event::NofailUnanswered,
        }
    }
}

/// What one request has tried so far.
struct Effort {
    order: Order,
    gfp: GfpFlags,
    node: Option<NodeId>,
    rounds: u32,
    compactions: u32,
    priority: CompactPriority,
    compacted: CompactResult,
    /// Pages that the platform gave back in the last round.
    given: u64,
}

impl Effort {
    fn new(error: &AllocError, gfp: GfpFlags, node: Option<NodeId>) -> Self {
        let order = if let AllocError::NoPages { order } = *error { order } else { Order::ZERO };
        let (priority, compacted) = (CompactPriority::SyncLight, CompactResult::Skipped);
        Self { order, gfp, node, rounds: 0, compactions: 0, priority, compacted, given: 0 }
    }

    fn is_costly(&self) -> bool {
        self.order.get() > PAGE_ALLOC_COSTLY_ORDER
    }

    fn has(&self, flag: GfpFlags) -> bool {
        self.gfp.contains(flag)
    }

    /// Large blocks, and such as cannot be moved together later, are rather made of what is free than reclaimed for.
    fn compacts_first(&self) -> bool {
        self.is_costly() || (self.order > Order::ZERO && !self.has(GfpFlags::MOVABLE))
    }

    /// Decides after a round that has not led to a block whether there is another: `None`, or why not.
    fn why_stop(&mut self) -> Option<GaveUp> {
        if self.has(GfpFlags::NOFAIL) {
            return (self.given == 0).then_some(GaveUp::NofailUnanswered);
        }
        if self.has(GfpFlags::NORETRY) {
            return Some(GaveUp::NoRetry);
        }
        if self.is_costly() && !self.has(GfpFlags::RETRY_MAYFAIL) {
            return Some(GaveUp::Costly);
        }
        if self.rounds >= MAX_ROUNDS {
            return Some(GaveUp::TooManyRounds);
        }
        if self.given > 0 || self.compaction_may_help() {
            return None;
        }
        Some(GaveUp::NoProgress)
    }

    /// Compaction that came to nothing is tried once more without regard to hints, to earlier failures, and to what the
    /// fragmentation index forecasts for costly orders: a refusal without that would not be the last resort.
    fn compaction_may_help(&mut self) -> bool {
        let most = if self.is_costly() { MAX_COMPACT_RETRIES / 4 } else { MAX_COMPACT_RETRIES };
        let had_prospect = match self.compacted {
            // The block that it made was taken, or the watermark forbids it.
            CompactResult::Success => return self.compactions <= most,
            // Too little is free, whoever asks; or the forecast was bad.
            CompactResult::Skipped => self.is_costly(),
            CompactResult::Deferred | CompactResult::Complete | CompactResult::PartialSkipped => true,
        };
        let harder = had_prospect && self.priority > CompactPriority::SyncFull;
        if harder {
            self.priority = CompactPriority::SyncFull;
        }
        harder
    }
}

impl<P: Platform> Kmem<P> {
    /// Runs an attempt and, if memory ran out, whatever the flags allow to have another one succeed.
    ///
    /// An injected fault is not retried: the plan wants to see the refusal.
    #[inline(always)]
    pub(super) fn with_reclaim<T>(
        &self,
        gfp: GfpFlags,
        attempt: impl FnMut(GfpFlags) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        self.with_reclaim_on(gfp, None, attempt)
    }

    /// The same for a request that names a node.
    #[inline(always)]
    pub(super) fn with_reclaim_on<T>(
        &self,
        gfp: GfpFlags,
        node: Option<NodeId>,
        mut attempt: impl FnMut(GfpFlags) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        match attempt(gfp) {
            Err(error) if is_shortage(&error) => self.retry_slow(gfp, node, error, attempt),
            answer => answer,
        }
    }

    #[cold]
    #[inline(never)]
    fn retry_slow<T>(
        &self,
        gfp: GfpFlags,
        node: Option<NodeId>,
        mut error: AllocError,
        mut attempt: impl FnMut(GfpFlags) -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        while matches!(error, AllocError::NoPages { .. }) && self.pages.grow() {
            match attempt(gfp) {
                Err(again) if is_shortage(&again) => error = again,
                answer => return answer,
            }
        }
        self.warn_nofail(gfp, &error);
        let mut effort = Effort::new(&error, gfp, node);
        // Remembers the refusal if it is one for want of memory; anything else ends the effort.
        let mut answer = None;
        let mut served = |gfp: GfpFlags| match attempt(gfp) {
            Err(again) if is_shortage(&again) => {
                error = again;
                false
            }
            other => {
                answer = Some(other);
                true
            }
        };
        let gave_up = self.try_harder(&mut effort, &mut served);
        match (answer, gave_up) {
            (Some(answer), _) => answer,
            (None, why) => {
                if let Some(why) = why {
                    self.pages.base.event(why.event());
                }
                self.warn_refused(gfp, &error);
                Err(error)
            }
        }
    }

    /// The policy: what is tried, in which order, until an attempt is `served`; else why it ended.
    fn try_harder(&self, effort: &mut Effort, served: &mut dyn FnMut(GfpFlags) -> bool) -> Option<GaveUp> {
        let gfp = effort.gfp;
        if !gfp.may_block() {
            return Some(if effort.has(GfpFlags::NOFAIL) { GaveUp::NofailMayNotWait } else { GaveUp::MayNotWait });
        }
        if effort.compacts_first() {
            let result = self.compact_for(effort, CompactPriority::Async);
            if result == CompactResult::Success && served(gfp) {
                return None;
            }
            let in_vain = matches!(result, CompactResult::Skipped | CompactResult::Deferred);
            if in_vain && effort.is_costly() && effort.has(GfpFlags::NORETRY) && !effort.has(GfpFlags::NOFAIL) {
                return Some(GaveUp::NoProspect);
            }
        }
        self.pages.without_boosts(|| self.try_rounds(effort, served))
    }

    /// Rounds of reclaim and compaction, as many as the flags allow.
    fn try_rounds(&self, effort: &mut Effort, served: &mut dyn FnMut(GfpFlags) -> bool) -> Option<GaveUp> {
        let gfp = effort.gfp;
        loop {
            effort.rounds += 1;
            self.reclaim();
            effort.given = self.ask_platform(effort);
            if served(gfp) {
                return None;
            }
            let released = self.pages.unreserve_highatomic(effort.order, gfp, effort.node, Release::Polite);
            if released && self.once_more(gfp, served) {
                return None;
            }
            effort.compacted = self.compact_for(effort, effort.priority);
            effort.compactions += 1;
            if effort.compacted == CompactResult::Success && self.once_more(gfp, served) {
                return None;
            }
            let Some(why) = effort.why_stop() else { continue };
            return if self.last_chance(effort, why, served) { None } else { Some(why) };
        }
    }

    /// Another attempt after one that came to nothing: what that one had got already may sit on the lists of another type.
    fn once_more(&self, gfp: GfpFlags, served: &mut dyn FnMut(GfpFlags) -> bool) -> bool {
        self.reclaim();
        served(gfp)
    }

    /// What is left before a refusal: the HIGHATOMIC reserve for whoever may insist, the reserve below the min watermark
    /// for those who must not fail.
    fn last_chance(&self, effort: &Effort, why: GaveUp, served: &mut dyn FnMut(GfpFlags) -> bool) -> bool {
        let insists = !matches!(why, GaveUp::NoRetry | GaveUp::Costly);
        while insists && self.pages.unreserve_highatomic(effort.order, effort.gfp, effort.node, Release::Last) {
            if self.once_more(effort.gfp, served) {
                return true;
            }
        }
        if !effort.has(GfpFlags::NOFAIL) {
            return false;
        }
        self.pages.base.event(Event::NofailReserve);
        self.once_more(effort.gfp | GfpFlags::HIGH, served)
    }

    /// Warns of a request that fails for want of memory or addresses. A fault that was injected is no surprise.
    fn warn_refused(&self, gfp: GfpFlags, error: &AllocError) {
        match *error {
            AllocError::NoPages { order } => self.pages.base.warn(gfp, Warning::AllocFailed { order, gfp }),
            AllocError::NoVirtualSpace { pages } | AllocError::HostRefused { pages } => {
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

    fn compact_for(&self, effort: &Effort, priority: CompactPriority) -> CompactResult {
        self.pages.compact(effort.order, effort.gfp, effort.node, priority, &self.mover())
    }

    /// Asks the platform to give memory back; returns how many pages it says it has.
    fn ask_platform(&self, effort: &Effort) -> u64 {
        let shortage = Shortage { order: effort.order, gfp: effort.gfp, round: effort.rounds };
        let given = self.pages.base.platform.reclaim(&shortage);
        if given > 0 {
            self.pages.base.event(Event::ReclaimPlatform);
            // What it freed may still be in per-CPU lists and sheaves.
            self.reclaim();
        }
        given
    }
}

/// Tells whether giving memory back could turn the refusal into an answer.
fn is_shortage(error: &AllocError) -> bool {
    matches!(error, AllocError::NoPages { .. } | AllocError::NoVirtualSpace { .. } | AllocError::HostRefused { .. })
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
