//! A zone: its span, its watermarks, and its free blocks by order and migrate type.

use super::compact::CompactState;
use super::migrate::{MigrateType, Pageblocks, nr_pageblocks};
use super::pcp::PcpLimits;
use super::usage::{Ledger, OwnerClass};
use super::watermark::{AllocFlags, Watermark, Watermarks, lowmem_reserve};
use super::zonelist::{Pass, Request, ZONE_KINDS};
use crate::addr::{PageCount, Pfn};
use crate::base::Base;
use crate::geometry::{Geometry, ZoneKind, ZoneSpec};
use crate::inspect::MIGRATE_TYPES;
use crate::numa::NodeId;
use crate::order::{NR_PAGE_ORDERS, Order};
use crate::page::{FrameKind, PageList, PageStack};
use crate::platform::{Event, Platform};
use crate::sync::{AtomicU64, Ordering::Relaxed, SpinLock};

/// A run of frames on one node. All but the free areas, the ledger and the number of frames is fixed when the machine is made.
pub(super) struct Zone {
    pub(super) index: u8,
    pub(super) kind: ZoneKind,
    pub(super) node: NodeId,
    pub(super) start: Pfn,
    /// How many there are; written under the zone's lock. Only the last zone gets more.
    pub(super) frames: AtomicU64,
    /// How many there will be at most.
    pub(super) most_frames: u64,
    pub(super) marks: Watermarks,
    /// Pages on top of each mark; written under the zone's lock.
    boost: AtomicU64,
    /// Requests that try again after reclaim; while there are any, no mark is boosted.
    retries: AtomicU64,
    /// Pages kept from requests that could use a higher zone, by the highest kind that they could use.
    pub(super) reserve: [u64; ZONE_KINDS.len()],
    pub(super) pcp: PcpLimits,
    /// What to add to `pfn >> pageblock order` to get the pageblock's place in the map, modulo 2^32.
    pub(super) block_base: u32,
    /// Free pages, and pages given out by way of the zone's lock; written under that lock.
    pub(super) ledger: Ledger,
    pub(super) areas: SpinLock<FreeAreas>,
    /// Blocks that were freed while nobody could wait for the lock; freed by whoever takes it next.
    pub(super) deferred: PageStack,
    /// Where compaction stands; held for a copy only.
    pub(super) compaction: SpinLock<CompactState>,
}

impl Zone {
    /// The zone at `index` of the geometry, all its frames still outside the free lists.
    pub(super) fn new(geometry: &Geometry, index: usize) -> Self {
        let (before, whole) = (&geometry.zones()[..index], &geometry.zones()[index]);
        let spec = &ZoneSpec { frames: PageCount::new(geometry.boot_frames(index)), ..*whole };
        let marks = Watermarks::of(geometry, spec);
        let order = geometry.pageblock_order;
        let blocks_before: u32 = before.iter().map(|zone| nr_pageblocks(zone, order)).sum();
        Self {
            index: index as u8,
            kind: spec.kind,
            node: spec.node,
            start: spec.start,
            frames: AtomicU64::new(spec.frames.get()),
            most_frames: whole.frames.get(),
            marks,
            boost: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            reserve: ZONE_KINDS.map(|highest| lowmem_reserve(geometry, spec, highest)),
            pcp: match geometry.page_debug.is_empty() {
                true => PcpLimits::new(spec.frames.get(), marks.low, cpus_that_share(geometry, spec.node)),
                false => PcpLimits::NONE,
            },
            block_base: blocks_before.wrapping_sub(spec.start.as_u32() >> order.get()),
            ledger: Ledger::new(),
            areas: SpinLock::new(FreeAreas::EMPTY),
            deferred: PageStack::new(),
            compaction: SpinLock::new(CompactState::NEW),
        }
    }

    /// All frames of the zone.
    pub(super) fn pfns(&self) -> impl Iterator<Item = Pfn> + use<> {
        let start = self.start.as_u32();
        (start..start + self.frames() as u32).map(Pfn::new)
    }

