//! Linux's `lib/tests/slub_kunit.c` under its own names, with its own numbers: what the checks of a debug cache find, counted
//! as Linux counts it, each report and each repair once.
//!
//! Line by line of section 5.2: `clobber_zone`, `next_pointer`, `first_word`, `clobber_50th_byte`, `clobber_redzone_free`,
//! `kmalloc_redzone_access`, `kfree_rcu`, `kfree_rcu_wq_destroy`, `leak_destroy` and `krealloc_redzone_zeroing` are here;
//! `kmalloc_kfree_nolock`, which interrupts the allocator, is in `core/src/slab/tests/nolock.rs`, where a lock can be held.
//!
//! The kmalloc caches get their flags from the geometry, as `slab_debug=` gives them in Linux; the other caches are made here.

use kmem::{CacheArgs, CacheId, Destroyed, Geometry, GfpFlags, SlabFlags, SlubDebug, VirtAddr};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::model::RcuCall;
use kmem_harness::subject::{Call, Reply, Subject};
use kmem_harness::subjects::{KmemSubject, Spare};

const KERNEL: GfpFlags = GfpFlags::KERNEL;

/// A machine whose classes have red zones and know what was asked for.
fn machine() -> KmemSubject {
    let mut geometry = Geometry::flat(2048);
    geometry.cpus = 2;
    geometry.slub_debug = SlubDebug::RED_ZONE | SlubDebug::STORE_USER;
    KmemSubject::new(&geometry, Spare::default(), TlbFlushes::Obeyed).unwrap()
}

fn create(subject: &KmemSubject, name: &str, flags: SlabFlags) -> CacheId {
    let args = CacheArgs { flags: flags | SlabFlags::NO_MERGE, ..CacheArgs::new(64) };
    subject.kmem().kmem_cache_create(name, &args).unwrap()
}

/// How often a debug cache has told of something.
fn findings(subject: &KmemSubject) -> u64 {
    subject.white_box().unwrap().slab_findings()
}

fn pending(subject: &KmemSubject, cache: CacheId) -> u64 {
    let mut pending = 0;
    subject.kmem().slabinfo(|info| pending += if info.id == cache { info.rcu_pending } else { 0 });
    pending
}

/// An object of a new cache is given up while a reader may see it.
fn give_up_an_object(subject: &mut KmemSubject, name: &str) -> CacheId {
    let cache = create(subject, name, SlabFlags::empty());
    assert_eq!(subject.call(&Call::Rcu(RcuCall::ReadLock)), Reply::Done);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    subject.kmem().kfree_rcu(object, 0).unwrap();
    assert_eq!(pending(subject, cache), 1);
    cache
}

fn class(subject: &KmemSubject, name: &str) -> CacheId {
    let mut found = None;
    subject.kmem().slabinfo(|info| {
        if info.name.as_str() == name {
            found = Some(info.id);
        }
    });
    found.unwrap()
}

fn validate(subject: &KmemSubject, cache: CacheId) -> u32 {
    subject.kmem().kmem_cache_validate(cache).unwrap()
}

fn write(subject: &mut KmemSubject, object: VirtAddr, at: u64, bytes: &[u8]) {
    subject.write(object.as_u64() + at, bytes).unwrap();
}

fn read<const N: usize>(subject: &mut KmemSubject, object: VirtAddr, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    subject.read(object.as_u64() + at, &mut bytes).unwrap();
    bytes
}

fn finish(subject: &KmemSubject) {
    assert_eq!(subject.kmem().audit(), Ok(()));
}

#[test]
fn clobber_zone() {
    let mut subject = machine();
    let cache = create(&subject, "TestSlub_RZ_alloc", SlabFlags::RED_ZONE);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    write(&mut subject, object, 64, &[0x12]);
    assert_eq!(validate(&subject, cache), 2);
    subject.kmem().kmem_cache_free(cache, object).unwrap();
    subject.kmem().kmem_cache_destroy(cache).unwrap();
    finish(&subject);
}

#[test]
fn next_pointer() {
    let mut subject = machine();
    let cache = create(&subject, "TestSlub_next_ptr_free", SlabFlags::POISON);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    subject.kmem().kmem_cache_free(cache, object).unwrap();
    // The free pointer of a poisoned object lies behind it.
    let pointer: [u8; 8] = read(&mut subject, object, 64);
    write(&mut subject, object, 64, &[!pointer[0]]);
    assert_eq!(validate(&subject, cache), 3, "the chain, the count, and the count's repair");
    // The repair cut the chain there: the pointer has to be written again as a whole.
    write(&mut subject, object, 64, &pointer);
    assert_eq!(validate(&subject, cache), 2, "the count, and its repair");
    assert_eq!(validate(&subject, cache), 0);
    subject.kmem().kmem_cache_destroy(cache).unwrap();
    finish(&subject);
}

