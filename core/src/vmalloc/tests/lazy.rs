use super::*;

#[test]
fn neither_addresses_nor_frames_are_reused_before_the_flush() {
    let m = Machine::new(256);
    let a = m.vmalloc(4 * PAGE_SIZE, KERNEL).unwrap();
    let old = m.frames_behind(a, 4);
    m.vfree(a).unwrap();
    assert_eq!(m.frames_behind(a, 4), [None; 4], "unmapped at once");
    assert_eq!(m.window.lazy_frames(), 4);
    assert!(m.platform().flushes.borrow().is_empty());
    m.check().unwrap();

    let b = m.vmalloc(4 * PAGE_SIZE, KERNEL).unwrap();
    assert_eq!(b, page(a, 5), "not at the lazy addresses");
    assert!(m.frames_behind(b, 4).iter().all(|frame| !old.contains(frame)));
    assert!(m.platform().flushes.borrow().is_empty());

    assert_eq!(m.purge(), 4, "the table is still used by the second block");
    assert_eq!(*m.platform().flushes.borrow(), [(a.vpn(), 4)]);
    assert_eq!(m.window.lazy_frames(), 0);
    assert_eq!(m.vmalloc(4 * PAGE_SIZE, KERNEL), Ok(a), "now the lowest again");
    m.check().unwrap();
}

#[test]
fn one_flush_from_the_lowest_to_the_highest_page_serves_all_lazy_areas() {
    let m = Machine::new(512);
    let blocks: Vec<VirtAddr> = (0..5).map(|_| m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap()).collect();
    for n in [3, 1] {
        m.vfree(blocks[n]).unwrap();
    }
    assert_eq!(m.purge(), 4);
    assert_eq!(*m.platform().flushes.borrow(), [(blocks[1].vpn(), 2 * 3 + 2)]);
    assert_eq!(m.purge(), 0);
    assert_eq!(m.platform().flushes.borrow().len(), 1, "nothing to flush, no flush");
    assert_eq!(m.platform().count(Event::Purge), 1);
}

#[test]
fn everything_freed_and_purged_gives_back_the_initial_state() {
    let m = Machine::new(2048);
    let before = m.ownership();
    let blocks: Vec<VirtAddr> = (1..40).map(|n| m.vmalloc(n * PAGE_SIZE, KERNEL).unwrap()).collect();
    assert!(m.window.nr_tables() > 4);
    blocks.into_iter().for_each(|addr| m.vfree(addr).unwrap());
    m.purge();
    assert_eq!(m.ownership(), before);
    assert_eq!(m.window.nr_tables(), 1);
    assert!(m.entries().is_empty());
}

#[test]
fn the_purge_starts_by_itself_above_the_threshold_and_not_before() {
    let m = Machine::new(1024);
    assert_eq!(m.window.lazy_max, 32);
    let blocks: Vec<VirtAddr> = (0..11).map(|_| m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap()).collect();
    for addr in &blocks[..10] {
        m.vfree(*addr).unwrap();
    }
    assert_eq!(m.platform().count(Event::Purge), 0, "30 pages wait, guards included");
    m.vfree(blocks[10]).unwrap();
    assert_eq!(m.platform().count(Event::Purge), 1);
    assert!(m.entries().is_empty());
}

#[test]
fn frames_of_the_caller_are_mapped_in_order_and_survive_the_unmapping() {
    let m = Machine::new(512);
    let frames = [m.frame(), m.frame(), m.frame()];
    let (there, back) = ([frames[0], frames[1], frames[2]], [frames[2], frames[2], frames[0]]);
    let (a, b) = (m.vmap(&there).unwrap(), m.vmap(&back).unwrap());
    assert_eq!(m.frames_behind(a, 4), [Some(there[0]), Some(there[1]), Some(there[2]), None]);
    assert_eq!(m.frames_behind(b, 3), back.map(Some));
    m.check().unwrap();
    m.vunmap(a).unwrap();
    m.vfree(b).unwrap();
    assert_eq!(m.window.lazy_frames(), 0);
    m.check().unwrap();
    assert_eq!(m.purge(), 3, "the tables only");
    assert!(frames.iter().all(|frame| m.pages.base.frames.kind(*frame) == FrameKind::Pages));
    m.check().unwrap();
}

#[test]
fn each_misuse_is_named_and_changes_nothing() {
    let m = Machine::new(128);
    let block = m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    let mapping = m.vmap(&[m.frame()]).unwrap();
    let lazy = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    m.vfree(lazy).unwrap();
    let (before, entries) = (m.ownership(), m.entries());
    let foreign = |addr| Err(FreeError::Foreign(addr));
    let inside = |addr, start| Err(FreeError::Interior { addr, start });
    let direct = m.pages.base.virt(m.frame().addr());
    let wrong = |addr, expected, found| Err(FreeError::WrongKind { addr, expected, found });
    use BlockKind::{Pages, Vmalloc, Vmap};

    for free in [Machine::vfree, Machine::vunmap] {
        assert_eq!(free(&m, VirtAddr::NULL), Ok(()));
        for addr in [VirtAddr::ZERO_SIZE, page(block, 2), page(m.start(), 1 << 32), at(lazy, 8), page(mapping, 1)] {
            assert_eq!(free(&m, addr), foreign(addr));
        }
        assert_eq!(free(&m, VirtAddr::new(u64::MAX)), foreign(VirtAddr::new(u64::MAX)));
        assert_eq!(free(&m, at(block, 1)), inside(at(block, 1), block));
        assert_eq!(free(&m, page(block, 1)), inside(page(block, 1), block));
        assert_eq!(free(&m, lazy), Err(FreeError::DoubleFree(lazy)));
    }
    assert_eq!(m.vfree(direct), wrong(direct, Vmalloc, Pages));
    assert_eq!(m.vunmap(direct), wrong(direct, Vmap, Pages));
    assert_eq!(m.vunmap(block), wrong(block, Vmap, Vmalloc));
    assert_eq!(m.vrealloc(mapping, 1, KERNEL), Err(AllocError::BadAddress(mapping)));
    assert_eq!(m.entries(), entries);
    m.check().unwrap();
    assert_eq!(m.ownership().vmalloc, before.vmalloc);
}
