//! Runs of frames: isolation, moving what is in the way, undoing what did not work.

use super::*;
use crate::addr::PageCount;
use crate::error::{AllocError, FreeError};
use crate::page::FrameKind;
use crate::platform::Event;
use crate::testing::Rng;

const KERNEL: GfpFlags = GfpFlags::KERNEL;
const MOVABLE: GfpFlags = GfpFlags::HIGHUSER_MOVABLE;

fn machine(zones: &[(ZoneKind, u32, u32)]) -> Pages {
    crate::testing::page_allocator(&shaped(zones, 6, 4))
}

fn flat(frames: u32) -> Pages {
    machine(&[(ZoneKind::Normal, 0, frames)])
}

fn range(pages: &Pages, start: u32, count: u64, gfp: GfpFlags) -> Result<(), AllocError> {
    let answer = pages.alloc_contig_range(pfn(start), PageCount::new(count), gfp, &());
    pages.check_invariants().unwrap();
    answer
}

fn movable(pages: &Pages, size: u8) -> Pfn {
    let first = pages.alloc_pages(order(size), MOVABLE).unwrap();
    pages.base.platform.movable.borrow_mut().insert(first, order(size));
    first
}

fn free_movable(pages: &Pages) {
    for (first, size) in core::mem::take(&mut *pages.base.platform.movable.borrow_mut()) {
        pages.free_pages(first, size).unwrap();
    }
    pages.drain_all_pages();
}

#[test]
fn a_free_range_of_any_place_and_length_is_taken_exactly_and_comes_back_whole() {
    let pages = flat(256);
    let fresh = free_blocks(&pages);
    let mut rng = Rng::new(7);
    for _ in 0..200 {
        let start = rng.below(255) as u32;
        let count = 1 + rng.below(256 - start as usize) as u64;
        range(&pages, start, count, KERNEL).unwrap();
        assert_eq!(pages.zone_info(0).unwrap().free_pages, 256 - count);
        assert!((start..start + count as u32).all(|f| pages.base.frames.kind(pfn(f)) == FrameKind::Pages));
        pages.free_contig_range(pfn(start), PageCount::new(count)).unwrap();
        pages.drain_all_pages();
        assert_eq!(free_blocks(&pages), fresh);
    }
}

#[test]
fn movable_blocks_make_way_and_keep_their_contents() {
    let pages = flat(256);
    let blocks: Vec<Pfn> = [0, 1, 2, 3, 4, 5, 0, 0].into_iter().map(|size| movable(&pages, size)).collect();
    blocks.iter().zip(0..).for_each(|(first, n)| assert!(pages.base.mem.write_u64(first.addr(), n)));
    let span = blocks.iter().map(|first| first.as_u32()).max().unwrap() + 1;
    range(&pages, 0, u64::from(span), KERNEL).unwrap();
    let moved: Vec<Pfn> = pages.base.platform.movable.borrow().keys().copied().collect();
    assert!(moved.iter().all(|first| first.as_u32() >= span), "{moved:?}");
    let mut marks: Vec<u64> = moved.iter().map(|first| pages.base.mem.read_u64(first.addr()).unwrap()).collect();
    marks.sort_unstable();
    assert_eq!(marks, (0..8).collect::<Vec<_>>());
    pages.free_contig_range(pfn(0), PageCount::new(span.into())).unwrap();
    free_movable(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 4);
}

#[test]
fn what_cannot_be_moved_is_named_before_anything_moves() {
    let pages = flat(128);
    let near = movable(&pages, 0);
    let fixed = pages.alloc_pages(order(4), KERNEL).unwrap();
    let pinned = pages.alloc_pages(order(1), MOVABLE).unwrap();
    assert_eq!(range(&pages, fixed.as_u32() + 3, 2, KERNEL), Err(AllocError::Busy { frame: pfn(fixed.as_u32() + 3) }));
    let all = range(&pages, 0, 128, KERNEL).unwrap_err();
    assert!(matches!(all, AllocError::Busy { .. }));
    assert_eq!(pages.base.platform.count(Event::BlockMoved), 0);
    pages.free_pages(fixed, order(4)).unwrap();
    let busy = AllocError::Busy { frame: pinned };
    assert_eq!(range(&pages, pinned.as_u32() + 1, 1, KERNEL), Err(busy), "its owner refuses");
    assert!(pages.base.platform.count(Event::BlockPinned) > 0);
    pages.free_pages(pinned, order(1)).unwrap();
    range(&pages, near.as_u32(), 1, KERNEL).unwrap();
    pages.free_contig_range(near, PageCount::new(1)).unwrap();
    free_movable(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 2);
}

