//! Tests of [`super::Caches`].

use super::*;
use crate::model::caches::CacheSpec;
use crate::oracle::fake::{FakeSubject, ask, context, step};
use kmem::{GfpFlags, SlabFlags};

fn plain(size: usize) -> CacheSpec {
    CacheSpec { size, ..CacheSpec::default() }
}

fn create(spec: CacheSpec, reply: Reply) -> Step {
    step(Call::CacheCreate { spec }, reply)
}

/// A machine with one cache of 64 bytes and one live object in frame 4.
fn one_object() -> (FakeSubject, crate::model::Model, CacheId, u64) {
    let mut subject = FakeSubject::new(64);
    let mut model = subject.model();
    let cache = subject.add_cache("test-0", 64, 3, 0);
    ask(&Caches, &mut model, &mut subject, &create(plain(64), Reply::Cache(cache))).unwrap();
    let addr = subject.direct(4);
    let call = Call::CacheAlloc { cache, gfp: GfpFlags::KERNEL };
    ask(&Caches, &mut model, &mut subject, &step(call, Reply::Block { addr, usable: 64 })).unwrap();
    (subject, model, cache, addr)
}

fn destroy(cache: CacheId, what: Destroyed, named: &[u64]) -> Step {
    step(Call::CacheDestroy { cache }, Reply::Destroyed { what, named: named.to_vec() })
}

#[test]
fn a_refusal_needs_a_reason() {
    let mut subject = FakeSubject::new(64);
    let mut model = subject.model();
    let mut refused =
        |spec, error| ask(&Caches, &mut model, &mut subject, &create(spec, Reply::CacheRefused(error))).is_ok();
    assert!(!refused(plain(64), CacheError::BadFlags));
    assert!(refused(CacheSpec { flags: SlabFlags::KMALLOC, ..plain(64) }, CacheError::BadFlags));
    assert!(!refused(plain(64), CacheError::TooMany(64)));
    assert!(!refused(plain(64), CacheError::Injected(kmem::FaultPoint::Cache)));
}

#[test]
fn a_cache_that_makes_no_sense_must_be_refused() {
    let mut subject = FakeSubject::new(64);
    let mut model = subject.model();
    let absurd = create(CacheSpec { align: 3, ..plain(64) }, Reply::Cache(CacheId::new(50)));
    assert!(ask(&Caches, &mut model, &mut subject, &absurd).is_err());
}

#[test]
fn the_report_names_exactly_the_live_objects() {
    let leaked = Destroyed::Leaked { objects: 1, pages: 1 };
    for (what, right, named) in [
        (leaked, true, &[0][..]),
        (leaked, false, &[][..]),
        (leaked, false, &[0, 64][..]),
        (Destroyed::Released, false, &[0][..]),
        (Destroyed::Released, false, &[][..]),
        (Destroyed::Shared { users: 1 }, false, &[][..]),
    ] {
        let (mut subject, mut model, cache, addr) = one_object();
        let named: Vec<u64> = named.iter().map(|offset| addr + offset).collect();
        let verdict = ask(&Caches, &mut model, &mut subject, &destroy(cache, what, &named));
        assert_eq!(verdict.is_ok(), right, "{what:?} {named:?}");
    }
}

#[test]
fn a_leaked_object_keeps_its_place_its_frame_and_its_contents() {
    let (mut subject, mut model, cache, addr) = one_object();
    let leaked = Destroyed::Leaked { objects: 1, pages: 1 };
    ask(&Caches, &mut model, &mut subject, &destroy(cache, leaked, &[addr])).unwrap();
    let call = Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL };
    let over = step(call, Reply::Block { addr: addr + 32, usable: 64 });
    assert!(ask(&Caches, &mut model, &mut subject, &over).is_err());
    subject.caches.clear();
    subject.counters.leaked = 1;
    let mut audit = |subject: &mut FakeSubject| Caches.audit(&mut context(&mut model, subject));
    assert!(audit(&mut subject).is_err(), "the frame is not marked");
    subject.kinds[4] = FrameKind::Leaked;
    assert_eq!(audit(&mut subject), Ok(()));
    subject.counters.leaked = 2;
    assert!(audit(&mut subject).is_err());
}

#[test]
fn aliases_are_counted_and_strays_are_found() {
    let (mut subject, mut model, _, _) = one_object();
    assert_eq!(Caches.audit(&mut context(&mut model, &mut subject)), Ok(()));
    ask(&Caches, &mut model, &mut subject, &create(plain(60), Reply::Cache(CacheId::new(50)))).unwrap();
    assert!(Caches.audit(&mut context(&mut model, &mut subject)).is_err(), "one alias too few");
    subject.caches[0].aliases = 1;
    assert_eq!(Caches.audit(&mut context(&mut model, &mut subject)), Ok(()));
    subject.caches[0].object_size = 60;
    assert!(Caches.audit(&mut context(&mut model, &mut subject)).is_err());
    subject.caches[0].object_size = 64;
    subject.add_cache("test-9", 32, 0, 0);
    assert!(Caches.audit(&mut context(&mut model, &mut subject)).is_err(), "a cache that nobody made");
}
