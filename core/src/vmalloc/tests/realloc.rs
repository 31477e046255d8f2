use super::*;

fn assert_kept(m: &Machine, addr: VirtAddr, size: usize) {
    assert!((0..size).all(|n| m.read(addr, n) == pattern(n)));
}

#[test]
fn vrealloc_to_nothing_frees_and_of_nothing_allocates() {
    let m = Machine::new(64);
    assert_eq!(m.vrealloc(VirtAddr::NULL, 0, KERNEL), Ok(VirtAddr::NULL));
    let addr = m.vrealloc(VirtAddr::NULL, 5, KERNEL).unwrap();
    assert_eq!(m.vrealloc(addr, 0, KERNEL), Ok(VirtAddr::NULL));
    assert_eq!(m.vfree(addr), Err(FreeError::DoubleFree(addr)));
    assert_eq!(m.vrealloc(addr, 0, KERNEL), Err(AllocError::BadAddress(addr)));
    assert_eq!(m.vrealloc(addr, 5, KERNEL), Err(AllocError::BadAddress(addr)));
}

#[test]
fn vrealloc_to_less_gives_whole_pages_back_after_a_flush() {
    let m = Machine::new(64);
    let addr = patterned(&m, 4 * PAGE_SIZE, KERNEL);
    assert_eq!(m.vrealloc(addr, PAGE_SIZE + 1, KERNEL), Ok(addr));
    assert_eq!(m.frames_behind(addr, 4)[2..], [None, None]);
    assert_eq!(*m.platform().flushes.borrow(), [(page(addr, 2).vpn(), 2)]);
    assert_kept(&m, addr, PAGE_SIZE + 1);
    let entry = m.entries()[0];
    assert_eq!((entry.pages.get(), entry.mapped.get(), entry.requested), (4, 2, PAGE_SIZE + 1));
    assert_eq!(m.pages.owned(OwnerClass::Vmalloc), 2);
    assert_eq!(m.platform().count(Event::VreallocShrunk), 1);
    m.check().unwrap();
    m.vfree(addr).unwrap();
    m.purge();
    assert_eq!(m.pages.owned(OwnerClass::Vmalloc), 0);
}

#[test]
fn vrealloc_to_less_keeps_the_pages_if_the_flags_forbid_io_or_fs() {
    for gfp in [GfpFlags::NOIO, GfpFlags::NOFS, GfpFlags::NOWAIT] {
        let m = Machine::new(64);
        let addr = patterned(&m, 4 * PAGE_SIZE, KERNEL);
        assert_eq!(m.vrealloc(addr, 1, gfp), Ok(addr));
        assert!(m.frames_behind(addr, 4).iter().all(Option::is_some));
        assert_eq!(m.vrealloc(addr, 4 * PAGE_SIZE, gfp), Ok(addr), "grows in place again");
        assert_kept(&m, addr, 4 * PAGE_SIZE);
        assert_eq!(m.platform().count(Event::ReallocInPlace), 2);
    }
}

#[test]
fn vrealloc_zeroes_what_it_cuts_off_only_if_asked() {
    let m = Machine::new(64);
    let addr = patterned(&m, 3 * PAGE_SIZE, KERNEL);
    assert_eq!(m.vrealloc(addr, 2 * PAGE_SIZE - 10, KERNEL), Ok(addr));
    assert_eq!(m.read(addr, 2 * PAGE_SIZE - 1), pattern(2 * PAGE_SIZE - 1));
    assert_eq!(m.vrealloc(addr, 2 * PAGE_SIZE - 20, ZERO), Ok(addr));
    assert_kept(&m, addr, 2 * PAGE_SIZE - 20);
    assert!((2 * PAGE_SIZE - 20..2 * PAGE_SIZE - 10).all(|n| m.read(addr, n) == 0));
    assert_eq!(m.read(addr, 2 * PAGE_SIZE - 10), pattern(2 * PAGE_SIZE - 10), "beyond the last request");
}

#[test]
fn a_chain_of_zeroing_calls_always_shows_zeroes_in_what_it_gains() {
    let m = Machine::new(64);
    let mut addr = m.vmalloc(100, ZERO).unwrap();
    let mut size = 100;
    for next in [PAGE_SIZE, 50, 3 * PAGE_SIZE, PAGE_SIZE + 7, 2 * PAGE_SIZE, 2 * PAGE_SIZE + 1] {
        (0..size).for_each(|n| m.write(addr, n, pattern(n)));
        addr = m.vrealloc(addr, next, ZERO).unwrap();
        assert_kept(&m, addr, size.min(next));
        assert!((size..next).all(|n| m.read(addr, n) == 0), "from {size} to {next}");
        size = next;
        m.check().unwrap();
    }
}

