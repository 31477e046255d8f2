//! Runs jobs of engines on a few threads.

use super::ui::Ui;
use crate::engines::{Budget, Engine, Finding, Job, MAX_OPS, Outcome};
use crate::generate::Target;
use crate::report::closing::EngineRow;
use crate::run::Coverage;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use std::sync::Mutex;
use std::time::Duration;

/// How much a job may do; its clock starts when it does.
#[derive(Clone, Copy)]
pub(super) enum Limit {
    Time(Duration),
    Cases(u64),
}

/// A job that waits for a thread.
pub(super) struct Planned<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) subject: SubjectKind,
    pub(super) target: Target,
    pub(super) limit: Limit,
}

/// What a job came to.
pub(super) struct Done {
    pub(super) row: EngineRow,
    pub(super) target: Target,
    pub(super) coverage: Coverage,
    pub(super) finding: Option<Finding>,
}

/// Each engine on each target of the subject, all with the same limit.
pub(super) fn plan<'a>(engines: &[&'a dyn Engine], subject: SubjectKind, limit: Limit) -> Vec<Planned<'a>> {
    let on = |engine, &target| Planned { engine, subject, target, limit };
    engines.iter().flat_map(|&engine| subject.targets().iter().map(move |target| on(engine, target))).collect()
}

/// Runs all jobs on so many threads and returns what they came to, in the order of the plan.
pub(super) fn run_all(plan: &[Planned<'_>], workers: usize, seed: u64, seeds: &[Trace], ui: &Ui) -> Vec<Done> {
    let queue = Mutex::new(plan.iter().enumerate());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| {
                // The lock is given back before the job runs.
                let next = || locked(&queue).next();
                while let Some((i, planned)) = next() {
                    let result = run_one(planned, seed.wrapping_add(i as u64), seeds, ui);
                    locked(&done).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, done)| done).collect()
}

/// A panic of another thread leaves the list as it was.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run_one(planned: &Planned<'_>, seed: u64, seeds: &[Trace], ui: &Ui) -> Done {
    let budget = match planned.limit {
        Limit::Time(time) => Budget::time(time),
        Limit::Cases(cases) => Budget::cases(cases),
    };
    let job = Job { subject: planned.subject, target: planned.target, seed, budget, seeds, max_ops: MAX_OPS };
    let (outcome, error) = match planned.engine.run(&job, &ui.live) {
        Ok(outcome) => (outcome, None),
        Err(message) => (Outcome::default(), Some(message)),
    };
    let row = EngineRow {
        name: planned.engine.name().to_owned(),
        target: planned.target.name().to_owned(),
        executions: outcome.executions,
        ops: outcome.ops,
        edges: outcome.edges,
        depth: outcome.depth,
        tiers: outcome.coverage.tiers(),
        refusals: outcome.coverage.refusals(),
        violations: u64::from(outcome.finding.is_some()),
        error,
    };
    Done { row, target: planned.target, coverage: outcome.coverage, finding: outcome.finding }
}
