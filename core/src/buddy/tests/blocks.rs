//! Splitting and merging.

use super::{Pages, exhaust, free_blocks, order, pfn, shaped};
use crate::addr::Pfn;
use crate::buddy::OwnerClass;
use crate::geometry::ZoneKind::{Dma, Normal};
use crate::gfp::GfpFlags;
use crate::hardening::PageDebug;
use crate::page::FrameKind;
use crate::platform::Event;
use crate::testing::{JUNK, Rng, page_allocator};
use std::vec::Vec;

/// The blocks that a run of frames falls into, in ascending order: each as large as alignment and end allow.
fn canonical(start: u32, frames: u32, max: u8) -> Vec<(Pfn, u8)> {
    let (mut at, end, mut blocks) = (start, start + frames, Vec::new());
    while at < end {
        let k = (0..=max).rev().find(|k| at % (1 << k) == 0 && at + (1 << k) <= end).unwrap();
        blocks.push((pfn(at), k));
        at += 1 << k;
    }
    blocks
}

fn assert_canonical(pages: &Pages, zones: &[(u32, u32)], max: u8) {
    for (blocks, &(start, frames)) in free_blocks(pages).iter().zip(zones) {
        let expected = canonical(start, frames, max);
        for (k, &n) in blocks.iter().enumerate() {
            assert_eq!(n as usize, expected.iter().filter(|b| usize::from(b.1) == k).count(), "order {k} from {start}");
        }
    }
}

#[test]
fn a_fresh_zone_of_any_start_and_size_is_cut_into_the_largest_aligned_blocks() {
    for max in 0..=10 {
        for start in [0, 1, 5, 16, 63, 511] {
            for frames in [1, 2, 3, 16, 37, 100, 300] {
                let pages = page_allocator(&shaped(&[(Normal, start, frames)], max, max / 2));
                assert_canonical(&pages, &[(start, frames)], max);
                pages.check_invariants().unwrap();
            }
        }
    }
}

#[test]
fn the_lowest_part_is_handed_out_and_the_upper_halves_stay_free() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 64)], 6, 6));
    assert_eq!(pages.alloc_pages(order(4), GfpFlags::KERNEL), Ok(pfn(0)));
    assert_eq!(free_blocks(&pages)[0], [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(pages.alloc_pages(order(4), GfpFlags::KERNEL), Ok(pfn(16)));
    assert_eq!(pages.alloc_pages(order(4), GfpFlags::KERNEL), Ok(pfn(32)));
    assert_eq!(pages.base.platform.count(Event::Split), 2);
}

#[test]
fn freed_buddies_merge_up_to_the_whole() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 64)], 6, 6));
    let blocks = exhaust(&pages, order(4), GfpFlags::KERNEL);
    assert_eq!(blocks.len(), 4);
    for &block in &blocks[..3] {
        pages.free_pages(block, order(4)).unwrap();
    }
    assert_eq!(pages.base.platform.count(Event::Merge), 1, "16 and 0 are buddies; 32 waits for 48");
    pages.free_pages(blocks[3], order(4)).unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 1);
    assert_eq!(pages.base.platform.count(Event::Merge), 3);
}

#[test]
fn blocks_never_merge_across_zones_or_above_the_largest_order() {
    // Frame 16 starts a zone, so [0, 32) would be one block of order 5 if the boundary were not there.
    let zones = [(0, 16), (16, 16), (32, 32)];
    for max in [3, 4, 6] {
        let pages = page_allocator(&shaped(&[(Dma, 0, 16), (Normal, 16, 16), (Normal, 32, 32)], max, 2));
        let gfps = [GfpFlags::DMA, GfpFlags::KERNEL, GfpFlags::KERNEL | GfpFlags::MOVABLE];
        let taken: Vec<_> = gfps.into_iter().flat_map(|gfp| exhaust(&pages, order(0), gfp)).collect();
        assert_eq!(taken.len(), 64);
        for first in taken {
            pages.free_pages(first, order(0)).unwrap();
        }
        pages.drain_all_pages();
        assert_canonical(&pages, &zones, max);
        pages.check_invariants().unwrap();
    }
}

#[test]
fn frees_in_any_order_give_the_initial_blocks_back() {
    for (start, frames, max) in [(0, 64, 6), (3, 61, 10), (1, 128, 4), (7, 250, 0)] {
        let pages = page_allocator(&shaped(&[(Normal, start, frames)], max, max / 2));
        let mut rng = Rng::new(u64::from(frames));
        for _ in 0..20 {
            let mut taken = exhaust(&pages, order(0), GfpFlags::KERNEL);
            assert_eq!(taken.len(), frames as usize, "every frame can be had");
            while !taken.is_empty() {
                let index = rng.below(taken.len());
                pages.free_pages(taken.swap_remove(index), order(0)).unwrap();
            }
            pages.drain_all_pages();
            assert_canonical(&pages, &[(start, frames)], max);
        }
    }
}

