//! `kmem` on the simulated machine.

mod moving;
mod window;

use super::objects::Sheaves;
use super::{Guest, Spare};
use crate::machine::{Evicted, LeafRun, Nested, Remembered, RememberedTable, SimMachine, SimPlatform, TlbFlushes};
use crate::model::RcuCall;
use crate::model::caches::CacheSpec;
use crate::oracle::CONSTRUCTED;
use crate::subject::{AccessFault, AreaCall, Call, Moved, Near, Reply, Strength, Subject, WhiteBox};
use kmem::{
    AllocError, BuddyInfo, CacheArgs, CacheError, CacheId, CacheInfo, CtorObject, Event, FailCaches, FailPageAlloc,
    FailSlab, FaultAttr, FrameKind, FreeError, Geometry, GeometryError, GfpFlags, Kmem, MemInfo, Order, PageOwner, Pfn,
    Violation, VirtAddr, VmFlags, VmallocArgs, VmallocEntry, Vpn, Warning,
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
    caches_made: u32,
    slots: Vec<Option<Pfn>>,
    sheaves: Sheaves,
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
            caches_made: 0,
            slots: Vec::new(),
            sheaves: Sheaves::default(),
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

    fn block(&self, answer: Result<VirtAddr, AllocError>) -> Reply {
        match answer {
            Ok(addr) => Reply::Block { addr: addr.as_u64(), usable: self.kmem.kvsize(addr).unwrap_or(0) },
            Err(error) => Reply::Refused(error),
        }
    }

    fn page_block(&self, answer: Result<Pfn, AllocError>, usable: usize) -> Reply {
        match answer {
            Ok(first) => Reply::Block { addr: self.kmem.page_address(first).as_u64(), usable },
            Err(error) => Reply::Refused(error),
        }
    }

    fn alloc_pages(&self, order: u8, alloc: impl FnOnce(Order) -> Result<Pfn, AllocError>) -> Reply {
        match Order::new(order) {
            Some(order) => self.page_block(alloc(order), order.bytes()),
            None => Reply::Refused(AllocError::OrderTooLarge { max: self.kmem.geometry().max_order }),
        }
    }

    fn alloc_pages_exact(&self, size: usize, gfp: GfpFlags) -> Reply {
        let usable = size.checked_next_multiple_of(kmem::PAGE_SIZE).unwrap_or(0);
        self.page_block(self.kmem.alloc_pages_exact(size, gfp), usable)
    }

    fn alloc_pages_bulk(&mut self, count: usize, gfp: GfpFlags) -> Reply {
        self.slots.clear();
        self.slots.resize(count, None);
        self.kmem.alloc_pages_bulk(gfp, &mut self.slots);
        let addresses = self.slots.iter().flatten().map(|&frame| self.kmem.page_address(frame).as_u64());
        Reply::Pages(addresses.collect())
    }

    fn free_pages(&self, addr: u64, free: impl FnOnce(Pfn) -> Result<(), FreeError>) -> Reply {
        let addr = VirtAddr::new(addr);
        done(self.kmem.virt_to_pfn(addr).map_or(Err(FreeError::Foreign(addr)), free))
    }

    fn cache_create(&mut self, spec: &CacheSpec) -> Reply {
        let &CacheSpec { name, size, align, flags, ctor, useroffset, usersize, freeptr_offset, sheaf_capacity } = spec;
        let ctor = ctor.then_some(construct as kmem::Ctor);
        let args = CacheArgs { size, align, flags, ctor, useroffset, usersize, freeptr_offset, sheaf_capacity };
        let name = name.text(u64::from(self.caches_made));
        self.caches_made += 1;
        match self.kmem.kmem_cache_create(&name, &args) {
            Ok(cache) => Reply::Cache(cache),
            Err(error) => Reply::CacheRefused(error),
        }
    }

    fn validate(&self) -> usize {
        let mut caches = Vec::new();
        self.kmem.slabinfo(|cache| caches.push(cache.id));
        let found = |&cache: &CacheId| self.kmem.kmem_cache_validate(cache).map_or(0, |found| found as usize);
        caches.iter().map(found).sum()
    }

    fn pages_call(&mut self, call: &Call) -> Option<Reply> {
        Some(match *call {
            Call::AllocPages { order, gfp } => self.alloc_pages(order, |order| self.kmem.alloc_pages(order, gfp)),
            Call::AllocPagesNode { order, gfp, node } => {
                self.alloc_pages(order, |order| self.kmem.alloc_pages_node(order, gfp, node))
            }
            Call::AllocPagesExact { size, gfp } => self.alloc_pages_exact(size, gfp),
            Call::AllocPagesBulk { count, gfp } => self.alloc_pages_bulk(count, gfp),
            Call::FreePages { addr, order } => match Order::new(order) {
                Some(order) => self.free_pages(addr, |first| self.kmem.free_pages(first, order)),
                None => Reply::Unsupported,
            },
            Call::FreePagesExact { addr, size } => {
                self.free_pages(addr, |first| self.kmem.free_pages_exact(first, size))
            }
            _ => return None,
        })
    }

    fn references_call(&self, call: &Call) -> Option<Reply> {
        let count = |addr: u64, act: &dyn Fn(Pfn) -> Result<u32, FreeError>| {
            let addr = VirtAddr::new(addr);
            match self.kmem.virt_to_pfn(addr).map_or(Err(FreeError::Foreign(addr)), act) {
                Ok(left) => Reply::Size(left as usize),
                Err(error) => Reply::Rejected(error),
            }
        };
        Some(match *call {
            Call::GetPage { addr } => count(addr, &|page| self.kmem.get_page(page)),
            Call::PutPage { addr } => count(addr, &|page| self.kmem.put_page(page)),
            _ => return None,
        })
    }

    fn slab_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = &self.kmem;
        Some(match *call {
            Call::Kmalloc { size, gfp } => self.block(kmem.kmalloc(size, gfp)),
            Call::Kfree { addr } => done(kmem.kfree(VirtAddr::new(addr))),
            Call::KmallocArray { n, size, gfp } => self.block(kmem.kmalloc_array(n, size, gfp)),
            Call::Krealloc { addr, size, gfp } => self.block(kmem.krealloc(VirtAddr::new(addr), size, gfp)),
            Call::KfreeSensitive { addr } => done(kmem.kfree_sensitive(VirtAddr::new(addr))),
            Call::Ksize { addr } => match kmem.ksize(VirtAddr::new(addr)) {
                Ok(bytes) => Reply::Size(bytes),
                Err(error) => Reply::Rejected(error),
            },
            Call::KmallocSizeRoundup { size } => Reply::Size(kmem.kmalloc_size_roundup(size)),
            _ => return None,
        })
    }

    fn cache_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = &self.kmem;
        Some(match *call {
            Call::CacheAlloc { cache, gfp } => self.block(kmem.kmem_cache_alloc(cache, gfp)),
            Call::CacheFree { cache, addr } => done(kmem.kmem_cache_free(cache, VirtAddr::new(addr))),
            Call::CacheCreate { spec } => self.cache_create(&spec),
            Call::Validate => Reply::Size(self.validate()),
            Call::CacheShrink { cache } => shrunk(kmem.kmem_cache_shrink(cache)),
            Call::CacheDestroy { cache } => destroyed(kmem, cache),
            _ => return None,
        })
    }

    fn vmalloc_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = &self.kmem;
        Some(match call {
            &Call::Vmalloc { size, gfp } => self.block(kmem.vmalloc(size, gfp)),
            Call::VmallocRange(call) => self.block(kmem.vmalloc_node_range(&area_args(call))),
            &Call::Vfree { addr } => done(kmem.vfree(VirtAddr::new(addr))),
            &Call::Vrealloc { addr, size, gfp, near: Near::ANY } => {
                self.block(kmem.vrealloc(VirtAddr::new(addr), size, gfp))
            }
            &Call::Vrealloc { addr, size, gfp, near } => {
                self.block(kmem.vrealloc_node_align(VirtAddr::new(addr), size, near.align, gfp, near.node))
            }
            Call::Vmap { pfns } => self.vmap(pfns, VmFlags::empty(), GfpFlags::KERNEL),
            &Call::Vunmap { addr } => done(kmem.vunmap(VirtAddr::new(addr))),
            &Call::VmallocToPage { addr } => Reply::Frame(kmem.vmalloc_to_page(VirtAddr::new(addr)).map(Pfn::as_u32)),
            _ => return None,
        })
    }

    fn kvmalloc_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = &self.kmem;
        Some(match *call {
            Call::Kvmalloc { size, gfp } => self.block(kmem.kvmalloc(size, gfp)),
            Call::KvmallocNode { size, align, gfp, node } => {
                self.block(kmem.kvmalloc_node_align(size, align, gfp, node))
            }
            Call::KvmallocArray { n, size, gfp } => self.block(kmem.kvmalloc_array(n, size, gfp)),
            Call::Kvrealloc { addr, size, gfp } => self.block(kmem.kvrealloc(VirtAddr::new(addr), size, gfp)),
            Call::Kvfree { addr } => done(kmem.kvfree(VirtAddr::new(addr))),
            Call::KvfreeSensitive { addr, len } => done(kmem.kvfree_sensitive(VirtAddr::new(addr), len)),
            _ => return None,
        })
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
            Call::Objects(ref call) => return Some(self.sheaves.call(&self.kmem, call)),
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

