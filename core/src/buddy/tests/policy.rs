//! Which zone, how far down, and whose pageblock.

use super::{Pages, exhaust, order, pfn, shaped};
use crate::addr::{PAGE_SIZE, PageCount, Pfn};
use crate::geometry::ZoneKind::{Dma, Movable, Normal};
use crate::geometry::{Geometry, MinFree, ZoneSpec};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::platform::{CpuId, Event};
use crate::testing::page_allocator;
use std::vec::Vec;

fn count(pages: &Pages, gfp: GfpFlags) -> usize {
    exhaust(pages, order(0), gfp).len()
}

#[test]
fn each_right_reaches_exactly_as_far_below_the_min_watermark_as_it_should() {
    let mut geometry = shaped(&[(Normal, 0, 64)], 6, 6);
    geometry.min_free = MinFree::Pages(16);
    let pages = page_allocator(&geometry);
    let info = pages.zone_info(0).unwrap();
    assert_eq!((info.min, info.low, info.high), (16, 20, 24));

    assert_eq!(count(&pages, GfpFlags::NOWAIT), 64 - 16);
    assert_eq!(count(&pages, GfpFlags::KERNEL), 0);
    assert_eq!(count(&pages, GfpFlags::KERNEL | GfpFlags::HIGH), 8, "half of min");
    assert_eq!(count(&pages, GfpFlags::ATOMIC | GfpFlags::NOMEMALLOC), 0, "no more than the half");
    assert_eq!(count(&pages, GfpFlags::ATOMIC), 2, "a quarter of that half");
    assert_eq!(count(&pages, GfpFlags::KERNEL | GfpFlags::MEMALLOC | GfpFlags::NOMEMALLOC), 0);
    assert_eq!(count(&pages, GfpFlags::NOWAIT | GfpFlags::MEMALLOC), 6, "the rest");
}

#[test]
fn a_large_request_counts_all_its_pages_against_the_watermark() {
    let mut geometry = shaped(&[(Normal, 0, 64)], 6, 6);
    geometry.min_free = MinFree::Pages(16);
    let pages = page_allocator(&geometry);
    // 64 - 31 = 33 > 16, then 32 - 31 = 1 <= 16.
    assert_eq!(exhaust(&pages, order(5), GfpFlags::KERNEL).len(), 1);
    // 32 - 15 = 17 > 16, then 16 - 15 = 1 <= 16.
    assert_eq!(exhaust(&pages, order(4), GfpFlags::KERNEL).len(), 1);
}

#[test]
fn requests_fall_back_downwards_and_leave_low_memory_its_reserve() {
    // DMA keeps 1024 / 256 = 4 pages from requests that could use Normal.
    let pages = page_allocator(&shaped(&[(Dma, 0, 16), (Normal, 16, 1024)], 10, 4));
    let normal = exhaust(&pages, order(0), GfpFlags::KERNEL);
    assert_eq!(normal.len(), 1024 + 12);
    let first_low = normal.iter().position(|&first| first < pfn(16)).unwrap();
    assert!(first_low >= 1024 - 1, "Normal is used up but for its low watermark before DMA is touched");
    assert!(pages.base.platform.count(Event::ZoneFallback) > 0);
    assert_eq!(count(&pages, GfpFlags::DMA), 4);
}

#[test]
fn only_movable_highmem_requests_reach_the_movable_zone() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 32), (Movable, 32, 32)], 5, 3));
    assert_eq!(count(&pages, GfpFlags::KERNEL | GfpFlags::MOVABLE), 32);
    assert_eq!(count(&pages, GfpFlags::KERNEL | GfpFlags::HIGHMEM), 0);
    assert_eq!(count(&pages, GfpFlags::HIGHUSER_MOVABLE), 32);
}

#[test]
fn the_own_node_is_used_first_and_thisnode_stays_there() {
    let geometry = two_nodes();
    for cpu in [0, 1] {
        let pages = page_allocator(&geometry);
        pages.base.platform.cpu.set(cpu);
        let own = pages.base.node_here();
        let mut taken = exhaust(&pages, order(0), GfpFlags::KERNEL | GfpFlags::THISNODE);
        assert_eq!(taken.len(), 16);
        assert!(taken.iter().all(|&first| pages.node_of(first) == Some(own)));
        assert_eq!(pages.base.platform.count(Event::NodeFallback), 0);
        taken.extend(exhaust(&pages, order(0), GfpFlags::KERNEL));
        assert_eq!(taken.len(), 32);
        assert!(pages.base.platform.count(Event::NodeFallback) > 0);
    }
}

/// CPU 0 on node 0 whose 16 frames are at 16, CPU 1 on node 1 whose frames are at 0.
fn two_nodes() -> Geometry {
    let zone = |node, start| ZoneSpec { kind: Normal, node, start: pfn(start), frames: PageCount::new(16) };
    let [near, far] = [0, 1].map(|n| NodeId::new(n).unwrap());
    let mut geometry = shaped(&[(Normal, 0, 1)], 4, 4).with_zones(&[zone(far, 0), zone(near, 16)]).unwrap();
    geometry.cpus = 2;
    geometry.with_cpu_nodes(&[near, far])
}