#[test]
fn first_word() {
    let mut subject = machine();
    let cache = create(&subject, "TestSlub_1th_word_free", SlabFlags::POISON);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    subject.kmem().kmem_cache_free(cache, object).unwrap();
    write(&mut subject, object, 0, &[0x78]);
    assert_eq!(validate(&subject, cache), 2);
    assert_eq!(validate(&subject, cache), 0);
    finish(&subject);
}

#[test]
fn clobber_50th_byte() {
    let mut subject = machine();
    let cache = create(&subject, "TestSlub_50th_word_free", SlabFlags::POISON);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    subject.kmem().kmem_cache_free(cache, object).unwrap();
    write(&mut subject, object, 50, &[0x9a]);
    assert_eq!(validate(&subject, cache), 2);
    finish(&subject);
}

#[test]
fn clobber_redzone_free() {
    let mut subject = machine();
    let cache = create(&subject, "TestSlub_RZ_free", SlabFlags::RED_ZONE);
    let object = subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    subject.kmem().kmem_cache_free(cache, object).unwrap();
    write(&mut subject, object, 64, &[0xab]);
    assert_eq!(validate(&subject, cache), 2);
    assert_eq!(validate(&subject, cache), 0);
    finish(&subject);
}

#[test]
fn kmalloc_redzone_access() {
    let mut subject = machine();
    let cache = class(&subject, "kmalloc-32");
    let block = subject.kmem().kmalloc(18, KERNEL).unwrap();
    write(&mut subject, block, 18, &[0xab, 0xab]);
    assert_eq!(validate(&subject, cache), 2, "both bytes are one damage");
    subject.kmem().kfree(block).unwrap();
    finish(&subject);
}

#[test]
fn krealloc_redzone_zeroing() {
    let mut subject = machine();
    let cache = class(&subject, "kmalloc-64");
    let zeroed = KERNEL | GfpFlags::ZERO;
    let block = subject.kmem().kmalloc(48, zeroed).unwrap();
    write(&mut subject, block, 0, &[0xff; 48]);

    assert_eq!(subject.kmem().krealloc(block, 40, zeroed), Ok(block));
    assert_eq!(read::<24>(&mut subject, block, 40), [0xcc; 24]);

    assert_eq!(subject.kmem().krealloc(block, 56, zeroed), Ok(block));
    assert_eq!(read::<16>(&mut subject, block, 40), [0; 16]);
    assert_eq!(read::<8>(&mut subject, block, 56), [0xcc; 8]);
    assert_eq!(validate(&subject, cache), 0);

    write(&mut subject, block, 0, &[0xff; 56]);
    let moved = subject.kmem().krealloc(block, 112, zeroed).unwrap();
    assert_ne!(moved, block);
    assert_eq!(read::<56>(&mut subject, moved, 0), [0xff; 56]);
    assert_eq!(read::<56>(&mut subject, moved, 56), [0; 56]);
    subject.kmem().kfree(moved).unwrap();
    finish(&subject);
}

#[test]
fn kfree_rcu() {
    let mut subject = machine();
    let cache = give_up_an_object(&mut subject, "TestSlub_kfree_rcu");
    let destroyed = subject.kmem().kmem_cache_destroy(cache).unwrap();
    assert_eq!((destroyed, destroyed.errors(), findings(&subject)), (Destroyed::Released, 0, 0));
    finish(&subject);
}

/// The caches are destroyed by a worker on another CPU.
#[test]
fn kfree_rcu_wq_destroy() {
    let mut subject = machine();
    for _ in 0..10 {
        let cache = give_up_an_object(&mut subject, "TestSlub_kfree_rcu_wq");
        assert_eq!(subject.call(&Call::SetCpu { cpu: 1 }), Reply::Done);
        let destroyed = subject.kmem().kmem_cache_destroy(cache).unwrap();
        assert_eq!((destroyed, destroyed.errors(), findings(&subject)), (Destroyed::Released, 0, 0));
        assert_eq!(subject.call(&Call::SetCpu { cpu: 0 }), Reply::Done);
        finish(&subject);
    }
}

#[test]
fn leak_destroy() {
    let subject = machine();
    let cache = create(&subject, "TestSlub_kmem_cache_leak", SlabFlags::empty());
    subject.kmem().kmem_cache_alloc(cache, KERNEL).unwrap();
    let destroyed = subject.kmem().kmem_cache_destroy(cache).unwrap();
    assert_eq!(destroyed.errors(), 2, "one for the object, one for the cache: {destroyed}");
    finish(&subject);
}
