//! Tests of O9: for each family of calls a refusal that is justified and one that is not.

use super::*;
use crate::oracle::fake::{FakeSubject, ask, context, step};
use crate::oracle::o10_tier::RightTier;
use kmem::MemInfo;
use kmem::{FaultPoint, FrameKind, Order, PageCount};

const KERNEL: GfpFlags = GfpFlags::KERNEL;

fn no_pages(order: u8) -> AllocError {
    AllocError::NoPages { order: Order::new(order).unwrap() }
}

fn verdict(subject: &mut FakeSubject, model: &mut Model, call: Call, error: AllocError) -> Result<(), Violation> {
    RightTier.before_call(&mut context(model, subject), &call)?;
    ask(&RefusalJustified, model, subject, &step(call, Reply::Refused(error)))
}

fn fresh_verdict(subject: &mut FakeSubject, call: Call, error: AllocError) -> bool {
    let mut model = subject.model();
    verdict(subject, &mut model, call, error).is_ok()
}

/// 64 frames of which every second one is taken by a live page.
fn checkerboard() -> (FakeSubject, Model) {
    let mut subject = FakeSubject::new(64);
    let mut model = subject.model();
    for frame in (0..64).step_by(2) {
        subject.kinds[frame as usize] = FrameKind::Pages;
        let reply = Reply::Block { addr: subject.direct(frame), usable: PAGE_SIZE };
        model.update(&step(Call::AllocPages { order: 0, gfp: KERNEL }, reply), &subject);
    }
    subject.set_free(&[(0, 32)]);
    (subject, model)
}

#[test]
fn a_block_that_fits_makes_a_refusal_wrong() {
    let (mut subject, mut model) = checkerboard();
    let pages = |order| Call::AllocPages { order, gfp: KERNEL };
    assert_eq!(verdict(&mut subject, &mut model, pages(1), no_pages(1)), Ok(()));
    assert!(verdict(&mut subject, &mut model, pages(0), no_pages(0)).is_err());
    // Frame 10 is given back: 10 and 11 are free, but 10 is no pair with 9, and 8 is taken.
    subject.kinds[10] = FrameKind::Free;
    model.update(&step(Call::FreePages { addr: subject.direct(10), order: 0 }, Reply::Done), &subject);
    assert!(verdict(&mut subject, &mut model, pages(1), no_pages(1)).is_err());
    assert_eq!(verdict(&mut subject, &mut model, pages(2), no_pages(2)), Ok(()));
}

#[test]
fn what_reclaim_could_give_back_makes_a_refusal_wrong_only_if_it_may_reclaim() {
    let (mut subject, mut model) = checkerboard();
    let cache = subject.add_cache("kmalloc-64", 64, 0, 0);
    subject.kinds[1..64].iter_mut().step_by(2).for_each(|kind| *kind = FrameKind::Slab(cache));
    subject.set_free(&[]);
    let pages = |gfp| Call::AllocPages { order: 0, gfp };
    assert!(verdict(&mut subject, &mut model, pages(KERNEL), no_pages(0)).is_err());
    assert_eq!(verdict(&mut subject, &mut model, pages(GfpFlags::NOWAIT), no_pages(0)), Ok(()));
}

#[test]
fn the_watermark_justifies_and_reserve_rights_do_not_excuse() {
    let mut subject = FakeSubject::new(64);
    subject.set_free(&[(4, 1)]);
    let pages = |gfp| Call::AllocPages { order: 0, gfp };
    assert!(fresh_verdict(&mut subject, pages(GfpFlags::NOWAIT), no_pages(0)), "16 free, 16 kept back");
    assert!(!fresh_verdict(&mut subject, pages(GfpFlags::ATOMIC), no_pages(0)), "may go down to 6");
    assert!(!fresh_verdict(&mut subject, pages(GfpFlags::NOWAIT | GfpFlags::MEMALLOC), no_pages(0)));
    let both = GfpFlags::NOWAIT | GfpFlags::MEMALLOC | GfpFlags::NOMEMALLOC;
    assert!(fresh_verdict(&mut subject, pages(both), no_pages(0)));
}

#[test]
fn a_reserve_is_only_for_those_who_have_a_right_to_it() {
    let mut subject = FakeSubject::new(64);
    subject.set_free(&[(4, 1)]);
    let mut served = |gfp| {
        let mut model = subject.model();
        model.last_use = Some(MemInfo { free: 0, ..subject.counters });
        let call = Call::AllocPages { order: 0, gfp };
        RightTier.before_call(&mut context(&mut model, &mut subject), &call).unwrap();
        let reply = Reply::Block { addr: subject.direct(1), usable: PAGE_SIZE };
        ask(&RefusalJustified, &mut model, &mut subject, &step(call, reply)).is_ok()
    };
    assert!(!served(GfpFlags::NOWAIT), "16 free, 16 kept back");
    assert!(served(GfpFlags::ATOMIC) && served(GfpFlags::NOWAIT | GfpFlags::MEMALLOC));
}

