//! Creating, trimming, destroying caches; constructors; what `cache_info` tells.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::{AllocError, CacheError, CacheId};
use crate::fault::FaultPoint;
use crate::geometry::ZoneKind;
use crate::gfp::GfpFlags;
use crate::slab::{CtorObject, SlabFlags};
use crate::testing;
use std::cell::Cell;
use std::vec::Vec;

std::thread_local! {
    static BUILT: Cell<usize> = const { Cell::new(0) };
}

fn count_and_stamp(object: &mut CtorObject<'_>) {
    BUILT.set(BUILT.get() + 1);
    object.fill(0xc0);
    assert!(object.write(0, b"built"));
}

#[test]
fn a_constructor_runs_once_per_object_when_its_slab_is_made() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs { ctor: Some(count_and_stamp), ..CacheArgs::new(512) });
    assert_eq!(BUILT.get(), 0);
    let objects = m.objects(cache, 1);
    assert_eq!(BUILT.get(), 32, "all objects of the four slabs that fill a sheaf");
    assert_eq!(m.bytes(objects[0], 6), *b"built\xc0");
    m.fill(objects[0], 5, b'x');
    m.free_all(cache, objects);
    let again = m.objects(cache, 28);
    assert_eq!(BUILT.get(), 32, "not on allocation, not on free");
    assert!(again.iter().any(|&object| m.bytes(object, 5) == *b"xxxxx"));
    m.objects(cache, 1);
    assert_eq!(BUILT.get(), 56, "four objects were left");
}

#[test]
fn a_constructed_object_is_not_zeroed() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs { ctor: Some(count_and_stamp), ..CacheArgs::new(512) });
    let zeroed = m.alloc(cache, GfpFlags::KERNEL | GfpFlags::ZERO);
    assert_eq!(zeroed, Err(AllocError::BadFlags));
}

#[test]
fn a_zeroed_object_is_zero_up_to_its_size() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(100));
    let object = m.alloc(cache, GfpFlags::KERNEL | GfpFlags::ZERO).unwrap();
    assert_eq!(m.bytes(object, 100), [0; 100]);
}

#[test]
fn bad_arguments_are_named() {
    let m = Machine::with_cpus(1);
    let create = |name: &str, args: CacheArgs| m.slab.cache_create(&m.pages, name, &args).unwrap_err();
    let long = core::str::from_utf8(&[b'n'; 32]).unwrap();
    assert_eq!(create("", CacheArgs::new(8)), CacheError::BadName);
    assert_eq!(create(long, CacheArgs::new(8)), CacheError::BadName);
    for align in [3, 8192] {
        assert_eq!(create("c", CacheArgs { align, ..CacheArgs::new(8) }), CacheError::BadAlign(align));
    }
    for size in [(4 << 20) + 1, usize::MAX] {
        assert_eq!(create("c", CacheArgs::new(size)), CacheError::BadSize(size));
    }
    let flags = SlabFlags::CACHE_DMA | SlabFlags::CACHE_DMA32;
    assert_eq!(create("c", CacheArgs { flags, ..CacheArgs::new(8) }), CacheError::BadFlags);
}

#[test]
fn objects_have_the_size_and_alignment_asked_for() {
    let m = Machine::with_cpus(1);
    for (size, align, flags, stride) in [
        (0, 0, SlabFlags::empty(), 8),
        (20, 4, SlabFlags::empty(), 24),
        (24, 0, SlabFlags::HWCACHE_ALIGN, 32),
        (100, 0, SlabFlags::HWCACHE_ALIGN, 128),
        (100, 4096, SlabFlags::empty(), 4096),
        (5000, 256, SlabFlags::NO_MERGE, 5120),
    ] {
        let cache = m.cache(&CacheArgs { align, flags, ..CacheArgs::new(size) });
        let info = m.info(cache);
        assert_eq!((info.object_size, info.size), (size, stride));
        for object in m.objects(cache, 20) {
            assert!(object.is_aligned(info.align as u64) && info.align >= align);
            assert_eq!(m.slab.ksize(&m.pages, object), Ok(stride));
        }
    }
    m.check();
}

