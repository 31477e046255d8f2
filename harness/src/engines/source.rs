//! Where the traces of a guided engine come from: made anew, or changed from what reached something new.

use super::Job;
use crate::generate::{Generator, Recipe, TraceRng, rng};
use crate::mutate;
use crate::run::RunReport;
use crate::trace::{RECORD_BYTES, Trace};
use rand::{Rng, RngExt};

/// How many interesting traces are kept; a new one replaces a random one.
const POOL: usize = 256;
/// Among how many of them the one to change is chosen.
const CHOICE: usize = 4;
/// How long the first traces are at most, and after how many that doubles: what one call can show is shown by one call.
const FIRST_OPS: usize = 4;
const DOUBLED_AFTER: u32 = 8;
/// One of how many fresh traces may have macro operations: it makes as many calls as several without.
const MACROS_EVERY: u32 = 4;

/// How traces are made that come of no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fresh {
    /// By our generator.
    Generated(Recipe),
    /// By the decoder, out of random bytes.
    Decoded,
}

/// How traces are changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// As operations.
    Structured,
    /// As bytes.
    Bytewise,
}

/// Which traces are kept, to be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guide {
    /// None.
    Nothing,
    /// Those with a new magnitude of an event or an answer.
    Events,
    /// Those, and those that brought memory into a new state.
    States,
}

/// The parts of a guided engine; one is replaced to measure what it is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// How traces are made.
    pub fresh: Fresh,
    /// How they are changed.
    pub mutation: Mutation,
    /// Which are kept.
    pub guide: Guide,
}

impl Parts {
    /// Ours.
    pub const WHOLE: Self =
        Self { fresh: Fresh::Generated(Recipe::WHOLE), mutation: Mutation::Structured, guide: Guide::Events };
}

/// Makes traces and learns from what they reached.
pub struct Source {
    parts: Parts,
    generator: Generator,
    rng: TraceRng,
    pool: Pool,
    /// Traces made so far.
    made: u32,
}

impl Source {
    /// Makes a source for a job, from whose seeds it starts.
    pub fn new(parts: Parts, job: &Job<'_>) -> Self {
        let recipe = if let Fresh::Generated(recipe) = parts.fresh { recipe } else { Recipe::WHOLE };
        let generator = Generator::with_recipe(job.seed, recipe);
        Self { parts, generator, rng: rng(job.seed), pool: Pool::new(job.seeds, job.max_ops), made: 0 }
    }

    /// Makes the next trace for the job's target.
    pub fn next(&mut self, job: &Job<'_>) -> Trace {
        let most = job.max_ops.min(FIRST_OPS << (self.made / DOUBLED_AFTER).min(24));
        self.made = self.made.saturating_add(1);
        let mutant = self.pool.mutant(self.parts.mutation, &mut self.rng, most);
        let Some(mut trace) = mutant else { return self.fresh(job, most) };
        if let Fresh::Generated(recipe) = self.parts.fresh {
            recipe.restrict(&mut trace);
        }
        trace
    }

    fn fresh(&mut self, job: &Job<'_>, most: usize) -> Trace {
        match self.parts.fresh {
            Fresh::Generated(recipe) => {
                let macros = recipe.macros && self.rng.random_ratio(1, MACROS_EVERY);
                self.generator.trace_by(Recipe { macros, ..recipe }, job.target, most)
            }
            Fresh::Decoded => {
                let mut bytes = vec![0; 8 + self.rng.random_range(0..=most) * RECORD_BYTES];
                self.rng.fill_bytes(&mut bytes);
                Trace::from_bytes(&bytes)
            }
        }
    }

    /// Keeps a trace if what it reached is new; `states` is how many states of memory were.
    pub fn learn(&mut self, trace: Trace, report: &RunReport, states: usize) {
        if self.parts.guide != Guide::Nothing {
            self.pool.learn(trace, report, states, &mut self.rng);
        }
    }
}

/// A trace that reached something new.
struct Member {
    trace: Trace,
    /// Calls that it makes.
    calls: u64,
}

/// Traces that reached something new. Of a few, the one with the fewest calls is changed: in the time that one with many takes,
/// several others are tried.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Vec<Member>,
    novelty: Novelty,
}

impl Pool {
    /// A pool that begins with these traces, as far as they are short enough.
    pub(crate) fn new(seeds: &[Trace], max_ops: usize) -> Self {
        let short = seeds.iter().filter(|seed| seed.ops.len() <= max_ops).take(POOL);
        let kept = short.map(|seed| Member { trace: seed.clone(), calls: seed.ops.len() as u64 }).collect();
        Self { kept, novelty: Novelty::default() }
    }

    /// A changed member; `None` for every second trace, and as long as there is no member.
    pub(crate) fn mutant(&self, mutation: Mutation, rng: &mut TraceRng, max_ops: usize) -> Option<Trace> {
        if self.kept.is_empty() || rng.random_bool(0.5) {
            return None;
        }
        let mut trace = self.member(rng)?.clone();
        let other = if rng.random_bool(0.2) { self.member(rng) } else { None };
        match mutation {
            Mutation::Structured => {
                trace = other.map_or(trace.clone(), |other| mutate::crossover(&trace, other, rng, max_ops));
                mutate::mutate(&mut trace, rng, max_ops);
            }
            Mutation::Bytewise => {
                trace = other.map_or(trace.clone(), |other| mutate::bytes::crossover(&trace, other, rng, max_ops));
                mutate::bytes::mutate(&mut trace, rng, max_ops);
            }
        }
        Some(trace)
    }

    fn member(&self, rng: &mut TraceRng) -> Option<&Trace> {
        let drawn = (0..CHOICE).filter_map(|_| self.kept.get(rng.random_range(0..self.kept.len())));
        drawn.min_by_key(|member| member.calls).map(|member| &member.trace)
    }

    /// Keeps a trace if what it reached is new.
    pub(crate) fn learn(&mut self, trace: Trace, report: &RunReport, states: usize, rng: &mut TraceRng) {
        if !self.novelty.observe(report.coverage.answers()) && states == 0 {
            return;
        }
        let new = Member { trace, calls: report.calls };
        if self.kept.len() < POOL {
            self.kept.push(new);
        } else if let Some(member) = self.kept.get_mut(rng.random_range(0..POOL)) {
            *member = new;
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
