//! The groups of kmalloc: beyond an object, wrong frees, copies, use after free, ksize.

use super::{G, KERNEL, Kasan};
use kmem::{FreeError, Pfn, VirtAddr};
use kmem_harness::subject::{Call, ObjectsCall, Reply, Subject};

#[test]
fn kmalloc_oob_right() {
    let mut k = Kasan::new();
    let size = 128 - G - 5;
    let addr = k.kmalloc(size);
    k.oob_right(addr, size, &[0, 5, G + 5]);
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn kmalloc_oob_left() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(15);
    k.reports(addr - 1, 1);
}

#[test]
fn kmalloc_large_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8192 + 10);
    k.kfree(addr);
    k.reports(addr, 1);
}

#[test]
fn kmalloc_large_invalid_free() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8192 + 10);
    let (inside, start) = (VirtAddr::new(addr + 1), VirtAddr::new(addr));
    assert_eq!(k.kfree(addr + 1), Reply::Rejected(FreeError::Interior { addr: inside, start }));
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn kmalloc_double_kzfree() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(16);
    assert_eq!(k.call(Call::KfreeSensitive { addr }), Reply::Done);
    assert_eq!(k.call(Call::KfreeSensitive { addr }), Reply::Rejected(FreeError::DoubleFree(VirtAddr::new(addr))));
}

#[test]
fn kmalloc_uaf2() {
    let mut k = Kasan::new();
    let first = k.kmalloc(43);
    let second = k.kmalloc(43);
    k.kfree(first);
    k.reports(first + 40, 1);
    assert_ne!(first, second, "a live block is not given again");
    k.allows(second + 40, 1);
}

#[test]
fn ksize_unpoisons() {
    let mut k = Kasan::new();
    let size = 128 - G - 5;
    let addr = k.kmalloc(size);
    let Reply::Size(real) = k.call(Call::Ksize { addr }) else { panic!("a live block has a size") };
    assert!(real > size);
    k.reports(addr + size as u64, 1);
    k.reports(addr + real as u64 - 1, 1);
}

#[test]
fn ksize_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(128 - G);
    k.kfree(addr);
    assert!(matches!(k.call(Call::Ksize { addr }), Reply::Rejected(FreeError::DoubleFree(_))));
    k.reports(addr, 1);
}

/// Allocates on node 0 and looks at the byte behind what was asked for.
fn node_oob_right(size: usize) {
    let mut k = Kasan::new();
    let addr = k.object(ObjectsCall::KmallocNode { size, gfp: KERNEL, node: 0 });
    k.oob_right(addr, size, &[0]);
    assert_eq!(k.kfree(addr), Reply::Done);
}

fn plain_oob_right(size: usize) {
    let mut k = Kasan::new();
    let addr = k.kmalloc(size);
    k.oob_right(addr, size, &[0]);
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn kmalloc_node_oob_right() {
    node_oob_right(4096);
}

/// Linux has calls of their own that pass the caller's place on; here every call knows it.
#[test]
fn kmalloc_track_caller_oob_right() {
    plain_oob_right(128 - G);
    node_oob_right(128 - G);
}

#[test]
fn kmalloc_big_oob_right() {
    plain_oob_right(8192 - 256);
}

#[test]
fn kmalloc_large_oob_right() {
    plain_oob_right(8192 + 10);
}

#[test]
fn kfree_via_page() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8);
    let kmem = k.subject.kmem();
    let frame = kmem.virt_to_pfn(VirtAddr::new(addr)).unwrap();
    let back = kmem.page_address(frame).as_u64() + addr % 4096;
    assert_eq!(back, addr);
    assert_eq!(k.kfree(back), Reply::Done);
    assert_eq!(k.subject.kmem().audit(), Ok(()));
}

/// The physical address is that of the processor's own walk.
#[test]
fn kfree_via_phys() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8);
    let phys = k.subject.translate(addr).unwrap();
    let frame = Pfn::new((phys / 4096) as u32);
    let back = k.subject.kmem().page_address(frame).as_u64() + phys % 4096;
    assert_eq!(back, addr);
    assert_eq!(k.kfree(back), Reply::Done);
    assert_eq!(k.subject.kmem().audit(), Ok(()));
}

#[test]
fn kmalloc_oob_16() {
    let mut k = Kasan::new();
    let (short, whole) = (k.kmalloc(16 - 3), k.kmalloc(16));
    k.allows(whole, 16);
    k.reports(short, 16);
}

#[test]
fn kmalloc_uaf_16() {
    let mut k = Kasan::new();
    let (to, from) = (k.kmalloc(16), k.kmalloc(16));
    k.kfree(from);
    k.allows(to, 16);
    k.reports(from, 16);
}

#[test]
fn kmalloc_oob_in_memset() {
    let mut k = Kasan::new();
    let size = 128 - G;
    let addr = k.kmalloc(size);
    k.allows(addr, size);
    k.reports(addr, size + G);
}

/// The last `len` bytes may be set, and no byte more.
fn oob_memset(len: usize) {
    let mut k = Kasan::new();
    let size = 128 - G;
    let addr = k.kmalloc(size);
    k.allows(addr + (size - len) as u64, len);
    k.reports(addr + (size + 1 - len) as u64, len);
}

#[test]
fn kmalloc_oob_memset_2() {
    oob_memset(2);
}

#[test]
fn kmalloc_oob_memset_4() {
    oob_memset(4);
}

#[test]
fn kmalloc_oob_memset_8() {
    oob_memset(8);
}

#[test]
fn kmalloc_oob_memset_16() {
    oob_memset(16);
}

#[test]
fn kmalloc_memmove_negative_size() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(64);
    k.reports(addr + 4, (-2isize) as usize);
}

#[test]
fn kmalloc_memmove_invalid_size() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(64);
    k.allows(addr + 4, 60);
    k.reports(addr + 4, 64);
}

/// What was the program's is not any more.
fn uaf(size: usize, at: u64, len: usize) {
    let mut k = Kasan::new();
    let addr = k.kmalloc(size);
    k.allows(addr + at, len);
    k.kfree(addr);
    k.reports(addr + at, len);
}

#[test]
fn kmalloc_uaf() {
    uaf(10, 8, 1);
}

#[test]
fn kmalloc_uaf_memset() {
    uaf(33, 0, 33);
}

#[test]
fn kmalloc_uaf3() {
    uaf(100, 8, 1);
}

/// An atomic operation is a load and a store of 4 or 8 bytes.
#[test]
fn kasan_atomics() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(48);
    for len in [4, 8] {
        k.allows(addr + 48 - len as u64, len);
        k.reports(addr + 48, len);
    }
    k.reports(addr + 48 - 4, 8);
}
