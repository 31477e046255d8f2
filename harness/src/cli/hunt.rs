//! `hammer hunt`: engines at work until the first violation; what `hammer bugs` starts in a program with a planted bug.

use super::pool::{self, Limit};
use super::ui::Ui;
use super::{UserError, Verdict};
use super::{apart, replay};
use crate::engines::{Budget, Engine, Executor, Finding, Job, MAX_OPS, in_process};
use crate::generate::Target;
use crate::report::failure::Case;
use crate::run::RunOptions;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use crate::yardstick::{Contest, Contestant};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long a contestant's finding is made smaller.
const SHRINK_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether something was found.
const TICK: Duration = Duration::from_millis(5);

#[derive(Args)]
pub(super) struct HuntArgs {
    /// Only this engine.
    #[arg(long)]
    pub(super) engine: Option<String>,
    /// Where random numbers start.
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(super) seed: u64,
    /// How long at most.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(super) seconds: u64,
    /// What to hunt in.
    #[arg(long, default_value = "kmem")]
    pub(super) subject: String,
    /// One contestant of the yardstick hunts alone, on one thread: MAKER+JUDGE, or one of them, such as no-swarm or rlsf.
    #[arg(long, value_name = "NAME", conflicts_with = "engine")]
    pub(super) ablate: Option<String>,
    /// How many operations a contestant may make.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true, requires = "ablate")]
    pub(super) ops: u64,
    /// What was found stays as long as it is, and no folder is made for it.
    #[arg(long, requires = "ablate")]
    pub(super) as_found: bool,
}

/// How a hunt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hunt {
    /// Operations until the first violation, or in all.
    pub(super) ops: u64,
    /// Seconds until then.
    pub(super) seconds: f64,
    /// What was found.
    pub(super) found: Option<Prey>,
}

/// A violation that was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Prey {
    /// The oracle that objected.
    pub(super) oracle: String,
    /// What it said.
    pub(super) message: String,
    /// The engine and the target.
    pub(super) origin: String,
    /// Operations of the minimal trace.
    pub(super) minimal: usize,
    /// The minimal trace, in text.
    pub(super) trace: String,
}

/// The in-process engines with this name; all if none is named.
pub(super) fn engines(name: Option<&str>) -> Result<Vec<&'static dyn Engine>, UserError> {
    let all = in_process();
    let Some(name) = name else { return Ok(all.to_vec()) };
    match all.iter().find(|engine| engine.name() == name) {
        Some(engine) => Ok(vec![*engine]),
        None => {
            let names: Vec<_> = all.iter().map(|engine| engine.name()).collect();
            Err(UserError(format!("there is no engine `{name}`; there are: {}", names.join(", "))))
        }
    }
}

pub(super) fn run(args: &HuntArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = replay::subject(&args.subject)?;
    if let Some(verdict) = apart::run(subject, ui)? {
        return Ok(verdict);
    }
    let (hunt, case) = match &args.ablate {
        Some(name) => ablated(args, &Contestant::by_name(name).map_err(UserError)?, subject, ui)?,
        None => hunt(args, subject, ui)?,
    };
    let text = match &hunt.found {
        Some(prey) => format!("{}: {} ({}, {} operations)", prey.oracle, prey.message, prey.origin, prey.minimal),
        None => "nothing was found".to_owned(),
    };
    let kept = case.filter(|_| !args.as_found).map(|case| replay::keep(&case, ui)).transpose()?;
    ui.result(&hunt, format!("{text}\n{} operations in {:.2} s", hunt.ops, hunt.seconds));
    Ok(match kept {
        Some(row) => Verdict::Violation(row.reproducer),
        None if hunt.found.is_some() => Verdict::Told(1),
        None => Verdict::Fine,
    })
}

/// Hunts; also the minimal trace, if something was found.
fn hunt(args: &HuntArgs, subject: SubjectKind, ui: &Ui) -> Result<(Hunt, Option<Case>), UserError> {
    let engines = engines(args.engine.as_deref())?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = engines.len() * subject.targets().len();
    let share = Duration::from_secs(args.seconds).mul_f64(workers as f64 / jobs as f64);
    let plan = pool::plan(&engines, subject, Limit::Time(share));
    let start = Instant::now();
    let (done, seconds, ops) = std::thread::scope(|scope| {
        let jobs = scope.spawn(|| pool::run_all(&plan, workers, args.seed, &[], ui));
        while !jobs.is_finished() && ui.live.violations() == 0 {
            std::thread::sleep(TICK);
        }
        let (seconds, ops) = (start.elapsed().as_secs_f64(), ui.live.ops());
        ui.live.stop();
        (jobs.join(), seconds, ops)
    });
    let done = done.map_err(|_| UserError("an engine panicked".to_owned()))?;
    let findings = done.into_iter().filter_map(|done| Some((done.finding?, done.target, done.row.name)));
    let shortest = findings.min_by_key(|(finding, ..)| finding.trace.ops.len());
    let case = shortest.map(|(finding, target, engine)| {
        apart::minimise(finding, target, subject, format!("{engine} on {}", target.name()))
    });
    Ok((Hunt { ops, seconds, found: case.as_ref().map(prey) }, case))
}

/// Hunts with a contestant of the yardstick.
fn ablated(
    args: &HuntArgs,
    contestant: &Contestant,
    subject: SubjectKind,
    ui: &Ui,
) -> Result<(Hunt, Option<Case>), UserError> {
    let budget = Budget::time(Duration::from_secs(args.seconds));
    let job = Job { subject, target: Target::Trace, seed: args.seed, budget, seeds: &[], max_ops: MAX_OPS };
    let start = Instant::now();
    let contest = Contest { contestant: *contestant, ops: args.ops };
    let outcome = contest.run(&job, &ui.live).map_err(UserError)?;
    let (ops, seconds) = (outcome.ops, start.elapsed().as_secs_f64());
    let case = outcome.finding.map(|finding| small(finding, contestant, subject, args.as_found));
    Ok((Hunt { ops, seconds, found: case.as_ref().map(prey) }, case))
}

/// Makes a contestant's finding small, by its own judges.
fn small(finding: Finding, contestant: &Contestant, subject: SubjectKind, as_found: bool) -> Case {
    let oracle = finding.violation.oracle;
    let options =
        RunOptions { judges: contestant.judge.what, again: oracle.needs_a_second_run(), ..RunOptions::default() };
    let mut executor = Executor::new(subject, options);
    let objection = |trace: &Trace| executor.execute(Target::Trace, trace).violation.filter(|v| v.oracle == oracle);
    let time = if as_found { Duration::ZERO } else { SHRINK_TIME };
    Case::minimise_by(finding, subject, contestant.name(), time, objection)
}

fn prey(case: &Case) -> Prey {
    Prey {
        oracle: case.violation.oracle.to_string(),
        message: case.violation.message.clone(),
        origin: case.origin.clone(),
        minimal: case.trace.ops.len(),
        trace: case.trace.to_text(),
    }
}
