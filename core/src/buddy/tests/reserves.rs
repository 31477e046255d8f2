//! What is kept for some: the HIGHATOMIC reserve, and the areas set aside for contiguous ranges.

use super::{Pages, exhaust, order, pfn, shaped};
use crate::MigrateType;
use crate::addr::{PageCount, Pfn};
use crate::buddy::Release;
use crate::geometry::MinFree;
use crate::geometry::ZoneKind::Normal;
use crate::gfp::GfpFlags;
use crate::mobility::CmaArea;
use crate::order::Order;
use crate::platform::Event;
use crate::testing::page_allocator;
use std::vec::Vec;

/// Pageblocks of four pages; a reserve of two of them is a hundredth of 512 frames, rounded up.
fn machine(frames: u32) -> Pages {
    let mut geometry = shaped(&[(Normal, 0, frames)], 6, 2);
    geometry.min_free = MinFree::Pages(64);
    page_allocator(&geometry)
}

fn reserved(pages: &Pages) -> u64 {
    pages.check_invariants().unwrap();
    pages.zone_info(0).unwrap().reserved_highatomic
}

fn in_reserve(pages: &Pages, page: Pfn) -> bool {
    pages.pageblock_type(page) == Some(MigrateType::HighAtomic)
}

/// Fills memory down to the min mark, makes a reserve, and frees what it holds.
fn with_reserve() -> (Pages, u64) {
    let pages = machine(512);
    let _usual = exhaust(&pages, order(1), GfpFlags::KERNEL);
    let urgent: Vec<Pfn> = (0..6).map(|_| pages.alloc_pages(order(1), GfpFlags::ATOMIC).unwrap()).collect();
    let inside: Vec<Pfn> = urgent.into_iter().filter(|&first| in_reserve(&pages, first)).collect();
    inside.iter().for_each(|&first| pages.free_pages(first, order(1)).unwrap());
    pages.drain_all_pages();
    let free = pages.zone_info(0).unwrap().free_by_type[MigrateType::HighAtomic as usize];
    let free = free.into_iter().zip(0..).map(|(count, order)| u64::from(count) << order).sum();
    assert!(free > 0, "{inside:?}");
    (pages, free)
}

#[test]
fn urgent_requests_of_several_pages_reserve_a_hundredth_of_the_zone() {
    let pages = machine(512);
    assert!(pages.alloc_pages(order(1), GfpFlags::ATOMIC).is_ok());
    assert_eq!(reserved(&pages), 0, "nobody is in a hurry yet");
    let _usual = exhaust(&pages, order(1), GfpFlags::KERNEL);
    assert!(pages.alloc_pages(order(0), GfpFlags::ATOMIC).is_ok());
    assert_eq!(reserved(&pages), 0, "a single page");
    let first = pages.alloc_pages(order(1), GfpFlags::ATOMIC).unwrap();
    assert!(in_reserve(&pages, first));
    assert_eq!(reserved(&pages), 4);
    let _more = exhaust(&pages, order(1), GfpFlags::ATOMIC);
    assert_eq!((reserved(&pages), pages.base.platform.count(Event::HighAtomicReserved)), (8, 2));
}

#[test]
fn a_zone_of_less_than_a_hundred_pageblocks_reserves_nothing() {
    let pages = machine(396);
    let _usual = exhaust(&pages, order(1), GfpFlags::KERNEL);
    assert!(!exhaust(&pages, order(1), GfpFlags::ATOMIC).is_empty());
    assert_eq!(reserved(&pages), 0);
}

#[test]
fn the_reserve_is_for_the_urgent_first_and_for_those_who_cannot_wait_last() {
    let (pages, free) = with_reserve();
    let usual = exhaust(&pages, order(0), GfpFlags::KERNEL | GfpFlags::MEMALLOC);
    assert!(usual.iter().all(|&page| !in_reserve(&pages, page)), "even to the last page");
    assert_eq!(pages.zone_info(0).unwrap().free_pages, free);
    let last = exhaust(&pages, order(0), GfpFlags::NOWAIT | GfpFlags::MEMALLOC);
    assert_eq!((last.len() as u64, pages.base.platform.count(Event::HighAtomicLastResort)), (free, free));

    let (pages, _) = with_reserve();
    let _rest = exhaust(&pages, order(1), GfpFlags::KERNEL | GfpFlags::MEMALLOC);
    let used = pages.base.platform.count(Event::HighAtomicUsed);
    assert!(in_reserve(&pages, pages.alloc_pages(order(1), GfpFlags::ATOMIC | GfpFlags::MEMALLOC).unwrap()));
    assert_eq!(pages.base.platform.count(Event::HighAtomicUsed), used + 1);
}

