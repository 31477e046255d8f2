//! Frees that wait for readers, on the test machine.

use super::*;
use crate::error::CacheId;
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::inspect::CacheInfo;
use crate::raw::MetaRegion;
use crate::slab::{CacheArgs, Destroyed, SlabFlags};
use crate::testing::{self, TestPlatform};
use std::vec::Vec;

fn kmem(frames: u32) -> Kmem<TestPlatform> {
    let mut geometry: Geometry = testing::flat(frames);
    geometry.cpus = 2;
    let region = MetaRegion::heap(Kmem::<TestPlatform>::metadata_bytes(&geometry).unwrap());
    Kmem::new(TestPlatform::new(&geometry), &geometry, region).unwrap()
}

fn cache(kmem: &Kmem<TestPlatform>, size: usize, flags: SlabFlags) -> CacheId {
    kmem.kmem_cache_create("c", &CacheArgs { flags, ..CacheArgs::new(size) }).unwrap()
}

fn info(kmem: &Kmem<TestPlatform>, cache: CacheId) -> CacheInfo {
    let mut found = None;
    kmem.slabinfo(|info| found = Some(info).filter(|info| info.id == cache).or(found));
    found.unwrap()
}

fn events(kmem: &Kmem<TestPlatform>, event: Event) -> u64 {
    kmem.platform().count(event)
}

#[test]
fn an_object_stays_until_its_readers_have_gone() {
    let k = kmem(1024);
    let c = cache(&k, 200, SlabFlags::empty());
    k.platform().reader.set(true);
    let object = k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap();
    k.kfree_rcu(object, 0).unwrap();
    k.kfree_rcu_monitor();
    assert_eq!((info(&k, c).active_objs, info(&k, c).rcu_pending), (0, 1));
    assert_eq!(k.kfree(object), Err(FreeError::DoubleFree(object)));
    assert_eq!(k.kfree_rcu(object, 0), Err(FreeError::DoubleFree(object)), "submitted twice");
    k.audit().unwrap();
    k.platform().reader.set(false);
    k.kfree_rcu_monitor();
    assert_eq!(info(&k, c).rcu_pending, 0);
    assert_eq!(k.kmem_cache_alloc(c, GfpFlags::KERNEL), Ok(object), "the same object again");
    k.audit().unwrap();
}

#[test]
fn a_full_sheaf_needs_no_monitor() {
    let k = kmem(1024);
    let c = cache(&k, 1024, SlabFlags::empty());
    let objects: Vec<_> = (0..12).map(|_| k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap()).collect();
    objects.iter().for_each(|&object| k.kfree_rcu(object, 8).unwrap());
    assert_eq!((events(&k, Event::RcuSheaf), events(&k, Event::RcuSheafFull)), (12, 1));
    assert_eq!(info(&k, c).rcu_pending, 0);
    k.audit().unwrap();
}

#[test]
fn caches_without_sheaves_use_the_bulk_buffer() {
    let k = kmem(1024);
    let c = cache(&k, 64, SlabFlags::NOLEAKTRACE);
    k.platform().reader.set(true);
    for _ in 0..70 {
        let object = k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap();
        k.kvfree_rcu_mightsleep(object).unwrap();
    }
    assert_eq!((events(&k, Event::RcuBulk), info(&k, c).rcu_pending), (70, 70));
    k.audit().unwrap();
    k.kvfree_rcu_barrier();
    assert_eq!(info(&k, c).rcu_pending, 0);
    k.audit().unwrap();
}

/// Uses all buffers up, so that nothing but heads is left.
fn without_buffers(k: &Kmem<TestPlatform>) -> CacheId {
    k.platform().reader.set(true);
    let filler = cache(k, 16, SlabFlags::NOLEAKTRACE);
    while events(k, Event::RcuHead) == 0 {
        let object = k.kmem_cache_alloc(filler, GfpFlags::KERNEL).unwrap();
        k.kfree_rcu(object, 0).unwrap();
    }
    filler
}

#[test]
fn without_memory_the_head_in_the_object_is_used() {
    let k = kmem(256);
    let filler = without_buffers(&k);
    let c = cache(&k, 100, SlabFlags::empty());
    let objects: Vec<_> = (0..5).map(|_| k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap()).collect();
    for (n, &object) in objects.iter().enumerate() {
        k.kfree_rcu(object, n * 16).unwrap();
    }
    assert_eq!(events(&k, Event::RcuHead), 6);
    k.audit().unwrap();
    k.kvfree_rcu_barrier();
    assert_eq!((info(&k, c).rcu_pending, info(&k, filler).rcu_pending), (0, 0));
    assert_eq!(events(&k, Event::RcuChainLost), 0);
    k.audit().unwrap();
}

#[test]
fn without_memory_and_head_the_caller_waits() {
    let k = kmem(256);
    let filler = without_buffers(&k);
    let object = k.kmem_cache_alloc(filler, GfpFlags::KERNEL).unwrap();
    k.platform().reader.set(true);
    k.kvfree_rcu_mightsleep(object).unwrap();
    assert_eq!(events(&k, Event::RcuSynchronized), 1);
    assert_eq!(k.kfree(object), Err(FreeError::DoubleFree(object)));
    k.audit().unwrap();
}

