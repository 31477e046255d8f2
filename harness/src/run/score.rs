//! Tests the harness: every degenerate subject must be caught, by the oracle that is meant for it.

use super::{RunOptions, Runner};
use crate::generate::{Generator, Target};
use crate::oracle::OracleId;
use crate::subjects::{DEGENERATES, Degenerate};
use crate::trace::{BurstTier, Gfp, Misuse, Op, OpGroup, Trace};

/// Operations within which each degenerate subject must be caught.
pub const SCORE_OPS: usize = 2_000;
/// How many traces share those operations.
const TRACES: u64 = 8;

/// What became of one degenerate subject.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Kill {
    /// The subject.
    pub name: &'static str,
    /// The oracle that is meant for it.
    pub intended: OracleId,
    /// The oracle that caught it first; `None` if it survived.
    pub killed_by: Option<OracleId>,
    /// Operations executed until then.
    pub ops: usize,
}

impl Kill {
    /// Tells whether the right oracle caught it.
    pub fn is_as_intended(&self) -> bool {
        self.killed_by == Some(self.intended)
    }
}

/// Whether the callers of a trace make mistakes. A subject that keeps wrong books is wrong about mistakes too, which would
/// hide the mistake that it is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Callers {
    Right,
    Wrong,
}

/// Groups that would have another oracle object first: a subject that keeps pages to itself and calls them free is found
/// out as soon as pages are to move, to be lent, or to be taken by their place.
const BESIDE: [OpGroup; 4] = [OpGroup::Misuse, OpGroup::Contig, OpGroup::Moving, OpGroup::Nolock];

/// The fixed traces for a target: the same for every subject and every day.
fn traces(target: Target, callers: Callers) -> impl Iterator<Item = Trace> {
    (0..TRACES).map(move |seed| {
        let mut trace = Generator::new(seed).trace(target, SCORE_OPS / TRACES as usize);
        trace.ops.retain(|op| !BESIDE.contains(&op.kind().group()));
        if callers == Callers::Wrong {
            let mistakes = Misuse::ALL.into_iter().zip(1..).map(|(how, pick)| Op::Wrong { pick, how });
            let middle = trace.ops.len() / 2;
            trace.ops.splice(middle..middle, mistakes);
        }
        // Memory runs out at the end, so that what was freed and is not given again is missed.
        let burst = Op::Burst { count: 256, tier: BurstTier::Pages, size: 4096, gfp: Gfp::KERNEL };
        trace.ops.extend([burst; 5]);
        trace
    })
}

/// Runs all degenerate subjects.
pub fn degenerate_score() -> Vec<Kill> {
    let mut runner = Runner::new();
    DEGENERATES.iter().map(|degenerate| hunt(&mut runner, degenerate)).collect()
}

fn hunt(runner: &mut Runner, degenerate: &Degenerate) -> Kill {
    let (killed_by, ops) = first_objection(runner, degenerate);
    Kill { name: degenerate.kind.name(), intended: degenerate.intended, killed_by, ops }
}

/// Runs the fixed traces until an oracle objects.
fn first_objection(runner: &mut Runner, degenerate: &Degenerate) -> (Option<OracleId>, usize) {
    let callers = if degenerate.intended == OracleId::O16Misuse { Callers::Wrong } else { Callers::Right };
    let mut ops = 0;
    for trace in traces(degenerate.target, callers) {
        let report = runner.run(&trace, degenerate.kind, &RunOptions::AGAIN);
        ops += report.ops;
        if report.violation.is_some() {
            return (report.killer(), ops);
        }
    }
    (None, ops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subjects::SubjectKind;

    #[test]
    fn every_degenerate_subject_is_caught_by_the_oracle_meant_for_it() {
        let kills = degenerate_score();
        let wrong: Vec<&Kill> = kills.iter().filter(|kill| !kill.is_as_intended() || kill.ops > SCORE_OPS).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn the_honest_subjects_survive_the_same_traces() {
        let mut runner = Runner::new();
        for kind in [SubjectKind::KMEM, SubjectKind::LOOSE] {
            for target in Target::ALL {
                let all = traces(target, Callers::Right).chain(traces(target, Callers::Wrong));
                for trace in all {
                    let report = runner.run(&trace, kind, &RunOptions::AGAIN);
                    assert_eq!(report.violation, None, "{} on {trace:?}", kind.name());
                }
            }
        }
    }
}
