//! Calls that may not wait, while what they want is in use: as if they had interrupted its user.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::{AllocError, FreeError};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::platform::Event;
use std::vec::Vec;

impl Machine {
    fn nolock(&self, size: usize) -> Result<VirtAddr, AllocError> {
        self.slab.kmalloc_nolock(&self.pages, size, GfpFlags::empty(), None)
    }

    fn free_nolock(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.kfree_nolock(&self.pages, addr)
    }
}

/// A machine whose class of 1024 bytes has objects in its sheaf and in its slabs.
fn machine() -> Machine {
    let m = Machine::with_cpus(2);
    let objects: Vec<_> = (0..30).map(|_| m.kmalloc(1024)).collect();
    objects.into_iter().for_each(|object| m.kfree(object).unwrap());
    m
}

const CLASS: u16 = 9;

#[test]
fn nothing_in_use_serves_as_ever() {
    let m = machine();
    let before = m.info(Machine::class(CLASS)).in_sheaves;
    let object = m.nolock(1000).unwrap();
    assert_eq!((m.slab.ksize(&m.pages, object), m.info(Machine::class(CLASS)).in_sheaves), (Ok(1024), before - 1));
    let zeroed = m.slab.kmalloc_nolock(&m.pages, 1024, GfpFlags::ZERO, NodeId::new(0)).unwrap();
    assert_eq!(m.bytes(zeroed, 1024), [0; 1024]);
    m.free_nolock(object).unwrap();
    m.kfree(zeroed).unwrap();
    assert_eq!(m.nolock(0), Ok(VirtAddr::ZERO_SIZE));
    assert_eq!(m.free_nolock(VirtAddr::ZERO_SIZE), Ok(()));
    m.check();
}

#[test]
fn nonsense_is_refused() {
    let m = machine();
    let limit = 8192;
    assert_eq!(m.nolock(8193), Err(AllocError::TooLarge { requested: 8193, limit }));
    let waits = m.slab.kmalloc_nolock(&m.pages, 64, GfpFlags::KERNEL, None);
    assert_eq!(waits, Err(AllocError::BadFlags));
    m.pages.base.platform.fail(FaultPoint::Slab, 0);
    assert_eq!(m.nolock(64), Err(AllocError::Injected(FaultPoint::Slab)));
    let large = m.kmalloc(20000);
    assert!(matches!(m.free_nolock(large), Err(FreeError::WrongKind { .. })));
    let object = m.kmalloc(64);
    m.free_nolock(object).unwrap();
    assert_eq!(m.free_nolock(object), Err(FreeError::DoubleFree(object)));
    m.check();
}

#[test]
fn sheaves_in_use_are_passed_by() {
    let m = machine();
    m.reclaim();
    let kept = m.kmalloc(1024);
    let cached = m.info(Machine::class(CLASS)).in_sheaves;
    let interrupted = m.slab.cell(m.pages.base.cpu(), usize::from(CLASS)).unwrap().try_local().unwrap();
    let object = m.nolock(1024).unwrap();
    m.free_nolock(object).unwrap();
    m.free_nolock(kept).unwrap();
    assert_eq!(m.count(Event::NolockSheafInUse), 3);
    drop(interrupted);
    assert_eq!(m.info(Machine::class(CLASS)).in_sheaves, cached, "all of that happened in the slabs");
    m.check();
}

#[test]
fn with_everything_in_use_the_next_class_serves_and_frees_wait() {
    let m = machine();
    let live: Vec<_> = (0..40).map(|_| m.kmalloc(1024)).collect();
    let bigger = m.kmalloc(2048);
    let active = m.info(Machine::class(CLASS)).active_objs;
    let sheaves = m.slab.cell(m.pages.base.cpu(), usize::from(CLASS)).unwrap().try_local().unwrap();
    let lists = m.slab.node(usize::from(CLASS), 0).unwrap().lock();
    let object = m.nolock(1024).unwrap();
    assert_eq!((m.slab.ksize(&m.pages, object), m.count(Event::NolockNextClass)), (Ok(2048), 1));
    for &object in &live[..32] {
        m.free_nolock(object).unwrap();
    }
    assert_eq!(m.count(Event::NolockDeferred), 32);
    assert_eq!(m.free_nolock(live[0]), Err(FreeError::DoubleFree(live[0])), "it waits");
    assert_eq!(m.free_nolock(live[32]), Err(FreeError::WouldBlock(live[32])));
    let next = m.slab.cell(m.pages.base.cpu(), usize::from(CLASS) + 1).unwrap().try_local().unwrap();
    let next_lists = m.slab.node(usize::from(CLASS) + 1, 0).unwrap().lock();
    assert_eq!(m.nolock(1024), Err(AllocError::WouldBlock));
    drop((sheaves, lists, next, next_lists));
    m.check();
    let info = m.info(Machine::class(CLASS));
    assert_eq!((info.deferred, info.active_objs), (32, active - 32));
    // A slow path of the same CPU gives them back, that of another does not.
    m.run_on(1);
    m.kmalloc(96);
    assert_eq!(m.count(Event::NolockDrained), 0);
    m.run_on(0);
    m.kmalloc(96);
    assert_eq!((m.count(Event::NolockDrained), m.info(Machine::class(CLASS)).deferred), (32, 0));
    m.check();
    live[32..].iter().chain([&object, &bigger]).for_each(|&object| m.kfree(object).unwrap());
    m.check();
}

