//! References, mappings, bad pages, poison, guards, owners.

use super::order;
use crate::addr::{PAGE_SIZE, Pfn};
use crate::buddy::{OwnerClass, PageAllocator};
use crate::error::FreeError;
use crate::gfp::GfpFlags;
use crate::hardening::PageDebug;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Event;
use crate::testing::{TestPlatform, flat, page_allocator};
use crate::warn::{BadReason, Found, PoisonDamage, Warning};
use std::vec::Vec;

fn debugging(checks: PageDebug) -> PageAllocator<TestPlatform> {
    let mut geometry = flat(256);
    geometry.page_debug = checks;
    page_allocator(&geometry)
}

fn free_pages(pages: &PageAllocator<TestPlatform>) -> u64 {
    pages.drain_all_pages();
    pages.owned(OwnerClass::Free)
}

fn warnings(pages: &PageAllocator<TestPlatform>) -> Vec<Warning> {
    pages.base.platform.warnings.take()
}

/// The body of Linux's `lib/test_free_pages.c`: an extra reference is held while the block is freed, and dropped after.
#[test]
fn test_free_pages() {
    let pages = page_allocator(&flat(256));
    let before = free_pages(&pages);
    for gfp in [GfpFlags::KERNEL, GfpFlags::KERNEL | GfpFlags::COMP] {
        for _ in 0..10_000 {
            let first = pages.alloc_pages(order(3), gfp).unwrap();
            assert_eq!(pages.get_page(first), Ok(2));
            pages.free_pages(first, order(3)).unwrap();
            assert_eq!(pages.put_page(first), Ok(0));
        }
        assert_eq!(free_pages(&pages), before, "{gfp:?} leaks");
    }
    pages.check_invariants().unwrap();
    assert!(pages.base.platform.count(Event::FreePiecewise) == 10_000);
}

#[test]
fn a_block_freed_with_an_extra_reference_goes_back_but_for_its_first_page() {
    let pages = page_allocator(&flat(256));
    let before = free_pages(&pages);
    let first = pages.alloc_pages(order(3), GfpFlags::KERNEL).unwrap();
    pages.get_page(first).unwrap();
    pages.free_pages(first, order(3)).unwrap();
    assert_eq!(free_pages(&pages), before - 1);
    pages.check_invariants().unwrap();
    assert_eq!(pages.page_count(first), 1);
    assert!(matches!(pages.free_pages(first, order(3)), Err(FreeError::WrongOrder { found: Order::ZERO })));
    assert_eq!(pages.put_page(first), Ok(0));
    assert_eq!(free_pages(&pages), before);
}

#[test]
fn a_compound_block_stays_whole_until_the_last_reference_of_any_of_its_pages() {
    let pages = page_allocator(&flat(256));
    let before = free_pages(&pages);
    let first = pages.alloc_pages(order(2), GfpFlags::KERNEL | GfpFlags::COMP).unwrap();
    let tail = first.checked_add(3).unwrap();
    assert_eq!(pages.get_page(tail), Ok(2));
    assert_eq!((pages.page_count(first), pages.page_count(tail)), (2, 2));
    pages.free_pages(first, order(2)).unwrap();
    assert_eq!(free_pages(&pages), before - 4);
    assert_eq!(pages.put_page(tail), Ok(0));
    assert_eq!(free_pages(&pages), before);
    assert!(matches!(pages.put_page(first), Err(FreeError::DoubleFree(_))));
}

#[test]
fn references_are_taken_to_blocks_only_and_the_last_is_not_dropped_by_halves() {
    let pages = page_allocator(&flat(256));
    let first = pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    let tail = first.checked_add(1).unwrap();
    assert!(matches!(pages.get_page(tail), Err(FreeError::Interior { .. })));
    assert!(matches!(pages.get_page(Pfn::new(9999)), Err(FreeError::Foreign(_))));
    assert!(matches!(pages.put_page(first), Err(FreeError::WrongOrder { .. })));
    assert_eq!(pages.get_page(first), Ok(2));
    assert_eq!(pages.put_page(first), Ok(1));
    assert_eq!(pages.base.frames.kind(first), FrameKind::Pages, "a plain block again");
    pages.free_pages(first, order(1)).unwrap();
    let single = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
    assert_eq!(pages.put_page(single), Ok(0), "a page that nobody else holds is freed by dropping the reference");
}

