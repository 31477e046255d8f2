//! Per-CPU pages: small stacks of free blocks that a CPU uses without the zone's lock.
//!
//! Each CPU has for each zone one [`PerCpuPages`]. Blocks of the orders 0 to 3 are kept by order and migrate type, blocks
//! of the pageblock order by movable or not; all other orders always go to the zone. The newest single pages of each
//! type are in an array ([`HotPages`]) in front of their list, with a lock of its own: the most frequent pair of calls
//! touches the array and the page's kind byte, and nothing else. A page keeps the number of the array that it came from in
//! its kind byte until the type of its pageblock changes.
//!
//! Order of locks: a cell is taken before a zone's lock, never the other way round, and only by trying.
//!
//! ```text
//! I21.3  ledger[Pcp] == pages of the blocks on all lists; what the arrays hold is counted by themselves
//! I21.4  a frame of kind Pcp is in exactly one block of exactly one CPU's list or array, that of its zone
//! I21.5  a block on the list of order k and type t has order k and type t in its descriptor
//! ```

use super::migrate::{MigrateType, PCP_TYPES};
use super::usage::{Ledger, OwnerClass};
use crate::addr::Pfn;
use crate::order::{Order, PAGE_ALLOC_COSTLY_ORDER};
use crate::page::{FrameKind, FrameTable, PageList};
use crate::platform::Platform;
use crate::raw::{PerCpuCell, PerCpuStack, Stack};
use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed, count_own};

/// How often a batch may double while a CPU keeps allocating. Source: `CONFIG_PCP_BATCH_SCALE_MAX`.
const MAX_DOUBLINGS: u32 = 5;
const LOW_ORDER_LISTS: usize = (PAGE_ALLOC_COSTLY_ORDER as usize + 1) * PCP_TYPES;
/// Lists of a CPU: three types of each of the orders 0 to 3, and two of the pageblock order.
pub(super) const NR_PCP_LISTS: usize = LOW_ORDER_LISTS + 2;

/// One CPU's pages of one zone.
#[repr(C, align(64))]
pub(super) struct PerCpuPages {
    pub(super) cell: PerCpuCell<PcpLists>,
    /// Written by the holder of the cell.
    pub(super) ledger: Ledger,
    /// Requests that came to the slow paths on this CPU, where they are counted.
    pub(super) slow_allocs: AtomicU32,
    pub(super) slow_frees: AtomicU32,
}

/// How many pages a CPU keeps of a zone; the same for all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PcpLimits {
    /// How many pages move between the zone and a CPU at once.
    pub(super) batch: u64,
    /// The least number of pages from which on a CPU gives back.
    pub(super) high_min: u64,
    /// The most.
    pub(super) high_max: u64,
}

impl PcpLimits {
    /// No pages at all: each block goes by the slow paths, where the checks of pages are.
    pub(super) const NONE: Self = Self { batch: 1, high_min: 0, high_max: 0 };

    pub(super) fn new(managed: u64, low_mark: u64, cpus: u16) -> Self {
        let (batch, cpus) = (batch_of(managed), u64::from(cpus.max(1)));
        let high_min = (low_mark / cpus).max(4 * batch);
        Self { batch, high_min, high_max: (managed / 8 / cpus).max(high_min) }
    }
}

/// The batch of a zone: a 4096th of it up to 64 pages, rounded to one less than a power of two, which spreads frames
/// better over the sets of a cache than a power of two itself.
const fn batch_of(managed: u64) -> u64 {
    let batch = if managed >> 12 < 64 { managed >> 12 } else { 64 };
    if batch <= 1 { 1 } else { (1 << (batch + batch / 2).ilog2()) - 1 }
}

/// The list for blocks of this order and type; `None` if no CPU keeps such blocks.
pub(super) fn list_index(order: Order, migrate: MigrateType, pageblock: Order) -> Option<usize> {
    let migrate = migrate.parked()?;
    if order.get() <= PAGE_ALLOC_COSTLY_ORDER {
        Some(order.index() * PCP_TYPES + migrate.index())
    } else if order == pageblock {
        Some(LOW_ORDER_LISTS + usize::from(migrate == MigrateType::Movable))
    } else {
        None
    }
}

