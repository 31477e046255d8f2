//! The steps of the per-CPU layer: section 2.10.

use super::{CacheArgs, Machine};
use crate::error::CacheId;
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use crate::testing;
use std::vec::Vec;

/// Objects of 1024 bytes: a sheaf holds 12, a slab on one CPU 8.
const CAPACITY: u64 = 12;

fn machine_with_cache(cpus: u16) -> (Machine, CacheId) {
    let m = Machine::with_cpus(cpus);
    let cache = m.cache(&CacheArgs::new(1024));
    (m, cache)
}

/// Objects of full slabs, so that nothing but what a test frees is in a sheaf.
fn eighteen_slabs_full(m: &Machine, cache: CacheId) -> Vec<crate::addr::VirtAddr> {
    let objects = m.objects(cache, 144);
    assert_eq!(m.info(cache).in_sheaves, 0);
    objects
}

#[test]
fn an_object_freed_last_is_handed_out_first() {
    let (m, cache) = machine_with_cache(1);
    let objects = m.objects(cache, 2);
    m.free_all(cache, objects.clone());
    assert_eq!(m.objects(cache, 2), [objects[1], objects[0]]);
}

#[test]
fn successive_objects_of_a_fresh_slab_ascend() {
    let (m, cache) = machine_with_cache(1);
    let objects = m.objects(cache, 8);
    assert!(objects.windows(2).all(|pair| pair[1].as_u64() == pair[0].as_u64() + 1024));
}

#[test]
fn a_full_main_sheaf_is_swapped_with_the_spare_and_comes_back() {
    let (m, cache) = machine_with_cache(1);
    let objects = eighteen_slabs_full(&m, cache);
    m.free_all(cache, objects[..13].iter().copied());
    assert_eq!((m.count(Event::SheafSwap), m.count(Event::BarnPut)), (1, 0));
    assert_eq!(m.info(cache).in_sheaves, 13);
    m.check();
    let mut again = m.objects(cache, 13);
    assert_eq!(m.count(Event::SheafSwap), 2);
    again.sort_unstable();
    assert_eq!(again, objects[..13]);
}

#[test]
fn two_full_sheaves_go_on_to_the_barn_and_are_taken_from_there() {
    let (m, cache) = machine_with_cache(1);
    let objects = eighteen_slabs_full(&m, cache);
    m.free_all(cache, objects[..25].iter().copied());
    assert_eq!((m.count(Event::SheafSwap), m.count(Event::BarnPut)), (1, 1));
    m.check();
    let (refills, slabs) = (m.count(Event::SheafRefill), m.count(Event::SlabNew));
    m.objects(cache, 25);
    assert_eq!((m.count(Event::SheafSwap), m.count(Event::BarnGet)), (2, 1));
    assert_eq!((m.count(Event::SheafRefill), m.count(Event::SlabNew)), (refills, slabs));
    m.check();
}

#[test]
fn a_barn_takes_ten_sheaves_and_then_the_spare_is_flushed() {
    let mut geometry: Geometry = testing::flat(4096);
    geometry.cpus = 1;
    let m = Machine::new(&geometry);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 408);
    // Main, spare and ten full sheaves in the barn.
    m.free_all(cache, objects[..12 * 12].iter().copied());
    assert_eq!((m.count(Event::BarnPut), m.count(Event::SheafFlush)), (10, 0));
    let free_before = m.info(cache).free_in_slabs;
    m.free_all(cache, [objects[12 * 12]]);
    assert_eq!((m.count(Event::BarnPut), m.count(Event::SheafFlush)), (10, 1));
    let info = m.info(cache);
    assert_eq!(info.in_sheaves, 11 * CAPACITY + 1);
    assert_eq!(info.free_in_slabs, free_before + CAPACITY);
    m.check();
}

#[test]
fn another_cpu_takes_from_the_barn_what_the_first_put_there() {
    let (m, cache) = machine_with_cache(2);
    let objects = eighteen_slabs_full(&m, cache);
    m.free_all(cache, objects[..25].iter().copied());
    m.run_on(1);
    m.objects(cache, 1);
    assert_eq!(m.count(Event::BarnGet), 1);
    m.check();
}

#[test]
fn objects_are_taken_from_partial_slabs_before_a_new_slab_is_made() {
    let (m, cache) = machine_with_cache(1);
    let objects = eighteen_slabs_full(&m, cache);
    m.free_all(cache, [objects[3], objects[40], objects[90]]);
    m.reclaim();
    let slabs = m.count(Event::SlabNew);
    let mut again = m.objects(cache, 3);
    again.sort_unstable();
    assert_eq!(again, [objects[3], objects[40], objects[90]]);
    assert_eq!(m.count(Event::SlabNew), slabs + 2, "nine more objects fill the sheaf");
}

#[test]
fn a_refill_fills_the_whole_sheaf_with_as_many_slabs_as_it_takes() {
    let (m, cache) = machine_with_cache(1);
    m.objects(cache, 1);
    // The sheaf holds 12, a slab gives 8; the other four stay in the second slab.
    let info = m.info(cache);
    assert_eq!((m.count(Event::SlabNew), info.in_sheaves, info.free_in_slabs), (2, 11, 4));
}

#[test]
fn a_refill_takes_what_it_gets_when_no_second_slab_can_be_had() {
    let (m, cache) = machine_with_cache(1);
    let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
    m.pages.free_pages(hog[0], Order::ZERO).unwrap();
    m.objects(cache, 1);
    assert_eq!((m.info(cache).in_sheaves, m.count(Event::SheafRefillShort)), (3, 1), "one page holds four");
    m.check();
}

