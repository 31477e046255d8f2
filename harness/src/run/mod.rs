//! Executes traces: picks become addresses, macro operations become calls, every call is put to every oracle.
//!
//! ```text
//! Trace ──op──► Session ──call──► Subject ──reply──► Step
//!                  ▲                                   │
//!                  │ picks                             ▼
//!                Model ◄──update── oracles: before_update · after_update · audit · at_end
//! ```
//!
//! The run stops at the first violation: what comes after it would be judged against a model that no longer holds.

mod again;
mod contract;
mod coverage;
mod depth;
mod guarded;
mod hash;
mod macros;
mod misuse;
mod objects;
mod panics;
mod program;
mod resolve;
mod score;
mod session;
mod states;
mod stranger;
mod throughput;
mod window;

#[cfg(feature = "engines")]
pub(crate) use contract::OUT_OF_REACH;
pub use contract::{ContractCoverage, Family};
pub use coverage::{Coverage, Row, rows};
pub(crate) use depth::Depth;
pub use depth::{DepthRow, NoDepth};
pub(crate) use panics::catch as catch_panic;
pub use score::{Kill, SCORE_OPS, degenerate_score};
pub use states::States;
pub use stranger::{Held, Refused, Stranger};
pub use throughput::{Throughput, throughput};

use crate::model::Model;
use crate::oracle::{Muted, OracleId, Step, Violation};
use crate::subject::Subject;
use crate::subjects::{Guest, Spare, SubjectKind};
use crate::suites::{Kernel, Stop};
use crate::trace::Trace;
use again::Variation;
use kmem::{Geometry, GeometryError};
use session::Session;

/// Who judges a run.
#[derive(Clone, Copy, Debug)]
pub enum Judges {
    /// Our oracles, but for those that are muted; `audits`: whether they look at everything now and then.
    Oracles {
        /// Who is not heard.
        muted: Muted,
        /// Whether there are audits.
        audits: bool,
    },
    /// The harness of somebody else, made anew for each run.
    Stranger(fn() -> Box<dyn Stranger>),
}

impl Judges {
    /// All of our oracles.
    pub const ALL: Self = Self::Oracles { muted: Muted::NOBODY, audits: true };
}

/// How a trace is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Who judges it.
    pub judges: Judges,
    /// Every how many operations all oracles look at everything; 0: only at the end.
    pub audit_every: u32,
    /// Whether the report lists every step.
    pub keep_log: bool,
    /// Whether a trace that passes is run a second time, in another way that must not matter: see O13 and O14.
    pub again: bool,
}

impl RunOptions {
    /// As ever, and what passes is run again.
    pub const AGAIN: Self = Self { judges: Judges::ALL, audit_every: 64, keep_log: false, again: true };
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { judges: Judges::ALL, audit_every: 64, keep_log: false, again: false }
    }
}

/// One step of a run, for the step table.
#[derive(Clone, Debug)]
pub struct StepRecord {
    /// The call and its answer.
    pub step: Step,
    /// The CPU that made the call.
    pub cpu: u16,
    /// Blocks that were live after it.
    pub live: usize,
    /// What happened inside, by [`kmem::Event::index`], and how often; only what did happen.
    pub events: Vec<(usize, u64)>,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// Operations of the trace that were executed.
    pub ops: usize,
    /// Calls that the subject answered, and reads and writes of blocks; the final freeing included.
    pub calls: u64,
    /// The answer that the contract does not allow, if there was one.
    pub violation: Option<Violation>,
    /// Why the subject could not even be made; the trace then says nothing about it.
    pub unbootable: Option<GeometryError>,
    /// Every step, if it was asked for.
    pub log: Vec<StepRecord>,
    /// What happened how often.
    pub coverage: Coverage,
    /// The most blocks that were live at once.
    pub peak_live: usize,
    /// A hash of all calls of the trace and their answers: the same trace on the same subject gives the same one.
    pub hash: u64,
}

impl RunReport {
    /// Tells whether no oracle objected.
    pub fn is_ok(&self) -> bool {
        self.violation.is_none()
    }

    /// The oracle that objected.
    pub fn killer(&self) -> Option<OracleId> {
        self.violation.as_ref().map(|violation| violation.oracle)
    }
}

/// Somebody who looks at a run between its operations, and changes nothing.
pub(crate) trait Watch {
    /// Looks after so many operations of the trace; one more than it has: after everything was freed. The last look is at
    /// what the run leaves behind, after a violation too.
    fn look(&mut self, done: usize, model: &Model, subject: &dyn Subject);
}

/// Nobody looks.
impl Watch for () {
    #[inline]
    fn look(&mut self, _done: usize, _model: &Model, _subject: &dyn Subject) {}
}

/// Both look.
impl<A: Watch, B: Watch> Watch for (&mut A, &mut B) {
    fn look(&mut self, done: usize, model: &Model, subject: &dyn Subject) {
        self.0.look(done, model, subject);
        self.1.look(done, model, subject);
    }
}

