//! Compaction: large blocks out of scattered pages, by moving what is in between.
//!
//! ```text
//!  zone start                                                     zone end
//!  | moved away | migrate scanner ──►      ◄── free scanner | filled up    |
//! ```
//!
//! The migrate scanner walks up and asks the owners of movable blocks to move; the free scanner walks down and finds room
//! for them. A walk ends when a block that fits the request exists, or when the two meet in one pageblock. The next walk
//! goes on where a successful one stopped, and leaves pageblocks out that brought nothing, until the zone has plenty of free
//! pages again.
//!
//! A zone in which compaction failed is left alone for twice as many requests each time, up to 64. Source of the rules and
//! numbers: `mm/compaction.c`, Linux 7.2.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::relocate::{Mover, Occupant, Room, kind_of_room};
use super::zone::{FreeAreas, LockedZone, Zone};
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::gfp::GfpFlags;
use crate::inspect::Fill;
use crate::numa::NodeId;
use crate::order::{Order, PAGE_ALLOC_COSTLY_ORDER};
use crate::page::FrameKind;
use crate::platform::{Event, Platform};

/// How many blocks move before the walk looks whether it has done enough. Source: `COMPACT_CLUSTER_MAX`.
const CLUSTER: u32 = 32;
/// A zone is left alone for at most 2^this requests. Source: `COMPACT_MAX_DEFER_SHIFT`.
const MAX_DEFER_SHIFT: u8 = 6;
/// Above this index a shortage of large blocks is one of fragmentation. Source: `sysctl_extfrag_threshold`.
const FRAGMENTED_ABOVE: i32 = 500;

/// How a compaction ended; of several zones the best result counts, which is the largest here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum CompactResult {
    /// No zone was fit for it: too few free pages, or large blocks are not what is missing; or the flags forbid it.
    Skipped,
    /// It failed a short while ago.
    Deferred,
    /// A whole zone was walked and no block that fits came of it.
    Complete,
    /// The part of a zone that an earlier walk had left was walked, in vain.
    PartialSkipped,
    /// A block that fits is free.
    Success,
}

/// How hard compaction tries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum CompactPriority {
    /// The whole zone, without regard to hints, earlier failures, the fragmentation index and the types of the pageblocks
    /// that are filled up: what is left before a refusal.
    SyncFull,
    /// From where the last walk stopped; a failure makes the next ones wait.
    SyncLight,
    /// Only movable pageblocks are emptied; a failure has no consequence.
    Async,
}

/// What a zone remembers from one compaction to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CompactState {
    /// Where the migrate scanner goes on; `None`: at the zone's start.
    migrate_at: Option<u32>,
    /// The end of what the free scanner has not seen; `None`: the zone's end.
    free_end: Option<u32>,
    /// The two have met: hints are forgotten before a walk that finds the zone recovered, or that was put off long enough.
    met: bool,
    /// Requests that were put off since the last failure.
    considered: u8,
    /// log2 of how many requests are put off.
    defer_shift: u8,
    /// Requests of this order and above are put off.
    order_failed: u8,
}

impl CompactState {
    pub(super) const NEW: Self =
        Self { migrate_at: None, free_end: None, met: false, considered: 0, defer_shift: 0, order_failed: 0 };

    /// Tells whether a request of this order is to be put off, and counts it.
    fn defers(&mut self, order: Order) -> bool {
        if order.get() < self.order_failed {
            return false;
        }
        let limit = 1 << self.defer_shift;
        self.considered = (self.considered + 1).min(limit);
        self.considered < limit
    }

    /// Tells whether so many requests were put off that old findings are worth nothing any more.
    fn is_patient(&self) -> bool {
        self.defer_shift == MAX_DEFER_SHIFT && self.considered >= 1 << MAX_DEFER_SHIFT
    }

    fn failed(&mut self, order: Order) {
        self.considered = 0;
        self.defer_shift = (self.defer_shift + 1).min(MAX_DEFER_SHIFT);
        self.order_failed = self.order_failed.min(order.get());
    }