#[test]
fn where_types_are_not_kept_apart_movable_blocks_make_way_and_others_do_not() {
    let mut geometry = shaped(&[(ZoneKind::Normal, 0, 128)], 6, 4);
    geometry.mobility = crate::mobility::Mobility::Mixed;
    let pages = crate::testing::page_allocator(&geometry);
    for size in [0, 2] {
        let block = movable(&pages, size);
        range(&pages, block.as_u32(), 1, KERNEL).unwrap();
        assert!(!pages.base.platform.movable.borrow().contains_key(&block), "order {size} has moved");
        pages.free_contig_range(block, PageCount::new(1)).unwrap();
    }
    let types = (0..128).step_by(16).map(|frame| pages.pageblock_type(pfn(frame)));
    assert!(types.into_iter().all(|migrate| migrate == Some(crate::MigrateType::Unmovable)));
    free_movable(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 2);
    for size in [0, 2] {
        let all = exhaust(&pages, order(size), MOVABLE);
        all.into_iter().for_each(|block| pages.free_pages(block, order(size)).unwrap());
        let fixed = pages.alloc_pages(order(size), KERNEL).unwrap();
        assert_eq!(range(&pages, fixed.as_u32(), 1, KERNEL), Err(AllocError::Busy { frame: fixed }));
        pages.free_pages(fixed, order(size)).unwrap();
    }
    assert_eq!(pages.base.platform.count(Event::BlockPinned), 0, "what has a new owner is not taken for movable");
}

