//! The hosted platform on this process.

use super::*;
use crate::addr::Pfn;
use crate::{AllocError, GfpFlags, Order, VmFlags};
use allocator_api2::boxed::Box as BoxIn;
use allocator_api2::vec::Vec as VecIn;
use std::vec::Vec;

const MIB: usize = 1 << 20;
const KERNEL: GfpFlags = GfpFlags::KERNEL;

fn hosted(memory: usize) -> Hosted {
    Hosted::new(&HostConfig::new(memory)).unwrap()
}

/// Reads and writes of the program, not of the allocator.
fn bytes<'a>(addr: VirtAddr, len: usize) -> &'a mut [u8] {
    sys::program_bytes(addr.as_u64() as usize, len)
}

/// What `/proc/self/maps` has of a range of addresses: start, end, whether it can be read.
fn mappings_of(from: usize, to: usize) -> Vec<(usize, usize, bool)> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        Some((number(start), number(end), rest.starts_with('r')))
    };
    maps.lines().filter_map(line).filter(|(start, end, _)| *start < to && from < *end).collect()
}

fn window_of(hosted: &Hosted) -> (usize, usize) {
    let kmem = hosted.enter();
    let geometry = kmem.geometry();
    (geometry.vmalloc_start.as_u64() as usize, geometry.vmalloc_end().as_u64() as usize)
}

#[test]
fn an_area_shows_the_frames_that_the_direct_map_has() {
    let hosted = hosted(64 * MIB);
    let kmem = hosted.enter();
    let area = kmem.vzalloc(3 * PAGE_SIZE + 1, KERNEL).unwrap();
    for page in 0..4 {
        let addr = VirtAddr::new(area.as_u64() + (page * PAGE_SIZE) as u64);
        assert!(bytes(addr, PAGE_SIZE).iter().all(|&byte| byte == 0));
        bytes(addr, PAGE_SIZE).fill(page as u8 + 1);
        let frame = kmem.vmalloc_to_page(addr).unwrap();
        let direct = VirtAddr::new(kmem.geometry().direct_map.as_u64() + frame.addr().as_u64());
        assert!(bytes(direct, PAGE_SIZE).iter().all(|&byte| byte == page as u8 + 1), "page {page}");
    }
    kmem.vfree(area).unwrap();
    kmem.vm_unmap_aliases();
    assert_eq!(kmem.audit(), Ok(()));
}

#[test]
fn guards_and_freed_areas_cannot_be_read_after_the_flush() {
    let hosted = hosted(64 * MIB);
    let kmem = hosted.enter();
    let area = kmem.vmalloc(2 * PAGE_SIZE, KERNEL).unwrap().as_u64() as usize;
    let readable = |from: usize, to: usize| mappings_of(from, to).iter().any(|(_, _, readable)| *readable);
    assert!(readable(area, area + 2 * PAGE_SIZE));
    assert!(!readable(area + 2 * PAGE_SIZE, area + 3 * PAGE_SIZE), "the guard");
    kmem.vfree(VirtAddr::new(area as u64)).unwrap();
    assert!(readable(area, area + 1), "freed lazily");
    kmem.vm_unmap_aliases();
    assert!(!readable(area, area + 2 * PAGE_SIZE));
}