/// The order and type of the blocks on a list; no type for the list that two types share.
pub(super) fn list_shape(list: usize, pageblock: Order) -> (Order, Option<MigrateType>) {
    match list.checked_sub(LOW_ORDER_LISTS) {
        None => {
            let order = Order::new((list / PCP_TYPES) as u8).unwrap_or(Order::MAX);
            (order, Some(MigrateType::from_byte((list % PCP_TYPES) as u8)))
        }
        Some(0) => (pageblock, None),
        Some(_) => (pageblock, Some(MigrateType::Movable)),
    }
}

/// The most pages in an array of the newest single pages.
pub(super) const HOT_MAX: usize = 25;

/// The newest single pages of one zone and type, in front of their list, with a lock of their own.
#[repr(C, align(128))]
pub(super) struct HotPages {
    pages: PerCpuStack<Pfn, HOT_MAX, (), 1>,
    /// Pages that went from here to their owners less those that came back, modulo 2^64; written by the array's owner.
    out: AtomicU64,
    /// How often the fast paths served this CPU, where it is counted.
    allocs: AtomicU32,
    frees: AtomicU32,
}

const _: () = assert!(size_of::<HotPages>() == 128);

impl HotPages {
    pub(super) fn new(limits: PcpLimits) -> Self {
        let pages = PerCpuStack::new(Pfn::new(0), ());
        // All arrays of a zone together stay below the least limit of a CPU.
        let most = if limits == PcpLimits::NONE { 0 } else { (limits.high_min / 4).clamp(1, HOT_MAX as u64) };
        pages.set_limits([most as u32]);
        let none = || AtomicU32::new(0);
        Self { pages, out: AtomicU64::new(0), allocs: none(), frees: none() }
    }

    /// How many pages are in the array.
    pub(super) fn len(&self) -> u64 {
        self.pages.len().into()
    }

    /// Pages handed out less pages taken back, modulo 2^64.
    pub(super) fn out(&self) -> u64 {
        self.out.load(Relaxed)
    }

    /// How many pages the array may hold.
    pub(super) fn limit(&self) -> u32 {
        self.pages.limit(0)
    }

    /// Takes the newest page on the CPU that owns the array; `None` if there is none or the array is in use.
    #[inline(always)]
    pub(super) fn take(&self, counted: bool) -> Option<Pfn> {
        self.pages.pop_and(|_| {
            self.out.store(self.out().wrapping_add(1), Relaxed);
            count_own(&self.allocs, counted);
        })
    }

    /// Allocations and frees that the fast paths served, where they are counted.
    pub(super) fn hits(&self) -> (u32, u32) {
        (self.allocs.load(Relaxed), self.frees.load(Relaxed))
    }

    /// Puts a page on the CPU that owns the array, and marks it by `mark` before anybody else can take it; `false` if there
    /// is no room or the array is in use.
    #[inline(always)]
    pub(super) fn put(&self, pfn: Pfn, counted: bool, mark: impl FnOnce()) -> bool {
        self.pages.push_if::<0>(pfn, || {
            mark();
            self.out.store(self.out().wrapping_sub(1), Relaxed);
            count_own(&self.frees, counted);
            true
        })
    }

    /// Works on the array on the CPU that owns it, or (`own` is `false`) on another CPU's; `None` if it is in use.
    pub(super) fn with<R>(
        &self,
        platform: &impl Platform,
        own: bool,
        work: impl FnOnce(&mut Stack<Pfn, HOT_MAX>) -> R,
    ) -> Option<R> {
        if own {
            self.pages.try_local().map(|mut pages| work(&mut pages.main))
        } else {
            self.pages.try_remote(platform).map(|mut pages| work(&mut pages.main))
        }
    }
}

/// What a CPU's cell protects.
pub(super) struct PcpLists {
    pub(super) lists: [PageList; NR_PCP_LISTS],
    /// From this number of pages on, frees give pages back to the zone.
    pub(super) high: u64,
    /// Pages after the last refill or drain: what came since is what the CPU frees in excess of what it allocates.
    settled: u64,
    /// How often the next batch is doubled.
    doublings: u32,
}

impl PerCpuPages {
    pub(super) const fn new(limits: PcpLimits) -> Self {
        let (slow_allocs, slow_frees) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { cell: PerCpuCell::new(PcpLists::new(limits)), ledger: Ledger::new(), slow_allocs, slow_frees }
    }

