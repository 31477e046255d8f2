use super::*;
use crate::buddy::{OwnerClass, PageParts};
use crate::error::{Invariant, Violation};
use crate::testing::{Rng, TestPlatform, base, carve, flat};
use std::collections::BTreeMap;
use std::vec::Vec;

/// The first page of the window. A last-level table covers 512 pages, a table of the level above 512 of those, and so
/// on; the borders of all levels meet here.
const START: u64 = 0xf_ffc9_0000_0000;

struct Machine {
    pages: PageAllocator<TestPlatform>,
    tables: PageTables,
}

impl Machine {
    fn new(frames: u32) -> Self {
        let geometry = flat(frames);
        let pages = PageAllocator::new(base(&geometry), carve(&geometry, PageParts::carve));
        let tables = PageTables::new(&pages).unwrap();
        Self { pages, tables }
    }

    /// Maps `pages` pages to the frames 0, 1, 2, ...: the tables do not care whose they are.
    fn map(&self, range: VpnRange) -> Result<(), MapError> {
        let mut frames = (0..).map(Pfn::new);
        self.tables.map(&self.pages, range, GfpFlags::KERNEL, || frames.next())
    }

    fn translate(&self, page: u64) -> Option<u32> {
        self.tables.translate(&self.pages, Vpn::new(page)).map(Pfn::as_u32)
    }

    fn take(&self, range: VpnRange) -> u64 {
        let mut gone = Detached::new();
        self.tables.take(&self.pages, range, false, &mut gone);
        let flushed = gone.to_flush().flush(&self.pages.base.platform);
        gone.release(&self.pages, &flushed)
    }

    fn check(&self) -> Result<(), Violation> {
        self.tables.check_invariants(&self.pages).map(|_| ())
    }

    /// Walks as the processor does, from the root that the platform was told.
    fn processor_walk(&self, page: u64) -> Option<u64> {
        let mut table = u64::from(self.pages.base.platform.root.get()?.as_u32()) << 12;
        for shift in [27, 18, 9, 0] {
            let entry = self.pages.base.mem.read_u64(PhysAddr::new(table + (page >> shift & 511) * 8))?;
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 9 && entry & 1 << 7 != 0 {
                return Some((table >> 12) + (page & 511));
            }
        }
        Some(table >> 12)
    }

    /// The last flush.
    fn platform_flush(&self) -> (Vpn, u64) {
        *self.pages.base.platform.flushes.borrow().last().unwrap()
    }
}

fn range(start: u64, pages: u64) -> VpnRange {
    VpnRange::new(Vpn::new(START + start), pages)
}

#[test]
fn pages_across_the_border_of_every_level_reach_their_own_frames() {
    for border in [512, 512 * 512, 512 * 512 * 512] {
        let machine = Machine::new(64);
        let free = machine.pages.owned(OwnerClass::Free) + machine.pages.owned(OwnerClass::Pcp);
        let range = range(border - 3, 6);
        machine.map(range).unwrap();
        machine.check().unwrap();
        for (frame, page) in (0..).zip(range.iter()) {
            assert_eq!(machine.translate(page.as_u64()), Some(frame));
            assert_eq!(machine.processor_walk(page.as_u64()), Some(frame.into()));
        }
        assert_eq!(machine.translate(START + border - 4), None);
        assert_eq!(machine.translate(START + border + 3), None);
        let tables = machine.tables.nr_tables();
        assert_eq!(machine.take(range), tables - 1, "all tables but the root go back");
        assert_eq!(machine.pages.owned(OwnerClass::Free) + machine.pages.owned(OwnerClass::Pcp), free);
        assert_eq!(machine.translate(range.start().as_u64()), None);
        machine.check().unwrap();
    }
}

#[test]
fn unmapped_pages_fault_and_keep_their_frame_until_taken() {
    let machine = Machine::new(64);
    machine.map(range(0, 4)).unwrap();
    assert!(machine.tables.unmap(&machine.pages, range(1, 2)).covers(range(1, 2)));
    assert_eq!([0, 1, 2, 3].map(|n| machine.translate(START + n)), [Some(0), None, None, Some(3)]);
    let mut seen = Vec::new();
    machine.tables.visit(&machine.pages, range(0, 5), |_, entry| seen.push(entry.frame().map(Pfn::as_u32)));
    assert_eq!(seen, [Some(0), Some(1), Some(2), Some(3), None]);
    machine.check().unwrap();
}

