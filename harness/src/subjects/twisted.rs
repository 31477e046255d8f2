//! `kmem` behind a wrapper that does one thing wrong.

use super::{Guest, KmemSubject, Spare};
use crate::machine::{LeafRun, Remembered, RememberedTable, TlbFlushes};
use crate::subject::{AccessFault, Call, Moved, Reply, Strength, Subject, WhiteBox};
use kmem::{BuddyInfo, CacheInfo, FrameKind, Geometry, GeometryError, MemInfo, Violation, VmallocEntry};

/// A block of pages that a wrapper keeps although it was freed, and calls free in its books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hidden {
    /// Its first frame.
    pub pfn: u32,
    /// log2 of its pages.
    pub order: u8,
}

impl Hidden {
    fn pages(self) -> u64 {
        1 << self.order
    }

    fn contains(self, pfn: u32) -> bool {
        pfn.checked_sub(self.pfn).is_some_and(|distance| u64::from(distance) < self.pages())
    }
}

/// What a wrapper does with calls on their way to `kmem` and with answers on their way back.
pub trait Twist {
    /// The subject's name.
    fn name(&self) -> &'static str;

    /// Answers a call.
    fn call(&mut self, inner: &mut KmemSubject, call: &Call) -> Reply {
        inner.call(call)
    }

    /// What the machine makes of TLB flushes.
    fn flushes(&self) -> TlbFlushes {
        TlbFlushes::Obeyed
    }

    /// The blocks that the wrapper keeps.
    fn hidden(&self) -> &[Hidden] {
        &[]
    }
}

/// `kmem` with a mistake wrapped around it.
pub struct Twisted<T> {
    inner: KmemSubject,
    twist: T,
}

impl<T: Twist + 'static> Twisted<T> {
    /// Boots `kmem` and wraps it.
    ///
    /// # Errors
    ///
    /// The geometry cannot be used.
    pub fn build(geometry: &Geometry, spare: Spare, twist: T) -> Result<Box<dyn Guest>, GeometryError> {
        Ok(Box::new(Self { inner: KmemSubject::new(geometry, spare, twist.flushes())?, twist }))
    }
}

impl<T: Twist> Subject for Twisted<T> {
    fn name(&self) -> &str {
        self.twist.name()
    }

    fn strength(&self) -> Strength {
        Strength::Tight
    }

    fn begin_step(&mut self) {
        self.inner.begin_step();
    }

    fn call(&mut self, call: &Call) -> Reply {
        self.twist.call(&mut self.inner, call)
    }

    fn take_moved(&mut self) -> Vec<Moved> {
        self.inner.take_moved()
    }

    fn set_evictable(&mut self, blocks: &[(u64, u8)]) {
        self.inner.set_evictable(blocks);
    }

    fn take_evicted(&mut self) -> Vec<(u64, usize)> {
        self.inner.take_evicted()
    }

    fn take_lent(&mut self) -> Vec<(u64, u8)> {
        self.inner.take_lent()
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        self.inner.read(addr, into)
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        self.inner.write(addr, from)
    }

    fn translate(&self, addr: u64) -> Option<u64> {
        self.inner.translate(addr)
    }

    fn leaf_order(&self, addr: u64) -> u8 {
        self.inner.leaf_order(addr)
    }

    fn leaf_runs(&self) -> Vec<LeafRun> {
        self.inner.leaf_runs()
    }

    fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        self.inner.tlb_lookup(addr)
    }

    fn speculate(&mut self, addr: u64, pages: usize) {
        self.inner.speculate(addr, pages);
    }

    fn remembered(&self, addr: u64) -> Vec<u64> {
        self.inner.remembered(addr)
    }

    fn stale(&self) -> Vec<Remembered> {
        self.inner.stale()
    }

    fn remembered_tables(&self) -> Vec<RememberedTable> {
        self.inner.remembered_tables()
    }

    fn take_early_reuse(&mut self) -> Option<String> {
        self.inner.take_early_reuse()
    }

    fn white_box(&self) -> Option<&dyn WhiteBox> {
        Some(self)
    }
}

impl<T: Twist> WhiteBox for Twisted<T> {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    /// The inner counters, with the hidden blocks booked as free.
    fn page_use(&self) -> MemInfo {
        let hidden: u64 = self.twist.hidden().iter().map(|block| block.pages()).sum();
        let inner = self.inner.page_use();
        MemInfo { pages: inner.pages - hidden, free: inner.free + hidden, ..inner }
    }

    fn buddyinfo(&self) -> BuddyInfo {
        self.inner.buddyinfo()
    }

    fn slabinfo(&self) -> Vec<CacheInfo> {
        self.inner.slabinfo()
    }

    fn vm_area(&self, addr: u64) -> Option<VmallocEntry> {
        self.inner.vm_area(addr)
    }

    fn vmallocinfo(&self) -> Vec<VmallocEntry> {
        self.inner.vmallocinfo()
    }

    fn frame_kind(&self, pfn: u32) -> FrameKind {
        let hidden = self.twist.hidden().iter().any(|block| block.contains(pfn));
        if hidden { FrameKind::Free } else { self.inner.frame_kind(pfn) }
    }

    fn pageblock_type(&self, pfn: u32) -> Option<kmem::MigrateType> {
        self.inner.pageblock_type(pfn)
    }

    fn audit(&self) -> Result<(), Violation> {
        self.inner.audit()
    }

    fn event_count(&self, event: kmem::Event) -> u64 {
        self.inner.event_count(event)
    }

    fn pagetypeinfo(&self) -> String {
        self.inner.pagetypeinfo()
    }

    fn page_owner(&self) -> Vec<kmem::PageOwner> {
        self.inner.page_owner()
    }

    fn warnings(&self) -> &[kmem::Warning] {
        self.inner.warnings()
    }

    fn nested(&self) -> &crate::machine::Nested {
        self.inner.nested()
    }

    fn slab_findings(&self) -> u64 {
        self.inner.slab_findings()
    }

    fn faults_struck(&self) -> u64 {
        self.inner.faults_struck()
    }

    fn cpu(&self) -> u16 {
        self.inner.cpu()
    }

    fn grace_periods(&self) -> (u64, u64) {
        self.inner.grace_periods()
    }
}

impl<T: Twist> Guest for Twisted<T> {
    fn into_spare(self: Box<Self>) -> Spare {
        Box::new(self.inner).into_spare()
    }
}
