//! `hammer replay`: traces in, verdicts out.

use super::apart::{self, Judgement};
use super::corpus::{self, Entry};
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::{Executor, Finding};
use crate::generate::Target;
use crate::report::closing::{CorpusRow, Summary, ViolationRow};
use crate::report::failure::Case;
use crate::run::RunOptions;
use crate::subjects::{self, SubjectKind};
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Traces, or folders of traces; the project's corpus if none is named.
    paths: Vec<PathBuf>,
    /// What to replay them on.
    #[arg(long, default_value = "kmem")]
    subject: String,
}

pub(super) fn run(args: &ReplayArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = subject(&args.subject)?;
    let entries = corpus::read(&args.paths)?;
    let start = Instant::now();
    let mut summary = Summary::default();
    replay(&entries, subject, ui, &mut summary)?;
    summary.close(start.elapsed());
    ui.result(&summary, &summary);
    Ok(verdict(&summary))
}

/// The subject of a name.
pub(super) fn subject(name: &str) -> Result<SubjectKind, UserError> {
    let known = || format!("there is no subject `{name}`; there are: {}", subjects::names().join(", "));
    subjects::by_name(name).ok_or_else(|| UserError(known()))
}

/// What the summary amounts to; a violation weighs more than a file that cannot be read.
pub(super) fn verdict(summary: &Summary) -> Verdict {
    match summary.violations.last() {
        Some(violation) => Verdict::Violation(violation.reproducer.clone()),
        None if summary.ok => Verdict::Fine,
        None => Verdict::Incomplete,
    }
}

/// Replays all entries; unreadable ones are complained about and counted.
pub(super) fn replay(entries: &[Entry], subject: SubjectKind, ui: &Ui, summary: &mut Summary) -> Result<(), UserError> {
    let mut executor = Executor::new(subject, RunOptions::AGAIN);
    for entry in entries.iter().take_while(|_| !ui.live.is_stopped()) {
        let trace = match &entry.trace {
            Ok(trace) => trace,
            Err(message) => {
                ui.tell(message);
                summary.corpus.unreadable += 1;
                continue;
            }
        };
        let Judgement { calls, violation } = match subject.is_foreign() {
            true => apart::judged(&mut executor, Target::Codec, subject, trace),
            false => {
                let report = executor.execute(Target::Codec, trace);
                summary.coverage_of_contract.add(&report.coverage);
                Judgement { calls: report.calls, violation: report.violation }
            }
        };
        let CorpusRow { files, failed, ops, .. } = &mut summary.corpus;
        *files += 1;
        *ops += calls;
        ui.live.add(1, calls);
        if let Some(violation) = violation {
            *failed += 1;
            ui.live.add_violation();
            let finding = Finding::new(trace.clone(), violation);
            let case = apart::minimise(finding, Target::Codec, subject, entry.path.display().to_string());
            summary.violations.push(keep(&case, ui)?);
        }
    }
    summary.interrupted |= ui.live.is_stopped();
    Ok(())
}

/// Writes the folder of a failure.
pub(super) fn keep(case: &Case, ui: &Ui) -> Result<ViolationRow, UserError> {
    let written = case.write(ui.out());
    let reproducer = written.map_err(|e| UserError(format!("{} cannot be written: {e}", ui.out().display())))?;
    Ok(ViolationRow {
        oracle: case.violation.oracle.to_string(),
        message: case.violation.message.clone(),
        origin: case.origin.clone(),
        ops: case.trace.ops.len(),
        reproducer,
    })
}