#[test]
fn a_bad_request_is_refused_for_its_own_reason() {
    let mut subject = FakeSubject::new(64);
    let too_large = || AllocError::TooLarge { requested: 0, limit: 0 };
    let cases = [
        (Call::AllocPages { order: 11, gfp: KERNEL }, AllocError::OrderTooLarge { max: Order::MAX }),
        (Call::AllocPages { order: 0, gfp: GfpFlags::DMA | GfpFlags::DMA32 }, AllocError::BadFlags),
        (Call::AllocPagesExact { size: 0, gfp: KERNEL }, AllocError::ZeroSize),
        (Call::Kmalloc { size: (4 << 20) + 1, gfp: KERNEL }, too_large()),
        (Call::KmallocArray { n: usize::MAX, size: 2, gfp: KERNEL }, AllocError::Overflow),
        (Call::Vmalloc { size: 0, gfp: KERNEL }, AllocError::ZeroSize),
        (Call::Vmalloc { size: 65 * PAGE_SIZE, gfp: KERNEL }, too_large()),
        (Call::Kvmalloc { size: 1 << 31, gfp: KERNEL }, too_large()),
        (Call::Krealloc { addr: 0x5000, size: 8, gfp: KERNEL }, AllocError::BadAddress(kmem::VirtAddr::new(0x5000))),
        (Call::Vmap { pfns: Vec::new() }, AllocError::ZeroSize),
    ];
    for (call, error) in cases {
        assert!(fresh_verdict(&mut subject, call.clone(), error), "{call:?}");
        assert!(!fresh_verdict(&mut subject, call.clone(), no_pages(0)), "{call:?}");
        let served = step(call.clone(), Reply::Block { addr: subject.direct(1), usable: PAGE_SIZE });
        assert!(ask(&RefusalJustified, &mut subject.model(), &mut subject, &served).is_err(), "{call:?}");
    }
}

#[test]
fn a_proper_request_is_not_bad() {
    let mut subject = FakeSubject::new(64);
    assert!(!fresh_verdict(&mut subject, Call::Kmalloc { size: 0, gfp: KERNEL }, AllocError::ZeroSize));
    assert!(!fresh_verdict(&mut subject, Call::Kmalloc { size: 8, gfp: KERNEL }, AllocError::BadFlags));
    let dma32 = GfpFlags::DMA | GfpFlags::DMA32;
    assert!(!fresh_verdict(&mut subject, Call::Kmalloc { size: 16384, gfp: dma32 }, AllocError::BadFlags));
}

#[test]
fn only_a_fault_that_struck_excuses() {
    let mut subject = FakeSubject::new(64);
    let kmalloc = || Call::Kmalloc { size: 64, gfp: KERNEL };
    let injected = AllocError::Injected(FaultPoint::Slab);
    assert!(!fresh_verdict(&mut subject, kmalloc(), injected));
    for error in [injected, no_pages(0)] {
        let mut struck = step(kmalloc(), Reply::Refused(error));
        struck.fault_struck = true;
        assert_eq!(ask(&RefusalJustified, &mut subject.model(), &mut subject, &struck), Ok(()));
    }
}

#[test]
fn a_gap_in_the_window_makes_no_virtual_space_wrong() {
    let mut subject = FakeSubject::new(64);
    subject.geometry.vmalloc_pages = PageCount::new(8);
    let mut model = subject.model();
    subject.map(0, &[7, 8, 9]);
    let reply = Reply::Block { addr: subject.window(0), usable: 3 * PAGE_SIZE };
    model.update(&step(Call::Vmalloc { size: 3 * PAGE_SIZE, gfp: KERNEL }, reply), &subject);
    let mut refused = |pages: usize| {
        let error = AllocError::NoVirtualSpace { pages: PageCount::new(pages as u64) };
        verdict(&mut subject, &mut model, Call::Vmalloc { size: pages * PAGE_SIZE, gfp: KERNEL }, error).is_ok()
    };
    assert!(refused(4), "pages 4 to 7 hold three and a guard");
    assert!(!refused(3));
}

