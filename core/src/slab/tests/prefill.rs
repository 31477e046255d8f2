//! Sheaves filled beforehand.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::{AllocError, CacheId, FreeError};
use crate::fault::FaultPoint;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use crate::slab::PrefilledSheaf;
use std::vec::Vec;

type Sheaf = PrefilledSheaf<64>;

fn machine() -> (Machine, CacheId) {
    let m = Machine::with_cpus(2);
    let cache = m.cache(&CacheArgs::new(1024));
    (m, cache)
}

impl Machine {
    fn prefill(&self, cache: CacheId, count: usize) -> Result<Sheaf, AllocError> {
        self.slab.prefill_sheaf(&self.pages, cache, GfpFlags::KERNEL, count)
    }

    fn take_from(&self, sheaf: &mut Sheaf) -> Result<VirtAddr, AllocError> {
        self.slab.alloc_from_sheaf(&self.pages, sheaf, GfpFlags::ATOMIC)
    }

    fn take_all(&self, sheaf: &mut Sheaf) -> Vec<VirtAddr> {
        std::iter::from_fn(|| self.take_from(sheaf).ok()).collect()
    }
}

#[test]
fn as_many_objects_as_were_obtained_are_there_when_memory_is_gone() {
    for count in [1, 12, 13, 64] {
        let (m, cache) = machine();
        let mut sheaf = m.prefill(cache, count).unwrap();
        assert_eq!((sheaf.len(), m.info(cache).reserved, m.info(cache).active_objs), (count, count as u64, 0));
        m.check();
        let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
        for point in FaultPoint::ALL {
            m.pages.base.platform.fail(point, 0);
        }
        let mut objects = m.take_all(&mut sheaf);
        assert_eq!(m.take_from(&mut sheaf), Err(AllocError::SheafEmpty));
        objects.sort_unstable();
        objects.dedup();
        assert_eq!((objects.len(), m.info(cache).active_objs, m.info(cache).reserved), (count, count as u64, 0));
        m.free_all(cache, objects);
        m.slab.return_sheaf(&m.pages, sheaf);
        m.check();
        drop(hog);
    }
}

#[test]
fn what_is_left_goes_back_to_the_sheaves_of_the_cpu_and_from_an_oversize_sheaf_to_the_slabs() {
    let (m, cache) = machine();
    let mut sheaf = m.prefill(cache, 12).unwrap();
    let object = m.take_from(&mut sheaf).unwrap();
    m.run_on(1);
    m.slab.return_sheaf(&m.pages, sheaf);
    assert_eq!((m.info(cache).in_sheaves, m.info(cache).reserved), (11, 0));
    let slabs = m.count(Event::SlabNew);
    m.objects(cache, 11);
    assert_eq!(m.count(Event::SlabNew), slabs, "CPU 1 has them");
    let oversize = m.prefill(cache, 13).unwrap();
    let cached = m.info(cache).in_sheaves;
    m.slab.return_sheaf(&m.pages, oversize);
    assert_eq!((m.info(cache).in_sheaves, m.count(Event::SheafPrefilledOversize)), (cached, 1));
    m.free_all(cache, [object]);
    m.check();
}

#[test]
fn a_refill_adds_what_is_missing_and_a_refused_one_changes_nothing() {
    let (m, cache) = machine();
    let mut sheaf = m.prefill(cache, 10).unwrap();
    let taken = m.take_all(&mut sheaf);
    let refill = |sheaf: &mut Sheaf, count| m.slab.refill_sheaf(&m.pages, sheaf, GfpFlags::KERNEL, count);
    refill(&mut sheaf, 4).unwrap();
    refill(&mut sheaf, 2).unwrap();
    assert_eq!(sheaf.len(), 4, "it has more than asked for");
    refill(&mut sheaf, 40).unwrap();
    assert_eq!(sheaf.len(), 40);
    assert_eq!(refill(&mut sheaf, 65), Err(AllocError::TooLarge { requested: 65, limit: 64 }));
    m.pages.base.platform.fail(FaultPoint::Slab, 0);
    assert_eq!(refill(&mut sheaf, 50), Err(AllocError::Injected(FaultPoint::Slab)));
    let hog: Vec<_> = std::iter::from_fn(|| m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).ok()).collect();
    assert!(refill(&mut sheaf, 64).is_err());
    assert_eq!((sheaf.len(), m.info(cache).reserved), (40, 40));
    m.check();
    assert_eq!(m.take_all(&mut sheaf).len() + taken.len(), 50);
    drop(hog);
    m.slab.return_sheaf(&m.pages, sheaf);
    m.check();
}

#[test]
fn nonsense_is_refused() {
    let (m, cache) = machine();
    assert!(matches!(m.prefill(cache, 0), Err(AllocError::ZeroSize)));
    assert!(matches!(m.prefill(cache, 65), Err(AllocError::TooLarge { .. })));
    assert!(matches!(m.prefill(CacheId::new(60), 3), Err(AllocError::BadFlags)));
    let constructed = m.cache(&CacheArgs { ctor: Some(|object| object.fill(1)), ..CacheArgs::new(100) });
    let mut sheaf = m.prefill(constructed, 3).unwrap();
    let zeroed = m.slab.alloc_from_sheaf(&m.pages, &mut sheaf, GfpFlags::ZERO);
    assert_eq!((zeroed, sheaf.len()), (Err(AllocError::BadFlags), 3));
    m.slab.return_sheaf(&m.pages, sheaf);
    m.check();
}

#[test]
fn nobody_frees_an_object_that_waits_in_a_prefilled_sheaf() {
    let (m, cache) = machine();
    let mut sheaf = m.prefill(cache, 2).unwrap();
    let object = m.take_from(&mut sheaf).unwrap();
    m.free_all(cache, [object]);
    let waiting = sheaf.left()[0];
    assert_eq!(m.kfree(waiting), Err(FreeError::DoubleFree(waiting)));
    assert_eq!(m.take_from(&mut sheaf), Ok(waiting));
    m.free_all(cache, [waiting]);
    m.slab.return_sheaf(&m.pages, sheaf);
    m.reclaim();
    assert_eq!(m.info(cache).nr_slabs, 0);
    m.check();
}
