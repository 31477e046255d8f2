//! `hammer bugs`: plants known bugs, one after the other, and hunts them.
//!
//! The program with the bug ([`Nursery`]) is asked twice: whether the witness fails there, and what the engines find. The
//! program that runs this is the one without the bug, in which the witness and every minimal trace have to pass. What was
//! measured is kept beside the programs, so that a run that was interrupted goes on where it stopped.

mod compare;
mod hunts;
mod tell;

use super::hunt::{self, Hunt, Prey};
use super::nursery::Nursery;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::bugs::{self, Bug};
use crate::engines::Executor;
use crate::generate::Target;
use crate::run::RunOptions;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use clap::Args;
use hunts::Hunts;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Args)]
pub(super) struct BugsArgs {
    /// The folder of the patches; the project's own if none is named.
    #[arg(long, value_name = "D")]
    dir: Option<PathBuf>,
    /// Only patches whose name begins like this.
    #[arg(long, value_name = "ID")]
    only: Option<String>,
    /// Only this engine hunts; all that run in this process if none is named.
    #[arg(long, value_name = "E")]
    engine: Option<String>,
    /// From how many seeds each bug is hunted; 0: only the witnesses are looked at.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// How long each hunt may take.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: u64,
    /// Hunts again what was hunted before in the same program for the same time.
    #[arg(long)]
    again: bool,
    /// Writes the table as a document in Markdown too; a comparison, into its place in a document that is there.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Builds nothing: every patch has to apply, and every witness to pass on the allocator as it is.
    #[arg(long)]
    check: bool,
    /// Every contestant of the yardstick hunts on its own, and tables say how long each took; the bugs are those that
    /// callers of malloc can meet, unless `--only` names others.
    #[arg(long, conflicts_with_all = ["check", "engine"])]
    compare: bool,
    /// How many operations a contestant may make in a hunt.
    #[arg(long, value_name = "N", default_value_t = 200_000, requires = "compare")]
    ops: u64,
}

/// How long a replay may take.
const REPLAY: Duration = Duration::from_secs(60);

/// What became of one patch.
#[derive(Serialize)]
struct Row {
    bug: String,
    control: bool,
    /// The number of the invariant that it breaks.
    invariant: Option<u8>,
    /// Operations of the witness.
    witness: Option<usize>,
    /// The oracle that objects to the witness with the bug.
    oracle: Option<String>,
    hunts: Vec<Hunt>,
    /// What is wrong with the patch or with what came of it.
    error: Option<String>,
}

impl Row {
    fn new(bug: &Bug) -> Self {
        let witness = bug.witness.as_ref().map(|trace| trace.ops.len());
        let (control, hunts) = (bug.is_control(), Vec::new());
        Self { bug: bug.name.clone(), control, invariant: bug.invariant, witness, oracle: None, hunts, error: None }
    }

    fn found(&self) -> usize {
        self.hunts.iter().filter(|hunt| hunt.found.is_some()).count()
    }

    fn is_always_found(&self) -> bool {
        !self.hunts.is_empty() && self.found() == self.hunts.len()
    }

    /// Nine of ten, or as much of another number.
    fn is_found_often(&self) -> bool {
        !self.hunts.is_empty() && self.found() * 10 >= self.hunts.len() * 9
    }

    /// The middle one of what each successful hunt has; hunts without success count as more than any.
    fn median(&self, what: impl Fn(&Hunt, &Prey) -> f64) -> Option<f64> {
        middle(self.hunts.iter().map(|hunt| hunt.found.as_ref().map_or(f64::INFINITY, |prey| what(hunt, prey))))
    }
}

/// The lower one of the middle ones, if it is finite.
fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied().filter(|value| value.is_finite())
}

pub(super) fn run(args: &BugsArgs, ui: &Ui) -> Result<Verdict, UserError> {
    hunt::engines(args.engine.as_deref())?;
    let nursery = Nursery::open()?;
    let dir = args.dir.clone().unwrap_or_else(|| nursery.root().join("fuzz/bugs"));
    let read = bugs::read_dir(&dir).map_err(|e| UserError(format!("{}: {e}", dir.display())))?;
    let mut bugs = Vec::new();
    for bug in read {
        bugs.push(bug.map_err(|e| UserError(e.to_string()))?);
    }
    bugs.retain(|bug| args.only.as_ref().is_none_or(|only| bug.name.starts_with(only.as_str())));
    if bugs.is_empty() {
        return Err(UserError(format!("{}: no such patch", dir.display())));
    }
    if args.compare {
        return compare::run(&bugs, &nursery, args, ui);
    }
    let field = Field { nursery, args, ui };
    let mut rows = Vec::new();
    for bug in bugs.iter().take_while(|_| !ui.live.is_stopped()) {
        ui.phase(&bug.name);
        rows.push(field.row(bug));
    }
    tell::tell(&rows, args, &field.nursery, ui)
}