#[test]
fn a_lazily_freed_area_stands_in_the_way_of_requests_without_reclaim_only() {
    let mut subject = FakeSubject::new(64);
    subject.geometry.vmalloc_pages = PageCount::new(4);
    subject.areas.push(kmem::VmallocEntry {
        start: subject.geometry.vmalloc_start,
        pages: PageCount::new(1),
        guard: PageCount::new(1),
        mapped: PageCount::new(1),
        requested: 1,
        kind: kmem::AreaKind::Lazy,
        flags: kmem::VmFlags::empty(),
        on_nodes: [0; kmem::MAX_NODES],
    });
    let error = AllocError::NoVirtualSpace { pages: PageCount::new(3) };
    let vmalloc = |gfp| Call::Vmalloc { size: 2 * PAGE_SIZE, gfp };
    assert!(fresh_verdict(&mut subject, vmalloc(GfpFlags::NOWAIT), error));
    assert!(!fresh_verdict(&mut subject, vmalloc(KERNEL), error));
}

#[test]
fn kvmalloc_is_refused_only_if_neither_tier_could() {
    let mut subject = FakeSubject::new(64);
    let kvmalloc = |pages: usize, gfp| Call::Kvmalloc { size: pages * PAGE_SIZE, gfp };
    assert!(!fresh_verdict(&mut subject, kvmalloc(32, KERNEL), no_pages(0)), "both could");
    // In pieces vmalloc can have 44, and a contiguous block of 32 is there.
    assert!(!fresh_verdict(&mut subject, kvmalloc(40, KERNEL), no_pages(0)), "only vmalloc could");
    assert!(fresh_verdict(&mut subject, kvmalloc(45, KERNEL), no_pages(0)), "neither could");
    subject.geometry.vmalloc_pages = PageCount::new(2);
    let no_space = AllocError::NoVirtualSpace { pages: PageCount::new(33) };
    assert!(!fresh_verdict(&mut subject, kvmalloc(32, KERNEL), no_space), "only the page allocator could");
    subject.set_free(&[(4, 4)]);
    assert!(fresh_verdict(&mut subject, kvmalloc(32, KERNEL), no_space), "the first attempt may not reclaim");
    let insisting = KERNEL | GfpFlags::RETRY_MAYFAIL;
    assert!(!fresh_verdict(&mut subject, kvmalloc(32, insisting), no_space), "this one may");
}

#[test]
fn a_reallocation_that_fits_is_never_refused() {
    let (mut subject, mut model) = checkerboard();
    subject.kinds[1] = FrameKind::Slab(kmem::CacheId::new(0));
    subject.set_free(&[]);
    let addr = subject.direct(1);
    let kmalloc = step(Call::Kmalloc { size: 40, gfp: KERNEL }, Reply::Block { addr, usable: 64 });
    model.update(&kmalloc, &subject);
    let krealloc = Call::Krealloc { addr, size: 64, gfp: GfpFlags::NOWAIT };
    assert!(verdict(&mut subject, &mut model, krealloc, no_pages(0)).is_err());
    let larger = Call::Krealloc { addr, size: 65, gfp: GfpFlags::NOWAIT };
    assert_eq!(verdict(&mut subject, &mut model, larger, no_pages(0)), Ok(()));
}

#[test]
fn an_empty_bulk_is_a_refusal_of_one_page() {
    let mut subject = FakeSubject::new(64);
    let bulk = step(Call::AllocPagesBulk { count: 3, gfp: GfpFlags::NOWAIT }, Reply::Pages(Vec::new()));
    assert!(ask(&RefusalJustified, &mut subject.model(), &mut subject, &bulk).is_err());
    subject.set_free(&[(0, 16)]);
    assert_eq!(ask(&RefusalJustified, &mut subject.model(), &mut subject, &bulk), Ok(()));
}

#[test]
fn a_bulk_is_all_or_one_by_what_the_zone_can_spare() {
    let mut subject = FakeSubject::with_two_zones(256);
    subject.zones = subject.bare_zones(&[(6, 2)]);
    // 128 pages are free in each zone, and 10 are below the low mark of each.
    let mut bulk = |count: usize, gfp: GfpFlags, frames: std::ops::Range<u32>| {
        let mut model = subject.model();
        let call = Call::AllocPagesBulk { count, gfp };
        RightTier.before_call(&mut context(&mut model, &mut subject), &call).unwrap();
        let reply = Reply::Pages(frames.map(|frame| subject.direct(frame)).collect());
        ask(&RefusalJustified, &mut model, &mut subject, &step(call, reply)).is_ok()
    };
    assert!(bulk(117, KERNEL, 128..245) && !bulk(117, KERNEL, 128..129), "128 are more than 10 and these");
    assert!(bulk(118, KERNEL, 128..129) && !bulk(118, KERNEL, 128..246));
    assert!(!bulk(8, KERNEL, 124..132), "of two zones");
    assert!(!bulk(8, KERNEL, 0..8), "of the lower zone, while the higher one has them");
    let accounted = KERNEL | GfpFlags::ACCOUNT;
    assert!(bulk(8, accounted, 128..129) && !bulk(8, accounted, 128..136));
}

