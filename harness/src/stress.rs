//! Real threads on one hosted allocator, judged by the oracles.
//!
//! ```text
//! thread 0   trace 0 ──────┐ meeting ┌────────── meeting ── ...   its own model: O1 to O6 after each call
//! thread 1   trace 1 ──────┤         ├──────────
//! thread 2   trace 2 ──────┘         └──────────
//!                            all at rest: blocks of different threads do not overlap (O1), the pages that
//!                            they have are those that are counted (O7), kmem's own audit agrees (O8)
//! the end                    all is freed: every page is back (O12)
//! ```
//!
//! Each thread runs a generated trace in a session of its own, as on the simulated machine; its CPUs are further threads, so
//! that blocks go back from others than those that got them. A refusal says nothing here, since others may have the memory;
//! all else that is asked of a loose subject is asked. What is found depends on the host's scheduler: the traces of the
//! round are kept, but running them again need not show it again.

use crate::generate::{Generator, Target};
use crate::model::{ExpectedUse, Model, Tiers};
use crate::oracle::{OracleId, Violation};
use crate::run::{RunOptions, Runner, Watch};
use crate::subject::Subject;
use crate::subjects::hosted::{HostedSubject, is_missing};
use crate::trace::Trace;
use kmem::hosted::{HostConfig, HostError, Hosted};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the traces of a round's threads are about, by turns.
const TARGETS: [Target; 5] = [Target::Trace, Target::Kvmalloc, Target::Slab, Target::Vmalloc, Target::Pages];

/// What a round is.
#[derive(Clone, Copy, Debug)]
pub struct StressOptions {
    /// Threads that run traces; each has up to three more that make calls for it.
    pub threads: usize,
    /// Operations of each trace.
    pub ops: usize,
    /// After how many operations all threads meet.
    pub meet_every: usize,
    /// Bytes of the allocator's memory.
    pub memory: usize,
}

/// What a round came to.
#[derive(Debug)]
pub struct Round {
    /// The trace of each thread.
    pub traces: Vec<Trace>,
    /// Calls of all threads.
    pub calls: u64,
    /// How often all threads were at rest and looked at together.
    pub meetings: u64,
    /// The first objection, and the thread whose oracles had it; `None` for what was found while all were at rest.
    pub objection: Option<(Option<usize>, Violation)>,
}

/// Runs one round on a new allocator.
///
/// # Errors
///
/// The host has no memory for it.
pub fn round(options: &StressOptions, seed: u64) -> Result<Round, HostError> {
    let machine = Arc::new(Hosted::new(&HostConfig::new(options.memory))?);
    let mut generator = Generator::new(seed);
    let target = |n: usize| TARGETS[(n + seed as usize) % TARGETS.len()];
    let traces: Vec<Trace> = (0..options.threads).map(|n| generator.trace(target(n), options.ops)).collect();
    let meeting = Meeting::of(options.threads, Arc::clone(&machine));
    let fresh = machine.enter().meminfo();
    let reports = std::thread::scope(|scope| {
        let run = |trace| {
            let (meeting, machine) = (&meeting, Arc::clone(&machine));
            scope.spawn(move || attend(meeting, machine, trace, options))
        };
        let threads: Vec<_> = traces.iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut round = Round { traces, calls: 0, meetings: 0, objection: None };
    for (thread, report) in reports.into_iter().enumerate() {
        let violation = match report {
            Ok(Ok((calls, violation))) => {
                round.calls += calls;
                violation
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => Some(found(OracleId::Panic, "the thread panicked".to_owned())),
        };
        round.objection = round.objection.take().or(violation.map(|violation| (Some(thread), violation)));
    }
    let gathering = meeting.into_gathering();
    round.meetings = gathering.meetings;
    let lost = || is_missing(&machine, &fresh).map(|message| found(OracleId::O12Quiescence, message));
    round.objection = round.objection.or_else(|| Some((None, gathering.objection.or_else(lost)?)));
    Ok(round)
}

/// Runs a thread's trace; returns its calls and its first violation.
fn attend(
    meeting: &Meeting,
    machine: Arc<Hosted>,
    trace: &Trace,
    options: &StressOptions,
) -> Result<(u64, Option<Violation>), HostError> {
    let _member = Member(meeting);
    let subject = HostedSubject::sharing(machine)?;
    let mut attendee = Attendee { meeting, every: options.meet_every.max(1), ops: trace.ops.len() };
    let report = Runner::new().run_guest(Box::new(subject), trace, &RunOptions::default(), &mut attendee);
    Ok((report.calls, report.violation))
}

fn found(oracle: OracleId, message: String) -> Violation {
    Violation { oracle, message, blocks: Vec::new(), op: 0 }
}

/// A thread's place at the meetings.
struct Attendee<'m> {
    meeting: &'m Meeting,
    every: usize,
    ops: usize,
}

impl Watch for Attendee<'_> {
    fn look(&mut self, done: usize, model: &Model, _: &dyn Subject) {
        if done > 0 && done <= self.ops && done.is_multiple_of(self.every) {
            self.meeting.attend(model);
        }
    }
}

/// Bytes that nobody else may have: the first, and the one after the last.
type Span = (u64, u64);

/// Where threads wait for each other.
struct Meeting {
    machine: Arc<Hosted>,
    gathering: Mutex<Gathering>,
    over: Condvar,
}

struct Gathering {
    members: usize,
    arrived: usize,
    meetings: u64,
    spans: Vec<Span>,
    used: ExpectedUse,
    objection: Option<Violation>,
}

/// Leaves the meetings when it is dropped, whatever ended the thread.
struct Member<'m>(&'m Meeting);

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut gathering = self.0.lock();
        gathering.members -= 1;
        if gathering.arrived > 0 && gathering.arrived == gathering.members {
            self.0.adjourn(&mut gathering);
        }
    }
}

