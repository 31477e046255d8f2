//! Debug caches: each kind of damage is told, repaired, and harmless; what is legal is never told of.

use super::Machine;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::buddy::OwnerClass;
use crate::error::{CacheId, FreeError};
use crate::gfp::GfpFlags;
use crate::hardening::SlubDebug;
use crate::platform::Event;
use crate::slab::{CacheArgs, CtorObject, SlabFlags};
use crate::testing;
use std::vec::Vec;

const CHECKS: SlabFlags = SlabFlags::CONSISTENCY_CHECKS;
const RED_ZONE: SlabFlags = SlabFlags::RED_ZONE;
const POISON: SlabFlags = SlabFlags::POISON;
const STORE_USER: SlabFlags = SlabFlags::STORE_USER;

fn debug_cache(m: &Machine, size: usize, flags: SlabFlags) -> CacheId {
    m.cache(&CacheArgs { flags, ..CacheArgs::new(size) })
}

fn validate(m: &Machine, cache: CacheId) -> u32 {
    let found = m.slab.cache_validate(&m.pages, cache).unwrap();
    m.check();
    found
}

fn shift(addr: VirtAddr, bytes: i64) -> VirtAddr {
    VirtAddr::new(addr.as_u64().wrapping_add_signed(bytes))
}

fn poke(m: &Machine, addr: VirtAddr, bytes: i64) {
    let at = shift(addr, bytes);
    let old = m.bytes(at, 1)[0];
    m.fill(at, 1, !old);
}

#[test]
fn legal_use_of_every_kind_of_debug_cache_finds_nothing() {
    let each = [CHECKS, RED_ZONE, POISON, STORE_USER, SlabFlags::TRACE];
    for n in 1..1u32 << each.len() {
        let m = Machine::with_cpus(2);
        let chosen = each.iter().enumerate().filter(|&(i, _)| n >> i & 1 == 1);
        let flags = chosen.fold(SlabFlags::empty(), |all, (_, &flag)| all | flag);
        for size in [0, 1, 7, 8, 33, 64, 200, 3000] {
            let cache = debug_cache(&m, size, flags);
            let mut objects = m.objects(cache, 40);
            for &object in &objects {
                m.fill(object, size, 0x11);
            }
            m.free_all(cache, objects.drain(..20));
            assert_eq!(validate(&m, cache), 0, "{size} bytes, {flags:?}");
            objects.extend(m.objects(cache, 30));
            m.run_on(1);
            m.free_all(cache, objects);
            assert_eq!(validate(&m, cache), 0, "{size} bytes, {flags:?}");
            m.destroy(cache).unwrap();
        }
    }
}

#[test]
fn objects_of_a_debug_cache_are_aligned_and_do_not_overlap() {
    let m = Machine::with_cpus(1);
    for align in [8, 64, 512, 4096] {
        let flags = CHECKS | RED_ZONE | POISON | STORE_USER;
        let cache = m.cache(&CacheArgs { align, flags, ..CacheArgs::new(48) });
        let mut objects = m.objects(cache, 20);
        assert!(objects.iter().all(|object| object.is_aligned(align as u64)), "{align}");
        objects.sort_unstable();
        assert!(objects.windows(2).all(|two| two[1].as_u64() - two[0].as_u64() >= 48 + 8));
        assert_eq!(m.slab.usable_size(&m.pages, objects[0]), Ok(48));
    }
}

#[test]
fn damage_around_a_live_object_is_reported_and_repaired_once() {
    for (at, what) in [(-1, Event::DebugRedZone), (64, Event::DebugRedZone), (71, Event::DebugRedZone)] {
        let m = Machine::with_cpus(1);
        let cache = debug_cache(&m, 64, RED_ZONE);
        let object = m.objects(cache, 1)[0];
        poke(&m, object, at);
        assert_eq!(validate(&m, cache), 2, "byte {at}");
        assert_eq!((m.count(what), m.count(Event::DebugRestored)), (1, 1));
        assert_eq!(validate(&m, cache), 0);
    }
}

