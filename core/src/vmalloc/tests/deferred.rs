use super::*;
use crate::warn::Warning;

fn free(m: &Machine, addr: VirtAddr) -> Result<(), FreeError> {
    m.window.vfree_atomic(&m.pages, addr)
}

fn drain(m: &Machine) -> u64 {
    m.window.drain_deferred(&m.pages, &m.slab)
}

#[test]
fn an_area_waits_mapped_and_taken_until_somebody_frees_it() {
    let m = Machine::new(256);
    let before = m.ownership();
    let areas: Vec<VirtAddr> = (0..5).map(|_| patterned(&m, PAGE_SIZE, KERNEL)).collect();
    let mapping = m.vmap(&[m.frame()]).unwrap();
    for &addr in areas.iter().chain([&mapping]) {
        free(&m, addr).unwrap();
        assert_eq!(free(&m, addr), Err(FreeError::DoubleFree(addr)));
        assert_eq!(m.vfree(addr), Err(FreeError::DoubleFree(addr)));
    }
    assert!(m.entries().iter().all(|entry| entry.kind == AreaKind::Deferred));
    assert_eq!(m.read(areas[2], 77), pattern(77), "still mapped");
    assert!(m.vmalloc(PAGE_SIZE, KERNEL).is_ok_and(|new| !areas.contains(&new) && m.vfree(new).is_ok()));
    m.check().unwrap();
    assert_eq!((drain(&m), drain(&m)), (6, 0));
    assert_eq!(m.frames_behind(areas[0], 1), [None]);
    m.purge();
    assert!(m.entries().iter().all(|entry| entry.kind == AreaKind::Pooled));
    m.check().unwrap();
    assert_eq!(m.ownership().vmalloc, before.vmalloc);
}

#[test]
fn mistakes_are_named_at_once() {
    let m = Machine::new(256);
    let a = m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    assert_eq!(free(&m, VirtAddr::NULL), Ok(()));
    assert_eq!(free(&m, page(a, 1)), Err(FreeError::Interior { addr: page(a, 1), start: a }));
    assert_eq!(free(&m, page(a, 9)), Err(FreeError::Foreign(page(a, 9))));
    m.vfree(a).unwrap();
    assert_eq!(free(&m, a), Err(FreeError::DoubleFree(a)));
    assert_eq!(drain(&m), 0);
}

#[test]
fn a_caller_that_interrupts_a_holder_of_the_lock_leaves_the_address_and_goes_on() {
    let m = Machine::new(256);
    let a = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    let nothing = page(a, 20);
    {
        let _node = m.window.nodes.of(a.vpn().as_u64()).lock();
        free(&m, a).unwrap();
        free(&m, nothing).unwrap();
        assert_eq!(m.window.noted(a), 1);
        (2..32).for_each(|_| free(&m, a).unwrap());
        assert_eq!(free(&m, a), Err(FreeError::WouldBlock(a)), "no slot is left");
    }
    assert_eq!(m.entries()[0].kind, AreaKind::Vmalloc, "nobody has looked at it yet");
    assert_eq!(drain(&m), 1);
    let warnings = m.platform().warnings.borrow();
    assert_eq!(warnings.len(), 31, "one for the wrong address, one for each free too many");
    assert!(warnings.contains(&Warning::VfreeOfNothing { addr: nothing }));
}
