//! `hammer soak`: traces of all kinds on one small machine, for as many operations as wanted.

use super::replay::keep;
use super::run::fresh_seed;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::{Executor, Finding};
use crate::generate::{Generator, Target};
use crate::report::failure::Case;
use crate::report::table::grouped;
use crate::run::RunOptions;
use crate::subjects::SubjectKind;
use crate::trace::{GeometrySpec, Trace};
use clap::Args;
use std::time::Instant;

/// Operations of a trace at most: at its end everything is freed and O12 looks for what leaked.
const TRACE_OPS: usize = 2_000;

#[derive(Args)]
pub(super) struct SoakArgs {
    /// How many operations, at least.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    ops: u64,
    /// Where random numbers start; the same seed gives the same traces.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Pages of memory.
    #[arg(long, value_name = "N", default_value_t = 16)]
    frames: u32,
    /// Pages of the vmalloc window.
    #[arg(long, value_name = "N", default_value_t = 64)]
    window: u32,
    /// CPUs.
    #[arg(long, value_name = "N", default_value_t = 4)]
    cpus: u16,
}

pub(super) fn run(args: &SoakArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let machine = machine(args)?;
    let mut generator = Generator::new(seed);
    let mut executor = Executor::new(SubjectKind::KMEM, RunOptions::default());
    let (start, mut ops, mut traces) = (Instant::now(), 0, 0u64);
    for target in [Target::Vmalloc, Target::Kvmalloc, Target::Trace].into_iter().cycle() {
        if ops >= args.ops || ui.live.is_stopped() {
            break;
        }
        let trace = Trace { geometry: machine, ..generator.trace(target, TRACE_OPS) };
        let report = executor.execute(target, &trace);
        ops += report.ops as u64;
        traces += 1;
        if let Some(violation) = report.violation {
            let source = format!("soak on {target:?}, seed {seed}, after {ops} operations");
            let case = Case::minimise(Finding::new(trace, violation), target, SubjectKind::KMEM, source);
            let row = keep(&case, ui)?;
            ui.result(&serde_json::json!({ "ok": false, "violations": [&row] }), &row.message);
            return Ok(Verdict::Violation(row.reproducer));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let text = format!(
        "{} operations in {} traces on {} pages, a window of {} and {} CPUs: nothing leaked, no oracle objected ({seconds:.0} s, \
         seed {seed})",
        grouped(ops),
        grouped(traces),
        machine.frames,
        machine.vmalloc_pages,
        machine.cpus,
    );
    ui.result(&serde_json::json!({ "ok": true, "ops": ops, "traces": traces, "seconds": seconds, "seed": seed }), text);
    Ok(Verdict::Fine)
}

/// The machine that is asked for, with one zone.
fn machine(args: &SoakArgs) -> Result<GeometrySpec, UserError> {
    let machine = GeometrySpec {
        frames: args.frames,
        dma_frames: 0,
        cpus: args.cpus,
        max_order: 4,
        pageblock_order: 2,
        vmalloc_pages: args.window,
        min_free: args.frames / 16,
        ..GeometrySpec::default()
    };
    match machine.out_of_range() {
        Some((name, value, nearest)) => Err(UserError(format!("{name} cannot be {value}; the nearest is {nearest}"))),
        None => Ok(machine),
    }
}