#[test]
fn slabs_come_from_the_zone_that_the_cache_names() {
    let m = Machine::new(&testing::zoned(&[(ZoneKind::Dma, 0, 64), (ZoneKind::Normal, 64, 192)]));
    let cache = m.cache(&CacheArgs { flags: SlabFlags::CACHE_DMA, ..CacheArgs::new(64) });
    assert!(m.phys(m.objects(cache, 1)[0]).pfn().unwrap().as_u32() < 64);
    let normal = m.cache(&CacheArgs::new(64));
    let asked = m.alloc(normal, GfpFlags::KERNEL | GfpFlags::DMA).unwrap();
    assert!(m.phys(asked).pfn().unwrap().as_u32() >= 64, "a cache's slabs do not follow one caller's zone");
}

#[test]
fn there_is_room_for_as_many_caches_as_the_geometry_says() {
    let m = Machine::with_cpus(1);
    let mut ids: Vec<CacheId> = Vec::new();
    let refused = loop {
        match m.slab.cache_create(&m.pages, "many", &CacheArgs::new(64)) {
            Ok(id) => ids.push(id),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, CacheError::TooMany(64));
    assert_eq!(ids.len(), 64 - 39);
    m.destroy(ids[3]).unwrap();
    assert_eq!(m.slab.cache_create(&m.pages, "again", &CacheArgs::new(8)), Ok(ids[3]));
}

#[test]
fn shrink_tells_whether_a_slab_is_left_and_puts_the_fullest_first() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 24);
    // Slab 0 keeps 1 object, slab 1 keeps 6, slab 2 keeps 3.
    let keep = [1, 6, 3];
    let live = |n: usize| n % 8 < keep[n / 8];
    m.free_all(cache, (0..24).filter(|&n| !live(n)).map(|n| objects[n]));
    assert_eq!(m.slab.cache_shrink(&m.pages, cache), Ok(false));
    let frames = &m.pages.base.frames;
    let node = m.slab.nodes[cache.index()].lock();
    let kept: Vec<u16> = node.partial.iter(frames).map(|head| frames.inuse(head)).collect();
    drop(node);
    assert_eq!(kept, [6, 3, 1]);
    m.check();
    m.free_all(cache, (0..24).filter(|&n| live(n)).map(|n| objects[n]));
    assert_eq!(m.slab.cache_shrink(&m.pages, cache), Ok(true));
    assert_eq!(m.slab.cache_shrink(&m.pages, CacheId::new(60)), Err(CacheError::Unknown(60)));
}

#[test]
fn info_counts_live_cached_and_free_objects() {
    let m = Machine::with_cpus(2);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects: Vec<VirtAddr> = m.objects(cache, 10);
    m.run_on(1);
    m.free_all(cache, objects[..3].iter().copied());
    let info = m.info(cache);
    assert_eq!((info.active_objs, info.num_objs, info.nr_slabs), (7, 16, 1));
    assert_eq!((info.in_sheaves, info.free_in_slabs), (5, 4));
    assert_eq!((info.objects_per_slab, info.order.get(), info.min_order.get()), (16, 2, 0));
    assert_eq!(info.name.as_str(), "test");
    assert_eq!(m.info(Machine::class(9)).name.as_str(), "kmalloc-1k");
}

#[test]
fn a_failed_create_leaves_the_number_free() {
    let m = Machine::with_cpus(1);
    m.pages.base.platform.fail(FaultPoint::Cache, 0);
    let refused = m.slab.cache_create(&m.pages, "c", &CacheArgs::new(8));
    assert_eq!(refused, Err(CacheError::Injected(FaultPoint::Cache)));
    assert_eq!(m.cache(&CacheArgs::new(8)), CacheId::new(39));
}
