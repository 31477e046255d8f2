//! Where all engines meet: one trace, one subject, every oracle.

use super::Job;
use super::codec;
use super::live::Live;
use crate::generate::Target;
use crate::oracle::Violation;
use crate::run::{Coverage, Depth, DepthRow, Judges, RunOptions, RunReport, Runner, States, Watch};
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use std::path::PathBuf;

/// Every how many traces one is run again, for O13 and O14.
const AGAIN_EVERY: u64 = 16;

/// A trace and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The trace as the engine made it, not yet shrunk.
    pub trace: Trace,
    /// What the oracle said.
    pub violation: Violation,
    /// The program that fails on the trace, if this one does not: a fuzz target, which is built with more checks.
    pub program: Option<PathBuf>,
}

impl Finding {
    /// A finding of this program.
    pub fn new(trace: Trace, violation: Violation) -> Self {
        Self { trace, violation, program: None }
    }
}

/// What an engine did for a job.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Traces executed.
    pub executions: u64,
    /// Operations executed, those inside macro operations counted singly.
    pub ops: u64,
    /// Covered edges, where the engine measures them.
    pub edges: Option<u64>,
    /// How deep the traces went.
    pub depth: DepthRow,
    /// What the traces reached.
    pub coverage: Coverage,
    /// The first violation, which ended the job.
    pub finding: Option<Finding>,
}

/// Executes traces on one kind of subject, reusing the simulated machine between them.
pub struct Executor {
    runner: Runner,
    subject: SubjectKind,
    options: RunOptions,
}

impl Default for Executor {
    /// Executes on the allocator itself, with every oracle.
    fn default() -> Self {
        Self::new(SubjectKind::KMEM, RunOptions::default())
    }
}

impl Executor {
    /// Makes an executor for a kind of subject.
    pub fn new(subject: SubjectKind, options: RunOptions) -> Self {
        Self { runner: Runner::new(), subject, options }
    }

    /// Chooses whether what passes is run again from now on.
    pub fn set_again(&mut self, again: bool) {
        self.options.again = again;
    }

    /// Executes a trace; for [`Target::Codec`] its two encodings are judged as well.
    pub fn execute(&mut self, target: Target, trace: &Trace) -> RunReport {
        self.execute_watched(target, trace, &mut ())
    }

    /// The same, with somebody who looks on.
    pub(super) fn execute_watched(&mut self, target: Target, trace: &Trace, watch: &mut impl Watch) -> RunReport {
        let mut report = self.runner.run_watched(trace, self.subject, &self.options, watch);
        if target == Target::Codec && report.violation.is_none() {
            report.violation = codec::check(trace).err();
        }
        report
    }
}

/// Executes, counts, and remembers the first violation: what every in-process engine does with a trace.
pub(crate) struct Judge<'a> {
    executor: Executor,
    target: Target,
    live: &'a Live,
    depth: Depth,
    outcome: Outcome,
}

impl<'a> Judge<'a> {
    pub(super) fn new(job: &Job<'_>, live: &'a Live) -> Self {
        Self::with_judges(job, live, Judges::ALL)
    }

    /// Lets others than our oracles judge, or not all of them.
    pub(crate) fn with_judges(job: &Job<'_>, live: &'a Live, judges: Judges) -> Self {
        let executor = Executor::new(job.subject, RunOptions { judges, ..RunOptions::default() });
        Self { executor, target: job.target, live, depth: Depth::default(), outcome: Outcome::default() }
    }

    /// Judges a trace; `None` if it broke the contract, which ends the job.
    pub(crate) fn judge(&mut self, trace: &Trace) -> Option<RunReport> {
        self.judge_by(trace, &mut ())
    }

    /// Judges a trace and notes the states of memory that it goes through.
    pub(crate) fn judge_and_look(&mut self, trace: &Trace, states: &mut States) -> Option<RunReport> {
        self.judge_by(trace, states)
    }

    fn judge_by(&mut self, trace: &Trace, watch: &mut impl Watch) -> Option<RunReport> {
        if self.is_over() {
            return None;
        }
        let stranger = matches!(self.executor.options.judges, Judges::Stranger(_));
        self.executor.set_again(!stranger && self.outcome.executions.is_multiple_of(AGAIN_EVERY));
        self.live.begin(trace);
        let mut both = (&mut self.depth, watch);
        let mut report = self.executor.execute_watched(self.target, trace, &mut both);
        self.outcome.executions += 1;
        self.outcome.ops += report.calls;
        self.outcome.coverage.merge(&report.coverage);
        self.depth.add(&report);
        self.live.add(1, report.calls);
        let Some(violation) = report.violation.take() else { return Some(report) };
        self.live.add_violation();
        self.outcome.finding = Some(Finding::new(trace.clone(), violation));
        None
    }

    /// Tells whether there is nothing more to do: a violation was found, or the user asked to stop.
    pub(crate) fn is_over(&self) -> bool {
        self.outcome.finding.is_some() || self.live.is_stopped()
    }

    /// Traces judged so far.
    pub(crate) fn executions(&self) -> u64 {
        self.outcome.executions
    }

    /// Operations judged so far.
    pub(crate) fn ops(&self) -> u64 {
        self.outcome.ops
    }

    /// Goes on after a finding, unless it is given back.
    pub(crate) fn forgive(&mut self) -> Option<Finding> {
        self.outcome.finding.take()
    }

    /// Takes a finding back, which ends the job after all.
    pub(crate) fn take_back(&mut self, finding: Finding) {
        self.outcome.finding = Some(finding);
    }

    pub(crate) fn into_outcome(self) -> Outcome {
        self.live.end();
        Outcome { depth: self.depth.row(), ..self.outcome }
    }
}
