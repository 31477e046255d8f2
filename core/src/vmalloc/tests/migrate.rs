use super::*;

const MOVABLE: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::MOVABLE);

fn mover(m: &Machine) -> VmallocMover<'_, TestPlatform> {
    VmallocMover { pages: &m.pages, window: &m.window }
}

/// Asks for the frame behind the first page of an area, with room elsewhere; gives the room back if it was not wanted.
fn moves(m: &Machine, addr: VirtAddr) -> bool {
    let from = m.window.vmalloc_to_page(&m.pages, addr).unwrap();
    moves_frame(m, from)
}

fn moves_frame(m: &Machine, from: Pfn) -> bool {
    let to = m.pages.alloc_block(Order::ZERO, KERNEL, FrameKind::Vmalloc).unwrap();
    let moved = mover(m).migrate(from, to);
    m.pages.free_block(if moved { from } else { to }, Order::ZERO);
    moved
}

#[test]
fn a_page_that_moves_is_flushed_and_keeps_its_address_and_its_bytes() {
    let m = Machine::new(512);
    let addr = patterned(&m, 3 * PAGE_SIZE, MOVABLE);
    let before = m.frames_behind(addr, 3);
    let at = page(addr, 1);
    assert!(moves(&m, at));
    assert_eq!(*m.platform().flushes.borrow(), [(at.vpn(), 1)]);
    let after = m.frames_behind(addr, 3);
    assert!(after[1] != before[1] && after[0] == before[0] && after[2] == before[2]);
    assert!((0..3 * PAGE_SIZE).all(|n| m.read(addr, n) == pattern(n)));
    m.check().unwrap();
    assert!(moves(&m, at), "and it moves again");
    m.vfree(addr).unwrap();
    m.purge();
    assert_eq!(m.pages.owned(OwnerClass::Vmalloc), 0);
}

#[test]
fn only_pages_of_movable_areas_move_and_only_while_they_are_live_and_shown_once() {
    let m = Machine::new(512);
    let fixed = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    assert!(!moves(&m, fixed));
    let addr = m.vmalloc(PAGE_SIZE, MOVABLE).unwrap();
    let frame = m.window.vmalloc_to_page(&m.pages, addr).unwrap();
    let alias = m.vmap(&[frame]).unwrap();
    assert!(!moves(&m, addr), "it has two mappings");
    m.vunmap(alias).unwrap();
    assert_eq!(m.window.pin_page(&m.pages, addr), Some(frame));
    assert!(!moves(&m, addr), "pinned");
    assert_eq!(m.window.unpin_page(&m.pages, frame), Ok(()));
    assert!(m.window.unpin_page(&m.pages, frame).is_err() && m.window.unpin_page(&m.pages, Pfn::new(0)).is_err());
    assert!(moves(&m, addr));
    let frame = m.window.vmalloc_to_page(&m.pages, addr).unwrap();
    m.vfree(addr).unwrap();
    assert!(!moves_frame(&m, frame), "a TLB may still reach it");
    let addr = m.vmalloc(PAGE_SIZE, MOVABLE).unwrap();
    let frame = m.window.vmalloc_to_page(&m.pages, addr).unwrap();
    m.window.put_off(&m.pages, addr, 0).unwrap();
    assert!(!moves_frame(&m, frame), "readers may still look at it");
    m.check().unwrap();
}

#[test]
fn a_movable_area_stays_movable_when_it_grows_and_a_fixed_one_fixed() {
    for has_neighbour in [false, true] {
        for (gfp, other) in [(MOVABLE, KERNEL), (KERNEL, MOVABLE)] {
            let m = Machine::new(512);
            let addr = patterned(&m, PAGE_SIZE, gfp);
            let _neighbour = has_neighbour.then(|| m.vmalloc(1, KERNEL).unwrap());
            let grown = m.vrealloc(addr, 2 * PAGE_SIZE, other).unwrap();
            assert_eq!((moves(&m, grown), moves(&m, page(grown, 1))), (gfp == MOVABLE, gfp == MOVABLE));
            assert!((0..PAGE_SIZE).all(|n| m.read(grown, n) == pattern(n)));
            m.check().unwrap();
        }
    }
}

#[test]
fn pages_of_areas_make_way_for_a_range_and_for_a_large_block() {
    let mut geometry = flat(512);
    geometry.pageblock_order = Order::new(4).unwrap();
    let m = Machine::with(&geometry);
    let areas: Vec<VirtAddr> =
        (0..200).map(|n| patterned(&m, PAGE_SIZE, if n == 150 { KERNEL } else { MOVABLE })).collect();
    let frames: Vec<Pfn> = areas.iter().map(|&a| m.window.vmalloc_to_page(&m.pages, a).unwrap()).collect();
    let kept = frames[150];
    let range = |first: Pfn| m.pages.alloc_contig_range(first, PageCount::new(1), KERNEL, &mover(&m));
    assert_eq!(range(kept), Err(AllocError::Busy { frame: kept }));
    assert_eq!(range(frames[0]), Ok(()));
    assert_ne!(m.window.vmalloc_to_page(&m.pages, areas[0]), Some(frames[0]));
    areas.iter().step_by(2).for_each(|&area| m.vfree(area).unwrap());
    m.purge();
    m.pages.drain_all_pages();
    assert!(m.pages.compact_everything(&mover(&m)) > 0);
    for &area in areas.iter().skip(1).step_by(2) {
        assert!((0..PAGE_SIZE).all(|n| m.read(area, n) == pattern(n)));
    }
    assert!(m.platform().count(Event::VmallocPageMoved) > 1);
    m.check().unwrap();
    m.pages.check_invariants().unwrap();
}