/// Runs traces one after the other, reusing the machine's memory.
pub struct Runner {
    spare: Spare,
    /// That of runs in which memory holds something else.
    unlike: Spare,
}

impl Default for Runner {
    fn default() -> Self {
        Self { spare: Spare::default(), unlike: Spare::unlike_others() }
    }
}

impl Runner {
    /// Makes a runner.
    pub fn new() -> Self {
        panics::install_hook();
        Self::default()
    }

    /// Runs a trace on a new subject of this kind, puts every step to every oracle, and frees everything at the end.
    ///
    /// A panic of the subject is a violation too: [`OracleId::Panic`].
    pub fn run(&mut self, trace: &Trace, kind: SubjectKind, options: &RunOptions) -> RunReport {
        self.run_watched(trace, kind, options, &mut ())
    }

    /// Runs a trace as [`Self::run`] does, and lets somebody look at it between its operations.
    pub(crate) fn run_watched(
        &mut self,
        trace: &Trace,
        kind: SubjectKind,
        options: &RunOptions,
        watch: &mut impl Watch,
    ) -> RunReport {
        let mut report = self.run_once(trace, kind, options, Variation::NONE, watch);
        // Where a foreign allocator's memory is, and what it holds, may differ from run to run.
        if options.again && !kind.is_foreign() && report.is_ok() && report.unbootable.is_none() {
            report.violation = again::judge(self, trace, kind, options.judges, &report);
        }
        report
    }

    /// Runs a trace on a subject that is there already.
    pub(crate) fn run_guest(
        &mut self,
        guest: Box<dyn Guest>,
        trace: &Trace,
        options: &RunOptions,
        watch: &mut impl Watch,
    ) -> RunReport {
        let geometry = guest.own_geometry().unwrap_or_else(|| trace.geometry.to_geometry());
        let session = Session::new(guest, &geometry, *options, false);
        conclude(session, |session| session.run(trace, watch)).1
    }

    fn run_once(
        &mut self,
        trace: &Trace,
        kind: SubjectKind,
        options: &RunOptions,
        variation: Variation,
        watch: &mut impl Watch,
    ) -> RunReport {
        let geometry = trace.geometry.to_geometry();
        self.run_with(&geometry, kind, options, variation, |session| session.run(trace, watch))
    }

    /// Runs a program on a new `kmem` of this shape, as [`Self::run`] does with a trace. The program's own answer is `None`
    /// if the machine could not be made, or if it panicked.
    pub fn run_program<T>(
        &mut self,
        geometry: &Geometry,
        options: &RunOptions,
        program: impl FnOnce(&mut dyn Kernel) -> Result<T, Stop>,
    ) -> (RunReport, Option<Result<T, Stop>>) {
        let mut answer = None;
        let report = self.run_with(geometry, SubjectKind::KMEM, options, Variation::NONE, |session| {
            answer = Some(session.run_program(program));
        });
        (report, answer)
    }

    fn run_with(
        &mut self,
        geometry: &Geometry,
        kind: SubjectKind,
        options: &RunOptions,
        variation: Variation,
        act: impl FnOnce(&mut Session),
    ) -> RunReport {
        let spare = if variation.unlike {
            std::mem::replace(&mut self.unlike, Spare::unlike_others())
        } else {
            std::mem::take(&mut self.spare)
        };
        let guest = match panics::catch(|| kind.build(geometry, spare)) {
            Ok(Ok(guest)) => guest,
            Ok(Err(error)) if kind.is_foreign() => {
                let message = format!("the subject cannot be made: {error}");
                let violation = Violation { oracle: OracleId::O9RefusalJustified, message, blocks: Vec::new(), op: 0 };
                return RunReport { violation: Some(violation), unbootable: Some(error), ..RunReport::default() };
            }
            Ok(Err(error)) => return RunReport { unbootable: Some(error), ..RunReport::default() },
            Err(message) => return panicked(RunReport::default(), message),
        };
        let own = guest.own_geometry();
        let session = Session::new(guest, own.as_ref().unwrap_or(geometry), *options, variation.backwards);
        let (guest, report) = conclude(session, act);
        if let Some(guest) = guest {
            let spare = if variation.unlike { &mut self.unlike } else { &mut self.spare };
            *spare = guest.into_spare();
        }
        report
    }
}

/// Runs a session to its end; the guest does not come back from one that panicked.
fn conclude(mut session: Session, act: impl FnOnce(&mut Session)) -> (Option<Box<dyn Guest>>, RunReport) {
    let ended = panics::catch(|| act(&mut session));
    let (guest, report) = session.finish();
    match ended {
        Ok(()) => (Some(guest), report),
        Err(message) => {
            // Its locks may be held for ever: it is not taken apart, its memory is not used again.
            std::mem::forget(guest);
            (None, panicked(report, message))
        }
    }
}

/// The report of a run that a panic ended.
fn panicked(mut report: RunReport, message: String) -> RunReport {
    report.violation =
        Some(Violation { oracle: OracleId::Panic, message, blocks: Vec::new(), op: report.ops.saturating_sub(1) });
    report
}

#[cfg(test)]
mod tests;
