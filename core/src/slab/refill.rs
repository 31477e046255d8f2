//! Where objects come from when a CPU's main sheaf is empty: the steps from the spare sheaf down to a new slab.
//!
//! | step | source |
//! |---|---|
//! | 1 | the main sheaf, popped by the fast path |
//! | 2 | the spare sheaf, swapped with the main one; then the pocket's sheaves, if the machine has such |
//! | 3 | a full sheaf from the barn of the CPU's memory node |
//! | 4 | a whole sheaf filled from partial slabs of that node, of nodes that have more than they keep, and new slabs |
//! | 5 | one object straight from a slab |
//!
//! Step 4 never touches the reserve, and is left out for callers that may not spin. Step 5 is also the way of caches
//! without sheaves and of a call that finds the sheaves in use. Source: section 2.10.

use super::SlabLayer;
use super::node::{Node, Slabs};
use super::sheaf::CpuSheaves;
use crate::addr::{Pfn, PhysAddr};
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::platform::{Event, Platform};
use crate::sync::{SpinLock, count_shared};

impl SlabLayer {
    /// Refills this CPU's main sheaf, or goes to the slabs where that cannot be had.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        gfp: GfpFlags,
    ) -> Result<PhysAddr, AllocError> {
        let slabs = self.slabs(pages, id).ok_or(AllocError::BadFlags)?;
        if let Some(slow) = self.slow.get(id) {
            count_shared(&slow.allocs, P::STATISTICS);
        }
        self.drain_deferred(pages);
        let sheaves = self.cell(pages.base.cpu(), id).and_then(|cell| cell.try_local());
        let cached = match sheaves {
            Some(mut sheaves) if slabs.shape.capacity > 0 => {
                self.refill_main(pages, &slabs, &mut sheaves, gfp);
                sheaves.main.pop()
            }
            _ => None,
        };
        let object = cached.map_or_else(|| self.alloc_direct(pages, &slabs, gfp, None), Ok)?;
        self.live.mark(slabs.shape.live, object);
        Ok(object)
    }

    /// Fills the empty main sheaf from the first source that has something; it stays empty if none has.
    pub(super) fn refill_main<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
        gfp: GfpFlags,
    ) {
        let own = self.swap_with_spare(pages, sheaves) || self.take_from_pocket(pages, sheaves);
        if own || self.exchange_with_barn(pages, slabs.id, sheaves) || !gfp.may_spin() {
            return;
        }
        let (main, capacity) = (&mut sheaves.main, u32::from(slabs.shape.capacity));
        let modest = gfp | GfpFlags::NOMEMALLOC | GfpFlags::NOWARN;
        let mut put = |object| {
            main.push(capacity, object);
        };
        if self.take_from_slabs(pages, slabs, modest, None, capacity, &mut put).1.is_some() {
            pages.base.event(Event::SheafRefillShort);
        }
        if !sheaves.main.is_empty() {
            // Ascending addresses for successive callers.
            sheaves.main.reverse();
            pages.base.event(Event::SheafRefill);
        }
    }

    /// Moves the objects of the spare into the empty main sheaf; `false` if there are none.
    pub(super) fn swap_with_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        if let Some(spare) = spare.first.as_ref().filter(|_| main.is_empty()) {
            self.pool.with(spare, |spare| spare.move_to(main));
        }
        if !main.is_empty() {
            pages.base.event(Event::SheafSwap);
        }
        !main.is_empty()
    }

    /// Takes a full sheaf from the barn for the empty main one; `false` if the barn has none.
    pub(super) fn exchange_with_barn<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        sheaves: &mut CpuSheaves,
    ) -> bool {
        let node = self.node(id, self.node_here(pages));
        let filled = node.is_some_and(|node| node.lock().barn.fill(&self.pool, &mut sheaves.main));
        if filled {
            pages.base.event(Event::BarnGet);
        }
        filled
    }

    /// Takes up to `wanted` objects from partial slabs, then from new slabs, and hands each to `put`; returns how many.
    ///
    /// New slabs are near the node if one is named. It takes fewer only if no new slab can be had, and then tells why.
    pub(super) fn take_from_slabs<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: Option<NodeId>,
        wanted: u32,
        put: &mut impl FnMut(PhysAddr),
    ) -> (u32, Option<AllocError>) {
        let mut taken = 0;
        self.take_partial(pages, slabs, |node| {
            taken += node.take(slabs, wanted - taken, put);
            taken >= wanted
        });
        while taken < wanted {
            match self.grow(pages, slabs, gfp, node) {
                Ok(head) => {
                    taken += slabs.take(head, wanted - taken, put);
                    self.attach(pages, slabs, head);
                }
                Err(refused) => return (taken, Some(refused)),
            }
        }
        (taken, None)
    }

    /// Calls `take` with the own node, then with those that have more partial slabs than they keep, until it is done.
    pub(super) fn take_partial<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        mut take: impl FnMut(&mut Node) -> bool,
    ) {
        let own = self.node_here(pages);
        if self.node(slabs.id, own).is_some_and(|node| take(&mut node.lock())) {
            return;
        }
        for (_, node) in self.nodes_of(slabs.id).enumerate().filter(|&(number, _)| number != own) {
            let mut node = node.lock();
            if node.partial.len() <= slabs.shape.min_partial() {
                continue;
            }
            pages.base.event(Event::PartialRemote);
            if take(&mut node) {
                return;
            }
        }
    }

    /// Takes objects from partial slabs of all nodes, however few they keep: when no new slab can be had.
    pub(super) fn take_anywhere<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        wanted: u32,
        put: &mut impl FnMut(PhysAddr),
    ) -> u32 {
        let take = |taken, node: &SpinLock<Node>| taken + node.lock().take(slabs, wanted - taken, put);
        let taken = self.nodes_of(slabs.id).fold(0, take);
        if taken > 0 {
            pages.base.event(Event::PartialLastResort);
        }
        taken
    }

    /// Takes one object straight from a slab: a partial one, a new one, and as the last resort one of another node.
    pub(super) fn alloc_direct<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<PhysAddr, AllocError> {
        if let Some(inspector) = self.inspector(pages, slabs.id, slabs) {
            return self.alloc_debug(&inspector, gfp, node);
        }
        let mut object = None;
        let mut put = |taken| object = Some(taken);
        if let (_, Some(refused)) = self.take_from_slabs(pages, slabs, gfp, node, 1, &mut put)
            && self.take_anywhere(pages, slabs, 1, &mut put) == 0
        {
            return Err(refused);
        }
        pages.base.event(Event::SlabDirectAlloc);
        object.ok_or(AllocError::NoPages { order: slabs.shape.orders.min })
    }

    /// Puts a new slab on the lists of the node that its frames belong to.
    pub(super) fn attach<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, head: Pfn) {
        if let Some(node) = self.node(slabs.id, super::node_of(pages, head)) {
            node.lock().attach(slabs, head);
        }
    }
}
