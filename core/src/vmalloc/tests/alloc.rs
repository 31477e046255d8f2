use super::*;
use crate::geometry::ZoneKind;
use crate::testing::zoned;

#[test]
fn pages_of_a_block_reach_frames_of_their_own_and_the_guard_faults() {
    let m = Machine::new(64);
    let (a, b) = (m.vmalloc(3 * PAGE_SIZE, KERNEL).unwrap(), m.vmalloc(1, KERNEL).unwrap());
    assert_eq!(a, m.start(), "the lowest address");
    assert_eq!(b, page(a, 4), "after three pages and the guard");
    let mut frames = [m.frames_behind(a, 3), m.frames_behind(b, 1)].concat();
    assert!(frames.iter().all(|frame| m.pages.base.frames.kind(frame.unwrap()) == FrameKind::Vmalloc));
    frames.sort();
    frames.dedup();
    assert_eq!(frames.len(), 4);
    assert_eq!(m.frames_behind(page(a, 3), 1), [None]);
    assert_eq!(m.frames_behind(page(b, 1), 1), [None]);
    m.check().unwrap();
}

#[test]
fn only_a_zeroed_block_is_zeroed_and_all_of_it() {
    let m = Machine::new(64);
    let zeroed = m.vmalloc(2 * PAGE_SIZE, ZERO).unwrap();
    assert!((0..2 * PAGE_SIZE).all(|n| m.read(zeroed, n) == 0));
    assert_eq!(m.read(m.vmalloc(1, KERNEL).unwrap(), 0), JUNK);
}

#[test]
fn bad_sizes_are_refused_with_their_reason() {
    let m = Machine::new(64);
    let limit = 64 * PAGE_SIZE;
    assert_eq!(m.vmalloc(0, KERNEL), Err(AllocError::ZeroSize));
    for requested in [limit + 1, usize::MAX] {
        assert_eq!(m.vmalloc(requested, KERNEL), Err(AllocError::TooLarge { requested, limit }));
    }
    assert_eq!(m.vmap(&[]), Err(AllocError::ZeroSize));
    let requested = 65 * PAGE_SIZE;
    assert_eq!(m.vmap(&vec![Pfn::new(0); 65]), Err(AllocError::TooLarge { requested, limit }));
    let outside = Pfn::new(64);
    let addr = m.pages.base.virt(outside.addr());
    assert_eq!(m.vmap(&[Pfn::new(0), outside]), Err(AllocError::BadAddress(addr)));
    assert!(m.entries().is_empty());
}

#[test]
fn a_fault_at_any_stage_leaves_everything_as_before() {
    use FaultPoint::{Descriptor, PageTable, VirtualSpace, VmallocPages};
    // 1,100 pages from the start of the window on need 3 + 1 + 1 tables.
    let cases = [(Descriptor, 1), (VirtualSpace, 1), (VmallocPages, 1), (PageTable, 5)];
    for (point, times) in cases {
        let m = Machine::new(2048);
        let before = m.ownership();
        for nth in 0..times {
            m.platform().fail(point, nth);
            assert_eq!(m.vmalloc(1100 * PAGE_SIZE, KERNEL), Err(AllocError::Injected(point)));
            m.check().unwrap();
            assert_eq!(m.ownership(), before, "{point:?} {nth}");
            assert!(m.entries().is_empty());
        }
        assert_eq!(m.vmalloc(1100 * PAGE_SIZE, KERNEL), Ok(m.start()), "nothing was lost to {point:?}");
    }
}

/// Frames of a kind that are in none of the frames `allowed`.
fn outside(m: &Machine, kind: FrameKind, allowed: std::ops::Range<u32>) -> usize {
    let frames = (0..m.pages.base.frames.frames()).filter(|n| !allowed.contains(n));
    frames.filter(|n| m.pages.base.frames.kind(Pfn::new(*n)) == kind).count()
}

#[test]
fn zone_flags_choose_the_zone_of_the_pages_and_not_of_tables_and_records() {
    let zones = [(ZoneKind::Dma, 0, 64), (ZoneKind::Normal, 64, 128), (ZoneKind::Movable, 192, 1024)];
    let cases = [
        (KERNEL, 64..192),
        (KERNEL | GfpFlags::DMA, 0..64),
        (KERNEL | GfpFlags::MOVABLE, 192..1216),
        (KERNEL | GfpFlags::MOVABLE | GfpFlags::DMA, 0..64),
    ];
    for (gfp, allowed) in cases {
        let m = Machine::with(&zoned(&zones));
        m.vmalloc(8 * PAGE_SIZE, gfp).unwrap();
        assert_eq!(outside(&m, FrameKind::Vmalloc, allowed), 0, "{gfp:?}");
        m.window.vmap(&m.pages, &m.slab, &vec![m.frame(); 600], VmFlags::empty(), gfp).unwrap();
        assert_eq!(m.window.nr_tables(), 5);
        for kind in [FrameKind::PageTable, FrameKind::Slab(m.window.records)] {
            assert_eq!(outside(&m, kind, 64..192), 0, "{kind:?} for {gfp:?}");
        }
        m.check().unwrap();
    }
}