    /// How many pages this CPU keeps on its lists.
    #[inline(always)]
    pub(super) fn pages(&self) -> u64 {
        self.ledger.get(OwnerClass::Pcp)
    }

    /// Notes that pages of the lists went to the owner of frames of this kind.
    #[inline(always)]
    pub(super) fn hand_out(&self, kind: FrameKind, pages: u64) {
        self.ledger.sub(OwnerClass::Pcp, pages);
        self.ledger.hand_out(kind, pages);
    }

    /// Notes that pages of frames of this kind came to the lists.
    #[inline(always)]
    pub(super) fn take_back(&self, kind: FrameKind, pages: u64) {
        self.ledger.take_back(kind, pages);
        self.ledger.add(OwnerClass::Pcp, pages);
    }
}

impl PcpLists {
    const fn new(limits: PcpLimits) -> Self {
        Self { lists: [PageList::EMPTY; NR_PCP_LISTS], high: limits.high_min, settled: 0, doublings: 0 }
    }

    /// Takes the newest block of a list.
    pub(super) fn pop(&mut self, frames: &FrameTable, list: usize) -> Option<Pfn> {
        self.lists.get_mut(list)?.pop_head(frames)
    }

    /// Adds the newest block to a list.
    pub(super) fn push(&mut self, frames: &FrameTable, list: usize, first: Pfn) {
        if let Some(list) = self.lists.get_mut(list) {
            list.push_head(frames, first);
        }
    }

    /// Tells whether a list has no block.
    pub(super) fn is_empty(&self, list: usize) -> bool {
        self.lists.get(list).is_none_or(PageList::is_empty)
    }

    /// Adds a block to a list, as if it were the oldest; only while the list fills from empty.
    pub(super) fn append(&mut self, frames: &FrameTable, list: usize, first: Pfn) {
        if let Some(list) = self.lists.get_mut(list) {
            list.push_tail(frames, first);
        }
    }

    /// Takes the oldest block of a list.
    fn pop_oldest(&mut self, frames: &FrameTable, list: usize) -> Option<Pfn> {
        self.lists.get_mut(list)?.pop_tail(frames)
    }

    /// How many blocks to fetch from the zone besides the one that is needed now. A CPU that keeps allocating gets more
    /// each time and, while the zone has `plenty`, a higher limit; what it fetches stays below that limit.
    pub(super) fn plan_refill(&mut self, limits: PcpLimits, order: Order, count: u64, plenty: bool) -> u64 {
        let mut pages = limits.batch << self.doublings;
        if plenty {
            self.high = (self.high + pages).min(limits.high_max);
        }
        if order == Order::ZERO {
            let most = self.high.saturating_sub(count + limits.batch).max(limits.batch);
            if pages <= most && self.doublings < MAX_DOUBLINGS {
                self.doublings += 1;
            }
            pages = pages.min(most);
        }
        let blocks = if order == Order::ZERO { pages } else { (limits.batch >> order.get()).max(2) };
        let room = self.high.saturating_sub(count + 1) >> order.get();
        (blocks - 1).min(room)
    }

    /// How many pages to give back now that the limit is reached: about what was freed since the last exchange. While
    /// the zone is short, the limit falls as well.
    pub(super) fn plan_drain(&mut self, limits: PcpLimits, count: u64, plenty: bool) -> u64 {
        self.doublings /= 2;
        let freed = count.saturating_sub(self.settled).min(limits.batch << MAX_DOUBLINGS);
        let most = self.high.saturating_sub(limits.batch).max(limits.batch);
        if !plenty {
            self.high = self.high.saturating_sub(limits.batch).max(limits.high_min);
        }
        freed.clamp(limits.batch, most).min(count)
    }

    /// Notes how many pages there are after an exchange with the zone.
    pub(super) fn settle(&mut self, count: u64) {
        self.settled = count;
    }

