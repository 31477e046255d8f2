//! A subject for the oracles' own tests: it does nothing by itself and shows what the test put in.

use super::{Context, Step, Violation};
use crate::machine::Remembered;
use crate::model::Model;
use crate::subject::{AccessFault, Call, Reply, Strength, Subject, WhiteBox};
use kmem::{
    BuddyInfo, CacheId, CacheInfo, CacheName, FrameKind, Geometry, MemInfo, MinFree, Order, PAGE_SIZE, PageCount, Pfn,
};
use kmem::{MIGRATE_TYPES, NR_PAGE_ORDERS, VmallocEntry, ZoneInfo, ZoneKind, ZoneSpec};
use std::collections::BTreeMap;

/// Memory, page table, TLB and inside, all set by the test.
pub(crate) struct FakeSubject {
    pub(crate) geometry: Geometry,
    pub(crate) strength: Strength,
    pub(crate) memory: Vec<u8>,
    /// Frames by virtual page number.
    pub(crate) table: BTreeMap<u64, u32>,
    pub(crate) tlb: BTreeMap<u64, u32>,
    pub(crate) kinds: Vec<FrameKind>,
    pub(crate) counters: MemInfo,
    pub(crate) zones: Vec<ZoneInfo>,
    pub(crate) caches: Vec<CacheInfo>,
    pub(crate) areas: Vec<VmallocEntry>,
    pub(crate) broken: Option<kmem::Violation>,
    pub(crate) grace_periods: (u64, u64),
    pub(crate) warnings: Vec<kmem::Warning>,
    pub(crate) nested: crate::machine::Nested,
    /// log2 of the pages that every page-table entry maps.
    pub(crate) leaf: u8,
    /// The text of `pagetypeinfo`.
    pub(crate) pagetypes: String,
    /// How often events have happened.
    pub(crate) events: Vec<(kmem::Event, u64)>,
    /// Frames whose pageblocks are not movable.
    pub(crate) special: Vec<(std::ops::Range<u32>, kmem::MigrateType)>,
}

impl FakeSubject {
    /// One Normal zone of `frames` free frames, 16 of them kept back, and a vmalloc window of 64 pages.
    pub(crate) fn new(frames: u32) -> Self {
        let mut geometry = Geometry::flat(frames);
        geometry.min_free = MinFree::Pages(16);
        geometry.vmalloc_pages = PageCount::new(64);
        let managed = u64::from(frames);
        Self {
            strength: Strength::Tight,
            memory: vec![0xee; frames as usize * PAGE_SIZE],
            table: BTreeMap::new(),
            tlb: BTreeMap::new(),
            kinds: vec![FrameKind::Free; frames as usize],
            counters: MemInfo { managed, free: managed, ..MemInfo::default() },
            zones: vec![zone_info(&geometry, &[(6, frames / 64)])],
            caches: Vec::new(),
            areas: Vec::new(),
            broken: None,
            grace_periods: (0, 0),
            warnings: Vec::new(),
            nested: crate::machine::Nested::default(),
            leaf: 0,
            pagetypes: String::new(),
            events: Vec::new(),
            special: Vec::new(),
            geometry,
        }
    }

    /// As [`Self::new`] with a DMA zone below the Normal one, each of half the frames.
    pub(crate) fn with_two_zones(frames: u32) -> Self {
        let half = frames / 2;
        let zone = |kind, start| ZoneSpec {
            kind,
            node: kmem::NodeId::ZERO,
            start: Pfn::new(start),
            frames: PageCount::new(half.into()),
        };
        let mut fake = Self::new(frames);
        let zones = [zone(ZoneKind::Dma, 0), zone(ZoneKind::Normal, half)];
        fake.geometry = fake.geometry.clone().with_zones(&zones).unwrap();
        fake
    }

    pub(crate) fn model(&self) -> Model {
        Model::new(&self.geometry, self.strength)
    }

    /// Address of a frame in the direct map.
    pub(crate) fn direct(&self, frame: u32) -> u64 {
        self.geometry.direct_map.as_u64() + u64::from(frame) * PAGE_SIZE as u64
    }

    /// Address of a page of the vmalloc window.
    pub(crate) fn window(&self, page: u64) -> u64 {
        self.geometry.vmalloc_start.as_u64() + page * PAGE_SIZE as u64
    }

