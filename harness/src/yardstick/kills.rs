//! Which harness catches which wrong allocator.

use super::{Contest, Contestant};
use crate::engines::{Budget, Engine, Job, Live, MAX_OPS};
use crate::generate::Target;
use crate::oracle::OracleId;
use crate::subjects::{DEGENERATES, SubjectKind};
use std::time::Duration;

/// How long one contestant may try one allocator from one seed; operations are what counts, this is for what hangs.
const LONGEST: Duration = Duration::from_secs(10);

/// What became of one allocator in the hands of one contestant.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Attempt {
    /// The allocator.
    pub subject: &'static str,
    /// Who tried it.
    pub contestant: String,
    /// From how many seeds it was caught, and of how many.
    pub kills: usize,
    /// How often it was tried.
    pub seeds: usize,
    /// Operations until it was caught, from the seeds from which it was, in ascending order.
    pub ops: Vec<u64>,
    /// Who objected first.
    pub oracle: Option<OracleId>,
}

/// Tries all wrong allocators, and two right ones, which nobody may object to, with these contestants.
pub fn kills(contestants: &[Contestant], seeds: u64, ops: u64, live: &Live) -> Vec<Attempt> {
    let right = [SubjectKind::KMEM, SubjectKind::LOOSE];
    let subjects = DEGENERATES.iter().map(|degenerate| degenerate.kind).chain(right);
    let pairs = subjects.flat_map(|subject| contestants.iter().map(move |contestant| (subject, contestant)));
    pairs.take_while(|_| !live.is_stopped()).map(|(subject, who)| attempt(subject, who, seeds, ops, live)).collect()
}

fn attempt(subject: SubjectKind, contestant: &Contestant, seeds: u64, ops: u64, live: &Live) -> Attempt {
    let mut attempt = Attempt {
        subject: subject.name(),
        contestant: contestant.name(),
        kills: 0,
        seeds: seeds as usize,
        ops: Vec::new(),
        oracle: None,
    };
    for seed in 1..=seeds {
        let budget = Budget::time(LONGEST);
        let job = Job { subject, target: Target::Trace, seed, budget, seeds: &[], max_ops: MAX_OPS };
        let outcome = Contest { contestant: *contestant, ops }.run(&job, live).unwrap_or_default();
        if let Some(finding) = outcome.finding {
            attempt.kills += 1;
            attempt.ops.push(outcome.ops);
            attempt.oracle = attempt.oracle.or(Some(finding.violation.oracle));
        }
    }
    attempt.ops.sort_unstable();
    attempt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(contestants: &[Contestant], ops: u64) -> Vec<Attempt> {
        kills(contestants, 1, ops, &Live::default())
    }

    #[test]
    fn nobody_objects_to_the_right_allocators_and_we_catch_all_wrong_ones() {
        let ours = attempts(&Contestant::whole()[..1], 60_000);
        let (right, wrong): (Vec<&Attempt>, Vec<&Attempt>) =
            ours.iter().partition(|attempt| ["kmem", "loose"].contains(&attempt.subject));
        assert!(right.iter().all(|attempt| attempt.kills == 0), "{right:#?}");
        assert!(wrong.iter().all(|attempt| attempt.kills == 1), "{wrong:#?}");
        let others = attempts(&Contestant::whole()[1..], 6_000);
        let alarms: Vec<&Attempt> =
            others.iter().filter(|attempt| attempt.kills > 0 && ["kmem", "loose"].contains(&attempt.subject)).collect();
        assert!(alarms.is_empty(), "{alarms:#?}");
    }

    #[test]
    fn the_designs_catch_what_their_projects_are_known_to_catch() {
        let caught = |name: &str, subject: &str| {
            let contestant = Contestant::by_name(name).unwrap();
            let subject = crate::subjects::by_name(subject).unwrap();
            attempt(subject, &contestant, 1, 20_000, &Live::default()).kills > 0
        };
        // What was measured with the projects' own harnesses on allocators like these.
        assert!(caught("dlmalloc-rs", "dirty-zero") && caught("dlmalloc-rs", "realloc-loses-a-byte"));
        assert!(!caught("dlmalloc-rs", "ignores-alignment") && !caught("dlmalloc-rs", "byte-short"));
        assert!(caught("acid_alloc", "same-block") && caught("acid_alloc", "overlap-8-every-7th"));
        assert!(!caught("acid_alloc", "ignores-alignment") && !caught("talc", "same-block"));
        assert!(caught("rlsf", "ignores-alignment") && caught("rlsf", "overlap-8-every-7th"));
        assert!(!caught("linked_list_allocator", "overlap-8-every-7th"));
    }
}
