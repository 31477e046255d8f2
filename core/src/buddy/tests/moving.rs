//! Compaction: large blocks out of movable pages, pinned ones left alone, failures remembered.

use super::*;
use crate::buddy::{CompactPriority, CompactResult};
use crate::platform::Event;
use CompactPriority::{Async, SyncFull, SyncLight};

const MOVABLE: GfpFlags = GfpFlags::HIGHUSER_MOVABLE;

fn flat(frames: u32) -> Pages {
    crate::testing::page_allocator(&shaped(&[(ZoneKind::Normal, 0, frames)], 6, 4))
}

/// Takes all memory as movable pages, marked with their number, and frees every `step`-th: its frames are returned.
fn checkerboard(pages: &Pages, step: usize) -> Vec<Pfn> {
    let all = exhaust(pages, Order::ZERO, MOVABLE);
    let (freed, kept): (Vec<_>, Vec<_>) = all.iter().enumerate().partition(|(n, _)| n % step == 0);
    for (n, page) in kept {
        assert!(pages.base.mem.write_u64(page.addr(), n as u64));
        pages.base.platform.movable.borrow_mut().insert(*page, Order::ZERO);
    }
    freed.iter().for_each(|(_, page)| pages.free_pages(**page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    freed.into_iter().map(|(_, page)| *page).collect()
}

/// The marks of all movable pages, ascending.
fn marks(pages: &Pages) -> Vec<u64> {
    let movable = pages.base.platform.movable.borrow();
    let mut marks: Vec<u64> = movable.keys().map(|page| pages.base.mem.read_u64(page.addr()).unwrap()).collect();
    marks.sort_unstable();
    marks
}

fn free_all(pages: &Pages) {
    for (page, size) in core::mem::take(&mut *pages.base.platform.movable.borrow_mut()) {
        pages.free_pages(page, size).unwrap();
    }
    pages.drain_all_pages();
}

#[test]
fn a_checkerboard_of_movable_pages_gives_a_large_block() {
    let pages = flat(256);
    checkerboard(&pages, 2);
    let before = marks(&pages);
    assert!(pages.alloc_pages(order(4), GfpFlags::KERNEL).is_err());
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, SyncLight, &()), CompactResult::Success);
    pages.check_invariants().unwrap();
    assert_eq!(marks(&pages), before, "each page kept its contents");
    let block = pages.alloc_pages(order(4), GfpFlags::KERNEL).unwrap();
    pages.free_pages(block, order(4)).unwrap();
    free_all(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 4);
}

#[test]
fn where_types_are_not_kept_apart_pages_move_all_the_same() {
    let mut geometry = shaped(&[(ZoneKind::Normal, 0, 256)], 6, 4);
    geometry.mobility = crate::mobility::Mobility::Mixed;
    let pages = crate::testing::page_allocator(&geometry);
    checkerboard(&pages, 2);
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, SyncLight, &()), CompactResult::Success);
    pages.check_invariants().unwrap();
    free_all(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 4);
}

#[test]
fn a_walk_goes_on_where_the_last_one_stopped_and_leaves_the_rest_alone() {
    let pages = flat(256);
    checkerboard(&pages, 2);
    let moved = || pages.base.platform.count(Event::BlockMoved);
    assert_eq!(pages.compact(order(3), GfpFlags::KERNEL, None, SyncLight, &()), CompactResult::Success);
    assert!(moved() <= 32, "{} blocks were moved for one of order 3", moved());
    let blocks: Vec<_> = (0..8)
        .map(|_| {
            pages.compact(order(3), GfpFlags::KERNEL, None, SyncLight, &());
            pages.alloc_pages(order(3), GfpFlags::KERNEL).unwrap()
        })
        .collect();
    assert!(moved() <= 128);
    pages.check_invariants().unwrap();
    blocks.into_iter().for_each(|block| pages.free_pages(block, order(3)).unwrap());
    free_all(&pages);
}