    /// Maps frames from a page of the vmalloc window on.
    pub(crate) fn map(&mut self, page: u64, frames: &[u32]) {
        let first = self.window(page) / PAGE_SIZE as u64;
        for (i, &frame) in frames.iter().enumerate() {
            self.table.insert(first + i as u64, frame);
            self.kinds[frame as usize] = FrameKind::Vmalloc;
        }
    }

    pub(crate) fn unmap(&mut self, page: u64, pages: u64) {
        let first = self.window(page) / PAGE_SIZE as u64;
        self.table.retain(|vpn, _| !(first..first + pages).contains(vpn));
    }

    pub(crate) fn flip(&mut self, addr: u64) {
        if let Some(at) = self.physical(addr) {
            self.memory[at] ^= 1;
        }
    }

    pub(crate) fn swap_pages(&mut self, a: u64, b: u64) {
        let (Some(a), Some(b)) = (self.physical(a), self.physical(b)) else { return };
        (0..PAGE_SIZE).for_each(|i| self.memory.swap(a + i, b + i));
    }

    /// A built-in cache with these objects.
    pub(crate) fn add_cache(&mut self, name: &str, size: usize, free_in_slabs: u64, in_sheaves: u64) -> CacheId {
        let id = CacheId::new(self.caches.len() as u16);
        let order = Order::for_bytes(size).unwrap();
        self.caches.push(CacheInfo {
            id,
            name: CacheName::new(name).unwrap(),
            active_objs: 0,
            num_objs: free_in_slabs + in_sheaves,
            in_sheaves,
            lost: 0,
            reserved: 0,
            deferred: 0,
            free_by_node: [free_in_slabs, 0, 0, 0],
            free_in_slabs,
            object_size: size,
            size,
            align: size & size.wrapping_neg(),
            objects_per_slab: (PAGE_SIZE / size).max(1) as u32,
            order,
            min_order: order,
            nr_slabs: 0,
            nr_partial: 0,
            rcu_pending: 0,
            aliases: 0,
            flags: kmem::SlabFlags::empty(),
            sheaf_capacity: crate::model::classes::sheaf_capacity(size) as u16,
        });
        id
    }

    /// Sets the free blocks of the only zone as `(order, count)`.
    pub(crate) fn set_free(&mut self, blocks: &[(usize, u32)]) {
        self.zones = vec![zone_info(&self.geometry, blocks)];
    }

    /// What each zone shows if it has these free blocks, as `(order, count)`.
    pub(crate) fn bare_zones(&self, blocks: &[(usize, u32)]) -> Vec<ZoneInfo> {
        (0..self.geometry.zones().len()).map(|index| info_of(&self.geometry, index, blocks)).collect()
    }

    fn physical(&self, addr: u64) -> Option<usize> {
        let direct = addr.wrapping_sub(self.geometry.direct_map.as_u64());
        if direct < self.memory.len() as u64 {
            return Some(direct as usize);
        }
        let vpn = addr / PAGE_SIZE as u64;
        let frame = self.tlb.get(&vpn).or_else(|| self.table.get(&vpn))?;
        Some(*frame as usize * PAGE_SIZE + addr as usize % PAGE_SIZE)
    }
}

/// The only zone of a flat geometry with these free blocks.
fn zone_info(geometry: &Geometry, blocks: &[(usize, u32)]) -> ZoneInfo {
    info_of(geometry, 0, blocks)
}

/// A zone of a geometry with these free blocks.
fn info_of(geometry: &Geometry, index: usize, blocks: &[(usize, u32)]) -> ZoneInfo {
    let marks = crate::model::zones::watermarks(geometry)[index];
    let spec = geometry.zones()[index];
    let mut free = [0; NR_PAGE_ORDERS];
    blocks.iter().for_each(|&(order, count)| free[order] = count);
    let mut free_by_type = [[0; NR_PAGE_ORDERS]; MIGRATE_TYPES];
    free_by_type[0] = free;
    ZoneInfo {
        node: kmem::NodeId::ZERO,
        kind: spec.kind,
        start: spec.start,
        managed: spec.frames.get(),
        free,
        free_by_type,
        free_pages: blocks.iter().map(|&(order, count)| u64::from(count) << order).sum(),
        pcp_pages: 0,
        min: marks.min,
        low: marks.low,
        high: marks.high,
        promo: marks.promo,
        boost: 0,
        reserved_highatomic: 0,
    }
}

