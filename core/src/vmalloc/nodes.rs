//! Vmap nodes: the state of the window, divided by address so that CPUs do not meet on one lock.
//!
//! ```text
//! node of a page = floor(n * frac((page / 16) * 0.618...)),   n = clamp(CPUs, 1, 128)
//!
//!   space:  the tree of all areas, by address; free ranges are its gaps ──┐ a record is in this one all its life
//!   node k: live areas that start in k's pages, in chains (see `live`)    ├─ and in one of these at a time
//!           lazy areas, in no order                                       │
//!           pools[s]: freed and flushed areas that span s pages           ┘
//! ```
//!
//! Linux takes (page / 16) mod n (6.9 and later). The blocks of `vm_map_ram` start at multiples of a power of two, so all of
//! them would be in node 0, and every CPU that maps a run would wait for one lock. Multiples of the golden ratio are spread
//! evenly whatever the distance of the areas.
//!
//! Who gives an area's first address needs its node only. CPU `c` takes from the pools of node `c mod n`: what it gets is in
//! that node's pages, so that its frees come back there. Only an address that is no live area's start, and a request that
//! no pool serves, are looked for in the tree of all areas.
//!
//! ```text
//! I21.6  a is in a live chain of node k       <=>  a is live and node_of(start(a)) == k
//! I21.7  a is in pools[s] of node k           <=>  a is pooled, span(a) == s and node_of(start(a)) == k
//! I21.8  len(pools[s]) of k == number of areas in it;   pooled(k) == sum of len(pools[s])
//! I15.2  a is pooled  =>  mapped(a) == 0  (and so, by I16.1, all its entries are empty; it came here after the flush)
//! I16.3  the span in the record of a == pages(a) + guard pages of a
//! ```

use super::area::{Link, Node, State};
use super::deferred::Deferred;
use super::flags::VmFlags;
use super::lazy::LazyList;
use super::live::LiveAreas;
use super::pool::Pools;
use super::ram::RamBlocks;
use super::tree::Spot;
use super::{Vmalloc, misplaced, records};
use crate::addr::{VirtAddr, Vpn};
use crate::base::Base;
use crate::error::{BlockKind, FreeError};
use crate::geometry::Geometry;
use crate::platform::CpuId;
use crate::raw::{Carver, MetaSlice};
use crate::sync::SpinLock;

/// The most vmap nodes that there are.
const MAX_NODES: u16 = 128;
/// log2 of the pages in a row that belong to one node.
const ZONE_SHIFT: u32 = 4;
/// 2^32 divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b9;

/// Number of the node, of so many, to which an area that starts at `page` belongs.
pub(super) fn node_of(page: u64, nodes: usize) -> usize {
    let zone = (page >> ZONE_SHIFT) as u32;
    ((u64::from(zone.wrapping_mul(SPREAD)) * nodes as u64) >> u32::BITS) as usize
}

/// The vmap nodes' place in the metadata.
pub(crate) struct VmallocParts {
    nodes: MetaSlice<SpinLock<VmapNode>>,
    live: LiveAreas,
    deferred: Deferred,
    ram: RamBlocks,
}

impl VmallocParts {
    /// Carves an empty node for each CPU, up to the most that there are, the chains of all, each CPU's place for frees
    /// that wait, and its queue of blocks.
    pub(crate) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let count = usize::from(geometry.cpus.clamp(1, MAX_NODES));
        let nodes = carver.carve(count, |_| SpinLock::new(VmapNode::EMPTY));
        let live = LiveAreas::carve(geometry, count, carver);
        let deferred = Deferred::carve(geometry, carver);
        Self { nodes, live, deferred, ram: RamBlocks::carve(geometry, carver) }
    }

    pub(super) fn into_nodes(self) -> (Nodes, Deferred, RamBlocks) {
        (Nodes { slots: self.nodes, live: self.live }, self.deferred, self.ram)
    }
}

