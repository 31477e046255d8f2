//! `kmalloc`, `krealloc`, `ksize`, `kmalloc_size_roundup`: section 2.2 to 2.4 row by row.

use super::Machine;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::buddy::OwnerClass;
use crate::error::{AllocError, BlockKind, FreeError};
use crate::geometry::ZoneKind;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use crate::testing::{self, Rng};

const ZEROED: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::ZERO);

#[test]
fn each_request_gets_its_class_and_its_alignment() {
    let m = Machine::with_cpus(1);
    let classes = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
    let mut from = 1;
    for class in classes {
        for size in [from, class] {
            let addr = m.kmalloc(size);
            assert_eq!(m.slab.ksize(&m.pages, addr), Ok(class), "{size} bytes");
            assert!(addr.is_aligned((class & class.wrapping_neg()) as u64), "{size} bytes at {addr}");
            m.kfree(addr).unwrap();
        }
        from = class + 1;
    }
    m.check();
}

#[test]
fn large_requests_get_whole_blocks_up_to_the_largest_order() {
    let m = Machine::with_cpus(1);
    for (size, order) in [(8193, 2), (16384, 2), (16385, 3), (1 << 20, 8)] {
        let addr = m.kmalloc(size);
        assert_eq!(m.slab.ksize(&m.pages, addr), Ok(PAGE_SIZE << order), "{size} bytes");
        assert_eq!(m.pages.owned(OwnerClass::LargeKmalloc), 1 << order);
        m.kfree(addr).unwrap();
        assert_eq!(m.pages.owned(OwnerClass::LargeKmalloc), 0);
    }
    let limit = 4 << 20;
    for requested in [limit + 1, usize::MAX] {
        assert_eq!(m.try_kmalloc(requested), Err(AllocError::TooLarge { requested, limit }));
    }
    m.check();
}

#[test]
fn a_trimmed_block_has_the_pages_that_were_asked_for() {
    let mut geometry = testing::flat(4096);
    geometry.trim_large = true;
    let m = Machine::new(&geometry);
    let owned = || m.pages.owned(OwnerClass::LargeKmalloc);
    for pages in [3, 4, 5, 7, 9, 100, 512] {
        let addr = m.kmalloc(pages * PAGE_SIZE - 1);
        let size = pages * PAGE_SIZE;
        assert_eq!((m.slab.ksize(&m.pages, addr), owned()), (Ok(size), pages as u64));
        assert_eq!(m.slab.size_roundup(size - 1, true), size);
        assert!(addr.as_u64().is_multiple_of((size.next_power_of_two()) as u64), "aligned as the whole block");
        assert_eq!(m.slab.krealloc(&m.pages, addr, size, GfpFlags::KERNEL), Ok(addr));
        m.kfree(addr).unwrap();
        assert!(m.kfree(addr).is_err());
        assert_eq!(owned(), 0);
        m.check();
    }
}

#[test]
fn a_large_block_takes_what_is_free_behind_it() {
    for trimmed in [false, true] {
        let mut geometry = testing::flat(4096);
        geometry.trim_large = trimmed;
        let m = Machine::new(&geometry);
        let owned = || m.pages.owned(OwnerClass::LargeKmalloc);
        let grow = |addr, pages: usize| m.slab.krealloc(&m.pages, addr, pages * PAGE_SIZE, ZEROED).unwrap();
        let addr = m.slab.kmalloc(&m.pages, 64 << 10, ZEROED).unwrap();
        m.fill(addr, 64 << 10, 0x55);
        let lower = addr.as_u64().is_multiple_of(256 << 10);
        assert!(lower, "the first block of a split one");
        let size = if trimmed { 20 } else { 32 };
        assert_eq!((grow(addr, 20), owned()), (addr, size));
        assert_eq!(m.slab.ksize(&m.pages, addr), Ok(size as usize * PAGE_SIZE));
        assert_eq!(grow(addr, 64), addr);
        let bytes = |at: usize, len| m.bytes(VirtAddr::new(addr.as_u64() + at as u64), len);
        assert!(bytes(0, 64 << 10).iter().all(|&byte| byte == 0x55), "what there was");
        assert!(bytes(64 << 10, 192 << 10).iter().all(|&byte| byte == 0), "and nothing else");
        assert_eq!(m.pages.base.platform.count(Event::ReallocGrown), 2);
        m.check();
        let behind = m.kmalloc(256 << 10);
        assert_eq!(behind.as_u64(), addr.as_u64() + (256 << 10));
        assert!(!m.slab.krealloc_in_place(&m.pages, addr, 65 * PAGE_SIZE, GfpFlags::KERNEL), "somebody has it");
        assert!(!m.slab.krealloc_in_place(&m.pages, behind, 65 * PAGE_SIZE, GfpFlags::KERNEL), "the upper buddy");
        let moved = grow(addr, 65);
        assert_ne!(moved, addr);
        [moved, behind].into_iter().for_each(|block| m.kfree(block).unwrap());
        assert_eq!(owned(), 0);
        m.check();
    }
}

