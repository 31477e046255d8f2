//! A contestant at work.

use super::{Contestant, Maker};
use crate::engines::source::{Fresh, Guide, Mutation, Parts, Pool, Source};
use crate::engines::{Engine, Job, Judge, Live, Outcome};
use crate::generate::{Recipe, Target, TraceRng, rng};
use crate::oracle::{Muted, OracleId};
use crate::run::{Judges, RunReport, States};
use crate::trace::{Trace, interesting};
use crate::yardstick::designs::{Design, derived};
use rand::Rng;

/// What our engine aims at by turns; the codecs are no matter of an allocator.
const TARGETS: [Target; 5] = [Target::Trace, Target::Kvmalloc, Target::Pages, Target::Slab, Target::Vmalloc];

/// A contestant as an engine, on one thread.
pub struct Contest {
    /// Who.
    pub contestant: Contestant,
    /// How many operations at most.
    pub ops: u64,
}

impl Engine for Contest {
    fn name(&self) -> &'static str {
        self.contestant.maker.name
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        self.run_and_look(job, live, None)
    }
}

impl Contest {
    /// Runs until the budget is spent or something is found; notes the states of memory, if somebody wants to know.
    ///
    /// # Errors
    ///
    /// None so far.
    pub fn run_and_look(&self, job: &Job<'_>, live: &Live, mut states: Option<&mut States>) -> Result<Outcome, String> {
        let mut traces = Traces::new(self.contestant.maker.what, job);
        let mut judge = Judge::with_judges(job, live, self.contestant.judge.what);
        let mut own = States::default();
        while !judge.is_over() && judge.ops() < self.ops && !job.budget.is_spent(judge.executions()) {
            let trace = traces.next(job);
            let seen = match &mut states {
                Some(states) => Some(&mut **states),
                None => traces.looks_at_states().then_some(&mut own),
            };
            let (report, new) = match seen {
                Some(states) => (judge.judge_and_look(&trace, states), states.take_new()),
                None => (judge.judge(&trace), 0),
            };
            match report {
                Some(report) => traces.learn(trace, &report, new),
                None => self.forgive_ourselves(&mut judge),
            }
        }
        Ok(judge.into_outcome())
    }

    /// Our model panics where it must follow what nobody objected to: that is no finding of the judges.
    fn forgive_ourselves(&self, judge: &mut Judge<'_>) {
        let judges = self.contestant.judge.what;
        let complete = matches!(judges, Judges::Oracles { muted: Muted::NOBODY, audits: true });
        let Some(finding) = judge.forgive() else { return };
        let is_ours = finding.violation.oracle == OracleId::Panic && finding.violation.message.contains("harness/src/");
        if complete || !is_ours {
            judge.take_back(finding);
        }
    }
}

/// Where a contestant's traces come from.
enum Traces {
    Ours(Source, TraceRng, Parts),
    Derived(TraceRng),
    Design(&'static Design, TraceRng, Pool),
}

impl Traces {
    fn new(maker: Maker, job: &Job<'_>) -> Self {
        match maker {
            Maker::Parts(parts) => Self::Ours(Source::new(parts, job), rng(!job.seed), parts),
            Maker::Derived => Self::Derived(rng(job.seed)),
            Maker::Design(design) => Self::Design(design, rng(job.seed), Pool::default()),
        }
    }

    fn next(&mut self, job: &Job<'_>) -> Trace {
        match self {
            Self::Ours(source, rng, parts) => {
                let target = interesting::pick(&TARGETS, rng.next_u64());
                // To aim at a tier is to leave groups out.
                let swarm = !matches!(parts.fresh, Fresh::Generated(Recipe { swarm: false, .. }));
                source.next(&Job { target: if swarm { target } else { Target::Trace }, ..*job })
            }
            Self::Derived(rng) => Trace::new(derived(rng, job.max_ops)),
            Self::Design(design, rng, pool) => match pool.mutant(Mutation::Bytewise, rng, job.max_ops) {
                Some(mut trace) => {
                    design.restrict(&mut trace);
                    trace
                }
                None => design.trace(rng, job.max_ops),
            },
        }
    }

    fn looks_at_states(&self) -> bool {
        matches!(self, Self::Ours(_, _, parts) if parts.guide == Guide::States)
    }

    fn learn(&mut self, trace: Trace, report: &RunReport, states: usize) {
        match self {
            Self::Ours(source, _, parts) => {
                let states = if parts.guide == Guide::States { states } else { 0 };
                source.learn(trace, report, states);
            }
            Self::Design(design, rng, pool) if design.guided => pool.learn(trace, report, 0, rng),
            Self::Derived(_) | Self::Design(..) => {}
        }
    }
}
