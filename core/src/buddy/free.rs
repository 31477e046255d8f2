//! The way of a block from its owner back to a zone.

use super::PageAllocator;
use super::migrate::PCP_TYPES;
use super::pcp::{HOT_MAX, HotPages, PcpLists, PerCpuPages, list_index};
use super::usage::OwnerClass;
use super::zone::Zone;
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{CpuId, Event, Platform};
use crate::sync::count_shared;

/// The most pages in all arrays of a CPU for a zone.
const MOST_HOT: u64 = (HOT_MAX * PCP_TYPES) as u64;

impl<P: Platform> PageAllocator<P> {
    /// Gives back a block that the caller has verified to be one, of this order.
    #[inline]
    pub(crate) fn free_block(&self, first: Pfn, order: Order) {
        self.free_slow(first, order, self.base.frames.kind(first));
    }

    /// Puts a single page into the array of this CPU that its kind byte names; `false` if it is no such page, or if there is
    /// no room or the array is in use.
    #[inline(always)]
    pub(super) fn free_page_fast(&self, pfn: Pfn) -> bool {
        let Some(kind) = self.base.frames.kind_ref(pfn) else { return false };
        let Some(hot) = self.hot.get(self.base.platform.cpu(), kind.home()) else { return false };
        hot.put(pfn, P::STATISTICS, || kind.set(FrameKind::Pcp))
    }

    /// Passes a block that is in use on to another owner: the kind of all its frames, and the ledger.
    pub(crate) fn change_owner(&self, first: Pfn, order: Order, kind: FrameKind) {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) else { return };
        if let Some(pcp) = self.pcp(self.base.cpu(), usize::from(zone.index)) {
            count_shared(&pcp.slow_frees, P::STATISTICS);
        }
        let before = self.base.frames.kind(first);
        self.locked(zone, |_| {
            zone.ledger.take_back(before, order.pages());
            zone.ledger.hand_out(kind, order.pages());
        });
        self.base.frames.set_block_kind(first, order, kind);
    }

    #[cold]
    #[inline(never)]
    pub(super) fn free_slow(&self, first: Pfn, order: Order, kind: FrameKind) {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) else { return };
        if !self.passes_free_checks(first, order, kind) {
            return;
        }
        if !self.free_to_lists(zone, first, order, kind) {
            self.free_past_lists(zone, first, order, kind);
        }
    }

    #[inline(never)]
    fn free_past_lists(&self, zone: &Zone, first: Pfn, order: Order, kind: FrameKind) {
        self.locked(zone, |locked| {
            zone.ledger.take_back(kind, order.pages());
            locked.free(first, order);
        });
    }

    /// Puts a block on this CPU's lists and gives back what is too much; `false` if they do not keep such blocks.
    fn free_to_lists(&self, zone: &Zone, first: Pfn, order: Order, kind: FrameKind) -> bool {
        let migrate = self.blocks.get(zone.block_base, first);
        let list = list_index(order, migrate, self.blocks.order);
        let cpu = self.base.cpu();
        let pcp = self.pcp(cpu, usize::from(zone.index));
        let (Some(list), Some(parked), Some(pcp)) = (list, migrate.parked(), pcp) else { return false };
        let Some(mut lists) = pcp.cell.try_local() else { return false };
        if order.pages() > lists.high {
            // It would be the first to go again.
            return false;
        }
        self.park(first, order, parked);
        pcp.take_back(kind, order.pages());
        match self.hot(cpu, usize::from(zone.index), list).filter(|_| order == Order::ZERO) {
            Some(hot) => self.push_hot(hot, pcp, &mut lists, list, first),
            None => lists.push(&self.base.frames, list, first),
        }
        // The arrays hold a few pages only: mostly there is no need to count them.
        if pcp.pages() + MOST_HOT >= lists.high && self.pcp_pages(cpu, usize::from(zone.index)) >= lists.high {
            let quota = lists.plan_drain(zone.pcp, pcp.pages(), zone.has_plenty());
            self.drain(zone, pcp, &mut lists, list, quota);
        }
        true
    }

    /// Makes a page the newest of its type: the array takes it, and gives its older half to the list if it is full.
    fn push_hot(&self, hot: &HotPages, pcp: &PerCpuPages, lists: &mut PcpLists, list: usize, first: Pfn) {
        let frames = &self.base.frames;
        let moved = hot.with(&self.base.platform, true, |pages| {
            let before = u64::from(pages.len());
            if before >= hot.limit().into() {
                pages.take_oldest(pages.len().div_ceil(2), |pfn| lists.push(frames, list, pfn));
            }
            pages.push(hot.limit(), first);
            u64::from(pages.len()).wrapping_sub(before)
        });
        match moved {
            Some(more) => pcp.ledger.sub(OwnerClass::Pcp, more),
            None => lists.push(frames, list, first),
        }
    }

    /// Gives `quota` pages of a CPU's lists back to the zone, beginning with the list `from`; returns how many it was.
    #[inline(never)]
    fn drain(&self, zone: &Zone, pcp: &PerCpuPages, lists: &mut PcpLists, from: usize, quota: u64) -> u64 {
        let before = pcp.pages();
        self.locked(zone, |locked| {
            lists.drain(&self.base.frames, from, quota, |first, order| {
                pcp.ledger.sub(OwnerClass::Pcp, order.pages());
                locked.free(first, order);
            });
        });
        lists.settle(pcp.pages());
        self.base.event(Event::PcpDrain);
        before - pcp.pages()
    }

    /// Gives all pages that any CPU keeps back to their zones; returns how many it was. A CPU whose lists are in use by
    /// somebody else is left out.
    pub(crate) fn drain_all_pages(&self) -> u64 {
        (0..self.base.geometry.cpus).map(|cpu| self.drain_cpu(CpuId::new(cpu))).sum()
    }

    fn drain_cpu(&self, cpu: CpuId) -> u64 {
        let drain_zone = |zone: &Zone| {
            let pcp = self.pcp(cpu, usize::from(zone.index))?;
            let listed = pcp.pages() > 0;
            let lists = || self.with_lists(pcp, cpu, |lists| self.drain(zone, pcp, lists, 0, u64::MAX));
            Some(self.drain_hot(zone, cpu) + if listed { lists()? } else { 0 })
        };
        self.zones.iter().filter_map(drain_zone).sum()
    }

    /// Gives the pages in a CPU's arrays back to their zone; returns how many it was.
    fn drain_hot(&self, zone: &Zone, cpu: CpuId) -> u64 {
        let arrays = (0..PCP_TYPES).filter_map(|migrate| self.hot(cpu, usize::from(zone.index), migrate));
        let drain_array = |hot: &HotPages| {
            hot.with(&self.base.platform, cpu == self.base.cpu(), |pages| {
                let count = pages.len();
                self.locked(zone, |locked| pages.take_oldest(count, |pfn| locked.free(pfn, Order::ZERO)));
                u64::from(count)
            })
        };
        let drained = arrays.filter(|hot| hot.len() > 0).filter_map(drain_array).sum();
        if drained > 0 {
            self.base.event(Event::PcpDrain);
        }
        drained
    }

    /// Borrows any CPU's lists; `None` if somebody else has them.
    pub(super) fn with_lists<R>(
        &self,
        pcp: &PerCpuPages,
        cpu: CpuId,
        body: impl FnOnce(&mut PcpLists) -> R,
    ) -> Option<R> {
        if cpu == self.base.cpu() {
            pcp.cell.try_local().map(|mut lists| body(&mut lists))
        } else {
            pcp.cell.try_remote(&self.base.platform, false).map(|mut lists| body(&mut lists))
        }
    }
}
