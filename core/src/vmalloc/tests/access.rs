use super::*;

#[test]
fn areas_are_shown_in_address_order_with_their_kind() {
    let m = Machine::new(512);
    let a = m.vmalloc(5000, KERNEL).unwrap();
    let b = m.vmap(&[m.frame()]).unwrap();
    let c = m.vmalloc(1, KERNEL).unwrap();
    m.vfree(a).unwrap();
    let shown: Vec<_> = m.entries().iter().map(|e| (e.start, e.kind, e.mapped.get(), e.requested)).collect();
    let expected = [(a, AreaKind::Lazy, 2, 0), (b, AreaKind::Vmap, 1, PAGE_SIZE), (c, AreaKind::Vmalloc, 1, 1)];
    assert_eq!(shown, expected);
    assert_eq!(m.window.size_of(&m.pages, a), Err(FreeError::DoubleFree(a)));
    assert_eq!(m.window.size_of(&m.pages, c), Ok(PAGE_SIZE));
}

#[test]
fn copies_cross_pages_and_windows_at_any_offset() {
    let m = Machine::new(64);
    // Backwards, so that pages side by side here are not side by side in memory.
    let mut frames = [m.frame(), m.frame(), m.frame()];
    frames.sort_by(|a, b| b.cmp(a));
    let from = m.vmap(&frames).unwrap();
    (0..3 * PAGE_SIZE).for_each(|n| m.write(from, n, pattern(n)));
    let to = m.vmalloc(3 * PAGE_SIZE, KERNEL).unwrap();
    let direct = m.pages.base.virt(m.frame().addr());
    let len = PAGE_SIZE + 100;
    assert!(m.window.copy(&m.pages, at(from, 4000), at(to, 77), len));
    assert!((0..len).all(|n| m.read(to, 77 + n) == pattern(4000 + n)));
    assert!(m.window.copy(&m.pages, at(to, 77), direct, PAGE_SIZE));
    assert!((0..PAGE_SIZE).all(|n| m.read(direct, n) == pattern(4000 + n)));
    assert!(m.window.wipe(&m.pages, at(to, 78), len - 2));
    assert_eq!((m.read(to, 77), m.read(to, 77 + len - 1)), (pattern(4000), pattern(4000 + len - 1)));
    assert!((1..len - 1).all(|n| m.read(to, 77 + n) == 0));
    assert!(!m.window.zero(&m.pages, to, 3 * PAGE_SIZE + 1), "the guard is not mapped");
}