#[test]
fn what_is_counted_is_what_the_host_has() {
    let hosted = hosted(64 * MIB);
    let (from, to) = window_of(&hosted);
    let kmem = hosted.enter();
    let check = |what: &str| {
        let found = mappings_of(from, to).len();
        let window = kmem.platform().window().unwrap();
        assert_eq!((window.counts().mappings, window.recount()), (found, found), "{what}");
    };
    check("at first");
    let areas: Vec<VirtAddr> = (1..40).map(|n| kmem.vmalloc(n * 5000, KERNEL).unwrap()).collect();
    check("with areas");
    for area in areas.iter().step_by(2) {
        kmem.vfree(*area).unwrap();
    }
    check("freed lazily");
    kmem.vm_unmap_aliases();
    check("half of them purged");
    // Scattered frames: nothing can be merged.
    let pages: Vec<Pfn> = (0..64).map(|_| kmem.alloc_pages(Order::ZERO, KERNEL).unwrap()).collect();
    let odd: Vec<Pfn> = pages.iter().copied().step_by(2).collect();
    let shown = kmem.vmap(&odd, VmFlags::empty(), KERNEL).unwrap();
    check("with scattered pages");
    let ram = kmem.vm_map_ram(&odd[..5], KERNEL).unwrap();
    let more = kmem.vm_map_ram(&pages[..7], KERNEL).unwrap();
    check("with mappings for a short time");
    bytes(ram, PAGE_SIZE)[9] = 77;
    assert_eq!((bytes(shown, PAGE_SIZE)[9], bytes(more, PAGE_SIZE)[9]), (77, 77), "one frame at three addresses");
    kmem.vm_unmap_ram(ram, 5).unwrap();
    kmem.vunmap(shown).unwrap();
    kmem.vm_unmap_aliases();
    check("some unmapped");
    kmem.vm_unmap_ram(more, 7).unwrap();
    areas.iter().skip(1).step_by(2).for_each(|area| kmem.vfree(*area).unwrap());
    pages.iter().for_each(|page| kmem.free_pages(*page, Order::ZERO).unwrap());
    kmem.reclaim();
    check("all gone");
    assert_eq!(kmem.platform().counts().mappings, 1);
    assert_eq!(kmem.audit(), Ok(()));
}

#[test]
fn the_limit_on_mappings_is_a_typed_refusal_and_long_before_the_hosts_own() {
    let hosted = hosted(64 * MIB);
    assert!(hosted.host_counts().limit <= sys::most_mappings() / 2);
    hosted.set_mapping_limit(9);
    let kmem = hosted.enter();
    let pages: Vec<Pfn> = (0..64).map(|_| kmem.alloc_pages(Order::ZERO, KERNEL).unwrap()).collect();
    let odd: Vec<Pfn> = pages.iter().copied().step_by(2).collect();
    let before = kmem.meminfo();
    assert_eq!(kmem.vmap(&odd, VmFlags::empty(), KERNEL), Err(AllocError::HostRefused { pages: PageCount::new(32) }));
    let counts = hosted.host_counts();
    assert!(counts.refused > 0 && counts.mappings <= counts.limit, "{counts:?}");
    assert_eq!(kmem.platform().window().unwrap().recount(), counts.mappings);
    kmem.reclaim();
    assert_eq!(kmem.meminfo().vmalloc, before.vmalloc);
    // One run, and what was refused is served once the areas in the way are gone.
    let areas: Vec<VirtAddr> = (0..4).map(|_| kmem.vmalloc(8 * PAGE_SIZE, KERNEL).unwrap()).collect();
    assert!(kmem.vmap(&odd[..3], VmFlags::empty(), KERNEL).is_err());
    areas.iter().for_each(|area| kmem.vfree(*area).unwrap());
    kmem.vmap(&odd[..3], VmFlags::empty(), KERNEL).unwrap();
    assert_eq!(kmem.audit(), Ok(()));
}

#[test]
fn more_memory_comes_when_what_there_was_is_used_up() {
    let hosted = hosted(256 * MIB);
    let kmem = hosted.enter();
    assert_eq!(kmem.meminfo().managed, BOOT_PAGES);
    let mut blocks = Vec::new();
    while let Ok(block) = kmem.kmalloc(4 * MIB, KERNEL) {
        blocks.push(block);
    }
    assert_eq!(kmem.meminfo().managed as usize, 256 * MIB / PAGE_SIZE);
    assert!(blocks.len() >= 62, "{} of 64 blocks", blocks.len());
    assert_eq!(kmem.audit(), Ok(()));
    blocks.iter().for_each(|block| kmem.kfree(*block).unwrap());
    let whole = kmem.vmalloc(240 * MIB, KERNEL).unwrap();
    kmem.vfree(whole).unwrap();
    kmem.reclaim();
    assert_eq!(kmem.audit(), Ok(()));
}

