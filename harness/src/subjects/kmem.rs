//! `kmem` on the simulated machine.

mod moving;
mod window;

use super::calls::{Kept, done};
use super::{Guest, Spare};
use crate::machine::{Evicted, LeafRun, Nested, Remembered, RememberedTable, SimMachine, SimPlatform, TlbFlushes};
use crate::model::RcuCall;
use crate::subject::{AccessFault, Call, Moved, Reply, Strength, Subject, WhiteBox};
use kmem::{
    BuddyInfo, CacheInfo, Event, FailCaches, FailPageAlloc, FailSlab, FaultAttr, FrameKind, Geometry, GeometryError,
    Kmem, MemInfo, Order, PageOwner, Pfn, Violation, VirtAddr, VmallocEntry, Warning,
};
use std::cell::RefCell;
use std::rc::Rc;

/// The allocator under test and the machine it runs on.
pub struct KmemSubject {
    kmem: Rc<Kmem<SimPlatform>>,
    machine: Rc<SimMachine>,
    /// What the last call warned of.
    warnings: Vec<Warning>,
    /// What the last call asked of other layers and of the machine.
    nested: Nested,
    /// What `vmallocinfo` shows since the last call, once somebody has asked.
    areas: RefCell<Option<Vec<VmallocEntry>>>,
    kept: Kept,
    frames: Vec<Pfn>,
}

impl KmemSubject {
    /// Boots the allocator, in memory that another subject left.
    ///
    /// # Errors
    ///
    /// The geometry cannot be used.
    pub fn new(geometry: &Geometry, spare: Spare, flushes: TlbFlushes) -> Result<Self, GeometryError> {
        let bytes = Kmem::<SimPlatform>::metadata_bytes(geometry)?;
        let (mut machine, region) = spare.into_parts(geometry, bytes);
        machine.set_flushes(flushes);
        let machine = Rc::new(machine);
        let kmem = Rc::new(Kmem::new(SimPlatform::new(Rc::clone(&machine)), geometry, region)?);
        machine.givers().set_allocator(Rc::downgrade(&kmem));
        Ok(Self {
            kmem,
            machine,
            warnings: Vec::new(),
            nested: Nested::default(),
            areas: RefCell::default(),
            kept: Kept::default(),
            frames: Vec::new(),
        })
    }

    /// Boots the allocator on a machine without mistakes.
    pub(super) fn build(geometry: &Geometry, spare: Spare) -> Result<Box<dyn Guest>, GeometryError> {
        Ok(Box::new(Self::new(geometry, spare, TlbFlushes::Obeyed)?))
    }

    /// The allocator itself.
    pub fn kmem(&self) -> &Kmem<SimPlatform> {
        // Whoever has it may change it.
        self.areas.take();
        &self.kmem
    }

    fn rcu_call(&self, call: &RcuCall) -> Reply {
        let (kmem, readers) = (&self.kmem, self.machine.readers());
        match *call {
            RcuCall::Kfree { addr, head } => return done(kmem.kfree_rcu(VirtAddr::new(addr), head)),
            RcuCall::Kvfree { addr, head } => return done(kmem.kvfree_rcu(VirtAddr::new(addr), head)),
            RcuCall::KvfreeMightsleep { addr } => return done(kmem.kvfree_rcu_mightsleep(VirtAddr::new(addr))),
            RcuCall::Monitor => kmem.kfree_rcu_monitor(),
            RcuCall::Barrier => kmem.kvfree_rcu_barrier(),
            RcuCall::ReadLock => readers.enter(),
            RcuCall::ReadUnlock { n } => readers.leave(n),
            RcuCall::GracePeriod => readers.end_grace_periods(),
        }
        Reply::Done
    }

    fn machine_call(&mut self, call: &Call) -> Option<Reply> {
        match *call {
            Call::DrainPages => self.kmem.drain_all_pages(),
            Call::Purge => self.kmem.vm_unmap_aliases(),
            Call::Reclaim => drop(self.kmem.reclaim()),
            Call::ClaimProgress { times } => self.machine.givers().set_claims(times),
            Call::SetCpu { cpu } => self.machine.set_cpu(cpu),
            Call::Rcu(ref call) => return Some(self.rcu_call(call)),
            Call::FailNth { point, nth } => self.machine.faults().arm(point, nth),
            Call::FailPages { min_order, ignored, interval, times } => {
                let min_order = Order::new(min_order).unwrap_or(Order::MAX);
                let attr = FaultAttr::every(interval, times);
                self.machine.faults().filter_pages(FailPageAlloc { attr, min_order, ignored });
            }
            Call::FailSlabs { cache, ignored, interval, times } => {
                let caches = if cache.is_some() { FailCaches::NONE_MARKED } else { FailCaches::All };
                let mut filter = FailSlab { attr: FaultAttr::every(interval, times), ignored, caches };
                cache.into_iter().for_each(|cache| filter.mark(cache));
                self.machine.faults().filter_slabs(filter);
            }
            _ => return None,
        }
        Some(Reply::Done)
    }
}

impl Subject for KmemSubject {
    fn name(&self) -> &str {
        "kmem"
    }

    fn strength(&self) -> Strength {
        Strength::Tight
    }

    fn begin_step(&mut self) {
        self.warnings.clear();
        self.nested.clear();
        self.machine.record_nested();
    }