#[test]
fn a_count_too_large_to_be_true_keeps_the_block_for_ever() {
    let pages = page_allocator(&flat(256));
    let first = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
    pages.get_page(first).unwrap();
    pages.base.frames.set_private(first, u32::MAX - 1);
    assert_eq!(pages.get_page(first), Ok(u32::MAX));
    assert_eq!(pages.put_page(first), Ok(u32::MAX));
    assert_eq!(pages.free_pages(first, Order::ZERO), Ok(()));
    assert_eq!(pages.page_count(first), u32::MAX);
}

#[test]
fn a_page_that_is_freed_while_mapped_is_bad_with_its_whole_block() {
    let pages = page_allocator(&flat(256));
    let before = free_pages(&pages);
    let first = pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
    let frame = first.checked_add(2).unwrap();
    pages.map_page(frame);
    assert_eq!(pages.free_pages(first, order(2)), Ok(()));
    let bad = Warning::BadPage { first, order: order(2), frame, reason: BadReason::Mapped(1), found: Found::Freeing };
    assert_eq!(warnings(&pages), [bad]);
    assert_eq!((free_pages(&pages), pages.owned(OwnerClass::Bad)), (before - 4, 4));
    pages.unmap_page(frame);
    assert_eq!(pages.base.frames.kind(frame), FrameKind::Bad, "for good");
    pages.check_invariants().unwrap();
}

#[test]
fn a_page_mapped_no_longer_is_freed_as_any_other() {
    let pages = page_allocator(&flat(256));
    let before = free_pages(&pages);
    let first = pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
    let frame = first.checked_add(2).unwrap();
    pages.map_page(frame);
    pages.map_page(frame);
    pages.unmap_page(frame);
    assert_eq!(pages.base.frames.kind(first), FrameKind::PagesShared);
    pages.unmap_page(frame);
    assert_eq!(pages.base.frames.kind(first), FrameKind::Pages);
    pages.free_pages(first, order(2)).unwrap();
    assert_eq!((free_pages(&pages), warnings(&pages).len()), (before, 0));
}

#[test]
fn single_pages_of_a_split_block_keep_their_mappings_and_the_first_its_references() {
    let pages = page_allocator(&flat(256));
    let first = pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    let second = first.checked_add(1).unwrap();
    pages.get_page(first).unwrap();
    pages.map_page(second);
    pages.split_page(first, order(1)).unwrap();
    assert_eq!(pages.page_count(first), 2);
    pages.free_pages(second, Order::ZERO).unwrap();
    assert_eq!(pages.base.frames.kind(second), FrameKind::Bad);
    pages.free_pages(first, Order::ZERO).unwrap();
    assert_eq!(pages.put_page(first), Ok(0));
    pages.check_invariants().unwrap();
}

#[test]
fn a_free_page_that_is_mapped_is_not_handed_out_where_pages_are_checked() {
    for (checks, bad) in [(PageDebug::CHECK, 1), (PageDebug::OWNER, 0)] {
        let pages = debugging(checks);
        let first = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
        pages.free_pages(first, Order::ZERO).unwrap();
        pages.map_page(first);
        let mut got = Vec::new();
        while let Ok(page) = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL) {
            got.push(page);
        }
        assert_eq!(pages.owned(OwnerClass::Bad), bad);
        assert_eq!(got.contains(&first), bad == 0);
        assert_eq!(
            warnings(&pages).iter().any(|w| matches!(w, Warning::BadPage { found: Found::Allocating, .. })),
            bad == 1
        );
        pages.check_invariants().unwrap();
    }
}