impl Meeting {
    fn of(members: usize, machine: Arc<Hosted>) -> Self {
        let (spans, used) = (Vec::new(), ExpectedUse::default());
        let gathering = Gathering { members, arrived: 0, meetings: 0, spans, used, objection: None };
        Self { machine, gathering: Mutex::new(gathering), over: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_gathering(self) -> Gathering {
        self.gathering.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all are here; the last one looks at everything.
    fn attend(&self, model: &Model) {
        let mut gathering = self.lock();
        gathering.bring(model);
        let meeting = gathering.meetings;
        if gathering.arrived == gathering.members {
            return self.adjourn(&mut gathering);
        }
        while gathering.meetings == meeting {
            gathering = self.over.wait(gathering).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Looks at everything and ends the meeting.
    fn adjourn(&self, gathering: &mut Gathering) {
        let objection = gathering.look(&self.machine);
        gathering.objection = gathering.objection.take().or(objection);
        gathering.spans.clear();
        gathering.used = ExpectedUse::default();
        gathering.arrived = 0;
        gathering.meetings += 1;
        self.over.notify_all();
    }
}

impl Gathering {
    fn bring(&mut self, model: &Model) {
        self.spans.extend(model.blocks(Tiers::OWNING).map(|block| (block.addr, block.end())));
        let used = model.expected_use();
        self.used.pages += used.pages;
        self.used.large_kmalloc += used.large_kmalloc;
        self.arrived += 1;
    }

    fn look(&mut self, machine: &Hosted) -> Option<Violation> {
        let kmem = machine.enter();
        let audit = || kmem.audit().err().map(|broken| found(OracleId::O8Audit, broken.to_string()));
        let info = kmem.meminfo();
        let counted = ExpectedUse { pages: info.pages, large_kmalloc: info.large_kmalloc, ..ExpectedUse::default() };
        let conserved = || {
            let message = match info.owned_total() == info.managed {
                true if counted == self.used => return None,
                true => format!("the threads have {:?}, but {counted:?} is counted", self.used),
                false => format!("{} pages have an owner, of {}: {info:?}", info.owned_total(), info.managed),
            };
            Some(found(OracleId::O7Conservation, message))
        };
        overlap(&mut self.spans).or_else(conserved).or_else(audit)
    }
}

/// Two blocks that share a byte.
fn overlap(spans: &mut [Span]) -> Option<Violation> {
    spans.sort_unstable();
    let (a, b) = spans.iter().zip(spans.iter().skip(1)).find(|(a, b)| a.1 > b.0)?;
    let message = format!("{:#x}..{:#x} and {:#x}..{:#x} are live in two threads", a.0, a.1, b.0, b.1);
    Some(found(OracleId::O1Overlap, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: StressOptions = StressOptions { threads: 3, ops: 300, meet_every: 100, memory: 16 << 20 };

    #[test]
    fn threads_share_the_allocator_and_nobody_objects() {
        let (mut meetings, mut calls) = (0, 0);
        for seed in 0..4 {
            let round = round(&SMALL, seed).unwrap();
            assert!(round.objection.is_none(), "seed {seed}: {:?}", round.objection);
            (meetings, calls) = (meetings + round.meetings, calls + round.calls);
        }
        assert!(meetings >= 8 && calls >= 2_000, "{meetings} meetings, {calls} calls");
    }

    #[test]
    fn a_block_in_two_threads_is_an_overlap() {
        assert_eq!(overlap(&mut [(64, 96), (32, 64), (96, 128)]), None);
        let violation = overlap(&mut [(64, 97), (32, 64), (96, 128)]).unwrap();
        assert_eq!(violation.oracle, OracleId::O1Overlap);
    }

    #[test]
    fn pages_that_nobody_has_are_missed_at_the_next_meeting() {
        let machine = Arc::new(Hosted::new(&HostConfig::new(16 << 20)).unwrap());
        let meeting = Meeting::of(1, Arc::clone(&machine));
        let model = Model::new(machine.enter().geometry(), crate::subject::Strength::Loose);
        meeting.attend(&model);
        assert_eq!(meeting.lock().objection, None);
        let pages = machine.enter().alloc_pages(kmem::Order::ZERO, kmem::GfpFlags::KERNEL).unwrap();
        meeting.attend(&model);
        assert_eq!(meeting.lock().objection.as_ref().map(|found| found.oracle), Some(OracleId::O7Conservation));
        machine.enter().free_pages(pages, kmem::Order::ZERO).unwrap();
    }

    #[test]
    fn whoever_leaves_early_is_not_waited_for() {
        let machine = Arc::new(Hosted::new(&HostConfig::new(16 << 20)).unwrap());
        let meeting = Meeting::of(2, Arc::clone(&machine));
        let model = Model::new(machine.enter().geometry(), crate::subject::Strength::Loose);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(Member(&meeting)));
            meeting.attend(&model);
        });
        assert_eq!(meeting.lock().meetings, 1);
    }
}