#[test]
fn the_reserve_is_given_up_politely_only_while_it_has_more_than_a_pageblock() {
    let (pages, free) = with_reserve();
    let give_up = |release| pages.unreserve_highatomic(Order::ZERO, GfpFlags::KERNEL, None, release);
    while reserved(&pages) > 4 {
        assert!(give_up(Release::Polite));
    }
    let left = reserved(&pages);
    assert!(!give_up(Release::Polite) && reserved(&pages) == left);
    while give_up(Release::Last) {}
    let info = pages.zone_info(0).unwrap();
    assert!(info.free_by_type[MigrateType::HighAtomic as usize].iter().all(|&count| count == 0));
    assert!(pages.base.platform.count(Event::HighAtomicReleased) > 0);
    let usual = exhaust(&pages, Order::ZERO, GfpFlags::KERNEL | GfpFlags::MEMALLOC).len() as u64;
    assert!(usual >= free, "whoever comes may have it");
}

/// 256 frames, of which the upper `aside` are set aside.
fn with_cma(aside: u32) -> Pages {
    let mut geometry = shaped(&[(Normal, 0, 256)], 6, 4);
    geometry.cma[0] = CmaArea { start: pfn(256 - aside), pages: PageCount::new(aside.into()) };
    page_allocator(&geometry)
}

#[test]
fn only_movable_pages_use_what_is_set_aside() {
    let pages = with_cma(64);
    let fixed = exhaust(&pages, Order::ZERO, GfpFlags::KERNEL);
    assert_eq!(fixed.len(), 192);
    assert!(fixed.iter().all(|&page| page < pfn(192)));
    assert_eq!(exhaust(&pages, Order::ZERO, GfpFlags::KERNEL | GfpFlags::RECLAIMABLE).len(), 0);
    let movable = exhaust(&pages, Order::ZERO, GfpFlags::HIGHUSER_MOVABLE);
    assert_eq!(movable.len(), 64);
    assert!(movable.iter().all(|&page| page >= pfn(192)));
    assert!(pages.base.platform.count(Event::CmaFallback) + pages.base.platform.count(Event::CmaBalanced) > 0);
    pages.check_invariants().unwrap();
}

#[test]
fn movable_pages_go_there_first_once_most_of_what_is_free_is_there() {
    let pages = with_cma(96);
    let first = pages.alloc_pages(order(4), GfpFlags::HIGHUSER_MOVABLE).unwrap();
    assert!(first < pfn(160), "96 of 256 are less than half");
    let fixed: Vec<Pfn> = (0..4).map(|_| pages.alloc_pages(order(4), GfpFlags::KERNEL).unwrap()).collect();
    assert!(fixed.iter().all(|&block| block < pfn(160)));
    let next = pages.alloc_pages(order(4), GfpFlags::HIGHUSER_MOVABLE).unwrap();
    assert!(next >= pfn(160), "96 of 176 are more");
    assert_eq!(pages.base.platform.count(Event::CmaBalanced), 1);
}

#[test]
fn what_is_set_aside_can_be_had_as_one_range_whatever_moved_in() {
    let pages = with_cma(64);
    let fixed = exhaust(&pages, order(4), GfpFlags::KERNEL);
    for page in exhaust(&pages, Order::ZERO, GfpFlags::HIGHUSER_MOVABLE) {
        pages.base.platform.movable.borrow_mut().insert(page, Order::ZERO);
    }
    fixed.iter().take(4).for_each(|&block| pages.free_pages(block, order(4)).unwrap());
    let aside = PageCount::new(64);
    pages.alloc_contig_range(pfn(192), aside, GfpFlags::KERNEL, &()).unwrap();
    pages.check_invariants().unwrap();
    assert!(pages.base.platform.movable.borrow().keys().all(|&page| page < pfn(192)));
    pages.free_contig_range(pfn(192), aside).unwrap();
    assert_eq!(pages.pageblock_type(pfn(192)), Some(MigrateType::Cma));
    pages.check_invariants().unwrap();
}