impl Subject for FakeSubject {
    fn name(&self) -> &str {
        "fake"
    }

    fn strength(&self) -> Strength {
        self.strength
    }

    fn call(&mut self, _: &Call) -> Reply {
        Reply::Unsupported
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        for (i, byte) in into.iter_mut().enumerate() {
            let at = addr + i as u64;
            *byte = self.memory[self.physical(at).ok_or(AccessFault::NotMapped(at))?];
        }
        Ok(())
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        for (i, byte) in from.iter().enumerate() {
            let at = addr + i as u64;
            let physical = self.physical(at).ok_or(AccessFault::NotMapped(at))?;
            self.memory[physical] = *byte;
        }
        Ok(())
    }

    fn translate(&self, addr: u64) -> Option<u64> {
        let frame = self.table.get(&(addr / PAGE_SIZE as u64))?;
        Some(u64::from(*frame) * PAGE_SIZE as u64 + addr % PAGE_SIZE as u64)
    }

    fn leaf_order(&self, _: u64) -> u8 {
        self.leaf
    }

    fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        let frame = self.tlb.get(&(addr / PAGE_SIZE as u64))?;
        Some(u64::from(*frame) * PAGE_SIZE as u64 + addr % PAGE_SIZE as u64)
    }

    fn stale(&self) -> Vec<Remembered> {
        let stale = self.tlb.iter().filter(|(vpn, pfn)| self.table.get(vpn) != Some(pfn));
        stale.map(|(&vpn, &pfn)| Remembered { vpn, pfn, owned: true }).collect()
    }

    fn white_box(&self) -> Option<&dyn WhiteBox> {
        (self.strength == Strength::Tight).then_some(self as &dyn WhiteBox)
    }
}

impl WhiteBox for FakeSubject {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn page_use(&self) -> MemInfo {
        self.counters
    }

    fn buddyinfo(&self) -> BuddyInfo {
        BuddyInfo::new(self.zones.iter().copied())
    }

    fn slabinfo(&self) -> Vec<CacheInfo> {
        self.caches.clone()
    }

    fn vmallocinfo(&self) -> Vec<VmallocEntry> {
        self.areas.clone()
    }

    fn frame_kind(&self, pfn: u32) -> FrameKind {
        self.kinds.get(pfn as usize).copied().unwrap_or(FrameKind::Absent)
    }

    fn pageblock_type(&self, pfn: u32) -> Option<kmem::MigrateType> {
        let special = self.special.iter().find(|(frames, _)| frames.contains(&pfn));
        Some(special.map_or(kmem::MigrateType::Movable, |&(_, migrate)| migrate))
    }

    fn audit(&self) -> Result<(), kmem::Violation> {
        self.broken.map_or(Ok(()), Err)
    }

    fn event_count(&self, event: kmem::Event) -> u64 {
        self.events.iter().find(|(name, _)| *name == event).map_or(0, |&(_, count)| count)
    }

    fn pagetypeinfo(&self) -> String {
        self.pagetypes.clone()
    }

    fn page_owner(&self) -> Vec<kmem::PageOwner> {
        Vec::new()
    }

    fn nested(&self) -> &crate::machine::Nested {
        &self.nested
    }

    fn slab_findings(&self) -> u64 {
        0
    }

    fn warnings(&self) -> &[kmem::Warning] {
        &self.warnings
    }

    fn faults_struck(&self) -> u64 {
        0
    }

    fn cpu(&self) -> u16 {
        0
    }

    fn grace_periods(&self) -> (u64, u64) {
        self.grace_periods
    }
}

/// A step without faults.
pub(crate) fn step(call: Call, reply: Reply) -> Step {
    Step { op: 0, call, reply, fault_struck: false }
}

/// Asks about a step the way a runner does: before the update, update, after it.
pub(crate) fn ask(
    oracle: &dyn super::Oracle,
    model: &mut Model,
    subject: &mut FakeSubject,
    step: &Step,
) -> Result<(), Violation> {
    let op = step.op;
    oracle.before_update(&mut Context { model, subject, step: Some(step), op })?;
    model.update(step, subject);
    oracle.after_update(&mut Context { model, subject, step: Some(step), op })
}

/// A context outside of steps.
pub(crate) fn context<'a>(model: &'a mut Model, subject: &'a mut FakeSubject) -> Context<'a> {
    Context { model, subject, step: None, op: 0 }
}
