use super::*;
use crate::warn::Warning;

impl Machine {
    fn map_ram(&self, frames: &[Pfn]) -> Result<VirtAddr, AllocError> {
        self.window.vm_map_ram(&self.pages, &self.slab, frames, KERNEL)
    }

    fn unmap_ram(&self, addr: VirtAddr, count: usize) -> Result<(), FreeError> {
        self.window.vm_unmap_ram(&self.pages, &self.slab, addr, count)
    }

    /// The purge of `vm_unmap_aliases`.
    fn unmap_aliases(&self) {
        self.window.purge(&self.pages, &self.slab, false);
    }
}

fn frames(m: &Machine, count: usize) -> Vec<Pfn> {
    (0..count).map(|_| m.frame()).collect()
}

fn of(frames: &[Pfn]) -> Vec<Option<Pfn>> {
    frames.iter().copied().map(Some).collect()
}

#[test]
fn runs_are_cut_one_after_the_other_and_rounded_to_powers_of_two() {
    let m = Machine::windowed(512, 4096);
    let f = frames(&m, 5);
    assert_eq!(m.window.ram.block_pages(), 256);
    let a = m.map_ram(&f[..3]).unwrap();
    let b = m.map_ram(&f[..1]).unwrap();
    let c = m.map_ram(&f).unwrap();
    assert_eq!((b, c), (page(a, 4), page(a, 5)));
    assert_eq!(m.frames_behind(c, 5), of(&f));
    assert_eq!(m.frames_behind(page(a, 3), 1), [None]);
    m.check().unwrap();
    m.unmap_ram(b, 1).unwrap();
    assert_eq!(m.frames_behind(b, 1), [None]);
    assert_eq!(m.map_ram(&f[..1]).unwrap(), page(a, 13), "dirty pages are not reused");
    m.check().unwrap();
}

#[test]
fn a_block_is_reused_after_all_of_it_is_dirty_and_flushed_and_not_before() {
    // So much memory that nothing is purged by itself.
    let m = Machine::windowed(16384, 4096);
    let f = frames(&m, 64);
    let blocks: Vec<VirtAddr> = (0..4).map(|_| m.map_ram(&f).unwrap()).collect();
    blocks[..3].iter().for_each(|&addr| m.unmap_ram(addr, 64).unwrap());
    m.purge();
    m.check().unwrap();
    assert_eq!(*m.platform().flushes.borrow(), [(blocks[0].vpn(), 192)], "dirty ranges are flushed");
    let other = m.map_ram(&f).unwrap();
    assert_eq!(other, page(blocks[0], 256), "the first block has no page left");
    m.unmap_ram(blocks[3], 64).unwrap();
    m.check().unwrap();
    let third = frames(&m, 4);
    for _ in 0..3 {
        m.map_ram(&f).unwrap();
    }
    assert_eq!(m.map_ram(&third).unwrap(), page(blocks[0], 512), "lazy");
    m.unmap_aliases();
    m.check().unwrap();
    for _ in 0..3 {
        m.map_ram(&f).unwrap();
    }
    assert_eq!(m.map_ram(&f).unwrap(), blocks[0], "flushed");
}

#[test]
fn an_idle_block_is_purged_if_little_is_left_or_if_addresses_are_short() {
    let m = Machine::windowed(512, 4096);
    let before = m.ownership();
    let f = frames(&m, 64);
    for (taken, goes) in [(3, false), (4, true)] {
        let runs: Vec<VirtAddr> = (0..taken - 1).map(|_| m.map_ram(&f).unwrap()).collect();
        let last = m.map_ram(&f[..16]).unwrap();
        runs.iter().for_each(|&addr| m.unmap_ram(addr, 64).unwrap());
        m.unmap_ram(last, 16).unwrap();
        m.unmap_aliases();
        m.check().unwrap();
        assert_eq!(m.entries().is_empty(), goes, "{taken}: {:?}", m.entries());
        m.purge();
        assert!(m.entries().is_empty());
        m.check().unwrap();
    }
    f.into_iter().for_each(|frame| m.pages.free_pages(frame, Order::ZERO).unwrap());
    assert_eq!(m.ownership(), before);
}

