//! Runs of frames of any length and place: emptied by moving what is in the way, then handed out.
//!
//! 1. The pageblocks around the run are isolated: nothing new comes in.
//! 2. Per-CPU pages are drained.
//! 3. Movable blocks are moved out; anything else ends the attempt.
//! 4. The free blocks of the run are taken; what they have beyond its ends stays free.
//! 5. The isolation ends, whatever came of it. Blocks that have moved stay where they are.
//!
//! A moved block goes to its own zone or, if that has no room, to a lower one of the node: whatever its owner asked for
//! allows those too. Source of the contract: `alloc_contig_range`, Linux 7.2.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::relocate::{Mover, Occupant, Room, kind_of_room};
use super::zone::{LockedZone, Zone};
use super::zonelist::Pass;
use crate::addr::{PageCount, Pfn};
use crate::error::{AllocError, FreeError};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::ops::Range;
use core::panic::Location;

/// Flags that say where and how, which the range has decided already: ignored.
const IGNORED: GfpFlags = GfpFlags::DMA
    .union(GfpFlags::DMA32)
    .union(GfpFlags::HIGHMEM)
    .union(GfpFlags::MOVABLE)
    .union(GfpFlags::RECLAIMABLE)
    .union(GfpFlags::WRITE)
    .union(GfpFlags::HARDWALL)
    .union(GfpFlags::THISNODE);
/// The other flags that a range can honour.
const HONOURED: GfpFlags =
    GfpFlags::KERNEL.union(GfpFlags::COMP).union(GfpFlags::RETRY_MAYFAIL).union(GfpFlags::NOWARN).union(GfpFlags::ZERO);

/// How far a search for a place goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effort {
    /// Only places that are free already.
    FreeOnly,
    /// Any place: what is in the way is moved.
    Moving,
}

impl<P: Platform> PageAllocator<P> {
    /// Allocates exactly these frames. With `COMP` they are one block, otherwise each is a page of its own.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`]; [`AllocError::BadRange`] if they are not in one zone or, with `COMP`, no aligned power of
    /// two; [`AllocError::OrderTooLarge`]; [`AllocError::BadFlags`]; [`AllocError::Busy`] names what cannot be moved;
    /// [`AllocError::NoPages`] if there is no room for what can; [`AllocError::Injected`].
    #[track_caller]
    pub(crate) fn alloc_contig_range(
        &self,
        start: Pfn,
        pages: PageCount,
        gfp: GfpFlags,
        mover: &dyn Mover,
    ) -> Result<(), AllocError> {
        self.zone_of_range(start, pages)?;
        self.block_of_range(start, pages, gfp)?;
        self.ask_contig_fault(pages, gfp)?;
        self.take_contig_range(start, pages, gfp, mover)
    }

    /// Asks once for each call, however many places it tries, and before anything is changed.
    fn ask_contig_fault(&self, pages: PageCount, gfp: GfpFlags) -> Result<(), AllocError> {
        let order = Order::for_bytes(pages.bytes().unwrap_or(usize::MAX)).unwrap_or(Order::MAX);
        let site = FaultSite::new(FaultPoint::Page, gfp).with_order(order);
        if self.base.fault(site) { Err(AllocError::Injected(FaultPoint::Page)) } else { Ok(()) }
    }

    #[track_caller]
    fn take_contig_range(
        &self,
        start: Pfn,
        pages: PageCount,
        gfp: GfpFlags,
        mover: &dyn Mover,
    ) -> Result<(), AllocError> {
        let zone = self.zone_of_range(start, pages)?;
        let block = self.block_of_range(start, pages, gfp)?;
        let frames = start.as_u32()..start.as_u32() + pages.get() as u32;
        let taken = match self.isolate(zone, &frames) {
            Ok(isolation) => {
                self.drain_all_pages();
                let taken = self.evacuate(zone, &frames, mover).and_then(|()| self.take_range(zone, &frames, block));
                self.end_isolation(zone, isolation);
                taken
            }
            Err(frame) => Err(AllocError::Busy { frame }),
        };
        self.base.event(match taken {
            Ok(()) => Event::ContigAllocated,
            Err(AllocError::Busy { .. }) => Event::ContigBusy,
            Err(_) => Event::ContigNoRoom,
        });
        if taken.is_ok() {
            self.check_run(&frames, block, gfp, Location::caller());
        }
        if gfp.wants_zero() && taken.is_ok() {
            let zeroed = self.base.mem.fill(start.addr(), (pages.get() as usize) << crate::addr::PAGE_SHIFT, 0);
            debug_assert!(zeroed, "the range is in memory");
        }
        taken
    }