#[test]
fn a_chain_that_somebody_wrote_over_is_cut_off() {
    let k = kmem(256);
    let filler = without_buffers(&k);
    let c = cache(&k, 128, SlabFlags::empty());
    let objects: Vec<_> = (0..3).map(|_| k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap()).collect();
    objects.iter().for_each(|&object| k.kfree_rcu(object, 64).unwrap());
    let phys = k.pages.base.phys(objects[2]).unwrap();
    assert!(k.pages.base.mem.fill(phys, 128, 0x6b));
    k.kvfree_rcu_barrier();
    assert_eq!(events(&k, Event::RcuChainLost), 1);
    assert_eq!((info(&k, c).rcu_pending, info(&k, filler).rcu_pending), (2, 1), "lost, not handed out twice");
    k.audit().unwrap();
}

#[test]
fn large_blocks_and_areas_wait_too() {
    let k = kmem(1024);
    let before = k.meminfo();
    k.platform().reader.set(true);
    let (large, area) = (k.kmalloc(20_000, GfpFlags::KERNEL).unwrap(), k.vmalloc(20_000, GfpFlags::KERNEL).unwrap());
    let given = k.meminfo();
    k.kvfree_rcu(large, 4080).unwrap();
    k.kvfree_rcu(area, 8).unwrap();
    for addr in [large, area] {
        assert_eq!(k.kvfree(addr), Err(FreeError::DoubleFree(addr)));
        assert_eq!(k.kvfree_rcu(addr, 0), Err(FreeError::DoubleFree(addr)));
    }
    assert_eq!((k.meminfo().large_kmalloc, k.meminfo().vmalloc), (given.large_kmalloc, given.vmalloc));
    assert!(k.vmalloc_to_page(area).is_some());
    k.audit().unwrap();
    k.reclaim();
    assert_eq!(k.meminfo(), before);
    assert_eq!(events(&k, Event::ReclaimRcu), 1);
    k.audit().unwrap();
}

#[test]
fn a_head_must_fit_the_block() {
    let k = kmem(1024);
    let (small, area) = (k.kmalloc(32, GfpFlags::KERNEL).unwrap(), k.vmalloc(9000, GfpFlags::KERNEL).unwrap());
    for (addr, offset) in [(small, 24), (small, 4), (small, usize::MAX & !7), (area, 4096), (area, 12)] {
        assert_eq!(k.kvfree_rcu(addr, offset), Err(FreeError::BadRcuHead { addr, offset }));
    }
    k.kvfree_rcu(small, 16).unwrap();
    k.kvfree_rcu(area, 4088).unwrap();
    assert_eq!(k.kvfree_rcu(VirtAddr::NULL, 3), Ok(()));
}

#[test]
fn slabs_of_a_typesafe_cache_wait_for_a_grace_period() {
    let k = kmem(1024);
    let c = cache(&k, 1024, SlabFlags::TYPESAFE_BY_RCU);
    let objects: Vec<_> = (0..64).map(|_| k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap()).collect();
    k.platform().reader.set(true);
    objects.iter().for_each(|&object| k.kmem_cache_free(c, object).unwrap());
    assert_eq!(k.kmem_cache_alloc(c, GfpFlags::KERNEL), Ok(objects[63]), "an object may be reused at once");
    k.kmem_cache_free(c, objects[63]).unwrap();
    k.kmem_cache_shrink(c).unwrap();
    let frame = k.virt_to_pfn(objects[0]).unwrap();
    assert_eq!(k.frame_kind(frame), crate::page::FrameKind::Slab(c), "a reader may be there");
    assert!(events(&k, Event::SlabPutOff) > 0);
    k.audit().unwrap();
    k.platform().reader.set(false);
    k.kfree_rcu_monitor();
    assert_ne!(k.frame_kind(frame), crate::page::FrameKind::Slab(c));
    k.audit().unwrap();
}

/// Linux: `test_kfree_rcu` and `test_kfree_rcu_wq_destroy` of `slub_kunit`.
#[test]
fn destroying_a_cache_waits_for_its_pending_frees() {
    let k = kmem(1024);
    let before = k.meminfo();
    for flags in [SlabFlags::empty(), SlabFlags::NOLEAKTRACE, SlabFlags::TYPESAFE_BY_RCU] {
        for _ in 0..10 {
            k.platform().reader.set(true);
            let c = cache(&k, 64, flags | SlabFlags::NO_MERGE);
            let object = k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap();
            k.kfree_rcu(object, 0).unwrap();
            assert_eq!(k.kmem_cache_destroy(c), Ok(Destroyed::Released));
            k.audit().unwrap();
        }
    }
    assert_eq!(events(&k, Event::CacheWaited), 30);
    k.reclaim();
    assert_eq!(k.meminfo(), before);
}

#[test]
fn a_remote_cpu_s_sheaf_is_collected() {
    let k = kmem(1024);
    let c = cache(&k, 64, SlabFlags::empty());
    k.platform().cpu.set(1);
    let object = k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap();
    k.kfree_rcu(object, 0).unwrap();
    k.platform().cpu.set(0);
    k.kvfree_rcu_barrier();
    assert_eq!(events(&k, Event::RcuSheafCollected), 1);
    assert_eq!(info(&k, c).rcu_pending, 0);
}

#[test]
fn reclaim_waits_for_the_slabs_that_it_empties() {
    let k = kmem(1024);
    let before = k.meminfo();
    let c = cache(&k, 512, SlabFlags::TYPESAFE_BY_RCU);
    let object = k.kmem_cache_alloc(c, GfpFlags::KERNEL).unwrap();
    k.platform().reader.set(true);
    k.kmem_cache_free(c, object).unwrap();
    k.reclaim();
    assert_eq!(k.meminfo(), before);
}
