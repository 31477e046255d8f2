//! Makes a failing trace small: fewer operations, then simpler numbers, then a simpler machine.
//!
//! Every operation names its block by a pick, so any subset of a trace is a trace and delta debugging applies. Four
//! things that plain delta debugging misses are added: all operations of one kind go at once, an allocation and its free go
//! *together*, picks are renumbered when an allocation or a free before them goes, and numbers go to the nearest boundary
//! that still fails, so that the size in the report is the size that matters. The rounds repeat until nothing more goes. The order of attempts is fixed: the
//! same trace and the same answers give the same result.

mod machine;
mod remove;
mod simplify;

use crate::trace::Trace;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What was left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shrunk {
    /// The smallest failing trace found.
    pub trace: Trace,
    /// How many candidates were executed.
    pub executions: usize,
}

/// Makes a failing trace small with at most `budget` executions of `still_fails`.
///
/// `still_fails` must say yes only for the failure that is being looked for (the same oracle); a caller with a deadline
/// says no once it has passed. A trace that does not fail itself comes back as it is, unless a part of it fails.
pub fn shrink(trace: Trace, budget: usize, still_fails: impl FnMut(&Trace) -> bool) -> Shrunk {
    let mut search = Search::new(trace, budget, still_fails);
    machine::default_machine(&mut search);
    remove::shortest_prefix(&mut search);
    // What follows takes many executions: a small machine makes each of them cheap.
    machine::geometry(&mut search);
    loop {
        let accepted = search.accepted;
        remove::shortest_prefix(&mut search);
        remove::kinds(&mut search);
        remove::chunks(&mut search);
        remove::pairs(&mut search);
        remove::renumbered(&mut search);
        remove::shorter_bursts(&mut search);
        simplify::operations(&mut search);
        machine::faults(&mut search);
        machine::geometry(&mut search);
        if search.accepted == accepted || search.exhausted() {
            return Shrunk { trace: search.best, executions: search.executions };
        }
    }
}

/// The best trace so far and what may still be spent.
///
/// I1: `best` is the trace given, or `fails` said yes to it.
/// I2: `executions <= budget`.
/// I3: no trace is executed twice.
struct Search<F> {
    best: Trace,
    fails: F,
    executions: usize,
    budget: usize,
    accepted: usize,
    tried: HashSet<u64>,
}

impl<F: FnMut(&Trace) -> bool> Search<F> {
    fn new(best: Trace, budget: usize, fails: F) -> Self {
        let tried = HashSet::from([digest(&best)]);
        Self { best, fails, executions: 0, budget, accepted: 0, tried }
    }

    /// Number of operations left.
    fn len(&self) -> usize {
        self.best.ops.len()
    }

    fn exhausted(&self) -> bool {
        self.executions >= self.budget
    }

    /// Changes a copy; if that still fails it is the best from now on.
    fn attempt(&mut self, change: impl FnOnce(&mut Trace)) -> bool {
        if self.exhausted() {
            return false;
        }
        let mut candidate = self.best.clone();
        change(&mut candidate);
        // What is written has to be readable again: a simpler machine has room for less.
        candidate.geometry = candidate.geometry.normalized();
        if !self.tried.insert(digest(&candidate)) {
            return false;
        }
        self.executions += 1;
        let fails = (self.fails)(&candidate);
        if fails {
            self.best = candidate;
            self.accepted += 1;
        }
        fails
    }
}

fn digest(trace: &Trace) -> u64 {
    let mut hasher = DefaultHasher::new();
    trace.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
