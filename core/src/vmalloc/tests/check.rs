use super::super::area::{Link, Node, State};
use super::super::lazy::LazyList;
use super::super::tree::{Spot, Store};
use super::*;

/// What the check says after `change` was done to a machine with a lazy area, two blocks and a mapping.
fn corrupted(change: fn(&Machine, &[VirtAddr; 4])) -> Violation {
    let m = Machine::new(512);
    let block = || m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    let addrs = [block(), block(), block(), m.vmap(&[m.frame()]).unwrap()];
    m.vfree(addrs[0]).unwrap();
    m.check().unwrap();
    change(&m, &addrs);
    m.check().unwrap_err()
}

/// Changes an area's record.
fn change_record(m: &Machine, addr: VirtAddr, change: fn(&mut Node)) {
    m.window.edit(&m.pages.base, link(m, addr), change);
}

/// Changes an area's place in the window's tree.
fn change_place(m: &Machine, addr: VirtAddr, change: fn(&mut Spot)) {
    let (at, links) = (link(m, addr), records(&m.pages.base).window());
    let mut spot = links.load(at);
    change(&mut spot);
    links.store(at, &spot);
}

/// The record of the area that starts at `addr`.
fn link(m: &Machine, addr: VirtAddr) -> Link {
    let space = m.window.space.lock();
    space.tree.find(&records(&m.pages.base).window(), addr.vpn().as_u64()).unwrap()
}

/// Changes the word of a page's last-level entry, as a stray write would.
fn change_entry(m: &Machine, addr: VirtAddr, change: impl Fn(u64) -> u64) {
    let mem = &m.pages.base.mem;
    let mut table = m.platform().root.get().unwrap().addr();
    for shift in [27, 18, 9] {
        let slot = PhysAddr::new(table.as_u64() + (addr.vpn().as_u64() >> shift & 511) * 8);
        table = Pte::from_word(mem.read_u64(slot).unwrap()).frame().unwrap().addr();
    }
    let slot = PhysAddr::new(table.as_u64() + (addr.vpn().as_u64() & 511) * 8);
    assert!(mem.write_u64(slot, change(mem.read_u64(slot).unwrap())));
}

/// A corruption and the number of the equation that it breaks.
type Corruption = (&'static str, Invariant, fn(&Machine, &[VirtAddr; 4]));

#[test]
fn each_corruption_is_found_and_named() {
    let cases: [Corruption; 14] = [
        ("I1.2", Invariant::I1NoOverlap, |m, a| {
            let frame = m.window.vmalloc_to_page(&m.pages, a[2]).unwrap();
            change_entry(m, a[1], |_| Pte::page(frame).to_word());
        }),
        ("I1.2", Invariant::I1NoOverlap, |m, a| change_entry(m, a[1], |_| Pte::page(Pfn::new(127)).to_word())),
        ("I7.1", Invariant::I7Conservation, |m, _| {
            m.pages.alloc_block(Order::ZERO, KERNEL, FrameKind::Vmalloc).unwrap();
        }),
        ("I7.1", Invariant::I7Conservation, |m, _| {
            m.pages.alloc_block(Order::ZERO, KERNEL, FrameKind::PageTable).unwrap();
        }),
        ("I8.1", Invariant::I8ListCounts, |m, a| change_place(m, a[1], |spot| spot.gap += 1)),
        ("I8.2", Invariant::I8ListCounts, |m, a| change_place(m, a[1], |spot| spot.max_gap += 1)),
        ("I15.1", Invariant::I15FlushBeforeReuse, |m, a| change_entry(m, a[0], |word| word | 1)),
        ("I15.1", Invariant::I15FlushBeforeReuse, |m, _| {
            m.window.nodes.of(0).lock().lazy = LazyList::EMPTY;
        }),
        ("I16.1", Invariant::I16GuardPage, |m, a| change_entry(m, a[1], |word| word & !1)),
        ("I16.1", Invariant::I16GuardPage, |m, a| change_entry(m, page(a[1], 2), |_| Pte::page(Pfn::new(9)).to_word())),
        ("I16.1", Invariant::I16GuardPage, |m, a| change_record(m, a[1], |node| node.mapped += 1)),
        ("I16.2", Invariant::I16GuardPage, |m, a| {
            let stray = VpnRange::new(Vpn::new(a[3].vpn().as_u64() + 9), 1);
            m.window.tables.map(&m.pages, stray, KERNEL, || Some(Pfn::new(9))).unwrap();
        }),
        ("I17.6", Invariant::I17Statistics, |m, a| change_record(m, a[3], |node| node.state = State::Reserved)),
        ("I17.5", Invariant::I17Statistics, |m, a| {
            // Between two lazy areas, so that the deferred flush covers it.
            m.vfree(a[2]).unwrap();
            m.window.retire(&m.pages.base, a[1], BlockKind::Vmalloc).unwrap();
            let _ = m.window.tables.unmap(&m.pages, VpnRange::new(a[1].vpn(), 2));
        }),
    ];
    for (n, (number, invariant, change)) in cases.into_iter().enumerate() {
        let violation = corrupted(change);
        assert_eq!(violation.invariant, invariant, "case {n}: {violation}");
        assert!(violation.what.contains(number), "case {n}: {violation}");
    }
}
