//! What is tried before a refusal, and when that ends.

use super::*;
use crate::geometry::MinFree;
use crate::raw::MetaRegion;
use crate::testing::{self, TestPlatform};
use std::vec::Vec;

const KERNEL: GfpFlags = GfpFlags::KERNEL;

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

/// What has been tried after one round that brought `given` pages and this compaction.
fn effort(size: u8, gfp: GfpFlags, given: u64, compacted: CompactResult) -> Effort {
    let fresh = Effort::new(&AllocError::NoPages { order: order(size) }, gfp, None);
    Effort { rounds: 1, compactions: 1, given, compacted, ..fresh }
}

#[test]
fn flags_order_and_progress_decide_whether_there_is_another_round() {
    let mayfail = KERNEL | GfpFlags::RETRY_MAYFAIL;
    for (size, gfp, given, why) in [
        (0, KERNEL, 1, None),
        (0, KERNEL, 0, Some(GaveUp::NoProgress)),
        (3, KERNEL, 1, None),
        (4, KERNEL, 1, Some(GaveUp::Costly)),
        (4, mayfail, 1, None),
        // Compaction has not been tried in earnest yet.
        (4, mayfail, 0, None),
        (0, KERNEL | GfpFlags::NORETRY, 1, Some(GaveUp::NoRetry)),
        (4, KERNEL | GfpFlags::NORETRY, 1, Some(GaveUp::NoRetry)),
        (4, KERNEL | GfpFlags::NOFAIL, 1, None),
        (4, KERNEL | GfpFlags::NOFAIL, 0, Some(GaveUp::NofailUnanswered)),
    ] {
        assert_eq!(effort(size, gfp, given, CompactResult::Skipped).why_stop(), why, "order {size}, {gfp:?}, {given}");
    }
}

#[test]
fn progress_is_believed_sixteen_times_unless_the_request_must_not_fail() {
    let after = |rounds, gfp| Effort { rounds, ..effort(0, gfp, 1, CompactResult::Skipped) }.why_stop();
    assert_eq!((after(15, KERNEL), after(16, KERNEL)), (None, Some(GaveUp::TooManyRounds)));
    assert_eq!(after(1000, KERNEL | GfpFlags::NOFAIL), None);
}

#[test]
fn compaction_alone_is_worth_as_many_rounds_as_the_order_deserves() {
    let mayfail = KERNEL | GfpFlags::RETRY_MAYFAIL;
    let lasts = |size, gfp| {
        let goes_on =
            |&n: &u32| Effort { compactions: n, ..effort(size, gfp, 0, CompactResult::Success) }.why_stop().is_none();
        (1..100).take_while(goes_on).count()
    };
    assert_eq!((lasts(3, KERNEL), lasts(4, mayfail)), (16, 4));
    let harder = |size, gfp, compacted| {
        let mut effort = effort(size, gfp, 0, compacted);
        let first = effort.why_stop();
        assert_eq!(effort.why_stop(), Some(GaveUp::NoProgress), "there is nothing harder");
        (first, effort.priority)
    };
    let (once_more, full) = (None, CompactPriority::SyncFull);
    for compacted in [CompactResult::Deferred, CompactResult::Complete, CompactResult::PartialSkipped] {
        assert_eq!(harder(2, KERNEL, compacted), (once_more, full), "with less regard");
        assert_eq!(harder(4, mayfail, compacted), (once_more, full), "costly orders as well, if they insist");
    }
    assert_eq!(harder(4, mayfail, CompactResult::Skipped), (once_more, full), "against the forecast");
    assert_eq!(harder(2, KERNEL, CompactResult::Skipped).0, Some(GaveUp::NoProgress), "too little is free");
}

/// 1024 frames in pageblocks of four, of which 64 are kept back.
fn machine() -> Kmem<TestPlatform> {
    let mut geometry = testing::flat(1024);
    geometry.pageblock_order = order(2);
    geometry.min_free = MinFree::Pages(64);
    let region = MetaRegion::heap(Kmem::<TestPlatform>::metadata_bytes(&geometry).unwrap());
    Kmem::new(TestPlatform::new(&geometry), &geometry, region).unwrap()
}

fn exhaust(k: &Kmem<TestPlatform>, size: u8, gfp: GfpFlags) -> Vec<crate::addr::Pfn> {
    core::iter::from_fn(|| k.alloc_pages(order(size), gfp).ok()).collect()
}