#[test]
fn a_table_goes_back_with_its_last_page_and_no_earlier() {
    let machine = Machine::new(64);
    machine.map(range(510, 4)).unwrap();
    assert_eq!(machine.tables.nr_tables(), 5);
    assert_eq!(machine.take(range(510, 1)), 0);
    assert_eq!(machine.take(range(511, 1)), 1);
    assert_eq!(machine.take(range(513, 1)), 0);
    assert_eq!(machine.take(range(512, 1)), 3);
    assert_eq!(machine.tables.nr_tables(), 1);
}

#[test]
fn the_flush_covers_all_that_was_taken_and_happens_once() {
    let machine = Machine::new(64);
    machine.map(range(0, 600)).unwrap();
    let mut gone = Detached::new();
    machine.tables.take(&machine.pages, range(3, 2), false, &mut gone);
    machine.tables.take(&machine.pages, range(590, 5), false, &mut gone);
    let flushed = gone.to_flush().flush(&machine.pages.base.platform);
    gone.release(&machine.pages, &flushed);
    assert_eq!(*machine.pages.base.platform.flushes.borrow(), [(Vpn::new(START + 3), 592)]);
}

#[test]
fn a_refused_table_leaves_neither_tables_nor_lost_frames() {
    for nth in 0..6 {
        let machine = Machine::new(64);
        let free = machine.pages.owned(OwnerClass::PageTable);
        machine.pages.base.platform.fail(FaultPoint::PageTable, nth);
        // Three pieces: the first makes three tables, the second and third one each.
        let refused = machine.map(range(512 - 1, 514));
        if nth == 5 {
            refused.unwrap();
            continue;
        }
        let MapError { error, mapped } = refused.unwrap_err();
        assert_eq!(error, AllocError::Injected(FaultPoint::PageTable));
        assert_eq!(mapped, [0, 0, 0, 1, 513][nth as usize]);
        machine.check().unwrap();
        machine.take(range(512 - 1, mapped));
        assert_eq!(machine.pages.owned(OwnerClass::PageTable), free);
        machine.check().unwrap();
    }
}

#[test]
fn running_out_of_frames_between_two_tables_unwinds_too() {
    let machine = Machine::new(6);
    let refused = machine.map(range(0, 512 * 4)).unwrap_err();
    assert_eq!((refused.error, refused.mapped), (AllocError::NoPages { order: Order::ZERO }, 512 * 3));
    assert_eq!(machine.take(range(0, refused.mapped)), 5);
    assert_eq!(machine.pages.owned(OwnerClass::PageTable), 1);
    machine.check().unwrap();
}

#[test]
fn agrees_with_a_plain_map_over_random_operations_around_a_level_border() {
    let machine = Machine::new(64);
    let mut model = BTreeMap::new();
    let mut rng = Rng::new(7);
    for n in 0..20_000u32 {
        let page = 512 * 512 - 520 + rng.below(1040) as u64;
        if model.remove(&page).is_some() {
            machine.take(range(page, 1));
        } else {
            let frame = Pfn::new(rng.below(1 << 20) as u32);
            let mut frames = Some(frame).into_iter();
            machine.tables.map(&machine.pages, range(page, 1), GfpFlags::KERNEL, || frames.next()).unwrap();
            model.insert(page, frame.as_u32());
        }
        let probe = 512 * 512 - 520 + rng.below(1040) as u64;
        assert_eq!(machine.translate(START + probe), model.get(&probe).copied());
        if n % 128 == 0 {
            assert_eq!(machine.tables.check_invariants(&machine.pages).unwrap().pages, model.len() as u64);
        }
    }
}

/// The tables on the way to a page, from the root down.
type Tables = [Pfn; LEVELS];