#[test]
fn a_caller_that_may_not_spin_gets_one_object_straight_from_a_slab() {
    let (m, cache) = machine_with_cache(1);
    m.alloc(cache, GfpFlags::empty()).unwrap();
    let info = m.info(cache);
    assert_eq!((info.in_sheaves, info.free_in_slabs, m.count(Event::SlabDirectAlloc)), (0, 7, 1));
    m.alloc(cache, GfpFlags::NOWAIT).unwrap();
    assert_eq!(m.info(cache).in_sheaves, 11, "it may spin");
}

#[test]
fn a_call_that_finds_the_sheaves_in_use_works_on_the_slabs() {
    let (m, cache) = machine_with_cache(1);
    let objects = m.objects(cache, 3);
    let interrupted = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    let direct = m.objects(cache, 10);
    m.free_all(cache, direct.iter().copied().chain([objects[0]]));
    m.reclaim();
    drop(interrupted);
    assert_eq!(m.info(cache).in_sheaves, 9);
    m.check();
}

#[test]
fn frees_on_every_cpu_are_flushed_from_one() {
    let (m, cache) = machine_with_cache(4);
    let before = m.use_of_pages();
    let objects = m.objects(cache, 100);
    for (n, object) in objects.into_iter().enumerate() {
        m.run_on(n as u16 % 4);
        m.free_all(cache, [object]);
    }
    m.check();
    m.run_on(2);
    let pages = m.slab.nr_pages();
    assert_eq!(m.reclaim(), pages);
    assert_eq!(m.use_of_pages(), before);
    assert_eq!(m.slab.pool.free_count(), m.slab.pool.len());
    m.check();
}

fn with_pockets() -> (Machine, CacheId) {
    let mut geometry = testing::flat(1024);
    (geometry.cpus, geometry.pocket) = (2, 2);
    let m = Machine::new(&geometry);
    let cache = m.cache(&CacheArgs::new(1024));
    (m, cache)
}

#[test]
fn full_sheaves_go_to_the_pocket_before_the_barn_and_come_from_there_first() {
    let (m, cache) = with_pockets();
    let objects = m.objects(cache, 144);
    // Main and spare hold two sheaves, the pocket two more, and the fifth goes to the barn.
    m.free_all(cache, objects[..48].iter().copied());
    assert_eq!((m.count(Event::PocketPut), m.count(Event::BarnPut)), (2, 0));
    m.free_all(cache, objects[48..60].iter().copied());
    assert_eq!((m.count(Event::PocketPut), m.count(Event::BarnPut)), (2, 1));
    assert_eq!(m.info(cache).in_sheaves, 60);
    m.check();
    m.objects(cache, 48);
    assert_eq!((m.count(Event::PocketGet), m.count(Event::BarnGet)), (2, 0));
    m.objects(cache, 12);
    assert_eq!((m.count(Event::PocketGet), m.count(Event::BarnGet)), (2, 1));
    m.check();
}

#[test]
fn reclaim_empties_the_pockets_of_all_cpus() {
    let (m, cache) = with_pockets();
    let before = m.use_of_pages();
    let objects = m.objects(cache, 96);
    m.free_all(cache, objects[..48].iter().copied());
    m.run_on(1);
    m.free_all(cache, objects[48..].iter().copied());
    assert_eq!(m.count(Event::PocketPut), 4);
    m.check();
    m.reclaim();
    assert_eq!(m.use_of_pages(), before);
    assert_eq!(m.slab.pool.free_count(), m.slab.pool.len());
    m.check();
}

#[test]
fn a_pocket_leaves_half_of_the_buffers_to_others() {
    let (m, cache) = with_pockets();
    let objects = m.objects(cache, 144);
    let held: Vec<_> = std::iter::from_fn(|| m.slab.pool.take_if_plenty()).collect();
    assert_eq!(m.slab.pool.free_count(), m.slab.pool.len() / 2);
    m.free_all(cache, objects[..37].iter().copied());
    assert_eq!((m.count(Event::PocketPut), m.count(Event::BarnPut)), (0, 2));
    held.into_iter().for_each(|id| m.slab.pool.put(id));
    m.check();
}

#[test]
fn without_buffers_half_of_the_main_sheaf_goes_back_to_the_slabs() {
    let (m, cache) = machine_with_cache(1);
    let objects = eighteen_slabs_full(&m, cache);
    let held: Vec<_> = std::iter::from_fn(|| m.slab.pool.take()).collect();
    m.free_all(cache, objects[..13].iter().copied());
    assert_eq!((m.info(cache).in_sheaves, m.count(Event::SheafFlush)), (7, 1));
    held.into_iter().for_each(|id| m.slab.pool.put(id));
    m.check();
}

#[test]
fn an_empty_slab_is_released_when_five_are_partial() {
    let m = Machine::with_cpus(1);
    // Without sheaves each free reaches its slab.
    let cache = m.slab.internal_create(&m.pages, "direct", &CacheArgs::new(1024)).unwrap();
    let alloc = |_| m.slab.internal_alloc(&m.pages, cache, crate::gfp::GfpFlags::KERNEL).unwrap();
    let objects: Vec<_> = (0..64).map(alloc).collect();
    assert_eq!(m.info(cache).nr_slabs, 8);
    objects.into_iter().for_each(|object| m.slab.internal_free(&m.pages, cache, object).unwrap());
    assert_eq!((m.info(cache).nr_slabs, m.count(Event::SlabRelease)), (4, 4));
    m.check();
    m.reclaim();
    assert_eq!(m.info(cache).nr_slabs, 0);
}
