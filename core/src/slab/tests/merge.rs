//! Caches that share slabs.

use super::{CacheArgs, Destroyed, Machine};
use crate::addr::VirtAddr;
use crate::error::{CacheError, CacheId};
use crate::geometry::{Geometry, SlabMerge};
use crate::gfp::GfpFlags;
use crate::platform::Event;
use crate::slab::{CtorObject, SlabFlags};
use crate::testing;
use std::vec::Vec;

fn machine(slab_merge: SlabMerge) -> Machine {
    let mut geometry: Geometry = testing::flat(1024);
    geometry.slab_merge = slab_merge;
    Machine::new(&geometry)
}

fn build(object: &mut CtorObject<'_>) {
    object.fill(1);
}

#[test]
fn objects_that_would_lie_alike_share_slabs() {
    let m = machine(SlabMerge::Similar);
    let root = m.cache(&CacheArgs::new(60));
    let alike = [
        CacheArgs::new(57),
        CacheArgs::new(64),
        CacheArgs { align: 64, ..CacheArgs::new(33) },
        CacheArgs { flags: SlabFlags::HWCACHE_ALIGN, ..CacheArgs::new(40) },
        CacheArgs { flags: SlabFlags::PANIC, ..CacheArgs::new(64) },
    ];
    for (n, args) in alike.iter().enumerate() {
        let alias = m.cache(args);
        assert_ne!(alias, root);
        assert_eq!(m.info(root).aliases as usize, n + 1, "{args:?}");
        assert!(m.slab.cache_info(&m.pages, alias).is_none());
    }
    assert_eq!(m.count(Event::CacheMerged), alike.len() as u64);
    assert_eq!(m.info(root).object_size, 64, "the largest of them");
    m.check();
}

#[test]
fn whatever_would_make_a_difference_keeps_caches_apart() {
    let m = machine(SlabMerge::Similar);
    m.cache(&CacheArgs::new(64));
    let flags = |flags| CacheArgs { flags, ..CacheArgs::new(64) };
    let apart = [
        CacheArgs::new(56),
        CacheArgs::new(65),
        CacheArgs { align: 128, ..CacheArgs::new(64) },
        CacheArgs { ctor: Some(build), ..CacheArgs::new(64) },
        CacheArgs { usersize: 8, ..CacheArgs::new(64) },
        flags(SlabFlags::NO_MERGE),
        flags(SlabFlags::NOLEAKTRACE),
        flags(SlabFlags::FAILSLAB),
        flags(SlabFlags::RECLAIM_ACCOUNT),
        flags(SlabFlags::ACCOUNT),
        flags(SlabFlags::CACHE_DMA),
        flags(SlabFlags::CACHE_DMA32),
    ];
    for args in &apart {
        m.cache(args);
        assert_eq!(m.count(Event::CacheMerged), 0, "{args:?}");
    }
    // A cache that is not shared does not share either.
    m.cache(&CacheArgs { usersize: 8, ..CacheArgs::new(1000) });
    m.cache(&CacheArgs::new(1000));
    assert_eq!(m.count(Event::CacheMerged), 0);
    m.cache(&flags(SlabFlags::RECLAIM_ACCOUNT));
    assert_eq!(m.count(Event::CacheMerged), 1);
    m.check();
}

#[test]
fn a_machine_can_do_without() {
    let m = machine(SlabMerge::Never);
    m.cache(&CacheArgs::new(64));
    m.cache(&CacheArgs::new(64));
    assert_eq!(m.count(Event::CacheMerged), 0);
}

#[test]
fn an_alias_allocates_and_frees_for_all() {
    let m = machine(SlabMerge::Similar);
    let (root, alias) = (m.cache(&CacheArgs::new(60)), m.cache(&CacheArgs::new(64)));
    let other = m.cache(&CacheArgs::new(256));
    let objects: Vec<VirtAddr> = m.objects(alias, 70);
    m.free_all(root, objects[..35].iter().copied());
    m.free_all(alias, objects[35..].iter().copied());
    let object = m.objects(root, 1)[0];
    assert!(m.slab.cache_free(&m.pages, other, object).is_err());
    m.free_all(alias, [object]);
    let zeroed = m.alloc(alias, GfpFlags::KERNEL | GfpFlags::ZERO).unwrap();
    assert_eq!(m.bytes(zeroed, 64), [0; 64]);
    assert_eq!(m.info(root).active_objs, 1);
    assert_eq!(m.slab.cache_shrink(&m.pages, alias), Ok(false));
    m.check();
}

#[test]
fn the_slabs_live_as_long_as_the_last_of_them() {
    for root_first in [true, false] {
        let m = machine(SlabMerge::Similar);
        let before = m.use_of_pages();
        let caches = [m.cache(&CacheArgs::new(60)), m.cache(&CacheArgs::new(64)), m.cache(&CacheArgs::new(64))];
        let order: [usize; 3] = if root_first { [0, 1, 2] } else { [2, 1, 0] };
        let object = m.objects(caches[order[2]], 1);
        for (n, left) in [(order[0], 2), (order[1], 1)] {
            assert_eq!(m.destroy(caches[n]), Ok(Destroyed::Shared { users: left }));
            assert_eq!(m.destroy(caches[n]), Err(CacheError::Unknown(caches[n].get())));
            m.check();
        }
        m.free_all(caches[order[2]], object);
        assert_eq!(m.destroy(caches[order[2]]), Ok(Destroyed::Released));
        assert_eq!(m.use_of_pages(), before);
        m.check();
    }
}

#[test]
fn a_root_that_its_creator_left_takes_new_aliases() {
    let m = machine(SlabMerge::Similar);
    let (root, alias) = (m.cache(&CacheArgs::new(64)), m.cache(&CacheArgs::new(64)));
    assert_eq!(m.destroy(root), Ok(Destroyed::Shared { users: 1 }));
    let late: CacheId = m.cache(&CacheArgs::new(64));
    assert_eq!(m.count(Event::CacheMerged), 2);
    assert_eq!(m.destroy(alias), Ok(Destroyed::Shared { users: 1 }));
    m.objects(late, 1);
    assert_eq!(m.destroy(late).map(|gone| gone.errors()), Ok(2), "the last one answers for what is live");
    m.check();
}
