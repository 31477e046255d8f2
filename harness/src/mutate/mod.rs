//! Changes traces so that they stay meaningful: what coverage-guided engines use instead of flipping bits.
//!
//! Blocks are named by picks, so every list of operations is a program and any of these changes gives one:
//!
//! | room | changes |
//! |---|---|
//! | [`list`] | which operations there are, and in which order |
//! | [`number`] | one number of one operation: to a neighbour, a boundary, another operation's; one flag |
//! | [`machine`] | the machine by one step, the planned failures, the swarm |
//! | [`mod@bytes`] | the encoding, as an engine does that knows nothing of operations: for comparison |

pub mod bytes;
mod list;
mod machine;
mod number;

use crate::generate::TraceRng;
use crate::trace::{MAX_OPS, Swarm, Trace, interesting};
use rand::{Rng, RngExt};
use std::ops::Range;

/// One way of changing a trace; `room` is how many operations it may have afterwards.
type Change = fn(&mut Trace, &mut TraceRng, room: usize);

/// All of them, and how often of 100 each is chosen.
const CHANGES: [(u32, Change); 14] = [
    (18, number::tweak),
    (6, number::flip_flag),
    (17, list::insert_fresh),
    (13, list::remove),
    (7, list::duplicate),
    (4, list::repeat),
    (6, list::relocate),
    (3, list::swap),
    (6, list::renew),
    (6, list::replace_by_kin),
    (4, list::insert_scene),
    (4, machine::step),
    (3, machine::faults),
    (3, machine::swarm),
];

/// Changes a trace in one to four ways; it keeps to its swarm and to `max_ops` operations and stays in range.
pub fn mutate(trace: &mut Trace, rng: &mut TraceRng, max_ops: usize) {
    let room = max_ops.min(MAX_OPS);
    for _ in 0..rng.random_range(1..=4u8) {
        let mut at = rng.random_range(0..100);
        for (share, change) in CHANGES {
            if at < share {
                change(trace, rng, room);
                break;
            }
            at -= share;
        }
        trace.ops.truncate(room);
    }
    trace.normalize();
}

/// Joins parts of two traces: the machine of one, operations of both.
pub fn crossover(a: &Trace, b: &Trace, rng: &mut TraceRng, max_ops: usize) -> Trace {
    let (first, second) = if rng.random() { (a, b) } else { (b, a) };
    let mut child = first.clone();
    match rng.random_range(0..4u8) {
        0 => child.ops = list::interleaved(&first.ops, &second.ops, rng),
        n => list::graft(&mut child.ops, &second.ops, n, rng),
    }
    child.swarm = Swarm::from_bits_truncate(a.swarm.bits() | b.swarm.bits());
    if rng.random_ratio(1, 4) {
        child.faults.clone_from(&second.faults);
    }
    child.ops.truncate(max_ops.min(MAX_OPS));
    child.normalize();
    child
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

#[cfg(test)]
mod tests;
