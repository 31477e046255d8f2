//! Taking a block from a zone: of the own migrate type, or else of another one.
//!
//! When its own type has run out, a request first tries to *claim*: to turn a whole pageblock over to its type, so that
//! later requests of the type find the rest of it. If no pageblock can be claimed, it *steals*: one block is
//! taken and the pageblock keeps its type.
//!
//! Two things that Linux does are left out. It raises the watermarks for a while after a claim, to make its background
//! reclaimer work; there is none here. And it gives up telling types apart on machines of a few pageblocks; here
//! machines are small on purpose, and their types are kept apart.

use super::migrate::MigrateType;
use super::zone::{FreeBlock, LockedZone, Place};
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};

/// Pages of one pageblock by use.
#[derive(Clone, Copy, Default, Debug)]
struct BlockUse {
    free: u64,
    movable: u64,
    /// All frames of the pageblock that are in the zone.
    frames: u64,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Takes a block of this order: the smallest of the own type, else a claimed one, else (unless `nofragment`) a
    /// stolen one.
    pub(super) fn take(&mut self, order: Order, wanted: MigrateType, nofragment: bool) -> Option<FreeBlock> {
        if let Some(block) = self.take_smallest(order, wanted) {
            return Some(block);
        }
        self.take_foreign(order, wanted, nofragment)
    }

    #[cold]
    fn take_foreign(&mut self, order: Order, wanted: MigrateType, nofragment: bool) -> Option<FreeBlock> {
        let smallest_claim = if nofragment { order.max(self.blocks.order) } else { order };
        if let Some(block) = self.claim(order, wanted, smallest_claim) {
            self.base.event(Event::PageblockClaimed);
            return Some(block);
        }
        if nofragment {
            return None;
        }
        let block = self.steal(order, wanted)?;
        self.base.event(Event::MigrateSteal);
        Some(block)
    }

    /// The first fallback type that has a block of exactly this order.
    fn fallback_at(&self, order: Order, wanted: MigrateType) -> Option<MigrateType> {
        let has = |t: &MigrateType| !self.areas.lists[order.index()][t.index()].is_empty();
        wanted.fallbacks().iter().copied().find(has)
    }

    /// Turns a pageblock over to the wanted type, from the largest free block down: a large one brings most.
    fn claim(&mut self, order: Order, wanted: MigrateType, smallest: Order) -> Option<FreeBlock> {
        let pageblock = self.blocks.order;
        let orders = smallest.up_to(self.base.geometry.max_order).rev();
        for found in orders.take_while(|found| may_claim(*found, wanted, pageblock)) {
            let Some(theirs) = self.fallback_at(found, wanted) else { continue };
            if let Some(block) = self.claim_block(found, theirs, order, wanted) {
                return Some(block);
            }
        }
        None
    }

    fn claim_block(
        &mut self,
        found: Order,
        theirs: MigrateType,
        order: Order,
        wanted: MigrateType,
    ) -> Option<FreeBlock> {
        if found >= self.blocks.order {
            let block = self.remove_head(found, theirs)?;
            self.set_type_of(&block, wanted);
            return Some(self.split(block, order, wanted));
        }
        let first = self.areas.lists[found.index()][theirs.index()].head()?;
        let used = self.block_use(first);
        if used.free + compatible(used, theirs, wanted) < self.blocks.order.pages() / 2 {
            return None;
        }
        self.move_free_blocks(first, wanted);
        self.blocks.set(self.zone.block_base, first, wanted);
        self.forget_homes(first);
        self.take_smallest(order, wanted)
    }

    /// Pages of the pageblock around `pfn` no longer return to the array that they came from: its type is another one.
    pub(super) fn forget_homes(&self, pfn: Pfn) {
        self.pageblock_frames(pfn).for_each(|pfn| self.base.frames.forget_home(pfn));
    }

    /// The frames of the pageblock around `pfn` that are in the zone.
    fn pageblock_frames(&self, pfn: Pfn) -> impl Iterator<Item = Pfn> + use<P> {
        let first = self.blocks.order.align_down(pfn).max(self.zone.start).as_u32();
        let zone_end = u64::from(self.zone.start.as_u32()) + self.zone.frames;
        let end = u64::from(self.blocks.order.align_down(pfn).as_u32()) + self.blocks.order.pages();
        (first..end.min(zone_end) as u32).map(Pfn::new)
    }

    fn block_use(&self, pfn: Pfn) -> BlockUse {
        let frames = &self.base.frames;
        let mut used = BlockUse::default();
        for pfn in self.pageblock_frames(pfn) {
            used.frames += 1;
            match frames.kind(pfn) {
                FrameKind::Free => used.free += 1,
                FrameKind::Pcp => {}
                _ if frames.migrate(frames.head_of(pfn)) == MigrateType::Movable as u8 => used.movable += 1,
                _ => {}
            }
        }
        used
    }

    /// Moves the free blocks of a pageblock to the wanted type's lists. All are smaller than the pageblock.
    fn move_free_blocks(&mut self, pfn: Pfn, wanted: MigrateType) {
        let mut next = 0;
        for pfn in self.pageblock_frames(pfn) {
            let free = self.base.frames.kind(pfn) == FrameKind::Free;
            if free && pfn.as_u32() >= next {
                let block = self.remove(pfn);
                next = pfn.as_u32().saturating_add(block.order.pages() as u32);
                self.insert(block, wanted, Place::Tail);
            }
        }
    }

    /// Takes the smallest block of another type; the rest of it stays what it is.
    fn steal(&mut self, order: Order, wanted: MigrateType) -> Option<FreeBlock> {
        for found in order.up_to(self.base.geometry.max_order) {
            if let Some(theirs) = self.fallback_at(found, wanted) {
                let block = self.remove_head(found, theirs)?;
                return Some(self.split(block, order, theirs));
            }
        }
        None
    }
}

/// A movable request turns no pageblock over for a small block: its page can be moved away later.
fn may_claim(found: Order, wanted: MigrateType, pageblock: Order) -> bool {
    wanted != MigrateType::Movable || found.get() >= pageblock.get() / 2
}

/// How many used pages of the pageblock suit the wanted type. Only movable pages can be told from the others: so if
/// the pageblock is movable, all that are not count as suiting the wanted type, and otherwise none.
fn compatible(used: BlockUse, theirs: MigrateType, wanted: MigrateType) -> u64 {
    match (wanted, theirs) {
        (MigrateType::Movable, _) => used.movable,
        (_, MigrateType::Movable) => used.frames - used.free - used.movable,
        _ => 0,
    }
}
