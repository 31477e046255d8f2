//! Subjects that may crash or hang run in a process of their own.
//!
//! Engines run in a child that executes the same command and keeps a journal: the trace that each of its threads is at. If
//! the child dies or stops moving, the traces of the journal are judged one by one, each in a process of its own, and the one
//! that does it is a finding like any other. Shrinking such a subject's traces is done the same way.

use super::replay;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::{Executor, Finding};
use crate::generate::Target;
use crate::oracle::{OracleId, Violation};
use crate::report::failure::Case;
use crate::run::RunOptions;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// In a child: where its journal is.
const JOURNAL: &str = "HAMMER_JOURNAL";
/// How long a trace of an engine may take; a few milliseconds are usual.
const HANG: Duration = Duration::from_secs(10);
/// How long a trace may take that is judged by itself.
const HANG_ALONE: Duration = Duration::from_secs(2);
/// How long shrinking may take when each execution is a process.
const SHRINK_TIME: Duration = Duration::from_secs(15);
/// How often it is looked whether a child has ended.
const TICK: Duration = Duration::from_millis(50);
const TICK_ALONE: Duration = Duration::from_micros(300);

/// What a process that judged one trace answers.
#[derive(Serialize, Deserialize)]
pub(super) struct Judgement {
    /// Calls that were judged.
    pub(super) calls: u64,
    /// What is wrong.
    pub(super) violation: Option<Violation>,
}

#[derive(Args)]
pub(super) struct JudgeArgs {
    /// The trace.
    file: PathBuf,
    /// On what to execute it.
    #[arg(long, default_value = "kmem")]
    subject: String,
}

/// `hammer judge`: one trace, one line of JSON.
pub(super) fn judge(args: &JudgeArgs) -> Result<Verdict, UserError> {
    let subject = replay::subject(&args.subject)?;
    let trace = Trace::load(&args.file).map_err(|e| UserError(e.to_string()))?;
    let report = Executor::new(subject, RunOptions::default()).execute(Target::Trace, &trace);
    let judgement = Judgement { calls: report.calls, violation: report.violation };
    println!("{}", serde_json::to_string(&judgement).map_err(|e| UserError(e.to_string()))?);
    Ok(Verdict::Fine)
}

/// Judges a trace, in a process of its own if the subject may crash.
pub(super) fn judged(executor: &mut Executor, target: Target, subject: SubjectKind, trace: &Trace) -> Judgement {
    if subject.is_foreign() {
        return judged_alone(subject, trace);
    }
    let report = executor.execute(target, trace);
    Judgement { calls: report.calls, violation: report.violation }
}

/// Makes a finding small.
pub(super) fn minimise(finding: Finding, target: Target, subject: SubjectKind, origin: String) -> Case {
    if !subject.is_foreign() {
        return Case::minimise(finding, target, subject, origin);
    }
    let oracle = finding.violation.oracle;
    let objection = |trace: &Trace| judged_alone(subject, trace).violation.filter(|v| v.oracle == oracle);
    Case::minimise_by(finding, subject, origin, SHRINK_TIME, objection)
}

/// Runs this very command in a child, if the subject may crash and this is not the child already; `None`: the work is to be
/// done here.
pub(super) fn run(subject: SubjectKind, ui: &Ui) -> Result<Option<Verdict>, UserError> {
    if !subject.is_foreign() {
        return Ok(None);
    }
    if let Some(folder) = std::env::var_os(JOURNAL) {
        ui.live.keep_journal(folder.into());
        return Ok(None);
    }
    let folder = std::env::temp_dir().join(format!("hammer-journal-{}", std::process::id()));
    // One that an earlier process with this number left behind would be taken for ours.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).map_err(|e| UserError(format!("{} cannot be made: {e}", folder.display())))?;
    let verdict = run_child(&folder, subject, ui);
    // What stays behind does no harm.
    let _ = fs::remove_dir_all(&folder);
    verdict.map(Some)
}

fn run_child(folder: &Path, subject: SubjectKind, ui: &Ui) -> Result<Verdict, UserError> {
    let program = this_program()?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1)).env(JOURNAL, folder);
    let mut child = command.spawn().map_err(|e| UserError(format!("{} cannot be started: {e}", program.display())))?;
    let ended = wait(&mut child, TICK, || is_stuck(folder))?;
    match ended.as_ref().and_then(ExitStatus::code) {
        Some(code) => Ok(Verdict::Told(u8::try_from(code).unwrap_or(2))),
        None => find_culprit(folder, &cause(ended), subject, ui),
    }
}