/// What one node's lock protects.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct VmapNode {
    /// How many live areas are in its chains.
    pub(super) live: u64,
    /// The areas that wait for the flush.
    pub(super) lazy: LazyList,
    /// Those of them that the purge under way has collected.
    pub(super) purging: LazyList,
    pub(super) pools: Pools,
}

impl VmapNode {
    const EMPTY: Self = Self { live: 0, lazy: LazyList::EMPTY, purging: LazyList::EMPTY, pools: Pools::EMPTY };
}

/// All vmap nodes.
pub(super) struct Nodes {
    slots: MetaSlice<SpinLock<VmapNode>>,
    pub(super) live: LiveAreas,
}

impl Nodes {
    /// How many there are, at least one.
    pub(super) fn count(&self) -> usize {
        self.slots.len().max(1)
    }

    /// Number of the node to which an area that starts at `page` belongs.
    pub(super) fn index_of(&self, page: u64) -> usize {
        node_of(page, self.count())
    }

    /// The node to which an area that starts at `page` belongs.
    pub(super) fn of(&self, page: u64) -> &SpinLock<VmapNode> {
        &self.slots[self.index_of(page)]
    }

    /// The node from whose pools a CPU takes.
    pub(super) fn of_cpu(&self, cpu: CpuId) -> &SpinLock<VmapNode> {
        &self.slots[usize::from(cpu.get()) % self.count()]
    }

    /// All of them, by number.
    pub(super) fn all(&self) -> impl Iterator<Item = &SpinLock<VmapNode>> {
        self.slots.iter()
    }
}

impl Vmalloc {
    /// The live area that starts at `addr`, or what is wrong with the address.
    pub(super) fn live_at<P>(&self, base: &Base<P>, addr: VirtAddr) -> Result<(Link, Node), FreeError> {
        self.with_live(base, addr, |_, at, node| Ok((at, *node)))
    }

    /// Lets `act` look at the live area that starts at `addr` and change it, under its node's lock; if it refuses, nothing
    /// is changed.
    pub(super) fn with_live<P, T>(
        &self,
        base: &Base<P>,
        addr: VirtAddr,
        act: impl FnOnce(&mut VmapNode, Link, &mut Node) -> Result<T, FreeError>,
    ) -> Result<T, FreeError> {
        let (page, records) = (addr.vpn().as_u64(), records(base));
        let mut of = self.nodes.of(page).lock();
        let found = if addr.page_offset() == 0 { self.nodes.live.find(&of, records, page) } else { None };
        let Some(at) = found else {
            drop(of);
            return Err(self.misuse(base, addr));
        };
        let before = records.load(at);
        let mut node = before;
        if let State::Pending { .. } | State::Deferred { .. } = node.state {
            return Err(FreeError::DoubleFree(addr));
        }
        // What `vm_map_ram` gave is unmapped by its own call alone.
        if node.flags.contains(VmFlags::MAP_RAM) {
            return Err(FreeError::Foreign(addr));
        }
        let answer = act(&mut of, at, &mut node)?;
        if node != before {
            records.store(at, &node);
        }
        Ok(answer)
    }

    /// What is wrong with an address that is no live area's start.
    #[cold]
    #[inline(never)]
    fn misuse<P>(&self, base: &Base<P>, addr: VirtAddr) -> FreeError {
        let Some((_, node)) = self.area_around(base, addr) else { return FreeError::Foreign(addr) };
        let start = node.addr();
        match node.state {
            _ if node.flags.contains(VmFlags::MAP_RAM) => FreeError::Foreign(addr),
            State::Vmalloc { .. } | State::Vmap if addr != start => FreeError::Interior { addr, start },
            State::Reserved => FreeError::Foreign(addr),
            // A live area that starts here is younger than the question.
            _ if addr == start => FreeError::DoubleFree(addr),
            _ => FreeError::Foreign(addr),
        }
    }