#[test]
fn free_memory_goes_back_to_the_host_and_comes_again() {
    let hosted = hosted(128 * MIB);
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = format!("{:x}-", hosted.enter().geometry().direct_map.as_u64());
        let direct = status.split_once(&from).unwrap().1;
        let line = direct.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    };
    let block = |byte| {
        let area = hosted.enter().kmalloc(4 * MIB, KERNEL).unwrap();
        bytes(area, 4 * MIB).fill(byte);
        area
    };
    let blocks: Vec<VirtAddr> = (0..16).map(|n| block(n + 1)).collect();
    assert!(resident() >= 64 * MIB);
    blocks.iter().for_each(|block| hosted.enter().kfree(*block).unwrap());
    assert!(hosted.trim() as usize * PAGE_SIZE >= 56 * MIB);
    assert!(resident() < 8 * MIB, "{} bytes", resident());
    assert_eq!(hosted.trim(), 0, "each block once");
    let again = block(9);
    assert!(bytes(again, 4 * MIB).iter().all(|&byte| byte == 9));
    hosted.enter().kfree(again).unwrap();
}

#[test]
fn a_vec_that_grows_is_remapped_and_not_copied() {
    let hosted = hosted(512 * MIB);
    let mut vec: VecIn<u64, Vmalloc<'_>> = VecIn::new_in(Vmalloc(&hosted));
    vec.resize(MIB, 1);
    let first = |vec: &VecIn<u64, Vmalloc<'_>>| {
        let kmem = hosted.enter();
        kmem.vmalloc_to_page(VirtAddr::new(vec.as_ptr() as u64)).unwrap()
    };
    let (frame, mut moves) = (first(&vec), 0);
    for round in 0..4 {
        // Whatever lies behind the block, it has to go elsewhere.
        let _behind = hosted.enter().vmalloc(PAGE_SIZE, KERNEL).unwrap();
        let before = vec.as_ptr();
        vec.reserve_exact(vec.len() + MIB);
        moves += u32::from(vec.as_ptr() != before);
        assert_eq!(first(&vec), frame, "round {round}: the same page is behind the first element");
        vec.resize(vec.len() + MIB, round + 2);
    }
    assert!(moves > 0);
    let counts = hosted.host_counts();
    assert!(counts.moved_pages >= 2048, "no page fault is had twice: {counts:?}");
    assert!((0..5).all(|n| vec[n * MIB..(n + 1) * MIB].iter().all(|&word| word == n as u64 + 1)));
    drop(vec);
    hosted.enter().vm_unmap_aliases();
    assert_eq!(hosted.enter().audit(), Ok(()));
}

#[test]
fn a_vec_starts_contiguous_and_becomes_an_area() {
    let hosted = hosted(256 * MIB);
    let mut vec: VecIn<u32, KVmalloc<'_>> = VecIn::new_in(KVmalloc(&hosted));
    let is_area = |vec: &VecIn<u32, KVmalloc<'_>>| hosted.enter().is_vmalloc_addr(VirtAddr::new(vec.as_ptr() as u64));
    vec.extend(0..1000);
    assert!(!is_area(&vec));
    vec.extend(1000..4_000_000);
    assert!(is_area(&vec));
    assert!(vec.iter().copied().eq(0..4_000_000));
    vec.truncate(10);
    vec.shrink_to_fit();
    assert!(vec.iter().copied().eq(0..10));
}

#[test]
fn collections_live_in_an_allocator_and_leave_nothing_behind() {
    let hosted = hosted(256 * MIB);
    hosted.enter().reclaim();
    let before = hosted.enter().meminfo();
    {
        let mut map = hashbrown::HashMap::<u64, BoxIn<[u8; 96], Kmalloc<'_>>, _, _>::with_hasher_in(
            hashbrown::DefaultHashBuilder::default(),
            KVmalloc(&hosted),
        );
        for n in 0..50_000_u64 {
            map.insert(n, BoxIn::new_in([n as u8; 96], Kmalloc(&hosted)));
        }
        map.retain(|n, _| n % 3 == 0);
        assert!(map.iter().all(|(n, bytes)| bytes.iter().all(|byte| *byte == *n as u8)));
        assert_eq!(map.len(), 16_667);
    }
    hosted.enter().reclaim();
    let after = hosted.enter().meminfo();
    assert_eq!((after.slab, after.vmalloc, after.large_kmalloc), (before.slab, before.vmalloc, before.large_kmalloc));
    assert_eq!(hosted.enter().audit(), Ok(()));
}

