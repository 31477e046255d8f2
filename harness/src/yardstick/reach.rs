//! How far makers of traces come in so many operations: what of the contract they reach, and how many states of memory.

use super::{Contest, Contestant};
use crate::engines::{Budget, Job, Live, MAX_OPS};
use crate::generate::Target;
use crate::run::States;
use crate::subjects::SubjectKind;
use std::time::Duration;

/// A run that takes longer is cut.
const LONGEST: Duration = Duration::from_secs(60);

/// What one maker reached on the allocator as it is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Reach {
    /// Who makes the traces.
    pub maker: &'static str,
    /// Operations executed.
    pub ops: u64,
    /// Traces executed.
    pub traces: u64,
    /// Events, answers, flags, operations and machines that came up.
    pub counters: usize,
    /// Of how many.
    pub of: usize,
    /// States of memory.
    pub states: usize,
    /// What an oracle said, which ended the run.
    pub violation: Option<String>,
}

/// Runs a maker for so many operations.
pub fn reach(contestant: &Contestant, seed: u64, ops: u64, live: &Live) -> Reach {
    let mut states = States::default();
    let budget = Budget::time(LONGEST);
    let job = Job { subject: SubjectKind::KMEM, target: Target::Trace, seed, budget, seeds: &[], max_ops: MAX_OPS };
    let contest = Contest { contestant: *contestant, ops };
    let outcome = contest.run_and_look(&job, live, Some(&mut states)).unwrap_or_default();
    let counts = outcome.coverage.counts();
    Reach {
        maker: contestant.maker.name,
        ops: outcome.ops,
        traces: outcome.executions,
        counters: counts.iter().filter(|count| **count > 0).count(),
        of: counts.len(),
        states: states.len(),
        violation: outcome.finding.map(|finding| finding.violation.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_reaches_more_than_a_derived_arbitrary_in_as_many_operations() {
        let of = |name| reach(&Contestant::by_name(name).unwrap(), 1, 8_000, &Live::default());
        let (ours, derived) = (of("ours"), of("derived-arbitrary"));
        assert!(ours.violation.is_none() && derived.violation.is_none(), "{ours:?} {derived:?}");
        assert!(ours.counters > derived.counters && ours.states > derived.states, "{ours:?} {derived:?}");
    }
}