    fn succeeded(&mut self, order: Order) {
        (self.considered, self.defer_shift) = (0, 0);
        self.order_failed = self.order_failed.max(order.get() + 1);
    }
}

/// What a walk is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    /// A block of this order for requests of this type.
    Block(Order, MigrateType),
    /// Everything movable to one end of the zone.
    Everything,
}

impl Goal {
    /// Blocks of this order and above are left whole: they are what the walk is about.
    fn precious(self, pageblock: Order) -> Order {
        match self {
            Self::Block(order, _) => order.min(pageblock),
            Self::Everything => pageblock,
        }
    }
}

/// One walk over a zone.
struct Scan<'z> {
    zone: &'z Zone,
    mover: &'z dyn Mover,
    goal: Goal,
    priority: CompactPriority,
    /// The walk began at both ends of the zone.
    whole: bool,
    migrate_at: u32,
    /// The free scanner's pageblock ends here.
    free_end: u32,
    /// What it has seen of that pageblock.
    free_at: Option<u32>,
    /// Blocks taken from that pageblock.
    taken: u32,
    moved: u64,
}

impl<P: Platform> PageAllocator<P> {
    /// Moves blocks, zone after zone, until one of this order could be allocated with these flags.
    pub(crate) fn compact(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
        priority: CompactPriority,
        mover: &dyn Mover,
    ) -> CompactResult {
        // Moving may need input and output: a request that must not start them cannot wait for it.
        let allowed = order > Order::ZERO && gfp.contains(GfpFlags::IO);
        let node = node.unwrap_or_else(|| self.base.node_here());
        let Some(request) = self.request(order, gfp, node).ok().filter(|_| allowed) else {
            return CompactResult::Skipped;
        };
        let mut best = CompactResult::Skipped;
        for zone in self.zonelists.zones(&request).filter_map(|index| self.zones.get(index)) {
            best = best.max(self.compact_for(zone, &request, priority, mover));
            if best == CompactResult::Success {
                break;
            }
        }
        best
    }

    /// Moves all movable blocks of every zone towards its end; returns how many moved. Hints and failures of the past do
    /// not count.
    pub(crate) fn compact_everything(&self, mover: &dyn Mover) -> u64 {
        let walk = |zone: &Zone| {
            let mut scan = self.begin_scan(zone, Goal::Everything, CompactPriority::SyncFull, mover);
            let _result = self.walk(&mut scan);
            scan.moved
        };
        self.zones.iter().map(walk).sum()
    }

    fn compact_for(
        &self,
        zone: &Zone,
        request: &Request,
        priority: CompactPriority,
        mover: &dyn Mover,
    ) -> CompactResult {
        if priority > CompactPriority::SyncFull && zone.compaction.lock().defers(request.order) {
            self.base.event(Event::CompactDeferred);
            return CompactResult::Deferred;
        }
        match self.locked(zone, |locked| locked.suitability(request, priority)) {
            Suitability::NotNeeded => return CompactResult::Success,
            Suitability::Futile => {
                self.base.event(Event::CompactSkipped);
                return CompactResult::Skipped;
            }
            Suitability::Suitable => {}
        }
        let goal = Goal::Block(request.order, request.route.migrate());
        let result = self.walk(&mut self.begin_scan(zone, goal, priority, mover));
        let mut state = zone.compaction.lock();
        match result {
            CompactResult::Success => state.succeeded(request.order),
            _ if priority == CompactPriority::Async => {}
            _ => state.failed(request.order),
        }
        result
    }