#[test]
fn a_request_for_a_node_gets_its_memory_and_one_without_memory_has_none_to_give() {
    let pages = page_allocator(&two_nodes());
    let on = |node, gfp| pages.alloc_pages_node(order(2), gfp, NodeId::new(node));
    assert_eq!(on(1, GfpFlags::KERNEL).map(|first| first < pfn(16)), Ok(true));
    assert_eq!(on(0, GfpFlags::KERNEL).map(|first| first < pfn(16)), Ok(false));
    assert!(on(2, GfpFlags::KERNEL | GfpFlags::THISNODE).is_err());
    assert_eq!(on(2, GfpFlags::KERNEL).map(|first| first < pfn(16)), Ok(false), "3 has none either, 0 is next");
    pages.check_invariants().unwrap();
}

/// One pageblock of 16 frames, `movable` of which are in use.
fn one_pageblock(movable: &[u8]) -> Pages {
    let pages = page_allocator(&shaped(&[(Normal, 0, 16)], 4, 4));
    for &k in movable {
        pages.alloc_pages(order(k), GfpFlags::KERNEL | GfpFlags::MOVABLE).unwrap();
    }
    pages.drain_all_pages();
    pages
}

fn events(pages: &Pages) -> (u64, u64) {
    (pages.base.platform.count(Event::PageblockClaimed), pages.base.platform.count(Event::MigrateSteal))
}

/// Free blocks of the zone's unmovable, movable and reclaimable lists.
fn blocks_by_type(pages: &Pages) -> [u32; 3] {
    let info = pages.zone_info(0).unwrap();
    [0, 1, 2].map(|migrate| info.free_by_type[migrate].iter().sum())
}

#[test]
fn a_pageblock_half_of_which_is_free_is_claimed_with_all_its_free_blocks() {
    let pages = one_pageblock(&[3]);
    pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    assert_eq!(events(&pages), (1, 0));
    pages.drain_all_pages();
    assert_eq!(blocks_by_type(&pages)[1], 0);
    pages.check_invariants().unwrap();
}

#[test]
fn a_pageblock_less_than_half_of_which_would_suit_is_stolen_from() {
    let pages = one_pageblock(&[3, 0]);
    pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    assert_eq!(events(&pages), (0, 1));
    pages.drain_all_pages();
    assert_eq!(blocks_by_type(&pages)[0], 0, "what was not taken stays movable");
    pages.check_invariants().unwrap();
}

#[test]
fn used_pages_that_are_not_movable_count_towards_claiming_a_movable_pageblock() {
    let pages = one_pageblock(&[3, 0]);
    // Stolen: 1 unmovable page, 9 movable, 6 free. Then 5 more, until 6 unmovable and 1 free: still 7 < 8.
    for _ in 0..6 {
        pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    }
    assert_eq!(events(&pages).0, 0);
    let pages = one_pageblock(&[2, 1]);
    // 6 movable pages in use, 10 free: claimed at once.
    pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    assert_eq!(events(&pages), (1, 0));
}

#[test]
fn used_movable_pages_count_towards_claiming_for_a_movable_request() {
    let pages = one_pageblock(&[3]);
    pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    pages.drain_all_pages();
    // The pageblock is unmovable now: 7 pages free, 8 in use and movable.
    pages.alloc_pages(order(2), GfpFlags::KERNEL | GfpFlags::MOVABLE).unwrap();
    assert_eq!(events(&pages), (2, 0));
}

#[test]
fn pages_of_an_exact_block_stay_of_the_type_that_was_asked_for() {
    let pages = one_pageblock(&[]);
    pages.alloc_pages_exact(9 * PAGE_SIZE, GfpFlags::KERNEL | GfpFlags::MOVABLE).unwrap();
    pages.drain_all_pages();
    pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    assert_eq!(events(&pages), (0, 1), "9 movable pages and 7 free ones are no reason to claim");
}

#[test]
fn the_other_side_of_a_cut_pageblock_does_not_count_towards_claiming_this_side() {
    // 12 frames of Normal's pageblock of 32 are its own; those of DMA are free as well.
    let pages = page_allocator(&shaped(&[(Dma, 0, 20), (Normal, 20, 12)], 5, 5));
    pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    assert_eq!(events(&pages), (0, 1));
    pages.check_invariants().unwrap();
}

#[test]
fn a_free_pageblock_is_claimed_whole_even_when_types_may_not_be_mixed() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 64)], 6, 4));
    pages.alloc_pages(order(4), GfpFlags::KERNEL | GfpFlags::RECLAIMABLE).unwrap();
    assert_eq!(events(&pages), (1, 0));
    // The whole block of order 6 became reclaimable, rest included.
    pages.drain_all_pages();
    let [unmovable, movable, reclaimable] = blocks_by_type(&pages);
    assert_eq!((unmovable, movable), (0, 0));
    assert!(reclaimable > 0);
    pages.check_invariants().unwrap();
}

