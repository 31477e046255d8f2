use super::*;
use crate::generate::{Generator, Target};
use crate::subject::{AccessFault, Call, Reply, Strength, Subject, WhiteBox};
use crate::subjects::{Guest, Spare};
use crate::trace::{BurstTier, Gfp, Op};

const LOGGED: RunOptions = RunOptions { judges: Judges::ALL, audit_every: 64, keep_log: true, again: false };

fn log(kind: SubjectKind, ops: Vec<Op>) -> Vec<StepRecord> {
    let report = Runner::new().run(&Trace::new(ops), kind, &LOGGED);
    assert_eq!(report.violation, None);
    report.log
}

fn calls(log: &[StepRecord], wanted: fn(&Call) -> bool) -> usize {
    log.iter().filter(|record| wanted(&record.step.call)).count()
}

#[test]
fn a_run_on_recycled_memory_equals_one_on_fresh_memory() {
    for kind in [SubjectKind::KMEM, SubjectKind::LOOSE] {
        let mut recycling = Runner::new();
        for seed in 0..30 {
            let trace = Generator::new(seed).trace(Target::Trace, 100);
            let recycled = recycling.run(&trace, kind, &RunOptions::default());
            let fresh = Runner::new().run(&trace, kind, &RunOptions::default());
            assert_eq!((recycled.hash, recycled.calls), (fresh.hash, fresh.calls), "{} seed {seed}", kind.name());
        }
    }
}

#[test]
fn everything_is_freed_at_the_end() {
    let burst = |tier| Op::Burst { count: 20, tier, size: 5000, gfp: Gfp::KERNEL };
    let log = log(SubjectKind::KMEM, [BurstTier::Pages, BurstTier::Kmalloc, BurstTier::Vmalloc].map(burst).to_vec());
    assert_eq!(log.iter().map(|record| record.live).max(), Some(60));
    assert_eq!(log.last().map(|record| record.live), Some(0));
}

#[test]
fn a_checkerboard_leaves_half_of_memory_free_and_nothing_large_in_it() {
    let log = log(
        SubjectKind::KMEM,
        vec![Op::Checkerboard { order: 0, spare: 0 }, Op::AllocPages { order: 6, gfp: Gfp::KERNEL }],
    );
    let taken = calls(&log, |call| matches!(call, Call::AllocPages { order: 0, .. }));
    let large = log.iter().find(|record| matches!(record.step.call, Call::AllocPages { order: 6, .. })).unwrap();
    assert!(taken > 500, "{taken} pages taken");
    assert!(large.live > taken / 2 - 2, "half of the pages stay");
    assert!(matches!(large.step.reply, Reply::Refused(_)), "{:?}", large.step.reply);
}

#[test]
fn a_block_is_unmapped_before_it_is_freed() {
    let log = log(
        SubjectKind::KMEM,
        vec![
            Op::AllocPages { order: 1, gfp: Gfp::KERNEL },
            Op::Vmap { pick: 0, count: 2 },
            Op::FreePages { pick: 0 },
            Op::Vunmap { pick: 0 },
        ],
    );
    let names: Vec<&Call> = log.iter().map(|record| &record.step.call).collect();
    assert!(
        matches!(names[..4], [Call::AllocPages { .. }, Call::Vmap { .. }, Call::Vunmap { .. }, Call::FreePages { .. }]),
        "{names:?}"
    );
}

#[test]
fn interleaved_calls_come_from_each_cpu_in_turn() {
    let mut trace = Trace::new(vec![
        Op::Interleave { cpu: 3 },
        Op::Burst { count: 12, tier: BurstTier::Kmalloc, size: 64, gfp: Gfp::KERNEL },
        Op::Interleave { cpu: 0 },
        Op::Kmalloc { size: 64, gfp: Gfp::KERNEL },
    ]);
    trace.geometry.cpus = 16;
    let report = Runner::new().run(&trace, SubjectKind::KMEM, &LOGGED);
    assert_eq!(report.violation, None);
    let allocations = report.log.iter().filter(|record| matches!(record.step.call, Call::Kmalloc { .. }));
    let cpus: Vec<u16> = allocations.map(|record| record.cpu).collect();
    assert_eq!(cpus, [3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 4]);
}

#[test]
fn steering_stops_at_the_wanted_fill() {
    let steer = |percent| Op::Steer { percent, size: 16 << 10 };
    let live = |ops: Vec<Op>| {
        let log = log(SubjectKind::KMEM, ops);
        let steered = log.iter().take_while(|record| !matches!(record.step.call, Call::Reclaim));
        steered.map(|record| record.live).max().unwrap_or(0)
    };
    assert_eq!(live(vec![steer(50)]), 128);
    assert_eq!(live(vec![steer(0)]), 0);
}

/// Panics on every call.
struct Panics;

impl Subject for Panics {
    fn name(&self) -> &str {
        "panics"
    }
    fn strength(&self) -> Strength {
        Strength::Loose
    }
    fn call(&mut self, call: &Call) -> Reply {
        panic!("cannot do {call:?}")
    }
    fn read(&mut self, addr: u64, _into: &mut [u8]) -> Result<(), AccessFault> {
        Err(AccessFault::BusError(addr))
    }
    fn write(&mut self, addr: u64, _from: &[u8]) -> Result<(), AccessFault> {
        Err(AccessFault::BusError(addr))
    }
    fn translate(&self, _addr: u64) -> Option<u64> {
        None
    }
    fn tlb_lookup(&self, _addr: u64) -> Option<u64> {
        None
    }
    fn white_box(&self) -> Option<&dyn WhiteBox> {
        None
    }
}

impl Guest for Panics {
    fn into_spare(self: Box<Self>) -> Spare {
        Spare::default()
    }
}

#[test]
fn a_panic_of_the_subject_is_a_violation_with_its_message() {
    let kind = SubjectKind::new("panics", |_, _, _| Ok(Box::new(Panics)));
    let trace = Trace::new(vec![Op::Kfree { pick: 0 }, Op::Kmalloc { size: 1, gfp: Gfp::KERNEL }]);
    let violation = Runner::new().run(&trace, kind, &RunOptions::default()).violation.unwrap();
    assert_eq!((violation.oracle, violation.op), (OracleId::Panic, 1));
    assert!(violation.message.contains("cannot do Kmalloc"), "{}", violation.message);
}