    fn call(&mut self, call: &Call) -> Reply {
        self.areas.take();
        let reply = self
            .kept
            .call(&self.kmem, call)
            .or_else(|| self.moving_call(call))
            .or_else(|| self.window_call(call))
            .or_else(|| self.machine_call(call));
        if let Some(reply) = &reply {
            self.follow_owners(call, reply);
        }
        self.machine.take_warnings(&mut self.warnings);
        self.machine.take_nested(&mut self.nested);
        reply.unwrap_or(Reply::Unsupported)
    }

    fn take_moved(&mut self) -> Vec<Moved> {
        self.machine.owners().take_moved(self.kmem.geometry().direct_map.as_u64())
    }

    fn set_evictable(&mut self, blocks: &[(u64, u8)]) {
        let block =
            |&(addr, order): &(u64, u8)| Some((self.kmem.virt_to_pfn(VirtAddr::new(addr))?, Order::new(order)?));
        self.machine.givers().set_evictable(blocks.iter().filter_map(block));
    }

    fn take_evicted(&mut self) -> Vec<(u64, usize)> {
        let address = |evicted: Evicted| (self.kmem.page_address(evicted.first).as_u64(), evicted.after_moves);
        self.machine.givers().take_evicted().into_iter().map(address).collect()
    }

    fn take_lent(&mut self) -> Vec<(u64, u8)> {
        self.machine.take_lent()
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        self.machine.read(addr, into)
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        self.machine.write(addr, from)
    }

    fn translate(&self, addr: u64) -> Option<u64> {
        self.machine.translate(addr)
    }

    fn leaf_order(&self, addr: u64) -> u8 {
        self.machine.leaf_order(addr)
    }

    fn leaf_runs(&self) -> Vec<LeafRun> {
        self.machine.leaf_runs()
    }

    fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        self.machine.tlb_lookup(addr)
    }

    fn speculate(&mut self, addr: u64, pages: usize) {
        self.machine.speculate(addr, pages);
    }

    fn remembered(&self, addr: u64) -> Vec<u64> {
        self.machine.remembered(addr)
    }

    fn stale(&self) -> Vec<Remembered> {
        self.machine.stale()
    }

    fn remembered_tables(&self) -> Vec<RememberedTable> {
        self.machine.remembered_tables()
    }

    fn take_early_reuse(&mut self) -> Option<String> {
        self.machine.take_early_reuse()
    }

    fn white_box(&self) -> Option<&dyn WhiteBox> {
        Some(self)
    }
}

impl WhiteBox for KmemSubject {
    fn geometry(&self) -> &Geometry {
        self.kmem.geometry()
    }

    fn page_use(&self) -> MemInfo {
        self.kmem.meminfo()
    }

    fn buddyinfo(&self) -> BuddyInfo {
        self.kmem.buddyinfo()
    }

    fn slabinfo(&self) -> Vec<CacheInfo> {
        let mut caches = Vec::new();
        self.kmem.slabinfo(|cache| caches.push(cache));
        caches
    }

    fn vm_area(&self, addr: u64) -> Option<VmallocEntry> {
        self.kmem.find_vm_area(VirtAddr::new(addr)).filter(|area| area.start.as_u64() == addr)
    }

    fn vmallocinfo(&self) -> Vec<VmallocEntry> {
        let read = || {
            let mut areas = Vec::new();
            self.kmem.vmallocinfo(|area| areas.push(area));
            areas
        };
        self.areas.borrow_mut().get_or_insert_with(read).clone()
    }

    fn frame_kind(&self, pfn: u32) -> FrameKind {
        self.kmem.frame_kind(Pfn::new(pfn))
    }

    fn pageblock_type(&self, pfn: u32) -> Option<kmem::MigrateType> {
        self.kmem.pageblock_type(Pfn::new(pfn))
    }

    fn audit(&self) -> Result<(), Violation> {
        self.kmem.audit()
    }

    fn event_count(&self, event: Event) -> u64 {
        self.machine.event_count(event)
    }

    fn pagetypeinfo(&self) -> String {
        self.kmem.pagetypeinfo().to_string()
    }

    fn page_owner(&self) -> Vec<PageOwner> {
        let mut owners = Vec::new();
        self.kmem.page_owner(|owner| owners.push(owner));
        owners
    }

    fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    fn nested(&self) -> &Nested {
        &self.nested
    }

    fn slab_findings(&self) -> u64 {
        self.machine.slab_findings()
    }

    fn faults_struck(&self) -> u64 {
        self.machine.faults().struck()
    }

    fn cpu(&self) -> u16 {
        self.machine.cpu()
    }

    fn flushed(&self) -> u64 {
        self.machine.flushed()
    }

    fn unusual_aliases(&self) -> Vec<u32> {
        self.machine.aliases().unusual()
    }

    fn alias_mistakes(&self) -> Vec<String> {
        self.machine.aliases().mistakes()
    }

    fn grace_periods(&self) -> (u64, u64) {
        self.machine.readers().times()
    }
}

impl Guest for KmemSubject {
    fn into_spare(self: Box<Self>) -> Spare {
        let parts = Rc::into_inner(self.kmem).map(Kmem::into_parts);
        let region = parts.map(|(_, region)| region);
        Spare { region, ..Rc::into_inner(self.machine).map_or_else(Spare::default, Spare::of_machine) }
    }
}
