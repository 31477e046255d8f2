//! How fast traces are executed and judged.

use super::{RunOptions, Runner};
use crate::generate::{Generator, Target};
use crate::subjects::SubjectKind;
use crate::trace::{GeometrySpec, Trace};
use std::time::{Duration, Instant};

/// Operations of each measured trace.
const OPS: usize = 10_000;
/// How many traces take turns.
const TRACES: u64 = 8;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Throughput {
    /// Runs completed.
    pub runs: u64,
    /// Operations of the traces.
    pub ops: u64,
    /// Calls and accesses that they stood for, each judged by every oracle.
    pub calls: u64,
    /// Time spent in runs.
    pub seconds: f64,
}

impl Throughput {
    /// Judged calls and accesses per second.
    pub fn calls_per_second(&self) -> f64 {
        self.calls as f64 / self.seconds
    }

    /// Operations per second; a macro operation is one.
    pub fn ops_per_second(&self) -> f64 {
        self.ops as f64 / self.seconds
    }
}

/// Runs generated traces on `kmem`, on the default geometry, on this thread, every oracle asked, with a full audit every
/// 64 operations, until the time is over.
pub fn throughput(seconds: f64) -> Throughput {
    let traces: Vec<Trace> = (0..TRACES).map(measured_trace).collect();
    let limit = Duration::from_secs_f64(seconds);
    let mut runner = Runner::new();
    let mut total = Throughput { runs: 0, ops: 0, calls: 0, seconds: 0.0 };
    let start = Instant::now();
    for trace in traces.iter().cycle() {
        let report = runner.run(trace, SubjectKind::KMEM, &RunOptions::default());
        total.runs += 1;
        total.ops += report.ops as u64;
        total.calls += report.calls;
        if start.elapsed() >= limit {
            break;
        }
    }
    total.seconds = start.elapsed().as_secs_f64();
    total
}

fn measured_trace(seed: u64) -> Trace {
    let mut trace = Generator::new(seed).trace(Target::Trace, OPS);
    trace.geometry = GeometrySpec::default();
    trace
}