#[test]
fn a_small_movable_request_steals_instead_of_claiming() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 16)], 4, 4));
    pages.alloc_pages(order(3), GfpFlags::KERNEL).unwrap();
    pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
    pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    pages.drain_all_pages();
    let claimed = events(&pages).0;
    pages.alloc_pages(order(0), GfpFlags::KERNEL | GfpFlags::MOVABLE).unwrap();
    assert_eq!(events(&pages), (claimed, 1), "a block of order 1 is below half the pageblock order");
}

#[test]
fn a_lower_zone_is_used_rather_than_mixing_types() {
    // Normal is left with a movable pageblock that has 3 free pages; DMA is all free.
    let pages = page_allocator(&shaped(&[(Dma, 0, 16), (Normal, 16, 16)], 4, 4));
    for k in [3, 2, 0] {
        pages.alloc_pages(order(k), GfpFlags::KERNEL | GfpFlags::MOVABLE).unwrap();
    }
    pages.drain_all_pages();
    let first = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    assert!(first < pfn(16));
    assert_eq!(events(&pages), (1, 0));
}

#[test]
fn merging_pageblocks_of_two_types_gives_both_the_type_of_the_last() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 32)], 5, 4));
    let gfps = [GfpFlags::KERNEL | GfpFlags::MOVABLE, GfpFlags::KERNEL | GfpFlags::RECLAIMABLE];
    let blocks: Vec<Pfn> = gfps.iter().map(|&gfp| pages.alloc_pages(order(4), gfp).unwrap()).collect();
    for first in blocks {
        pages.free_pages(first, order(4)).unwrap();
    }
    pages.drain_all_pages();
    assert_eq!(blocks_by_type(&pages), [0, 0, 1]);
    pages.check_invariants().unwrap();
}

#[test]
fn a_pageblock_that_a_zone_boundary_cuts_has_a_type_on_each_side() {
    let pages = page_allocator(&shaped(&[(Dma, 0, 20), (Normal, 20, 12)], 5, 5));
    while pages.alloc_pages(order(0), GfpFlags::DMA).is_ok() {}
    pages.check_invariants().unwrap();
    let normal = pages.zone_info(1).unwrap();
    assert_eq!(normal.free_by_type[1].iter().sum::<u32>(), normal.free.iter().sum::<u32>(), "Normal is untouched");
}

/// Enough memory for batches of more than one page.
fn large() -> Geometry {
    let mut geometry = shaped(&[(Normal, 0, 1 << 15)], 10, 9);
    geometry.cpus = 2;
    geometry
}

#[test]
fn a_cpu_gets_its_newest_page_back_first() {
    let pages = page_allocator(&large());
    for k in 0..=3 {
        let taken: Vec<Pfn> = (0..24).map(|_| pages.alloc_pages(order(k), GfpFlags::KERNEL).unwrap()).collect();
        pages.drain_all_pages();
        for &first in &taken[..20] {
            pages.free_pages(first, order(k)).unwrap();
        }
        for &first in taken[..20].iter().rev() {
            assert_eq!(pages.alloc_pages(order(k), GfpFlags::KERNEL), Ok(first), "order {k}");
        }
        for first in taken {
            pages.free_pages(first, order(k)).unwrap();
        }
        pages.drain_all_pages();
    }
}

#[test]
fn pages_freed_on_one_cpu_are_not_seen_by_another_until_they_are_drained() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 16)], 4, 4));
    let mut geometry = pages.base.geometry.clone();
    geometry.cpus = 2;
    let pages = page_allocator(&geometry);
    let taken = exhaust(&pages, order(0), GfpFlags::KERNEL);
    for &first in &taken[..2] {
        pages.free_pages(first, order(0)).unwrap();
    }
    pages.base.platform.cpu.set(1);
    assert!(pages.alloc_pages(order(0), GfpFlags::KERNEL).is_err());
    assert_eq!(pages.drain_all_pages(), 2);
    assert!(pages.alloc_pages(order(0), GfpFlags::KERNEL).is_ok());
}

#[test]
fn a_cpu_whose_lists_are_in_use_goes_past_them() {
    let pages = page_allocator(&large());
    let cell = &pages.pcp(CpuId::new(0), 0).unwrap().cell;
    let guard = cell.try_local().unwrap();
    let first = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    pages.free_pages(first, order(0)).unwrap();
    assert_eq!(pages.drain_all_pages(), 0);
    drop(guard);
    assert_eq!(pages.zone_info(0).unwrap().pcp_pages, 0);
    pages.check_invariants().unwrap();
}

#[test]
fn a_cpu_gives_pages_back_once_it_has_too_many() {
    let pages = page_allocator(&large());
    let taken = exhaust(&pages, order(0), GfpFlags::KERNEL);
    let limits = pages.zones[0].pcp;
    for first in taken {
        pages.free_pages(first, order(0)).unwrap();
        assert!(pages.zone_info(0).unwrap().pcp_pages < limits.high_max);
    }
    assert!(pages.base.platform.count(Event::PcpDrain) > 10);
    pages.check_invariants().unwrap();
}