    fn begin_scan<'z>(&self, zone: &'z Zone, goal: Goal, priority: CompactPriority, mover: &'z dyn Mover) -> Scan<'z> {
        let (start, end) = (zone.start.as_u32(), zone.end() as u32);
        let mut state = zone.compaction.lock();
        if state.met && (zone.has_plenty() || state.is_patient()) {
            state.met = false;
            self.forget_hints(zone);
        }
        let resumed = *state;
        drop(state);
        let from_ends = priority == CompactPriority::SyncFull;
        let migrate_at = resumed.migrate_at.filter(|_| !from_ends).unwrap_or(start);
        let free_end = resumed.free_end.filter(|_| !from_ends).unwrap_or(end);
        let whole = migrate_at == start && free_end == end;
        Scan { zone, mover, goal, priority, whole, migrate_at, free_end, free_at: None, taken: 0, moved: 0 }
    }

    fn forget_hints(&self, zone: &Zone) {
        let step = self.blocks.order.pages() as usize;
        for pfn in (zone.start.as_u32()..zone.end() as u32).step_by(step) {
            self.blocks.set_skip(zone.block_base, Pfn::new(pfn), false);
        }
        self.blocks.set_skip(zone.block_base, Pfn::new(zone.end() as u32 - 1), false);
    }

    /// Walks until a block that fits is free or the scanners meet.
    fn walk(&self, scan: &mut Scan<'_>) -> CompactResult {
        while !self.have_met(scan) {
            let before = scan.moved;
            self.empty_pageblock(scan);
            if scan.moved > before && self.is_reached(scan) {
                let mut state = scan.zone.compaction.lock();
                state.migrate_at = Some(scan.migrate_at);
                state.free_end = Some(scan.free_end);
                self.base.event(Event::CompactSuccess);
                return CompactResult::Success;
            }
        }
        let mut state = scan.zone.compaction.lock();
        (state.migrate_at, state.free_end, state.met) = (None, None, true);
        if scan.whole {
            self.base.event(Event::CompactComplete);
            CompactResult::Complete
        } else {
            self.base.event(Event::CompactPartial);
            CompactResult::PartialSkipped
        }
    }

    /// Tells whether both scanners are in one pageblock, or past each other.
    fn have_met(&self, scan: &Scan<'_>) -> bool {
        let pageblock = |frame: u32| frame >> self.blocks.order.get();
        scan.free_end <= scan.migrate_at || pageblock(scan.free_end - 1) <= pageblock(scan.migrate_at)
    }

    fn is_reached(&self, scan: &Scan<'_>) -> bool {
        match scan.goal {
            Goal::Everything => false,
            Goal::Block(order, migrate) => self.locked(scan.zone, |locked| locked.areas.has_for(order, migrate)),
        }
    }

    /// Moves blocks out of the migrate scanner's pageblock: a cluster at most, then the walk looks around.
    fn empty_pageblock(&self, scan: &mut Scan<'_>) {
        let zone = scan.zone;
        let span = self.pageblock_span(zone, Pfn::new(scan.migrate_at));
        if !self.is_source(scan, Pfn::new(span.start)) {
            scan.migrate_at = span.end;
            return;
        }
        let precious = scan.goal.precious(self.blocks.order);
        let (mut spare, mut asked, mut moved) = (None, 0, 0);
        let began_inside = scan.migrate_at > span.start;
        while scan.migrate_at < span.end && moved < CLUSTER {
            let (first, order) = match self.occupant(zone, Pfn::new(scan.migrate_at)) {
                Occupant::Movable(first, order) => (first, order),
                Occupant::Free(first, order) => {
                    scan.migrate_at = first.as_u32() + order.pages() as u32;
                    continue;
                }
                Occupant::Fixed(next) => {
                    scan.migrate_at = next.max(scan.migrate_at + 1);
                    continue;
                }
            };
            let next = first.as_u32().saturating_add(order.pages() as u32).max(scan.migrate_at + 1);
            if order < precious {
                asked += 1;
                let Some(room) = self.room_for(scan, first, order, &mut spare) else {
                    self.base.event(Event::CompactNoRoom);
                    break;
                };
                match self.relocate(scan.mover, zone, first, room) {
                    Ok(()) => moved += 1,
                    Err(room) => spare = Some(room),
                }
            }
            scan.migrate_at = next;
        }
        if let Some(room) = spare {
            // Nobody wanted it: it is room again.
            scan.free_at = scan.free_at.map(|at| at.min(room.first.as_u32()));
            self.cancel_room(room);
        }
        if asked == 0 && !began_inside {
            self.blocks.set_skip(zone.block_base, Pfn::new(span.start), true);
        }
        scan.moved += u64::from(moved);
    }

