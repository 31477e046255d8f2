//! Where objects go when a CPU's main sheaf is full: the steps from the spare sheaf down to the slabs.

use super::SlabLayer;
use super::barn::Stored;
use super::node::Slabs;
use super::sheaf::CpuSheaves;
use crate::addr::PhysAddr;
use crate::buddy::PageAllocator;
use crate::error::FreeError;
use crate::page::PageList;
use crate::platform::{Event, Platform};

/// How many objects go back to their slabs under one hold of the cache's lock. Source: `PCS_BATCH_MAX`, `mm/slub.c`.
const PCS_BATCH_MAX: usize = 32;

impl SlabLayer {
    /// Takes back a verified object.
    pub(super) fn free_slow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        object: PhysAddr,
    ) -> Result<(), FreeError> {
        let addr = pages.base.virt(object);
        let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
        if !self.live.unmark(slabs.shape.live, object) {
            // Another CPU freed it since it was verified.
            return Err(FreeError::DoubleFree(addr));
        }
        let sheaves = self.cell(pages.base.cpu(), id).and_then(|cell| cell.try_local());
        if let Some(mut sheaves) = sheaves.filter(|_| slabs.shape.capacity > 0) {
            let capacity = u32::from(slabs.shape.capacity);
            if sheaves.main.len() >= capacity {
                self.make_room(pages, id, &slabs, &mut sheaves);
            }
            if sheaves.main.push(capacity, object) {
                return Ok(());
            }
        }
        self.return_objects(pages, id, &slabs, &[object]);
        Ok(())
    }

    /// Empties the full main sheaf, wholly or in part: into the spare, the barn, or the slabs.
    fn make_room<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, slabs: &Slabs<'_>, sheaves: &mut CpuSheaves) {
        if sheaves.spare.is_none() {
            sheaves.spare = self.empty_buffer(id);
        }
        if self.move_main_to_spare(pages, sheaves) {
            return;
        }
        let stored = self.nodes.get(id).map(|node| node.lock().barn.store(&self.pool, &mut sheaves.main));
        match (stored, &sheaves.spare) {
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

    fn empty_buffer(&self, id: usize) -> Option<super::sheaf::SheafId> {
        let kept = self.nodes.get(id).and_then(|node| node.lock().barn.empty.pop());
        kept.or_else(|| self.pool.take())
    }

    /// Moves the main sheaf's objects into the spare; `false` if there is no spare or it has objects.
    fn move_main_to_spare<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let CpuSheaves { main, spare } = sheaves;
        let Some(spare) = spare else { return false };
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
        let Some(node) = self.nodes.get(id) else { return 0 };
        let mut released = 0;
        for batch in objects.chunks(PCS_BATCH_MAX) {
            let mut discard = PageList::EMPTY;
            let mut node = node.lock();
            batch.iter().for_each(|&object| node.release(slabs, object, &mut discard));
            drop(node);
            released += self.release_slabs(pages, discard);
        }
        released
    }
}
