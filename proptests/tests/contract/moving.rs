//! Movable pages do not stand in the way of large blocks: by compaction, and by ranges that empty themselves.

use kmem::{AllocError, Event, Geometry, GfpFlags, MinFree, Order, PAGE_SIZE, PageCount, Pfn};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::subject::{Call, Reply, Subject};
use kmem_harness::subjects::{KmemSubject, Spare};

const KERNEL: GfpFlags = GfpFlags::KERNEL;
const MOVABLE: GfpFlags = GfpFlags::HIGHUSER_MOVABLE;

/// 8 MiB of which every second page is movable and in use, marked with its number; the others are free.
fn checkerboard() -> (KmemSubject, Vec<(u64, u64)>) {
    let mut geometry = Geometry::flat(2048);
    geometry.min_free = MinFree::Pages(16);
    geometry.pageblock_order = Order::new(7).unwrap();
    let mut subject = KmemSubject::new(&geometry, Spare::default(), TlbFlushes::Obeyed).unwrap();
    let mut pages = Vec::new();
    while let Reply::Block { addr, .. } = subject.call(&Call::AllocPages { order: 0, gfp: MOVABLE }) {
        pages.push(addr);
    }
    pages.sort_unstable();
    for addr in pages.iter().skip(1).step_by(2) {
        assert_eq!(subject.call(&Call::FreePages { addr: *addr, order: 0 }), Reply::Done);
    }
    subject.call(&Call::DrainPages);
    let kept: Vec<(u64, u64)> = pages.into_iter().step_by(2).zip(0..).collect();
    for (addr, n) in &kept {
        subject.write(*addr, &n.to_le_bytes()).unwrap();
    }
    (subject, kept)
}

/// Where the pages are now; each must hold its number.
fn follow(subject: &mut KmemSubject, pages: &mut [(u64, u64)]) -> usize {
    let moved = subject.take_moved();
    for step in &moved {
        let page = pages.iter_mut().find(|(addr, _)| *addr == step.from).expect("a live page moved");
        page.0 = step.to;
    }
    for (addr, n) in pages {
        let mut bytes = [0; 8];
        subject.read(*addr, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), *n);
    }
    moved.len()
}

#[test]
fn compaction_makes_a_megabyte_of_a_checkerboard_that_has_no_two_free_pages_together() {
    let (mut subject, mut pages) = checkerboard();
    let order = Order::new(8).unwrap();
    assert!(matches!(subject.kmem().alloc_pages(order, GfpFlags::NOWAIT), Err(AllocError::NoPages { .. })));
    let block = subject.kmem().alloc_pages(order, KERNEL).unwrap();
    let moved = follow(&mut subject, &mut pages);
    assert!((64..=512).contains(&moved), "{moved} pages moved for 256");
    subject.kmem().free_pages(block, order).unwrap();
    subject.kmem().audit().unwrap();
}

#[test]
fn a_range_empties_itself_but_not_of_pinned_pages() {
    let (mut subject, mut pages) = checkerboard();
    let (start, count) = (Pfn::new(640), PageCount::new(500));
    let inside = |addr: u64| {
        let frame = (addr - Geometry::flat(1).direct_map.as_u64()) / PAGE_SIZE as u64;
        (640..1140).contains(&frame)
    };
    let pinned = pages.iter().find(|(addr, _)| inside(*addr)).unwrap().0;
    subject.call(&Call::Pin { addr: pinned });
    let refusal = subject.kmem().alloc_contig_range(start, count, KERNEL);
    let frame = subject.kmem().virt_to_pfn(kmem::VirtAddr::new(pinned)).unwrap();
    assert_eq!(refusal, Err(AllocError::Busy { frame }));
    follow(&mut subject, &mut pages);
    subject.call(&Call::Unpin { addr: pinned });
    subject.kmem().alloc_contig_range(start, count, KERNEL).unwrap();
    follow(&mut subject, &mut pages);
    assert!(pages.iter().all(|(addr, _)| !inside(*addr)));
    subject.kmem().free_contig_range(start, count).unwrap();
    subject.kmem().audit().unwrap();
    assert!(subject.white_box().is_some_and(|inside| inside.events()[Event::BlockPinned.index()] > 0));
}
