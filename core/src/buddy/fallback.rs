//! Taking a block from a zone: of the own migrate type, or else of another one.
//!
//! When its own type has run out, a request first tries to *claim*: to turn a whole pageblock over to its type, so that
//! later requests of the type find the rest of it. If no pageblock can be claimed, it *steals*: one block is
//! taken and the pageblock keeps its type.
//!
//! Movable requests may use the CMA pageblocks as well, and do so first while most of what is free is there, so that
//! the rest lasts for those which have no choice.

use super::migrate::MigrateType;
use super::watermark::AllocFlags;
use super::zone::{FreeBlock, LockedZone, Place};
use super::zonelist::{NoFragment, Pass, Request};
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::ops::Range;

/// Pages of one pageblock by use.
#[derive(Clone, Copy, Default, Debug)]
struct BlockUse {
    free: u64,
    movable: u64,
    /// All frames of the pageblock that are in the zone.
    frames: u64,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Takes a block for a request, where its rights allow and the nearest in type first.
    pub(super) fn take(&mut self, request: &Request, pass: Pass) -> Option<FreeBlock> {
        if pass.rights.contains(AllocFlags::HIGHATOMIC)
            && let Some(block) = self.take_smallest(request.order, MigrateType::HighAtomic)
        {
            self.base.event(Event::HighAtomicUsed);
            return Some(block);
        }
        if let Some(block) = self.take_ordinary(request.order, request.route.migrate(), pass) {
            return Some(block);
        }
        // Failing now is worse than failing a larger request later.
        if !pass.rights.contains(AllocFlags::NON_BLOCK) {
            return None;
        }
        let block = self.take_smallest(request.order, MigrateType::HighAtomic)?;
        self.base.event(Event::HighAtomicLastResort);
        Some(block)
    }

    /// Takes a block of this order: from CMA if that has the most, the smallest of the own type, from CMA, claimed, or
    /// (unless types may not mix) stolen.
    pub(super) fn take_ordinary(&mut self, order: Order, wanted: MigrateType, pass: Pass) -> Option<FreeBlock> {
        let cma = pass.rights.contains(AllocFlags::CMA);
        let cma_has_most = cma && self.areas.free_of[MigrateType::Cma.index()] > self.zone.free_pages() / 2;
        if cma_has_most && let Some(block) = self.take_smallest(order, MigrateType::Cma) {
            self.base.event(Event::CmaBalanced);
            return Some(block);
        }
        if let Some(block) = self.take_smallest(order, wanted) {
            return Some(block);
        }
        if cma && let Some(block) = self.take_smallest(order, MigrateType::Cma) {
            self.base.event(Event::CmaFallback);
            return Some(block);
        }
        self.take_foreign(order, wanted, pass.nofragment)
    }

    #[cold]
    fn take_foreign(&mut self, order: Order, wanted: MigrateType, nofragment: NoFragment) -> Option<FreeBlock> {
        let mixing = nofragment == NoFragment::No;
        let smallest_claim = if mixing { order } else { order.max(self.blocks.order) };
        if let Some(block) = self.claim(order, wanted, smallest_claim) {
            self.base.event(Event::PageblockClaimed);
            return Some(block);
        }
        if !mixing {
            self.base.event(Event::FragmentationAvoided);
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
            self.base.event(claim_edge(wanted, theirs));
            return Some(self.split(block, order, wanted));
        }
        self.raise_boost();
        let first = self.areas.lists[found.index()][theirs.index()].head()?;
        let used = self.block_use(first);
        if used.free + compatible(used, theirs, wanted) < self.blocks.order.pages() / 2 {
            self.base.event(Event::ClaimRefused);
            return None;
        }
        self.move_free_blocks(first, wanted);
        self.blocks.set(self.zone.block_base, first, wanted);
        self.forget_homes(first);
        self.base.event(claim_edge(wanted, theirs));
        self.take_smallest(order, wanted)
    }

    /// Pages of the pageblock around `pfn` no longer return to the array that they came from: its type is another one.
    pub(super) fn forget_homes(&self, pfn: Pfn) {
        self.pageblock_span(pfn).for_each(|pfn| self.base.frames.forget_home(Pfn::new(pfn)));
    }