#[test]
fn every_misuse_is_named_and_changes_nothing() {
    let m = Machine::windowed(512, 4096);
    let f = frames(&m, 65);
    let a = m.map_ram(&f[..4]).unwrap();
    let b = m.map_ram(&f[..2]).unwrap();
    let own = m.map_ram(&f).unwrap();
    let area = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    let foreign = |addr| Err(FreeError::Foreign(addr));
    for count in [1, 3, 5, 6] {
        assert_eq!(m.unmap_ram(a, count), Err(FreeError::WrongCount { addr: a, count, found: 4 }));
    }
    assert_eq!(m.unmap_ram(b, 4), Err(FreeError::WrongCount { addr: b, count: 4, found: 2 }));
    assert_eq!(m.unmap_ram(own, 66), Err(FreeError::WrongCount { addr: own, count: 66, found: 65 }));
    assert_eq!(m.unmap_ram(own, 64), foreign(own));
    assert_eq!(m.unmap_ram(a, 65), foreign(a));
    assert_eq!(m.unmap_ram(area, 1), foreign(area));
    for addr in [VirtAddr::NULL, at(a, 1), VirtAddr::new(!0xfff)] {
        assert_eq!(m.unmap_ram(addr, 4), foreign(addr));
    }
    assert_eq!(m.unmap_ram(a, 0), foreign(a));
    for inside in [1, 3] {
        let addr = page(a, inside);
        assert_eq!(m.unmap_ram(addr, 1), Err(FreeError::Interior { addr, start: a }));
    }
    for addr in [a, b, own, page(own, 1)] {
        assert_eq!(m.vfree(addr), foreign(addr));
        assert_eq!(m.vunmap(addr), foreign(addr));
        assert_eq!(m.window.vfree_atomic(&m.pages, addr), foreign(addr));
        assert_eq!(m.vrealloc(addr, 1, KERNEL), Err(AllocError::BadAddress(addr)));
    }
    m.check().unwrap();
    assert_eq!((m.frames_behind(a, 4), m.frames_behind(b, 2)), (of(&f[..4]), of(&f[..2])));
    assert_eq!(m.frames_behind(own, 65), of(&f));
    m.unmap_ram(a, 4).unwrap();
    assert_eq!(m.unmap_ram(a, 4), Err(FreeError::DoubleFree(a)));
    m.purge();
    assert_eq!(m.unmap_ram(a, 4), foreign(a), "flushed and forgotten");
    assert_eq!(m.unmap_ram(page(b, 9), 1), foreign(page(b, 9)), "nobody has taken it yet");
    assert_eq!(m.map_ram(&[]), Err(AllocError::ZeroSize));
    let warned = m.platform().warnings.borrow().clone();
    assert!(warned.contains(&Warning::VmMapRamZero));
    assert!(warned.contains(&Warning::VmUnmapRamOfNothing { addr: a }), "{warned:?}");
}

#[test]
fn a_larger_mapping_is_an_area_without_a_guard() {
    let m = Machine::windowed(512, 4096);
    let f = frames(&m, 65);
    let (a, b) = (m.map_ram(&f).unwrap(), m.map_ram(&f).unwrap());
    assert_eq!(b, page(a, 65));
    m.check().unwrap();
    m.unmap_ram(a, 65).unwrap();
    m.unmap_ram(b, 65).unwrap();
    assert_eq!(m.frames_behind(a, 130), [None; 130]);
    m.check().unwrap();
    m.purge();
    assert!(m.entries().is_empty());
}

#[test]
fn a_refused_mapping_is_undone() {
    let m = Machine::windowed(512, 4096);
    let before = m.ownership();
    let f = frames(&m, 4);
    for point in [FaultPoint::Descriptor, FaultPoint::VirtualSpace, FaultPoint::PageTable] {
        m.platform().fail(point, 0);
        assert_eq!(m.map_ram(&f), Err(AllocError::Injected(point)));
        assert!(m.entries().is_empty());
        m.check().unwrap();
    }
    assert_eq!(m.map_ram(&f), Ok(m.start()));
    m.unmap_ram(m.start(), 4).unwrap();
    m.purge();
    f.into_iter().for_each(|frame| m.pages.free_pages(frame, Order::ZERO).unwrap());
    assert_eq!(m.ownership(), before);
}

#[test]
fn a_tiny_window_has_tiny_blocks() {
    let m = Machine::windowed(128, 64);
    assert_eq!(m.window.ram.block_pages(), 16);
    let f = frames(&m, 17);
    let (run, own) = (m.map_ram(&f[..16]).unwrap(), m.map_ram(&f).unwrap());
    m.check().unwrap();
    m.unmap_ram(run, 16).unwrap();
    m.unmap_ram(own, 17).unwrap();
    m.purge();
    m.check().unwrap();
    assert!(m.entries().is_empty());
}
