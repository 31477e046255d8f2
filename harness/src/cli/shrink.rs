//! `hammer shrink`: a failing trace in, a minimal one out.

use super::apart;
use super::replay::{keep, subject};
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::{Executor, Finding};
use crate::generate::Target;
use crate::run::RunOptions;
use crate::trace::Trace;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ShrinkArgs {
    /// A trace that fails.
    file: PathBuf,
    /// On what it fails.
    #[arg(long, default_value = "kmem")]
    subject: String,
}

pub(super) fn run(args: &ShrinkArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = subject(&args.subject)?;
    let trace = Trace::load(&args.file).map_err(|e| UserError(e.to_string()))?;
    let mut executor = Executor::new(subject, RunOptions::AGAIN);
    let Some(violation) = apart::judged(&mut executor, Target::Codec, subject, &trace).violation else {
        let message = format!("{}: nothing to shrink, every oracle is content", args.file.display());
        ui.result(&serde_json::json!({ "ok": true, "ops": trace.ops.len() }), message);
        return Ok(Verdict::Fine);
    };
    let finding = Finding::new(trace, violation);
    let case = apart::minimise(finding, Target::Codec, subject, args.file.display().to_string());
    let row = keep(&case, ui)?;
    let text = format!(
        "{}: {}\n{} operations became {} in {} executions",
        row.oracle, row.message, case.found_ops, row.ops, case.executions
    );
    let value = serde_json::json!({ "ok": false, "ops_before": case.found_ops, "violations": [&row] });
    ui.result(&value, text);
    Ok(Verdict::Violation(row.reproducer))
}