#[test]
fn poison_tells_a_flipped_bit_from_a_write() {
    let pages = debugging(PageDebug::POISON);
    let page = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
    assert_eq!(warnings(&pages), []);
    let at = |offset: u64| page.addr().checked_add(offset).unwrap();
    let damaged = |bytes: &[(u64, u8)]| {
        pages.free_pages(page, Order::ZERO).unwrap();
        for &(offset, value) in bytes {
            assert!(pages.base.mem.fill(at(offset), 1, value));
        }
        assert_eq!(pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL), Ok(page), "the page is used all the same");
        warnings(&pages)
    };
    let told = |damage| [Warning::PoisonDamaged { frame: page, damage }];
    assert_eq!(damaged(&[]), []);
    assert_eq!(damaged(&[(100, 0xaa ^ 0x20)]), told(PoisonDamage::BitFlip { offset: 100, bit: 5 }));
    assert_eq!(damaged(&[(100, 0xaa ^ 0x21)]), told(PoisonDamage::Corruption { first: 100, last: 100 }));
    assert_eq!(damaged(&[(7, 0xab), (4095, 0xab)]), told(PoisonDamage::Corruption { first: 7, last: 4095 }));
}

#[test]
fn freed_pages_are_filled_with_poison_and_zeroed_ones_read_zero() {
    let pages = debugging(PageDebug::POISON);
    let page = pages.alloc_pages(order(1), GfpFlags::KERNEL).unwrap();
    assert!(pages.base.mem.fill(page.addr(), 2 * PAGE_SIZE, 1));
    pages.free_pages(page, order(1)).unwrap();
    let last = page.addr().checked_add(2 * PAGE_SIZE as u64 - 8).unwrap();
    assert_eq!(pages.base.mem.read_u64(last), Some(0xaaaa_aaaa_aaaa_aaaa));
    assert_eq!(pages.alloc_pages(order(1), GfpFlags::KERNEL | GfpFlags::ZERO), Ok(page));
    assert_eq!(pages.base.mem.read_u64(last), Some(0));
}

#[test]
fn what_is_left_over_when_a_block_is_cut_becomes_guards_until_the_block_is_free() {
    let mut geometry = flat(64);
    geometry.guardpage_minorder = order(2);
    let pages = page_allocator(&geometry);
    let before = free_pages(&pages);
    let page = pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
    pages.drain_all_pages();
    let kind = |offset| pages.base.frames.kind(page.checked_add(offset).unwrap());
    assert_eq!([1, 2, 3].map(kind), [FrameKind::Guard; 3], "a guard of order 0 and one of order 1");
    assert_eq!(kind(4), FrameKind::Free);
    assert_eq!(pages.owned(OwnerClass::Guard), 3);
    pages.check_invariants().unwrap();
    pages.free_pages(page, Order::ZERO).unwrap();
    assert_eq!((free_pages(&pages), pages.owned(OwnerClass::Guard)), (before, 0), "merging counts the guard as free");
    pages.check_invariants().unwrap();
}

#[test]
fn the_owner_of_each_block_is_known_by_the_line_that_asked() {
    let pages = debugging(PageDebug::OWNER);
    let block = pages.alloc_pages(order(2), GfpFlags::ATOMIC).unwrap();
    let line = line!() - 1;
    pages.base.platform.cpu.set(0);
    let listed = |pages: &PageAllocator<TestPlatform>| {
        let mut all = Vec::new();
        pages.page_owner(|owner| all.push(owner));
        all
    };
    let all = listed(&pages);
    assert_eq!(all.len(), 1);
    let owner = all[0];
    assert_eq!(
        (owner.first, owner.order, owner.gfp, owner.kind),
        (block, order(2), GfpFlags::ATOMIC, FrameKind::Pages)
    );
    assert_eq!((owner.location.line(), owner.location.file()), (line, file!()));
    pages.split_page(block, order(2)).unwrap();
    let all = listed(&pages);
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|o| o.order == Order::ZERO && o.sequence == owner.sequence && o.location == owner.location));
    pages.free_pages(block, Order::ZERO).unwrap();
    assert_eq!(listed(&pages).len(), 3);
    let text = std::format!("{owner}");
    assert!(text.starts_with("Page allocated via order 2, mask 0x820("), "{text}");
}

#[test]
fn while_pages_are_checked_no_cpu_keeps_any() {
    let pages = debugging(PageDebug::CHECK);
    let blocks: Vec<Pfn> = (0..40).map(|_| pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap()).collect();
    blocks.into_iter().for_each(|page| pages.free_pages(page, Order::ZERO).unwrap());
    assert_eq!((pages.owned(OwnerClass::Pcp), pages.owned(OwnerClass::Free)), (0, 256));
}