/// The number of the equation that a change breaks, and the change.
type Corruption = (&'static str, fn(&Machine, Tables));

/// What the check says after `change` was done to the machine.
fn corrupted(change: fn(&Machine, Tables)) -> Violation {
    let machine = Machine::new(64);
    machine.map(range(510, 4)).unwrap();
    machine.check().unwrap();
    let path = machine.tables.path(&machine.pages.base.mem, Vpn::new(START + 510));
    assert_eq!(path.found, LEVELS);
    change(&machine, path.tables);
    machine.check().unwrap_err()
}

#[test]
fn each_corruption_is_found_and_named() {
    let cases: [Corruption; 7] = [
        ("I17.1", |m, t| store(&m.pages.base.mem, t[3], 0, Pte::page(Pfn::new(9)))),
        ("I17.1", |m, t| store(&m.pages.base.mem, t[3], 510, Pte::EMPTY)),
        ("I17.1", |m, t| m.pages.base.frames.set_inuse(t[1], 0)),
        ("I17.2", |m, t| store(&m.pages.base.mem, t[2], 1, Pte::table(t[3]))),
        ("I17.2", |m, t| store(&m.pages.base.mem, t[2], 0, Pte::table(t[3]).unmapped())),
        ("I17.3", |m, _| *m.tables.nr_tables.lock() += 1),
        ("I17.4", |m, t| m.pages.base.frames.set_kind(t[2], FrameKind::Pages)),
    ];
    for (n, (number, change)) in cases.into_iter().enumerate() {
        let violation = corrupted(change);
        assert_eq!(violation.invariant, Invariant::I17Statistics);
        assert!(violation.what.contains(number), "case {n}: {violation}");
    }
}

/// Maps 512 pages in a row at multiples of 512 to the frames from 512 and 1024 on.
fn huge_machine() -> (Machine, VpnRange) {
    let machine = Machine::new(2048);
    let (runs, mut firsts) = (range(1024, 1024), [512, 1024].map(Pfn::new).into_iter());
    machine.tables.map_huge(&machine.pages, runs, GfpFlags::KERNEL, || firsts.next()).unwrap();
    (machine, runs)
}

#[test]
fn a_huge_entry_maps_512_pages_and_needs_no_last_table() {
    let (machine, runs) = huge_machine();
    machine.check().unwrap();
    assert_eq!(machine.tables.nr_tables(), 3);
    for (frame, page) in (512..).zip(runs.iter()) {
        assert_eq!(machine.translate(page.as_u64()), Some(frame));
        assert_eq!(machine.processor_walk(page.as_u64()), Some(frame.into()));
    }
    assert_eq!(machine.tables.leaf_order(&machine.pages, runs.start()), Order::new(9));
    machine.map(range(1023, 1)).unwrap();
    machine.map(range(2048, 1)).unwrap();
    assert_eq!(machine.tables.leaf_order(&machine.pages, Vpn::new(START + 1023)), Some(Order::ZERO));
    assert_eq!(machine.tables.check_invariants(&machine.pages).unwrap(), check::TableCount { tables: 5, pages: 1026 });
}

#[test]
fn an_unmapped_huge_entry_faults_and_keeps_its_frames_until_taken() {
    let (machine, runs) = huge_machine();
    assert!(machine.tables.unmap(&machine.pages, runs.first(512)).covers(runs.first(512)));
    assert_eq!(machine.translate(START + 1024), None);
    assert_eq!(machine.translate(START + 1024 + 512), Some(1024));
    let mut seen = Vec::new();
    machine.tables.visit(&machine.pages, runs, |_, entry| seen.push((entry.is_present(), entry.frame())));
    assert!((0..1024).all(|n| seen[n] == (n >= 512, Some(Pfn::new(512 + n as u32)))));
    machine.check().unwrap();
    assert_eq!(machine.take(runs.first(512)), 0);
    assert_eq!(machine.take(runs.after(512)), 2, "the tables of both levels go back with the last run");
    assert_eq!(machine.platform_flush(), (Vpn::new(START + 1536), 512));
    machine.check().unwrap();
}

#[test]
fn a_refused_table_for_huge_entries_tells_how_many_pages_are_mapped() {
    let machine = Machine::new(2048);
    machine.pages.base.platform.fail(FaultPoint::PageTable, 2);
    // The second run lies below another table of level 1.
    let (runs, mut firsts) = (range(512 * 511, 1024), [512, 1024].map(Pfn::new).into_iter());
    let refused = machine.tables.map_huge(&machine.pages, runs, GfpFlags::KERNEL, || firsts.next()).unwrap_err();
    assert_eq!((refused.error, refused.mapped), (AllocError::Injected(FaultPoint::PageTable), 512));
    machine.take(runs.first(512));
    machine.check().unwrap();
    assert_eq!(machine.tables.nr_tables(), 1);
}

#[test]
fn a_corrupted_huge_entry_is_found_and_named() {
    let corruptions = [Pte::huge(Pfn::new(513)), Pte::huge(Pfn::new(2048)), Pte::huge(Pfn::new(3 << 18))];
    for wrong in corruptions {
        let (machine, runs) = huge_machine();
        let path = machine.tables.path(&machine.pages.base.mem, runs.start());
        store(&machine.pages.base.mem, path.tables[HUGE], index(runs.start(), HUGE), wrong);
        let violation = machine.check().unwrap_err();
        assert!(violation.what.contains("I17.8"), "{violation}");
    }
}
