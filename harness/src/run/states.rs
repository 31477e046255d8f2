//! Which states of memory runs came through, in a few thousand buckets: how deep a generator goes, and feedback for one.

use super::Watch;
use super::hash::StepHasher;
use crate::model::{Model, Tiers};
use crate::subject::Subject;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};

/// Every how many operations a run is looked at.
const EVERY: usize = 4;
/// Orders that are told apart; the largest ones count as one.
const ORDERS: usize = 7;

/// The states that were seen.
///
/// A bucket is: how many free blocks there are of each order (none, one, a few, many), how many blocks are live in the direct
/// map and in the vmalloc window (by magnitude), and whether the machine has several nodes.
#[derive(Clone, Debug, Default)]
pub struct States {
    seen: HashSet<u32>,
    /// How many were new since the last question.
    new: usize,
}

impl States {
    /// How many states were seen.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Tells whether none was.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// How many states were seen for the first time since the last call of this function.
    pub fn take_new(&mut self) -> usize {
        std::mem::take(&mut self.new)
    }
}

impl Watch for States {
    fn look(&mut self, done: usize, model: &Model, subject: &dyn Subject) {
        if !done.is_multiple_of(EVERY) {
            return;
        }
        let Some(inside) = subject.white_box() else { return };
        let mut free = [0u64; ORDERS];
        for zone in inside.buddyinfo().zones() {
            for (order, &blocks) in zone.free.iter().enumerate() {
                free[order.min(ORDERS - 1)] += u64::from(blocks);
            }
        }
        let mut hasher = StepHasher::default();
        free.map(amount).hash(&mut hasher);
        let virtual_blocks = model.count(Tiers::VIRTUAL);
        magnitude(virtual_blocks).hash(&mut hasher);
        magnitude(model.len() - virtual_blocks).hash(&mut hasher);
        (model.geometry().zones().len() > 2).hash(&mut hasher);
        if self.seen.insert(hasher.finish() as u32) {
            self.new += 1;
        }
    }
}

/// None, one, a few, many.
fn amount(blocks: u64) -> u8 {
    match blocks {
        0 | 1 => blocks as u8,
        2..8 => 2,
        _ => 3,
    }
}

/// None, or the power of four.
fn magnitude(blocks: usize) -> u32 {
    blocks.checked_ilog(4).map_or(0, |n| n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{RunOptions, Runner};
    use crate::subjects::SubjectKind;
    use crate::trace::{Gfp, Op, Trace};

    #[test]
    fn a_state_is_new_once() {
        let mut states = States::default();
        let trace = Trace::new(vec![Op::AllocPages { order: 3, gfp: Gfp::KERNEL }; 40]);
        let mut runner = Runner::new();
        let mut run = |states: &mut States| {
            runner.run_watched(&trace, SubjectKind::KMEM, &RunOptions::default(), states);
            states.take_new()
        };
        let first = run(&mut states);
        assert!(first > 3 && states.len() == first, "{first}");
        assert_eq!(run(&mut states), 0);
    }
}