#[test]
fn blocks_have_the_alignment_of_their_layout_and_zeros_where_promised() {
    use allocator_api2::alloc::{Allocator, Layout};
    fn check(allocator: &impl Allocator, sizes: &[usize], aligns: &[usize]) {
        for &size in sizes {
            for &align in aligns {
                let layout = Layout::from_size_align(size, align).unwrap();
                let block = allocator.allocate_zeroed(layout).unwrap();
                let at = block.cast::<u8>().as_ptr() as usize;
                assert_eq!(at % align, 0, "{size} bytes at {align}");
                if size > 0 {
                    assert!(bytes(VirtAddr::new(at as u64), size).iter().all(|&byte| byte == 0));
                    bytes(VirtAddr::new(at as u64), size).fill(0xa5);
                }
                let grown = Layout::from_size_align(size * 3 + 1, align).unwrap();
                let block = sys::grow_zeroed(allocator, block.cast(), layout, grown);
                let at = block.cast::<u8>().as_ptr() as usize;
                assert_eq!(at % align, 0, "{size} bytes at {align}, grown");
                let all = bytes(VirtAddr::new(at as u64), grown.size());
                assert!(all[..size].iter().all(|&byte| byte == 0xa5) && all[size..].iter().all(|&byte| byte == 0));
                sys::give_back(allocator, block.cast(), grown);
            }
        }
    }
    let hosted = hosted(256 * MIB);
    let aligns = [1, 8, 16, 64, 256, 4096, 16384];
    check(&Kmalloc(&hosted), &[0, 1, 24, 72, 200, 3000, 5000, 70_000], &aligns);
    check(&Vmalloc(&hosted), &[0, 1, 5000, 70_000, 2 << 20], &aligns);
    check(&KVmalloc(&hosted), &[0, 1, 24, 5000, 70_000, 2 << 20], &aligns);
    hosted.enter().reclaim();
    assert_eq!(hosted.enter().audit(), Ok(()));
}

#[test]
fn threads_exchange_blocks_of_all_kinds_while_another_gives_memory_back() {
    use std::sync::mpsc;
    let hosted = hosted(512 * MIB);
    hosted.enter().reclaim();
    let before = hosted.enter().meminfo();
    std::thread::scope(|scope| {
        let hosted = &hosted;
        let mut rings = Vec::new();
        let threads = 6_usize;
        let channels: Vec<_> = (0..threads).map(|_| mpsc::sync_channel::<(VirtAddr, usize, u8)>(64)).collect();
        let (gives, takes): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        for (n, take) in takes.into_iter().enumerate() {
            let give = gives[(n + 1) % threads].clone();
            rings.push(scope.spawn(move || {
                for round in 0..3000_usize {
                    let size = match round % 97 {
                        0 => 5 * MIB,
                        1..=3 => 9000 * (1 + n),
                        _ => 8 << (round % 9),
                    };
                    let block = hosted.enter().kvmalloc(size, KERNEL).unwrap();
                    let mark = (round * threads + n) as u8;
                    bytes(block, size.min(5000)).fill(mark);
                    if give.try_send((block, size, mark)).is_err() {
                        check_and_free(hosted, (block, size, mark));
                    }
                    take.try_iter().for_each(|sent| check_and_free(hosted, sent));
                }
                drop(give);
                take
            }));
        }
        drop(gives);
        for _ in 0..20 {
            hosted.trim();
        }
        let takes: Vec<_> = rings.into_iter().map(|ring| ring.join().unwrap()).collect();
        takes.iter().for_each(|take| take.try_iter().for_each(|sent| check_and_free(hosted, sent)));
    });
    hosted.enter().reclaim();
    let after = hosted.enter().meminfo();
    assert_eq!((after.slab, after.vmalloc, after.large_kmalloc), (before.slab, before.vmalloc, before.large_kmalloc));
    assert_eq!(hosted.enter().audit(), Ok(()));
}

fn check_and_free(hosted: &Hosted, (block, size, mark): (VirtAddr, usize, u8)) {
    assert!(bytes(block, size.min(5000)).iter().all(|&byte| byte == mark), "somebody else wrote the block");
    hosted.enter().kvfree(block).unwrap();
}

#[test]
fn too_much_is_refused_with_the_reason() {
    assert_eq!(Hosted::new(&HostConfig::new(usize::MAX)).unwrap_err(), HostError::TooLarge { bytes: usize::MAX });
    let config = HostConfig { window: 1 << 46, ..HostConfig::new(64 * MIB) };
    assert!(matches!(
        Hosted::new(&config),
        Err(HostError::Addresses { .. } | HostError::Memory { .. } | HostError::TooLarge { .. })
    ));
}