    /// How many frames the zone has.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// The frame after the last.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.start.as_u32()) + self.frames()
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.ledger.get(OwnerClass::Free)
    }

    /// Tells whether a block lies in the zone as a whole.
    pub(super) fn spans(&self, first: Pfn, order: Order) -> bool {
        first.offset_from(self.start).is_some_and(|offset| offset + order.pages() <= self.frames())
    }

    /// Pages on top of each watermark at present.
    pub(super) fn boost(&self) -> u64 {
        self.boost.load(Relaxed)
    }

    /// Notes that a request tries again after reclaim: what a boost calls for is being done.
    pub(super) fn begin_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Notes that it does so no longer.
    pub(super) fn end_retry(&self) {
        self.retries.fetch_sub(1, Relaxed);
    }

    /// Tells whether so much is free that nobody need hurry to give pages back.
    pub(super) fn has_plenty(&self) -> bool {
        self.free_pages() >= self.marks.high + self.boost()
    }
}

/// How many CPUs divide the pages that per-CPU lists may keep of a zone on this node: its own, or all if it has none.
fn cpus_that_share(geometry: &Geometry, node: NodeId) -> u16 {
    match geometry.cpus_of_node(node) {
        0 => geometry.cpus,
        own => own,
    }
}

/// What the zone's lock protects.
///
/// ```text
/// I8.3  bit k of nonempty[t] is set  <=>  lists[k][t] is not empty
/// I8.4  ledger[Free] == sum over k, t of len(lists[k][t]) * 2^k
/// I8.5  free_of[t] == sum over k of len(lists[k][t]) * 2^k for the special types t
/// I8.6  reserved_highatomic == pageblocks of type HIGHATOMIC * their size
/// ```
pub(super) struct FreeAreas {
    pub(super) lists: [[PageList; MIGRATE_TYPES]; NR_PAGE_ORDERS],
    pub(super) nonempty: [u16; MIGRATE_TYPES],
    /// Free pages of each special type; those of the ordinary ones are not counted.
    pub(super) free_of: [u64; MIGRATE_TYPES],
    /// Pages of the pageblocks kept for urgent requests of higher orders, in use or free.
    pub(super) reserved_highatomic: u64,
}

impl FreeAreas {
    const EMPTY: Self = Self {
        lists: [[PageList::EMPTY; MIGRATE_TYPES]; NR_PAGE_ORDERS],
        nonempty: [0; MIGRATE_TYPES],
        free_of: [0; MIGRATE_TYPES],
        reserved_highatomic: 0,
    };

    /// Free pages that a request with these rights cannot use.
    fn unusable(&self, rights: AllocFlags) -> u64 {
        let mut pages = self.free_of[MigrateType::Isolate.index()];
        if !rights.intersects(AllocFlags::RESERVES) {
            pages += self.free_of[MigrateType::HighAtomic.index()];
        }
        if !rights.contains(AllocFlags::CMA) {
            pages += self.free_of[MigrateType::Cma.index()];
        }
        pages
    }

    /// The smallest order from `from` on that has a block of this type.
    pub(super) fn smallest(&self, from: Order, migrate: MigrateType) -> Option<Order> {
        let orders = self.nonempty[migrate.index()] >> from.get();
        if orders == 0 { None } else { Order::new(from.get() + orders.trailing_zeros() as u8) }
    }
}

/// A free block that is on no list: it must be put on one or handed out. Not `Copy`, so it cannot be put on two.
#[derive(Debug)]
#[must_use = "a block that is dropped is lost"]
pub(super) struct FreeBlock {
    pub(super) first: Pfn,
    pub(super) order: Order,
}

/// The end of a list at which a block is put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// To be used next: it is probably in the CPU's cache.
    Head,
    /// To be used last: it may soon merge.
    Tail,
}

