//! The way of a block from its owner back to a zone.

use super::PageAllocator;
use super::pcp::{PcpLists, PerCpuPages, list_index};
use super::usage::OwnerClass;
use super::zone::Zone;
use crate::addr::Pfn;
use crate::order::Order;
use crate::page::{FrameKind, FrameRef};
use crate::platform::{CpuId, Event, Platform};

impl<P: Platform> PageAllocator<P> {
    /// Gives back a block that the caller has verified to be one, of this order.
    #[inline(always)]
    pub(crate) fn free_block(&self, first: Pfn, order: Order) {
        let Some(frame) = self.base.frames.frame(first) else { return };
        self.free_frame(frame, first, order, self.base.frames.kind(first));
    }

    /// Gives back a block whose first frame has been looked up and has this kind.
    #[inline(always)]
    pub(super) fn free_frame(&self, frame: FrameRef<'_>, first: Pfn, order: Order, kind: FrameKind) {
        if order != Order::ZERO || !self.free_page_fast(frame, first, kind) {
            self.free_slow(first, order, kind);
        }
    }

    /// Puts a page into this CPU's array; `false` if that is full, the CPU has too many pages, or the cell is in use.
    #[inline(always)]
    fn free_page_fast(&self, frame: FrameRef<'_>, pfn: Pfn, kind: FrameKind) -> bool {
        let Some(pcp) = self.pcp_here(usize::from(frame.zone())) else { return false };
        let Some(mut lists) = pcp.cell.try_local() else { return false };
        // The pageblock may have changed its type since the page was allocated.
        let migrate = self.blocks.get_byte(pcp.block_base, pfn);
        if pcp.pages() + 1 >= lists.high || !lists.push_hot(migrate, pfn) {
            return false;
        }
        pcp.take_back(kind, 1);
        frame.park(FrameKind::Pcp, migrate);
        true
    }

    /// Passes a block that is in use on to another owner: the kind of all its frames, and the ledger.
    pub(crate) fn change_owner(&self, first: Pfn, order: Order, kind: FrameKind) {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) else { return };
        let before = self.base.frames.kind(first);
        self.locked(zone, |_| {
            zone.ledger.take_back(before, order.pages());
            zone.ledger.hand_out(kind, order.pages());
        });
        self.base.frames.set_block_kind(first, order, kind);
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&self, first: Pfn, order: Order, kind: FrameKind) {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) else { return };
        if !self.free_to_lists(zone, first, order, kind) {
            self.locked(zone, |locked| {
                zone.ledger.take_back(kind, order.pages());
                locked.free(first, order);
            });
        }
    }

    /// Puts a block on this CPU's lists and gives back what is too much; `false` if they do not keep such blocks.
    fn free_to_lists(&self, zone: &Zone, first: Pfn, order: Order, kind: FrameKind) -> bool {
        let migrate = self.blocks.get(zone.block_base, first);
        let list = list_index(order, migrate, self.blocks.order);
        let pcp = self.pcp(self.base.cpu(), usize::from(zone.index));
        let (Some(list), Some(parked), Some(pcp)) = (list, migrate.parked(), pcp) else { return false };
        let Some(mut lists) = pcp.cell.try_local() else { return false };
        if order.pages() > lists.high {
            // It would be the first to go again.
            return false;
        }
        self.park(first, order, parked);
        lists.push(&self.base.frames, list, first);
        pcp.take_back(kind, order.pages());
        if pcp.pages() >= lists.high {
            let quota = lists.plan_drain(zone.pcp, pcp.pages(), zone.has_plenty());
            self.drain(zone, pcp, &mut lists, list, quota);
        }
        true
    }

    /// Gives `quota` pages of a CPU's lists back to the zone, beginning with the list `from`; returns how many it was.
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
            let pcp = self.pcp(cpu, usize::from(zone.index)).filter(|pcp| pcp.pages() > 0)?;
            self.with_lists(pcp, cpu, |lists| self.drain(zone, pcp, lists, 0, u64::MAX))
        };
        self.zones.iter().filter_map(drain_zone).sum()
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