#[test]
fn a_block_with_room_grows_there_and_reserves_nothing() {
    let mut geometry = testing::flat(4096);
    geometry.trim_large = true;
    let m = Machine::new(&geometry);
    let with_room = |size, room| m.slab.kmalloc_with_room(&m.pages, (size, room), GfpFlags::KERNEL).unwrap();
    let addr = with_room(4096, 64 << 10);
    assert_eq!((m.pages.owned(OwnerClass::LargeKmalloc), m.slab.ksize(&m.pages, addr)), (1, Ok(4096)));
    for pages in [2, 3, 8, 16] {
        assert_eq!(m.slab.krealloc(&m.pages, addr, pages * PAGE_SIZE, GfpFlags::KERNEL), Ok(addr));
        m.check();
    }
    let all = m.pages.owned(OwnerClass::Free) as usize;
    m.kfree(addr).unwrap();
    assert_eq!(m.pages.owned(OwnerClass::Free) as usize, all + 16);
    let large = with_room(5000, usize::MAX);
    assert_eq!(m.slab.ksize(&m.pages, large), Ok(8192), "no block is so large: a class");
    m.check();
}

#[test]
fn blocks_that_grow_and_shrink_at_random_keep_their_contents_and_the_books() {
    for trimmed in [false, true] {
        let mut geometry = testing::flat(1024);
        geometry.trim_large = trimmed;
        let m = Machine::new(&geometry);
        let (mut rng, mut live) = (Rng::new(3), std::vec::Vec::<(VirtAddr, usize, u8)>::new());
        for step in 0..20_000_usize {
            let most = [9000, 70_000, 400_000][rng.below(3)];
            let (size, byte) = (1 + rng.below(most), step as u8);
            let fresh = live.len() < 12 && rng.below(3) == 0;
            let (addr, size) = if live.is_empty() || fresh {
                let Ok(addr) = m.slab.kmalloc_with_room(&m.pages, (size, 4 * size), GfpFlags::KERNEL) else { continue };
                (addr, size)
            } else {
                let (addr, had, byte) = live.swap_remove(rng.below(live.len()));
                let size = if rng.below(2) == 0 { had + size } else { size };
                let resized = m.slab.krealloc(&m.pages, addr, size, GfpFlags::KERNEL);
                let at = resized.unwrap_or(addr);
                assert!(m.bytes(at, had.min(size)).iter().all(|&found| found == byte), "step {step}");
                if resized.is_err() || rng.below(4) == 0 {
                    m.kfree(at).unwrap();
                    continue;
                }
                (at, size)
            };
            m.fill(addr, size, byte);
            live.push((addr, size, byte));
            if step % 64 == 0 {
                m.check();
            }
        }
        assert!(m.pages.base.platform.count(Event::ReallocGrown) > 100);
        live.into_iter().for_each(|(addr, ..)| m.kfree(addr).unwrap());
        assert_eq!(m.pages.owned(OwnerClass::LargeKmalloc), 0);
        m.check();
    }
}

#[test]
fn a_machine_with_small_blocks_refuses_what_fits_none() {
    let mut geometry = testing::flat(64);
    (geometry.max_order, geometry.pageblock_order) = (Order::ZERO, Order::ZERO);
    let m = Machine::new(&geometry);
    assert!(m.try_kmalloc(4096).is_ok());
    for requested in [4097, 8192, 8193] {
        assert_eq!(m.try_kmalloc(requested), Err(AllocError::TooLarge { requested, limit: 4096 }));
        assert_eq!(m.slab.size_roundup(requested, false), requested);
    }
}

