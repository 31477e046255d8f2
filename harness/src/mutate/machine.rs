//! The machine, the planned failures and the swarm.

use crate::generate::TraceRng;
use crate::trace::{FaultSpec, GeometrySpec, MAX_FAULTS, OpGroup, Trace, interesting};
use kmem::{FaultPoint, Hardening};
use rand::{Rng, RngExt};

/// Another machine, or one property of it changed.
pub(super) fn step(trace: &mut Trace, rng: &mut TraceRng, _: usize) {
    let preset = GeometrySpec::preset(rng.next_u64());
    let g = &mut trace.geometry;
    match rng.random_range(0..19u8) {
        0 => *g = preset,
        1 => g.cpus = rng.random_range(1..=8),
        2 => g.frames = interesting::log_uniform(rng.next_u64(), 12) as u32,
        3 => g.dma_frames = rng.random_range(0..=g.frames / 4),
        4 => g.movable_frames = rng.random_range(0..=g.frames / 2),
        5 => g.max_order = rng.random_range(0..=10),
        6 => g.pageblock_order = rng.random_range(0..=g.max_order),
        7 => g.nodes = rng.random_range(1..=4),
        8 => g.cpu_nodes = rng.random_range(1..=4),
        9 => g.cma_blocks = rng.random_range(0..=64),
        10 => (g.dma32_frames, g.mobility) = (rng.random_range(0..=g.frames / 4), preset.mobility),
        11 => g.page_debug ^= 1 << rng.random_range(0..3u8),
        12 => g.slub_debug ^= 1 << rng.random_range(0..5u8),
        13 => g.huge = !g.huge,
        14 => g.trim_large = !g.trim_large,
        15 => g.hardening = interesting::pick(&HARDENINGS, rng.next_u64()),
        17 => g.pocket = rng.random_range(0..=3),
        16 => g.min_free = interesting::neighbour(u64::from(g.min_free), rng.next_u64()) as u32,
        _ => g.vmalloc_pages = 2 + interesting::log_uniform(rng.next_u64(), 13) as u32,
    }
}

/// What frees verify; mostly that a block is live, without which no mistake can be named.
const HARDENINGS: [Hardening; 4] = [Hardening::Checked, Hardening::Checked, Hardening::Paranoid, Hardening::Off];

/// One planned failure more, or one less.
pub(super) fn faults(trace: &mut Trace, rng: &mut TraceRng, _: usize) {
    let grow = trace.faults.is_empty() || rng.random();
    if grow && trace.faults.len() < MAX_FAULTS && trace.swarm.contains(OpGroup::Fault) {
        let point = interesting::pick(&FaultPoint::ALL, rng.next_u64());
        trace.faults.push(FaultSpec { point, nth: interesting::log_uniform(rng.next_u64(), 8) as u32 });
    } else {
        trace.faults.pop();
    }
}

/// Switches one group; the operations that are there stay.
pub(super) fn swarm(trace: &mut Trace, rng: &mut TraceRng, _: usize) {
    let group = interesting::pick(&OpGroup::ALL, rng.next_u64());
    let on = trace.swarm.contains(group);
    trace.swarm = if on { trace.swarm.without(group) } else { trace.swarm.with(group) };
}