    /// Allocates that many neighbouring frames, wherever they can be had: first where all are free, then where moving
    /// helps, last where it has helped; each time in the best zone and at the lowest place, aligned to their number if that
    /// is a power of two.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_contig_range`]; the error of the last place tried.
    pub(crate) fn alloc_contig_pages(
        &self,
        pages: PageCount,
        gfp: GfpFlags,
        node: Option<NodeId>,
        mover: &dyn Mover,
    ) -> Result<Pfn, AllocError> {
        if pages == PageCount::ZERO {
            return Err(AllocError::ZeroSize);
        }
        // What is wrong at any place is found even if there is no place to try.
        self.block_of_range(Pfn::new(0), pages, gfp)?;
        let node = node.unwrap_or_else(|| self.base.node_here());
        let zones = gfp.intersection(GfpFlags::DMA | GfpFlags::DMA32 | GfpFlags::HIGHMEM | GfpFlags::MOVABLE);
        let request = self.request(Order::ZERO, zones | gfp.intersection(GfpFlags::THISNODE), node)?;
        self.ask_contig_fault(pages, gfp)?;
        self.drain_all_pages();
        let order = Order::for_bytes(pages.bytes().unwrap_or(usize::MAX)).unwrap_or(Order::MAX);
        let mut refusal = AllocError::NoPages { order };
        let zones = || self.zonelists.zones(&request).filter_map(|index| self.zones.get(index));
        // Attempts that failed have moved blocks as well, and what they left may be a place.
        for effort in [Effort::FreeOnly, Effort::Moving, Effort::FreeOnly] {
            for zone in zones() {
                match self.contig_in_zone(zone, pages, gfp, (effort, mover)) {
                    Ok(first) => return Ok(first),
                    Err(AllocError::NoPages { .. }) => {}
                    Err(error @ AllocError::Busy { .. }) => refusal = error,
                    Err(error) => return Err(error),
                }
            }
        }
        Err(refusal)
    }

