//! Our own generator in this process, steered by novelty.
//!
//! A trace that reaches a new combination of internal event and magnitude (how often it happened, as a power of two)
//! joins a small pool; half of the traces are made by changing one of the pool, half are made anew.

use super::exec::{Judge, Outcome};
use super::{Engine, Job, Live};
use crate::generate::{Generator, TraceRng, rng};
use crate::mutate::{crossover, mutate};
use crate::trace::Trace;
use rand::RngExt;

/// How many interesting traces are kept; a new one replaces a random one.
const POOL: usize = 256;

/// The in-process random engine.
pub struct Random;

impl Engine for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let mut source = Source::new(job);
        let mut judge = Judge::new(job, live);
        while !judge.is_over() && !job.budget.is_spent(judge.executions()) {
            let trace = source.next(job);
            if let Some(report) = judge.judge(&trace)
                && source.novelty.observe(report.coverage.answers())
            {
                source.keep(trace);
            }
        }
        Ok(judge.into_outcome())
    }
}

/// Where the traces come from.
struct Source {
    generator: Generator,
    rng: TraceRng,
    pool: Vec<Trace>,
    novelty: Novelty,
}

impl Source {
    fn new(job: &Job<'_>) -> Self {
        let pool = job.seeds.iter().filter(|seed| seed.ops.len() <= job.max_ops).take(POOL).cloned().collect();
        Self { generator: Generator::new(job.seed), rng: rng(job.seed), pool, novelty: Novelty::default() }
    }

    fn next(&mut self, job: &Job<'_>) -> Trace {
        if self.pool.is_empty() || self.rng.random_bool(0.5) {
            return self.generator.trace(job.target, job.max_ops);
        }
        let mut trace = self.member().clone();
        if self.rng.random_bool(0.2) {
            let other = self.member().clone();
            trace = crossover(&trace, &other, &mut self.rng, job.max_ops);
        }
        mutate(&mut trace, &mut self.rng, job.max_ops);
        trace
    }

    /// A random member of the pool, which is not empty.
    fn member(&mut self) -> &Trace {
        let i = self.rng.random_range(0..self.pool.len());
        &self.pool[i]
    }

    fn keep(&mut self, trace: Trace) {
        if self.pool.len() < POOL {
            self.pool.push(trace);
        } else {
            let i = self.rng.random_range(0..POOL);
            self.pool[i] = trace;
        }
    }
}

/// Which magnitudes of which events were seen: bit `b` of an event says that it happened `2^b..2^(b+1)` times.
#[derive(Default)]
struct Novelty {
    seen: Vec<u64>,
}

impl Novelty {
    /// Adds the events of an execution; tells whether something is new.
    fn observe(&mut self, events: &[u64]) -> bool {
        self.seen.resize(self.seen.len().max(events.len()), 0);
        let mut new = false;
        for (seen, &count) in self.seen.iter_mut().zip(events) {
            let bit = count.checked_ilog2().map_or(0, |magnitude| 1 << magnitude);
            new |= *seen & bit != bit;
            *seen |= bit;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_magnitude_of_an_event_is_new_once() {
        let mut novelty = Novelty::default();
        assert!(!novelty.observe(&[0, 0]));
        assert!(novelty.observe(&[0, 5]));
        assert!(!novelty.observe(&[0, 7]));
        assert!(novelty.observe(&[0, 8]));
    }
}
