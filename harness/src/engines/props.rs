//! proptest: properties over traces, run by its own test runner in this process.

use super::exec::{Judge, Outcome};
use super::{Engine, Job, Live};
use crate::generate::{Generator, Target, rng};
use crate::mutate::mutate;
use crate::trace::Trace;
use proptest::prelude::{Strategy, any};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::cell::RefCell;

/// The proptest engine.
pub struct Props;

impl Engine for Props {
    fn name(&self) -> &'static str {
        "proptest"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let strategy = arbitrary_trace(job.target, job.max_ops);
        run_strategy(job, live, &strategy, |trace| trace)
    }
}

/// Traces for a target: what our generator makes of a seed, after a few of our mutations.
///
/// The value does not shrink: a failing trace goes to [`crate::shrink`], which keeps the oracle and knows which free
/// belongs to which allocation.
pub fn arbitrary_trace(target: Target, max_ops: usize) -> impl Strategy<Value = Trace> {
    let make = move |(seed, rounds): (u64, u8)| {
        let mut trace = Generator::new(seed).trace(target, max_ops);
        let mut rng = rng(seed);
        for _ in 0..rounds {
            mutate(&mut trace, &mut rng, max_ops);
        }
        trace
    };
    (any::<u64>(), 0..8u8).prop_map(make).no_shrink()
}

/// Runs cases of a strategy until the budget is spent or a trace fails.
pub(super) fn run_strategy<S: Strategy>(
    job: &Job<'_>,
    live: &Live,
    strategy: &S,
    to_trace: impl Fn(S::Value) -> Trace,
) -> Result<Outcome, String> {
    let judge = RefCell::new(Judge::new(job, live));
    let mut runner = TestRunner::new(config(job.seed));
    while !judge.borrow().is_over() && !job.budget.is_spent(judge.borrow().executions()) {
        let tree = strategy.new_tree(&mut runner).map_err(|e| format!("proptest makes no value: {e}"))?;
        // The judge keeps what failed; what the runner says about it adds nothing.
        let _ = runner.run_one(tree, |value| {
            let judged = judge.borrow_mut().judge(&to_trace(value));
            judged.map(drop).ok_or_else(|| TestCaseError::fail("the judge has the finding"))
        });
    }
    Ok(judge.into_inner().into_outcome())
}

/// The runner neither shrinks nor stores seeds: we shrink and store values.
fn config(seed: u64) -> Config {
    Config { failure_persistence: None, max_shrink_iters: 0, rng_seed: RngSeed::Fixed(seed), ..Config::default() }
}
