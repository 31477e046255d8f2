//! Changes traces so that they stay meaningful: what coverage-guided engines use instead of flipping bits.

use crate::generate::{Live, Numbers, Target, TraceRng, Weights, scene};
use crate::trace::{FaultSpec, GeometrySpec, MAX_FAULTS, MAX_OPS, Op, OpGroup, Role, Swarm, Trace, interesting};
use kmem::FaultPoint;
use rand::{Rng, RngExt};
use std::ops::Range;

/// Changes a trace in one to four ways; it keeps to its swarm and to `max_ops` operations and stays in range.
pub fn mutate(trace: &mut Trace, rng: &mut TraceRng, max_ops: usize) {
    for _ in 0..rng.random_range(1..=4u8) {
        mutate_once(trace, rng);
        trace.ops.truncate(max_ops.min(MAX_OPS));
    }
    trace.normalize();
}

/// Joins parts of two traces: the machine of one, operations of both.
pub fn crossover(a: &Trace, b: &Trace, rng: &mut TraceRng, max_ops: usize) -> Trace {
    let (first, second) = if rng.random() { (a, b) } else { (b, a) };
    let mut child = first.clone();
    let middle = range(rng, second.ops.len());
    let donated = second.ops.get(middle).unwrap_or_default();
    let place = range(rng, child.ops.len());
    match rng.random_range(0..3u8) {
        0 => child.ops.truncate(place.end),
        1 => drop(child.ops.drain(place.clone())),
        _ => {}
    }
    let at = place.start.min(child.ops.len());
    child.ops.splice(at..at, donated.iter().copied());
    child.swarm = Swarm::from_bits_truncate(a.swarm.bits() | b.swarm.bits());
    if rng.random_ratio(1, 4) {
        child.faults.clone_from(&second.faults);
    }
    child.ops.truncate(max_ops);
    child.normalize();
    child
}

fn mutate_once(trace: &mut Trace, rng: &mut TraceRng) {
    match rng.random_range(0..100u32) {
        0..24 => tweak_number(trace, rng),
        24..44 => insert_fresh(trace, rng),
        44..58 => drop(trace.ops.drain(range(rng, trace.ops.len()))),
        58..68 => duplicate(trace, rng),
        68..76 => move_range(trace, rng),
        76..84 => replace(trace, rng),
        84..90 => insert_scene(trace, rng),
        90..94 => change_geometry(trace, rng),
        94..97 => change_faults(trace, rng),
        _ => change_swarm(trace, rng),
    }
}

/// A range that is short more often than long; empty only if there is nothing.
fn range(rng: &mut TraceRng, len: usize) -> Range<usize> {
    if len == 0 {
        return 0..0;
    }
    let start = rng.random_range(0..len);
    let most = usize::BITS - (len - start).leading_zeros();
    let width = interesting::log_uniform(rng.next_u64(), most) as usize;
    start..start + width.clamp(1, len - start)
}

/// Puts operations at a place.
fn insert(trace: &mut Trace, rng: &mut TraceRng, ops: Vec<Op>) {
    let at = rng.random_range(0..=trace.ops.len());
    trace.ops.splice(at..at, ops);
}

/// New operations of the trace's swarm.
fn fresh(trace: &Trace, rng: &mut TraceRng, count: usize) -> Vec<Op> {
    let swarm = if trace.swarm == Swarm::NONE { Swarm::ALL } else { trace.swarm };
    let weights = Weights::new(rng, swarm);
    let numbers = Numbers::draw(rng);
    let mut live = Live::new(rng);
    trace.ops.iter().for_each(|op| live.follow(op));
    (0..count).filter_map(|_| weights.draw(rng, &live).map(|kind| numbers.op(rng, kind, &live))).collect()
}

fn insert_fresh(trace: &mut Trace, rng: &mut TraceRng) {
    let count = 1 + interesting::log_uniform(rng.next_u64(), 4) as usize;
    let ops = fresh(trace, rng, count);
    insert(trace, rng, ops);
}

fn duplicate(trace: &mut Trace, rng: &mut TraceRng) {
    let range = range(rng, trace.ops.len());
    let ops = trace.ops.get(range).unwrap_or_default().to_vec();
    insert(trace, rng, ops);
}

fn move_range(trace: &mut Trace, rng: &mut TraceRng) {
    let range = range(rng, trace.ops.len());
    let ops = trace.ops.drain(range).collect();
    insert(trace, rng, ops);
}

fn replace(trace: &mut Trace, rng: &mut TraceRng) {
    let range = range(rng, trace.ops.len());
    let ops = fresh(trace, rng, range.len());
    trace.ops.splice(range, ops);
}

fn insert_scene(trace: &mut Trace, rng: &mut TraceRng) {
    if !trace.swarm.contains(OpGroup::Fragment) {
        return insert_fresh(trace, rng);
    }
    let mut ops = Vec::new();
    scene(rng, Target::Trace, &mut trace.geometry, &mut ops);
    insert(trace, rng, ops);
}

