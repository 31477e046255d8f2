//! What is going on right now, for the progress line, and when to stop.

use crate::generate::Target;
use crate::trace::Trace;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When an engine has done enough: at a time, or after so many executions, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    time: Duration,
    cases: u64,
    start: Instant,
}

impl Budget {
    /// A budget of time that starts now.
    pub fn time(time: Duration) -> Self {
        Self { time, cases: u64::MAX, start: Instant::now() }
    }

    /// A budget of executions.
    pub fn cases(cases: u64) -> Self {
        Self { time: Duration::MAX, cases, start: Instant::now() }
    }

    /// Tells whether `executions` exhausted it, or the clock did.
    pub fn is_spent(&self, executions: u64) -> bool {
        executions >= self.cases || self.start.elapsed() >= self.time
    }

    /// How much time is left.
    pub fn left(&self) -> Duration {
        self.time.saturating_sub(self.start.elapsed())
    }

    /// The limit of executions, if there is one.
    pub fn case_limit(&self) -> Option<u64> {
        (self.cases < u64::MAX).then_some(self.cases)
    }
}

/// Counters that all engines add to while they run.
#[derive(Default)]
pub struct Live {
    executions: AtomicU64,
    ops: AtomicU64,
    violations: AtomicU64,
    edges: [AtomicU64; Target::ALL.len()],
    stop: AtomicBool,
    journal: OnceLock<Journal>,
}

/// A folder in which each thread keeps the trace that it executes, so that somebody else can see which one it was if the
/// process dies.
struct Journal(PathBuf);

impl Journal {
    /// A file of this thread.
    fn file(&self) -> PathBuf {
        self.0.join(format!("{:?}.bin", std::thread::current().id()))
    }
}

impl Live {
    /// Counts `executions` traces of `ops` operations in total.
    pub fn add(&self, executions: u64, ops: u64) {
        self.executions.fetch_add(executions, Ordering::Relaxed);
        self.ops.fetch_add(ops, Ordering::Relaxed);
    }

    /// Keeps a journal in a folder from now on, which is there.
    pub fn keep_journal(&self, folder: PathBuf) {
        // The first folder stays.
        let _ = self.journal.set(Journal(folder));
    }

    /// Notes that this thread begins to execute a trace.
    pub(super) fn begin(&self, trace: &Trace) {
        if let Some(journal) = self.journal.get() {
            // Without the file a crash is still seen, but not what led to it.
            let _ = std::fs::write(journal.file(), trace.to_bytes());
        }
    }

    /// Notes that this thread executes nothing more.
    pub(super) fn end(&self) {
        if let Some(journal) = self.journal.get() {
            let _ = std::fs::remove_file(journal.file());
        }
    }

    /// Counts a violation.
    pub fn add_violation(&self) {
        self.violations.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that coverage of a target has reached `edges`.
    pub fn set_edges(&self, target: Target, edges: u64) {
        self.edges[target as usize].fetch_max(edges, Ordering::Relaxed);
    }

    /// Executions so far.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// Operations so far.
    pub fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }

    /// Violations so far.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// The best coverage that any target has reached, in edges.
    pub fn edges(&self) -> u64 {
        self.edges.iter().map(|e| e.load(Ordering::Relaxed)).max().unwrap_or(0)
    }

    /// Asks all engines to end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Tells whether they should.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_of_cases_ends_after_them() {
        let budget = Budget::cases(100);
        assert!(!budget.is_spent(99));
        assert!(budget.is_spent(100));
        assert_eq!(budget.case_limit(), Some(100));
    }

    #[test]
    fn a_budget_of_no_time_is_spent_at_once() {
        let budget = Budget::time(Duration::ZERO);
        assert!(budget.is_spent(0));
        assert_eq!(budget.left(), Duration::ZERO);
        assert_eq!(budget.case_limit(), None);
    }
}