#[test]
fn pinned_and_unmovable_pages_stay_and_a_failure_puts_the_next_try_off() {
    let pages = flat(128);
    let unmovable = exhaust(&pages, Order::ZERO, GfpFlags::KERNEL);
    let (freed, kept): (Vec<_>, Vec<_>) = unmovable.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    freed.iter().for_each(|(_, page)| pages.free_pages(**page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    let results: Vec<_> = (0..6).map(|_| pages.compact(order(2), GfpFlags::KERNEL, None, SyncLight, &())).collect();
    use CompactResult::{Complete, Deferred};
    assert_eq!(results, [Complete, Deferred, Complete, Deferred, Deferred, Deferred]);
    assert_eq!(
        pages.compact(order(2), GfpFlags::KERNEL, None, SyncFull, &()),
        Complete,
        "the hardest try is never put off"
    );
    assert_eq!(pages.base.platform.count(Event::BlockMoved) + pages.base.platform.count(Event::BlockPinned), 0);
    kept.into_iter().for_each(|(_, page)| pages.free_pages(*page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    assert_eq!(free_blocks(&pages)[0][6], 2);
}

#[test]
fn a_full_zone_an_order_of_zero_and_a_request_without_io_are_not_compacted() {
    let pages = flat(64);
    let all = exhaust(&pages, Order::ZERO, MOVABLE);
    assert_eq!(pages.compact(order(1), GfpFlags::KERNEL, None, SyncFull, &()), CompactResult::Skipped);
    all.into_iter().for_each(|page| pages.free_pages(page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    assert_eq!(
        pages.compact(order(1), GfpFlags::KERNEL, None, SyncFull, &()),
        CompactResult::Success,
        "it is there already"
    );
    assert_eq!(pages.compact(Order::ZERO, GfpFlags::KERNEL, None, SyncFull, &()), CompactResult::Skipped);
    assert_eq!(pages.compact(order(1), GfpFlags::NOIO, None, SyncFull, &()), CompactResult::Skipped);
}

#[test]
fn owners_that_refuse_keep_their_pages() {
    let pages = flat(128);
    checkerboard(&pages, 2);
    let pinned = core::mem::take(&mut *pages.base.platform.movable.borrow_mut());
    let before = free_blocks(&pages);
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, Async, &()), CompactResult::Complete);
    assert!(pages.base.platform.count(Event::BlockPinned) > 0);
    assert_eq!(free_blocks(&pages), before);
    assert_eq!(
        pages.compact(order(4), GfpFlags::KERNEL, None, Async, &()),
        CompactResult::Complete,
        "no failure is remembered"
    );
    pages.check_invariants().unwrap();
    *pages.base.platform.movable.borrow_mut() = pinned;
    free_all(&pages);
}

#[test]
fn compacting_everything_fills_the_end_and_empties_the_beginning() {
    let pages = flat(256);
    checkerboard(&pages, 4);
    let before = marks(&pages);
    assert!(pages.compact_everything(&()) > 0);
    assert_eq!(marks(&pages), before);
    pages.check_invariants().unwrap();
    assert!(free_blocks(&pages)[0][4..].iter().any(|&blocks| blocks > 0), "{:?}", free_blocks(&pages));
    free_all(&pages);
}

#[test]
fn a_walk_that_finishes_what_another_began_says_so() {
    let pages = flat(256);
    checkerboard(&pages, 2);
    assert_eq!(pages.compact(order(3), GfpFlags::KERNEL, None, SyncLight, &()), CompactResult::Success);
    let block = pages.alloc_pages(order(3), GfpFlags::KERNEL).unwrap();
    let pinned = core::mem::take(&mut *pages.base.platform.movable.borrow_mut());
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, SyncLight, &()), CompactResult::PartialSkipped);
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, Async, &()), CompactResult::Deferred);
    assert_eq!(pages.compact(order(4), GfpFlags::KERNEL, None, Async, &()), CompactResult::Complete);
    *pages.base.platform.movable.borrow_mut() = pinned;
    pages.free_pages(block, order(3)).unwrap();
    free_all(&pages);
}

#[test]
fn fruitless_pageblocks_are_left_out_until_the_zone_has_plenty() {
    let mut geometry = shaped(&[(ZoneKind::Normal, 0, 256)], 6, 4);
    geometry.min_free = crate::geometry::MinFree::Pages(100);
    let pages = crate::testing::page_allocator(&geometry);
    let all = exhaust(&pages, Order::ZERO, GfpFlags::KERNEL | GfpFlags::MEMALLOC);
    let (freed, kept): (Vec<_>, Vec<_>) = all.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    freed.iter().for_each(|(_, page)| pages.free_pages(**page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    let hints = || pages.base.platform.count(Event::CompactHint);
    let once = |size: u8, priority| pages.compact(order(size), GfpFlags::KERNEL, None, priority, &());
    let walk = |size: u8| (0..100).map(|_| once(size, SyncLight)).find(|&result| result != CompactResult::Deferred);
    assert_eq!((walk(3), hints()), (Some(CompactResult::Complete), 0));
    assert_eq!((walk(3), hints() > 0), (Some(CompactResult::Complete), true));
    let before = hints();
    assert_eq!((once(3, SyncFull), hints()), (CompactResult::Complete, before), "the hardest try looks everywhere");
    let (some, rest): (Vec<_>, Vec<_>) =
        kept.into_iter().map(|(_, page)| *page).partition(|page| page.as_u32() % 4 == 1);
    some.iter().for_each(|page| pages.free_pages(*page, Order::ZERO).unwrap());
    pages.drain_all_pages();
    assert_eq!((walk(4), hints()), (Some(CompactResult::Complete), before), "it has plenty again");
    rest.iter().for_each(|page| pages.free_pages(*page, Order::ZERO).unwrap());
    pages.drain_all_pages();
}
