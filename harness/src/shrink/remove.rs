//! Fewer operations.

use super::Search;
use crate::generate::{allocates, frees};
use crate::trace::{Op, OpKind, Role, Trace};

/// Up to this many operations every pair is tried.
const ALL_PAIRS: usize = 48;
/// Above it, only pairs at most this far apart.
const NEAR: usize = 12;

/// Cuts the tail by bisection: a run that fails at an operation fails without what comes after it.
pub(super) fn shortest_prefix<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    let mut too_short = 0;
    while search.len() - too_short > 1 {
        let half = too_short + (search.len() - too_short) / 2;
        if !search.attempt(|trace| trace.ops.truncate(half)) {
            too_short = half;
        }
    }
}

/// Removes runs of operations: halves, quarters, down to single ones, until no single one can go.
pub(super) fn chunks<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    let mut width = (search.len() / 2).max(1);
    loop {
        let removed = chunks_of(search, width);
        if width == 1 && !removed {
            return;
        }
        if width > 1 {
            width /= 2;
        }
    }
}

/// One pass from the back: what comes later needs what comes earlier.
fn chunks_of<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, width: usize) -> bool {
    let mut removed = false;
    let mut end = search.len();
    while end > 0 {
        let start = end.saturating_sub(width);
        removed |= search.attempt(|trace| drop(trace.ops.drain(start..end)));
        end = start;
    }
    removed
}

/// Removes two operations at once: an allocation with its free.
pub(super) fn pairs<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    let mut first = 0;
    while first < search.len() {
        let reach = if search.len() <= ALL_PAIRS { search.len() } else { NEAR };
        let mut second = first + 1;
        while second < search.len().min(first + 1 + reach) && !search.exhausted() {
            // After a removal other operations stand at both places, and they are looked at next.
            if !remove_pair(search, first, second) {
                second += 1;
            }
        }
        first += 1;
    }
}

/// Removes both; picks between them stay, or are renumbered.
fn remove_pair<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, first: usize, second: usize) -> bool {
    let remove = |trace: &mut Trace| {
        trace.ops.remove(second);
        trace.ops.remove(first);
    };
    search.attempt(remove)
        || search.attempt(|trace| {
            lower(trace.ops.iter_mut().take(second).skip(first + 1), 1);
            remove(trace);
        })
}

/// Removes one allocation, or many made at once, or one free, and renumbers all later picks, so that they still mean the
/// blocks that they meant.
pub(super) fn renumbered<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for index in (0..search.len()).rev() {
        let Some(op) = search.best.ops.get(index).copied() else { continue };
        search.attempt(|trace| {
            trace.ops.remove(index);
            let later = trace.ops.iter_mut().skip(index);
            match op {
                Op::Burst { count, .. } => lower(later, count.into()),
                _ if allocates(op.kind()) => lower(later, 1),
                _ => raise(later, op.number(Role::Pick).filter(|_| frees(op.kind()))),
            }
        });
    }
}

/// Makes bursts shorter and renumbers all later picks.
pub(super) fn shorter_bursts<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for index in 0..search.len() {
        let mut less = u16::MAX;
        while let Some(&Op::Burst { count: most, .. }) = search.best.ops.get(index) {
            less = less.min(most);
            let shorter = search.attempt(|trace| {
                if let Some(Op::Burst { count, .. }) = trace.ops.get_mut(index) {
                    *count -= less;
                    lower(trace.ops.iter_mut().skip(index + 1), less.into());
                }
            });
            if !shorter {
                less /= 2;
            }
            if less == 0 || search.exhausted() {
                break;
            }
        }
    }
}

/// Removes all operations of one kind: what a swarm brought in goes as a whole.
pub(super) fn kinds<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for kind in OpKind::ALL {
        if search.best.ops.iter().filter(|op| op.kind() == kind).count() > 1 {
            search.attempt(|trace| trace.ops.retain(|op| op.kind() != kind));
        }
    }
}

/// The picks of operations behind so many blocks that are gone.
fn lower<'a>(ops: impl Iterator<Item = &'a mut Op>, by: u64) {
    shift(ops, |pick| if pick < by { pick } else { pick - by });
}

/// The picks of operations behind a block that is there again.
fn raise<'a>(ops: impl Iterator<Item = &'a mut Op>, from: Option<u64>) {
    shift(ops, |pick| if from.is_some_and(|from| pick >= from) { pick + 1 } else { pick });
}

fn shift<'a>(ops: impl Iterator<Item = &'a mut Op>, to: impl Fn(u64) -> u64) {
    for op in ops {
        if let Some(pick) = op.number(Role::Pick) {
            *op = op.with_number(Role::Pick, to(pick));
        }
    }
}