#[test]
fn types_do_not_mix_without_a_boost() {
    let mut subject = FakeSubject::new(64);
    subject.geometry.pageblock_order = Order::new(3).unwrap();
    let mut model = subject.model();
    let free = step(Call::Vfree { addr: 0 }, Reply::Done);
    assert_eq!(ask(&RefusalJustified, &mut model, &mut subject, &free), Ok(()));
    subject.events = vec![(kmem::Event::ClaimRefused, 1)];
    assert!(ask(&RefusalJustified, &mut model, &mut subject, &free).is_err());
    subject.zones[0].boost = 8;
    assert_eq!(ask(&RefusalJustified, &mut model, &mut subject, &free), Ok(()));
    subject.zones[0].boost = 0;
    subject.events.push((kmem::Event::ReclaimPcp, 1));
    assert_eq!(ask(&RefusalJustified, &mut model, &mut subject, &free), Ok(()), "reclaim has run");
}

#[test]
fn compaction_that_failed_is_put_off_once_at_least() {
    let counts = |subject: &mut FakeSubject, put_off, complete| {
        let turn = 1 + subject.events.first().map_or(0, |&(_, count)| count);
        subject.events = vec![
            (kmem::Event::GaveUpNoProgress, turn),
            (kmem::Event::CompactDeferred, put_off),
            (kmem::Event::CompactComplete, complete),
        ];
    };
    let pages = |order| Call::AllocPages { order, gfp: KERNEL };
    // Two walks fail in a first call, of which only the second counts; then a call of order `order` counts these.
    let second = |order, failed, put_off, complete| {
        let (mut subject, mut model) = checkerboard();
        let mut refused = |subject: &mut FakeSubject, order, (put_off, complete)| {
            RefusalJustified.before_call(&mut context(&mut model, subject), &pages(order))?;
            counts(subject, put_off, complete);
            ask(&RefusalJustified, &mut model, subject, &step(pages(order), Reply::Refused(no_pages(order))))
        };
        refused(&mut subject, 2, (0, failed)).unwrap();
        refused(&mut subject, order, (put_off, failed + complete)).is_ok()
    };
    assert!(!second(2, 2, 0, 1) && !second(3, 2, 0, 1), "not put off");
    assert!(second(2, 2, 1, 0) && second(3, 2, 1, 1), "put off");
    assert!(second(1, 2, 0, 1), "a lower order is not put off");
    assert!(second(2, 1, 0, 1), "the cheap walk has no consequence");
}

#[test]
fn only_urgent_requests_of_several_pages_have_a_reserve() {
    let may = |order, gfp| {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.events = vec![(kmem::Event::HighAtomicReserved, 1)];
        let usable = PAGE_SIZE << order;
        let reply = Reply::Block { addr: subject.direct(16), usable };
        ask(&RefusalJustified, &mut model, &mut subject, &step(Call::AllocPages { order, gfp }, reply)).is_ok()
    };
    assert!(may(1, GfpFlags::ATOMIC) && !may(0, GfpFlags::ATOMIC));
    assert!(!may(1, GfpFlags::NOWAIT) && !may(1, KERNEL | GfpFlags::HIGH));
    assert!(!may(1, GfpFlags::ATOMIC | GfpFlags::NOMEMALLOC));
}

#[test]
fn marks_that_differ_from_the_contract_are_found_once() {
    let mut subject = FakeSubject::new(64);
    let mut model = subject.model();
    assert_eq!(RefusalJustified.audit(&mut context(&mut model, &mut subject)), Ok(()));
    subject.zones[0].min = 15;
    let mut model = subject.model();
    assert!(RefusalJustified.audit(&mut context(&mut model, &mut subject)).is_err());
}

#[test]
fn a_loose_subject_must_serve_a_modest_request_when_nothing_is_live() {
    let mut subject = FakeSubject::new(64);
    subject.strength = crate::subject::Strength::Loose;
    assert!(!fresh_verdict(&mut subject, Call::Kmalloc { size: 64, gfp: KERNEL }, no_pages(0)));
    assert!(fresh_verdict(&mut subject, Call::Kmalloc { size: 64, gfp: GfpFlags::NOWAIT }, no_pages(0)));
    assert!(fresh_verdict(&mut subject, Call::Kmalloc { size: 64 << 12, gfp: KERNEL }, no_pages(0)));
}
