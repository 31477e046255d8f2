//! Our own generator in this process, steered by novelty.
//!
//! The first traces are short, the later ones longer. A trace that reaches a new combination of internal event and
//! magnitude (how often it happened, as a power of two) joins a small pool; half of the traces are made by changing one of
//! the pool, half are made anew.

use super::exec::{Judge, Outcome};
use super::source::{Parts, Source};
use super::{Engine, Job, Live};

/// The in-process random engine.
pub struct Random;

impl Engine for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let mut source = Source::new(Parts::WHOLE, job);
        let mut judge = Judge::new(job, live);
        while !judge.is_over() && !job.budget.is_spent(judge.executions()) {
            let trace = source.next(job);
            if let Some(report) = judge.judge(&trace) {
                source.learn(trace, &report, 0);
            }
        }
        Ok(judge.into_outcome())
    }
}