fn count(k: &Kmem<TestPlatform>, event: Event) -> u64 {
    k.platform().count(event)
}

#[test]
fn a_request_that_must_not_fail_gets_into_the_reserve_and_is_refused_when_that_is_gone() {
    let k = machine();
    let _usual = exhaust(&k, 0, KERNEL);
    let given = exhaust(&k, 0, KERNEL | GfpFlags::NOFAIL);
    assert_eq!(given.len(), 32, "half of the min mark");
    assert_eq!((count(&k, Event::NofailReserve), count(&k, Event::NofailUnanswered)), (33, 1));
    let hasty = k.alloc_pages(order(0), GfpFlags::NOWAIT | GfpFlags::NOFAIL);
    assert!(hasty.is_err() && count(&k, Event::NofailMayNotWait) == 1);
    k.audit().unwrap();
}

/// Memory down to the min mark, and free pages in the HIGHATOMIC reserve.
fn with_reserve() -> Kmem<TestPlatform> {
    let k = machine();
    let _usual = exhaust(&k, 1, KERNEL);
    let is_reserved = |page: &crate::addr::Pfn| k.pageblock_type(*page) == Some(crate::MigrateType::HighAtomic);
    let urgent: Vec<_> = (0..6).map(|_| k.alloc_pages(order(1), GfpFlags::ATOMIC).unwrap()).collect();
    let _rest = exhaust(&k, 0, KERNEL | GfpFlags::NORETRY);
    let inside: Vec<_> = urgent.into_iter().filter(is_reserved).collect();
    assert!(!inside.is_empty());
    inside.into_iter().for_each(|first| k.free_pages(first, order(1)).unwrap());
    k
}

#[test]
fn whoever_may_insist_has_the_highatomic_reserve_given_up_and_others_have_not() {
    let k = with_reserve();
    let released = || count(&k, Event::HighAtomicReleased);
    let one_pageblock_left = |k: &Kmem<TestPlatform>| k.pages.zone_info(0).unwrap().reserved_highatomic > 0;
    while k.alloc_pages(order(0), KERNEL | GfpFlags::NORETRY).is_ok() {}
    assert!(one_pageblock_left(&k), "a polite release leaves one");
    let before = released();
    while k.alloc_pages(order(0), KERNEL).is_ok() {}
    assert!(released() > before && count(&k, Event::GaveUpNoProgress) > 0);
    k.audit().unwrap();
}

#[test]
fn an_attempt_finds_what_the_one_before_it_has_left_on_lists() {
    let k = machine();
    let all = exhaust(&k, 0, GfpFlags::HIGHUSER_MOVABLE);
    // 128 single pages above the mark, in pageblocks of another type.
    all.iter().step_by(7).take(128).for_each(|&page| k.free_pages(page, order(0)).unwrap());
    let area = k.vmalloc(140 * crate::addr::PAGE_SIZE, KERNEL | GfpFlags::NOFAIL).unwrap();
    assert_eq!(count(&k, Event::NofailReserve), 1, "the ordinary attempts were not enough");
    k.vfree(area).unwrap();
    k.audit().unwrap();
}

#[test]
fn requests_that_take_over_every_pageblock_still_get_what_movable_areas_leave() {
    let mut geometry = testing::flat(4096);
    // Larger than what one walk empties.
    geometry.pageblock_order = order(9);
    geometry.min_free = MinFree::Pages(32);
    let region = MetaRegion::heap(Kmem::<TestPlatform>::metadata_bytes(&geometry).unwrap());
    let k = Kmem::new(TestPlatform::new(&geometry), &geometry, region).unwrap();
    let area = || k.vmalloc(crate::PAGE_SIZE, GfpFlags::HIGHUSER_MOVABLE | GfpFlags::NOWARN).ok();
    let areas: Vec<_> = core::iter::from_fn(area).collect();
    areas.iter().step_by(2).for_each(|&area| k.vfree(area).unwrap());
    k.reclaim();
    let possible = k.meminfo().free >> 4;
    let blocks = exhaust(&k, 4, KERNEL | GfpFlags::RETRY_MAYFAIL | GfpFlags::NOWARN);
    assert!(count(&k, Event::CompactSpoils) > 0);
    // The marks keep a few pages back, and the last pageblocks are too mixed to be emptied.
    assert!(blocks.len() as u64 * 10 >= possible * 9, "{} of {possible}", blocks.len());
    k.audit().unwrap();
}
