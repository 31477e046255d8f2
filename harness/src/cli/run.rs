//! `hammer run`: the main job.

use super::corpus::{self, Entry};
use super::pool::{self, Done, Limit};
use super::ui::Ui;
use super::{UserError, Verdict};
use super::{apart, replay};
use crate::engines::libfuzzer::{FuzzCrate, Keep, LibFuzzer, Programs};
use crate::engines::{Engine, Finding, in_process};
use crate::generate::Target;
use crate::oracle::OracleId;
use crate::report::closing::{DegenerateRow, EngineRow, Summary};
use crate::run::{Coverage, DepthRow, degenerate_score};
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use clap::Args;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

#[derive(Args)]
pub(super) struct RunArgs {
    /// How long the engines run; building the fuzz targets comes on top where it takes longer.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(super) seconds: u64,
    /// How many engines run at a time; as many as there are processors if it is not said.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Where random numbers start; taken from the clock, and shown, if it is not said.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

impl RunArgs {
    fn workers(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.jobs.map_or_else(processors, usize::from)
    }

    /// How long each of `jobs` jobs may run so that all together take half of the time.
    fn share(&self, jobs: usize) -> Limit {
        let half = Duration::from_secs(self.seconds) / 2;
        Limit::Time(half.mul_f64(self.workers() as f64 / jobs.max(1) as f64))
    }
}

/// A seed that differs from run to run; it is shown, so that a run can be repeated.
pub(super) fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_secs() ^ u64::from(since.subsec_nanos()) << 16
}

pub(super) fn run(args: &RunArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let fuzz_crate = FuzzCrate::locate()?;
    let mut job = MainJob {
        args,
        ui,
        seed,
        fuzz_crate: &fuzz_crate,
        seeds: Vec::new(),
        done: Vec::new(),
        waited: Duration::ZERO,
        summary: Summary { seed: Some(seed), ..Summary::default() },
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        // The compiler works while the corpus and the engines of this process do.
        let build = scope.spawn(|| fuzz_crate.build(None, &ui.live));
        ui.with_progress(Duration::from_secs(args.seconds), || {
            job.replay_and_catch()?;
            job.run_in_process();
            job.run_coverage_guided(|| build.join().unwrap_or_else(|_| Err("the build thread panicked".to_owned())));
            Ok::<(), UserError>(())
        })
    })?;
    let worked = start.elapsed().saturating_sub(job.waited);
    conclude(job.done, SubjectKind::KMEM, job.summary, worked, ui)
}

/// Stores what was found and tells what the jobs came to.
pub(super) fn conclude(
    done: Vec<Done>,
    subject: SubjectKind,
    mut summary: Summary,
    worked: Duration,
    ui: &Ui,
) -> Result<Verdict, UserError> {
    keep_findings(done, subject, ui, &mut summary)?;
    summary.interrupted = ui.live.is_stopped();
    summary.close(worked);
    ui.result(&summary, &summary);
    Ok(replay::verdict(&summary))
}

/// The main job, on its way.
struct MainJob<'a> {
    args: &'a RunArgs,
    ui: &'a Ui,
    seed: u64,
    fuzz_crate: &'a FuzzCrate,
    /// Traces of the corpus that engines start from.
    seeds: Vec<Trace>,
    done: Vec<Done>,
    /// How long everything waited for the compiler.
    waited: Duration,
    summary: Summary,
}

impl MainJob<'_> {
    fn replay_and_catch(&mut self) -> Result<(), UserError> {
        self.ui.phase("replaying the corpus");
        let entries = corpus::read(&[self.fuzz_crate.corpus()])?;
        replay::replay(&entries, SubjectKind::KMEM, self.ui, &mut self.summary)?;
        self.seeds = short_traces(entries);
        self.ui.phase("catching the wrong allocators");
        self.summary.degenerate = kill_degenerates(self.ui);
        Ok(())
    }

    fn run_in_process(&mut self) {
        self.ui.phase("random and property engines");
        self.run_all(&in_process());
    }

    fn run_coverage_guided(&mut self, programs: impl FnOnce() -> Result<Programs, String>) {
        self.ui.phase("building the fuzz targets");
        let wait = Instant::now();
        let built = programs();
        self.waited = wait.elapsed();
        match built {
            Ok(programs) => {
                self.ui.phase("coverage-guided engine");
                self.run_all(&[&LibFuzzer::new(self.fuzz_crate.clone(), programs, Keep::Nothing)]);
            }
            Err(_) if self.ui.live.is_stopped() => {}
            Err(message) => self.done.extend(Target::ALL.map(|target| not_run(target, &message))),
        }
    }

    /// Runs engines on all targets for half of the time.
    fn run_all(&mut self, engines: &[&dyn Engine]) {
        let plan = pool::plan(engines, SubjectKind::KMEM, self.args.share(engines.len() * Target::ALL.len()));
        self.done.extend(pool::run_all(&plan, self.args.workers(), self.seed, &self.seeds, self.ui));
    }
}

/// Traces that an engine can build upon; recorded programs are too long for that.
fn short_traces(entries: Vec<Entry>) -> Vec<Trace> {
    let traces = entries.into_iter().filter_map(|entry| entry.trace.ok());
    traces.filter(|trace| trace.ops.len() <= crate::engines::MAX_OPS).collect()
}

fn kill_degenerates(ui: &Ui) -> DegenerateRow {
    let kills = degenerate_score();
    for kill in kills.iter().filter(|kill| !kill.is_as_intended()) {
        let by = kill.killed_by.map_or("nobody".to_owned(), |oracle| oracle.to_string());
        ui.tell(format!("the wrong allocator {} was meant for {} and caught by {by}", kill.name, kill.intended));
    }
    let killed = kills.iter().filter(|kill| kill.is_as_intended()).count() as u64;
    DegenerateRow { killed, total: kills.len() as u64 }
}

fn not_run(target: Target, message: &str) -> Done {
    let row = EngineRow {
        name: "libfuzzer".to_owned(),
        target: target.name().to_owned(),
        executions: 0,
        ops: 0,
        edges: None,
        depth: DepthRow::default(),
        tiers: 0,
        refusals: 0,
        violations: 0,
        error: Some(message.to_owned()),
    };
    Done { row, target, coverage: Coverage::default(), finding: None }
}

/// Shrinks and stores the shortest finding of each oracle: the others are most likely the same bug.
fn keep_findings(done: Vec<Done>, subject: SubjectKind, ui: &Ui, summary: &mut Summary) -> Result<(), UserError> {
    let mut shortest: BTreeMap<OracleId, (Target, String, Finding)> = BTreeMap::new();
    for Done { row, target, coverage, finding } in done {
        // Nobody else has the contract of which the table tells how much was reached.
        if subject.name() == SubjectKind::KMEM.name() {
            summary.coverage_of_contract.add(&coverage);
        }
        if let Some(finding) = finding {
            let known = shortest.get(&finding.violation.oracle);
            if known.is_none_or(|(_, _, known)| finding.trace.ops.len() < known.trace.ops.len()) {
                let origin = format!("{} on {}", row.name, row.target);
                shortest.insert(finding.violation.oracle, (target, origin, finding));
            }
        }
        summary.engines.push(row);
    }
    for (target, origin, finding) in shortest.into_values() {
        let case = apart::minimise(finding, target, subject, origin);
        summary.violations.push(replay::keep(&case, ui)?);
    }
    Ok(())
}
