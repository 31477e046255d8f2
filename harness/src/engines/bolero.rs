//! bolero in this process: its typed generators and byte driver, under the budget of the main job.
//!
//! bolero's own test engine prints to the error stream, ends by panicking and stops after a second unless told, so this
//! is an engine of ours behind bolero's `Engine` trait. Under `cargo test` the `proptests` crate runs the same
//! generator with bolero's engine.

use super::exec::{Judge, Outcome};
use super::{Engine, Job, Live, draw};
use crate::trace::{GeometrySpec, Op, OpKind, Swarm, Trace};
use bolero_engine::{BorrowedGeneratorTest, Driver, Test, ValueGenerator, driver, input};
use rand::Rng;
use std::cell::RefCell;
use std::ops::Bound;
use std::panic::AssertUnwindSafe;

/// The bolero engine.
pub struct Bolero;

impl Engine for Bolero {
    fn name(&self) -> &'static str {
        "bolero"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let judge = AssertUnwindSafe(RefCell::new(Judge::new(job, live)));
        let test = BorrowedGeneratorTest::new(
            |trace: &Trace| {
                judge.borrow_mut().judge(trace);
            },
            Traces::new(draw::groups(job.target), job.max_ops),
        );
        let go_on = || !judge.borrow().is_over() && !job.budget.is_spent(judge.borrow().executions());
        bolero_engine::Engine::run(Budgeted { seed: job.seed, max_ops: job.max_ops, go_on }, test, Default::default());
        Ok(judge.0.into_inner().into_outcome())
    }
}

/// Feeds a bolero test with random bytes while it may go on.
struct Budgeted<F> {
    seed: u64,
    max_ops: usize,
    go_on: F,
}

impl<T: Test, F: Fn() -> bool> bolero_engine::Engine<T> for Budgeted<F> {
    type Output = ();

    fn run(self, mut test: T, options: driver::Options) {
        let mut rng = crate::generate::rng(self.seed);
        // An operation takes a kind and at most four numbers.
        let mut bytes = vec![0; 64 + self.max_ops * 40];
        while (self.go_on)() {
            rng.fill_bytes(&mut bytes);
            // The verdict went to the judge.
            let _ = test.test(&mut input::Bytes::new(&bytes, &options));
        }
    }
}

/// bolero's generator of traces: a machine, and operations of these groups with useful numbers.
pub struct Traces {
    kinds: Vec<OpKind>,
    max_ops: usize,
}

impl Traces {
    /// Makes a generator for these groups.
    pub fn new(groups: Swarm, max_ops: usize) -> Self {
        let kinds = OpKind::ALL.into_iter().filter(|kind| groups.contains(kind.group())).collect();
        Self { kinds, max_ops }
    }

    fn operation<D: Driver>(&self, driver: &mut D) -> Option<Op> {
        let kind = *self.kinds.get(driver.gen_variant(self.kinds.len(), 0)?)?;
        let mut complete = true;
        let op = Op::from_numbers(kind, |role| {
            let raw = driver.produce::<u64>();
            complete &= raw.is_some();
            draw::number(role, raw.unwrap_or(0))
        });
        complete.then_some(op)
    }
}

impl ValueGenerator for Traces {
    type Output = Trace;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Trace> {
        let len = driver.gen_usize(Bound::Included(&1), Bound::Included(&self.max_ops))?;
        let tiny: bool = driver.produce()?;
        let ops: Option<Vec<Op>> = (0..len).map(|_| self.operation(driver)).collect();
        let mut trace = Trace::new(ops?);
        if tiny {
            trace.geometry = GeometrySpec { frames: 128, dma_frames: 0, ..trace.geometry };
        }
        Some(trace)
    }
}
