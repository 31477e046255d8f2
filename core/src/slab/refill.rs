//! Where objects come from when a CPU's main sheaf is empty: the steps from the spare sheaf down to a new slab.

use super::SlabLayer;
use super::node::Slabs;
use super::sheaf::CpuSheaves;
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
        let object = match sheaves {
            Some(mut sheaves) if slabs.shape.capacity > 0 => self.alloc_refilled(pages, id, &slabs, &mut sheaves, gfp),
            _ => self.alloc_direct(pages, id, &slabs, gfp),
        }?;
        self.live.mark(slabs.shape.live, object);
        Ok(object)
    }

    /// Fills the empty main sheaf from the first source that has something: the spare, the barn, the partial slabs,
    /// a new slab. A new slab is the last resort because its frames may be what somebody else needs.
    fn alloc_refilled<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
        gfp: GfpFlags,
    ) -> Result<PhysAddr, AllocError> {
        if !self.swap_with_spare(pages, sheaves) && !self.refill_from_node(pages, id, slabs, sheaves) {
            let head = self.grow(pages, id, slabs, gfp)?;
            slabs.take(head, &mut sheaves.main, u32::from(slabs.shape.capacity));
            self.attach(id, slabs, head);
            sheaves.main.reverse();
        }
        sheaves.main.pop().ok_or(AllocError::NoPages { order: slabs.shape.orders.min })
    }

    /// Moves the objects of the spare into the empty main sheaf; `false` if there are none.
    fn swap_with_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        if let Some(spare) = spare.as_ref().filter(|_| main.is_empty()) {
            self.pool.with(spare, |spare| spare.move_to(main));
        }
        if !main.is_empty() {
            pages.base.event(Event::SheafSwap);
        }
        !main.is_empty()
    }

    /// Takes a full sheaf from the barn, else objects of partial slabs; `false` if the cache has no free object.
    fn refill_from_node<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
    ) -> bool {
        let Some(node) = self.nodes.get(id) else { return false };
        let mut node = node.lock();
        if node.barn.fill(&self.pool, &mut sheaves.main) {
            pages.base.event(Event::BarnGet);
            return true;
        }
        node.refill(slabs, &mut sheaves.main, u32::from(slabs.shape.capacity));
        // Ascending addresses for successive callers.
        sheaves.main.reverse();
        if !sheaves.main.is_empty() {
            pages.base.event(Event::SheafRefill);
        }
        !sheaves.main.is_empty()
    }

    /// Takes one object straight from a slab.
    fn alloc_direct<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
    ) -> Result<PhysAddr, AllocError> {
        if let Some(object) = self.nodes.get(id).and_then(|node| node.lock().take_one(slabs)) {
            return Ok(object);
        }
        let head = self.grow(pages, id, slabs, gfp)?;
        let object = slabs.take_one(head);
        self.attach(id, slabs, head);
        object.ok_or(AllocError::NoPages { order: slabs.shape.orders.min })
    }

    fn attach(&self, id: usize, slabs: &Slabs<'_>, head: Pfn) {
        if let Some(node) = self.nodes.get(id) {
            node.lock().attach(slabs, head);
        }
    }
}