    /// The lowest place of a zone at which that many frames can be had.
    fn contig_in_zone(
        &self,
        zone: &Zone,
        pages: PageCount,
        gfp: GfpFlags,
        (effort, mover): (Effort, &dyn Mover),
    ) -> Result<Pfn, AllocError> {
        let step = if pages.get().is_power_of_two() { pages.get() } else { 1 };
        let mut refusal = AllocError::NoPages { order: Order::ZERO };
        let mut start = u64::from(zone.start.as_u32()).next_multiple_of(step);
        while start.saturating_add(pages.get()) <= zone.end() {
            let first = Pfn::new(start as u32);
            let frames = first.as_u32()..first.as_u32() + pages.get() as u32;
            let attempt = match effort {
                Effort::FreeOnly => self.find_used(&frames).map_or(Ok(()), |frame| Err(AllocError::Busy { frame })),
                Effort::Moving => Ok(()),
            };
            match attempt.and_then(|()| self.take_contig_range(first, pages, gfp, mover)) {
                Ok(()) => return Ok(first),
                // No place with this frame in it can be had.
                Err(error @ AllocError::Busy { frame }) => {
                    refusal = error;
                    start = (u64::from(frame.as_u32()).max(start) + 1).next_multiple_of(step);
                }
                Err(error @ AllocError::NoPages { .. }) => {
                    refusal = error;
                    start += pages.get();
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    /// The last of these frames that is not free.
    fn find_used(&self, frames: &Range<u32>) -> Option<Pfn> {
        frames.clone().rev().map(Pfn::new).find(|&frame| self.base.frames.kind(frame) != FrameKind::Free)
    }

    /// Frees what [`Self::alloc_contig_range`] gave, or any run of single pages.
    ///
    /// # Errors
    ///
    /// The misuse found on the first frame that cannot be freed; none is freed then.
    pub(crate) fn free_contig_range(&self, start: Pfn, pages: PageCount) -> Result<(), FreeError> {
        let order = self.base.frames.order(start);
        if order > Order::ZERO && order.pages() == pages.get() {
            return self.free_pages(start, order);
        }
        self.free_single_pages(start, pages.get())
    }

    /// The zone in which all these frames are.
    fn zone_of_range(&self, start: Pfn, pages: PageCount) -> Result<&Zone, AllocError> {
        if pages == PageCount::ZERO {
            return Err(AllocError::ZeroSize);
        }
        let end = u64::from(start.as_u32()).saturating_add(pages.get());
        let mut zones = self.zones.iter();
        zones.find(|zone| start >= zone.start && end <= zone.end()).ok_or(AllocError::BadRange { start, pages })
    }

    /// Checks the flags; tells the order of the block that they want, or `None` for single pages.
    fn block_of_range(&self, start: Pfn, pages: PageCount, gfp: GfpFlags) -> Result<Option<Order>, AllocError> {
        if !IGNORED.union(HONOURED).contains(gfp) {
            return Err(AllocError::BadFlags);
        }
        if !gfp.contains(GfpFlags::COMP) {
            return Ok(None);
        }
        let (max, count) = (self.base.geometry.max_order, pages.get());
        if !count.is_power_of_two() || !u64::from(start.as_u32()).is_multiple_of(count) {
            return Err(AllocError::BadRange { start, pages });
        }
        let order = Order::new(count.ilog2() as u8).filter(|&order| order <= max);
        order.map(Some).ok_or(AllocError::OrderTooLarge { max })
    }

    /// Moves everything out of these isolated frames.
    fn evacuate(&self, zone: &Zone, frames: &Range<u32>, mover: &dyn Mover) -> Result<(), AllocError> {
        // What cannot be moved is found before anything is.
        self.for_each_block(zone, frames, |_, _| Ok(()))?;
        let mut spare: Option<Room> = None;
        let moved = self.for_each_block(zone, frames, |first, order| {
            let room = match spare.take() {
                Some(room) if room.suits(&self.base, first, order) => room,
                other => {
                    other.into_iter().for_each(|room| self.cancel_room(room));
                    self.room_outside(zone, first, order)?
                }
            };
            self.relocate(mover, zone, first, room).map_err(|room| {
                spare = Some(room);
                AllocError::Busy { frame: first }
            })
        });
        spare.into_iter().for_each(|room| self.cancel_room(room));
        moved
    }

    /// Calls `visit` with each movable block that touches these frames.
    fn for_each_block(
        &self,
        zone: &Zone,
        frames: &Range<u32>,
        mut visit: impl FnMut(Pfn, Order) -> Result<(), AllocError>,
    ) -> Result<(), AllocError> {
        let mut at = frames.start;
        while at < frames.end {
            let (first, order) = match self.occupant(zone, Pfn::new(at)) {
                Occupant::Fixed(_) => return Err(AllocError::Busy { frame: Pfn::new(at) }),
                Occupant::Free(first, order) => (first, order),
                Occupant::Movable(first, order) => {
                    visit(first, order)?;
                    (first, order)
                }
            };
            at = first.as_u32().saturating_add(order.pages() as u32).max(at + 1);
        }
        Ok(())
    }

    /// Room for a block of this zone outside of what is isolated.
    fn room_outside(&self, zone: &Zone, block: Pfn, order: Order) -> Result<Room, AllocError> {
        let kind = kind_of_room(&self.base, block);
        let take = |from: &Zone| self.locked(from, |locked| locked.take_room_above_min(zone, order, kind));
        if let Some(room) = take(zone) {
            return Ok(room);
        }
        let lower = self.zones.iter().rev().filter(|z| z.node == zone.node && z.kind < zone.kind);
        let room = lower.into_iter().find_map(take).ok_or(AllocError::NoPages { order })?;
        self.base.event(Event::MovedToLowerZone);
        Ok(room)
    }

    /// Hands these isolated frames out, if all of them are free.
    fn take_range(&self, zone: &Zone, frames: &Range<u32>, block: Option<Order>) -> Result<(), AllocError> {
        self.locked(zone, |locked| {
            if let Some(frame) = self.find_used(frames) {
                return Err(AllocError::Busy { frame });
            }
            locked.take_frames(frames, block);
            Ok(())
        })
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Room that leaves the min watermark standing, for a block of `owner`, which is this zone or a higher one.
    fn take_room_above_min(&mut self, owner: &Zone, order: Order, kind: FrameKind) -> Option<Room> {
        let reserve = self.zone.reserve.get(owner.kind as usize).copied().unwrap_or(0);
        let kept = self.zone.marks.min + reserve + self.isolated_pages() + order.pages();
        if self.zone.free_pages() < kept {
            return None;
        }
        let movable = MigrateType::Movable.kept_apart(self.base.geometry.mobility);
        let block = self.take_ordinary(order, movable, Pass::MOVING)?;
        Some(self.make_room(block, kind))
    }

    /// Takes a run of free frames out of their blocks, which may reach beyond it.
    fn take_frames(&mut self, frames: &Range<u32>, block: Option<Order>) {
        let table = &self.base.frames;
        let mut at = frames.start;
        let mut outer = [frames.start..frames.start, frames.end..frames.end];
        while at < frames.end {
            let Some((first, _)) = self.free_block_around(Pfn::new(at)) else { break };
            let taken = self.remove(first);
            table.set_block_kind(taken.first, taken.order, FrameKind::Pcp);
            let end = first.as_u32().saturating_add(taken.order.pages() as u32);
            outer[0].start = outer[0].start.min(first.as_u32());
            outer[1].end = outer[1].end.max(end);
            at = end;
        }
        match block {
            Some(order) => {
                table.join_block(Pfn::new(frames.start), order);
                table.claim_block(Pfn::new(frames.start), order, FrameKind::Pages);
            }
            None => frames.clone().for_each(|f| table.claim_block(Pfn::new(f), Order::ZERO, FrameKind::Pages)),
        }
        frames.clone().for_each(|f| table.set_migrate(Pfn::new(f), MigrateType::Unmovable as u8));
        self.zone.ledger.hand_out(FrameKind::Pages, u64::from(frames.end - frames.start));
        outer.into_iter().for_each(|rest| self.free_run(rest));
    }

    /// Frees a run of frames in the largest aligned blocks.
    pub(super) fn free_run(&mut self, mut run: Range<u32>) {
        while run.start < run.end {
            let first = Pfn::new(run.start);
            let fits = |order: &Order| order.is_aligned(first) && order.pages() <= u64::from(run.end - run.start);
            let orders = Order::ZERO.up_to(self.base.geometry.max_order).rev();
            let order = orders.into_iter().find(fits).unwrap_or(Order::ZERO);
            self.free(first, order);
            run.start += order.pages() as u32;
        }
    }
}