/// Plants and hunts.
struct Field<'a> {
    nursery: Nursery,
    args: &'a BugsArgs,
    ui: &'a Ui,
}

impl Field<'_> {
    fn row(&self, bug: &Bug) -> Row {
        let mut row = Row::new(bug);
        row.error = self.examine(bug, &mut row).err();
        row
    }

    fn examine(&self, bug: &Bug, row: &mut Row) -> Result<(), String> {
        bug.patched(self.nursery.root())?;
        bug.witness.as_ref().map_or(Ok(()), |witness| passes(witness, "the witness"))?;
        if self.args.check {
            return Ok(());
        }
        let program = self.nursery.program(bug)?;
        if let Some(witness) = &bug.witness {
            let oracle = self.objects(witness, &program)?;
            row.oracle = Some(oracle.ok_or("the witness passes with the bug")?);
        }
        row.hunts = self.hunts(bug, &program)?;
        match row.found() {
            0 if bug.is_control() || row.hunts.is_empty() => Ok(()),
            0 => Err("was not found".to_owned()),
            _ if bug.is_control() => Err("a control raised an alarm".to_owned()),
            _ => Ok(()),
        }
    }

    fn hunts(&self, bug: &Bug, program: &Path) -> Result<Vec<Hunt>, String> {
        let mut known = Hunts::of(&self.nursery, bug, self.args)?;
        for seed in 1..=self.args.seeds {
            if self.ui.live.is_stopped() {
                break;
            }
            if known.get(seed).is_none() {
                let hunt = self.hunt(program, seed)?;
                hunt.found.as_ref().map_or(Ok(()), |prey| self.replays(prey, seed, program))?;
                known.keep(seed, hunt)?;
            }
        }
        Ok((1..=self.args.seeds).filter_map(|seed| known.get(seed).cloned()).collect())
    }

    /// Makes sure that a minimal trace shows the bug and nothing else.
    fn replays(&self, prey: &Prey, seed: u64, program: &Path) -> Result<(), String> {
        let what = format!("the minimal trace of seed {seed} ({})", prey.oracle);
        let trace = Trace::from_text(&prey.trace).map_err(|e| format!("{what}: {e}"))?;
        passes(&trace, &what)?;
        match self.objects(&trace, program)? {
            Some(oracle) if oracle == prey.oracle => Ok(()),
            other => Err(format!("{what} replays as {}", other.as_deref().unwrap_or("nothing"))),
        }
    }

    /// Replays a trace in a program with a bug; returns the oracle that objects.
    fn objects(&self, trace: &Trace, program: &Path) -> Result<Option<String>, String> {
        let file = self.nursery.place("witness.ron");
        fs::write(&file, trace.to_text()).map_err(|e| format!("{}: {e}", file.display()))?;
        let out = self.nursery.place("hammer-out");
        let answer: serde_json::Value =
            self.nursery.ask(Command::new(program).arg("replay").arg(&file).arg("--out").arg(out), REPLAY)?;
        Ok(answer["violations"][0]["oracle"].as_str().map(str::to_owned))
    }

    fn hunt(&self, program: &Path, seed: u64) -> Result<Hunt, String> {
        let mut hunter = Command::new(program);
        hunter.args(["hunt", "--seed", &seed.to_string(), "--seconds", &self.args.seconds.to_string()]);
        hunter.arg("--out").arg(self.nursery.place("hammer-out"));
        if let Some(engine) = &self.args.engine {
            hunter.args(["--engine", engine]);
        }
        // Shrinking and a last long trace take some time more.
        self.nursery.ask(&mut hunter, Duration::from_secs(2 * self.args.seconds + 60))
    }
}

/// Executes a trace in this program, which has no bug.
fn passes(trace: &Trace, what: &str) -> Result<(), String> {
    match Executor::new(SubjectKind::KMEM, RunOptions::default()).execute(Target::Trace, trace).violation {
        Some(violation) => Err(format!("{what} fails without the bug: {}: {}", violation.oracle, violation.message)),
        None => Ok(()),
    }
}