#[test]
fn a_block_whose_parent_may_merge_soon_waits_at_the_tail() {
    // Free 0..16 and 32..64; the latter is the buddy of the parent of 0..16, so 0..16 goes behind 96..112.
    let pages = page_allocator(&shaped(&[(Normal, 0, 128)], 7, 7));
    let blocks = exhaust(&pages, order(4), GfpFlags::KERNEL);
    for n in [6, 2, 3, 0] {
        pages.free_pages(blocks[n], order(4)).unwrap();
    }
    assert_eq!(blocks[6], pfn(96));
    assert_eq!(pages.alloc_pages(order(4), GfpFlags::KERNEL), Ok(pfn(96)));
}

#[test]
fn frames_are_tagged_while_they_are_owned() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 64)], 6, 6));
    let frames = &pages.base.frames;
    let first = pages.alloc_block(order(2), GfpFlags::KERNEL, FrameKind::LargeKmalloc).unwrap();
    let tail = first.checked_add(3).unwrap();
    assert_eq!((frames.kind(first), frames.kind(tail)), (FrameKind::LargeKmalloc, FrameKind::LargeTail));
    assert_eq!((frames.head_of(tail), frames.order(first)), (first, order(2)));
    assert_eq!(pages.owned(OwnerClass::LargeKmalloc), 4);
    pages.free_block(first, order(2));
    assert_eq!((frames.kind(first), frames.kind(tail)), (FrameKind::Pcp, FrameKind::Pcp));
    assert_eq!((pages.owned(OwnerClass::LargeKmalloc), pages.owned(OwnerClass::Pcp)), (0, 4));
    assert_eq!(pages.drain_all_pages(), 4);
    assert_eq!(frames.kind(tail), FrameKind::Free);
    assert_eq!(pages.owned(OwnerClass::Free), 64);
}

#[test]
fn only_the_requested_block_is_zeroed() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 64)], 6, 6));
    for k in 0..=6 {
        let first = pages.alloc_pages(order(k), GfpFlags::KERNEL | GfpFlags::ZERO).unwrap();
        for n in 0..64 {
            let inside = pfn(n) >= first && n < first.as_u32() + (1 << k);
            let word = pages.base.mem.read_u64(pfn(n).addr()).unwrap();
            assert_eq!(word, if inside { 0 } else { u64::from_ne_bytes([JUNK; 8]) }, "order {k}, frame {n}");
        }
        assert!(pages.base.mem.fill(first.addr(), order(k).bytes(), JUNK));
        pages.free_pages(first, order(k)).unwrap();
        pages.drain_all_pages();
    }
}

/// The first 64 frames of a zone of 128, each a page of its own behind an area.
fn row(pages: &Pages) -> Vec<Pfn> {
    let first = pages.alloc_run(order(6), GfpFlags::KERNEL, None, FrameKind::Vmalloc).unwrap();
    assert_eq!(first, pfn(0));
    (0..64).map(|n| pfn(first.as_u32() + n)).collect()
}

#[test]
fn pages_in_a_row_go_back_as_the_blocks_that_they_lie_in() {
    for (first, count) in [(0, 64), (1, 63), (0, 63), (3, 40), (5, 1)] {
        let pages = page_allocator(&shaped(&[(Normal, 0, 128)], 7, 7));
        let all = row(&pages);
        pages.free_run(pfn(first), count);
        pages.check_invariants().unwrap();
        assert_eq!(pages.owned(OwnerClass::Vmalloc), 64 - count);
        let rest = all.iter().filter(|page| !(first..first + count as u32).contains(&page.as_u32()));
        rest.for_each(|&page| pages.free_run(page, 1));
        pages.drain_all_pages();
        assert_canonical(&pages, &[(0, 128)], 7);
        assert_eq!(pages.owned(OwnerClass::Free), 128);
    }
}

#[test]
fn a_long_row_does_not_pass_through_the_lists_of_the_cpu() {
    let pages = page_allocator(&shaped(&[(Normal, 0, 128)], 7, 7));
    row(&pages);
    pages.free_run(pfn(0), 64);
    assert_eq!((pages.owned(OwnerClass::Pcp), pages.owned(OwnerClass::Free)), (0, 128));
    assert_eq!(pages.base.platform.count(Event::RunFreed), 1);
}

#[test]
fn a_bad_page_in_a_row_is_put_aside_alone() {
    let mut geometry = shaped(&[(Normal, 0, 128)], 7, 7);
    geometry.page_debug = PageDebug::CHECK;
    let pages = page_allocator(&geometry);
    row(&pages);
    pages.base.frames.add_mapping(pfn(17));
    pages.free_run(pfn(0), 64);
    pages.check_invariants().unwrap();
    pages.drain_all_pages();
    assert_eq!((pages.owned(OwnerClass::Bad), pages.owned(OwnerClass::Free)), (1, 127));
    assert_eq!(pages.base.frames.kind(pfn(17)), FrameKind::Bad);
}
