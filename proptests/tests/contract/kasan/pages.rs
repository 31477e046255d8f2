//! The groups of pages and of vmalloc.

use super::{G, KERNEL, Kasan};
use kmem::{PAGE_SIZE, PageDebug, PoisonDamage, VirtAddr, VmFlags, Warning};
use kmem_harness::subject::{Call, Near, Reply, Subject, WindowCall};

#[test]
fn page_alloc_oob_right() {
    let mut k = Kasan::new();
    let size = 4096 << 4;
    let addr = k.block(Call::AllocPages { order: 4, gfp: KERNEL });
    k.oob_right(addr, size, &[0]);
    k.reports(addr + size as u64 - 1, 2);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
}

/// Where pages are poisoned, the next owner hears of the write too: the byte and its frame, once.
#[test]
fn page_alloc_uaf() {
    let mut k = Kasan::checking(PageDebug::POISON);
    let pages = Call::AllocPages { order: 4, gfp: KERNEL };
    let addr = k.block(pages.clone());
    k.allows(addr, 4096 << 4);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
    k.reports(addr, 1);
    k.subject.write(addr + 4096 + 100, &[0x78]).unwrap();
    assert_eq!(k.block(pages.clone()), addr);
    let frame = k.subject.kmem().virt_to_pfn(VirtAddr::new(addr + 4096)).unwrap();
    let damage = PoisonDamage::Corruption { first: 100, last: 100 };
    assert_eq!(k.warnings(), [Warning::PoisonDamaged { frame, damage }]);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
    assert_eq!(k.block(pages), addr);
    assert_eq!(k.warnings(), [], "what is poisoned anew is not damaged");
}

#[test]
fn vmalloc_oob() {
    let mut k = Kasan::new();
    let size = 2048 - G - 5;
    let addr = k.block(Call::Vmalloc { size, gfp: KERNEL });
    k.oob_right(addr, size, &[0, G]);
    let less = size - G - 1;
    assert_eq!(k.block(Call::Vrealloc { addr, size: less, gfp: KERNEL, near: Near::ANY }), addr);
    k.oob_right(addr, less, &[0, G]);
    let more = less + 2 * G + 2;
    assert_eq!(k.block(Call::Vrealloc { addr, size: more, gfp: KERNEL, near: Near::ANY }), addr);
    k.oob_right(addr, more, &[0, G]);
    let frame = k.subject.kmem().vmalloc_to_page(VirtAddr::new(addr)).unwrap();
    let page = k.subject.kmem().page_address(frame).as_u64();
    k.subject.write(page, &[0]).unwrap();
    assert_eq!(k.call(Call::Vfree { addr }), Reply::Done);
    k.reports(addr, 1);
}

/// Two pages are mapped, used by both addresses, and unmapped.
fn mapped_and_unmapped(map: impl Fn(Vec<u32>) -> Call, unmap: impl Fn(u64) -> Call) {
    let mut k = Kasan::new();
    let pages = k.block(Call::AllocPages { order: 1, gfp: KERNEL });
    let pfns: Vec<u32> = k.model.direct_frames(pages, 2 * PAGE_SIZE).collect();
    let addr = k.block(map(pfns));
    k.oob_right(addr, 2 * PAGE_SIZE, &[0, G]);
    for at in [0, PAGE_SIZE as u64 + 7] {
        let mut byte = [0];
        k.subject.write(addr + at, &[0x5a]).unwrap();
        k.subject.read(pages + at, &mut byte).unwrap();
        assert_eq!(byte, [0x5a], "the page holds what was written through the mapping");
    }
    assert_eq!(k.call(unmap(addr)), Reply::Done);
    k.reports(addr, 1);
    k.allows(pages, 2 * PAGE_SIZE);
    assert_eq!(k.call(Call::FreePages { addr: pages, order: 1 }), Reply::Done);
}

#[test]
fn vmap_tags() {
    let map = |pfns| Call::Window(WindowCall::Vmap { pfns, flags: VmFlags::empty(), gfp: KERNEL });
    mapped_and_unmapped(map, |addr| Call::Vunmap { addr });
}

#[test]
fn vm_map_ram_tags() {
    let map = |pfns| Call::Window(WindowCall::VmMapRam { pfns, gfp: KERNEL });
    mapped_and_unmapped(map, |addr| Call::Window(WindowCall::VmUnmapRam { addr, count: 2 }));
}
