//! The fault sweep: each call is made once for every fault point that it passes, with that point failing.
//!
//! A trace sets a scene, makes the n-th question about a point fail, makes the call, audits, and makes the call again; then
//! everything is freed. Every oracle looks at every step: pages are conserved (O7), the invariants hold (O8), a refusal
//! changed nothing (O11), nothing is left at the end (O12). And once the fault is gone the call is answered as if it had
//! never struck. n counts up until the call asks no further question. An operation that is new in the language joins by
//! itself; if it works on something that no scene has, a line in [`scene`] makes that.

use kmem::{FaultPoint, GfpFlags};
use kmem_harness::run::{RunOptions, RunReport, Runner};
use kmem_harness::subject::Reply;
use kmem_harness::subjects::SubjectKind;
use kmem_harness::trace::{Gfp, Op, OpGroup, OpKind, Role, Trace};
use std::collections::BTreeMap;

/// How many sets of numbers each operation is tried with.
const VARIANTS: usize = 6;
/// More questions than any call asks about one point.
const MOST_QUESTIONS: u16 = 400;

/// What memory is like when the call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// Nothing was freed yet: sheaves and per-CPU lists serve.
    Warm,
    /// Everything was given back: each object needs a new slab, each area new page tables.
    Cold,
    /// The large blocks are gone.
    Fragmented,
    /// Only caches exist: the first object, the first area and its page tables have to be made.
    Bare,
}

const SCENES: [Scene; 4] = [Scene::Warm, Scene::Cold, Scene::Fragmented, Scene::Bare];

/// Operations that give every call something to work on.
fn scene(scene: Scene) -> Vec<Op> {
    let gfp = Gfp::KERNEL;
    let mut ops = Vec::new();
    if scene == Scene::Fragmented {
        ops.push(Op::Checkerboard { order: 0, spare: 300 });
    }
    ops.extend([
        Op::CacheCreate { size: 200, align: 0, hwcache: false, ctor: false },
        Op::CacheCreate { size: 72, align: 64, hwcache: true, ctor: true },
    ]);
    if scene == Scene::Bare {
        return ops;
    }
    ops.extend([
        Op::AllocPages { order: 2, gfp },
        Op::AllocPagesExact { size: 3 * 4096, gfp },
        Op::AllocContigRange { frame: 300, count: 7, block: false, gfp },
        Op::Kmalloc { size: 100, gfp },
        Op::Kmalloc { size: 20_000, gfp },
        Op::CacheAlloc { cache: 0, gfp },
        Op::CacheAlloc { cache: 1, gfp },
        Op::PrefillSheaf { cache: 0, count: 2, gfp },
        Op::Vmalloc { size: 3 * 4096, gfp },
        Op::Vmap { pick: 0, count: 3 },
        Op::Kvmalloc { size: 40_000, gfp },
    ]);
    if scene == Scene::Cold {
        ops.extend([Op::Reclaim, Op::SetCpu { cpu: 1 }]);
    }
    ops
}

/// A number for a role: small ones, boundaries, and flags that change which points are passed.
fn number(role: Role, variant: usize) -> u64 {
    const KERNEL: GfpFlags = GfpFlags::KERNEL;
    let gfp = [
        KERNEL,
        KERNEL.union(GfpFlags::ZERO),
        GfpFlags::ATOMIC,
        GfpFlags::NOIO,
        KERNEL.union(GfpFlags::RETRY_MAYFAIL),
        GfpFlags::HIGHUSER_MOVABLE,
    ];
    match role {
        Role::Size => [64, 5 * 4096, 12_289, 200, 70_000, 8192][variant],
        Role::Gfp => u64::from(gfp[variant].bits()),
        Role::Order => [0, 3, 1, 4, 2, 5][variant],
        Role::N => [3, 1, 7, 2, 40, 0][variant],
        Role::Count => [4, 1, 20, 9, 2, 33][variant],
        Role::Align => [0, 8, 64, 4096, 16, 256][variant],
        Role::Pick | Role::Cache | Role::Cpu => [0, 1, 2, 3, 4, 5][variant],
        _ => variant as u64,
    }
}

/// Operations that stand for one call; macro operations are many, and the faults are ours to plan.
fn is_call(kind: OpKind) -> bool {
    !matches!(kind.group(), OpGroup::Burst | OpGroup::Fragment | OpGroup::Fault | OpGroup::Audit | OpGroup::Cpu)
}

/// Calls with flags that pass no fault point, because they cannot fail for want of memory: an object of a prefilled sheaf is
/// there already.
const INFALLIBLE: [OpKind; 1] = [OpKind::AllocFromSheaf];

/// What a sweep counted.
#[derive(Default, Clone, Copy, Debug)]
struct Tally {
    /// Faults that struck.
    struck: u32,
    /// Those after which the call was refused; the others were made good by another way.
    refused: u32,
}

