//! The calls: faults, misuse, exact sizes, many pages.

use super::{Pages, free_blocks, order, pfn, shaped};
use crate::addr::{PAGE_SIZE, Pfn};
use crate::buddy::OwnerClass;
use crate::error::{AllocError, BlockKind, CacheId, FreeError};
use crate::fault::FaultPoint;
use crate::geometry::ZoneKind::{Dma, Normal};
use crate::gfp::GfpFlags;
use crate::page::FrameKind;
use crate::testing::page_allocator;

/// Frames 64..72 are a hole.
fn machine() -> Pages {
    page_allocator(&shaped(&[(Dma, 0, 64), (Normal, 72, 184)], 6, 5))
}

/// Owners' counts and free blocks: what a refused call must leave alone.
fn state(pages: &Pages) -> impl PartialEq + core::fmt::Debug {
    (OwnerClass::ALL.map(|class| pages.owned(class)), free_blocks(pages))
}

#[test]
fn senseless_requests_get_their_own_error_and_do_not_consume_a_fault() {
    let pages = machine();
    pages.base.platform.fail(FaultPoint::Page, 0);
    let before = state(&pages);
    for bad in [
        GfpFlags::DMA | GfpFlags::DMA32,
        GfpFlags::DMA | GfpFlags::HIGHMEM,
        GfpFlags::DMA32 | GfpFlags::HIGHMEM,
        GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE,
    ] {
        assert_eq!(pages.alloc_pages(order(0), GfpFlags::KERNEL | bad), Err(AllocError::BadFlags), "{bad:?}");
    }
    let too_large = Err(AllocError::OrderTooLarge { max: order(6) });
    assert_eq!(pages.alloc_pages(order(7), GfpFlags::KERNEL), too_large);
    assert_eq!(pages.alloc_pages_exact(65 * PAGE_SIZE, GfpFlags::KERNEL), too_large);
    assert_eq!(pages.alloc_pages_exact(usize::MAX, GfpFlags::KERNEL), too_large);
    assert_eq!(pages.alloc_pages_exact(0, GfpFlags::KERNEL), Err(AllocError::ZeroSize));
    assert_eq!(state(&pages), before);
    assert_eq!(pages.alloc_pages(order(0), GfpFlags::KERNEL), Err(AllocError::Injected(FaultPoint::Page)));
    assert_eq!(state(&pages), before);
    assert!(pages.alloc_pages(order(0), GfpFlags::KERNEL).is_ok());
}

#[test]
fn internal_allocations_ask_no_fault_point() {
    let pages = machine();
    pages.base.platform.fail(FaultPoint::Page, 0);
    assert!(pages.alloc_block(order(0), GfpFlags::KERNEL, FrameKind::Vmalloc).is_ok());
}

#[test]
fn each_misuse_of_free_is_named_and_changes_nothing() {
    let pages = machine();
    let block = pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
    let freed = pages.alloc_pages(order(4), GfpFlags::KERNEL).unwrap();
    pages.free_pages(freed, order(4)).unwrap();
    let slab = pages.alloc_block(order(0), GfpFlags::KERNEL, FrameKind::Slab(CacheId::new(3))).unwrap();
    let parked = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
    pages.free_pages(parked, order(0)).unwrap();
    let before = state(&pages);

    let virt = |first: Pfn| pages.base.virt(first.addr());
    let inside = block.checked_add(3).unwrap();
    let wrong_kind = |found| FreeError::WrongKind { addr: virt(slab), expected: BlockKind::Pages, found };
    for (first, k, error) in [
        (block, 1, FreeError::WrongOrder { found: order(2) }),
        (block, 3, FreeError::WrongOrder { found: order(2) }),
        (inside, 0, FreeError::Interior { addr: virt(inside), start: virt(block) }),
        (freed, 4, FreeError::DoubleFree(virt(freed))),
        (freed.checked_add(5).unwrap(), 0, FreeError::DoubleFree(virt(freed.checked_add(5).unwrap()))),
        (parked, 0, FreeError::DoubleFree(virt(parked))),
        (slab, 0, wrong_kind(BlockKind::Slab)),
        (pfn(66), 0, FreeError::Foreign(virt(pfn(66)))),
        (pfn(256), 0, FreeError::Foreign(virt(pfn(256)))),
        (pfn(u32::MAX), 10, FreeError::Foreign(virt(pfn(u32::MAX)))),
    ] {
        assert_eq!(pages.free_pages(first, order(k)), Err(error), "{first} of order {k}");
        assert_eq!(state(&pages), before, "{first} of order {k}");
    }
    pages.check_invariants().unwrap();
    pages.free_pages(block, order(2)).unwrap();
}

#[test]
fn exact_sizes_keep_no_page_too_many() {
    let pages = machine();
    for size in [1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE, 5 * PAGE_SIZE - 1, 33 * PAGE_SIZE, 64 * PAGE_SIZE] {
        let first = pages.alloc_pages_exact(size, GfpFlags::KERNEL).unwrap();
        assert_eq!(pages.owned(OwnerClass::Pages), size.div_ceil(PAGE_SIZE) as u64);
        pages.check_invariants().unwrap();
        pages.free_pages_exact(first, size).unwrap();
        assert_eq!(pages.owned(OwnerClass::Pages), 0);
    }
    pages.drain_all_pages();
    pages.check_invariants().unwrap();
    assert_eq!(free_blocks(&pages)[0][6], 1);
}

#[test]
fn pages_of_an_exact_block_may_be_freed_one_by_one() {
    let pages = machine();
    let first = pages.alloc_pages_exact(3 * PAGE_SIZE, GfpFlags::KERNEL).unwrap();
    for n in [1, 0, 2] {
        pages.free_pages(first.checked_add(n).unwrap(), order(0)).unwrap();
    }
    assert_eq!(pages.owned(OwnerClass::Pages), 0);
}

#[test]
fn an_exact_free_frees_nothing_if_one_page_is_not_right() {
    let pages = machine();
    let first = pages.alloc_pages_exact(5 * PAGE_SIZE, GfpFlags::KERNEL).unwrap();
    let third = first.checked_add(2).unwrap();
    pages.free_pages(third, order(0)).unwrap();
    let double = FreeError::DoubleFree(pages.base.virt(third.addr()));
    assert_eq!(pages.free_pages_exact(first, 5 * PAGE_SIZE), Err(double));
    assert_eq!(pages.free_pages_exact(first, usize::MAX), Err(double));
    let block = pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    let wrong_order = FreeError::WrongOrder { found: order(1) };
    assert_eq!(pages.free_pages_exact(block, 2 * PAGE_SIZE), Err(wrong_order));
    pages.free_pages(block, order(1)).unwrap();
    assert_eq!(pages.free_pages_exact(first, 0), Ok(()));
    assert_eq!(pages.owned(OwnerClass::Pages), 4);
}