    /// Takes blocks of `quota` pages or a little more, the oldest of `from` first, then of the lists after it in turn.
    /// `give` hears of each.
    pub(super) fn drain(&mut self, frames: &FrameTable, from: usize, quota: u64, mut give: impl FnMut(Pfn, Order)) {
        let mut given = 0;
        for list in (from..NR_PCP_LISTS).chain(0..from) {
            while given < quota {
                let Some(first) = self.pop_oldest(frames, list) else { break };
                let order = frames.order(first);
                given += order.pages();
                give(first, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use crate::testing::carve;
    use std::vec::Vec;

    #[test]
    fn the_batch_is_that_of_linux() {
        for (managed, batch) in
            [(0, 1), (8192, 1), (12288, 3), (32768, 7), (65536, 15), (131_072, 31), (262_144, 63), (1 << 32, 63)]
        {
            assert_eq!(batch_of(managed), batch, "{managed} pages");
        }
    }

    #[test]
    fn the_limits_divide_the_zone_among_the_cpus_and_never_fall_below_four_batches() {
        let limits = |managed, low, cpus| {
            let PcpLimits { batch, high_min, high_max } = PcpLimits::new(managed, low, cpus);
            (batch, high_min, high_max)
        };
        assert_eq!(limits(1 << 18, 1286, 4), (63, 321, 8192));
        assert_eq!(limits(1 << 18, 1286, 64), (63, 252, 512));
        assert_eq!(limits(16, 0, 1), (1, 4, 4));
    }

    #[test]
    fn every_list_has_the_shape_that_leads_to_it() {
        let pageblock = Order::new(9).unwrap();
        for list in 0..NR_PCP_LISTS {
            let (order, migrate) = list_shape(list, pageblock);
            let migrate = migrate.unwrap_or(MigrateType::Unmovable);
            assert_eq!(list_index(order, migrate, pageblock), Some(list));
        }
        for order in (4..=10).filter(|&order| order != 9) {
            assert_eq!(list_index(Order::new(order).unwrap(), MigrateType::Movable, pageblock), None);
        }
        assert_eq!(list_index(Order::ZERO, MigrateType::Isolate, pageblock), None);
        assert_eq!(list_index(Order::ZERO, MigrateType::Cma, pageblock), Some(MigrateType::Movable.index()));
    }

    fn lists() -> (FrameTable, PcpLists) {
        let frames = carve(&Geometry::flat(64), FrameTable::carve);
        (frames, PcpLists::new(PcpLimits::new(64, 0, 1)))
    }

    #[test]
    fn a_drain_takes_the_oldest_of_the_given_list_first_and_then_goes_round() {
        let (frames, mut lists) = lists();
        (0..20).for_each(|n| lists.push(&frames, 1, Pfn::new(n)));
        lists.push(&frames, 2, Pfn::new(30));
        lists.push(&frames, 0, Pfn::new(40));
        let mut given = Vec::new();
        lists.drain(&frames, 1, 18, |pfn, _| given.push(pfn.as_u32()));
        assert_eq!(given, (0..18).collect::<Vec<_>>());
        lists.drain(&frames, 1, u64::MAX, |pfn, _| given.push(pfn.as_u32()));
        assert_eq!(given[18..], [18, 19, 30, 40]);
    }

    #[test]
    fn refills_double_up_to_a_limit_and_drains_calm_them_down() {
        let limits = PcpLimits { batch: 8, high_min: 1000, high_max: 1000 };
        let (_, mut lists) = lists();
        lists.high = 1000;
        let ahead: Vec<u64> = (0..7).map(|_| lists.plan_refill(limits, Order::ZERO, 0, true)).collect();
        assert_eq!(ahead, [7, 15, 31, 63, 127, 255, 255]);
        assert_eq!(lists.plan_drain(limits, 1000, true), 256, "at most 32 batches");
        assert_eq!(lists.plan_refill(limits, Order::ZERO, 0, true), 31);
        assert_eq!(lists.plan_refill(limits, Order::new(2).unwrap(), 0, true), 1);
        assert_eq!(lists.plan_refill(limits, Order::new(9).unwrap(), 900, true), 0, "no room for another");
    }

    #[test]
    fn the_limit_rises_while_the_zone_has_plenty_and_falls_while_it_is_short() {
        let limits = PcpLimits { batch: 8, high_min: 32, high_max: 100 };
        let (_, mut lists) = lists();
        lists.high = 32;
        for _ in 0..9 {
            lists.plan_refill(limits, Order::new(1).unwrap(), 0, true);
        }
        assert_eq!(lists.high, 100);
        lists.plan_refill(limits, Order::new(1).unwrap(), 0, false);
        assert_eq!(lists.high, 100);
        for _ in 0..12 {
            lists.plan_drain(limits, 50, false);
        }
        assert_eq!(lists.high, 32);
    }
}
