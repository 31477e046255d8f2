//! Wrong frees are named and change nothing.

use super::{CacheArgs, Machine};
use crate::addr::{PhysAddr, VirtAddr};
use crate::error::{BlockKind, CacheId, FreeError};
use crate::gfp::GfpFlags;
use crate::hardening::Hardening;
use crate::order::Order;
use crate::testing;

/// Sizes of both liveness modes, of a class that wastes the end of its slab, and of several pages.
const SIZES: [usize; 6] = [8, 32, 64, 96, 512, 8192];

fn plus(addr: VirtAddr, bytes: u64) -> VirtAddr {
    VirtAddr::new(addr.as_u64() + bytes)
}

#[test]
fn a_second_free_is_found_while_the_object_is_in_a_sheaf_and_after_it_left() {
    for size in SIZES {
        let m = Machine::with_cpus(1);
        let (kept, addr) = (m.kmalloc(size), m.kmalloc(size));
        m.kfree(addr).unwrap();
        assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)), "{size} bytes in the sheaf");
        m.reclaim();
        assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)), "{size} bytes in the slab");
        m.kfree(kept).unwrap();
        m.reclaim();
        assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)), "{size} bytes, slab released");
        m.check();
    }
}

#[test]
fn a_second_free_on_another_cpu_is_found() {
    let m = Machine::with_cpus(2);
    let addr = m.kmalloc(64);
    m.run_on(1);
    m.kfree(addr).unwrap();
    m.run_on(0);
    assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)));
}

#[test]
fn an_interior_pointer_is_told_where_its_block_starts() {
    let m = Machine::with_cpus(1);
    for size in SIZES.into_iter().chain([20000]) {
        let start = m.kmalloc(size);
        for inside in [1, 4, size as u64 / 2, size as u64 - 1] {
            let addr = plus(start, inside);
            assert_eq!(m.kfree(addr), Err(FreeError::Interior { addr, start }), "{size} bytes + {inside}");
        }
        assert_eq!(m.kfree(start), Ok(()), "the block was not touched");
    }
    m.check();
}

#[test]
fn the_unused_end_of_a_slab_is_no_object() {
    let m = Machine::with_cpus(1);
    let page = m.kmalloc(96).as_u64() & !4095;
    let addr = VirtAddr::new(page + 42 * 96);
    assert_eq!(m.kfree(addr), Err(FreeError::Foreign(addr)));
}

#[test]
fn addresses_from_elsewhere_are_foreign() {
    let m = Machine::with_cpus(1);
    let base = &m.pages.base;
    let end = base.virt(PhysAddr::new(u64::from(base.geometry.frames()) << 12));
    for addr in [VirtAddr::new(0x1000), VirtAddr::new(17), end, VirtAddr::new(u64::MAX)] {
        assert_eq!(m.kfree(addr), Err(FreeError::Foreign(addr)));
    }
}

#[test]
fn blocks_of_another_kind_are_named() {
    let m = Machine::with_cpus(1);
    let pfn = m.pages.alloc_pages(Order::ZERO, GfpFlags::KERNEL).unwrap();
    let addr = m.pages.base.virt(pfn.addr());
    let expected = FreeError::WrongKind { addr, expected: BlockKind::Slab, found: BlockKind::Pages };
    assert_eq!(m.kfree(addr), Err(expected));
    m.pages.free_pages(pfn, Order::ZERO).unwrap();
    assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)));
}

#[test]
fn an_object_goes_back_to_its_own_cache_only() {
    let m = Machine::with_cpus(1);
    let (one, two) = (m.cache(&CacheArgs::new(100)), m.cache(&CacheArgs::new(100)));
    let addr = m.objects(one, 1)[0];
    assert_eq!(m.slab.cache_free(&m.pages, two, addr), Err(FreeError::WrongCache { addr, owner: one }));
    let large = m.kmalloc(20000);
    let wrong = FreeError::WrongKind { addr: large, expected: BlockKind::Slab, found: BlockKind::LargeKmalloc };
    assert_eq!(m.slab.cache_free(&m.pages, one, large), Err(wrong));
    assert_eq!(m.slab.cache_free(&m.pages, one, addr), Ok(()));
    assert_eq!(m.slab.cache_free(&m.pages, one, VirtAddr::NULL), Ok(()));
    m.check();
}

#[test]
fn kfree_takes_objects_of_any_user_cache() {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(100));
    let addr = m.objects(cache, 1)[0];
    assert_eq!(m.kfree(addr), Ok(()));
    assert_eq!(m.info(cache).active_objs, 0);
}

#[test]
fn descriptors_of_the_allocator_are_out_of_reach() {
    let m = Machine::with_cpus(1);
    let cache = m.slab.internal_create(&m.pages, "vmap_area", &CacheArgs::new(64)).unwrap();
    let addr = m.slab.internal_alloc(&m.pages, cache, GfpFlags::KERNEL).unwrap();
    let wrong = FreeError::WrongKind { addr, expected: BlockKind::Slab, found: BlockKind::Internal };
    assert_eq!(m.kfree(addr), Err(wrong));
    assert_eq!(m.slab.cache_free(&m.pages, cache, addr), Err(wrong));
    assert!(m.alloc(cache, GfpFlags::KERNEL).is_err());
    assert!(m.slab.krealloc(&m.pages, addr, 8, GfpFlags::KERNEL).is_err());
    assert_eq!(m.slab.internal_free(&m.pages, cache, addr), Ok(()));
    assert_eq!(m.slab.internal_free(&m.pages, cache, addr), Err(FreeError::DoubleFree(addr)));
    m.check();
}

#[test]
fn a_cache_that_does_not_exist_gives_and_takes_nothing() {
    let m = Machine::with_cpus(2);
    let addr = m.kmalloc(64);
    // 64 + 3 would be kmalloc-64 on the other CPU.
    m.run_on(1);
    m.kfree(m.kmalloc(64)).unwrap();
    m.run_on(0);
    for cache in [CacheId::new(60), CacheId::new(64 + 3), CacheId::new(u16::MAX)] {
        assert!(m.alloc(cache, GfpFlags::KERNEL).is_err());
        let owner = Machine::class(3);
        assert_eq!(m.slab.cache_free(&m.pages, cache, addr), Err(FreeError::WrongCache { addr, owner }));
        assert!(m.slab.cache_info(&m.pages, cache).is_none());
    }
}

#[test]
fn without_hardening_the_owner_is_still_checked() {
    let mut geometry = testing::flat(256);
    geometry.hardening = Hardening::Off;
    let m = Machine::new(&geometry);
    let addr = VirtAddr::new(0x1000);
    assert_eq!(m.kfree(addr), Err(FreeError::Foreign(addr)));
    let objects: std::vec::Vec<VirtAddr> = (0..200).map(|_| m.kmalloc(64)).collect();
    objects.into_iter().for_each(|addr| m.kfree(addr).unwrap());
    m.check();
    m.reclaim();
    assert_eq!(m.slab.nr_pages(), 0);
}
