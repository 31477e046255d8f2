//! Where objects come from when a CPU's main sheaf is empty: the steps from the spare sheaf down to a new slab.
//!
//! | step | source |
//! |---|---|
//! | 1 | the main sheaf, popped by the fast path |
//! | 2 | the spare sheaf, swapped with the main one |
//! | 3 | a full sheaf from the barn of the CPU's memory node |
//! | 4 | a whole sheaf filled from partial slabs of that node, of nodes that have more than they keep, and new slabs |
//! | 5 | one object straight from a slab |
//!
//! Step 4 never touches the reserve, and is left out for callers that may not spin. Step 5 is also the way of caches
//! without sheaves and of a call that finds the sheaves in use. Source: section 2.10.

use super::SlabLayer;
use super::node::{Node, Slabs};
use super::sheaf::{CpuSheaves, Sheaf};
use crate::addr::{Pfn, PhysAddr};
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::platform::{Event, Platform};

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
        let sheaves = self.cell(pages.base.cpu(), id).and_then(|cell| cell.try_local());
        let cached = match sheaves {
            Some(mut sheaves) if slabs.shape.capacity > 0 => {
                self.refill_main(pages, id, &slabs, &mut sheaves, gfp);
                sheaves.main.pop()
            }
            _ => None,
        };
        let object = cached.map_or_else(|| self.alloc_direct(pages, id, &slabs, gfp), Ok)?;
        self.live.mark(slabs.shape.live, object);
        Ok(object)
    }

    /// Fills the empty main sheaf from the first source that has something; it stays empty if none has.
    fn refill_main<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
        gfp: GfpFlags,
    ) {
        if self.swap_with_spare(pages, sheaves) || self.exchange_with_barn(pages, id, sheaves) || !gfp.may_spin() {
            return;
        }
        let capacity = u32::from(slabs.shape.capacity);
        self.fill_from_slabs(pages, id, slabs, &mut sheaves.main, capacity, gfp);
        if !sheaves.main.is_empty() {
            // Ascending addresses for successive callers.
            sheaves.main.reverse();
            pages.base.event(Event::SheafRefill);
        }
    }

    /// Moves the objects of the spare into the empty main sheaf; `false` if there are none.
    pub(super) fn swap_with_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        if let Some(spare) = spare.as_ref().filter(|_| main.is_empty()) {
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

    /// Fills a sheaf up to `capacity` from partial slabs, then from new slabs; it stops where no new slab can be had.
    pub(super) fn fill_from_slabs<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaf: &mut Sheaf,
        capacity: u32,
        gfp: GfpFlags,
    ) {
        self.take_partial(pages, id, slabs, |node| {
            node.refill(slabs, sheaf, capacity);
            sheaf.len() >= capacity
        });
        let modest = gfp | GfpFlags::NOMEMALLOC | GfpFlags::NOWARN;
        while sheaf.len() < capacity {
            let Ok(head) = self.grow(pages, id, slabs, modest) else {
                pages.base.event(Event::SheafRefillShort);
                return;
            };
            slabs.take(head, sheaf, capacity);
            self.attach(pages, id, slabs, head);
        }
    }

    /// Calls `take` with the own node, then with those that have more partial slabs than they keep, until it is done.
    pub(super) fn take_partial<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        mut take: impl FnMut(&mut Node) -> bool,
    ) {
        let own = self.node_here(pages);
        if self.node(id, own).is_some_and(|node| take(&mut node.lock())) {
            return;
        }
        let others = self.nodes_of(id).enumerate().filter(|&(number, _)| number != own);
        for (_, node) in others {
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

    /// Takes one object straight from a slab: a partial one, a new one, and as the last resort one of another node.
    fn alloc_direct<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
    ) -> Result<PhysAddr, AllocError> {
        if let Some(inspector) = self.inspector(pages, id, slabs) {
            return self.alloc_debug(&inspector, gfp);
        }
        let mut object = None;
        self.take_partial(pages, id, slabs, |node| {
            object = node.take_one(slabs);
            object.is_some()
        });
        let object = match object {
            Some(object) => object,
            None => self.alloc_new(pages, id, slabs, gfp)?,
        };
        pages.base.event(Event::SlabDirectAlloc);
        Ok(object)
    }

    /// Takes one object from a new slab, or from whatever node has one if there cannot be a new slab.
    fn alloc_new<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
    ) -> Result<PhysAddr, AllocError> {
        let head = match self.grow(pages, id, slabs, gfp) {
            Ok(head) => head,
            Err(refused) => return self.take_anywhere(pages, id, slabs).ok_or(refused),
        };
        let object = slabs.take_one(head);
        self.attach(pages, id, slabs, head);
        object.ok_or(AllocError::NoPages { order: slabs.shape.orders.min })
    }

    /// Takes one object from a partial slab of any node, however few it keeps.
    fn take_anywhere<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, slabs: &Slabs<'_>) -> Option<PhysAddr> {
        let object = self.nodes_of(id).find_map(|node| node.lock().take_one(slabs))?;
        pages.base.event(Event::PartialLastResort);
        Some(object)
    }

    /// Puts a new slab on the lists of the node that its frames belong to.
    pub(super) fn attach<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, slabs: &Slabs<'_>, head: Pfn) {
        if let Some(node) = self.node(id, super::node_of(pages, head)) {
            node.lock().attach(slabs, head);
        }
    }
}
