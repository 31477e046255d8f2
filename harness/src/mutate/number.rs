//! One number of one operation.

use super::list::insert_fresh;
use crate::generate::TraceRng;
use crate::trace::{Role, Trace, interesting};
use rand::{Rng, RngExt};

/// Changes one number of one operation to a neighbour, a boundary, a multiple, or another operation's number.
pub(super) fn tweak(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    if trace.ops.is_empty() {
        return insert_fresh(trace, rng, room);
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

/// Switches one bit of one operation's flags: those of an allocation, of a cache, or of a debug cache.
pub(super) fn flip_flag(trace: &mut Trace, rng: &mut TraceRng, room: usize) {
    let with_flags = trace.ops.iter().enumerate().filter_map(|(i, op)| {
        let role = op.kind().roles().iter().copied().find(|role| bits(*role) > 0)?;
        Some((i, role))
    });
    let with_flags: Vec<(usize, Role)> = with_flags.collect();
    let Some(&(index, role)) = with_flags.get(rng.random_range(0..with_flags.len().max(1))) else {
        return tweak(trace, rng, room);
    };
    let bit = rng.random_range(0..bits(role));
    if let Some(op) = trace.ops.get_mut(index) {
        *op = op.with_number(role, op.number(role).unwrap_or(0) ^ 1 << bit);
    }
}

/// How many bits a set of flags has; 0 for numbers that are none.
const fn bits(role: Role) -> u32 {
    match role {
        Role::Gfp => 23,
        Role::CacheFlags => 16,
        Role::Checks => 5,
        Role::Flag | Role::Flag2 => 1,
        _ => 0,
    }
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
        (0..=1, Role::Gfp) => donated.unwrap_or(old),
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
