//! `hammer bugs`: plants known bugs, one after the other, and hunts them.
//!
//! The program with the bug ([`Nursery`]) is asked twice: whether the witness fails there,
//! and what the engines find. The program that runs this is the one without the bug, in which the witness has to pass.

use super::hunt::{self, Hunt};
use super::nursery::Nursery;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::bugs::{self, Bug};
use crate::engines::Executor;
use crate::generate::Target;
use crate::report::table::{grouped, table};
use crate::run::RunOptions;
use crate::subjects::SubjectKind;
use clap::Args;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// Builds nothing: every patch has to apply, and every witness to pass on the allocator as it is.
    #[arg(long)]
    check: bool,
}

/// What became of one patch.
#[derive(Serialize)]
struct Row {
    bug: String,
    control: bool,
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
        Self { bug: bug.name.clone(), control, witness, oracle: None, hunts, error: None }
    }

    fn found(&self) -> usize {
        self.hunts.iter().filter(|hunt| hunt.found.is_some()).count()
    }

    /// The middle one of what each successful hunt has; hunts without success count as more than any.
    fn median(&self, what: impl Fn(&Hunt) -> f64) -> Option<f64> {
        let mut values: Vec<f64> =
            self.hunts.iter().map(|hunt| if hunt.found.is_some() { what(hunt) } else { f64::INFINITY }).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len().checked_sub(1)? / 2).copied().filter(|value| value.is_finite())
    }
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
    let field = Field { nursery, args, ui };
    let mut rows = Vec::new();
    for bug in bugs.iter().take_while(|_| !ui.live.is_stopped()) {
        ui.phase(&bug.name);
        rows.push(field.row(bug));
    }
    Ok(report(&rows, args, ui))
}

fn report(rows: &[Row], args: &BugsArgs, ui: &Ui) -> Verdict {
    let mut text =
        table(&["bug", ">witness", "its oracle", ">found", ">operations", ">seconds", ">minimal", "first found by"]);
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| grouped(value as u64));
    for row in rows {
        let first = row.hunts.iter().find_map(|hunt| hunt.found.as_ref());
        text.add_row([
            row.bug.clone(),
            row.witness.map_or("control".to_owned(), |ops| ops.to_string()),
            row.oracle.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{}/{}", row.found(), row.hunts.len()),
            number(row.median(|hunt| hunt.ops as f64)),
            row.median(|hunt| hunt.seconds).map_or("-".to_owned(), |seconds| format!("{seconds:.2}")),
            number(row.median(|hunt| hunt.found.as_ref().map_or(f64::INFINITY, |prey| prey.minimal as f64))),
            first.map_or("-".to_owned(), |prey| format!("{} ({})", prey.oracle, prey.origin)),
        ]);
    }
    let wrong: Vec<_> = rows.iter().filter_map(|row| Some(format!("{}: {}", row.bug, row.error.as_ref()?))).collect();
    let bugs = rows.iter().filter(|row| !row.control);
    let (all, found) = (bugs.clone().count(), bugs.filter(|row| row.found() > 0).count());
    let sum = if args.check || args.seeds == 0 {
        format!("{} patches, {} wrong", rows.len(), wrong.len())
    } else {
        format!("{found} of {all} bugs found; {} patches, {} wrong", rows.len(), wrong.len())
    };
    let value = serde_json::json!({ "ok": wrong.is_empty(), "bugs": rows });
    ui.result(&value, format!("{text}\n{}{sum}", wrong.iter().map(|line| format!("{line}\n")).collect::<String>()));
    if wrong.is_empty() { Verdict::Fine } else { Verdict::Incomplete }
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
        if let Some(witness) = &bug.witness {
            let mut executor = Executor::new(SubjectKind::KMEM, RunOptions::default());
            if let Some(violation) = executor.execute(Target::Trace, witness).violation {
                return Err(format!("the witness fails without the bug: {}: {}", violation.oracle, violation.message));
            }
        }
        if self.args.check {
            return Ok(());
        }
        let program = self.nursery.program(bug)?;
        if bug.witness.is_some() {
            row.oracle = Some(self.witness(bug, &program)?);
        }
        for seed in 1..=self.args.seeds {
            if !self.ui.live.is_stopped() {
                row.hunts.push(self.hunt(&program, seed)?);
            }
        }
        match row.found() {
            0 if bug.is_control() || self.args.seeds == 0 => Ok(()),
            0 => Err("was not found".to_owned()),
            _ if bug.is_control() => Err("a control raised an alarm".to_owned()),
            _ => Ok(()),
        }
    }

    /// Replays the witness in a program with the bug; returns the oracle that objects.
    fn witness(&self, bug: &Bug, program: &Path) -> Result<String, String> {
        let file = self.nursery.place("witness.ron");
        let text = bug.witness.as_ref().map(crate::trace::Trace::to_text).unwrap_or_default();
        fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        let out = self.nursery.place("hammer-out");
        let answer: serde_json::Value =
            self.nursery.ask(Command::new(program).arg("replay").arg(&file).arg("--out").arg(out))?;
        let oracle = answer["violations"][0]["oracle"].as_str();
        oracle.map(str::to_owned).ok_or_else(|| "the witness passes with the bug".to_owned())
    }

    fn hunt(&self, program: &Path, seed: u64) -> Result<Hunt, String> {
        let mut hunter = Command::new(program);
        hunter.args(["hunt", "--seed", &seed.to_string(), "--seconds", &self.args.seconds.to_string()]);
        hunter.arg("--out").arg(self.nursery.place("hammer-out"));
        if let Some(engine) = &self.args.engine {
            hunter.args(["--engine", engine]);
        }
        self.nursery.ask(&mut hunter)
    }
}
