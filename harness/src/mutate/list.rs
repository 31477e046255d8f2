//! Which operations there are, and in which order.

use super::range;
use crate::generate::{Live, Numbers, Target, TraceRng, Weights, scene};
use crate::trace::{Op, OpGroup, OpKind, Swarm, Trace, interesting};
use rand::{Rng, RngExt};

/// The most copies of a range.
const MOST_COPIES: u64 = 16;

/// Puts operations at a place, as many as there is room for.
fn insert(trace: &mut Trace, rng: &mut TraceRng, mut ops: Vec<Op>, room: usize) {
    ops.truncate(room);
    let at = rng.random_range(0..=trace.ops.len());
    trace.ops.splice(at..at, ops);
}

/// New operations of the trace's swarm, weighted and balanced as the generator does.
pub(super) fn fresh(trace: &Trace, rng: &mut TraceRng, count: usize) -> Vec<Op> {
    let swarm = if trace.swarm == Swarm::NONE { Swarm::ALL } else { trace.swarm };
    let weights = Weights::new(rng, swarm);
    let numbers = Numbers::draw(rng);
    let mut live = Live::new(rng);
    trace.ops.iter().for_each(|op| live.follow(op));
    (0..count).filter_map(|_| weights.draw(rng, &live).map(|kind| numbers.op(rng, kind, &live))).collect()
}

/// Inserts a few new operations.
pub(super) fn insert_fresh(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    let count = 1 + interesting::log_uniform(rng.next_u64(), 4) as usize;
    let ops = fresh(trace, rng, count);
    insert(trace, rng, ops, room);
}

/// Removes a range.
pub(super) fn remove(trace: &mut Trace, rng: &mut TraceRng, _: usize) {
    trace.ops.drain(range(rng, trace.ops.len()));
}

/// Copies a range to somewhere else.
pub(super) fn duplicate(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    let range = range(rng, trace.ops.len());
    let ops = trace.ops.get(range).unwrap_or_default().to_vec();
    insert(trace, rng, ops, room);
}

/// Lets a short range come several times in a row: what leaks or counts wrongly does so again and again.
pub(super) fn repeat(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    let range = range(rng, trace.ops.len());
    let ops = trace.ops.get(range.clone()).unwrap_or_default();
    let spare = room.saturating_sub(trace.ops.len()).checked_div(ops.len()).unwrap_or(0);
    let wanted = 1 + rng.next_u64() % MOST_COPIES;
    let copies = ops.repeat(spare.min(wanted as usize));
    trace.ops.splice(range.end..range.end, copies);
}

/// Moves a range.
pub(super) fn relocate(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    let range = range(rng, trace.ops.len());
    let ops = trace.ops.drain(range).collect();
    insert(trace, rng, ops, room);
}

/// Exchanges two operations.
pub(super) fn swap(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    match trace.ops.len() {
        0 => insert_fresh(trace, rng, room),
        len => trace.ops.swap(rng.random_range(0..len), rng.random_range(0..len)),
    }
}

/// Puts new operations in the place of old ones.
pub(super) fn renew(trace: &mut Trace, rng: &mut TraceRng, _: usize) {
    let range = range(rng, trace.ops.len());
    let ops = fresh(trace, rng, range.len());
    trace.ops.splice(range, ops);
}

/// Replaces an operation by another of its group; numbers that both have stay, the others are drawn.
pub(super) fn replace_by_kin(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    if trace.ops.is_empty() {
        return insert_fresh(trace, rng, room);
    }
    let numbers = Numbers::draw(rng);
    let mut live = Live::new(rng);
    trace.ops.iter().for_each(|op| live.follow(op));
    let index = rng.random_range(0..trace.ops.len());
    let Some(op) = trace.ops.get_mut(index) else { return };
    let kin = OpKind::ALL.into_iter().filter(|kind| kind.group() == op.kind().group() && *kind != op.kind());
    let kin: Vec<OpKind> = kin.collect();
    // A group of one has only other numbers to offer.
    let kind = kin.get(rng.random_range(0..kin.len().max(1))).copied().unwrap_or(op.kind());
    let drawn = numbers.op(rng, kind, &live);
    let old = *op;
    let keep = kind != old.kind();
    *op = Op::from_numbers(kind, |role| {
        let kept = if keep { old.number(role) } else { None };
        kept.or_else(|| drawn.number(role)).unwrap_or(0)
    });
}

/// Inserts a scene of the generator, if the swarm has macro operations; it may change the machine to fit.
pub(super) fn insert_scene(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    if !trace.swarm.contains(OpGroup::Fragment) {
        return insert_fresh(trace, rng, room);
    }
    let mut ops = Vec::new();
    scene(rng, Target::Trace, &mut trace.geometry, &mut ops);
    insert(trace, rng, ops, room);
}

/// Runs of both parents by turns, each in its own order: as if two programs ran on one machine.
pub(super) fn interleaved(a: &[Op], b: &[Op], rng: &mut TraceRng) -> Vec<Op> {
    let (mut a, mut b) = (a, b);
    let mut child = Vec::with_capacity(a.len() + b.len());
    while !a.is_empty() || !b.is_empty() {
        let width = 1 + interesting::log_uniform(rng.next_u64(), 5) as usize;
        let (run, rest) = a.split_at(width.min(a.len()));
        child.extend_from_slice(run);
        (a, b) = (b, rest);
    }
    child
}

/// Puts a range of another trace into this one: instead of the end, of a range, or between two operations.
pub(super) fn graft(ops: &mut Vec<Op>, from: &[Op], how: u8, rng: &mut TraceRng) {
    let donated = from.get(range(rng, from.len())).unwrap_or_default();
    let place = range(rng, ops.len());
    match how {
        1 => ops.truncate(place.end),
        2 => drop(ops.drain(place.clone())),
        _ => {}
    }
    let at = place.start.min(ops.len());
    ops.splice(at..at, donated.iter().copied());
}
