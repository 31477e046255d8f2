//! Properties of mutation: valid, bounded, repeatable, and able to reach everything.

use super::list::fresh;
use super::*;
use crate::generate::{Generator, Target, rng};
use crate::trace::{Op, OpGroup, OpKind, Role};

/// Traces of all kinds: made, grown by hand, and empty.
fn parents() -> impl Iterator<Item = Trace> {
    let extreme = |n| Trace::new(OpKind::ALL.map(|kind| Op::from_numbers(kind, |_| n)).to_vec());
    let made = (0..120u64).map(|seed| {
        let target = interesting::pick(&Target::ALL, seed);
        Generator::new(seed).trace(target, 100)
    });
    made.chain([Trace::default(), extreme(0), extreme(u64::MAX)])
}

/// What every change must keep: the trace is in range, as long as it may be, and survives both encodings.
fn check(trace: &Trace, most: usize) {
    let mut normal = trace.clone();
    normal.normalize();
    assert_eq!(*trace, normal);
    assert!(trace.ops.len() <= most, "{} operations, {most} allowed", trace.ops.len());
    assert_eq!(Trace::from_bytes(&trace.to_bytes()), *trace);
}

#[test]
fn mutants_are_valid_bounded_and_encodable() {
    let mut rng = rng(1);
    for mut trace in parents() {
        for _ in 0..20 {
            mutate(&mut trace, &mut rng, 200);
            check(&trace, 200);
        }
        assert_eq!(Trace::from_text(&trace.to_text()).unwrap(), trace);
        for most in [0, 1, 5] {
            mutate(&mut trace, &mut rng, most);
            check(&trace, most);
        }
    }
}

#[test]
fn each_change_alone_is_valid_and_bounded() {
    let mut rng = rng(7);
    for (_, change) in CHANGES {
        for mut trace in parents() {
            let before = trace.ops.len();
            change(&mut trace, &mut rng, 150);
            assert!(trace.ops.len() <= before + 150, "{} operations of {before}", trace.ops.len());
            trace.normalize();
            check(&trace, MAX_OPS);
        }
    }
}

#[test]
fn the_shares_of_all_changes_are_a_hundred() {
    assert_eq!(CHANGES.iter().map(|(share, _)| share).sum::<u32>(), 100);
}

#[test]
fn children_are_valid_bounded_and_encodable() {
    let mut rng = rng(8);
    let parents: Vec<Trace> = parents().collect();
    for pair in parents.windows(2) {
        for most in [0, 3, 150] {
            check(&crossover(&pair[0], &pair[1], &mut rng, most), most);
        }
    }
}

#[test]
fn byte_mutants_are_valid_bounded_and_encodable() {
    let mut rng = rng(9);
    let mut last = Trace::default();
    for mut trace in parents() {
        for _ in 0..20 {
            bytes::mutate(&mut trace, &mut rng, 150);
            check(&trace, 150);
        }
        check(&bytes::crossover(&trace, &last, &mut rng, 80), 80);
        last = trace;
    }
}

#[test]
fn a_mutation_is_a_function_of_its_seed() {
    let trace = Generator::new(1).trace(Target::Trace, 100);
    let other = Generator::new(2).trace(Target::Trace, 100);
    let mutant = |seed| {
        let mut copy = trace.clone();
        mutate(&mut copy, &mut rng(seed), 100);
        copy
    };
    assert_eq!(mutant(5), mutant(5));
    assert!((0..20).filter(|&seed| mutant(seed) != trace).count() >= 18);
    let child = |seed| crossover(&trace, &other, &mut rng(seed), 100);
    assert_eq!(child(5), child(5));
    assert!((0..20).any(|seed| child(seed) != child(5)));
}

#[test]
fn mutation_reaches_every_kind_from_an_empty_trace() {
    let mut rng = rng(2);
    let mut trace = Trace::default();
    let mut seen = vec![false; OpKind::ALL.len()];
    for _ in 0..5000 {
        mutate(&mut trace, &mut rng, 200);
        trace.swarm = Swarm::ALL;
        trace.ops.iter().for_each(|op| seen[op.kind() as usize] = true);
    }
    assert!(seen.iter().all(|s| *s));
}

#[test]
fn a_trace_of_the_largest_numbers_is_mutated_without_overflow() {
    let mut rng = rng(5);
    let mut trace = Trace::new(OpKind::ALL.map(|kind| Op::from_numbers(kind, |_| u64::MAX)).repeat(2000));
    for _ in 0..50 {
        mutate(&mut trace, &mut rng, MAX_OPS);
    }
    assert!(!trace.ops.is_empty());
}

#[test]
fn new_operations_keep_to_the_swarm() {
    let mut rng = rng(3);
    let swarm = Swarm::NONE.with(OpGroup::Kmalloc).with(OpGroup::Access);
    let trace = Trace { swarm, ..Trace::default() };
    assert!(fresh(&trace, &mut rng, 500).iter().all(|op| swarm.contains(op.kind().group())));
}

#[test]
fn a_flag_that_is_flipped_is_the_only_thing_that_changes() {
    let mut rng = rng(6);
    let before = Generator::new(3).trace(Target::Trace, 100);
    for _ in 0..200 {
        let mut trace = before.clone();
        number::flip_flag(&mut trace, &mut rng, 100);
        let changed: Vec<(&Op, &Op)> = before.ops.iter().zip(&trace.ops).filter(|(a, b)| a != b).collect();
        assert!(changed.len() <= 1);
        for (old, new) in changed {
            let bits = [Role::Gfp, Role::CacheFlags, Role::Checks, Role::Flag, Role::Flag2]
                .into_iter()
                .map(|role| (old.number(role).unwrap_or(0) ^ new.number(role).unwrap_or(0)).count_ones());
            assert_eq!((old.kind(), bits.sum::<u32>()), (new.kind(), 1));
        }
    }
}

#[test]
fn kin_keep_the_numbers_that_they_share() {
    let mut rng = rng(10);
    let op = Op::Kfree { pick: 77 };
    let kin = (0..50).map(|_| {
        let mut trace = Trace::new(vec![op]);
        list::replace_by_kin(&mut trace, &mut rng, 10);
        trace.ops[0]
    });
    for op in kin {
        assert_eq!(op.kind().group(), OpGroup::Kmalloc);
        assert!(op.number(Role::Pick).is_none_or(|pick| pick == 77), "{op:?}");
    }
}

#[test]
fn a_repeated_range_comes_again_and_stays_within_its_room() {
    let mut rng = rng(11);
    let before = Trace::new(vec![Op::Audit, Op::Purge, Op::Reclaim]);
    let mut longest = 0;
    for _ in 0..200 {
        let mut trace = before.clone();
        list::repeat(&mut trace, &mut rng, 40);
        assert!(trace.ops.len() <= 40);
        longest = longest.max(trace.ops.len());
    }
    assert!(longest > 20, "{longest}");
}

#[test]
fn a_child_has_operations_of_both_parents() {
    let mut rng = rng(4);
    let a = Trace::new(vec![Op::Audit; 50]);
    let b = Trace::new(vec![Op::Purge; 50]);
    let mixed = (0..100).map(|_| crossover(&a, &b, &mut rng, 80)).filter(|child| {
        assert!(child.ops.len() <= 80);
        child.ops.contains(&Op::Audit) && child.ops.contains(&Op::Purge)
    });
    assert!(mixed.count() > 50);
    let empty = Trace::default();
    assert!(crossover(&empty, &empty, &mut rng, 80).ops.is_empty());
}
