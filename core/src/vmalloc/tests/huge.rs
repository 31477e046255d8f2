//! Areas that are mapped in runs of 512 pages, and areas made of long runs.

use super::*;

const RUN: usize = 2 << 20;

fn huge(size: usize, gfp: GfpFlags) -> VmallocArgs {
    VmallocArgs { flags: VmFlags::ALLOW_HUGE_VMAP, ..VmallocArgs::new(size, gfp) }
}

impl Machine {
    fn make(&self, args: &VmallocArgs) -> Result<VirtAddr, AllocError> {
        self.window.vmalloc(&self.pages, &self.slab, args)
    }

    fn mapping(&self, addr: VirtAddr) -> AreaMapping {
        self.window.mapping_of(&self.pages, addr).unwrap()
    }
}

#[test]
fn size_and_alignment_grow_to_2_mib_and_each_entry_maps_512_pages() {
    let m = Machine::new(4096);
    let before = m.ownership();
    let small = m.vmalloc(1, KERNEL).unwrap();
    let addr = m.make(&huge(RUN + 1, KERNEL)).unwrap();
    assert_eq!(addr, page(small, 512));
    assert_eq!(m.mapping(addr).entries, 2);
    assert_eq!(m.window.size_of(&m.pages, addr), Ok(2 * RUN));
    let frames: Vec<Pfn> = m.frames_behind(addr, 1024).into_iter().flatten().collect();
    assert_eq!(frames.len(), 1024);
    for run in frames.chunks(512) {
        assert!(run[0].as_u32().is_multiple_of(512) && run.windows(2).all(|w| w[1].as_u32() == w[0].as_u32() + 1));
    }
    assert_eq!(m.frames_behind(page(addr, 1024), 1), [None], "the guard");
    assert_eq!(m.vmalloc(1, KERNEL).unwrap(), page(small, 2), "the gap below is still there");
    m.check().unwrap();
    m.entries().into_iter().for_each(|entry| m.vfree(entry.start).unwrap());
    m.check().unwrap();
    assert_eq!(m.frames_behind(addr, 1024), [None; 1024]);
    m.purge();
    assert_eq!(m.platform().flushes.borrow().last(), Some(&(small.vpn(), 512 + 1024)));
    assert_eq!(m.ownership(), before);
    m.check().unwrap();
}

/// A machine on which every second block of 256 pages is taken, and those blocks.
fn checkered() -> (Machine, Vec<Pfn>) {
    let m = Machine::new(4096);
    let order = Order::new(8).unwrap();
    let all: Vec<Pfn> = core::iter::from_fn(|| m.pages.alloc_block(order, KERNEL, FrameKind::Pages).ok()).collect();
    let (even, odd): (Vec<Pfn>, Vec<Pfn>) = all.iter().partition(|first| first.as_u32() / 256 % 2 == 0);
    even.iter().for_each(|&first| m.pages.free_block(first, order));
    (m, odd)
}

#[test]
fn the_second_attempt_has_the_size_and_the_alignment_that_were_asked_for() {
    let (m, _) = checkered();
    let small = m.vmalloc(1, KERNEL).unwrap();
    let addr = m.make(&huge(RUN + 1, KERNEL)).unwrap();
    assert_eq!(addr, page(small, 2), "aligned to a page");
    assert_eq!(m.window.size_of(&m.pages, addr), Ok(RUN + PAGE_SIZE));
    assert_eq!((m.mapping(addr).entries, m.platform().count(Event::HugeRetried)), (513, 1));
    let aligned = m.make(&VmallocArgs { align: 16 * PAGE_SIZE, ..huge(RUN, KERNEL) }).unwrap();
    assert_eq!(aligned.vpn().as_u64() % 512, 528 % 512, "aligned to 16 pages and to no more");
    m.check().unwrap();
}

