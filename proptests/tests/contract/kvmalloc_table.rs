//! The decision table of `kvmalloc`, walked in full: every size class, every combination of flags that matters, with and
//! without a contiguous block, pages and addresses. Each combination has exactly one right answer, which [`expected`] takes
//! from the contract (`kvmalloc` of Linux 7.2, `mm/slub.c`): its first attempt is contiguous, a page or less never falls
//! back, more than `INT_MAX` is refused, and the rest is `vmalloc`'s, which asks for addresses before it asks for pages.

use kmem::{AllocError, Event, Geometry, GfpFlags, Order, PAGE_SIZE, PageCount, Pfn, VirtAddr};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::subject::Subject;
use kmem_harness::subjects::{KmemSubject, Spare};
use std::collections::BTreeMap;

const FRAMES: u32 = 4096;
const RAM: usize = FRAMES as usize * PAGE_SIZE;
/// The largest block of the page allocator, and so of `kmalloc`.
const KMALLOC_MAX: usize = 4 << 20;
const INT_MAX: usize = i32::MAX as usize;

/// What is free. A contiguous block is made of pages, so there are three states and not four.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Memory {
    /// Blocks of every order.
    Contiguous,
    /// Half of all pages, no two of them neighbours.
    Scattered,
    /// Nothing.
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Scene {
    memory: Memory,
    /// Whether the window has a gap that is large enough.
    addresses: bool,
}

/// What a request is answered with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Answer {
    ZeroSize,
    Contiguous,
    Virtual,
    Overflow,
    AboveIntMax,
    AboveMemory,
    NoPages,
    NoAddresses,
}

/// A request: so many elements of so many bytes.
#[derive(Clone, Copy, Debug)]
struct Request {
    n: usize,
    size: usize,
    gfp: GfpFlags,
}

fn expected(scene: Scene, request: &Request) -> Answer {
    let Some(size) = request.n.checked_mul(request.size) else { return Answer::Overflow };
    let contiguous = match scene.memory {
        Memory::Contiguous => size <= KMALLOC_MAX,
        Memory::Scattered => size <= PAGE_SIZE,
        Memory::None => false,
    };
    match size {
        0 => Answer::ZeroSize,
        _ if contiguous => Answer::Contiguous,
        _ if size <= PAGE_SIZE => Answer::NoPages,
        _ if size > INT_MAX => Answer::AboveIntMax,
        _ if size > RAM => Answer::AboveMemory,
        _ if !scene.addresses => Answer::NoAddresses,
        // A few pages are never free: page tables, the area that was there before.
        _ if scene.memory == Memory::None || size > RAM - PAGE_SIZE => Answer::NoPages,
        _ => Answer::Virtual,
    }
}

/// Sizes around every boundary that the contract names.
fn sizes() -> Vec<(usize, usize)> {
    let around = |size: usize| [size - 1, size, size + 1];
    let boundaries = [8, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE, 2 << 20, KMALLOC_MAX, RAM, INT_MAX];
    let plain = [0, 1, 100 << 10, 5 << 20].into_iter().chain(boundaries.into_iter().flat_map(around));
    let products =
        [(0, 8), (3, 1000), (512, 8), (513, 8), (5 * PAGE_SIZE, usize::MAX / (5 * PAGE_SIZE) + 1), (2, usize::MAX)];
    plain.map(|size| (1, size)).chain([(1, usize::MAX)]).chain(products).collect()
}

/// How the caller may wait, with every choice of the modifiers that the contract names.
fn flags() -> Vec<GfpFlags> {
    let waits =
        [GfpFlags::KERNEL, GfpFlags::NOFS, GfpFlags::NOIO, GfpFlags::NOWAIT, GfpFlags::ATOMIC, GfpFlags::empty()];
    let modifiers = [
        GfpFlags::ZERO,
        GfpFlags::RETRY_MAYFAIL,
        GfpFlags::NOFAIL,
        GfpFlags::NORETRY,
        GfpFlags::NOWARN,
        GfpFlags::THISNODE,
    ];
    let chosen = |set: usize| {
        let picked = modifiers.iter().enumerate().filter(move |(bit, _)| set >> bit & 1 == 1);
        picked.fold(GfpFlags::empty(), |all, (_, &flag)| all | flag)
    };
    waits.into_iter().flat_map(|wait| (0..1 << modifiers.len()).map(move |set| wait | chosen(set))).collect()
}