    /// Tells whether a pageblock is worth emptying.
    fn is_source(&self, scan: &Scan<'_>, pfn: Pfn) -> bool {
        let base = scan.zone.block_base;
        match self.blocks.get(base, pfn) {
            MigrateType::Isolate => return false,
            MigrateType::Movable | MigrateType::Cma => {}
            _ if scan.priority == CompactPriority::Async => return false,
            _ => {}
        }
        !self.is_hinted(scan, pfn)
    }

    /// Tells whether a pageblock brought nothing the last time.
    fn is_hinted(&self, scan: &Scan<'_>, pfn: Pfn) -> bool {
        let hinted = scan.priority != CompactPriority::SyncFull && self.blocks.skips(scan.zone.block_base, pfn);
        if hinted {
            self.base.event(Event::CompactHint);
        }
        hinted
    }

    /// Room for the block at `from`: what is left from a refusal, or else what the free scanner finds. `None`: the scanners
    /// met.
    fn room_for(&self, scan: &mut Scan<'_>, from: Pfn, order: Order, spare: &mut Option<Room>) -> Option<Room> {
        let kind = kind_of_room(&self.base, from);
        match spare.take() {
            Some(room) if room.suits(&self.base, from, order) => return Some(room),
            Some(room) => self.cancel_room(room),
            None => {}
        }
        let precious = scan.goal.precious(self.blocks.order);
        while !self.have_met(scan) {
            let span = self.pageblock_span(scan.zone, Pfn::new(scan.free_end - 1));
            let first = Pfn::new(span.start);
            let at = scan.free_at.unwrap_or(span.start);
            let usable = scan.free_at.is_some() || self.is_target(scan, first);
            let wanted = (order, kind);
            let room = if usable { self.take_room(scan.zone, at..span.end, wanted, precious) } else { None };
            if let Some(room) = room {
                scan.free_at = Some(room.first.as_u32() + order.pages() as u32);
                scan.taken += 1;
                if self.spoils(scan, first) {
                    self.base.event(Event::CompactSpoils);
                }
                return Some(room);
            }
            if usable && scan.taken == 0 {
                self.blocks.set_skip(scan.zone.block_base, first, true);
            }
            (scan.free_end, scan.free_at, scan.taken) = (span.start, None, 0);
        }
        // What is between the scanners is one pageblock at most.
        scan.migrate_at = scan.migrate_at.max(scan.free_end);
        None
    }

    /// Tells whether blocks may be moved into a pageblock: to movable ones only, so that they do not spoil others. Before a
    /// refusal they may: the blocks that earlier walks made may have turned every pageblock over to the type of the requests
    /// that took them.
    fn is_target(&self, scan: &Scan<'_>, pfn: Pfn) -> bool {
        let last_resort = scan.priority == CompactPriority::SyncFull && scan.goal != Goal::Everything;
        let migrate = self.blocks.get(scan.zone.block_base, pfn);
        let spoilable = last_resort && matches!(migrate, MigrateType::Unmovable | MigrateType::Reclaimable);
        (spoilable || !self.spoils(scan, pfn)) && !self.is_hinted(scan, pfn)
    }

    /// Tells whether movable blocks in a pageblock are in the way of what belongs there, unless types are not kept apart at
    /// all.
    fn spoils(&self, scan: &Scan<'_>, pfn: Pfn) -> bool {
        let movable = MigrateType::Movable.kept_apart(self.base.geometry.mobility);
        let migrate = self.blocks.get(scan.zone.block_base, pfn);
        migrate != movable && migrate != MigrateType::Cma
    }

