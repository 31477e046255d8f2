//! The fuzz targets: the glue between libFuzzer's bytes and our traces.
//!
//! A target in `fuzz/fuzz_targets` hands its bytes to [`check`], and its mutator and crossover to [`mutate`] and
//! [`crossover`], which work on operations instead of bytes.

use super::exec::Executor;
use super::libfuzzer::COUNTERS;
use crate::generate::{Target, rng};
use crate::run::{Coverage, Depth, RunReport};
use crate::trace::{HEADER_BYTES, RECORD_BYTES, Trace};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// How many bytes a trace of so many operations needs.
pub fn max_len(max_ops: usize) -> usize {
    HEADER_BYTES + max_ops * RECORD_BYTES
}

/// Decodes an input as this target does: operations that it does not aim at are left out.
pub fn decode(target: Target, bytes: &[u8]) -> Trace {
    let mut trace = Trace::from_bytes(bytes);
    trace.ops.retain(|op| target.uses(op.kind().group()));
    trace
}

/// How often the counters are printed.
const COUNTER_INTERVAL: Duration = Duration::from_millis(250);

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State::default());
}

/// What a fuzzing process keeps between inputs.
struct State {
    executor: Executor,
    executions: u64,
    ops: u64,
    coverage: Coverage,
    depth: Depth,
    printed: Instant,
}

impl Default for State {
    fn default() -> Self {
        let (executor, coverage) = (Executor::default(), Coverage::default());
        Self { executor, executions: 0, ops: 0, coverage, depth: Depth::default(), printed: Instant::now() }
    }
}

impl State {
    /// Counts an execution; the counters are printed now and then, and before the process ends.
    fn count(&mut self, report: &RunReport) {
        self.executions += 1;
        self.ops += report.calls;
        self.coverage.merge(&report.coverage);
        self.depth.add(report);
        if !report.is_ok() || self.printed.elapsed() >= COUNTER_INTERVAL {
            self.printed = Instant::now();
            self.print();
        }
    }

    fn print(&self) {
        let (depth, coverage) = (self.depth.row(), self.coverage.to_line());
        eprintln!("{COUNTERS}executions={} ops={} depth={depth} coverage={coverage}", self.executions, self.ops);
    }
}

impl Drop for State {
    /// The last counters: libFuzzer leaves by `exit`, which runs the destructors of the main thread.
    fn drop(&mut self) {
        self.print();
    }
}

/// Executes one input of libFuzzer.
///
/// # Panics
///
/// On a violation: libFuzzer keeps the input of a process that aborts. The subject's own panics end there too.
pub fn check(target: Target, bytes: &[u8]) {
    let trace = decode(target, bytes);
    let report = STATE.with_borrow_mut(|state| {
        let report = state.executor.execute_watched(target, &trace, &mut state.depth);
        state.count(&report);
        report
    });
    if let Some(violation) = report.violation {
        panic!("{}: {} (operation {})", violation.oracle, violation.message, violation.op);
    }
}

/// Mutates an input as a trace; `bytewise` is libFuzzer's own mutator, which takes every eighth turn so that the
/// decoder meets bytes that no encoder writes.
pub fn mutate(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    bytewise: fn(&mut [u8], usize, usize) -> usize,
) -> usize {
    if seed.is_multiple_of(8) {
        return bytewise(data, size, max_size);
    }
    let mut trace = Trace::from_bytes(&data[..size.min(data.len())]);
    crate::mutate::mutate(&mut trace, &mut rng(u64::from(seed)), max_ops(max_size));
    write(&trace, data, max_size)
}

/// Crosses two inputs as traces.
pub fn crossover(a: &[u8], b: &[u8], out: &mut [u8], seed: u32) -> usize {
    let child = crate::mutate::crossover(
        &Trace::from_bytes(a),
        &Trace::from_bytes(b),
        &mut rng(u64::from(seed)),
        max_ops(out.len()),
    );
    let max_size = out.len();
    write(&child, out, max_size)
}

/// How many operations fit into so many bytes.
fn max_ops(bytes: usize) -> usize {
    bytes.saturating_sub(HEADER_BYTES) / RECORD_BYTES
}

/// Writes the encoding, cut at the room there is; a cut trace is a trace.
fn write(trace: &Trace, out: &mut [u8], max_size: usize) -> usize {
    let bytes = trace.to_bytes();
    let len = bytes.len().min(max_size).min(out.len());
    out[..len].copy_from_slice(&bytes[..len]);
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutated_input_stays_within_its_room_and_still_decodes() {
        let mut data = vec![0; 4096];
        for seed in 1..500 {
            let size = mutate(&mut data, 1000, 900, seed, |_, _, _| 0);
            assert!(size <= 900);
            let len = crossover(&data[..size], &[1; 300], &mut [0; 700], seed);
            assert!(len <= 700);
        }
    }
}