/// A machine in the state that a scene describes.
fn machine(scene: Scene) -> KmemSubject {
    let mut geometry = Geometry::flat(FRAMES);
    // As large as what is put into it below: a page and its guard, then as many pages as memory has, and their guard.
    geometry.vmalloc_pages = PageCount::new(u64::from(FRAMES) + 3);
    let subject = KmemSubject::new(&geometry, Spare::default(), TlbFlushes::Obeyed).unwrap();
    let kmem = subject.kmem();
    // A table and a slab of area records exist from here on, so that their pages are nobody's excuse.
    kmem.vmalloc(PAGE_SIZE, GfpFlags::KERNEL).unwrap();
    if !scene.addresses {
        let frame = kmem.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
        kmem.vmap(&vec![frame; FRAMES as usize], kmem::VmFlags::empty(), GfpFlags::KERNEL).unwrap();
    }
    match scene.memory {
        Memory::Contiguous => {}
        Memory::Scattered => take_pages(&subject, |pfn| pfn.as_u32() % 2 == 0),
        Memory::None => take_pages(&subject, |_| true),
    }
    subject
}

/// Takes every free page, and gives those back that are not to be kept.
fn take_pages(subject: &KmemSubject, keep: impl Fn(Pfn) -> bool) {
    let kmem = subject.kmem();
    let page = || kmem.alloc_pages(Order::ZERO, GfpFlags::KERNEL | GfpFlags::MEMALLOC).ok();
    let taken: Vec<Pfn> = std::iter::from_fn(page).collect();
    taken.into_iter().filter(|&pfn| !keep(pfn)).for_each(|pfn| kmem.free_pages(pfn, Order::ZERO).unwrap());
    kmem.drain_all_pages();
}

fn answer(subject: &mut KmemSubject, request: &Request) -> Answer {
    let before = attempts(subject);
    let reply = subject.kmem().kvmalloc_array(request.n, request.size, request.gfp);
    let after = attempts(subject);
    let attempts = [after[0] - before[0], after[1] - before[1]];
    match reply {
        Ok(VirtAddr::ZERO_SIZE) => Answer::ZeroSize,
        Ok(addr) => served(subject, request, addr, attempts),
        Err(AllocError::Overflow) => Answer::Overflow,
        Err(AllocError::TooLarge { limit: INT_MAX, .. }) => Answer::AboveIntMax,
        Err(AllocError::TooLarge { limit: RAM, .. }) => Answer::AboveMemory,
        Err(AllocError::NoPages { .. }) => Answer::NoPages,
        Err(AllocError::NoVirtualSpace { .. }) => Answer::NoAddresses,
        Err(other) => panic!("{request:?}: {other}"),
    }
}

/// Contiguous attempts that were served, and falls back to `vmalloc`, so far.
fn attempts(subject: &KmemSubject) -> [u64; 2] {
    [Event::KvContiguous, Event::KvFallback].map(|event| subject.white_box().unwrap().event_count(event))
}

/// Looks at a block and frees it.
fn served(subject: &mut KmemSubject, request: &Request, addr: VirtAddr, attempts: [u64; 2]) -> Answer {
    let size = request.n * request.size;
    assert!(subject.kmem().kvsize(addr).unwrap() >= size, "{request:?}");
    if request.gfp.contains(GfpFlags::ZERO) {
        for offset in [0, size / 2, size - 1] {
            let mut byte = [1];
            subject.read(addr.as_u64() + offset as u64, &mut byte).unwrap();
            assert_eq!(byte, [0], "{request:?}: byte {offset}");
        }
    }
    let kmem = subject.kmem();
    let answer = if kmem.is_vmalloc_addr(addr) { Answer::Virtual } else { Answer::Contiguous };
    assert_eq!(attempts, if answer == Answer::Virtual { [0, 1] } else { [1, 0] }, "{request:?}");
    kmem.kvfree(addr).unwrap();
    answer
}

/// What has to be the same before and after a request that was answered and freed, or refused.
fn state(subject: &KmemSubject) -> impl PartialEq + std::fmt::Debug + use<> {
    let kmem = subject.kmem();
    kmem.reclaim();
    (kmem.meminfo(), kmem.buddyinfo().zones().iter().map(|zone| zone.free).collect::<Vec<_>>())
}

#[test]
fn every_combination_of_the_table_has_the_contracts_answer() {
    let mut answers: BTreeMap<Answer, u32> = BTreeMap::new();
    for memory in [Memory::Contiguous, Memory::Scattered, Memory::None] {
        for addresses in [true, false] {
            let scene = Scene { memory, addresses };
            let mut subject = machine(scene);
            let before = state(&subject);
            for (n, size) in sizes() {
                for gfp in flags() {
                    let request = Request { n, size, gfp };
                    let found = answer(&mut subject, &request);
                    assert_eq!(found, expected(scene, &request), "{scene:?} {request:?}");
                    *answers.entry(found).or_default() += 1;
                }
                assert_eq!(state(&subject), before, "{scene:?}, {n} x {size} bytes");
            }
            assert_eq!(subject.kmem().audit(), Ok(()), "{scene:?}");
        }
    }
    assert_eq!(answers.len(), 8, "every answer was seen: {answers:?}");
    println!("kvmalloc table: {} combinations, {answers:?}", answers.values().sum::<u32>());
}
