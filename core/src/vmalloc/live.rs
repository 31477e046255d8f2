//! The live areas by their first page: who gives an area's address finds it in a few steps, however many areas there are.
//!
//! ```text
//! node k: chain 0 ──► area ──► area        chain of page p = floor(chains * frac(p * sqrt(2)))
//!         chain 1
//!         ...       each chain is linked through the records of its areas
//! ```
//!
//! Every vmap node has the same number of chains, so many that they have one area each when areas have four pages on
//! average and memory is full of them. A node's lock protects its chains.
//!
//! ```text
//! I21.9  a is in chain c of node k  =>  chain_of(start(a)) == c;   live(k) == sum of the lengths of its chains
//! ```

use super::area::Link;
use super::nodes::{VmapNode, node_of};
use super::record::Records;
use crate::error::{Invariant, Violation};
use crate::geometry::Geometry;
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU64, Ordering};

/// A node has so many chains at least, and at most.
const CHAINS: (u64, u64) = (8, 1 << 16);
/// Pages of memory for each chain.
const PAGES_PER_CHAIN: u64 = 4;
/// 2^64 times the fraction of the root of two, made odd: its multiples spread evenly, also those of areas that start at every
/// second page, and have nothing to do with those of the golden ratio, which give the node.
const SPREAD: u64 = 0x6a09_e667_f3bc_c909;

/// The chains of all vmap nodes, those of one node in a row.
pub(super) struct LiveAreas {
    /// Where the first record of each chain is, so coded that an empty chain is 0: most are never touched. Whoever holds a
    /// node's lock alone touches that node's.
    heads: MetaSlice<AtomicU64>,
    nodes: usize,
    /// log2 of the chains of a node.
    chains_log2: u32,
}

impl LiveAreas {
    /// Carves empty chains for so many nodes.
    pub(super) fn carve(geometry: &Geometry, nodes: usize, carver: &mut Carver<'_>) -> Self {
        let nodes = nodes.max(1);
        let wanted = geometry.managed().get() / PAGES_PER_CHAIN / nodes as u64;
        let chains = wanted.clamp(CHAINS.0, CHAINS.1).next_power_of_two();
        let heads = carver.carve_zeroed(chains as usize * nodes);
        Self { heads, nodes, chains_log2: chains.ilog2() }
    }

    /// Which chain an area that starts at `page` is in.
    fn chain_of(&self, page: u64) -> usize {
        let in_node = page.wrapping_mul(SPREAD) >> (u64::BITS - self.chains_log2);
        node_of(page, self.nodes) << self.chains_log2 | in_node as usize
    }

    fn head(&self, chain: usize) -> Link {
        let word = |head: &AtomicU64| Link::from_word(head.load(Ordering::Relaxed) ^ Link::NIL.as_u64());
        self.heads.get(chain).map_or(Link::NIL, word)
    }

    fn set_head(&self, chain: usize, at: Link) {
        if let Some(head) = self.heads.get(chain) {
            head.store(at.as_u64() ^ Link::NIL.as_u64(), Ordering::Relaxed);
        }
    }

    /// The live area that starts at page `start`; its node is locked.
    pub(super) fn find(&self, _of: &VmapNode, records: Records<'_>, start: u64) -> Option<Link> {
        let mut at = self.head(self.chain_of(start));
        while !at.is_nil() {
            let (start_here, next) = records.live_link(at);
            if start_here == start {
                return Some(at);
            }
            at = next;
        }
        None
    }

    /// Adds an area that starts at page `start`; its node is locked.
    pub(super) fn insert(&self, of: &mut VmapNode, records: Records<'_>, at: Link, start: u64) {
        let chain = self.chain_of(start);
        records.set_live_next(at, self.head(chain));
        self.set_head(chain, at);
        of.live += 1;
    }

    /// Takes out the area that starts at page `start`; its node is locked.
    pub(super) fn remove(&self, of: &mut VmapNode, records: Records<'_>, start: u64) {
        let chain = self.chain_of(start);
        let (mut before, mut at) = (Link::NIL, self.head(chain));
        while !at.is_nil() {
            let (start_here, next) = records.live_link(at);
            if start_here == start {
                if before.is_nil() {
                    self.set_head(chain, next)
                } else {
                    records.set_live_next(before, next)
                }
                of.live -= 1;
                return;
            }
            (before, at) = (at, next);
        }
    }

    /// Shows all areas of node `number`, which is locked, as long as `see` agrees, and recounts them (I21.9).
    ///
    /// # Errors
    ///
    /// The first broken invariant, or what `see` returned.
    pub(super) fn check(
        &self,
        number: usize,
        of: &VmapNode,
        records: Records<'_>,
        mut see: impl FnMut(Link) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut found = 0;
        for chain in number << self.chains_log2..(number + 1) << self.chains_log2 {
            let mut at = self.head(chain);
            // A chain that was corrupted into a ring ends too.
            while !at.is_nil() && found <= of.live {
                let (start, next) = records.live_link(at);
                let what = "chain of a live area, by its first page (I21.9)";
                let right = self.chain_of(start) as u64;
                Violation::check_eq(Invariant::I21CacheCounts, what, start, right, chain as u64)?;
                see(at)?;
                found += 1;
                at = next;
            }
        }
        let what = "live areas in the chains of a vmap node (I21.9)";
        Violation::check_eq(Invariant::I21CacheCounts, what, number as u64, found, of.live)
    }
}
