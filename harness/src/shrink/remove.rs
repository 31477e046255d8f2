//! Fewer operations.

use super::Search;
use crate::generate::allocates;
use crate::trace::{Op, Role, Trace};

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
            renumber(trace.ops.iter_mut().take(second).skip(first + 1));
            remove(trace);
        })
}

/// Removes one allocation and lowers all later picks by one, so that they still mean the blocks that they meant.
pub(super) fn renumbered<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for index in (0..search.len()).rev() {
        if search.best.ops.get(index).is_some_and(|op| allocates(op.kind())) {
            search.attempt(|trace| {
                trace.ops.remove(index);
                renumber(trace.ops.iter_mut().skip(index));
            });
        }
    }
}

fn renumber<'a>(ops: impl Iterator<Item = &'a mut Op>) {
    for op in ops {
        if let Some(pick @ 1..) = op.number(Role::Pick) {
            *op = op.with_number(Role::Pick, pick - 1);
        }
    }
}