    /// The frames of the pageblock around `pfn` that are in the zone.
    fn pageblock_span(&self, pfn: Pfn) -> Range<u32> {
        let first = self.blocks.order.align_down(pfn).max(self.zone.start).as_u32();
        let zone_end = self.zone.end();
        let end = u64::from(self.blocks.order.align_down(pfn).as_u32()) + self.blocks.order.pages();
        first..end.min(zone_end) as u32
    }

    /// The first frame of what is at a frame, and how many frames of it there are from there up to `end`. A block in use may
    /// be freed or cut meanwhile: then this is a guess, of at least one frame.
    fn part_at(&self, pfn: Pfn, end: u32) -> (Pfn, u32) {
        let head = self.base.frames.head_of(pfn);
        let pages = self.base.frames.pages_of(head);
        let block_end = head.as_u32().saturating_add(pages as u32).min(end);
        (head, block_end.saturating_sub(pfn.as_u32()).max(1))
    }

    fn block_use(&self, pfn: Pfn) -> BlockUse {
        let frames = &self.base.frames;
        let span = self.pageblock_span(pfn);
        let mut used = BlockUse { frames: u64::from(span.end - span.start), ..BlockUse::default() };
        let mut at = span.start;
        while at < span.end {
            let (head, pages) = self.part_at(Pfn::new(at), span.end);
            match frames.kind(head) {
                FrameKind::Free => used.free += u64::from(pages),
                FrameKind::Pcp => {}
                _ if frames.migrate(head) == MigrateType::Movable as u8 => used.movable += u64::from(pages),
                _ => {}
            }
            at += pages;
        }
        used
    }

    /// Moves the free blocks of a pageblock to the wanted type's lists. All are smaller than the pageblock.
    pub(super) fn move_free_blocks(&mut self, pfn: Pfn, wanted: MigrateType) {
        let span = self.pageblock_span(pfn);
        let mut at = span.start;
        while at < span.end {
            let first = Pfn::new(at);
            at += self.part_at(first, span.end).1;
            if self.base.frames.is_head(first, FrameKind::Free) {
                let block = self.remove(first);
                self.insert(block, wanted, Place::Tail);
            }
        }
    }

    /// Takes the smallest block of another type; the rest of it stays what it is.
    fn steal(&mut self, order: Order, wanted: MigrateType) -> Option<FreeBlock> {
        for found in order.up_to(self.base.geometry.max_order) {
            if let Some(theirs) = self.fallback_at(found, wanted) {
                let block = self.remove_head(found, theirs)?;
                self.base.event(steal_edge(wanted, theirs));
                return Some(self.split(block, order, theirs));
            }
        }
        None
    }
}

/// The event of a claim: who wanted, and whose pageblock it was.
fn claim_edge(wanted: MigrateType, theirs: MigrateType) -> Event {
    match (wanted, theirs) {
        (MigrateType::Unmovable, MigrateType::Reclaimable) => Event::ClaimUnmovableOfReclaimable,
        (MigrateType::Unmovable, _) => Event::ClaimUnmovableOfMovable,
        (MigrateType::Movable, MigrateType::Reclaimable) => Event::ClaimMovableOfReclaimable,
        (MigrateType::Movable, _) => Event::ClaimMovableOfUnmovable,
        (_, MigrateType::Unmovable) => Event::ClaimReclaimableOfUnmovable,
        _ => Event::ClaimReclaimableOfMovable,
    }
}

/// The event of a steal: who wanted, and whose block it was.
fn steal_edge(wanted: MigrateType, theirs: MigrateType) -> Event {
    match (wanted, theirs) {
        (MigrateType::Unmovable, MigrateType::Reclaimable) => Event::StealUnmovableOfReclaimable,
        (MigrateType::Unmovable, _) => Event::StealUnmovableOfMovable,
        (MigrateType::Movable, MigrateType::Reclaimable) => Event::StealMovableOfReclaimable,
        (MigrateType::Movable, _) => Event::StealMovableOfUnmovable,
        (_, MigrateType::Unmovable) => Event::StealReclaimableOfUnmovable,
        _ => Event::StealReclaimableOfMovable,
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
