//! Page tables and free lists of a state, as tables.

use crate::report::film::{Film, Leaf, State};
use kmem::{Geometry, NR_PAGE_ORDERS, PAGE_SIZE};

/// The most runs of mapped pages that are listed.
pub(super) const MOST_RUNS: usize = 64;

/// Mapped pages next to each other.
pub(super) struct LeafRow {
    pub(super) addr: String,
    pub(super) pages: u64,
    pub(super) entry: &'static str,
    pub(super) frames: String,
    pub(super) rights: &'static str,
}

/// The mapped leaves in words: how many of each size, in how many runs.
pub(super) fn leaves_in_words(state: &State) -> String {
    let of_order = |wanted: u8| state.leaves.values().filter(move |leaf| leaf.2 == wanted);
    let pages = |wanted: u8| of_order(wanted).map(|leaf| leaf.0).sum::<u64>();
    let huge: u64 = state.leaves.values().filter(|leaf| leaf.2 > 0).map(|leaf| leaf.0 >> leaf.2).sum();
    let runs = state.leaves.len();
    format!("Leaves of 4 KiB: {}; of 2 MiB: {huge}; runs of frames that follow each other: {runs}", pages(0))
}

/// The first runs of mapped leaves, and how many more there are.
pub(super) fn leaves(geometry: &Geometry, state: &State) -> (Vec<LeafRow>, usize) {
    let row = |(&first, &Leaf(pages, pfn, order, writable)): (&u64, &Leaf)| LeafRow {
        addr: format!("{:#x}", geometry.vmalloc_start.as_u64() + first * PAGE_SIZE as u64),
        pages,
        entry: if order > 0 { "2 MiB" } else { "4 KiB" },
        frames: format!("{pfn}..{}", u64::from(pfn) + pages - 1),
        rights: if writable { "read, write" } else { "read" },
    };
    (state.leaves.iter().take(MOST_RUNS).map(row).collect(), state.leaves.len().saturating_sub(MOST_RUNS))
}

/// A zone and its free blocks by order.
pub(super) struct ZoneRow {
    pub(super) name: String,
    pub(super) free: Vec<i64>,
}

/// The free lists of each zone.
pub(super) fn zones(film: &Film) -> Vec<ZoneRow> {
    let lists = film.state.free.chunks(NR_PAGE_ORDERS);
    let name = |zone: &kmem::ZoneSpec| format!("node {}, {}", zone.node, zone.kind.name());
    let zones = film.geometry.zones().iter().zip(lists);
    zones.map(|(zone, free)| ZoneRow { name: name(zone), free: free.to_vec() }).collect()
}
