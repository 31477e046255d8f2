//! The groups of caches, and of what readers and workers still see.

use super::{G, KERNEL, Kasan};
use kmem::{CacheError, CacheId, FrameKind, FreeError, SlabFlags, VirtAddr};
use kmem_harness::model::RcuCall;
use kmem_harness::model::caches::CacheSpec;
use kmem_harness::subject::{Call, ObjectsCall, Reply, Subject};

fn cache(k: &mut Kasan, size: usize, flags: SlabFlags) -> CacheId {
    let spec = CacheSpec { flags: flags | SlabFlags::NO_MERGE, ..CacheSpec::own(size, 0, false, false) };
    match k.call(Call::CacheCreate { spec }) {
        Reply::Cache(id) => id,
        other => panic!("{other:?}"),
    }
}

/// A cache and an object of it.
fn object(k: &mut Kasan, size: usize, flags: SlabFlags) -> (CacheId, u64) {
    let cache = cache(k, size, flags);
    (cache, k.block(Call::CacheAlloc { cache, gfp: KERNEL }))
}

fn destroy(k: &mut Kasan, cache: CacheId) {
    assert!(matches!(k.call(Call::CacheDestroy { cache }), Reply::Destroyed { .. }));
    assert_eq!(k.subject.kmem().audit(), Ok(()));
}

fn rcu(k: &mut Kasan, call: RcuCall) {
    assert_eq!(k.call(Call::Rcu(call)), Reply::Done);
}

#[test]
fn kmem_cache_oob() {
    let mut k = Kasan::new();
    let (cache, addr) = object(&mut k, 200, SlabFlags::empty());
    k.oob_right(addr, 200, &[0, G - 1]);
    assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_double_free() {
    let mut k = Kasan::new();
    let (cache, addr) = object(&mut k, 200, SlabFlags::empty());
    let free = Call::CacheFree { cache, addr };
    assert_eq!(k.call(free.clone()), Reply::Done);
    assert_eq!(k.call(free), Reply::Rejected(FreeError::DoubleFree(VirtAddr::new(addr))));
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_invalid_free() {
    let mut k = Kasan::new();
    let (cache, addr) = object(&mut k, 200, SlabFlags::TYPESAFE_BY_RCU);
    let (inside, start) = (VirtAddr::new(addr + 1), VirtAddr::new(addr));
    let invalid = k.call(Call::CacheFree { cache, addr: addr + 1 });
    assert_eq!(invalid, Reply::Rejected(FreeError::Interior { addr: inside, start }));
    assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_rcu_uaf() {
    let mut k = Kasan::new();
    let (cache, addr) = object(&mut k, 200, SlabFlags::TYPESAFE_BY_RCU);
    k.subject.write(addr, &[42]).unwrap();
    rcu(&mut k, RcuCall::ReadLock);
    assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    let mut byte = [0];
    k.subject.read(addr, &mut byte).unwrap();
    assert_eq!(byte, [42], "the reader still sees it");
    k.allows_readers(addr, 1, true);
    k.reports(addr, 1);
    rcu(&mut k, RcuCall::ReadUnlock { n: 0 });
    rcu(&mut k, RcuCall::Barrier);
    rcu(&mut k, RcuCall::GracePeriod);
    k.allows_readers(addr, 1, false);
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_rcu_reuse() {
    let mut k = Kasan::new();
    let (cache, addr) = object(&mut k, 16, SlabFlags::TYPESAFE_BY_RCU);
    k.subject.write(addr, &[42]).unwrap();
    rcu(&mut k, RcuCall::ReadLock);
    assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    assert_eq!(k.block(Call::CacheAlloc { cache, gfp: KERNEL }), addr, "an object may be reused at once");
    k.allows(addr, 16);
    let frame = k.subject.kmem().virt_to_pfn(VirtAddr::new(addr)).unwrap();
    assert_eq!(k.subject.kmem().frame_kind(frame), FrameKind::Slab(cache), "and is one of the same type");
    rcu(&mut k, RcuCall::ReadUnlock { n: 0 });
    assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_double_destroy() {
    let mut k = Kasan::new();
    let cache = cache(&mut k, 200, SlabFlags::empty());
    destroy(&mut k, cache);
    assert_eq!(k.call(Call::CacheDestroy { cache }), Reply::CacheRefused(CacheError::Unknown(cache.get())));
}

#[test]
fn kmem_cache_accounted() {
    let mut k = Kasan::new();
    let cache = cache(&mut k, 200, SlabFlags::ACCOUNT);
    for _ in 0..5 {
        let addr = k.block(Call::CacheAlloc { cache, gfp: KERNEL });
        k.allows(addr, 200);
        assert_eq!(k.call(Call::CacheFree { cache, addr }), Reply::Done);
    }
    destroy(&mut k, cache);
}

#[test]
fn kmem_cache_bulk() {
    let mut k = Kasan::new();
    let cache = cache(&mut k, 200, SlabFlags::empty());
    let objects = k.objects(ObjectsCall::AllocBulk { cache, gfp: KERNEL, count: 10 });
    assert_eq!(objects.len(), 10);
    for &addr in &objects {
        k.allows(addr, 1);
        k.allows(addr + 199, 1);
        k.reports(addr, 201);
    }
    let blocks = objects.iter().map(|&addr| (addr, Some(cache))).collect();
    k.give_back(ObjectsCall::FreeBulk { cache: Some(cache), blocks });
    objects.iter().for_each(|&addr| k.reports(addr, 1));
    destroy(&mut k, cache);
}

/// A reader may look until it leaves; who looks later is too late.
#[test]
fn rcu_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(32);
    k.allows(addr, 32);
    rcu(&mut k, RcuCall::ReadLock);
    rcu(&mut k, RcuCall::Kfree { addr, head: 16 });
    k.allows_readers(addr, 16, true);
    k.reports(addr, 1);
    rcu(&mut k, RcuCall::ReadUnlock { n: 0 });
    rcu(&mut k, RcuCall::Barrier);
    k.allows_readers(addr, 16, false);
}

/// A worker on another CPU frees its own work item; who queued it must not look any more.
#[test]
fn workqueue_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(32);
    k.allows(addr, 32);
    k.call(Call::SetCpu { cpu: 1 });
    assert_eq!(k.kfree(addr), Reply::Done);
    k.call(Call::SetCpu { cpu: 0 });
    k.reports(addr, 1);
}
