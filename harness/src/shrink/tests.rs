//! Artificial failures whose smallest trace is known.

use super::*;
use crate::generate::{Generator, Target, rng};
use crate::trace::{BurstTier, FaultSpec, GeometrySpec, Gfp, Op, Role, Swarm, interesting};
use kmem::FaultPoint;
use rand::{Rng, RngExt};
use std::time::{Duration, Instant};

const BUDGET: usize = 20_000;

/// A thousand operations on an unusual machine.
fn long_trace(seed: u64) -> Trace {
    let mut generator = Generator::new(seed);
    let mut trace = generator.trace(Target::Trace, 1000);
    while trace.ops.len() < 1000 {
        trace.ops.extend(generator.trace(Target::Trace, 1000).ops);
    }
    trace.ops.truncate(1000);
    trace.geometry = GeometrySpec::preset(10 + seed % 6);
    trace.faults =
        vec![FaultSpec { point: FaultPoint::Page, nth: 1000 }, FaultSpec { point: FaultPoint::Slab, nth: 77 }];
    trace
}

/// Puts operations at distinct places, in order.
fn planted(seed: u64, ops: &[Op]) -> Trace {
    let mut trace = long_trace(seed);
    let step = trace.ops.len() / ops.len();
    for (n, op) in ops.iter().enumerate() {
        trace.ops[n * step + (seed as usize * 7 + n) % step] = *op;
    }
    trace
}