#[test]
fn zero_size_and_null_are_no_memory() {
    let m = Machine::with_cpus(1);
    assert_eq!(m.try_kmalloc(0), Ok(VirtAddr::ZERO_SIZE));
    for addr in [VirtAddr::NULL, VirtAddr::ZERO_SIZE] {
        assert_eq!(m.kfree(addr), Ok(()));
        assert_eq!(m.slab.ksize(&m.pages, addr), Ok(0));
    }
}

#[test]
fn sizes_are_rounded_up_as_linux_does() {
    let m = Machine::with_cpus(1);
    let rows = [(0, 0), (1, 8), (65, 96), (193, 256), (8192, 8192), (8193, 16384), (4 << 20, 4 << 20)];
    for (size, rounded) in rows.into_iter().chain([((4 << 20) + 1, (4 << 20) + 1), (usize::MAX, usize::MAX)]) {
        assert_eq!(m.slab.size_roundup(size, false), rounded, "{size} bytes");
    }
}

#[test]
fn zeroed_memory_is_zero_over_the_whole_object_after_reuse() {
    let m = Machine::with_cpus(1);
    for size in [5, 64, 100, 8000, 20000] {
        let addr = m.kmalloc(size);
        let usable = m.slab.ksize(&m.pages, addr).unwrap();
        m.fill(addr, usable, 0x77);
        m.kfree(addr).unwrap();
        let again = m.slab.kmalloc(&m.pages, size, ZEROED).unwrap();
        assert_eq!(m.bytes(again, usable), std::vec![0; usable], "{size} bytes");
    }
}

#[test]
fn flags_that_a_slab_cannot_honour_are_ignored() {
    let m = Machine::with_cpus(1);
    for size in [64, 20000] {
        let addr = m.slab.kmalloc(&m.pages, size, GfpFlags::KERNEL | GfpFlags::HIGHMEM | GfpFlags::DMA32);
        m.kfree(addr.unwrap()).unwrap();
    }
    assert_eq!(m.slab.kmalloc(&m.pages, 64, GfpFlags::KERNEL | GfpFlags::MOVABLE).map(|a| m.kfree(a)), Ok(Ok(())));
}

#[test]
fn dma_requests_come_from_the_dma_zone_and_others_do_not_share_their_slabs() {
    let m = Machine::new(&testing::zoned(&[(ZoneKind::Dma, 0, 64), (ZoneKind::Normal, 64, 192)]));
    for size in [64, 20000] {
        let frame = |addr| m.phys(addr).pfn().unwrap().as_u32();
        let dma = m.slab.kmalloc(&m.pages, size, GfpFlags::KERNEL | GfpFlags::DMA).unwrap();
        assert!(frame(dma) < 64);
        assert_ne!(frame(m.kmalloc(size)), frame(dma));
    }
    m.check();
}

#[test]
fn without_a_dma_zone_dma_requests_use_the_normal_classes() {
    let m = Machine::with_cpus(1);
    let dma = m.slab.kmalloc(&m.pages, 64, GfpFlags::KERNEL | GfpFlags::DMA).unwrap();
    m.kfree(dma).unwrap();
    assert_eq!(m.kmalloc(64), dma);
}

#[test]
fn realloc_to_nothing_frees_and_from_nothing_allocates() {
    let m = Machine::with_cpus(1);
    let krealloc = |addr, size| m.slab.krealloc(&m.pages, addr, size, GfpFlags::KERNEL);
    let addr = krealloc(VirtAddr::NULL, 100).unwrap();
    assert_eq!(krealloc(addr, 0), Ok(VirtAddr::ZERO_SIZE));
    assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)));
    assert!(krealloc(VirtAddr::ZERO_SIZE, 100).is_ok());
    assert_eq!(krealloc(VirtAddr::ZERO_SIZE, 0), Ok(VirtAddr::ZERO_SIZE));
}

#[test]
fn realloc_stays_while_it_fits_and_never_moves_to_a_smaller_class() {
    let m = Machine::with_cpus(1);
    for size in [200, 20000] {
        let addr = m.kmalloc(size);
        let usable = m.slab.ksize(&m.pages, addr).unwrap();
        for new in [1, usable, size] {
            assert_eq!(m.slab.krealloc(&m.pages, addr, new, GfpFlags::KERNEL), Ok(addr), "{size} to {new}");
        }
    }
}

