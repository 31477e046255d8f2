//! The story that the project is about, step by step on the real allocator, and as the trace that tells it.

use kmem::{AllocError, FrameKind, Geometry, GfpFlags, NR_PAGE_ORDERS, PAGE_SIZE, VirtAddr};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::run::{RunOptions, Runner};
use kmem_harness::subject::{Call, Reply, Subject};
use kmem_harness::subjects::{KmemSubject, Spare, SubjectKind};
use kmem_harness::trace::Trace;
use std::collections::BTreeSet;
use std::path::Path;

const MIB: usize = 1 << 20;
const KERNEL: GfpFlags = GfpFlags::KERNEL;

/// 8 MiB with Linux's orders.
fn machine() -> KmemSubject {
    KmemSubject::new(&Geometry::flat(2048), Spare::default(), TlbFlushes::Obeyed).unwrap()
}

/// Takes single pages until none is left, then frees every second one; returns those that stay.
fn checkerboard(subject: &mut KmemSubject) -> Vec<u64> {
    let mut pages = Vec::new();
    while let Reply::Block { addr, .. } = subject.call(&Call::AllocPages { order: 0, gfp: KERNEL }) {
        pages.push(addr);
    }
    pages.sort_unstable();
    for addr in pages.iter().skip(1).step_by(2) {
        assert_eq!(subject.call(&Call::FreePages { addr: *addr, order: 0 }), Reply::Done);
    }
    pages.into_iter().step_by(2).collect()
}

/// The physical page behind each virtual page, by the processor's own walk.
fn frames_behind(subject: &KmemSubject, start: u64, pages: usize) -> Vec<u64> {
    let page = |n: usize| subject.translate(start + (n * PAGE_SIZE) as u64);
    (0..pages).map(|n| page(n).expect("every page of the block is mapped")).collect()
}

/// Free blocks by order; which migrate type a pageblock ends up with is not part of the state that must come back.
fn free_blocks(subject: &KmemSubject) -> Vec<[u32; NR_PAGE_ORDERS]> {
    subject.kmem().buddyinfo().zones().iter().map(|zone| zone.free).collect()
}

#[test]
fn kvmalloc_survives_a_checkerboard_that_refuses_kmalloc() {
    let mut subject = machine();
    let initial = (subject.kmem().meminfo(), free_blocks(&subject));
    let pinned = checkerboard(&mut subject);
    let kmem = subject.kmem();
    assert!(kmem.meminfo().free * PAGE_SIZE as u64 > 3 * MIB as u64, "more than 3 MiB are free");
    assert!(matches!(kmem.kmalloc(MIB, KERNEL), Err(AllocError::NoPages { .. })), "but not in one piece");

    let block = kmem.kvmalloc(MIB, KERNEL).unwrap();
    assert!(kmem.is_vmalloc_addr(block));
    let frames = frames_behind(&subject, block.as_u64(), 256);
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), 256, "256 frames of its own");
    for (n, frame) in frames.iter().enumerate() {
        let addr = block.as_u64() + (n * PAGE_SIZE) as u64;
        subject.write(addr, &frame.to_le_bytes()).unwrap();
        let pfn = subject.kmem().vmalloc_to_page(VirtAddr::new(addr)).unwrap();
        assert_eq!(pfn.addr().as_u64(), *frame, "the allocator's walk and the processor's agree");
        assert_eq!(subject.kmem().frame_kind(pfn), FrameKind::Vmalloc);
    }
    for (n, frame) in frames.iter().enumerate() {
        let mut word = [0; 8];
        subject.read(block.as_u64() + (n * PAGE_SIZE) as u64, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), *frame, "page {n} reaches its own frame");
    }
    subject.read(block.as_u64() + MIB as u64, &mut [0]).expect_err("the guard page faults");

    for addr in pinned {
        assert_eq!(subject.call(&Call::FreePages { addr, order: 0 }), Reply::Done);
    }
    subject.kmem().kvfree(block).unwrap();
    subject.kmem().reclaim();
    assert_eq!(subject.kmem().audit(), Ok(()));
    let end = (subject.kmem().meminfo(), free_blocks(&subject));
    assert_eq!(end, initial, "everything freed gives back the initial state");
}

#[test]
fn a_page_or_less_never_falls_back_and_more_than_int_max_is_refused() {
    let mut subject = machine();
    let mut pinned = Vec::new();
    while let Ok(page) = subject.kmem().alloc_pages(kmem::Order::ZERO, KERNEL) {
        pinned.push(page);
    }
    let kmem = subject.kmem();
    assert!(matches!(kmem.kvmalloc(PAGE_SIZE, KERNEL), Err(AllocError::NoPages { .. })), "vmalloc could not do better");
    let oversized = i32::MAX as usize + 1;
    let limit = i32::MAX as usize;
    assert_eq!(kmem.kvmalloc(oversized, KERNEL), Err(AllocError::TooLarge { requested: oversized, limit }));
    assert_eq!(kmem.kvmalloc_array(usize::MAX, 2, KERNEL), Err(AllocError::Overflow));
    for page in pinned {
        kmem.free_pages(page, kmem::Order::ZERO).unwrap();
    }
    let addr = kmem.kvmalloc(PAGE_SIZE, KERNEL).unwrap();
    assert!(!kmem.is_vmalloc_addr(addr), "a page comes from kmalloc");
    subject.write(addr.as_u64(), &[1; PAGE_SIZE]).unwrap();
}

/// The same story as a trace: O9 finds the refusal of `kmalloc` justified, O10 the fallback.
#[test]
fn the_oracles_agree_with_the_story() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/seeds/kvmalloc-survives-fragmentation.ron");
    let trace = Trace::load(&path).unwrap();
    let options = RunOptions { keep_log: true, ..RunOptions::default() };
    let report = Runner::new().run(&trace, SubjectKind::KMEM, &options);
    assert_eq!(report.violation, None);
    let answers = |wanted: fn(&Call) -> bool| {
        report.log.iter().map(|record| &record.step).filter(move |step| wanted(&step.call)).map(|step| &step.reply)
    };
    let large = |reply: &&Reply| matches!(reply, Reply::Block { addr, usable } if *addr >= 0xffff_c900_0000_0000 && *usable >= MIB);
    assert!(answers(|c| matches!(c, Call::Kmalloc { size: MIB, .. })).all(|r| matches!(r, Reply::Refused(_))));
    assert_eq!(answers(|c| matches!(c, Call::Kvmalloc { size: MIB, .. })).filter(large).count(), 1);
}