#[test]
fn what_waits_on_any_cpu_goes_back_before_a_cache_is_trimmed() {
    let m = Machine::with_cpus(2);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 2);
    m.run_on(1);
    let lists = m.slab.node(cache.index(), 0).unwrap().lock();
    let sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    objects.iter().for_each(|&object| m.free_nolock(object).unwrap());
    drop((lists, sheaves));
    assert_eq!(m.info(cache).deferred, 2);
    m.run_on(0);
    assert_eq!(m.slab.cache_shrink(&m.pages, cache), Ok(true));
    assert_eq!(m.info(cache).deferred, 0);
    m.check();
}

#[test]
fn full_sheaves_make_room_without_the_pool() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 144);
    let held: Vec<_> = std::iter::from_fn(|| m.slab.pool.take()).collect();
    objects[..30].iter().for_each(|&object| m.free_nolock(object).unwrap());
    assert_eq!(m.info(cache).in_sheaves, 12, "no buffer: the rest went to the slabs");
    held.into_iter().for_each(|id| m.slab.pool.put(id));
    m.free_all(cache, objects[30..70].iter().copied());
    m.objects(cache, 40);
    let empties = m.slab.node(cache.index(), 0).unwrap().lock().barn.empty.iter().count();
    assert!(empties > 0);
    m.check();
    objects[70..144].iter().for_each(|&object| m.free_nolock(object).unwrap());
    assert!(m.count(Event::BarnPut) > 2, "empty sheaves of the barn are used");
    m.check();
}

#[test]
fn a_fresh_class_gets_a_slab_without_waiting() {
    let m = Machine::with_cpus(1);
    let object = m.nolock(200).unwrap();
    assert_eq!((m.slab.ksize(&m.pages, object), m.count(Event::SlabNew)), (Ok(256), 1));
    m.check();
    m.pages.base.platform.fail(FaultPoint::NewSlab, 0);
    m.nolock(2048).unwrap();
    m.check();
    let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
    assert!(matches!(m.nolock(96), Err(AllocError::NoPages { .. })));
    drop(hog);
    m.free_nolock(object).unwrap();
    m.check();
}

/// Calls in the middle of another one of the same CPU, which holds the sheaves of the class, its lists, both, or nothing: the
/// object that the last such call left in `left` is freed, and another one is allocated. What cannot be freed there goes to
/// `late`.
fn interrupt(m: &Machine, class: usize, held: usize, left: &mut Option<VirtAddr>, late: &mut Vec<VirtAddr>) {
    let cell = m.slab.cell(m.pages.base.cpu(), class).unwrap();
    let sheaves = (held & 1 == 1).then(|| cell.try_local().unwrap());
    let lists = (held & 2 == 2).then(|| m.slab.node(class, 0).unwrap().lock());
    if let Some(object) = left.take()
        && let Err(refused) = m.free_nolock(object)
    {
        assert_eq!(refused, FreeError::WouldBlock(object));
        late.push(object);
    }
    *left = m.nolock(64).ok();
    drop((sheaves, lists));
}

/// Linux: `test_kmalloc_kfree_nolock` of `slub_kunit`: 1000 rounds of 1000 objects, while an event calls the variants that
/// take no lock wherever it strikes; nothing is reported, and nothing is lost.
#[test]
fn kmalloc_kfree_nolock() {
    const OBJECTS: usize = 1000;
    let m = Machine::with_cpus(1);
    let class = 3;
    let (mut left, mut late) = (None, Vec::new());
    for round in 0..1000 {
        let mut objects = Vec::with_capacity(OBJECTS);
        for n in 0..OBJECTS {
            interrupt(&m, class, (n + round) % 4, &mut left, &mut late);
            objects.push(m.kmalloc(64));
        }
        for (n, object) in objects.into_iter().enumerate() {
            interrupt(&m, class, (n + round) % 4, &mut left, &mut late);
            m.kfree(object).unwrap();
        }
        late.drain(..).for_each(|object| m.kfree(object).unwrap());
        if round % 100 == 0 {
            m.check();
        }
    }
    for event in [Event::NolockSheafInUse, Event::NolockSlabInUse, Event::NolockNextClass, Event::NolockDeferred] {
        assert!(m.count(event) > 0, "{event:?}");
    }
    left.into_iter().for_each(|object| m.kfree(object).unwrap());
    m.reclaim();
    assert_eq!(
        (m.count(Event::NolockDrained), m.info(Machine::class(3)).active_objs),
        (m.count(Event::NolockDeferred), 0)
    );
    m.check();
}