#[test]
fn whoever_may_not_block_wants_less_or_is_forbidden_to_gets_no_huge_entry() {
    let m = Machine::new(4096);
    let plain = |args: &VmallocArgs| {
        let addr = m.make(args).unwrap();
        assert_eq!(m.mapping(addr).entries, m.mapping(addr).pages.get(), "{args:?}");
    };
    plain(&huge(RUN, GfpFlags::NOWAIT));
    plain(&huge(RUN, GfpFlags::ATOMIC));
    plain(&huge(RUN - 1, KERNEL));
    plain(&VmallocArgs::new(RUN, KERNEL));
    let mut geometry = flat(4096);
    geometry.vmap_allow_huge = false;
    let off = Machine::with(&geometry);
    let addr = off.make(&huge(RUN, KERNEL)).unwrap();
    assert_eq!(off.mapping(addr).entries, 512);
    assert_eq!(off.platform().count(Event::HugeRetried), 0);
    geometry.vmap_allow_huge = true;
    (geometry.max_order, geometry.pageblock_order) = (Order::new(8).unwrap(), Order::new(8).unwrap());
    let small_blocks = Machine::with(&geometry);
    let addr = small_blocks.make(&huge(RUN, KERNEL)).unwrap();
    assert_eq!(small_blocks.mapping(addr).entries, 512);
}

#[test]
fn a_fault_at_any_stage_of_the_huge_attempt_is_made_good_by_the_other() {
    use FaultPoint::{Descriptor, PageTable, VirtualSpace, VmallocPages};
    for (point, times) in [(Descriptor, 1), (VirtualSpace, 1), (VmallocPages, 1), (PageTable, 2)] {
        for nth in 0..times {
            let m = Machine::new(4096);
            let before = m.ownership();
            m.platform().fail(point, nth);
            let addr = m.make(&huge(2 * RUN, KERNEL)).unwrap();
            assert_eq!((m.mapping(addr).entries, m.mapping(addr).runs), (1024, 1), "{point:?} {nth}");
            m.check().unwrap();
            m.vfree(addr).unwrap();
            m.purge();
            m.check().unwrap();
            assert_eq!(m.ownership(), before, "{point:?} {nth}");
        }
    }
}

#[test]
fn a_huge_area_keeps_its_tail_when_it_shrinks() {
    let m = Machine::new(4096);
    let addr = m.make(&huge(RUN, ZERO)).unwrap();
    m.write(addr, RUN - 1, 7);
    assert_eq!(m.vrealloc(addr, 100, ZERO), Ok(addr));
    assert_eq!(m.window.size_of(&m.pages, addr), Ok(RUN));
    assert_eq!(m.vrealloc(addr, RUN, ZERO), Ok(addr));
    assert_eq!(m.read(addr, RUN - 1), 0, "zeroed when it was given up");
    m.check().unwrap();
}

#[test]
fn an_area_is_made_of_the_longest_runs_that_are_free() {
    let m = Machine::new(4096);
    let addr = m.vmalloc(1 << 20, KERNEL).unwrap();
    assert_eq!(m.mapping(addr), AreaMapping { pages: PageCount::new(256), runs: 1, entries: 256 });
    let odd = m.vmalloc(77 * PAGE_SIZE, KERNEL).unwrap();
    assert!(m.mapping(odd).runs <= 5, "64 + 8 and five single pages: {:?}", m.mapping(odd));
    let (m, _) = checkered();
    let addr = m.vmalloc(1024 * PAGE_SIZE, KERNEL).unwrap();
    assert!(m.mapping(addr).runs <= 6, "four blocks of 256 pages would do: {:?}", m.mapping(addr));
    assert!(m.platform().count(Event::VmallocRun) >= 4);
    m.check().unwrap();
}

#[test]
fn each_equation_of_huge_areas_is_checked() {
    let broken = |change: fn(&mut Node)| {
        let m = Machine::new(4096);
        let addr = m.make(&huge(RUN, KERNEL)).unwrap();
        let (at, _) = m.window.live_at(&m.pages.base, addr).unwrap();
        m.window.edit(&m.pages.base, at, change);
        m.check().unwrap_err()
    };
    for change in [(|node| node.leaf = Order::ZERO) as fn(&mut Node), |node| node.mapped -= 1] {
        let violation = broken(change);
        assert!(violation.what.contains("I16.4"), "{violation}");
    }
}
