//! Many objects in one call: all or nothing, both ways.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::{AllocError, CacheId, FreeError};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use std::vec::Vec;

impl Machine {
    fn bulk(&self, cache: CacheId, n: usize, gfp: GfpFlags) -> Result<Vec<VirtAddr>, AllocError> {
        let mut objects = std::vec![VirtAddr::NULL; n];
        self.slab.cache_alloc_bulk(&self.pages, cache, gfp, &mut objects).map(|()| objects)
    }

    fn free_bulk(&self, cache: Option<CacheId>, objects: &[VirtAddr]) -> Result<(), FreeError> {
        self.slab.free_bulk(&self.pages, cache, objects)
    }
}

fn machine(size: usize) -> (Machine, CacheId) {
    let m = Machine::with_cpus(2);
    let cache = m.cache(&CacheArgs::new(size));
    (m, cache)
}

#[test]
fn a_bulk_gives_as_many_different_live_objects_as_were_asked_for() {
    for size in [8, 64, 1024, 8192] {
        let (m, cache) = machine(size);
        for n in [1, 10, 31, 32, 33, 100] {
            let mut objects = m.bulk(cache, n, GfpFlags::KERNEL).unwrap();
            assert_eq!(m.info(cache).active_objs, n as u64);
            objects.sort_unstable();
            assert!(objects.windows(2).all(|pair| pair[0] < pair[1]), "{n} objects of {size} bytes");
            m.check();
            m.free_bulk(Some(cache), &objects).unwrap();
            assert_eq!(m.info(cache).active_objs, 0);
            m.check();
        }
        let nothing = m.bulk(cache, 0, GfpFlags::KERNEL);
        assert_eq!(nothing, Err(AllocError::ZeroSize));
        assert_eq!(m.free_bulk(None, &[]), Ok(()));
    }
}

#[test]
fn a_bulk_empties_the_sheaves_before_it_goes_to_the_slabs() {
    let (m, cache) = machine(1024);
    let objects = m.bulk(cache, 48, GfpFlags::KERNEL).unwrap();
    // Main, spare, and two full sheaves in the barn.
    m.free_bulk(Some(cache), &objects).unwrap();
    assert_eq!((m.info(cache).in_sheaves, m.count(Event::BarnPut)), (48, 2));
    let slabs = m.count(Event::SlabNew);
    m.bulk(cache, 48, GfpFlags::KERNEL).unwrap();
    assert_eq!((m.info(cache).in_sheaves, m.count(Event::BarnGet), m.count(Event::SlabNew)), (0, 2, slabs));
    m.check();
}

#[test]
fn a_zeroed_bulk_is_zero_and_a_constructed_one_is_refused() {
    let (m, cache) = machine(100);
    for object in m.bulk(cache, 50, GfpFlags::KERNEL | GfpFlags::ZERO).unwrap() {
        assert_eq!(m.bytes(object, 100), [0; 100]);
    }
    let constructed = m.cache(&CacheArgs { ctor: Some(|object| object.fill(1)), ..CacheArgs::new(100) });
    assert_eq!(m.bulk(constructed, 2, GfpFlags::KERNEL | GfpFlags::ZERO), Err(AllocError::BadFlags));
    assert_eq!(m.bulk(CacheId::new(60), 2, GfpFlags::KERNEL), Err(AllocError::BadFlags));
}

#[test]
fn a_bulk_that_memory_cannot_serve_leaves_everything_as_it_was() {
    let (m, cache) = machine(1024);
    let kept = m.bulk(cache, 5, GfpFlags::KERNEL).unwrap();
    let before = (m.info(cache).active_objs, m.use_of_pages());
    assert!(m.bulk(cache, 5000, GfpFlags::KERNEL).is_err());
    assert_eq!((m.info(cache).active_objs, m.use_of_pages()), before);
    assert_eq!(m.count(Event::BulkUndone), 1);
    m.check();
    m.pages.base.platform.fail(FaultPoint::Slab, 0);
    assert_eq!(m.bulk(cache, 5, GfpFlags::KERNEL), Err(AllocError::Injected(FaultPoint::Slab)));
    m.free_bulk(Some(cache), &kept).unwrap();
    m.reclaim();
    assert_eq!(m.info(cache).nr_slabs, 0);
}

#[test]
fn the_whole_memory_can_be_taken_by_one_bulk() {
    let (m, cache) = machine(4096);
    assert_eq!(m.bulk(cache, 1024, GfpFlags::KERNEL).unwrap().len(), 1024);
    assert!(m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).is_err());
    assert!(m.bulk(cache, 1, GfpFlags::KERNEL).is_err());
    m.check();
}

#[test]
fn without_a_cache_objects_of_all_caches_and_large_blocks_go_home_together() {
    let (m, cache) = machine(1024);
    let before = m.use_of_pages();
    let mut blocks = m.bulk(cache, 40, GfpFlags::KERNEL).unwrap();
    blocks.extend([8, 20000, 64, 64, 100_000, 96].map(|size| m.kmalloc(size)));
    blocks.extend([VirtAddr::NULL, VirtAddr::ZERO_SIZE]);
    blocks.rotate_left(38);
    m.free_bulk(None, &blocks).unwrap();
    assert_eq!(m.info(cache).active_objs, 0);
    m.reclaim();
    assert_eq!(m.use_of_pages(), before);
    m.check();
}

#[test]
fn one_wrong_address_keeps_the_whole_bulk_alive() {
    let (m, cache) = machine(64);
    let other = m.kmalloc(64);
    let large = m.kmalloc(20000);
    let objects = m.bulk(cache, 40, GfpFlags::KERNEL).unwrap();
    let with = |wrong: VirtAddr| [&objects[..], &[wrong]].concat();
    let inside = VirtAddr::new(objects[3].as_u64() + 8);
    assert_eq!(m.free_bulk(Some(cache), &with(objects[7])), Err(FreeError::DoubleFree(objects[7])));
    assert_eq!(m.free_bulk(None, &with(inside)), Err(FreeError::Interior { addr: inside, start: objects[3] }));
    let owner = Machine::class(3);
    assert_eq!(m.free_bulk(Some(cache), &with(other)), Err(FreeError::WrongCache { addr: other, owner }));
    assert!(matches!(m.free_bulk(Some(cache), &with(large)), Err(FreeError::WrongKind { .. })));
    assert_eq!(m.free_bulk(None, &[large, other, large]), Err(FreeError::DoubleFree(large)));
    assert_eq!((m.info(cache).active_objs, m.count(Event::BulkFreeUndone)), (40, 5));
    m.check();
    m.free_bulk(None, &with(large)).unwrap();
    m.kfree(other).unwrap();
    m.check();
}