/// The constructor of test caches: what the oracles expect to find in an object that was handed out.
fn construct(object: &mut CtorObject<'_>) {
    for offset in (0..object.len()).step_by(CONSTRUCTED.len()) {
        let bytes = &CONSTRUCTED[..CONSTRUCTED.len().min(object.len() - offset)];
        let written = object.write(offset, bytes);
        debug_assert!(written, "the offset is inside the object");
    }
}

fn area_args(call: &AreaCall) -> VmallocArgs {
    let &AreaCall { size, align, within, gfp, node, guard, huge } = call;
    let mut flags = VmFlags::empty();
    flags.set(VmFlags::NO_GUARD, !guard);
    flags.set(VmFlags::ALLOW_HUGE_VMAP, huge);
    let anywhere = VmallocArgs::new(size, gfp);
    let range = within.map_or(anywhere.range, |(first, end)| (Vpn::new(first).addr(), Vpn::new(end).addr()));
    VmallocArgs { align, range, flags, node, ..anywhere }
}

fn done(answer: Result<(), FreeError>) -> Reply {
    match answer {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Rejected(error),
    }
}

/// As in Linux: 0 if no slab is left, else 1.
fn shrunk(answer: Result<bool, CacheError>) -> Reply {
    match answer {
        Ok(all_released) => Reply::Size(usize::from(!all_released)),
        Err(error) => Reply::CacheRefused(error),
    }
}

fn destroyed(kmem: &Kmem<SimPlatform>, cache: CacheId) -> Reply {
    let mut named = Vec::new();
    match kmem.kmem_cache_destroy_with(cache, |object| named.push(object.addr.as_u64())) {
        Ok(what) => Reply::Destroyed { what, named },
        Err(error) => Reply::CacheRefused(error),
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
            .slab_call(call)
            .or_else(|| self.pages_call(call))
            .or_else(|| self.references_call(call))
            .or_else(|| self.kvmalloc_call(call))
            .or_else(|| self.vmalloc_call(call))
            .or_else(|| self.cache_call(call))
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