#[test]
fn a_known_subset_in_a_thousand_operations_is_found_exactly() {
    let needed = [
        Op::CacheCreate { size: 77, align: 8, hwcache: false, ctor: false },
        Op::KmallocSizeRoundup { size: 1 },
        Op::TouchGuard { pick: 0 },
        Op::Vunmap { pick: 0 },
    ];
    let fails = |trace: &Trace| {
        let mut rest = needed.iter().peekable();
        trace.ops.iter().for_each(|op| {
            let _ = rest.next_if(|next| *next == op);
        });
        rest.next().is_none()
    };
    for seed in 0..10 {
        let start = Instant::now();
        let shrunk = shrink(planted(seed, &needed), BUDGET, fails);
        assert_eq!(shrunk.trace.ops, needed, "seed {seed}");
        assert!(shrunk.executions < 1500, "{} executions", shrunk.executions);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn operations_that_must_go_in_pairs_go() {
    // No single removal keeps the failure: allocations and frees must stay equal in number.
    let balance = |trace: &Trace| {
        let count = |test: fn(&Op) -> bool| trace.ops.iter().filter(|op| test(op)).count();
        count(|op| matches!(op, Op::Kmalloc { .. })) == count(|op| matches!(op, Op::Kfree { .. }))
    };
    let mut rng = rng(1);
    for _ in 0..10 {
        let mut ops: Vec<Op> = (0..24).map(|_| Op::Kmalloc { size: 8, gfp: Gfp::KERNEL }).collect();
        for _ in 0..24 {
            ops.insert(rng.random_range(0..=ops.len()), Op::Kfree { pick: 0 });
        }
        ops.insert(rng.random_range(0..=ops.len()), Op::Audit);
        let shrunk = shrink(Trace::new(ops), BUDGET, |t| balance(t) && t.ops.contains(&Op::Audit));
        assert_eq!(shrunk.trace.ops, [Op::Audit]);
    }
}

#[test]
fn what_a_pick_means_survives_frees_and_bursts_that_go() {
    // A toy of the live blocks: the last operation must meet the area.
    let meets_the_area = |trace: &Trace| {
        let mut live = Vec::new();
        let mut met = false;
        for op in &trace.ops {
            let nth = op.number(Role::Pick).and_then(|pick| pick.checked_rem(live.len() as u64));
            match (op, nth) {
                (Op::Burst { count, .. }, _) => live.extend((0..*count).map(|_| false)),
                (Op::Vmalloc { .. }, _) => live.push(true),
                (Op::Kvfree { .. }, Some(nth)) => drop(live.remove(nth as usize)),
                (Op::Kvrealloc { .. }, Some(nth)) => met = live[nth as usize],
                _ => {}
            }
        }
        met
    };
    let burst = Op::Burst { count: 24, tier: BurstTier::Kmalloc, size: 16, gfp: Gfp::KERNEL };
    let area = Op::Vmalloc { size: 1, gfp: Gfp::KERNEL };
    let grow = |pick| Op::Kvrealloc { pick, size: 1, gfp: Gfp::KERNEL };
    let frees = |n| (0..n).map(|_| Op::Kvfree { pick: 0 });
    let ops = [burst].into_iter().chain(frees(19)).chain([area]).chain(frees(5)).chain([grow(0)]);
    let shrunk = shrink(Trace::new(ops.collect()), BUDGET, meets_the_area);
    assert_eq!(shrunk.trace.ops, [area, grow(0)]);
    // 188 means number 8 of thirty blocks: without one of them it would mean another.
    let areas = |n| {
        (0..n).map(|i| {
            if i == 188 % 30 { area } else { Op::Burst { count: 1, tier: BurstTier::Pages, size: 1, gfp: Gfp::KERNEL } }
        })
    };
    let shrunk = shrink(Trace::new(areas(30).chain([grow(188)]).collect()), BUDGET, meets_the_area);
    assert_eq!(shrunk.trace.ops, [area, grow(0)]);
}

#[test]
fn a_size_goes_down_to_the_threshold() {
    for threshold in [1, 9, 97, 8193, 4097, (4 << 20) + 1, 1 << 31, u64::MAX - 5] {
        let trace = planted(3, &[Op::Kmalloc { size: u64::MAX - 2, gfp: Gfp::ATOMIC }]);
        let fails = |t: &Trace| t.ops.iter().any(|op| matches!(op, Op::Kmalloc { size, .. } if *size >= threshold));
        let shrunk = shrink(trace, BUDGET, fails);
        assert_eq!(shrunk.trace.ops, [Op::Kmalloc { size: threshold, gfp: Gfp::KERNEL }]);
    }
}

/// A free list of a hundred blocks: picks mean something, as in the real machine.
fn sizes_at_frees(trace: &Trace) -> Vec<(u64, usize)> {
    let mut live: Vec<u64> = Vec::new();
    let mut frees = Vec::new();
    for op in &trace.ops {
        match *op {
            Op::Kmalloc { size, .. } => live.push(size),
            Op::Kfree { pick } | Op::Free { pick } | Op::KfreeSensitive { pick } if !live.is_empty() => {
                let index = usize::from(pick) % live.len();
                frees.push((live[index], live.len()));
                live.swap_remove(index);
            }
            _ => {}
        }
    }
    frees
}

#[test]
fn a_failure_that_depends_on_what_is_live_shrinks_to_its_four_operations() {
    let fails = |t: &Trace| sizes_at_frees(t).iter().any(|&(size, live)| (1000..5000).contains(&size) && live >= 3);
    let (mut runs, mut exact) = (0, 0);
    for seed in 0..20 {
        let trace = long_trace(seed);
        if !fails(&trace) {
            continue;
        }
        let shrunk = shrink(trace, BUDGET, fails);
        assert!(shrunk.executions < 2000, "{} executions", shrunk.executions);
        let mut sizes: Vec<u64> = shrunk.trace.ops.iter().filter_map(|op| op.number(Role::Size)).collect();
        sizes.sort_unstable();
        runs += 1;
        exact += u32::from(shrunk.trace.ops.len() == 4 && sizes == [1, 1, 1000]);
        // A pair that is in nobody's way can be left: an allocation, and the free that comes in between.
        assert!(shrunk.trace.ops.len() <= 6, "seed {seed}: {:?}", shrunk.trace.ops);
    }
    assert!(exact * 5 >= runs * 4, "{exact} of {runs} shrunk to the four operations");
}

#[test]
fn two_frees_of_certain_blocks_need_renumbered_picks() {
    // The picks are exact, so the removal of any allocation before them moves them to another block.
    let mut ops: Vec<Op> = (0..30).map(|n| Op::Kmalloc { size: 100 + n, gfp: Gfp::KERNEL }).collect();
    ops.extend([Op::Kfree { pick: 20 }, Op::Kfree { pick: 11 }]);
    let fails = |t: &Trace| sizes_at_frees(t).iter().map(|f| f.0).collect::<Vec<_>>() == [120, 111];
    assert!(fails(&Trace::new(ops.clone())));
    let shrunk = shrink(Trace::new(ops), BUDGET, fails);
    assert_eq!(shrunk.trace.ops.len(), 4, "{:?}", shrunk.trace.ops);
}

#[test]
fn what_is_not_needed_of_machine_faults_and_calls_goes() {
    let shrunk = shrink(long_trace(4), BUDGET, |_| true);
    assert!(shrunk.trace.ops.is_empty() && shrunk.trace.faults.is_empty());
    assert_eq!(shrunk.trace.swarm, Swarm::ALL);
    let g = shrunk.trace.geometry;
    assert_eq!((g.frames, g.cpus, g.dma_frames, g.movable_frames), (64, 1, 0, 0));
    assert_eq!(g.out_of_range(), None);

    let burst = Op::Burst { count: 40, tier: BurstTier::Kmalloc, size: 500, gfp: Gfp::NOWAIT };
    let kmallocs = |t: &Trace| t.ops.iter().any(|op| matches!(op, Op::Burst { .. } | Op::Kmalloc { .. }));
    let shrunk = shrink(Trace::new(vec![burst]), BUDGET, |t| {
        kmallocs(t) && !t.ops.iter().any(|o| o.number(Role::Count) == Some(0))
    });
    assert_eq!(shrunk.trace.ops, [Op::Kmalloc { size: 1, gfp: Gfp::KERNEL }]);
}

#[test]
fn a_needed_fault_and_machine_stay() {
    let fails = |t: &Trace| t.faults.iter().any(|f| f.point == FaultPoint::Slab && f.nth >= 2) && t.geometry.cpus >= 2;
    let mut trace = long_trace(5);
    trace.geometry.cpus = 4;
    let shrunk = shrink(trace, BUDGET, fails);
    assert_eq!(shrunk.trace.faults, [FaultSpec { point: FaultPoint::Slab, nth: 2 }]);
    assert_eq!(shrunk.trace.geometry.cpus, 2, "the default has two CPUs");
}

#[test]
fn the_result_fails_is_the_same_each_time_and_costs_no_more_than_the_budget() {
    let fails = |t: &Trace| sizes_at_frees(t).len() >= 3;
    let seed = (0..100).find(|&seed| fails(&long_trace(seed))).unwrap();
    for budget in [0, 1, 10, 100, BUDGET] {
        let mut executions = 0;
        let mut counted = |t: &Trace| {
            executions += 1;
            fails(t)
        };
        let shrunk = shrink(long_trace(seed), budget, &mut counted);
        assert_eq!((shrunk.executions, executions <= budget), (executions, true));
        assert!(fails(&shrunk.trace));
        assert_eq!(shrink(long_trace(seed), budget, fails), shrunk);
    }
}

#[test]
fn a_thousand_operations_shrink_in_two_seconds_even_when_little_goes() {
    // A third of the operations is needed: the worst case for delta debugging.
    let needed = |t: &Trace| t.ops.iter().filter(|op| op.number(Role::Size).is_some()).count();
    let trace = long_trace(7);
    let least = needed(&trace) / 2;
    let start = Instant::now();
    let shrunk = shrink(trace, 5_000, |t| needed(t) >= least);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(shrunk.trace.ops.len(), least);
}

#[test]
fn an_arbitrary_interval_of_sizes_is_hit_by_its_smallest_boundary() {
    let mut rng = rng(8);
    for _ in 0..50 {
        let boundary = interesting::pick(&interesting::SMALL_BOUNDARIES, rng.next_u64());
        let top = boundary + rng.random_range(0..=boundary / 4);
        let fails = |t: &Trace| matches!(t.ops[..], [Op::Vmalloc { size, .. }] if size >= boundary && size <= top);
        let trace = Trace::new(vec![Op::Vmalloc { size: top, gfp: Gfp::KERNEL }]);
        assert_eq!(shrink(trace, BUDGET, fails).trace.ops, [Op::Vmalloc { size: boundary, gfp: Gfp::KERNEL }]);
    }
}