#[test]
fn without_room_elsewhere_nothing_is_taken() {
    let pages = flat(64);
    let blocks: Vec<Pfn> = (0..3).map(|_| movable(&pages, 4)).collect();
    let first = blocks.iter().min().unwrap().as_u32();
    assert_eq!(range(&pages, first, 20, KERNEL), Err(AllocError::NoPages { order: order(4) }));
    free_movable(&pages);
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn a_block_goes_to_its_own_zone_first_and_then_to_a_lower_one() {
    let pages = machine(&[(ZoneKind::Dma, 0, 64), (ZoneKind::Normal, 64, 64), (ZoneKind::Movable, 128, 64)]);
    let block = movable(&pages, 2);
    assert!(block.as_u32() >= 128);
    range(&pages, block.as_u32(), 4, KERNEL).unwrap();
    let here = |pages: &Pages| *pages.base.platform.movable.borrow().keys().next().unwrap();
    assert!(here(&pages).as_u32() >= 128);
    pages.free_contig_range(block, PageCount::new(4)).unwrap();
    pages.drain_all_pages();
    range(&pages, 128, 64, KERNEL).unwrap();
    assert!((64..128).contains(&here(&pages).as_u32()));
    range(&pages, 64, 64, KERNEL).unwrap();
    assert!(here(&pages).as_u32() < 64);
    let error = range(&pages, 0, 64, KERNEL).unwrap_err();
    assert_eq!(error, AllocError::NoPages { order: order(2) });
    pages.free_contig_range(pfn(64), PageCount::new(64)).unwrap();
    assert_eq!(range(&pages, 0, 64, KERNEL), Err(error), "its owner may need low memory");
    pages.free_contig_range(pfn(128), PageCount::new(64)).unwrap();
    free_movable(&pages);
}

#[test]
fn with_comp_the_range_is_one_block() {
    let pages = flat(128);
    let comp = KERNEL | GfpFlags::COMP | GfpFlags::ZERO;
    range(&pages, 32, 32, comp).unwrap();
    assert_eq!(pages.base.mem.read_u64(pfn(63).addr()), Some(0));
    assert_eq!(pages.free_pages(pfn(32), Order::ZERO), Err(FreeError::WrongOrder { found: order(5) }));
    assert!(pages.free_contig_range(pfn(32), PageCount::new(16)).is_err());
    pages.free_contig_range(pfn(32), PageCount::new(32)).unwrap();
    let bad = |start, count| {
        let (start, pages_wanted) = (pfn(start), PageCount::new(count));
        assert_eq!(
            range(&pages, start.as_u32(), count, comp),
            Err(AllocError::BadRange { start, pages: pages_wanted })
        );
    };
    bad(16, 32);
    bad(0, 24);
    assert_eq!(range(&pages, 0, 128, comp), Err(AllocError::OrderTooLarge { max: order(6) }));
}

#[test]
fn senseless_ranges_and_flags_are_refused() {
    let pages = machine(&[(ZoneKind::Dma, 0, 32), (ZoneKind::Normal, 32, 32)]);
    assert_eq!(range(&pages, 0, 0, KERNEL), Err(AllocError::ZeroSize));
    for (start, count) in [(16, 32), (60, 8), (64, 1), (u32::MAX, u64::MAX)] {
        let error = AllocError::BadRange { start: pfn(start), pages: PageCount::new(count) };
        assert_eq!(range(&pages, start, count, KERNEL), Err(error));
    }
    for flag in [GfpFlags::NOFAIL, GfpFlags::NORETRY, GfpFlags::HIGH, GfpFlags::MEMALLOC, GfpFlags::ACCOUNT] {
        assert_eq!(range(&pages, 0, 4, KERNEL | flag), Err(AllocError::BadFlags));
    }
    range(&pages, 0, 4, GfpFlags::NOWAIT | MOVABLE | GfpFlags::THISNODE).unwrap();
}

#[test]
fn pages_of_other_cpus_lists_are_fetched_and_what_is_freed_meanwhile_stays_out() {
    let mut geometry = shaped(&[(ZoneKind::Normal, 0, 64)], 6, 4);
    geometry.cpus = 2;
    let pages = crate::testing::page_allocator(&geometry);
    pages.base.platform.cpu.set(1);
    let page = pages.alloc_pages(Order::ZERO, MOVABLE).unwrap();
    pages.free_pages(page, Order::ZERO).unwrap();
    assert_eq!(pages.base.frames.kind(page), FrameKind::Pcp);
    pages.base.platform.cpu.set(0);
    range(&pages, 0, 64, KERNEL).unwrap();
    pages.free_contig_range(pfn(0), PageCount::new(64)).unwrap();
    pages.drain_all_pages();
    let zone = &pages.zones[0];
    let late = pages.alloc_pages(Order::ZERO, KERNEL).unwrap();
    pages.drain_all_pages();
    let isolation = pages.isolate(zone, &(0..64)).ok().unwrap();
    assert_eq!(pages.isolate(zone, &(16..17)).err(), Some(pfn(16)), "somebody else has it");
    pages.free_pages(late, Order::ZERO).unwrap();
    assert_eq!(pages.base.frames.kind(late), FrameKind::Free, "not on this CPU's lists");
    assert!(pages.alloc_pages(Order::ZERO, KERNEL).is_err());
    pages.check_invariants().unwrap();
    pages.end_isolation(zone, isolation);
    pages.check_invariants().unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn a_block_of_several_pageblocks_is_freed_in_parts_while_one_of_them_is_isolated() {
    let pages = flat(128);
    let block = pages.alloc_pages(order(6), KERNEL).unwrap();
    let second = block.as_u32() + 16;
    let isolation = pages.isolate(&pages.zones[0], &(second..second + 1)).ok().unwrap();
    pages.free_pages(block, order(6)).unwrap();
    pages.check_invariants().unwrap();
    let free = pages.zone_info(0).unwrap();
    assert_eq!((free.free[4], free.free[5], free.free[6]), (2, 1, 1), "16 | 16 isolated | 32, and the other 64");
    pages.end_isolation(&pages.zones[0], isolation);
    pages.check_invariants().unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 2);
}

#[test]
fn pages_are_found_where_they_are_free_and_else_where_moving_helps() {
    let pages = flat(128);
    let (count, kernel) = (PageCount::new(48), KERNEL);
    assert_eq!(pages.alloc_contig_pages(PageCount::new(0), kernel, None, &()), Err(AllocError::ZeroSize));
    let block = movable(&pages, 0);
    let first = pages.alloc_contig_pages(count, kernel, None, &()).unwrap();
    assert_eq!(pages.base.platform.count(Event::BlockMoved), 0);
    assert!(!(first.as_u32()..first.as_u32() + 48).contains(&block.as_u32()));
    pages.free_contig_range(first, count).unwrap();
    pages.drain_all_pages();
    let fixed = pages.alloc_pages(Order::ZERO, kernel).unwrap();
    let most = pages.alloc_contig_pages(PageCount::new(64), kernel, None, &()).unwrap();
    assert!(pages.base.platform.count(Event::BlockMoved) > 0 || fixed.as_u32() / 64 == block.as_u32() / 64);
    assert!(most.as_u32().is_multiple_of(64), "aligned to its length");
    let busy = pages.alloc_contig_pages(PageCount::new(128), kernel, None, &());
    assert!(matches!(busy, Err(AllocError::Busy { .. })));
    pages.check_invariants().unwrap();
}

#[test]
fn a_split_block_is_so_many_single_pages() {
    let pages = flat(64);
    let first = pages.alloc_pages(order(3), KERNEL).unwrap();
    assert_eq!(pages.split_page(first, order(2)), Err(FreeError::WrongOrder { found: order(3) }));
    pages.split_page(first, order(3)).unwrap();
    pages.check_invariants().unwrap();
    assert!(pages.free_pages(first, order(3)).is_err());
    (0..8).for_each(|n| pages.free_pages(pfn(first.as_u32() + n), Order::ZERO).unwrap());
    pages.drain_all_pages();
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn any_mix_of_ranges_blocks_and_pins_keeps_the_invariants() {
    for seed in 0..30 {
        let pages = flat(256);
        let mut rng = Rng::new(seed);
        let mut fixed: Vec<(Pfn, Order)> = Vec::new();
        let mut ranges: Vec<(Pfn, PageCount)> = Vec::new();
        for _ in 0..200 {
            let size = order(rng.below(5) as u8);
            match rng.below(8) {
                0..=2 => {
                    if let Ok(first) = pages.alloc_pages(size, MOVABLE) {
                        pages.base.platform.movable.borrow_mut().insert(first, size);
                    }
                }
                3 => fixed.extend(pages.alloc_pages(order(0), KERNEL).ok().map(|first| (first, order(0)))),
                4 => {
                    let (start, count) = (pfn(rng.below(256) as u32), PageCount::new(1 + rng.below(40) as u64));
                    if pages.alloc_contig_range(start, count, KERNEL, &()).is_ok() {
                        ranges.push((start, count));
                    }
                }
                5 if !ranges.is_empty() => {
                    let (start, count) = ranges.swap_remove(rng.below(ranges.len()));
                    pages.free_contig_range(start, count).unwrap();
                }
                6 => drop(pages.compact_everything(&())),
                _ => {
                    let mut live = pages.base.platform.movable.borrow_mut();
                    let picked = live.keys().nth(rng.below(live.len())).copied();
                    if let Some((first, size)) = picked.and_then(|first| live.remove_entry(&first)) {
                        drop(live);
                        pages.free_pages(first, size).unwrap();
                    }
                }
            }
            pages.check_invariants().unwrap();
        }
        fixed.into_iter().for_each(|(first, size)| pages.free_pages(first, size).unwrap());
        ranges.into_iter().for_each(|(start, count)| pages.free_contig_range(start, count).unwrap());
        free_movable(&pages);
        assert_eq!(free_blocks(&pages)[0][6], 4);
    }
}
