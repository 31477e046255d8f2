//! Bulks: all pages from one zone with plenty, or none.

use super::{Pages, order, pfn, shaped};
use crate::addr::Pfn;
use crate::fault::FaultPoint;
use crate::geometry::ZoneKind::{Dma, Normal};
use crate::geometry::{Geometry, MinFree};
use crate::gfp::GfpFlags;
use crate::hardening::PageDebug;
use crate::platform::Event;
use crate::testing::page_allocator;
use std::vec;
use std::vec::Vec;

/// 256 frames, of which the low watermark keeps 20 back.
fn shape() -> Geometry {
    let mut geometry = shaped(&[(Normal, 0, 256)], 6, 4);
    geometry.min_free = MinFree::Pages(16);
    geometry
}

fn bulk(pages: &Pages, gfp: GfpFlags, count: usize) -> Vec<Pfn> {
    let mut slots = vec![None; count];
    let filled = pages.alloc_pages_bulk(gfp, &mut slots);
    pages.check_invariants().unwrap();
    assert!(slots.iter().take(filled).all(Option::is_some) && slots.iter().skip(filled).all(Option::is_none));
    slots.into_iter().flatten().collect()
}

#[test]
fn a_bulk_must_leave_the_low_watermark_standing_as_a_whole() {
    for (count, given) in [(235, 235), (236, 0)] {
        let pages = page_allocator(&shape());
        assert_eq!(pages.zone_info(0).unwrap().low, 20);
        // 256 pages are more than 20 and the missing ones.
        assert_eq!(bulk(&pages, GfpFlags::KERNEL, count).len(), given);
        let cut = pages.base.platform.count(Event::BulkCutOff);
        assert_eq!((cut, pages.base.platform.count(Event::BulkServed)), if given > 0 { (0, 1) } else { (1, 0) });
    }
}

#[test]
fn rights_to_reserves_do_not_count_for_a_bulk() {
    let pages = page_allocator(&shape());
    let _rest = bulk(&pages, GfpFlags::KERNEL, 230);
    pages.drain_all_pages();
    assert!(bulk(&pages, GfpFlags::ATOMIC | GfpFlags::MEMALLOC, 6).is_empty());
    assert_eq!(bulk(&pages, GfpFlags::KERNEL, 5).len(), 5);
}

#[test]
fn pages_that_are_accounted_for_or_noted_come_one_by_one() {
    let pages = page_allocator(&shape());
    assert!(bulk(&pages, GfpFlags::KERNEL | GfpFlags::ACCOUNT, 2).is_empty());
    assert!(bulk(&pages, GfpFlags::KERNEL, 1).is_empty(), "so does the last that is missing");
    let mut geometry = shape();
    geometry.page_debug = PageDebug::OWNER;
    assert!(bulk(&page_allocator(&geometry), GfpFlags::KERNEL, 2).is_empty());
}

#[test]
fn a_lower_zone_serves_a_bulk_as_a_whole_if_the_higher_one_cannot() {
    let pages = page_allocator(&shaped(&[(Dma, 0, 64), (Normal, 64, 64)], 6, 4));
    let first = bulk(&pages, GfpFlags::KERNEL, 50);
    assert!(first.iter().all(|&page| page >= pfn(64)));
    let second = bulk(&pages, GfpFlags::KERNEL, 50);
    assert_eq!(second.len(), 50);
    assert!(second.iter().all(|&page| page < pfn(64)), "14 pages of the higher zone are not enough: {second:?}");
}

#[test]
fn only_empty_slots_are_filled_and_a_fault_ends_the_bulk() {
    let pages = page_allocator(&shape());
    let taken = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    let mut slots = [None, Some(taken), None, None];
    assert_eq!(pages.alloc_pages_bulk(GfpFlags::KERNEL, &mut slots), 3);
    assert_eq!(slots[1], Some(taken));
    assert_eq!(pages.alloc_pages_bulk(GfpFlags::KERNEL, &mut slots), 0, "nothing is missing");
    assert_eq!(pages.alloc_pages_bulk(GfpFlags::KERNEL, &mut []), 0);
    let mut stopped = [None, None, None, Some(taken)];
    pages.base.platform.fail(FaultPoint::Page, 2);
    assert_eq!(pages.alloc_pages_bulk(GfpFlags::KERNEL, &mut stopped), 2);
    assert_eq!(stopped.map(|slot| slot.is_some()), [true, true, false, true]);
    assert_eq!(pages.alloc_pages_bulk(GfpFlags::DMA | GfpFlags::DMA32, &mut [None, None]), 0);
}
