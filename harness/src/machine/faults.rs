//! Which question about which fault point is answered with "fail".

use kmem::{FailPageAlloc, FailSlab, FaultPoint, FaultSite};
use std::cell::{Cell, RefCell};

/// Set in `armed` while a filter is in use.
const FILTERED: u32 = 1 << 31;
/// Set in `armed` while every question is noted.
const RECORDED: u32 = 1 << 30;
const POINTS: usize = FaultPoint::ALL.len();

/// A plan of failures to inject; empty at first.
///
/// ```text
/// F1  bit p of armed is set  <=>  pending holds an entry of point p
/// F2  each pending entry of point p has at >= asked[p]
/// ```
#[derive(Default)]
pub struct FaultPlan {
    armed: Cell<u32>,
    /// Questions heard per point while it was armed.
    asked: [Cell<u64>; POINTS],
    /// Point and number of the question that fails.
    pending: RefCell<Vec<(FaultPoint, u64)>>,
    struck: Cell<u64>,
    pages: Cell<FailPageAlloc>,
    slabs: Cell<FailSlab>,
    /// The questions heard since the last look, while they are noted.
    record: RefCell<Vec<FaultSite>>,
}

impl FaultPlan {
    /// Makes the `nth` question from now on (0: the next) about this point fail, once.
    pub fn arm(&self, point: FaultPoint, nth: u32) {
        let at = self.asked[point as usize].get() + u64::from(nth);
        self.pending.borrow_mut().push((point, at));
        self.armed.set(self.armed.get() | bit(point));
    }

    /// Answers a question of the subject.
    #[inline(always)]
    pub fn ask(&self, site: FaultSite) -> bool {
        self.armed.get() != 0 && self.ask_any(&site)
    }

    /// Plans failures by Linux's `fail_page_alloc`, in place of what was planned so before.
    pub fn filter_pages(&self, filter: FailPageAlloc) {
        self.pages.set(filter);
        self.armed.set(self.armed.get() | FILTERED);
    }

    /// Plans failures by Linux's `failslab`, in place of what was planned so before.
    pub fn filter_slabs(&self, filter: FailSlab) {
        self.slabs.set(filter);
        self.armed.set(self.armed.get() | FILTERED);
    }

    #[cold]
    #[inline(never)]
    fn ask_any(&self, site: &FaultSite) -> bool {
        let armed = self.armed.get();
        if armed & RECORDED != 0 {
            self.record.borrow_mut().push(*site);
        }
        let planned = armed & bit(site.point) != 0 && self.ask_armed(site.point);
        planned || (armed & FILTERED != 0 && self.ask_filters(site))
    }

    /// Asks both filters; what they leave to chance always happens, so that a trace means one thing.
    fn ask_filters(&self, site: &FaultSite) -> bool {
        let (mut pages, mut slabs) = (self.pages.get(), self.slabs.get());
        let strikes = pages.strikes(site, || 0) || slabs.strikes(site, || 0);
        self.pages.set(pages);
        self.slabs.set(slabs);
        if strikes {
            self.struck.set(self.struck.get() + 1);
        }
        strikes
    }

    #[cold]
    #[inline(never)]
    fn ask_armed(&self, point: FaultPoint) -> bool {
        let now = self.asked[point as usize].replace(self.asked[point as usize].get() + 1);
        let mut pending = self.pending.borrow_mut();
        let before = pending.len();
        pending.retain(|&(p, at)| p != point || at != now);
        let strikes = pending.len() < before;
        if strikes {
            self.struck.set(self.struck.get() + 1);
        }
        if !pending.iter().any(|&(p, _)| p == point) {
            self.armed.set(self.armed.get() & !bit(point));
        }
        strikes
    }

    /// Notes every question from now on.
    pub fn record(&self) {
        self.record.borrow_mut().clear();
        self.armed.set(self.armed.get() | RECORDED);
    }

    /// Moves the questions noted since the last time to the end of a list.
    pub fn take_record(&self, into: &mut Vec<FaultSite>) {
        into.append(&mut self.record.borrow_mut());
    }

    /// How many questions were answered with "fail".
    pub fn struck(&self) -> u64 {
        self.struck.get()
    }

    /// Forgets the failures that have not struck yet.
    pub fn disarm(&self) {
        self.armed.set(self.armed.get() & RECORDED);
        self.pages.take();
        self.slabs.take();
        self.pending.borrow_mut().clear();
    }

    /// Starts over.
    pub fn reset(&self) {
        self.disarm();
        self.armed.set(0);
        self.record.borrow_mut().clear();
        self.asked.iter().for_each(|n| n.set(0));
        self.struck.set(0);
    }
}

const fn bit(point: FaultPoint) -> u32 {
    1 << point as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::GfpFlags;

    fn site(point: FaultPoint) -> FaultSite {
        FaultSite::new(point, GfpFlags::KERNEL)
    }

    #[test]
    fn exactly_the_nth_question_fails_and_only_once() {
        let plan = FaultPlan::default();
        plan.arm(FaultPoint::Page, 2);
        plan.arm(FaultPoint::Page, 4);
        let answers: Vec<bool> = (0..8).map(|_| plan.ask(site(FaultPoint::Page))).collect();
        assert_eq!(answers, [false, false, true, false, true, false, false, false]);
        assert_eq!(plan.struck(), 2);
        assert!(!plan.ask(site(FaultPoint::Slab)));
    }

    #[test]
    fn a_plan_made_later_counts_from_then_on() {
        let plan = FaultPlan::default();
        assert!(!plan.ask(site(FaultPoint::Slab)));
        plan.arm(FaultPoint::Slab, 0);
        assert!(plan.ask(site(FaultPoint::Slab)));
        plan.arm(FaultPoint::Slab, 1);
        assert!(!plan.ask(site(FaultPoint::Slab)));
        plan.disarm();
        assert!(!plan.ask(site(FaultPoint::Slab)));
    }
}