    /// Takes room from the first free block of these frames that is large enough and not precious.
    fn take_room(
        &self,
        zone: &Zone,
        frames: core::ops::Range<u32>,
        (order, kind): (Order, FrameKind),
        precious: Order,
    ) -> Option<Room> {
        self.locked(zone, |locked| {
            let mut at = frames.start;
            while at < frames.end {
                at = match self.occupant(zone, Pfn::new(at)) {
                    Occupant::Free(first, size) if size >= order && size < precious && first.as_u32() >= at => {
                        let migrate = MigrateType::from_byte(self.base.frames.migrate(first));
                        let block = locked.remove(first);
                        let block = locked.split(block, order, migrate);
                        return Some(locked.make_room(block, kind));
                    }
                    Occupant::Free(first, size) | Occupant::Movable(first, size) => {
                        first.as_u32().saturating_add(size.pages() as u32).max(at + 1)
                    }
                    Occupant::Fixed(next) => next.max(at + 1),
                };
            }
            None
        })
    }
}

/// Whether a zone is fit for compaction.
enum Suitability {
    /// The block is there already.
    NotNeeded,
    /// It would not help.
    Futile,
    /// It is worth a try.
    Suitable,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Worth it is a zone with room to move things about, `min + 2 * 2^order` free pages, which lacks large blocks
    /// because it is fragmented and not because it is full.
    fn suitability(&self, request: &Request, priority: CompactPriority) -> Suitability {
        let Request { order, route, .. } = *request;
        let pass = Pass::hurried(request);
        if self.areas.has_for(order, route.migrate()) && self.passes(request, pass) {
            return Suitability::NotNeeded;
        }
        let reserve = self.zone.reserve.get(route.highest()).copied().unwrap_or(0);
        if self.zone.free_pages() <= self.zone.marks.min + reserve + 2 * order.pages() {
            return Suitability::Futile;
        }
        let index = self.areas.fragmentation_index(order);
        let forecast = order.get() > PAGE_ALLOC_COSTLY_ORDER && priority > CompactPriority::SyncFull;
        if forecast && (0..=FRAGMENTED_ABOVE).contains(&index) {
            return Suitability::Futile;
        }
        Suitability::Suitable
    }
}

impl FreeAreas {
    /// Tells whether a request of this type finds a block of this order or above: of its own type, of one that it may fall
    /// back to, or in a CMA pageblock if it is movable.
    fn has_for(&self, order: Order, migrate: MigrateType) -> bool {
        let cma = (migrate == MigrateType::Movable).then_some(MigrateType::Cma);
        let types = core::iter::once(migrate).chain(migrate.fallbacks().iter().copied()).chain(cma);
        types.into_iter().any(|t| self.smallest(order, t).is_some())
    }

    /// See [`crate::ZoneInfo::fragmentation_index`].
    fn fragmentation_index(&self, order: Order) -> i32 {
        let free = self.lists.iter().map(|lists| lists.iter().map(|list| list.len()).sum());
        Fill::of(free, order).fragmentation_index(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(n: u8) -> Order {
        Order::new(n).unwrap()
    }

    #[test]
    fn a_failure_puts_off_twice_as_many_requests_each_time_up_to_a_limit() {
        let mut state = CompactState::NEW;
        for limit in [2, 4, 8, 16, 32, 64, 64] {
            state.failed(order(4));
            let put_off = (0..100).take_while(|_| state.defers(order(4))).count();
            assert_eq!(put_off, limit - 1);
        }
        state.failed(order(4));
        state.succeeded(order(4));
        assert!(!state.defers(order(4)) && !state.defers(order(5)));
    }

    #[test]
    fn smaller_orders_than_the_one_that_failed_are_not_put_off() {
        let mut state = CompactState::NEW;
        state.succeeded(order(5));
        state.failed(order(4));
        state.failed(order(4));
        assert!(!state.defers(order(3)));
        assert!(state.defers(order(4)) && state.defers(order(6)));
    }
}