/// Which of the traces that were being executed ends its process alone as well.
fn find_culprit(folder: &Path, cause: &str, subject: SubjectKind, ui: &Ui) -> Result<Verdict, UserError> {
    ui.phase(&format!("{}: {cause}; looking for the trace that does it", subject.name()));
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let traces: Vec<Trace> = files.filter_map(|path| Trace::load(&path).ok()).collect();
    for trace in &traces {
        if let Some(violation) = judged_alone(subject, trace).violation {
            let finding = Finding::new(trace.clone(), violation);
            let case = minimise(finding, Target::Trace, subject, "a run that ended early".to_owned());
            let row = replay::keep(&case, ui)?;
            let text = format!("\n{} ({} operations): {}", row.oracle, row.ops, row.message);
            ui.result(&serde_json::json!({ "ok": false, "violations": [&row] }), text);
            return Ok(Verdict::Violation(row.reproducer));
        }
    }
    Err(UserError(format!("{cause}, but none of the {} traces at work does that alone", traces.len())))
}

/// Tells whether nothing moved in the journal for too long.
fn is_stuck(folder: &Path) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let written = files.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max();
    written.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > HANG)
}

/// Judges a trace in a process of its own.
fn judged_alone(subject: SubjectKind, trace: &Trace) -> Judgement {
    match ask_alone(subject, trace) {
        Ok(judgement) => judgement,
        Err(UserError(message)) => {
            let violation = Violation {
                oracle: OracleId::Crash,
                message,
                blocks: Vec::new(),
                op: trace.ops.len().saturating_sub(1),
            };
            Judgement { calls: 0, violation: Some(violation) }
        }
    }
}

fn ask_alone(subject: SubjectKind, trace: &Trace) -> Result<Judgement, UserError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("hammer-judge-{}-{number}.bin", std::process::id()));
    fs::write(&file, trace.to_bytes()).map_err(|e| UserError(format!("{} cannot be written: {e}", file.display())))?;
    let answer = judge_file(subject, &file);
    // What stays behind does no harm.
    let _ = fs::remove_file(&file);
    answer
}

fn judge_file(subject: SubjectKind, file: &Path) -> Result<Judgement, UserError> {
    let mut command = Command::new(this_program()?);
    command.arg("judge").arg(file).args(["--subject", subject.name()]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| UserError(format!("the process cannot be started: {e}")))?;
    let start = Instant::now();
    let ended = wait(&mut child, TICK_ALONE, || start.elapsed() > HANG_ALONE)?;
    let output = child.stdout.take().map(std::io::read_to_string);
    let text = output.and_then(Result::ok).unwrap_or_default();
    serde_json::from_str(&text).map_err(|_| UserError(cause(ended)))
}

/// Waits for a child; `None` if it was given up and killed.
pub(super) fn wait(
    child: &mut Child,
    tick: Duration,
    mut give_up: impl FnMut() -> bool,
) -> Result<Option<ExitStatus>, UserError> {
    let failed = |e| UserError(format!("waiting for the process failed: {e}"));
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(Some(status));
        }
        if give_up() {
            // It may have ended just now.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Ok(None);
        }
        std::thread::sleep(tick);
    }
}

/// How a process ended, in words.
fn cause(ended: Option<ExitStatus>) -> String {
    let Some(status) = ended else { return "the allocator did not come back".to_owned() };
    match (status.signal(), status.code()) {
        (Some(4), _) => "the allocator was killed by an illegal instruction (SIGILL)".to_owned(),
        (Some(6), _) => "the allocator aborted the process (SIGABRT)".to_owned(),
        (Some(7), _) => "the allocator was killed by a bus error (SIGBUS)".to_owned(),
        (Some(11), _) => "the allocator was killed by an access to memory that is not there (SIGSEGV)".to_owned(),
        (Some(signal), _) => format!("the allocator was killed by signal {signal}"),
        (None, code) => format!("the process ended without an answer, with status {}", code.unwrap_or(-1)),
    }
}

fn this_program() -> Result<PathBuf, UserError> {
    std::env::current_exe().map_err(|e| UserError(format!("this program's path is unknown: {e}")))
}