fn run(runner: &mut Runner, ops: Vec<Op>) -> RunReport {
    let options = RunOptions { keep_log: true, ..RunOptions::default() };
    runner.run(&Trace::new(ops), SubjectKind::KMEM, &options)
}

/// The answer to the last call that operation number `op` stood for, and whether a fault struck in any of them.
fn answer(report: &RunReport, op: usize) -> (Option<&Reply>, bool) {
    let steps = || report.log.iter().map(|record| &record.step).filter(|step| step.op == op);
    (steps().next_back().map(|step| &step.reply), steps().any(|step| step.fault_struck))
}

fn is_refusal(reply: Option<&Reply>) -> bool {
    matches!(reply, Some(Reply::Refused(_) | Reply::CacheRefused(_)))
}

/// Fails each question about `point` that `op` asks in a scene.
fn sweep(runner: &mut Runner, before: Scene, op: Op, point: FaultPoint) -> Tally {
    let mut tally = Tally::default();
    let scene = scene(before);
    let at = scene.len();
    let plain = run(runner, [&scene[..], &[op]].concat());
    let plainly_refused = is_refusal(answer(&plain, at).0);
    for nth in 0..MOST_QUESTIONS {
        let trace = [&scene[..], &[Op::FailNth { point, nth }, op, Op::Audit, op]].concat();
        let report = run(runner, trace);
        let place = || format!("{op:?} in a {before:?} scene, question {nth} about {point:?} failing");
        assert_eq!(report.violation, None, "{}", place());
        let (reply, struck) = answer(&report, at + 1);
        if !struck {
            return tally;
        }
        tally.struck += 1;
        if is_refusal(reply) {
            tally.refused += 1;
            let again = is_refusal(answer(&report, at + 3).0);
            assert_eq!(again, plainly_refused, "{}: the call is answered otherwise afterwards", place());
        }
    }
    panic!("{op:?} in a {before:?} scene asks more than {MOST_QUESTIONS} questions about {point:?}");
}

/// The tally of each call, by its name, and of each point.
#[derive(Default)]
struct Sweep {
    calls: BTreeMap<&'static str, Tally>,
    points: BTreeMap<FaultPoint, Tally>,
}

impl Sweep {
    fn add(&mut self, kind: OpKind, point: FaultPoint, found: Tally) {
        for tally in [self.calls.entry(kind.name()).or_default(), self.points.entry(point).or_default()] {
            tally.struck += found.struck;
            tally.refused += found.refused;
        }
    }
}

/// Prints past the capture of the test runner: the figures must be seen in every run.
fn announce(sweep: &Sweep) {
    use std::io::Write as _;
    let total = |count: fn(&Tally) -> u32| sweep.calls.values().map(count).sum::<u32>();
    let (struck, refused) = (total(|t| t.struck), total(|t| t.refused));
    let (calls, points, good) = (sweep.calls.len(), sweep.points.len(), struck - refused);
    let of_calls = sweep.calls.iter().map(|(name, t)| format!("{name} {}/{}", t.refused, t.struck));
    let of_points = sweep.points.iter().map(|(point, t)| format!("{point:?} {}/{}", t.refused, t.struck));
    let [of_calls, of_points] = [of_calls.collect::<Vec<_>>(), of_points.collect()].map(|rows| rows.join(", "));
    let _ = writeln!(
        std::io::stderr(),
        "fault sweep: {calls} calls x {points} points: {struck} faults struck, {refused} calls refused, {good} made good\n\
         refused/struck by call: {of_calls}\nrefused/struck by point: {of_points}"
    );
}

#[test]
fn every_fault_at_every_point_of_every_call_leaves_all_as_before() {
    let mut runner = Runner::new();
    let mut sweep_of_all = Sweep::default();
    for kind in OpKind::ALL.into_iter().filter(|&kind| is_call(kind)) {
        for variant in 0..VARIANTS {
            let op = Op::from_numbers(kind, |role| number(role, variant));
            for scene in SCENES {
                for point in FaultPoint::ALL {
                    sweep_of_all.add(kind, point, sweep(&mut runner, scene, op, point));
                }
            }
        }
    }
    announce(&sweep_of_all);
    let never: Vec<_> = sweep_of_all.points.iter().filter(|(_, tally)| tally.struck == 0).collect();
    assert!(never.is_empty(), "no call passes {never:?}: is there a scene for it?");
    for kind in OpKind::ALL.into_iter().filter(|&kind| is_call(kind) && kind.roles().contains(&Role::Gfp)) {
        let tally = sweep_of_all.calls[kind.name()];
        let infallible = INFALLIBLE.contains(&kind);
        assert!(
            (tally.struck > 0) != infallible,
            "{} passes {} faults: is there a scene for it?",
            kind.name(),
            tally.struck
        );
    }
}
