//! Calls that wait for no lock, and free blocks lent to the host.

use super::*;
use crate::error::{AllocError, FreeError};
use crate::fault::FaultPoint;
use crate::page::FrameKind;
use crate::platform::Event;

fn flat(frames: u32) -> Pages {
    crate::testing::page_allocator(&shaped(&[(ZoneKind::Normal, 0, frames)], 6, 4))
}

#[test]
fn a_block_without_a_lock_is_zeroed_and_of_a_listed_order() {
    let pages = flat(64);
    for size in [0, 1, 2, 3, 4] {
        let first = pages.alloc_pages_nolock(order(size), None).unwrap();
        assert_eq!(pages.base.mem.read_u64(first.addr()), Some(0));
        pages.check_invariants().unwrap();
        pages.free_pages_nolock(first, order(size)).unwrap();
        assert_eq!(
            pages.free_pages_nolock(first, order(size)),
            Err(FreeError::DoubleFree(pages.base.virt(first.addr())))
        );
    }
    assert_eq!(pages.alloc_pages_nolock(order(5), None), Err(AllocError::OrderTooLarge { max: order(3) }));
    assert_eq!(pages.alloc_pages_nolock(order(7), None), Err(AllocError::OrderTooLarge { max: order(6) }));
    pages.base.platform.fail(FaultPoint::Page, 0);
    assert_eq!(pages.alloc_pages_nolock(order(0), None), Err(AllocError::Injected(FaultPoint::Page)));
    pages.drain_all_pages();
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn a_taken_lock_refuses_the_allocation_and_puts_the_free_off() {
    let pages = flat(64);
    let blocks: Vec<Pfn> = (0..4).map(|_| pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap()).collect();
    let large = pages.alloc_pages(order(5), GfpFlags::KERNEL).unwrap();
    pages.drain_all_pages();
    {
        let _zone = pages.zones[0].areas.lock();
        let _lists = pages.pcp(crate::platform::CpuId::new(0), 0).unwrap().cell.try_local().unwrap();
        assert_eq!(pages.alloc_pages_nolock(order(0), None), Err(AllocError::NoPages { order: order(0) }));
        for &block in &blocks {
            pages.free_pages_nolock(block, order(2)).unwrap();
            assert_eq!(pages.base.frames.kind(block), FrameKind::Deferred);
            let twice = pages.free_pages_nolock(block, order(2));
            assert_eq!(twice, Err(FreeError::DoubleFree(pages.base.virt(block.addr()))));
        }
        pages.free_pages_nolock(large, order(5)).unwrap();
    }
    assert_eq!(pages.base.platform.count(Event::FreeDeferred), 5);
    pages.check_invariants().unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 1, "whoever takes the lock next frees them");
}

#[test]
fn with_the_lists_taken_the_zone_serves_and_takes_back() {
    let pages = flat(64);
    let first = {
        let _lists = pages.pcp(crate::platform::CpuId::new(0), 0).unwrap().cell.try_local().unwrap();
        let first = pages.alloc_pages_nolock(order(1), None).unwrap();
        let other = pages.alloc_pages_nolock(order(1), None).unwrap();
        pages.free_pages_nolock(other, order(1)).unwrap();
        assert_eq!(pages.base.frames.kind(other), FrameKind::Free);
        first
    };
    pages.free_pages_nolock(first, order(1)).unwrap();
    assert_eq!(pages.base.frames.kind(first), FrameKind::Pcp);
    pages.drain_all_pages();
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn a_free_block_is_reported_once_until_it_is_used() {
    let pages = flat(256);
    let reports = || core::mem::take(&mut *pages.base.platform.reports.borrow_mut());
    assert_eq!(pages.report_free_pages(0), 0, "there is no host");
    pages.check_invariants().unwrap();
    pages.base.platform.host.set(u32::MAX);
    assert_eq!(pages.report_free_pages(0), 256);
    assert_eq!(reports().len(), 4);
    assert_eq!((pages.report_free_pages(0), reports()), (0, Vec::new()));
    let page = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    pages.check_invariants().unwrap();
    pages.report_free_pages(0);
    let again = reports();
    assert!(!again.is_empty() && again.iter().all(|&(_, size)| size < order(6)), "parts of the one that was split");
    pages.free_pages(page, order(0)).unwrap();
    pages.drain_all_pages();
    assert_eq!(pages.report_free_pages(0), 64);
    pages.check_invariants().unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 4);
}

#[test]
fn a_host_that_wants_no_more_is_not_asked_further() {
    let pages = flat(512);
    pages.base.platform.host.set(2);
    assert_eq!(pages.report_free_pages(0), 128);
    assert_eq!(pages.base.platform.reports.borrow().len(), 2);
    pages.check_invariants().unwrap();
    pages.base.platform.host.set(2);
    pages.report_free_pages(0);
    let mut starts: Vec<Pfn> = pages.base.platform.reports.borrow().iter().map(|&(first, _)| first).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 4, "the second time others");
}

#[test]
fn what_shall_stay_at_hand_is_not_reported() {
    let pages = flat(512);
    pages.base.platform.host.set(u32::MAX);
    assert_eq!(pages.report_free_pages(512), 0);
    assert_eq!(pages.report_free_pages(200), 320, "whole blocks, until no more than that are left");
    assert_eq!(pages.report_free_pages(200), 0, "what was reported does not count");
    assert_eq!(pages.report_free_pages(192), 0);
    assert_eq!(pages.report_free_pages(0), 192);
    pages.check_invariants().unwrap();
}

#[test]
fn poisoned_pages_are_not_lent() {
    let mut geometry = shaped(&[(ZoneKind::Normal, 0, 256)], 6, 4);
    geometry.page_debug = crate::PageDebug::POISON;
    let pages = crate::testing::page_allocator(&geometry);
    pages.base.platform.host.set(u32::MAX);
    assert_eq!((pages.report_free_pages(0), pages.base.platform.reports.borrow().len()), (0, 0));
}
