//! A small machine for unit tests: heap memory, a settable CPU, a fault countdown, and a record of what was asked.

use crate::addr::{PageCount, Pfn, Vpn};
use crate::base::Base;
use crate::buddy::{PageAllocator, PageParts};
use crate::bug::SlabBug;
use crate::fault::{FaultPoint, FaultSite};
use crate::geometry::{Geometry, MinFree, SlabMerge, ZoneKind, ZoneSpec};
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameTable;
use crate::platform::{CpuId, Event, Platform, RcuCookie};
use crate::raw::{Carver, MetaRegion, PhysMem};
use crate::warn::Warning;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

/// What memory holds before anybody writes it: not zero, so that missing zeroing shows.
pub(crate) const JUNK: u8 = 0xa5;

/// The test machine. Reach it through `base.platform`.
pub(crate) struct TestPlatform {
    memory: PhysMem,
    pub(crate) cpu: Cell<u16>,
    faults: [Cell<Option<u32>>; FaultPoint::ALL.len()],
    /// How often each fault point was asked.
    pub(crate) asked: [Cell<u32>; FaultPoint::ALL.len()],
    /// Each flush of the TLB: first page and number of pages.
    pub(crate) flushes: RefCell<Vec<(Vpn, u64)>>,
    /// Each change of the direct map: the frame, whether it became invalid, and how many flushes there had been.
    pub(crate) aliases: RefCell<Vec<(Pfn, bool, usize)>>,
    pub(crate) root: Cell<Option<Pfn>>,
    /// Whether a reader keeps every grace period from ending, until somebody waits for it.
    pub(crate) reader: Cell<bool>,
    events: RefCell<[u64; Event::COUNT]>,
    /// What the checks of debug caches told.
    pub(crate) bugs: RefCell<Vec<SlabBug>>,
    /// How many more free blocks the host takes, and those that it took.
    pub(crate) host: Cell<u32>,
    pub(crate) reports: RefCell<Vec<(Pfn, Order)>>,
    /// Every warning so far.
    pub(crate) warnings: RefCell<Vec<Warning>>,
    /// Blocks that may be moved, by first frame.
    pub(crate) movable: RefCell<BTreeMap<Pfn, Order>>,
}

impl TestPlatform {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self {
            memory: PhysMem::heap(geometry.frames(), JUNK),
            cpu: Cell::new(0),
            faults: Default::default(),
            asked: Default::default(),
            flushes: RefCell::default(),
            aliases: RefCell::default(),
            root: Cell::new(None),
            reader: Cell::new(false),
            events: RefCell::new([0; Event::COUNT]),
            bugs: RefCell::default(),
            host: Cell::new(0),
            reports: RefCell::default(),
            warnings: RefCell::default(),
            movable: RefCell::default(),
        }
    }

    /// Makes the `nth` next question (0 = the very next) at `point` fail, once.
    pub(crate) fn fail(&self, point: FaultPoint, nth: u32) {
        self.faults[point as usize].set(Some(nth));
    }

    /// Takes back what [`Self::fail`] planned and has not struck yet.
    pub(crate) fn clear_faults(&self) {
        self.faults.iter().for_each(|f| f.set(None));
    }

    /// How often `event` happened.
    pub(crate) fn count(&self, event: Event) -> u64 {
        self.events.borrow()[event.index()]
    }
}

impl Platform for TestPlatform {
    const STATISTICS: bool = true;

    fn memory(&self) -> &PhysMem {
        &self.memory
    }

    fn cpu(&self) -> CpuId {
        CpuId::new(self.cpu.get())
    }

    fn flush_tlb(&self, start: Vpn, pages: u64) {
        self.flushes.borrow_mut().push((start, pages));
    }

    fn set_direct_map_invalid(&self, frame: Pfn) {
        self.aliases.borrow_mut().push((frame, true, self.flushes.borrow().len()));
    }

    fn set_direct_map_default(&self, frame: Pfn) {
        self.aliases.borrow_mut().push((frame, false, self.flushes.borrow().len()));
    }

    fn set_page_table(&self, root: Pfn) {
        self.root.set(Some(root));
    }