#[test]
fn a_free_with_damage_is_refused_once_and_names_the_damage() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, CHECKS | RED_ZONE | STORE_USER);
    let object = m.objects(cache, 1)[0];
    poke(&m, object, 66);
    assert_eq!(m.slab.cache_free(&m.pages, cache, object), Err(FreeError::Corrupted(object)));
    m.check();
    let bugs = m.pages.base.platform.bugs.borrow();
    let text: Vec<_> = bugs.iter().map(|bug| std::format!("{bug}")).collect();
    assert!(text[0].starts_with("BUG test: Right Redzone overwritten"), "{}", text[0]);
    assert!(
        text[0].contains("allocated at") && text[0].contains("seq=") && !text[0].contains("freed at"),
        "{}",
        text[0]
    );
    assert!(text[1].starts_with("FIX test: Restoring Right Redzone") && text[1].ends_with("=0xcc"), "{}", text[1]);
    assert_eq!(text[2], "FIX test: Object not freed");
    drop(bugs);
    assert_eq!(m.slab.cache_free(&m.pages, cache, object), Ok(()));
    m.check();
}

#[test]
fn without_checks_a_free_does_not_look() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, RED_ZONE);
    let object = m.objects(cache, 1)[0];
    poke(&m, object, 64);
    assert_eq!(m.slab.cache_free(&m.pages, cache, object), Ok(()));
    assert_eq!(validate(&m, cache), 0, "the free painted the red zones anew");
}

#[test]
fn a_write_to_a_freed_object_sets_its_slab_aside() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, CHECKS | POISON);
    let objects = m.objects(cache, 2);
    m.free_all(cache, [objects[0]]);
    poke(&m, objects[0], 7);
    let next = m.objects(cache, 1)[0];
    assert_ne!(next.as_u64() / PAGE_SIZE as u64, objects[0].as_u64() / PAGE_SIZE as u64, "another slab serves");
    assert_eq!((m.count(Event::DebugPoison), m.count(Event::SlabSetAside)), (1, 1));
    m.check();
    let info = m.info(cache);
    assert_eq!((info.active_objs, info.lost), (2, u64::from(info.objects_per_slab) - 1));
    m.free_all(cache, [objects[1]]);
    assert_eq!(validate(&m, cache), 0);
    m.reclaim();
    let info = m.info(cache);
    assert_eq!((info.active_objs, info.lost), (1, 0));
    assert_eq!(m.pages.owned(OwnerClass::Leaked), 1, "nothing of it comes back");
    m.check();
}

#[test]
fn without_checks_a_damaged_object_is_handed_out_repainted() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, POISON);
    let object = m.objects(cache, 1)[0];
    m.free_all(cache, [object]);
    poke(&m, object, 7);
    assert_eq!(m.objects(cache, 1), [object]);
    assert_eq!((m.bytes(object, 63), m.bytes(shift(object, 63), 1)), (std::vec![0x6b; 63], std::vec![0xa5]));
    assert_eq!(validate(&m, cache), 0);
}

#[test]
fn a_broken_free_pointer_loses_objects_and_never_hands_one_out_twice() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, POISON);
    let live = m.objects(cache, 3);
    m.free_all(cache, [live[2]]);
    let link = shift(live[2], 64);
    let own = m.bytes(link, 8);
    // A link to an object that somebody has.
    let target = live[0].as_u64().to_le_bytes();
    assert!(m.pages.base.mem.write(m.phys(link), &target));
    let per_slab = m.info(cache).objects_per_slab;
    assert_eq!(validate(&m, cache), 3);
    assert_eq!(m.info(cache).lost, u64::from(per_slab) - 3);
    assert!(m.pages.base.mem.write(m.phys(link), &own));
    assert_eq!(validate(&m, cache), 2, "the link is right again");
    assert_eq!(m.info(cache).lost, 0);
    assert!(m.pages.base.mem.write(m.phys(link), &target));
    let mut all = m.objects(cache, 2 * per_slab as usize);
    all.extend(&live[..2]);
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    assert_eq!(m.info(cache).lost, u64::from(per_slab) - 3);
    m.check();
}

#[test]
fn a_list_that_does_not_end_is_cleared() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, POISON);
    let objects = m.objects(cache, 2);
    m.free_all(cache, [objects[0], objects[1]]);
    // The list is 1, 0, ...; now 0 leads back to 1.
    assert!(m.pages.base.mem.write(m.phys(shift(objects[0], 64)), &objects[1].as_u64().to_le_bytes()));
    assert_eq!(validate(&m, cache), 2);
    assert_eq!(m.count(Event::DebugFreeChain), 1);
    let info = m.info(cache);
    assert_eq!((info.lost, info.free_in_slabs), (u64::from(info.objects_per_slab), 0));
    assert_eq!(validate(&m, cache), 0);
    let next = m.objects(cache, 1)[0];
    assert!(!objects.contains(&next));
}

