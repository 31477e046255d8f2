//! The krealloc group.

use super::{G, KERNEL, Kasan};
use kmem::VirtAddr;
use kmem_harness::subject::{Call, Reply};

/// Grown or shrunk, the bytes beyond the new size are not the program's.
fn resized(old: usize, new: usize) {
    let mut k = Kasan::new();
    let addr = k.kmalloc(old);
    let addr = k.krealloc(addr, new);
    k.allows(addr + new as u64 - 1, 1);
    k.oob_right(addr, new, &[0, G]);
    if new < old {
        k.reports(addr + old as u64 - 1, 1);
    }
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn krealloc_more_oob() {
    resized(201, 235);
}

#[test]
fn krealloc_less_oob() {
    resized(235, 201);
}

#[test]
fn krealloc_large_more_oob() {
    resized(8192 + 201, 8192 + 235);
}

#[test]
fn krealloc_large_less_oob() {
    resized(8192 + 235, 8192 + 201);
}

#[test]
fn krealloc_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(201);
    k.kfree(addr);
    let answer = k.call(Call::Krealloc { addr, size: 235, gfp: KERNEL });
    assert_eq!(answer, Reply::Refused(kmem::AllocError::BadAddress(VirtAddr::new(addr))));
    k.reports(addr, 1);
}
