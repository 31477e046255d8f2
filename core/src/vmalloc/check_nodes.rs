//! Recounts the vmap nodes. The numbers are those of the equations in the texts of `nodes` and of the module.

use super::area::{Link, Node, State};
use super::check::{LazyTotals, Totals};
use super::lazy::LazyList;
use super::nodes::VmapNode;
use super::{Vmalloc, records};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{Invariant, Violation};
use crate::platform::Platform;
use crate::sync::Ordering;

/// What the nodes have, all together.
#[derive(Default)]
struct Found {
    live: u64,
    pooled: u64,
    lazy: LazyTotals,
}

impl Vmalloc {
    /// Checks the nodes one by one, and that together they have what the window's tree has.
    pub(super) fn check_nodes<P: Platform>(&self, pages: &PageAllocator<P>, totals: &Totals) -> Result<(), Violation> {
        let base = &pages.base;
        let mut found = Found::default();
        for (number, of) in self.nodes.all().enumerate() {
            let of = of.lock();
            found.live += self.check_live(base, number, &of)?;
            found.pooled += self.check_pools(base, number, &of)?;
            self.check_lazy(pages, number, &of.lazy, &mut found.lazy)?;
            if !of.purging.head().is_nil() {
                let what = "a purge has areas, and none is under way (I17.6)";
                return Err(Violation::new(Invariant::I17Statistics, what, number as u64, 0, 1));
            }
        }
        let (statistics, one_cache) = (Invariant::I17Statistics, Invariant::I21CacheCounts);
        Violation::check_eq(one_cache, "live areas of all vmap nodes (I21.6)", 0, totals.live, found.live)?;
        Violation::check_eq(one_cache, "pooled areas of all vmap nodes (I21.7)", 0, totals.pooled, found.pooled)?;
        let what = "areas on the lazy lists (I17.5)";
        Violation::check_eq(statistics, what, 0, totals.lazy.areas, found.lazy.areas)?;
        let lazy_pages = self.lazy_pages.load(Ordering::Relaxed);
        let what = "address space of all lazy areas, in pages (I17.7)";
        Violation::check_eq(statistics, what, 0, found.lazy.span, lazy_pages)
    }

    /// Checks a node's chains; returns how many live areas it has (I21.6, I21.9).
    fn check_live<P>(&self, base: &Base<P>, number: usize, of: &VmapNode) -> Result<u64, Violation> {
        let records = records(base);
        self.nodes.live.check(number, of, records, |at| {
            let node = records.load(at);
            self.check_member(number, &node, node.state.is_live(), "an area in a live chain of a vmap node (I21.6)")
        })?;
        Ok(of.live)
    }

    /// Walks a node's pools; returns how many areas are in them (I21.7, I21.8).
    fn check_pools<P>(&self, base: &Base<P>, number: usize, of: &VmapNode) -> Result<u64, Violation> {
        let what = "areas in a pool, by the span of its areas (I21.8)";
        let mut pooled = 0;
        for (span, mut at, len) in of.pools.iter() {
            let mut found = 0;
            while !at.is_nil() && found <= u64::from(len) {
                let node = records(base).load(at);
                let next = if let State::Pooled { next } = node.state { Some(next) } else { None };
                let fits = next.is_some() && node.span() == span;
                self.check_member(number, &node, fits, "an area in a pool of a vmap node (I21.7)")?;
                at = next.unwrap_or(Link::NIL);
                found += 1;
            }
            Violation::check_eq(Invariant::I21CacheCounts, what, span, len.into(), found)?;
            pooled += found;
        }
        let what = "areas in all pools of a vmap node (I21.8)";
        Violation::check_eq(Invariant::I21CacheCounts, what, number as u64, pooled, of.pools.pooled().into())?;
        Ok(pooled)
    }

    /// Walks a node's lazy list and compares with its counters (I17.5); adds its sums to `total`.
    fn check_lazy<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        number: usize,
        list: &LazyList,
        total: &mut LazyTotals,
    ) -> Result<(), Violation> {
        let (mut found, mut at) = (LazyTotals::default(), list.head());
        while !at.is_nil() && found.span <= list.span() {
            let node = records(&pages.base).load(at);
            let next = if let State::Lazy { next, .. } = node.state { Some(next) } else { None };
            if next.is_none() || self.nodes.index_of(node.start) != number {
                let what = "an area on the lazy list of a vmap node is not lazy, or another node's (I17.5)";
                return Err(Violation::new(Invariant::I17Statistics, what, node.start, 1, 0));
            }
            found.add(&node, self.owned_frames(pages, &node));
            at = next.unwrap_or(Link::NIL);
        }
        let (invariant, node) = (Invariant::I17Statistics, number as u64);
        let what = "address space of a node's lazy areas, in pages (I17.5)";
        Violation::check_eq(invariant, what, node, found.span, list.span())?;
        Violation::check_eq(invariant, "frames of a node's lazy areas (I17.5)", node, found.frames, list.frames())?;
        total.areas += found.areas;
        total.span += found.span;
        total.frames += found.frames;
        Ok(())
    }

    /// An area that a node has is in the state for that, and the node's own.
    fn check_member(&self, number: usize, node: &Node, fits: bool, what: &'static str) -> Result<(), Violation> {
        let own = self.nodes.index_of(node.start);
        if fits && own == number {
            return Ok(());
        }
        Err(Violation::new(Invariant::I21CacheCounts, what, node.start, own as u64, number as u64))
    }
}
