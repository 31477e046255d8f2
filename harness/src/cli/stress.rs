//! `hammer stress`: rounds of real threads on one hosted allocator.

use super::run::fresh_seed;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::report::table::grouped;
use crate::stress::{Round, StressOptions, round};
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(super) struct StressArgs {
    /// How long to go on.
    #[arg(long, value_name = "N", default_value_t = 10)]
    seconds: u64,
    /// Threads that run traces at once; each has up to three more that make its calls.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Operations of each thread's trace.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    ops: u32,
    /// MiB of memory that the threads share.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(4..=65_536))]
    memory: u32,
    /// Where random numbers start; the same seed gives the same traces, but not the same turns of the threads.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub(super) fn run(args: &StressArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let first = args.seed.unwrap_or_else(fresh_seed);
    let options = StressOptions {
        threads: args.threads.into(),
        ops: args.ops as usize,
        meet_every: (args.ops as usize / 8).max(1),
        memory: (args.memory as usize) << 20,
    };
    let (start, limit) = (Instant::now(), Duration::from_secs(args.seconds));
    let (mut calls, mut meetings, mut rounds) = (0, 0, 0u64);
    while rounds == 0 || (start.elapsed() < limit && !ui.live.is_stopped()) {
        let seed = first.wrapping_add(rounds);
        let round = round(&options, seed).map_err(|error| UserError(error.to_string()))?;
        (calls, meetings, rounds) = (calls + round.calls, meetings + round.meetings, rounds + 1);
        if round.objection.is_some() {
            return tell(&round, seed, ui);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let text = format!(
        "{} calls of {} threads in {} rounds, at rest and looked at {} times: no oracle objected ({seconds:.0} s, seed {first})",
        grouped(calls),
        args.threads,
        grouped(rounds),
        grouped(meetings),
    );
    let value = serde_json::json!({
        "ok": true, "calls": calls, "rounds": rounds, "meetings": meetings, "seconds": seconds, "seed": first,
    });
    ui.result(&value, text);
    Ok(Verdict::Fine)
}

/// Keeps the traces of a round that somebody objected to, and says what was wrong.
fn tell(round: &Round, seed: u64, ui: &Ui) -> Result<Verdict, UserError> {
    let Some((thread, violation)) = &round.objection else { return Ok(Verdict::Fine) };
    let who = thread.map_or("while all threads were at rest".to_owned(), |thread| format!("thread {thread}"));
    let said = format!("{} ({who}, operation {}, seed {seed}): {}", violation.oracle, violation.op, violation.message);
    let folder = ui.out().join(format!("stress-{seed:x}"));
    let first = keep(round, &folder, &said).map_err(|error| UserError(format!("{}: {error}", folder.display())))?;
    let row = serde_json::json!({ "oracle": violation.oracle, "message": &said, "folder": &folder });
    let text =
        format!("{said}\nThe traces of all threads are in {}; how the threads took turns is not.", folder.display());
    ui.result(&serde_json::json!({ "ok": false, "violations": [row] }), text);
    Ok(Verdict::Violation(first))
}

/// Writes each thread's trace; returns the path of the one that is to blame, or of the first.
fn keep(round: &Round, folder: &std::path::Path, said: &str) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let guilty = round.objection.as_ref().and_then(|(thread, _)| *thread).unwrap_or(0);
    let path = |thread: usize| folder.join(format!("thread-{thread}.ron"));
    for (thread, trace) in round.traces.iter().enumerate() {
        std::fs::write(path(thread), format!("// {said}\n{}", trace.to_text()))?;
    }
    Ok(path(guilty))
}
