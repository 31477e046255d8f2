//! Alignment, range, guard and node of an area.

use super::*;
use crate::geometry::{ZoneKind, ZoneSpec};
use crate::numa::NodeId;

impl Machine {
    fn ask(&self, change: impl FnOnce(&mut VmallocArgs)) -> Result<VirtAddr, AllocError> {
        let mut args = VmallocArgs::new(2 * PAGE_SIZE, KERNEL);
        change(&mut args);
        self.window.vmalloc(&self.pages, &self.slab, &args)
    }
}

#[test]
fn every_gap_that_fits_is_found_however_it_is_aligned() {
    let m = Machine::new(512);
    let taken = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    // The gap from page 2 on is cut at page 8: 4 to 6 are aligned and free, but not two more pages of slack.
    let fence = m.ask(|args| args.range = (page(taken, 7), page(taken, 10))).unwrap();
    assert_eq!(fence, page(taken, 7));
    assert_eq!(m.ask(|args| args.align = 4 * PAGE_SIZE).unwrap(), page(taken, 4));
    assert_eq!(m.ask(|args| args.align = 64 * PAGE_SIZE).unwrap(), page(taken, 64));
    assert_eq!(m.ask(|args| args.align = 3 * PAGE_SIZE), Err(AllocError::BadAlign(3 * PAGE_SIZE)));
    assert_eq!(m.ask(|args| args.align = 0), Err(AllocError::BadAlign(0)));
    m.check().unwrap();
}

#[test]
fn an_exact_range_is_served_or_refused_as_a_whole() {
    let m = Machine::new(512);
    let range = |from: u64, to: u64| (page(m.start(), from), page(m.start(), to));
    let ask = |from, to| m.ask(|args| (args.range, args.align) = (range(from, to), 8 * PAGE_SIZE));
    assert_eq!(ask(16, 18), Err(AllocError::NoVirtualSpace { pages: PageCount::new(3) }), "no room for the guard");
    assert_eq!(ask(16, 19), Ok(page(m.start(), 16)));
    assert_eq!(ask(16, 19), Err(AllocError::NoVirtualSpace { pages: PageCount::new(3) }), "taken");
    assert!(ask(17, 20).is_err(), "no multiple of the alignment in it");
    m.vfree(page(m.start(), 16)).unwrap();
    assert!(ask(16, 19).is_err(), "not before the flush");
    m.purge();
    assert_eq!(ask(16, 19), Ok(page(m.start(), 16)));
}

#[test]
fn an_area_without_a_guard_is_followed_by_the_next_one() {
    let m = Machine::new(512);
    let unguarded = m.ask(|args| args.flags = VmFlags::NO_GUARD).unwrap();
    let next = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    assert_eq!(next, page(unguarded, 2));
    assert_eq!(m.entries()[0].guard, PageCount::new(0));
    m.check().unwrap();
}

#[test]
fn pages_come_from_the_node_and_only_with_thisnode_from_no_other() {
    let zone = |node: u8, start: u32| ZoneSpec {
        kind: ZoneKind::Normal,
        node: NodeId::new(node).unwrap(),
        start: Pfn::new(start),
        frames: PageCount::new(256),
    };
    let m = Machine::with(&flat(1).with_zones(&[zone(0, 0), zone(1, 256)]).unwrap());
    let node = NodeId::new(1);
    let frames = |addr, pages| m.frames_behind(addr, pages).into_iter().flatten();
    let addr = m.ask(|args| (args.size, args.node) = (40 * PAGE_SIZE, node)).unwrap();
    assert!(frames(addr, 40).all(|frame| frame.as_u32() >= 256));
    let strict = KERNEL | GfpFlags::THISNODE;
    let too_much = |gfp| m.ask(|args| (args.size, args.node, args.gfp) = (250 * PAGE_SIZE, node, gfp));
    assert_eq!(too_much(strict), Err(AllocError::NoPages { order: Order::ZERO }));
    m.check().unwrap();
    let addr = too_much(KERNEL).unwrap();
    assert!(frames(addr, 250).filter(|frame| frame.as_u32() >= 256).count() >= 200, "what the node has comes first");
}
