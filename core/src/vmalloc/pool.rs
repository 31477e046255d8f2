//! Pools of address ranges that were freed and flushed: the next area of the same size needs no search.
//!
//! A pooled area keeps its record and its place in the window's tree. Pools serve requests that may lie anywhere in the
//! window; they are refilled by purges, each of which gives a quarter of every pool back, and they are emptied when
//! addresses or memory run short. A machine with one node has no use for them.

use super::alloc::Place;
use super::area::{Link, Node, State};
use super::nodes::VmapNode;
use super::record::Records;
use super::{Vmalloc, records};
use crate::buddy::PageAllocator;
use crate::paging::Flushed;
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;

/// Areas that span so many pages, guard included, are pooled at most.
pub(super) const MAX_SPAN: u64 = 256;

/// Freed areas of one size, linked through their records.
#[derive(Clone, Copy)]
struct Pool {
    head: Link,
    len: u32,
}

impl Pool {
    const EMPTY: Self = Self { head: Link::NIL, len: 0 };
}

/// The pools of a vmap node: areas that span `n + 1` pages are in number `n`.
#[derive(Clone, Copy)]
pub(super) struct Pools {
    by_span: [Pool; MAX_SPAN as usize],
    /// Areas in all of them.
    pooled: u32,
}

/// Number of the pool for areas that span so many pages, guard included; `None` if there is none.
fn number(span: u64) -> Option<usize> {
    (1..=MAX_SPAN).contains(&span).then(|| (span - 1) as usize)
}

impl Pools {
    pub(super) const EMPTY: Self = Self { by_span: [Pool::EMPTY; MAX_SPAN as usize], pooled: 0 };

    /// Areas in all pools.
    pub(super) const fn pooled(&self) -> u32 {
        self.pooled
    }

    /// First area and length of each pool that is not empty, with the span of its areas.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Link, u32)> {
        let used = |pool: &&(u64, Pool)| pool.1.len > 0 || !pool.1.head.is_nil();
        let pools = (1..).zip(self.by_span);
        pools.filter(move |pool| used(&pool)).map(|(span, pool)| (span, pool.head, pool.len))
    }

    /// Puts an area that nobody else knows into its pool; `false` if it is too large for one.
    pub(super) fn push(&mut self, records: Records<'_>, at: Link, node: &Node) -> bool {
        let Some(pool) = number(node.span()).and_then(|n| self.by_span.get_mut(n)) else { return false };
        records.store(at, &Node { mapped: 0, state: State::Pooled { next: pool.head }, ..*node });
        pool.head = at;
        pool.len += 1;
        self.pooled += 1;
        true
    }

    /// Takes the area that was put last into the pool for this span, if it lies at a multiple of `align` pages.
    pub(super) fn pop(&mut self, records: Records<'_>, span: u64, align: u64) -> Option<(Link, Node)> {
        let pool = self.by_span.get_mut(number(span)?)?;
        if pool.head.is_nil() {
            return None;
        }
        let (at, node) = (pool.head, records.load(pool.head));
        let State::Pooled { next } = node.state else { return None };
        if node.start % align.max(1) != 0 {
            return None;
        }
        pool.head = next;
        pool.len -= 1;
        self.pooled -= 1;
        Some((at, node))
    }

    /// Takes `share` of the length out of every pool; returns the areas as one chain.
    fn take_share(&mut self, records: Records<'_>, share: fn(u32) -> u32) -> Link {
        let mut chain = Link::NIL;
        for span in 1..=MAX_SPAN {
            let left = self.by_span.get((span - 1) as usize).map_or(0, |pool| share(pool.len));
            for _ in 0..left {
                let Some((at, node)) = self.pop(records, span, 1) else { break };
                records.store(at, &Node { state: State::Pooled { next: chain }, ..node });
                chain = at;
            }
        }
        chain
    }
}

impl Vmalloc {
    /// Takes the addresses of a pooled area for a new one.
    pub(super) fn take_pooled<P: Platform>(&self, pages: &PageAllocator<P>, wanted: &Place) -> Option<(Link, Node)> {
        let has_pools = self.nodes.count() > 1 && wanted.want.span <= MAX_SPAN && wanted.is_anywhere(&self.window);
        if !has_pools {
            return None;
        }
        let records = records(&pages.base);
        let mut of = self.nodes.of_cpu(pages.base.platform.cpu()).lock();
        let (at, old) = of.pools.pop(records, wanted.want.span, wanted.want.align)?;
        let node = wanted.node_at(old.start);
        records.store(at, &node);
        drop(of);
        pages.base.event(Event::VmapPoolTaken);
        Some((at, node))
    }

    /// Where the addresses of a purged area go: into a pool of its node, or back to the window. The flush has happened.
    pub(super) fn reuse<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        (at, node): (Link, &Node),
        _flushed: &Flushed,
    ) {
        let pooled =
            self.nodes.count() > 1 && self.nodes.of(node.start).lock().pools.push(records(&pages.base), at, node);
        if pooled {
            pages.base.event(Event::VmapPoolRefilled);
        } else {
            self.forget(pages, slab, at, node.start);
        }
    }

    /// Gives a quarter of each pool back to the window.
    pub(super) fn decay_pools<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) {
        if self.shrink_pools(pages, slab, |len| len / 4) > 0 {
            pages.base.event(Event::VmapPoolDecayed);
        }
    }

    /// Gives all pools back to the window; returns how many areas were in them.
    #[cold]
    #[inline(never)]
    pub(crate) fn empty_pools<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) -> u64 {
        let given = self.shrink_pools(pages, slab, |len| len);
        if given > 0 {
            pages.base.event(Event::VmapPoolsEmptied);
        }
        given
    }

    fn shrink_pools<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, share: fn(u32) -> u32) -> u64 {
        let (records, mut given) = (records(&pages.base), 0);
        for of in self.nodes.all() {
            let mut at = of.lock().give_share(records, share);
            while !at.is_nil() {
                let node = records.load(at);
                self.forget(pages, slab, at, node.start);
                given += 1;
                let State::Pooled { next } = node.state else { break };
                at = next;
            }
        }
        given
    }
}

impl VmapNode {
    fn give_share(&mut self, records: Records<'_>, share: fn(u32) -> u32) -> Link {
        if self.pools.pooled() == 0 { Link::NIL } else { self.pools.take_share(records, share) }
    }
}