#[test]
fn a_second_free_is_told_with_both_tracks() {
    let m = Machine::with_cpus(1);
    let cache = debug_cache(&m, 64, CHECKS | STORE_USER);
    let object = m.objects(cache, 1)[0];
    m.free_all(cache, [object]);
    assert_eq!(m.slab.cache_free(&m.pages, cache, object), Err(FreeError::DoubleFree(object)));
    assert_eq!(m.count(Event::DebugAlreadyFree), 1);
    let bugs = m.pages.base.platform.bugs.borrow();
    assert!(bugs[0].allocated.unwrap().sequence < bugs[0].freed.unwrap().sequence);
    drop(bugs);
    let mut geometry = testing::flat(1024);
    geometry.hardening = crate::hardening::Hardening::Off;
    let m = Machine::new(&geometry);
    let cache = debug_cache(&m, 64, POISON);
    let object = m.objects(cache, 1)[0];
    m.free_all(cache, [object]);
    assert_eq!(m.slab.cache_free(&m.pages, cache, object), Err(FreeError::DoubleFree(object)));
    m.check();
}

#[test]
fn constructed_objects_keep_their_bytes_under_all_checks() {
    fn fill(object: &mut CtorObject<'_>) {
        object.fill(0x42);
    }
    let m = Machine::with_cpus(1);
    let flags = CHECKS | RED_ZONE | POISON | STORE_USER;
    for freeptr_offset in [None, Some(8)] {
        let args = CacheArgs { flags, ctor: Some(fill), freeptr_offset, ..CacheArgs::new(24) };
        let cache = m.cache(&args);
        for _ in 0..2 {
            let objects = m.objects(cache, 30);
            assert!(objects.iter().all(|&object| m.bytes(object, 24) == [0x42; 24]));
            m.free_all(cache, objects);
        }
        assert_eq!(validate(&m, cache), 0);
    }
}

/// A machine whose kmalloc caches have red zones and records.
fn tracked() -> Machine {
    let mut geometry = testing::flat(1024);
    geometry.slub_debug = SlubDebug::RED_ZONE | SlubDebug::STORE_USER | SlubDebug::CONSISTENCY_CHECKS;
    geometry.track_sites = 16;
    Machine::new(&geometry)
}

impl Machine {
    #[track_caller]
    fn tracked_kmalloc(&self, size: usize, gfp: GfpFlags) -> VirtAddr {
        let addr = self.slab.kmalloc(&self.pages, size, gfp).unwrap();
        self.slab.stamp(&self.pages, addr, Some(size), std::panic::Location::caller());
        addr
    }

