//! A simpler machine: fewer planned failures, fewer zones, CPUs and frames.

use super::Search;
use crate::trace::{GeometrySpec, Swarm, Trace};

/// The default machine, if the failure does not need another. Tried once: later steps go below the default.
pub(super) fn default_machine<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    search.attempt(|trace| {
        trace.geometry = GeometrySpec::default();
        trace.swarm = Swarm::ALL;
    });
    search.attempt(|trace| trace.swarm = Swarm::ALL);
}

/// Removes planned failures, then plans those that are needed as early as possible.
pub(super) fn faults<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    for index in (0..search.best.faults.len()).rev() {
        search.attempt(|trace| {
            trace.faults.remove(index);
        });
    }
    for index in 0..search.best.faults.len() {
        let nth = search.best.faults.get(index).map_or(0, |fault| fault.nth);
        let earlier = (0..nth.min(4)).chain([nth / 4, nth / 2, nth.saturating_sub(1)]);
        let _ = earlier.filter(|&n| n < nth).any(|n| {
            search.attempt(|trace| {
                if let Some(fault) = trace.faults.get_mut(index) {
                    fault.nth = n;
                }
            })
        });
    }
}

/// Moves each number of the machine to its simplest value, as far as the failure allows.
pub(super) fn geometry<F: FnMut(&Trace) -> bool>(search: &mut Search<F>) {
    const STEPS: [fn(&mut GeometrySpec); 13] = [
        |g| (g.nodes, g.cpu_nodes) = (1, 1),
        |g| g.cma_blocks = 0,
        |g| g.mobility = GeometrySpec::default().mobility,
        |g| g.dma32_frames = 0,
        |g| g.cpus = 1,
        |g| g.movable_frames = 0,
        |g| g.dma_frames = 0,
        |g| g.slub_debug = 0,
        |g| g.huge = false,
        |g| g.hardening = GeometrySpec::default().hardening,
        |g| g.vmalloc_pages = GeometrySpec::default().vmalloc_pages,
        |g| g.min_free = g.min_free.clamp(1, 16),
        |g| (g.max_order, g.pageblock_order) = (9, 4),
    ];
    for step in STEPS {
        search.attempt(|trace| step(&mut trace.geometry));
    }
    let frames = search.best.geometry.frames;
    let smaller = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768].into_iter().filter(|&n| n < frames);
    let _ = smaller.into_iter().any(|n| search.attempt(|trace| set_frames(&mut trace.geometry, n)));
}

fn set_frames(geometry: &mut GeometrySpec, frames: u32) {
    geometry.frames = frames;
    *geometry = geometry.normalized();
}
