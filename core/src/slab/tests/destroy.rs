//! Destroying caches, with and without live objects.

use super::{CacheArgs, Destroyed, Machine};
use crate::buddy::OwnerClass;
use crate::error::{AllocError, CacheError, CacheId, FreeError};
use crate::gfp::GfpFlags;
use crate::platform::Event;
use std::string::ToString;
use std::vec::Vec;

#[test]
fn a_cache_without_live_objects_gives_everything_back() {
    let m = Machine::with_cpus(2);
    let before = m.use_of_pages();
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 20);
    m.run_on(1);
    m.free_all(cache, objects);
    assert_eq!(m.destroy(cache), Ok(Destroyed::Released));
    assert_eq!(m.use_of_pages(), before);
    assert!(m.slab.cache_info(&m.pages, cache).is_none());
    m.check();
}

#[test]
fn a_second_destroy_is_refused() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(200));
    assert_eq!(m.destroy(cache), Ok(Destroyed::Released));
    assert_eq!(m.destroy(cache), Err(CacheError::Unknown(cache.get())));
    let next = m.cache(&CacheArgs::new(200));
    assert_ne!(next, cache, "the number stays vacant while there are others");
    assert_eq!(m.destroy(cache), Err(CacheError::Unknown(cache.get())));
    assert_eq!(m.destroy(next), Ok(Destroyed::Released));
}

#[test]
fn built_in_caches_are_not_destroyed() {
    let m = Machine::with_cpus(1);
    let internal = m.slab.internal_create(&m.pages, "vmap_area", &CacheArgs::new(64)).unwrap();
    for cache in [Machine::class(0), internal] {
        assert_eq!(m.destroy(cache), Err(CacheError::BuiltIn));
    }
    assert_eq!(m.destroy(CacheId::new(500)), Err(CacheError::Unknown(500)));
}

#[test]
fn live_objects_are_named_and_lost_with_their_slabs() {
    let m = Machine::with_cpus(2);
    let cache = m.cache(&CacheArgs::new(1024));
    let objects = m.objects(cache, 20);
    m.fill(objects[9], 1024, 0x77);
    m.run_on(1);
    m.free_all(cache, (0..20).filter(|&n| n != 9 && n != 19).map(|n| objects[n]));
    let mut named = Vec::new();
    let answer = m.slab.cache_destroy(&m.pages, cache, &mut |object| named.push(object), &|| ());
    // 16 objects fit a slab of four pages: the two are in different ones.
    assert_eq!(answer, Ok(Destroyed::Leaked { objects: 2, pages: 8 }));
    assert_eq!(answer.unwrap().errors(), 3);
    let addresses: Vec<_> = named.iter().map(|object| object.addr).collect();
    assert_eq!(addresses, [objects[19], objects[9]]);
    assert!(named[0].to_string().contains("remains in cache test"), "{}", named[0]);
    m.check();
    assert_eq!(m.pages.owned(OwnerClass::Leaked), 8);
    assert_eq!(m.bytes(objects[9], 1024), [0x77; 1024]);
    for object in [objects[9], objects[19]] {
        assert_eq!(m.kfree(object), Err(FreeError::Leaked(object)));
        assert_eq!(m.slab.cache_free(&m.pages, cache, object), Err(FreeError::Leaked(object)));
    }
    assert_eq!(m.count(Event::CacheLeaked), 1);
}

#[test]
fn the_name_of_a_leaky_cache_can_be_used_again() {
    let m = Machine::with_cpus(1);
    let create = || m.slab.cache_create(&m.pages, "again", &CacheArgs::new(64)).unwrap();
    let first = create();
    m.objects(first, 1);
    assert_eq!(m.destroy(first).map(|gone| gone.errors()), Ok(2));
    let second = create();
    assert_eq!(m.count(Event::CacheNameTaken), 0);
    let objects = m.objects(second, 100);
    m.free_all(second, objects);
    assert_eq!(m.destroy(second), Ok(Destroyed::Released));
    create();
    create();
    assert_eq!(m.count(Event::CacheNameTaken), 1);
    m.check();
}

#[test]
fn a_destroyed_cache_serves_nothing() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(256));
    m.objects(cache, 1);
    assert!(m.destroy(cache).is_ok());
    let refused = m.alloc(cache, GfpFlags::KERNEL);
    assert_eq!(refused, Err(AllocError::BadFlags));
}
