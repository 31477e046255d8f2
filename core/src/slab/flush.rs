//! Where objects go when a CPU's main sheaf is full: the steps from the spare sheaf down to the slabs.
//!
//! | step | place |
//! |---|---|
//! | 1 | the main sheaf, pushed by the fast path |
//! | 2 | the full main sheaf becomes the spare one, or goes to the pocket if the machine has such |
//! | 3 | it goes to the barn of the CPU's memory node, for an empty one |
//! | 4 | the barn has ten full ones: the spare is flushed to the slabs and makes room |
//! | 5 | straight to the slab |
//!
//! Step 5 is the way of objects of another memory node, of caches without sheaves, and of a call that finds the sheaves
//! in use. Source: section 2.10.

use super::barn::Stored;
use super::node::Slabs;
use super::sheaf::{CpuSheaves, SheafId};
use super::{SlabLayer, node_of};
use crate::addr::PhysAddr;
use crate::buddy::PageAllocator;
use crate::error::FreeError;
use crate::page::PageList;
use crate::platform::{Event, Platform};
use crate::sync::count_shared;
use core::panic::Location;

/// How many objects go back to their slabs under one hold of the cache's lock. Source: `PCS_BATCH_MAX`, `mm/slub.c`.
pub(super) const PCS_BATCH_MAX: usize = 32;

impl SlabLayer {
    /// Takes back a verified object.
    #[track_caller]
    pub(super) fn free_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        object: PhysAddr,
    ) -> Result<(), FreeError> {
        let addr = pages.base.virt(object);
        let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
        if slabs.shape.is_debug() {
            return self.debug_free(pages, object, Location::caller());
        }
        if !self.live.unmark(slabs.shape.live, object) {
            // Another CPU freed it since it was verified.
            return Err(FreeError::DoubleFree(addr));
        }
        self.drain_deferred(pages);
        if let Some(slow) = self.slow.get(id) {
            count_shared(&slow.frees, P::STATISTICS);
        }
        let cell = self.cell(pages.base.cpu(), id).filter(|_| slabs.shape.capacity > 0);
        let is_near = self.is_near(pages, object);
        if let Some(mut sheaves) = cell.filter(|_| is_near).and_then(|cell| cell.try_local()) {
            let capacity = u32::from(slabs.shape.capacity);
            if sheaves.main.len() >= capacity {
                self.make_room(pages, id, &slabs, &mut sheaves);
            }
            if sheaves.main.push(capacity, object) {
                return Ok(());
            }
        }
        pages.base.event(if is_near { Event::SlabDirectFree } else { Event::RemoteNodeFree });
        self.return_objects(pages, id, &slabs, &[object]);
        Ok(())
    }

    /// Tells whether an object belongs to the memory node of this CPU: only then its sheaves may have it.
    pub(super) fn is_near<P: Platform>(&self, pages: &PageAllocator<P>, object: PhysAddr) -> bool {
        self.nr_nodes() == 1 || node_of(pages, object.pfn().unwrap_or_default()) == self.node_here(pages)
    }

    /// Empties the full main sheaf, wholly or in part: into the spare, the barn, or the slabs.
    pub(super) fn make_room<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
    ) {
        if sheaves.spare.first.is_none() {
            sheaves.spare.first = self.empty_buffer(pages, id);
        }
        if self.move_main_to_spare(pages, sheaves) || self.put_in_pocket(pages, sheaves) {
            return;
        }
        let node = self.node(id, self.node_here(pages));
        let stored = node.map(|node| node.lock().barn.store(&self.pool, &mut sheaves.main));
        match (stored, &sheaves.spare.first) {
            (Some(Stored::Done), _) => pages.base.event(Event::BarnPut),
            (_, Some(spare)) => {
                self.pool.with(spare, |spare| {
                    self.return_objects(pages, id, slabs, spare.objects());
                    spare.clear();
                });
                pages.base.event(Event::SheafFlush);
                self.move_main_to_spare(pages, sheaves);
            }
            (_, None) => self.return_newest_half(pages, id, slabs, sheaves),
        }
    }

    fn empty_buffer<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> Option<SheafId> {
        let kept = self.node(id, self.node_here(pages)).and_then(|node| node.lock().barn.empty.pop());
        kept.or_else(|| self.pool.take())
    }

    /// Moves the main sheaf's objects into the spare; `false` if there is no spare or it has objects.
    pub(super) fn move_main_to_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        let Some(spare) = &spare.first else { return false };
        let moved = self.pool.with(spare, |spare| {
            let empty = spare.is_empty();
            if empty {
                main.move_to(spare);
            }
            empty
        });
        if moved == Some(true) {
            pages.base.event(Event::SheafSwap);
        }
        moved == Some(true)
    }

    /// Without a buffer to move to, half of the objects go back to the slabs: room for as many frees, and as many
    /// allocations stay fast.
    fn return_newest_half<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
    ) {
        let kept = sheaves.main.len() / 2;
        let newest = sheaves.main.objects().get(kept as usize..).unwrap_or_default();
        self.return_objects(pages, id, slabs, newest);
        pages.base.event(Event::SheafNoBuffer);
        pages.base.event(Event::SheafFlush);
        sheaves.main.truncate(kept);
    }

    /// Puts objects back into their slabs, in batches. Slabs that are no longer kept give their frames back; returns
    /// how many frames.
    pub(super) fn return_objects<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        objects: &[PhysAddr],
    ) -> u64 {
        let mut released = 0;
        for batch in objects.chunks(PCS_BATCH_MAX) {
            let mut discard = PageList::EMPTY;
            match self.node(id, 0).filter(|_| self.nr_nodes() == 1) {
                Some(node) => {
                    let mut node = node.lock();
                    batch.iter().for_each(|&object| node.release(slabs, object, &mut discard));
                }
                None => self.return_to_nodes(pages, id, slabs, batch, &mut discard),
            }
            released += self.release_slabs(pages, discard);
        }
        released
    }

    /// Puts each object back into the slab on the node that it belongs to.
    fn return_to_nodes<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        batch: &[PhysAddr],
        discard: &mut PageList,
    ) {
        for (number, node) in self.nodes_of(id).enumerate() {
            let belongs = |object: &PhysAddr| node_of(pages, object.pfn().unwrap_or_default()) == number;
            let mut objects = batch.iter().copied().filter(belongs).peekable();
            if objects.peek().is_some() {
                let mut node = node.lock();
                objects.for_each(|object| node.release(slabs, object, discard));
            }
        }
    }
}