#[test]
fn flags_without_meaning_for_single_pages_are_dropped() {
    let m = Machine::new(64);
    // The page allocator refuses these two together.
    let gfp = KERNEL | GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE;
    assert_eq!(m.vmalloc(1, gfp), Ok(m.start()));
}

#[test]
fn flags_that_the_page_allocator_refuses_leave_everything_as_before() {
    let m = Machine::new(64);
    let before = m.ownership();
    assert_eq!(m.vmalloc(1, KERNEL | GfpFlags::DMA | GfpFlags::DMA32), Err(AllocError::BadFlags));
    assert_eq!(m.ownership(), before);
    m.check().unwrap();
}

#[test]
fn a_fault_while_mapping_frames_of_the_caller_leaves_them_the_callers() {
    for (point, nth) in [(FaultPoint::Descriptor, 0), (FaultPoint::VirtualSpace, 0), (FaultPoint::PageTable, 3)] {
        let m = Machine::new(1024);
        let frames = vec![m.frame(); 600];
        let before = m.ownership();
        m.platform().fail(point, nth);
        assert_eq!(m.vmap(&frames), Err(AllocError::Injected(point)));
        m.check().unwrap();
        assert_eq!(m.ownership(), before);
        assert_eq!(m.pages.base.frames.kind(frames[0]), FrameKind::Pages);
    }
}

#[test]
fn stages_are_asked_in_order_and_not_beyond_the_one_that_fails() {
    let order = [FaultPoint::Descriptor, FaultPoint::VirtualSpace, FaultPoint::VmallocPages, FaultPoint::PageTable];
    for (n, point) in order.into_iter().enumerate() {
        let m = Machine::new(64);
        m.platform().asked.iter().for_each(|asked| asked.set(0));
        m.platform().fail(point, 0);
        m.vmalloc(1, KERNEL).unwrap_err();
        let asked = order.map(|point| m.platform().asked[point as usize].get());
        let expected: Vec<u32> = (0..order.len()).map(|stage| u32::from(stage <= n)).collect();
        assert_eq!(asked.as_slice(), expected, "{point:?}");
    }
}

#[test]
fn running_out_of_frames_in_the_middle_leaves_everything_as_before() {
    for frames in 24..40 {
        let m = Machine::new(frames);
        let before = m.ownership();
        // From a few pages on the frames run out first behind the block, then in its tables.
        for size in 1..=frames as usize {
            match m.vmalloc(size * PAGE_SIZE, KERNEL) {
                Ok(addr) => {
                    m.vfree(addr).unwrap();
                    m.purge();
                }
                Err(error) => assert_eq!(error, AllocError::NoPages { order: Order::ZERO }),
            }
            m.check().unwrap();
            assert_eq!(m.ownership(), before, "{size} of {frames} pages");
        }
    }
}

#[test]
fn a_window_of_4_to_64_pages_is_filled_to_the_last_page() {
    for window in 4..=64 {
        let m = Machine::windowed(256, window);
        let blocks: Vec<VirtAddr> = std::iter::from_fn(|| m.vmalloc(PAGE_SIZE, KERNEL).ok()).collect();
        assert_eq!(blocks.len() as u64, window / 2, "one page and one guard each");
        let refused = Err(AllocError::NoVirtualSpace { pages: PageCount::new(2) });
        assert_eq!(m.vmalloc(1, KERNEL), refused);
        m.vfree(blocks[1]).unwrap();
        assert_eq!(m.vmalloc(1, KERNEL), refused, "lazy addresses are not free");
        m.purge();
        assert_eq!(m.vmalloc(1, KERNEL), Ok(blocks[1]));
        blocks.into_iter().for_each(|addr| m.vfree(addr).unwrap());
        m.purge();
        assert_eq!(m.vmalloc((window as usize - 1) * PAGE_SIZE, KERNEL), Ok(m.start()), "the whole window but a guard");
        m.check().unwrap();
    }
}
