//! `hammer show`: what a trace does, for people who want to understand.

use super::replay::subject;
use super::ui::Ui;
use super::{UserError, Verdict};
use clap::Args;
use kmem_harness::report::story::Story;
use kmem_harness::trace::Trace;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ShowArgs {
    /// The trace.
    file: PathBuf,
    /// On what to execute it.
    #[arg(long, default_value = "kmem")]
    subject: String,
}

pub(super) fn run(args: &ShowArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = subject(&args.subject)?;
    let trace = Trace::load(&args.file).map_err(|e| UserError(e.to_string()))?;
    let story = Story::of(&trace, subject);
    let report = &story.report;
    let verdict = match &report.violation {
        None => "Every oracle is content.".to_owned(),
        Some(violation) => format!("{} at operation {}: {}", violation.oracle, violation.op, violation.message),
    };
    let value = serde_json::json!({
        "ok": report.violation.is_none(), "ops": report.calls, "violation": &report.violation,
        "steps": story.steps(), "memory": story.memory(),
    });
    ui.result(&value, format!("{}\n{}\n{verdict}", story.steps(), story.memory()));
    Ok(if report.violation.is_some() { Verdict::Violation(args.file.clone()) } else { Verdict::Fine })
}
