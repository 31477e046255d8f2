//! Simpler operations: smaller numbers, usual flags, plain calls instead of special ones.

use super::Search;
use crate::trace::{BurstTier, Gfp, Op, Role, Trace, interesting};

/// Caches and CPUs are tried up to this number.
const SMALL: u64 = 16;
/// Picks are tried up to this number: one beyond the live blocks means another block whenever one goes.
const SMALL_PICK: u64 = 64;

/// Simplifies every operation.
pub(super) fn operations<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for index in 0..search.len() {
        while simplify_call(search, index) {}
        let roles = search.best.ops.get(index).map_or(&[][..], |op| op.kind().roles());
        for &role in roles {
            number(search, index, role);
        }
    }
}

/// Takes the first simpler call that still fails; tells whether there was one.
fn simplify_call<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, index: usize) -> bool {
    let Some(op) = search.best.ops.get(index).copied() else { return false };
    let mut simpler = simpler_call(&op).into_iter().chain(calls_of_one_tier(&op));
    simpler.any(|simpler| search.attempt(|trace| replace(trace, index, simpler)))
}

fn replace(trace: &mut Trace, index: usize, op: Op) {
    if let Some(place) = trace.ops.get_mut(index) {
        *place = op;
    }
}

/// The plain call that does the same or nearly the same.
fn simpler_call(op: &Op) -> Option<Op> {
    match *op {
        Op::KfreeSensitive { pick } => Some(Op::Kfree { pick }),
        Op::KvfreeSensitive { pick } => Some(Op::Kvfree { pick }),
        Op::KmallocArray { n, size, gfp } => Some(Op::Kmalloc { size: n.saturating_mul(size), gfp }),
        Op::KvmallocArray { n, size, gfp } => Some(Op::Kvmalloc { size: n.saturating_mul(size), gfp }),
        Op::CacheAllocBulk { cache, count: 1, gfp } | Op::CacheAllocNode { cache, gfp, .. } => {
            Some(Op::CacheAlloc { cache, gfp })
        }
        Op::VmallocRange { size, gfp, .. } => Some(Op::Vmalloc { size, gfp }),
        Op::KvmallocNode { size, gfp, .. } => Some(Op::Kvmalloc { size, gfp }),
        Op::KmallocNode { size, gfp, .. } => Some(Op::Kmalloc { size, gfp }),
        Op::CacheFreeBulk { pick, count: 1, .. } => Some(Op::CacheFree { pick }),
        Op::AllocPagesNode { order, gfp, .. } => Some(Op::AllocPages { order, gfp }),
        Op::AllocPagesBulk { count: 1, gfp } => Some(Op::AllocPages { order: 0, gfp }),
        Op::Burst { count: 1, tier: BurstTier::Kmalloc, size, gfp } => Some(Op::Kmalloc { size, gfp }),
        Op::Burst { count: 1, tier: BurstTier::Vmalloc, size, gfp } => Some(Op::Vmalloc { size, gfp }),
        Op::Burst { count: 1, tier: BurstTier::Kvmalloc, size, gfp } => Some(Op::Kvmalloc { size, gfp }),
        _ => None,
    }
}

/// The calls that `kvmalloc` chooses from: with them it matters less what else is in memory.
fn calls_of_one_tier(op: &Op) -> Vec<Op> {
    match *op {
        Op::Kvmalloc { size, gfp } => vec![Op::Kmalloc { size, gfp }, Op::Vmalloc { size, gfp }],
        _ => Vec::new(),
    }
}

/// Simplifies one number.
fn number<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, index: usize, role: Role) {
    let Some(old) = search.best.ops.get(index).and_then(|op| op.number(role)) else { return };
    match role {
        Role::Gfp => gfp(search, index, old),
        Role::Pick | Role::Cache | Role::Cpu => {
            let most = if role == Role::Pick { SMALL_PICK } else { SMALL };
            let _ = (0..old.min(most)).any(|n| set(search, index, role, n));
        }
        Role::Point | Role::Tier => {}
        // Zero is the odd size out: it stays only if the failure needs it.
        Role::Size if old == 0 => {
            set(search, index, role, 1);
        }
        Role::Size | Role::N => lower(search, index, role, old, &boundaries_below(old)),
        Role::Align | Role::Shift | Role::Order | Role::Count | Role::Step | Role::Phase | Role::Nth => {
            lower(search, index, role, old, &[0, 1, 2]);
        }
        Role::CacheFlags => {
            let _ =
                [0, old & old.wrapping_neg()].into_iter().filter(|&n| n != old).any(|n| set(search, index, role, n));
        }
        Role::Offset | Role::Length | Role::FreePointer | Role::Capacity => lower(search, index, role, old, &[0, 1]),
        Role::Node
        | Role::Page
        | Role::Flag
        | Role::Flag2
        | Role::Percent
        | Role::Spare
        | Role::Frame
        | Role::Checks => lower(search, index, role, old, &[0]),
    }
}

fn set<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, index: usize, role: Role, number: u64) -> bool {
    search.attempt(|trace| {
        if let Some(op) = trace.ops.get_mut(index) {
            *op = op.with_number(role, number);
        }
    })
}

/// One byte, and every boundary below a size.
fn boundaries_below(size: u64) -> Vec<u64> {
    let all = [1].into_iter().chain(interesting::SMALL_BOUNDARIES).chain(interesting::HUGE_BOUNDARIES);
    all.filter(|&boundary| boundary < size).collect()
}

/// Takes the first of the simple numbers that still fails, then bisects down to the number before it.
fn lower<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, index: usize, role: Role, old: u64, simple: &[u64]) {
    let mut passes = None;
    let mut fails = old;
    for &number in simple.iter().filter(|&&number| number < old) {
        if set(search, index, role, number) {
            fails = number;
            break;
        }
        passes = Some(number);
    }
    let Some(mut passes) = passes else { return };
    while fails - passes > 1 && !search.exhausted() {
        let middle = passes + (fails - passes) / 2;
        if set(search, index, role, middle) {
            fails = middle;
        } else {
            passes = middle;
        }
    }
}

/// Plain `KERNEL`, or fewer flags.
fn gfp<F: FnMut(&Trace) -> bool>(search: &mut Search<F>, index: usize, old: u64) {
    let kernel = u64::from(Gfp::KERNEL.bits());
    if old == kernel || set(search, index, Role::Gfp, kernel) {
        return;
    }
    let mut flags = old;
    for bit in (0..32).map(|n| 1 << n).filter(|bit| old & bit != 0) {
        if set(search, index, Role::Gfp, flags & !bit) {
            flags &= !bit;
        }
    }
}
