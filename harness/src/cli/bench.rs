//! `hammer bench`: how fast one core executes and judges; how many instructions the hot pair takes.

use super::ui::Ui;
use super::{UserError, Verdict};
use clap::Args;
use kmem::GfpFlags;
use kmem_harness::machine::TlbFlushes;
use kmem_harness::report::table::grouped;
use kmem_harness::run::throughput;
use kmem_harness::subjects::{KmemSubject, Spare};
use kmem_harness::trace::GeometrySpec;
use std::process::{Command, Stdio};

/// Pairs that warm up, and those measured: their difference is free of everything that happens once.
const PAIRS: [u64; 2] = [10_000, 110_000];

#[derive(Args)]
pub(super) struct BenchArgs {
    /// How long to measure.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only executes so many pairs of kmalloc(64) and kfree: what runs below callgrind.
    #[arg(long, value_name = "N", hide = true)]
    pairs: Option<u64>,
}

pub(super) fn run(args: &BenchArgs, ui: &Ui) -> Result<Verdict, UserError> {
    if let Some(pairs) = args.pairs {
        hot_pairs(pairs)?;
        return Ok(Verdict::Fine);
    }
    let measured = throughput(args.seconds as f64);
    let instructions = instructions_per_pair();
    let value = serde_json::json!({
        "ok": true, "throughput": measured, "calls_per_second": measured.calls_per_second(),
        "ops_per_second": measured.ops_per_second(),
        "instructions_per_pair": instructions.as_ref().ok(),
    });
    let pair = match &instructions {
        Ok(n) => format!("{n:.1} instructions (callgrind, simulated platform)"),
        Err(why) => format!("not counted: {why}"),
    };
    let text = format!(
        "{} judged calls a second on one core ({} operations of traces), every oracle asked, full audit every 64 operations\n\
         hot kmalloc(64) + kfree: {pair}",
        grouped(measured.calls_per_second() as u64),
        grouped(measured.ops_per_second() as u64),
    );
    ui.result(&value, text);
    Ok(Verdict::Fine)
}

/// Allocates and frees 64 bytes, over and over, on the simulated platform without any oracle.
fn hot_pairs(pairs: u64) -> Result<(), UserError> {
    let geometry = GeometrySpec::default().to_geometry();
    let subject = KmemSubject::new(&geometry, Spare::default(), TlbFlushes::Obeyed);
    let subject = subject.map_err(|e| UserError(format!("the machine cannot be made: {e}")))?;
    let kmem = subject.kmem();
    for _ in 0..pairs {
        let freed = kmem.kmalloc(64, GfpFlags::KERNEL).map(|addr| kmem.kfree(addr));
        if !matches!(freed, Ok(Ok(()))) {
            return Err(UserError(format!("kmalloc(64) and kfree answered {freed:?}")));
        }
    }
    Ok(())
}

fn instructions_per_pair() -> Result<f64, String> {
    let [few, many] = PAIRS;
    let difference = instructions(many)?.saturating_sub(instructions(few)?);
    Ok(difference as f64 / (many - few) as f64)
}

/// Instructions of this program when it does nothing but pairs.
fn instructions(pairs: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's path is unknown: {e}"))?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.args(["bench", "--pairs", &pairs.to_string()]).stdout(Stdio::null());
    let output = command.output().map_err(|e| format!("valgrind could not be started: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.ok_or_else(|| "callgrind printed no count".to_owned())
}
