//! `hammer record`: a real program's heap becomes a trace.

use super::ui::Ui;
use super::{UserError, Verdict};
use crate::record::{convert, log, preload, valgrind};
use crate::trace::MAX_OPS;
use clap::Args;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct RecordArgs {
    /// Where the trace goes.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Convert a log that `valgrind --trace-malloc=yes` wrote, instead of running a program.
    #[arg(long, value_name = "LOG", conflicts_with = "command", required_unless_present = "command")]
    log: Option<PathBuf>,
    /// The library that the program runs on and that writes its heap down; by default the one beside this program.
    #[arg(long, value_name = "LIBRARY", conflicts_with_all = ["log", "valgrind"])]
    preload: Option<PathBuf>,
    /// Run the program under valgrind instead: it also says what a program does that calls no `malloc` of a library.
    #[arg(long)]
    valgrind: bool,
    /// How many allocations and frees to pass over at the start of the program.
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: usize,
    /// The most operations to keep.
    #[arg(long, value_name = "N", default_value_t = MAX_OPS, value_parser = up_to_max)]
    ops: usize,
    /// The program and its arguments.
    #[arg(last = true)]
    command: Vec<OsString>,
}

fn up_to_max(text: &str) -> Result<usize, String> {
    let n = text.parse::<usize>().map_err(|e| e.to_string())?;
    if (1..=MAX_OPS).contains(&n) { Ok(n) } else { Err(format!("a trace has 1 to {MAX_OPS} operations")) }
}

pub(super) fn run(args: &RecordArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let events = recorded(args)?;
    let events = events.get(args.from..).unwrap_or_default();
    if events.is_empty() {
        return Err(UserError(
            "no allocation was recorded: is the log one of `valgrind --trace-malloc=yes`, is the program linked \
             dynamically, are there so many events?"
                .to_owned(),
        ));
    }
    let trace = convert::to_trace(events, args.ops)?;
    let written = std::fs::write(&args.to, trace.to_commented_text(&comment(args, events.len())));
    written.map_err(|e| UserError(format!("{} cannot be written: {e}", args.to.display())))?;
    let (events, ops) = (events.len(), trace.ops.len());
    let value = serde_json::json!({ "ok": true, "events": events, "ops": ops, "file": &args.to });
    ui.result(&value, format!("{}: {ops} operations from {events} events", args.to.display()));
    Ok(Verdict::Fine)
}

fn recorded(args: &RecordArgs) -> Result<Vec<log::Event>, UserError> {
    if let Some(path) = &args.log {
        return Ok(log::busiest_process(&read_log(path)?));
    }
    if args.valgrind {
        return Ok(log::busiest_process(&valgrind::record(&args.command)?));
    }
    let Some(library) = args.preload.clone().or_else(preload::library_beside) else {
        return Err(UserError(
            "the library that records is not beside this program; `cargo build --release -p kmem-preload` makes it, and \
             --valgrind does without"
                .to_owned(),
        ));
    };
    Ok(preload::record(&library, &args.command)?.0)
}

fn read_log(path: &Path) -> Result<String, UserError> {
    let bytes = std::fs::read(path).map_err(|e| UserError(format!("{} cannot be read: {e}", path.display())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn comment(args: &RecordArgs, events: usize) -> String {
    let words: Vec<_> = args.command.iter().map(|word| quoted(&word.to_string_lossy())).collect();
    let source = match &args.log {
        Some(log) => format!("the log {}", log.display()),
        None => format!("`{}`", words.join(" ")),
    };
    let (first, ops) = (args.from + 1, args.ops);
    let part = match (args.from, events > ops) {
        (0, false) => format!("all {events}"),
        (0, true) => format!("the first {ops} of {events}"),
        (_, false) => format!("from number {first} on, all {events}"),
        (_, true) => format!("from number {first} on, {ops}"),
    };
    format!("The heap of {source} as kvmalloc calls: {part} allocations and frees.")
}

/// Quotes a word that a shell would take apart.
fn quoted(word: &str) -> String {
    let plain = word.chars().all(|c| c.is_alphanumeric() || "-_=+:,./@".contains(c));
    if plain && !word.is_empty() { word.to_owned() } else { format!("'{word}'") }
}