    /// The area, of whatever state, that has `addr` in its pages; its guard page is in none. For what may take its time: it
    /// takes the lock of the whole window.
    pub(super) fn area_around<P>(&self, base: &Base<P>, addr: VirtAddr) -> Option<(Link, Node)> {
        let page = addr.vpn().as_u64();
        let space = self.space.lock();
        let (at, spot) = space.tree.floor(&records(base).window(), page)?;
        let node = self.load_locked(base, at, &spot);
        (page - node.start < node.pages).then_some((at, node))
    }

    /// The first area at or after `page`, of whatever state.
    pub(super) fn area_from<P>(&self, base: &Base<P>, page: u64) -> Option<(Link, Node)> {
        let space = self.space.lock();
        let (at, spot) = space.tree.ceiling(&records(base).window(), page)?;
        Some((at, self.load_locked(base, at, &spot)))
    }

    /// Fills `batch` with the areas at or after `page`, of whatever state, in address order; returns how many there are.
    pub(super) fn areas_from<P>(&self, base: &Base<P>, page: u64, batch: &mut [Option<Node>]) -> usize {
        let space = self.space.lock();
        let mut places = batch.iter_mut();
        space.tree.walk_from(&records(base).window(), page, |at, spot| {
            let Some(place) = places.next() else { return false };
            *place = Some(self.load_locked(base, at, spot));
            places.len() > 0
        });
        let left = places.len();
        batch.len() - left
    }

    /// The first area, of whatever state, that has a page at or after `page`; guards do not count.
    pub(super) fn area_ending_after<P>(&self, base: &Base<P>, page: u64) -> Option<Node> {
        let around = self.area_around(base, Vpn::new(page).addr());
        around.or_else(|| self.area_from(base, page)).map(|(_, node)| node)
    }

    /// Reads an area that the window's tree has, while its lock keeps the record from being freed.
    pub(super) fn load_locked<P>(&self, base: &Base<P>, at: Link, spot: &Spot) -> Node {
        let _of = self.nodes.of(spot.start).lock();
        records(base).load(at)
    }

    /// Changes an area under its node's lock.
    pub(super) fn edit<P>(&self, base: &Base<P>, at: Link, change: impl FnOnce(&mut Node)) {
        let records = records(base);
        let _of = self.nodes.of(records.start(at)).lock();
        let mut node = records.load(at);
        change(&mut node);
        records.store(at, &node);
    }

    /// Makes a reserved area live: from here on it can be found by its address.
    pub(super) fn publish<P>(&self, base: &Base<P>, at: Link, change: impl FnOnce(&mut Node)) {
        let records = records(base);
        let start = records.start(at);
        let mut of = self.nodes.of(start).lock();
        let mut node = records.load(at);
        change(&mut node);
        debug_assert!(node.state.is_live(), "{node:?}");
        records.store(at, &node);
        self.nodes.live.insert(&mut of, records, at, start);
    }

    /// Makes a live area Lazy: from here on it is nobody's, and only this call works on it.
    ///
    /// Tells also whether it was made by `vmap`. Only `vfree` drops the references of such an area; after `vunmap` they are
    /// the caller's again.
    pub(super) fn retire<P>(
        &self,
        base: &Base<P>,
        addr: VirtAddr,
        call: BlockKind,
    ) -> Result<(Link, Node, bool), FreeError> {
        if let Some(error) = misplaced(base, addr, call) {
            return Err(error);
        }
        self.with_live(base, addr, |of, at, node| {
            let shows_others = !node.state.owns_frames();
            if !shows_others && call == BlockKind::Vmap {
                return Err(FreeError::WrongKind { addr, expected: call, found: BlockKind::Vmalloc });
            }
            let puts = call == BlockKind::Vmalloc && node.flags.contains(VmFlags::MAP_PUT_PAGES);
            node.state = State::Lazy { next: Link::NIL, owned: !shows_others || puts };
            self.nodes.live.remove(of, records(base), node.start);
            Ok((at, *node, shows_others))
        })
    }
}
