//! `hammer show`: what a trace does, for people who want to understand.

use super::apart;
use super::replay::subject;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::Executor;
use crate::generate::Target;
use crate::oracle::{OracleId, Violation};
use crate::report::page::{self, PageError};
use crate::report::story::Story;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct ShowArgs {
    /// The trace.
    file: PathBuf,
    /// On what to execute it.
    #[arg(long, default_value = "kmem")]
    subject: String,
    /// Also write a page for a browser, which needs nothing but itself: memory after each operation, model and subject.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "report.html")]
    html: Option<PathBuf>,
    /// Also write a picture of memory: at the violation, else at the call that explains most.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "heap.svg")]
    svg: Option<PathBuf>,
}

pub(super) fn run(args: &ShowArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = subject(&args.subject)?;
    let trace = Trace::load(&args.file).map_err(|e| UserError(e.to_string()))?;
    if let Some(violation) = crash(subject, &trace) {
        let value = serde_json::json!({ "ok": false, "violation": &violation });
        ui.result(&value, format!("{}\n{}: {}", trace.to_text(), violation.oracle, violation.message));
        return Ok(Verdict::Violation(args.file.clone()));
    }
    let story = Story::of(&trace, subject);
    if let Some(path) = &args.html {
        write(path, page::html(&trace, subject, &story, None), ui)?;
    }
    if let Some(path) = &args.svg {
        write(path, page::svg(&trace, subject, &story), ui)?;
    }
    let report = &story.report;
    let verdict = match &report.violation {
        None => "Every oracle is content.".to_owned(),
        Some(violation) => format!("{} at operation {}: {}", violation.oracle, violation.op, violation.message),
    };
    let value = serde_json::json!({
        "ok": report.violation.is_none(), "ops": report.calls, "violation": &report.violation,
        "steps": story.steps(), "memory": story.memory(),
        "html": &args.html, "svg": &args.svg,
    });
    ui.result(&value, format!("{}\n{}\n{verdict}", story.steps(), story.memory()));
    Ok(if report.violation.is_some() { Verdict::Violation(args.file.clone()) } else { Verdict::Fine })
}

/// Writes what was drawn, and says where it is.
fn write(path: &Path, drawn: Result<String, PageError>, ui: &Ui) -> Result<(), UserError> {
    let text = drawn.map_err(|e| UserError(e.to_string()))?;
    std::fs::write(path, text).map_err(|e| UserError(format!("{} cannot be written: {e}", path.display())))?;
    ui.tell(format!("wrote {}", path.display()));
    Ok(())
}

/// What ends the process that executes the trace; it cannot tell its story.
fn crash(subject: SubjectKind, trace: &Trace) -> Option<Violation> {
    let foreign = subject.is_foreign();
    let judgement = foreign.then(|| apart::judged(&mut Executor::default(), Target::Trace, subject, trace));
    judgement?.violation.filter(|violation| violation.oracle == OracleId::Crash)
}