    fn report_free(&self, first: Pfn, order: Order) -> bool {
        let left = self.host.get();
        self.host.set(left.saturating_sub(1));
        if left > 0 {
            self.reports.borrow_mut().push((first, order));
        }
        left > 0
    }

    fn migrate(&self, from: Pfn, to: Pfn, order: Order) -> bool {
        let mut movable = self.movable.borrow_mut();
        if movable.get(&from) != Some(&order) {
            return false;
        }
        movable.remove(&from);
        assert_eq!(movable.insert(to, order), None, "a block was moved onto another one");
        assert!(self.memory.copy(from.addr(), to.addr(), order.bytes()));
        self.memory.fill(from.addr(), order.bytes(), JUNK)
    }

    fn rcu_done(&self, _: RcuCookie) -> bool {
        !self.reader.get()
    }

    fn synchronize_rcu(&self) {
        self.reader.set(false);
    }

    fn fault(&self, site: FaultSite) -> bool {
        let point = site.point;
        let asked = &self.asked[point as usize];
        asked.set(asked.get() + 1);
        let plan = &self.faults[point as usize];
        let left = plan.get();
        plan.set(left.and_then(|n| n.checked_sub(1)));
        left == Some(0)
    }

    fn slab_bug(&self, bug: &SlabBug) {
        self.bugs.borrow_mut().push(*bug);
    }

    fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    fn event(&self, event: Event) {
        self.events.borrow_mut()[event.index()] += 1;
    }
}

/// Carves one layer's parts, or all layers', from a fresh region of the right size.
pub(crate) fn carve<T>(geometry: &Geometry, parts: impl Fn(&Geometry, &mut Carver<'_>) -> T) -> T {
    let mut measure = Carver::measuring();
    parts(geometry, &mut measure);
    let mut region = MetaRegion::heap(measure.bytes());
    let mut carver = region.carver().unwrap();
    parts(geometry, &mut carver)
}

/// The lowest layer on a fresh test machine.
pub(crate) fn base(geometry: &Geometry) -> Base<TestPlatform> {
    geometry.validate().unwrap();
    Base::new(TestPlatform::new(geometry), geometry, carve(geometry, FrameTable::carve))
}

/// The page allocator on a fresh test machine.
pub(crate) fn page_allocator(geometry: &Geometry) -> PageAllocator<TestPlatform> {
    PageAllocator::new(base(geometry), carve(geometry, PageParts::carve))
}

/// One Normal zone of `frames` frames that may be used to the last page; caches do not share slabs.
pub(crate) fn flat(frames: u32) -> Geometry {
    let mut geometry = Geometry::flat(frames);
    geometry.min_free = MinFree::Pages(0);
    geometry.slab_merge = SlabMerge::Never;
    geometry
}

/// Zones on node 0, each given as kind, first frame and number of frames; no reserve.
pub(crate) fn zoned(zones: &[(ZoneKind, u32, u32)]) -> Geometry {
    let spec = |&(kind, start, frames): &(ZoneKind, u32, u32)| ZoneSpec {
        kind,
        node: NodeId::ZERO,
        start: Pfn::new(start),
        frames: PageCount::new(u64::from(frames)),
    };
    let specs: Vec<ZoneSpec> = zones.iter().map(spec).collect();
    flat(1).with_zones(&specs).unwrap()
}

/// A small, fast, reproducible random source (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() >> 11) as usize % n }
    }
}

std::thread_local! {
    static SLICES: RefCell<BTreeMap<usize, (usize, &'static str)>> = const { RefCell::new(BTreeMap::new()) };
}

/// Remembers that a slice of `T` starts at so many bytes of the region that this thread carves.
pub(crate) fn note_slice<T>(start: usize) {
    SLICES.with_borrow_mut(|slices| {
        if start == 0 {
            slices.clear();
        }
        slices.insert(start, (size_of::<T>(), core::any::type_name::<T>()));
    });
}

/// What is at an offset of the region that this thread carved last: a type, and the offset in it.
pub(crate) fn field_at(offset: usize) -> (&'static str, usize) {
    SLICES.with_borrow(|slices| {
        let (start, (size, name)) = slices.range(..=offset).next_back().unwrap();
        (*name, (offset - start) % size.max(&1))
    })
}
