//! Moving a block: what stands at a frame, room for what must go, and the question to its owner.
//!
//! A block may move if it came from `alloc_pages` with `MOVABLE`, and so may a page of an area that was asked for with it.
//! Whoever wants it out of the way makes room elsewhere (a block that is handed out already, so that its new owner could
//! free it at once) and asks [`Platform::migrate`], or for the page of an area the [`Mover`], with no lock held. What was
//! seen of the old block before may be out of date by then: it is the owner who knows, and a wrong guess is simply refused.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::zone::{FreeBlock, LockedZone, Zone};
use crate::addr::Pfn;
use crate::base::Base;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::ops::Range;

/// Who moves the frames of a layer above, about which pages know no more than their kind.
pub(crate) trait Mover {
    /// Makes whoever uses the frame `from` use `to`, which has the same kind, with the same contents. `false`: it stays;
    /// nothing has changed then. Called with no lock held.
    fn migrate(&self, from: Pfn, to: Pfn) -> bool;
}

/// Nobody above has frames.
#[cfg(test)]
impl Mover for () {
    fn migrate(&self, _: Pfn, _: Pfn) -> bool {
        false
    }
}

/// What stands at a frame, as far as moving goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Occupant {
    /// A free block of the buddy.
    Free(Pfn, Order),
    /// A block whose owner may be asked to move it.
    Movable(Pfn, Order),
    /// Something that stays: the frames up to here can be passed over.
    Fixed(u32),
}

/// Room for a block that shall move: handed out, and not yet anybody's.
#[derive(Debug)]
#[must_use = "room that is dropped is lost"]
pub(super) struct Room {
    pub(super) first: Pfn,
    pub(super) order: Order,
    /// What it was handed out as: `Pages`, or `Vmalloc` for the page of an area.
    pub(super) kind: FrameKind,
}

impl Room {
    /// Tells whether the block at `from` fits.
    pub(super) fn suits<P>(&self, base: &Base<P>, from: Pfn, order: Order) -> bool {
        self.order == order && self.kind == kind_of_room(base, from)
    }
}

/// What room for the block at `from` has to be.
pub(super) fn kind_of_room<P>(base: &Base<P>, from: Pfn) -> FrameKind {
    if base.frames.kind(from) == FrameKind::Vmalloc { FrameKind::Vmalloc } else { FrameKind::Pages }
}

impl<P: Platform> PageAllocator<P> {
    /// The frames of the pageblock around `pfn` that are in the zone.
    pub(super) fn pageblock_span(&self, zone: &Zone, pfn: Pfn) -> Range<u32> {
        let first = self.blocks.order.align_down(pfn).as_u32();
        let end = u64::from(first) + self.blocks.order.pages();
        first.max(zone.start.as_u32())..end.min(zone.end()) as u32
    }

    /// What stands at a frame of the zone. Without the zone's lock this is a guess.
    pub(super) fn occupant(&self, zone: &Zone, pfn: Pfn) -> Occupant {
        let frames = &self.base.frames;
        let past = |first: Pfn, order: Order| Occupant::Fixed(first.as_u32().saturating_add(order.pages() as u32));
        match frames.kind(pfn) {
            FrameKind::Free => match free_block_around(&self.base, zone, pfn) {
                Some((first, order)) => Occupant::Free(first, order),
                None => Occupant::Fixed(pfn.as_u32() + 1),
            },
            FrameKind::Pages | FrameKind::PagesTail => {
                let first = frames.head_of(pfn);
                let order = frames.order(first);
                match MigrateType::from_byte(frames.migrate(first)) {
                    MigrateType::Movable if frames.kind(first) == FrameKind::Pages => Occupant::Movable(first, order),
                    _ => past(first, order),
                }
            }
            FrameKind::Vmalloc if frames.may_move(pfn) => Occupant::Movable(pfn, Order::ZERO),
            _ => Occupant::Fixed(pfn.as_u32() + 1),
        }
    }

    /// Asks the owner of the block at `from` to use `room` instead; gives the room back if he refuses.
    pub(super) fn relocate(&self, mover: &dyn Mover, zone: &Zone, from: Pfn, room: Room) -> Result<(), Room> {
        self.check_room(&room);
        let (moved, [done, refused]) = match room.kind {
            FrameKind::Vmalloc => {
                (mover.migrate(from, room.first), [Event::VmallocPageMoved, Event::VmallocPagePinned])
            }
            _ => {
                if room.order > Order::ZERO {
                    self.note_compound(room.first, self.is_compound(from));
                }
                let moved = self.base.platform.migrate(from, room.first, room.order);
                (moved, [Event::BlockMoved, Event::BlockPinned])
            }
        };
        if !moved {
            self.base.event(refused);
            return Err(room);
        }
        self.base.event(done);
        self.owner_moved(from, room.first);
        if !self.passes_free_checks(from, room.order, room.kind) {
            return Ok(());
        }
        self.locked(zone, |locked| {
            zone.ledger.take_back(room.kind, room.order.pages());
            locked.free(from, room.order);
        });
        Ok(())
    }

    /// Frees room that nobody wanted.
    pub(super) fn cancel_room(&self, room: Room) {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(room.first))) else { return };
        self.locked(zone, |locked| {
            zone.ledger.take_back(room.kind, room.order.pages());
            locked.free(room.first, room.order);
        });
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Hands a free block out as room for a movable one.
    pub(super) fn make_room(&mut self, block: FreeBlock, kind: FrameKind) -> Room {
        let FreeBlock { first, order } = block;
        self.base.frames.set_migrate(first, MigrateType::Movable as u8);
        self.base.frames.claim_block(first, order, kind);
        self.zone.ledger.hand_out(kind, order.pages());
        Room { first, order, kind }
    }

    /// The free block that a frame is part of.
    pub(super) fn free_block_around(&self, pfn: Pfn) -> Option<(Pfn, Order)> {
        free_block_around(self.base, self.zone, pfn)
    }
}

/// The free block that a frame is part of. Without the zone's lock this is a guess.
fn free_block_around<P: Platform>(base: &Base<P>, zone: &Zone, pfn: Pfn) -> Option<(Pfn, Order)> {
    let frames = &base.frames;
    let first = frames.head_of(pfn);
    let order = frames.order(first);
    let end = u64::from(first.as_u32()) + order.pages();
    let covers = frames.is_head(first, FrameKind::Free) && end > u64::from(pfn.as_u32());
    (covers && frames.zone(first) == zone.index).then_some((first, order))
}
