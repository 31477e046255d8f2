//! The machine as the allocator sees it.

use super::SimMachine;
use kmem::{
    CpuId, Event, FaultPoint, FaultSite, Order, Pfn, PhysMem, Platform, RcuCookie, Shortage, SlabBug, Vpn, Warning,
};
use std::rc::Rc;

/// A handle on a [`SimMachine`], as the port that `kmem` asks for; `STATISTICS` says whether the allocator counts its paths.
pub struct SimPlatform<const STATISTICS: bool = false> {
    machine: Rc<SimMachine>,
}

impl<const STATISTICS: bool> SimPlatform<STATISTICS> {
    /// Plugs an allocator into the machine.
    pub fn new(machine: Rc<SimMachine>) -> Self {
        Self { machine }
    }
}

impl<const STATISTICS: bool> Platform for SimPlatform<STATISTICS> {
    const STATISTICS: bool = STATISTICS;

    fn memory(&self) -> &PhysMem {
        &self.machine.memory
    }

    #[inline(always)]
    fn cpu(&self) -> CpuId {
        CpuId::new(self.machine.cpu())
    }

    fn flush_tlb(&self, start: Vpn, pages: u64) {
        self.machine.flush_tlb(start, pages);
    }

    fn set_direct_map_invalid(&self, frame: Pfn) {
        self.machine.aliases.invalidate(frame);
    }

    fn set_direct_map_default(&self, frame: Pfn) {
        self.machine.set_direct_map_default(frame);
    }

    fn set_page_table(&self, root: Pfn) {
        self.machine.root.set(Some(root));
    }

    fn report_free(&self, first: Pfn, order: Order) -> bool {
        self.machine.report_free(first, order)
    }

    fn migrate(&self, from: Pfn, to: Pfn, order: Order) -> bool {
        self.machine.migrate(from, to, order)
    }

    fn page_moved(&self, page: Vpn, from: Pfn, to: Pfn) {
        self.machine.page_moved(page, from, to);
    }

    fn reclaim(&self, shortage: &Shortage) -> u64 {
        self.machine.reclaim(shortage)
    }

    fn rcu_cookie(&self) -> RcuCookie {
        RcuCookie(self.machine.readers.cookie())
    }

    fn rcu_done(&self, cookie: RcuCookie) -> bool {
        self.machine.readers.is_done(cookie.0)
    }

    fn synchronize_rcu(&self) {
        self.machine.readers.synchronize();
    }

    #[inline(always)]
    fn fault(&self, site: FaultSite) -> bool {
        if site.point == FaultPoint::PageTable {
            // In the middle of a mapping: what is there already may be used and remembered.
            self.machine.speculate_everywhere();
        }
        self.machine.faults.ask(site)
    }

    fn warn(&self, warning: Warning) {
        self.machine.hear(warning);
    }

    fn slab_bug(&self, bug: &SlabBug) {
        self.machine.hear_slab_bug(bug);
    }

    #[inline(always)]
    fn event(&self, event: Event) {
        self.machine.count(event);
    }
}
