//! Failure at every point changes nothing.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::AllocError;
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use crate::testing;
use std::vec::Vec;

fn asked(m: &Machine, point: FaultPoint) -> u32 {
    m.pages.base.platform.asked[point as usize].get()
}

#[test]
fn a_refused_object_is_asked_for_once_and_changes_nothing() {
    let m = Machine::with_cpus(1);
    let before = m.use_of_pages();
    m.pages.base.platform.fail(FaultPoint::Slab, 0);
    assert_eq!(m.try_kmalloc(64), Err(AllocError::Injected(FaultPoint::Slab)));
    assert_eq!(asked(&m, FaultPoint::Slab), 1);
    assert_eq!(m.use_of_pages(), before);
    m.kmalloc(64);
    m.kmalloc(64);
    assert_eq!(asked(&m, FaultPoint::Slab), 3, "once per object, on the fast path too");
    let cache = m.cache(&CacheArgs::new(64));
    m.objects(cache, 2);
    assert_eq!(asked(&m, FaultPoint::Slab), 5);
}

#[test]
fn a_refused_large_block_changes_nothing() {
    let m = Machine::with_cpus(1);
    let before = m.use_of_pages();
    m.pages.base.platform.fail(FaultPoint::Page, 0);
    assert_eq!(m.try_kmalloc(20000), Err(AllocError::Injected(FaultPoint::Page)));
    assert_eq!(m.use_of_pages(), before);
}

#[test]
fn a_refused_preferred_slab_falls_back_to_the_smallest() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(1024));
    m.pages.base.platform.fail(FaultPoint::NewSlab, 0);
    m.objects(cache, 1);
    let info = m.info(cache);
    assert_eq!((info.order.pages(), info.num_objs), (2, 12), "one page holds four, the next slab eight");
    assert_eq!(m.count(Event::SlabMinOrder), 1);
    m.check();
}

#[test]
fn refusing_both_sizes_of_slab_changes_nothing() {
    let m = Machine::with_cpus(1);
    let before = m.use_of_pages();
    let platform = &m.pages.base.platform;
    // The last question comes from the smallest order for a single object: the others are answered by an empty machine.
    let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
    assert_eq!(m.try_kmalloc(1024), Err(AllocError::NoPages { order: Order::ZERO }));
    platform.fail(FaultPoint::NewSlab, 3);
    assert_eq!(m.try_kmalloc(1024), Err(AllocError::Injected(FaultPoint::NewSlab)));
    m.check();
    hog.into_iter().for_each(|pfn| m.pages.free_pages(pfn, Order::ZERO).unwrap());
    assert_eq!(m.use_of_pages(), before);
}

#[test]
fn when_memory_is_split_up_slabs_of_the_smallest_order_serve() {
    let m = Machine::with_cpus(1);
    let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
    hog.iter().step_by(2).for_each(|&pfn| m.pages.free_pages(pfn, Order::ZERO).unwrap());
    m.pages.drain_all_pages();
    let addr = m.kmalloc(2048);
    assert_eq!(m.slab.ksize(&m.pages, addr), Ok(2048));
    assert!(m.try_kmalloc(8192).is_err(), "two pages are needed");
    m.check();
}

#[test]
fn the_whole_memory_can_be_used_and_is_given_back() {
    let m = Machine::new(&testing::flat(64));
    let before = m.use_of_pages();
    for size in [8, 64, 96, 700, 4096] {
        let objects: Vec<VirtAddr> = std::iter::from_fn(|| m.try_kmalloc(size).ok()).collect();
        let class = m.slab.size_roundup(size, false);
        assert!(objects.len() >= 63 * (4096 / class), "{size} bytes: {} objects", objects.len());
        m.check();
        objects.into_iter().for_each(|addr| m.kfree(addr).unwrap());
        m.reclaim();
        assert_eq!(m.use_of_pages(), before, "{size} bytes");
        m.check();
    }
}