#[test]
fn realloc_beyond_the_block_moves_the_contents_and_frees_the_old_block() {
    let m = Machine::with_cpus(1);
    for (from, to) in [(50, 65), (64, 9000), (9000, 20000), (8192, 8193)] {
        let old = m.kmalloc(from);
        m.fill(old, from, 0x3c);
        let new = m.slab.krealloc(&m.pages, old, to, GfpFlags::KERNEL).unwrap();
        assert_ne!(new, old);
        assert_eq!(m.bytes(new, from), std::vec![0x3c; from]);
        assert!(matches!(m.kfree(old), Err(FreeError::DoubleFree(_))), "{from} to {to}");
        m.kfree(new).unwrap();
    }
    m.check();
}

#[test]
fn a_chain_of_zeroing_reallocs_finds_zeros_in_place_and_after_a_move() {
    let m = Machine::with_cpus(1);
    let krealloc = |addr, size| m.slab.krealloc(&m.pages, addr, size, ZEROED).unwrap();
    let addr = m.slab.kmalloc(&m.pages, 100, ZEROED).unwrap();
    m.fill(addr, 100, 1);
    assert_eq!(krealloc(addr, 40), addr);
    assert_eq!(m.bytes(addr, 128)[40..], [0; 88]);
    assert_eq!(krealloc(addr, 128), addr);
    let moved = krealloc(addr, 300);
    assert_eq!(m.bytes(moved, 512)[40..], [0; 472]);
    assert_eq!(m.bytes(moved, 40), [1; 40]);
}

#[test]
fn a_refused_realloc_leaves_the_old_block() {
    let m = Machine::with_cpus(1);
    let addr = m.kmalloc(64);
    m.fill(addr, 64, 9);
    let requested = 5 << 20;
    let refused = m.slab.krealloc(&m.pages, addr, requested, GfpFlags::KERNEL);
    assert_eq!(refused, Err(AllocError::TooLarge { requested, limit: 4 << 20 }));
    assert_eq!(m.bytes(addr, 64), [9; 64]);
    assert_eq!(m.kfree(addr), Ok(()));
}

#[test]
fn realloc_and_ksize_refuse_what_is_no_block() {
    let m = Machine::with_cpus(1);
    let addr = m.kmalloc(64);
    let inside = VirtAddr::new(addr.as_u64() + 8);
    for size in [0, 64, 100] {
        let refused = m.slab.krealloc(&m.pages, inside, size, GfpFlags::KERNEL);
        assert_eq!(refused, Err(AllocError::BadAddress(inside)));
    }
    assert_eq!(m.slab.ksize(&m.pages, inside), Err(FreeError::Interior { addr: inside, start: addr }));
    let window = m.pages.base.geometry.vmalloc_start;
    let found = FreeError::WrongKind { addr: window, expected: BlockKind::Slab, found: BlockKind::Vmalloc };
    assert_eq!(m.slab.ksize(&m.pages, window), Err(found));
}

#[test]
fn each_path_counts_what_it_served() {
    let m = Machine::with_cpus(1);
    let class = Machine::class(3);
    let counts = || {
        let now = m.slab.statistics(class);
        (now.alloc_fastpath, now.alloc_slowpath, now.free_fastpath, now.free_slowpath)
    };
    let first = m.kmalloc(64);
    assert_eq!(counts(), (0, 1, 0, 0), "the first of all needs a slab");
    m.kfree(first).unwrap();
    assert_eq!(counts(), (0, 1, 1, 0));
    for _ in 0..10 {
        let addr = m.kmalloc(64);
        m.kfree(addr).unwrap();
        assert!(m.kfree(addr).is_err());
    }
    assert_eq!(counts(), (10, 1, 11, 0), "what is refused was not served");
    let many: std::vec::Vec<_> = (0..70).map(|_| m.kmalloc(64)).collect();
    let (fast, slow, ..) = counts();
    assert_eq!(fast + slow, 81);
    many.into_iter().for_each(|addr| m.kfree(addr).unwrap());
    let (.., fast, slow) = counts();
    assert!(fast + slow == 81 && slow > 0);
}