/// Changes one number of one operation to a neighbour, a boundary, a multiple, or another operation's number.
fn tweak_number(trace: &mut Trace, rng: &mut TraceRng) {
    if trace.ops.is_empty() {
        return insert_fresh(trace, rng);
    }
    let index = rng.random_range(0..trace.ops.len());
    let other = rng.random_range(0..trace.ops.len());
    let donor = trace.ops.get(other).copied();
    let Some(op) = trace.ops.get_mut(index) else { return };
    let roles = op.kind().roles();
    let Some(&role) = roles.get(rng.random_range(0..roles.len().max(1))) else { return };
    let old = op.number(role).unwrap_or(0);
    let donated = donor.and_then(|donor| donor.number(role));
    *op = op.with_number(role, tweaked(rng, role, old, donated).min(limit(role)));
}

/// A macro operation shall not take most of the time that a trace may take.
const fn limit(role: Role) -> u64 {
    match role {
        Role::Count | Role::Spare => 1024,
        _ => u64::MAX,
    }
}

fn tweaked(rng: &mut TraceRng, role: Role, old: u64, donated: Option<u64>) -> u64 {
    let n = rng.next_u64();
    match (rng.random_range(0..8u8), role) {
        (0..=1, Role::Gfp) => old ^ 1 << (n % 23),
        (_, Role::Gfp) => u64::from(interesting::usual_gfp(n).bits()),
        (0, _) => old.wrapping_add(1),
        (1, _) => old.saturating_sub(1),
        (2, _) => old / 2,
        (3, _) => old.saturating_mul(2),
        (4, _) => donated.unwrap_or(old),
        (5, Role::Size) if n.is_multiple_of(8) => interesting::huge(n / 8),
        (5 | 6, Role::Size) => interesting::boundary(n),
        (_, Role::Size) => interesting::log_uniform(n, 14),
        (_, Role::Order) => n % 12,
        (_, Role::N | Role::Page | Role::Pick) => interesting::log_uniform(n, 10),
        (_, Role::Count | Role::Spare) => interesting::log_uniform(n, 7),
        _ => n & 0xff,
    }
}

/// Another machine, or one number of it changed.
fn change_geometry(trace: &mut Trace, rng: &mut TraceRng) {
    let preset = GeometrySpec::preset(rng.next_u64());
    let g = &mut trace.geometry;
    match rng.random_range(0..12u8) {
        0 => *g = preset,
        8 => g.nodes = rng.random_range(1..=4),
        9 => g.cpu_nodes = rng.random_range(1..=4),
        10 => g.cma_blocks = rng.random_range(0..=64),
        11 => (g.dma32_frames, g.mobility) = (rng.random_range(0..=g.frames / 4), preset.mobility),
        1 => g.cpus = rng.random_range(1..=8),
        2 => g.frames = interesting::log_uniform(rng.next_u64(), 12) as u32,
        3 => g.dma_frames = rng.random_range(0..=g.frames / 4),
        4 => g.movable_frames = rng.random_range(0..=g.frames / 2),
        5 => g.max_order = rng.random_range(0..=10),
        6 => g.pageblock_order = rng.random_range(0..=g.max_order),
        _ => g.vmalloc_pages = 2 + interesting::log_uniform(rng.next_u64(), 13) as u32,
    }
}

fn change_faults(trace: &mut Trace, rng: &mut TraceRng) {
    let grow = trace.faults.is_empty() || rng.random();
    if grow && trace.faults.len() < MAX_FAULTS && trace.swarm.contains(OpGroup::Fault) {
        let point = interesting::pick(&FaultPoint::ALL, rng.next_u64());
        trace.faults.push(FaultSpec { point, nth: interesting::log_uniform(rng.next_u64(), 8) as u32 });
    } else {
        trace.faults.pop();
    }
}

/// Switches one group; the operations that are there stay.
fn change_swarm(trace: &mut Trace, rng: &mut TraceRng) {
    let group = interesting::pick(&OpGroup::ALL, rng.next_u64());
    let on = trace.swarm.contains(group);
    trace.swarm = if on { trace.swarm.without(group) } else { trace.swarm.with(group) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Generator, rng};
    use crate::trace::OpKind;

    #[test]
    fn mutants_stay_in_range_and_within_the_limit() {
        let mut rng = rng(1);
        for seed in 0..200 {
            let mut trace = Generator::new(seed).trace(Target::Trace, 100);
            for _ in 0..20 {
                mutate(&mut trace, &mut rng, 120);
                assert!(trace.ops.len() <= 120);
                assert_eq!(trace.geometry.out_of_range(), None);
            }
        }
    }

    #[test]
    fn a_mutation_is_a_function_of_its_seed() {
        let trace = Generator::new(1).trace(Target::Trace, 100);
        let mutant = |seed| {
            let mut copy = trace.clone();
            mutate(&mut copy, &mut rng(seed), 100);
            copy
        };
        assert_eq!(mutant(5), mutant(5));
        assert!((0..20).filter(|&seed| mutant(seed) != trace).count() >= 18);
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
}