#[test]
fn vrealloc_to_more_pages_stays_where_the_addresses_behind_are_free() {
    let m = Machine::new(512);
    let addr = patterned(&m, PAGE_SIZE + 5, KERNEL);
    let before = m.frames_behind(addr, 2);
    assert_eq!(m.vrealloc(addr, 3 * PAGE_SIZE, KERNEL), Ok(addr));
    assert_kept(&m, addr, PAGE_SIZE + 5);
    assert_eq!(m.frames_behind(addr, 2), before);
    assert!(m.frames_behind(addr, 4)[2].is_some() && m.frames_behind(addr, 4)[3].is_none());
    assert_eq!((m.platform().count(Event::VreallocExtended), m.platform().flushes.borrow().len()), (1, 0));
    m.check().unwrap();
    let next = m.vmalloc(1, KERNEL).unwrap();
    assert_eq!(next, page(addr, 4), "after the guard, which has moved");
    // What a shrink gave back is still the area's own address space.
    assert_eq!(m.vrealloc(addr, 1, KERNEL), Ok(addr));
    assert_eq!(m.vrealloc(addr, 3 * PAGE_SIZE, KERNEL), Ok(addr));
    assert_eq!(m.platform().count(Event::VreallocExtended), 2);
    m.check().unwrap();
}

/// Two areas side by side: the first cannot grow where it is.
fn blocked(m: &Machine, size: usize) -> (VirtAddr, VirtAddr) {
    (patterned(m, size, KERNEL), m.vmalloc(1, KERNEL).unwrap())
}

#[test]
fn vrealloc_elsewhere_keeps_the_frames_and_flushes_the_old_addresses() {
    let m = Machine::new(512);
    let (addr, _) = blocked(&m, PAGE_SIZE + 5);
    let before = m.frames_behind(addr, 2);
    let moved = m.vrealloc(addr, 3 * PAGE_SIZE, KERNEL).unwrap();
    assert_ne!(moved, addr);
    assert_kept(&m, moved, PAGE_SIZE + 5);
    assert_eq!(m.frames_behind(moved, 2), before);
    assert_eq!(m.frames_behind(addr, 2), [None, None]);
    assert_eq!(*m.platform().flushes.borrow(), [(addr.vpn(), 2)]);
    assert_eq!(m.platform().count(Event::VreallocRemapped), 1);
    m.check().unwrap();
    assert_eq!(m.vfree(addr), Err(FreeError::Foreign(addr)));
    assert_eq!(m.vmalloc(PAGE_SIZE, KERNEL), Ok(addr), "the addresses are free, for they were flushed");
    m.vfree(moved).unwrap();
    m.purge();
    m.check().unwrap();
}

#[test]
fn what_a_growth_gains_is_zero_with_the_flag_wherever_it_grows() {
    for has_neighbour in [false, true] {
        let m = Machine::new(512);
        let addr = patterned(&m, PAGE_SIZE, KERNEL);
        let _neighbour = has_neighbour.then(|| m.vmalloc(1, KERNEL).unwrap());
        assert_eq!(m.vrealloc(addr, 100, GfpFlags::NOIO), Ok(addr));
        let grown = m.vrealloc(addr, 2 * PAGE_SIZE, ZERO).unwrap();
        assert_eq!(grown != addr, has_neighbour);
        assert_kept(&m, grown, 100);
        assert!((100..2 * PAGE_SIZE).all(|n| m.read(grown, n) == 0));
    }
}

#[test]
fn an_alignment_that_the_area_lacks_is_refused() {
    let m = Machine::new(512);
    let first = m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    let addr = [first, m.vmalloc(1, KERNEL).unwrap()].into_iter().find(|a| a.as_u64() % 8192 != 0).unwrap();
    let ask = |align, size| {
        let args = VmallocArgs { align, ..VmallocArgs::new(size, KERNEL) };
        m.window.vrealloc(&m.pages, &m.slab, addr, &args)
    };
    for align in [0, 3, 8192] {
        assert_eq!(ask(align, 8), Err(AllocError::BadAlign(align)));
    }
    assert_eq!(ask(4096, 8), Ok(addr));
    assert_eq!(ask(8192, 0), Ok(VirtAddr::NULL), "size 0 frees before the address is looked at");
}

#[test]
fn a_refused_vrealloc_leaves_the_old_block_intact() {
    let of_move = [FaultPoint::Descriptor, FaultPoint::VirtualSpace, FaultPoint::VmallocPages, FaultPoint::PageTable];
    for (point, has_neighbour) in of_move.map(|p| (p, true)).into_iter().chain([(FaultPoint::VmallocPages, false)]) {
        // So many pages that the new ones need a table of their own.
        let m = Machine::windowed(2048, 4096);
        let addr = patterned(&m, PAGE_SIZE, KERNEL);
        let _neighbour = has_neighbour.then(|| m.vmalloc(500 * PAGE_SIZE, KERNEL).unwrap());
        let (entries, owned) = (m.entries(), m.ownership());
        m.platform().fail(point, 0);
        assert_eq!(m.vrealloc(addr, 32 * PAGE_SIZE, KERNEL), Err(AllocError::Injected(point)));
        assert_kept(&m, addr, PAGE_SIZE);
        assert_eq!((m.entries(), m.ownership()), (entries, owned));
        m.check().unwrap();
    }
    let m = Machine::new(64);
    let addr = patterned(&m, PAGE_SIZE, KERNEL);
    let (requested, limit) = (65 * PAGE_SIZE, 64 * PAGE_SIZE);
    assert_eq!(m.vrealloc(addr, requested, KERNEL), Err(AllocError::TooLarge { requested, limit }));
    assert_kept(&m, addr, PAGE_SIZE);
}