    fn resized(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> VirtAddr {
        self.slab.krealloc(&self.pages, addr, size, gfp).unwrap()
    }
}

#[test]
fn the_rest_of_a_class_is_a_red_zone_until_its_user_asks_for_it() {
    let m = tracked();
    let class = Machine::class(2);
    let addr = m.tracked_kmalloc(18, GfpFlags::KERNEL);
    poke(&m, addr, 18);
    poke(&m, addr, 19);
    assert_eq!(validate(&m, class), 2);
    assert_eq!(m.slab.ksize(&m.pages, addr), Ok(32));
    m.fill(addr, 32, 1);
    assert_eq!(validate(&m, class), 0, "ksize gave it to the user");
    poke(&m, addr, 32);
    assert_eq!(m.kfree(addr), Err(FreeError::Corrupted(addr)));
    assert_eq!(m.kfree(addr), Ok(()));
    m.check();
}

#[test]
fn zeroing_stops_at_the_size_that_was_asked_for() {
    let m = tracked();
    let addr = m.tracked_kmalloc(40, GfpFlags::KERNEL | GfpFlags::ZERO);
    assert_eq!(m.bytes(addr, 64), [[0; 40].as_slice(), &[0xcc; 24]].concat());
    m.fill(addr, 40, 0xff);
    assert_eq!(m.resized(addr, 30, GfpFlags::KERNEL), addr);
    assert_eq!(m.bytes(addr, 64), [[0xff; 30].as_slice(), &[0xcc; 34]].concat());
    assert_eq!(m.resized(addr, 50, GfpFlags::KERNEL | GfpFlags::ZERO), addr);
    assert_eq!(m.bytes(addr, 64), [[0xff; 30].as_slice(), &[0; 20], &[0xcc; 14]].concat());
    assert_eq!(validate(&m, Machine::class(3)), 0);
}

#[test]
fn a_report_names_the_places_of_both_calls() {
    let m = tracked();
    let addr = m.tracked_kmalloc(18, GfpFlags::KERNEL);
    let line = line!() - 1;
    poke(&m, addr, 20);
    validate(&m, Machine::class(2));
    let bugs = m.pages.base.platform.bugs.borrow();
    assert_eq!(bugs[0].allocated.unwrap().site.unwrap().line(), line);
}

#[test]
fn moving_a_damaged_block_frees_the_old_one() {
    let m = tracked();
    let addr = m.tracked_kmalloc(18, GfpFlags::KERNEL);
    m.fill(addr, 18, 7);
    poke(&m, addr, 25);
    let new = m.resized(addr, 100, GfpFlags::KERNEL);
    assert_eq!(m.bytes(new, 18), [7; 18]);
    assert_eq!(m.count(Event::DebugNotFreed), 1);
    assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)));
    assert_eq!(m.kfree(new), Ok(()));
    m.check();
}

fn paranoid() -> Machine {
    let mut geometry = testing::flat(1024);
    geometry.hardening = crate::hardening::Hardening::Paranoid;
    Machine::new(&geometry)
}

#[test]
fn paranoid_machines_notice_one_byte_too_many() {
    let m = paranoid();
    for size in [1, 18, 63, 64, 500, 5000] {
        let addr = m.tracked_kmalloc(size, GfpFlags::KERNEL);
        m.fill(addr, size, 0x11);
        poke(&m, addr, size as i64);
        assert_eq!(m.kfree(addr), Err(FreeError::Corrupted(addr)), "{size} bytes");
        assert_eq!(m.kfree(addr), Ok(()));
    }
    m.check();
}

#[test]
fn a_freed_block_waits_before_it_is_used_again() {
    let m = paranoid();
    let before = m.use_of_pages();
    let addr = m.tracked_kmalloc(100, GfpFlags::KERNEL);
    m.kfree(addr).unwrap();
    assert_eq!(m.kfree(addr), Err(FreeError::DoubleFree(addr)));
    for _ in 0..30 {
        let next = m.tracked_kmalloc(100, GfpFlags::KERNEL);
        assert_ne!(next, addr);
        m.kfree(next).unwrap();
    }
    m.check();
    m.reclaim();
    assert_eq!(m.use_of_pages(), before, "reclaim ends the wait");
    m.check();
}

#[test]
fn a_write_to_a_block_in_quarantine_is_told_when_it_leaves() {
    let m = paranoid();
    let addr = m.tracked_kmalloc(100, GfpFlags::KERNEL);
    m.kfree(addr).unwrap();
    poke(&m, addr, 50);
    assert_eq!(m.count(Event::DebugPoison), 0);
    m.reclaim();
    assert_eq!(m.count(Event::DebugPoison), 1);
    m.check();
}

#[test]
fn paranoid_slabs_are_in_no_order_and_their_links_lead_nowhere() {
    let m = paranoid();
    let cache = debug_cache(&m, 24, SlabFlags::empty());
    let objects = m.objects(cache, 20);
    assert!(objects.windows(2).any(|two| two[0] > two[1]), "not ascending: {objects:?}");
    m.free_all(cache, objects);
    m.reclaim();
    let free = m.objects(cache, 2);
    m.slab.debug_put_back(&m.pages, m.phys(free[1]), std::panic::Location::caller()).unwrap();
    m.slab.debug_put_back(&m.pages, m.phys(free[0]), std::panic::Location::caller()).unwrap();
    // The link of the first free object would be the second one's address.
    let link = m.bytes(shift(free[0], 32), 8);
    assert_ne!(link, free[1].as_u64().to_le_bytes());
    assert_eq!(validate(&m, cache), 0);
}
