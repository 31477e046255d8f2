//! O13 and O14: does a second run, in a way that must not matter, get the same answers?
//!
//! * O13, determinism: the same trace on the same machine, whatever memory held before and whatever this program ran before.
//!   Who reads what he never wrote, or keeps state beside the allocator, answers differently.
//! * O14, metamorphic: the oracles look at everything more often, and what is left at the end is freed in the
//!   opposite order. To be looked at changes no answer, and the order of frees does not show when all is free (O12).
//!
//! Exact, but for the bytes that `vread` shows: nobody may have written them, and O15 compares them with memory.

use super::{Judges, RunOptions, RunReport, Runner, StepRecord};
use crate::oracle::{OracleId, Violation};
use crate::subject::Reply;
use crate::subjects::SubjectKind;
use crate::trace::Trace;

/// How a run differs from the ordinary one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Variation {
    /// Memory holds something else before it is written.
    pub(super) unlike: bool,
    /// What is left at the end is freed in the opposite order.
    pub(super) backwards: bool,
}

impl Variation {
    pub(super) const NONE: Self = Self { unlike: false, backwards: false };
    const MEMORY: Self = Self { unlike: true, backwards: false };
    const ALL: Self = Self { unlike: true, backwards: true };
}

/// How often the second run looks at everything: so often that it is not in step with the first.
const LOOKS: RunOptions = RunOptions { judges: Judges::ALL, audit_every: 17, keep_log: false, again: false };
const LOGGED: RunOptions = RunOptions { judges: Judges::ALL, audit_every: 64, keep_log: true, again: false };

/// Runs a trace again that has passed; tells what was different.
pub(super) fn judge(
    runner: &mut Runner,
    trace: &Trace,
    kind: SubjectKind,
    judges: Judges,
    first: &RunReport,
) -> Option<Violation> {
    let looks = RunOptions { judges, ..LOOKS };
    let logged = RunOptions { judges, ..LOGGED };
    let second = runner.run_once(trace, kind, &looks, Variation::ALL, &mut ());
    if let Some(violation) = second.violation {
        let message = format!("{} (in a second run that looked more often and freed backwards)", violation.message);
        return Some(Violation { message, ..violation });
    }
    if second.hash == first.hash {
        return None;
    }
    let repeated = runner.run_once(trace, kind, &logged, Variation::MEMORY, &mut ());
    if repeated.hash != first.hash {
        let again = runner.run_once(trace, kind, &logged, Variation::NONE, &mut ());
        return Some(differing(OracleId::O13Determinism, "in another run", &again, &repeated));
    }
    let looks = RunOptions { keep_log: true, ..looks };
    let watched = runner.run_once(trace, kind, &looks, Variation::ALL, &mut ());
    Some(differing(OracleId::O14Metamorphic, "when the oracles look more often", &repeated, &watched))
}

/// Names the first answer that two runs of a trace do not have in common.
fn differing(oracle: OracleId, when: &str, first: &RunReport, second: &RunReport) -> Violation {
    let pairs = first.log.iter().zip(&second.log);
    let (op, message) = match pairs.clone().find(|(a, b)| !is_same(a, b)) {
        Some((a, b)) => {
            (a.step.op, format!("{:?} answers {:?}, and {when} {:?}", a.step.call, a.step.reply, b.step.reply))
        }
        None => {
            // What differs is not in what these two have in common, as when state outlives every run.
            let op = first.log.last().map_or(0, |record| record.step.op);
            (op, format!("{} calls have other answers {when}", first.log.len()))
        }
    };
    Violation { oracle, message, blocks: Vec::new(), op }
}

fn is_same(a: &StepRecord, b: &StepRecord) -> bool {
    match (&a.step.reply, &b.step.reply) {
        (Reply::Bytes(a), Reply::Bytes(b)) => a.len() == b.len(),
        (first, second) => a.step.call == b.step.call && first == second,
    }
}