#[test]
fn an_access_that_faults_says_where() {
    let hosted = hosted(64 * MIB);
    let area = hosted.enter().vzalloc(2 * PAGE_SIZE, KERNEL).unwrap().as_u64();
    let mut memory = NoFault::new().unwrap();
    let end = area + 2 * PAGE_SIZE as u64;
    let pattern: Vec<u8> = (0..=255).cycle().take(2 * PAGE_SIZE).collect();
    assert_eq!(sys::write_nofault(&mut memory, area, &pattern), Ok(()));
    let mut read = std::vec![0; 2 * PAGE_SIZE];
    assert_eq!(memory.read(area, &mut read), Ok(()));
    assert!(read == pattern);
    for (len, at) in [(1, end), (2 * PAGE_SIZE, end - 5), (PAGE_SIZE, end)] {
        let fault = Err(at.max(end));
        assert_eq!(memory.read(at, &mut read[..len]), fault, "{len} bytes");
        assert_eq!(sys::write_nofault(&mut memory, at, &pattern[..len]), fault, "{len} bytes");
    }
    assert_eq!(memory.read(area, &mut read[..8]), Ok(()), "nothing is left in the pipe");
    assert_eq!(read[..8], pattern[..8]);
    assert_eq!(memory.read(16, &mut read[..8]), Err(16));
}

#[test]
fn an_allocator_goes_to_another_thread_and_dies_there() {
    let shared = std::sync::Arc::new(hosted(64 * MIB));
    let block = shared.enter().kmalloc(100, KERNEL).unwrap();
    let other = std::sync::Arc::clone(&shared);
    let freed = std::thread::spawn(move || other.enter().kfree(block)).join().unwrap();
    assert_eq!((freed, shared.enter().audit()), (Ok(()), Ok(())));
    std::thread::spawn(move || drop(shared)).join().unwrap();
}

#[test]
fn a_forks_child_finds_no_call_of_another_thread_half_done() {
    static ALLOCATOR: KmemAlloc = KmemAlloc::new();
    let stop = AtomicBool::new(false);
    let pair = |size| {
        let block = ALLOCATOR.allocate(size, 8, false).unwrap();
        ALLOCATOR.free(block.as_ptr());
    };
    pair(64);
    let content = std::thread::scope(|scope| {
        for thread in 0..3 {
            let (stop, pair) = (&stop, &pair);
            // 64 and 192 have a mark in the liveness map, 96 and 16 have none.
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    [64, 192, 96, 16].iter().for_each(|size| pair(size - thread))
                }
            });
        }
        let child = || {
            let audit = ALLOCATOR.audit();
            pair(64);
            audit == Ok(()) && ALLOCATOR.audit() == Ok(())
        };
        let content = (0..30).all(|_| sys::ask_child(child));
        stop.store(true, Ordering::Relaxed);
        content
    });
    assert!(content);
    assert_eq!(ALLOCATOR.audit(), Ok(()));
}

#[test]
fn what_is_mapped_between_ranges_that_wait_for_the_flush_stays_mapped() {
    let hosted = hosted(64 * MIB);
    let kmem = hosted.enter();
    let (window, start) = (kmem.platform().window().unwrap(), kmem.geometry().vmalloc_start.vpn());
    let page = |n: u64| start.checked_add(n).unwrap();
    let mut memory = NoFault::new().unwrap();
    let mut is_shown = |n: u64| memory.read(page(n).addr().as_u64(), &mut [0]).is_ok();
    assert!(window.map(page(0), Pfn::new(7), 1) && window.map(page(3), Pfn::new(8), 1));
    window.unmap(page(0), 1);
    window.unmap(page(3), 1);
    // Another thread gets what lies between, before the one that unmaps has flushed.
    assert!(window.map(page(1), Pfn::new(9), 1));
    window.flush();
    assert_eq!([0, 1, 2, 3].map(&mut is_shown), [false, true, false, false]);
    assert_eq!(window.counts().mappings, window.recount());
    window.unmap(page(1), 1);
    window.flush();
    assert!(!is_shown(1));
}
