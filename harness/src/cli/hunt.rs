//! `hammer hunt`: engines at work until the first violation; what `hammer bugs` starts in a program with a planted bug.

use super::pool::{self, Limit};
use super::ui::Ui;
use super::{UserError, Verdict};
use super::{apart, replay};
use crate::engines::{Engine, in_process};
use crate::report::failure::Case;
use crate::subjects::SubjectKind;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

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
    let (hunt, case) = hunt(args, subject, ui)?;
    let text = match &hunt.found {
        Some(prey) => format!("{}: {} ({}, {} operations)", prey.oracle, prey.message, prey.origin, prey.minimal),
        None => "nothing was found".to_owned(),
    };
    let kept = case.map(|case| replay::keep(&case, ui)).transpose()?;
    ui.result(&hunt, format!("{text}\n{} operations in {:.2} s", hunt.ops, hunt.seconds));
    Ok(kept.map_or(Verdict::Fine, |row| Verdict::Violation(row.reproducer)))
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

fn prey(case: &Case) -> Prey {
    Prey {
        oracle: case.violation.oracle.to_string(),
        message: case.violation.message.clone(),
        origin: case.origin.clone(),
        minimal: case.trace.ops.len(),
        trace: case.trace.to_text(),
    }
}
