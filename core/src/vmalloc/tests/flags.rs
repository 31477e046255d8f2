use super::*;
use crate::warn::Warning;

const RESET: VmFlags = VmFlags::FLUSH_RESET_PERMS;
const PUT: VmFlags = VmFlags::MAP_PUT_PAGES;

#[test]
fn permissions_are_reset_between_one_flush_of_both_addresses_and_the_return_of_the_pages() {
    let m = Machine::new(256);
    let lazy = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    let a = m.vmalloc_with(2 * PAGE_SIZE, RESET).unwrap();
    let frames: Vec<Pfn> = m.frames_behind(a, 2).into_iter().flatten().collect();
    m.vfree(lazy).unwrap();
    m.vfree(a).unwrap();
    let steps = m.platform().aliases.borrow().clone();
    let phases = [(true, 0), (false, 1)].into_iter();
    let expected: Vec<(Pfn, bool, usize)> =
        phases.flat_map(|(invalid, flushes)| frames.iter().map(move |&frame| (frame, invalid, flushes))).collect();
    assert_eq!(steps, expected, "all invalid, one flush, all restored");
    let (start, pages) = m.platform().flushes.borrow()[0];
    let flushed = |addr: VirtAddr| addr.vpn().offset_from(start).is_some_and(|distance| distance < pages);
    let aliases = frames.iter().map(|frame| m.pages.base.virt(frame.addr()));
    assert!(aliases.chain([lazy, a, page(a, 1)]).all(flushed));
    assert_eq!((m.entries().len(), m.window.lazy_frames()), (0, 0), "purged at once, with what waited");
    m.check().unwrap();
}

#[test]
fn a_mapping_drops_its_references_when_freed_and_keeps_them_when_unmapped() {
    let m = Machine::new(256);
    let before = m.ownership();
    let (mine, shared, kept) = (m.frame(), m.frame(), m.frame());
    m.pages.get_page(shared).unwrap();
    m.pages.get_page(mine).unwrap();
    let a = m.vmap_with(&[mine, shared, mine], PUT).unwrap();
    m.vfree(a).unwrap();
    assert_eq!((m.pages.page_count(mine), m.pages.page_count(shared)), (0, 1));
    assert_eq!(m.pages.base.frames.kind(mine), FrameKind::Vmalloc, "not free before the flush");
    assert_eq!(m.window.lazy_frames(), 1);
    m.check().unwrap();
    m.purge();
    assert!(matches!(m.pages.base.frames.kind(mine), FrameKind::Free | FrameKind::Pcp));
    let b = m.vmap_with(&[kept], PUT).unwrap();
    m.vunmap(b).unwrap();
    m.purge();
    assert_eq!(m.pages.page_count(kept), 1, "the caller's again");
    for frame in [kept, shared] {
        m.pages.free_pages(frame, Order::ZERO).unwrap();
    }
    m.check().unwrap();
    assert_eq!(m.ownership(), before);
}

#[test]
fn mistakes_of_a_mapping_are_told_once() {
    let m = Machine::new(256);
    let frame = m.frame();
    for _ in 0..2 {
        assert_eq!(m.vmap_with(&[frame], RESET), Err(AllocError::BadFlags));
        let a = m.vmap_with(&[frame], VmFlags::NO_GUARD).unwrap();
        let b = m.vmap(&[frame]).unwrap();
        assert_eq!(b, page(a, 2), "there is a guard");
        m.vunmap(a).and_then(|()| m.vunmap(b)).unwrap();
        m.purge();
    }
    assert_eq!(*m.platform().warnings.borrow(), [Warning::VmapResetsPerms, Warning::VmapWithoutGuard]);
    let pair = m.pages.alloc_pages(Order::new(1).unwrap(), KERNEL).unwrap();
    let addr = m.pages.base.virt(pair.addr());
    assert_eq!(m.vmap_with(&[pair], PUT), Err(AllocError::BadAddress(addr)), "no reference of its own");
    assert_eq!(m.vmalloc_with(1, PUT), Err(AllocError::BadFlags));
}

#[test]
fn a_page_whose_reference_was_dropped_before_is_left_alone() {
    let m = Machine::new(256);
    let frame = m.frame();
    let a = m.vmap_with(&[frame], PUT).unwrap();
    m.pages.free_pages(frame, Order::ZERO).unwrap();
    assert_eq!(m.pages.base.frames.kind(frame), FrameKind::Bad, "it was mapped");
    m.vfree(a).unwrap();
    m.purge();
    assert_eq!(m.pages.base.frames.kind(frame), FrameKind::Bad);
    m.check().unwrap();
}
