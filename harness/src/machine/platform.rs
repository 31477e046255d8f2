//! The machine as the allocator sees it.

use super::SimMachine;
use kmem::{CpuId, Event, FaultSite, Order, Pfn, PhysMem, Platform, Vpn, Warning};
use std::rc::Rc;

/// A handle on a [`SimMachine`], as the port that `kmem` asks for.
pub struct SimPlatform {
    machine: Rc<SimMachine>,
}

impl SimPlatform {
    /// Plugs an allocator into the machine.
    pub fn new(machine: Rc<SimMachine>) -> Self {
        Self { machine }
    }
}

impl Platform for SimPlatform {
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

    fn set_page_table(&self, root: Pfn) {
        self.machine.root.set(Some(root));
    }

    fn report_free(&self, first: Pfn, order: Order) -> bool {
        self.machine.report_free(first, order)
    }

    fn migrate(&self, from: Pfn, to: Pfn, order: Order) -> bool {
        self.machine.migrate(from, to, order)
    }

    #[inline(always)]
    fn fault(&self, site: FaultSite) -> bool {
        self.machine.faults.ask(site)
    }

    fn warn(&self, warning: Warning) {
        self.machine.hear(warning);
    }

    #[inline(always)]
    fn event(&self, event: Event) {
        self.machine.count(event);
    }
}
