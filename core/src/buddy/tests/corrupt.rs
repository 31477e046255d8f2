//! The auditor is audited: each kind of damage is reported under its own number.

use super::{Pages, order, pfn, shaped};
use crate::addr::Pfn;
use crate::buddy::OwnerClass;
use crate::buddy::migrate::MigrateType;
use crate::buddy::zone::{FreeBlock, LockedZone, Place};
use crate::error::Invariant;
use crate::geometry::ZoneKind::{Dma, Normal};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::CpuId;
use crate::testing::{TestPlatform, page_allocator};

/// DMA 0..32, a hole, Normal 40..104; some of Normal in use, some on this CPU's lists.
fn machine() -> Pages {
    let pages = page_allocator(&shaped(&[(Dma, 0, 32), (Normal, 40, 64)], 5, 3));
    pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
    for k in [0, 1] {
        let first = pages.alloc_pages(order(k), GfpFlags::KERNEL).unwrap();
        pages.free_pages(first, order(k)).unwrap();
    }
    pages.check_invariants().unwrap();
    pages
}

fn expect(invariant: Invariant, damage: impl FnOnce(&Pages)) {
    let pages = machine();
    damage(&pages);
    let violation = pages.check_invariants().expect_err("the damage goes unnoticed");
    assert_eq!(violation.invariant, invariant, "{violation}");
}

fn in_zone<R>(pages: &Pages, zone: usize, body: impl FnOnce(&mut LockedZone<'_, TestPlatform>) -> R) -> R {
    pages.locked(&pages.zones[zone], body)
}

/// The first frame in `range` of this kind.
fn find(pages: &Pages, kind: FrameKind) -> Pfn {
    (40..104).map(pfn).find(|&frame| pages.base.frames.kind(frame) == kind).unwrap()
}

/// A free block of Normal: the head of the first list that is not empty.
fn free_head(pages: &Pages) -> (Pfn, Order) {
    in_zone(pages, 1, |zone| {
        let head = zone.areas.lists.iter().flatten().find_map(|list| list.head()).unwrap();
        (head, pages.base.frames.order(head))
    })
}

#[test]
fn a_frame_that_changes_its_owner_unnoticed_breaks_conservation() {
    expect(Invariant::I7Conservation, |pages| {
        let first = pages.alloc_pages(order(0), GfpFlags::KERNEL).unwrap();
        pages.base.frames.set_kind(first, FrameKind::Vmalloc);
    });
    expect(Invariant::I7Conservation, |pages| pages.zones[0].ledger.add(OwnerClass::Slab, 1));
    expect(Invariant::I7Conservation, |pages| {
        // A block that is on no list any more.
        let _lost = in_zone(pages, 0, |zone| zone.remove(pfn(0)));
    });
}

#[test]
fn counts_that_disagree_with_the_lists_are_found() {
    expect(Invariant::I8ListCounts, |pages| pages.zones[0].ledger.add(OwnerClass::Free, 1));
    expect(Invariant::I8ListCounts, |pages| in_zone(pages, 1, |zone| zone.areas.nonempty[1] ^= 1));
    expect(Invariant::I8ListCounts, |pages| {
        let (head, k) = free_head(pages);
        pages.base.frames.set_order(head, k.up().unwrap());
    });
    expect(Invariant::I8ListCounts, |pages| {
        let (head, _) = free_head(pages);
        pages.base.frames.set_kind(head, FrameKind::Pages);
    });
    expect(Invariant::I8ListCounts, |pages| {
        // A block that is put on its list a second time makes a cycle.
        let (head, k) = free_head(pages);
        let migrate = MigrateType::from_byte(pages.base.frames.migrate(head));
        in_zone(pages, 1, |zone| zone.insert(FreeBlock { first: head, order: k }, migrate, Place::Head));
    });
}

#[test]
fn two_free_buddies_side_by_side_are_found() {
    expect(Invariant::I9Coalesced, |pages| {
        in_zone(pages, 0, |zone| {
            let FreeBlock { first, order } = zone.remove(pfn(0));
            let half = order.down().unwrap();
            for first in [first, half.buddy_of(first)] {
                zone.insert(FreeBlock { first, order: half }, MigrateType::Movable, Place::Head);
            }
        });
    });
}

#[test]
fn blocks_outside_their_zone_and_wrong_zone_numbers_are_found() {
    expect(Invariant::I10InsideZone, |pages| pages.base.frames.set_zone(pfn(3), 1));
    expect(Invariant::I10InsideZone, |pages| pages.base.frames.set_kind(pfn(35), FrameKind::Free));
    expect(Invariant::I10InsideZone, |pages| {
        let first = pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
        pages.base.frames.set_head_distance(first.checked_add(2).unwrap(), 40);
    });
    expect(Invariant::I10InsideZone, |pages| {
        let first = pages.alloc_pages(order(2), GfpFlags::KERNEL).unwrap();
        pages.base.frames.set_order(first, order(1));
    });
    for (first, k) in [(pfn(1), 1), (pfn(32), 2)] {
        expect(Invariant::I10InsideZone, |pages| {
            let _whole = in_zone(pages, 0, |zone| zone.remove(pfn(0)));
            in_zone(pages, 0, |zone| {
                zone.insert(FreeBlock { first, order: order(k) }, MigrateType::Movable, Place::Head)
            });
        });
    }
}

#[test]
fn a_block_on_the_list_of_another_type_is_found() {
    expect(Invariant::I11MigrateList, |pages| {
        let (head, _) = free_head(pages);
        pages.blocks.set(pages.zones[1].block_base, head, MigrateType::Isolate);
    });
    expect(Invariant::I11MigrateList, |pages| {
        let (head, _) = free_head(pages);
        pages.base.frames.set_migrate(head, MigrateType::HighAtomic as u8);
    });
}

#[test]
fn damage_to_per_cpu_lists_is_found() {
    expect(Invariant::I21CacheCounts, |pages| pages.pcp(CpuId::new(0), 1).unwrap().ledger.add(OwnerClass::Pcp, 1));
    expect(Invariant::I21CacheCounts, |pages| {
        let parked = find(pages, FrameKind::Pcp);
        pages.base.frames.set_kind(parked, FrameKind::Vmalloc);
    });
    expect(Invariant::I21CacheCounts, |pages| {
        let parked = find(pages, FrameKind::Pcp);
        pages.base.frames.set_order(parked, order(3));
    });
    expect(Invariant::I21CacheCounts, |pages| {
        let parked = find(pages, FrameKind::Pcp);
        pages.base.frames.set_migrate(parked, MigrateType::Reclaimable as u8);
    });
    expect(Invariant::I21CacheCounts, |pages| {
        let hot = pages.hot(CpuId::new(0), 1, 0).unwrap();
        hot.with(&pages.base.platform, true, |array| {
            let page = array.pop().unwrap();
            assert!(array.push(4, page) && array.push(4, page));
        });
    });
}
