//! Changes of the encoding by an engine that sees bytes: what structure-aware mutation is compared with.
//!
//! The usual repertoire of a byte mutator: a bit, a byte, a useful integer, a range removed, copied or overwritten, and parts
//! of two inputs joined. The decoder is total, so what comes out is a trace as well.

use super::range;
use crate::generate::TraceRng;
use crate::trace::{HEADER_BYTES, RECORD_BYTES, Trace};
use rand::{Rng, RngExt};

/// Integers at which programs change their behaviour, as byte mutators have them.
const INTEGERS: [u64; 12] = [0, 1, 7, 16, 64, 100, 0x7f, 0x80, 0xff, 0x1000, 0xffff, u64::MAX];

/// Changes a few bytes of a trace, which stays within `max_ops` operations.
pub fn mutate(trace: &mut Trace, rng: &mut TraceRng, max_ops: usize) {
    let mut bytes = trace.to_bytes();
    for _ in 0..rng.random_range(1..=4u8) {
        change(&mut bytes, rng);
    }
    *trace = decoded(bytes, max_ops);
}

/// The beginning of one encoding and the end of another.
pub fn crossover(a: &Trace, b: &Trace, rng: &mut TraceRng, max_ops: usize) -> Trace {
    let (mut bytes, other) = (a.to_bytes(), b.to_bytes());
    bytes.truncate(rng.random_range(0..=bytes.len()));
    let from = rng.random_range(0..=other.len());
    bytes.extend_from_slice(other.get(from..).unwrap_or_default());
    decoded(bytes, max_ops)
}

fn decoded(mut bytes: Vec<u8>, max_ops: usize) -> Trace {
    bytes.truncate(HEADER_BYTES + max_ops * RECORD_BYTES);
    let mut trace = Trace::from_bytes(&bytes);
    // Without its magic, the input has one header less and so may have more records.
    trace.ops.truncate(max_ops);
    trace
}

fn change(bytes: &mut Vec<u8>, rng: &mut TraceRng) {
    let place = range(rng, bytes.len());
    match rng.random_range(0..7u8) {
        0 => with_byte(bytes, place.start, |byte| byte ^ 1 << rng.random_range(0..8u8)),
        1 => with_byte(bytes, place.start, |_| rng.next_u32() as u8),
        2 => with_byte(bytes, place.start, |byte| byte.wrapping_add(rng.random_range(0..=16u8)).wrapping_sub(8)),
        3 => put_integer(bytes, place.start, rng),
        4 => drop(bytes.drain(place)),
        5 => {
            let copy = bytes.get(place).unwrap_or_default().to_vec();
            let at = rng.random_range(0..=bytes.len());
            bytes.splice(at..at, copy);
        }
        _ => {
            let copy = bytes.get(place).unwrap_or_default().to_vec();
            let at = rng.random_range(0..=bytes.len());
            bytes.iter_mut().skip(at).zip(copy).for_each(|(to, from)| *to = from);
        }
    }
}

fn with_byte(bytes: &mut [u8], at: usize, new: impl FnOnce(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = new(*byte);
    }
}

/// Writes a useful integer of one, two, four or eight bytes.
fn put_integer(bytes: &mut [u8], at: usize, rng: &mut TraceRng) {
    let value = crate::trace::interesting::pick(&INTEGERS, rng.next_u64()).to_le_bytes();
    let width = 1 << rng.random_range(0..4u8);
    bytes.iter_mut().skip(at).zip(value.iter().take(width)).for_each(|(to, from)| *to = *from);
}
