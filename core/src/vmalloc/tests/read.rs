use super::*;
use crate::error::RemapError;

#[test]
fn what_no_area_maps_reads_as_zeros_and_nothing_at_all_is_not_read() {
    let m = Machine::new(256);
    let a = patterned(&m, 2 * PAGE_SIZE, KERNEL);
    let b = patterned(&m, PAGE_SIZE, KERNEL);
    assert_eq!(b, page(a, 3));
    let mut buffer = vec![0x77; 5 * PAGE_SIZE];
    assert_eq!(m.window.vread(&m.pages, a, &mut buffer), 5 * PAGE_SIZE);
    assert!((0..2 * PAGE_SIZE).all(|n| buffer[n] == pattern(n)));
    assert!(buffer[2 * PAGE_SIZE..3 * PAGE_SIZE].iter().all(|&byte| byte == 0), "the guard");
    assert!((0..PAGE_SIZE).all(|n| buffer[3 * PAGE_SIZE + n] == pattern(n)));
    assert!(buffer[4 * PAGE_SIZE..].iter().all(|&byte| byte == 0), "the guard after the last one");
    let mut across = [0x77; 4];
    assert_eq!(m.window.vread(&m.pages, at(a, 2 * PAGE_SIZE - 2), &mut across), 4);
    assert_eq!(across, [pattern(2 * PAGE_SIZE - 2), pattern(2 * PAGE_SIZE - 1), 0, 0]);
    for nothing in [page(a, 2), page(a, 5), VirtAddr::NULL, VirtAddr::new(u64::MAX - 1)] {
        assert_eq!(m.window.vread(&m.pages, nothing, &mut across[..2]), 0, "{nothing}");
    }
    assert_eq!(across[0], pattern(2 * PAGE_SIZE - 2), "untouched");
}

#[test]
fn freed_and_given_back_pages_read_as_zeros() {
    let m = Machine::new(256);
    let a = patterned(&m, 3 * PAGE_SIZE, KERNEL);
    m.vrealloc(a, PAGE_SIZE, KERNEL).unwrap();
    let mut buffer = vec![0x77; 2 * PAGE_SIZE];
    assert_eq!(m.window.vread(&m.pages, a, &mut buffer), 2 * PAGE_SIZE);
    assert_eq!((buffer[7], buffer[PAGE_SIZE + 7]), (pattern(7), 0));
    assert_eq!(m.window.vread(&m.pages, page(a, 1), &mut buffer), 2 * PAGE_SIZE, "still a page of the area");
    m.vfree(a).unwrap();
    assert_eq!(m.window.vread(&m.pages, a, &mut buffer), 0);
}

#[test]
fn frames_for_users_stay_within_the_area_whatever_the_numbers_say() {
    let m = Machine::new(256);
    let plain = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
    let a = m.vmalloc_with(3 * PAGE_SIZE, VmFlags::USERMAP).unwrap();
    let frames: Vec<Pfn> = m.frames_behind(a, 3).into_iter().flatten().collect();
    let remap = |addr, offset, size| {
        let mut shown = Vec::new();
        m.window.show_frames(&m.pages, addr, offset, size, |frame| shown.push(frame)).map(|()| shown)
    };
    assert_eq!(remap(a, 0, 3 * PAGE_SIZE), Ok(frames.clone()));
    assert_eq!(remap(a, 1, PAGE_SIZE + 1), Ok(frames[1..].to_vec()));
    for (offset, size) in [(0, 0), (3, 1), (1, 3 * PAGE_SIZE), (u64::MAX, 1), (1 << 52, 1), (0, usize::MAX)] {
        assert_eq!(remap(a, offset, size), Err(RemapError::OutOfBounds { offset, size, pages: 3 }));
    }
    assert_eq!(remap(plain, 0, 1), Err(RemapError::NotForUsers(plain)));
    assert_eq!(remap(page(a, 1), 0, 1), Err(RemapError::NotAnArea(page(a, 1))));
    m.vrealloc(a, 1, KERNEL).unwrap();
    assert_eq!(remap(a, 0, 3 * PAGE_SIZE), Ok(frames), "a user may have them mapped: none was given back");
}

#[test]
fn every_area_is_listed_once_in_order_however_many_there_are() {
    let m = Machine::new(256);
    for count in 0..50 {
        let listed: Vec<VirtAddr> = m.entries().iter().map(|entry| entry.start).collect();
        let expected: Vec<VirtAddr> = (0..count).map(|n| page(m.start(), 2 * n)).collect();
        assert_eq!(listed, expected);
        m.vmalloc(1, KERNEL).unwrap();
    }
}

#[test]
fn an_area_is_found_by_any_of_its_addresses_until_it_is_flushed() {
    let m = Machine::new(256);
    let a = m.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    let found = |addr| m.window.find_vm_area(&m.pages, addr).map(|entry| (entry.start, entry.kind));
    assert_eq!(found(at(a, 5000)), Some((a, AreaKind::Vmalloc)));
    assert_eq!((found(page(a, 2)), found(VirtAddr::NULL)), (None, None), "the guard is no page of the area");
    m.vfree(a).unwrap();
    assert_eq!(found(a), Some((a, AreaKind::Lazy)));
    m.purge();
    assert_eq!(found(a), None);
}