/// A zone whose lock is held.
pub(super) struct LockedZone<'z, P> {
    pub(super) base: &'z Base<P>,
    pub(super) zone: &'z Zone,
    pub(super) blocks: &'z Pageblocks,
    pub(super) areas: &'z mut FreeAreas,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Puts a block on the list of its order and type.
    #[inline(always)]
    pub(super) fn insert(&mut self, block: FreeBlock, migrate: MigrateType, place: Place) {
        let frames = &self.base.frames;
        let FreeBlock { first, order } = block;
        frames.mark_free(first, order, migrate as u8);
        let list = &mut self.areas.lists[order.index()][migrate.index()];
        match place {
            Place::Head => list.push_head(frames, first),
            Place::Tail => list.push_tail(frames, first),
        }
        self.areas.nonempty[migrate.index()] |= 1 << order.get();
        if !migrate.is_ordinary() {
            self.areas.free_of[migrate.index()] += order.pages();
        }
        self.zone.ledger.add(OwnerClass::Free, order.pages());
    }

    /// Takes the block that starts at `first` off its list.
    pub(super) fn remove(&mut self, first: Pfn) -> FreeBlock {
        let frames = &self.base.frames;
        let (order, migrate) = (frames.order(first), MigrateType::from_byte(frames.migrate(first)));
        self.remove_from(first, order, migrate)
    }

    /// Takes the block that starts at `first` off the list of this order and type.
    #[inline]
    fn remove_from(&mut self, first: Pfn, order: Order, migrate: MigrateType) -> FreeBlock {
        let list = &mut self.areas.lists[order.index()][migrate.index()];
        list.remove(&self.base.frames, first);
        if list.is_empty() {
            self.areas.nonempty[migrate.index()] &= !(1 << order.get());
        }
        if !migrate.is_ordinary() {
            self.areas.free_of[migrate.index()] -= order.pages();
        }
        self.zone.ledger.sub(OwnerClass::Free, order.pages());
        FreeBlock { first, order }
    }

    fn head(&self, order: Order, migrate: MigrateType) -> Option<Pfn> {
        self.areas.lists[order.index()][migrate.index()].head()
    }

    /// Takes the block that the next request of this order and type would be cut from.
    pub(super) fn remove_head(&mut self, order: Order, migrate: MigrateType) -> Option<FreeBlock> {
        let first = self.head(order, migrate)?;
        Some(self.remove_from(first, order, migrate))
    }

    /// Takes a block of the type, of the smallest order that there is, cut down to `order`.
    #[inline(always)]
    pub(super) fn take_smallest(&mut self, order: Order, migrate: MigrateType) -> Option<FreeBlock> {
        let found = self.areas.smallest(order, migrate)?;
        let block = self.remove_head(found, migrate)?;
        Some(if found == order { block } else { self.split(block, order, migrate) })
    }

    /// Cuts a block in half until it has the order wanted. The lowest piece is kept; the upper halves go to the heads
    /// of their lists, the largest first.
    #[inline(never)]
    pub(super) fn split(&mut self, mut block: FreeBlock, to: Order, migrate: MigrateType) -> FreeBlock {
        if block.order > to {
            self.base.event(Event::Split);
        }
        while block.order > to {
            let Some(half) = block.order.down() else { break };
            let upper = FreeBlock { first: half.buddy_of(block.first), order: half };
            // A guard is a part of one pageblock, so that nothing keeps it and its buddy apart when that is free.
            if half < self.base.geometry.guardpage_minorder.min(self.blocks.order) {
                self.set_guard(upper);
            } else {
                self.insert(upper, migrate, Place::Head);
            }
            block.order = half;
        }
        block
    }

    /// Tells whether a free block of exactly this order starts at `pfn` in this zone.
    ///
    /// Only the first frame of a free block is marked as free.
    pub(super) fn is_free_block(&self, pfn: Pfn, order: Order) -> bool {
        let frames = &self.base.frames;
        frames.is_head(pfn, FrameKind::Free) && frames.zone(pfn) == self.zone.index && frames.order(pfn) == order
    }

    /// Leaves a block to nobody until its buddy is free.
    fn set_guard(&mut self, block: FreeBlock) {
        self.base.frames.set_kind(block.first, FrameKind::Guard);
        self.base.frames.set_order(block.first, block.order);
        self.zone.ledger.add(OwnerClass::Guard, block.order.pages());
        self.base.event(Event::GuardSet);
    }

    /// Tells whether a guard of exactly this order starts at `pfn` in this zone.
    fn is_guard(&self, pfn: Pfn, order: Order) -> bool {
        let frames = &self.base.frames;
        frames.is_head(pfn, FrameKind::Guard) && frames.zone(pfn) == self.zone.index && frames.order(pfn) == order
    }

    /// Takes a free buddy off its list, or ends its time as a guard; `None` if it is neither, or must stay apart.
    fn take_buddy(&mut self, buddy: Pfn, order: Order, migrate: MigrateType) -> Option<FreeBlock> {
        if !self.may_join(buddy, order, migrate) {
            return None;
        }
        if self.is_free_block(buddy, order) {
            return Some(self.remove(buddy));
        }
        if !self.is_guard(buddy, order) {
            return None;
        }
        self.base.frames.set_kind(buddy, FrameKind::Free);
        self.zone.ledger.sub(OwnerClass::Guard, order.pages());
        self.base.event(Event::GuardCleared);
        Some(FreeBlock { first: buddy, order })
    }

    /// Gives frames back: joins them with their free buddies and puts the result on its list.
    pub(super) fn free(&mut self, first: Pfn, order: Order) {
        let apart = || self.is_partly_isolated(first, order) || !self.may_be_one(first, order);
        if order > self.blocks.order && apart() {
            return self.free_by_pageblock(first, order);
        }
        self.free_whole(first, order);
    }

    /// As [`Self::free`], for frames whose pageblocks belong together.
    #[inline(always)]
    pub(super) fn free_whole(&mut self, first: Pfn, order: Order) {
        let (block, migrate) = self.merge_freed(first, order);
        let place = self.place_of(&block);
        self.insert(block, migrate, place);
    }

    /// Joins a block with its free buddies and puts the result on the list of its pageblock's type.
    pub(super) fn settle(&mut self, block: FreeBlock) {
        let migrate = self.block_type(block.first);
        let block = self.merge(block, migrate);
        let place = self.place_of(&block);
        self.insert(block, migrate, place);
    }

    /// As [`Self::free_whole`], to this end of the list.
    pub(super) fn free_to(&mut self, first: Pfn, order: Order, place: Place) {
        let (block, migrate) = self.merge_freed(first, order);
        self.insert(block, migrate, place);
    }

    #[inline(always)]
    fn merge_freed(&mut self, first: Pfn, order: Order) -> (FreeBlock, MigrateType) {
        self.base.frames.set_block_kind(first, order, FrameKind::Free);
        let migrate = self.block_type(first);
        (self.merge(FreeBlock { first, order }, migrate), migrate)
    }

    /// Joins a block with its buddy as long as that is free and of the same size, up to the largest order.
    #[inline(always)]
    fn merge(&mut self, mut block: FreeBlock, migrate: MigrateType) -> FreeBlock {
        while block.order < self.base.geometry.max_order {
            let buddy = block.order.buddy_of(block.first);
            let Some(parent_order) = block.order.up() else { break };
            let Some(FreeBlock { first, .. }) = self.take_buddy(buddy, block.order, migrate) else { break };
            self.base.frames.set_tail(first.max(block.first));
            block = FreeBlock { first: first.min(block.first), order: parent_order };
            self.retag_joined(&block, migrate);
            self.base.event(Event::Merge);
        }
        block
    }

    /// Within a pageblock there is one type. Beyond, a type with a special purpose keeps to itself, and isolated pageblocks
    /// keep even to each other: one may end its isolation before the other.
    pub(super) fn may_join(&self, buddy: Pfn, order: Order, migrate: MigrateType) -> bool {
        let theirs = self.block_type(buddy);
        let alike = theirs == migrate && migrate != MigrateType::Isolate;
        order < self.blocks.order || alike || (theirs.is_ordinary() && migrate.is_ordinary())
    }

    /// A block larger than a pageblock has one type throughout: that of the part freed last.
    fn retag_joined(&self, block: &FreeBlock, migrate: MigrateType) {
        if block.order > self.blocks.order {
            self.set_type_of(block, migrate);
        }
    }

    /// A block whose parent could merge soon goes to the tail, to be left alone meanwhile.
    fn place_of(&self, block: &FreeBlock) -> Place {
        let Some(parent) = block.order.up().filter(|&parent| parent < self.base.geometry.max_order) else {
            return Place::Head;
        };
        let uncle = parent.buddy_of(parent.align_down(block.first));
        if self.is_free_block(uncle, parent) { Place::Tail } else { Place::Head }
    }

    /// The migrate type of the pageblock around `pfn`.
    pub(super) fn block_type(&self, pfn: Pfn) -> MigrateType {
        self.blocks.get(self.zone.block_base, pfn)
    }

    /// Gives all pageblocks of a block that is at least a pageblock large one type.
    pub(super) fn set_type_of(&self, block: &FreeBlock, migrate: MigrateType) {
        for offset in (0..block.order.pages()).step_by(self.blocks.order.pages() as usize) {
            let Some(pfn) = block.first.checked_add(offset) else { return };
            self.blocks.set(self.zone.block_base, pfn, migrate);
        }
    }

    /// Tells whether the request leaves the watermark standing and a block large enough exists.
    ///
    /// A single page for an urgent caller need not leave the boost standing, which is there for reclaim's sake only; nor need
    /// a block that replaces a bad one, which may have raised it.
    #[inline(always)]
    pub(super) fn passes(&self, request: &Request, pass: Pass) -> bool {
        let boost = if request.replaces { 0 } else { self.zone.boost() };
        let Some(floor) = self.zone.marks.floor(pass.mark, boost, pass.rights) else { return true };
        if self.spare_above(floor, request, pass.rights).is_some() {
            return self.has_block(request.order, pass.rights);
        }
        self.passes_unboosted(request, pass, boost)
    }

    #[inline(never)]
    fn passes_unboosted(&self, request: &Request, pass: Pass, boost: u64) -> bool {
        let unboosted = request.order == Order::ZERO
            && pass.mark == Watermark::Min
            && pass.rights.contains(AllocFlags::MIN_RESERVE)
            && boost > 0;
        let floor = self.zone.marks.floor(pass.mark, 0, pass.rights).filter(|_| unboosted);
        let passes = floor.is_some_and(|floor| self.spare_above(floor, request, pass.rights).is_some());
        if passes {
            self.base.event(Event::BoostIgnored);
        }
        passes
    }

    /// How many pages are left above `floor` and the pages reserved for others when the request is served; `None` if
    /// that would go below. Exactly at the watermark is too low.
    pub(super) fn spare_above(&self, floor: u64, request: &Request, rights: AllocFlags) -> Option<u64> {
        let reserve = self.zone.reserve.get(request.route.highest()).copied().unwrap_or(0);
        let usable = self.zone.free_pages().checked_sub(self.areas.unusable(rights))?;
        usable.checked_sub(request.order.pages() + floor + reserve)
    }

    /// How many blocks may be fetched for a per-CPU list besides the one requested: what is fetched ahead of need
    /// never comes from below the low watermark.
    pub(super) fn blocks_ahead(&self, request: &Request) -> u64 {
        let polite = AllocFlags::polite(request.route.migrate());
        self.spare_above(self.zone.marks.low + self.zone.boost(), request, polite).unwrap_or(0) >> request.order.get()
    }

    /// Tells whether there is a block of at least this order that a request with these rights may use. Of single pages it
    /// is not asked: those that count as usable are there.
    fn has_block(&self, order: Order, rights: AllocFlags) -> bool {
        if order == Order::ZERO {
            return true;
        }
        let orders = |migrate: MigrateType| self.areas.nonempty[migrate.index()];
        let mut orders_there =
            orders(MigrateType::Unmovable) | orders(MigrateType::Movable) | orders(MigrateType::Reclaimable);
        if rights.contains(AllocFlags::CMA) {
            orders_there |= orders(MigrateType::Cma);
        }
        if rights.contains(AllocFlags::HIGHATOMIC) {
            orders_there |= orders(MigrateType::HighAtomic);
        }
        orders_there >> order.get() != 0
    }

    /// Raises the watermarks until reclaim has run; not on behalf of a request for which it has: its next page would be refused.
    pub(super) fn raise_boost(&self) {
        if self.zone.retries.load(Relaxed) > 0 {
            return;
        }
        let before = self.zone.boost();
        let after = self.zone.marks.boosted(before, self.zone.frames(), self.blocks.order.pages());
        if after > before {
            self.zone.boost.store(after, Relaxed);
            self.base.event(Event::WatermarkBoosted);
        }
    }

    /// Lowers the watermarks again: reclaim has run.
    pub(super) fn drop_boost(&self) {
        if self.zone.boost.swap(0, Relaxed) > 0 {
            self.base.event(Event::BoostDropped);
        }
    }

    /// Tells whether all pageblocks that a block overlaps may be in one free block.
    pub(super) fn may_be_one(&self, first: Pfn, order: Order) -> bool {
        let migrate = self.block_type(first);
        let pageblocks = (0..order.pages()).step_by(self.blocks.order.pages() as usize);
        pageblocks.filter_map(|offset| first.checked_add(offset)).all(|pfn| self.block_type(pfn) == migrate)
    }
}
