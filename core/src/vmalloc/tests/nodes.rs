use super::super::area::{Link, State};
use super::*;

/// Four vmap nodes.
fn four_cpus(frames: u32) -> Machine {
    let mut geometry = flat(frames);
    geometry.cpus = 4;
    Machine::with(&geometry)
}

fn kinds(m: &Machine, kind: AreaKind) -> Vec<VirtAddr> {
    m.entries().iter().filter(|entry| entry.kind == kind).map(|entry| entry.start).collect()
}

/// The CPU that takes from the pools of the node to which an address belongs.
fn cpu_of(m: &Machine, addr: VirtAddr) -> u16 {
    m.window.nodes.index_of(addr.vpn().as_u64()) as u16
}

/// Sixteen one-page areas: two zones of eight, so those of two nodes.
fn freed_and_purged(m: &Machine) -> Vec<VirtAddr> {
    let blocks: Vec<VirtAddr> = (0..16).map(|_| m.vmalloc(1, KERNEL).unwrap()).collect();
    blocks.iter().for_each(|&addr| m.vfree(addr).unwrap());
    m.purge();
    m.check().unwrap();
    blocks
}

#[test]
fn a_purged_range_serves_the_next_area_of_its_size_on_the_cpu_of_its_node() {
    let m = four_cpus(1024);
    let blocks = freed_and_purged(&m);
    assert_eq!(kinds(&m, AreaKind::Pooled), blocks);
    assert_eq!(m.platform().count(Event::VmapPoolRefilled), 16);
    assert_ne!(cpu_of(&m, blocks[0]), cpu_of(&m, blocks[8]));
    for own in blocks.chunks(8) {
        let cpu = cpu_of(&m, own[0]);
        m.platform().cpu.set(cpu);
        for _ in 0..8 {
            let again = m.vmalloc(PAGE_SIZE, KERNEL).unwrap();
            assert!(own.contains(&again), "CPU {cpu} got {again:?}");
            m.check().unwrap();
        }
    }
    assert_eq!(m.platform().count(Event::VmapPoolTaken), 16);
    let new = m.vmalloc(1, KERNEL).unwrap();
    assert_eq!(new, page(blocks[15], 2), "the pools are empty: the lowest gap");
}

#[test]
fn pools_serve_neither_another_size_nor_a_range_nor_an_alignment_that_does_not_fit() {
    let m = four_cpus(1024);
    let blocks = freed_and_purged(&m);
    let end = page(blocks[15], 2);
    assert_eq!(m.vmalloc(2 * PAGE_SIZE, KERNEL), Ok(end), "another size");
    let args = VmallocArgs { range: (m.start(), page(end, 1000)), ..VmallocArgs::new(1, KERNEL) };
    assert_eq!(m.window.vmalloc(&m.pages, &m.slab, &args), Ok(page(end, 3)), "a range");
    // The newest of the pool starts at page 2 * 0.
    let aligned = |align: usize| VmallocArgs { align, ..VmallocArgs::new(1, KERNEL) };
    let got = m.window.vmalloc(&m.pages, &m.slab, &aligned(64 * PAGE_SIZE)).unwrap();
    assert!(got.as_u64().is_multiple_of(64 * PAGE_SIZE as u64));
    m.check().unwrap();
}

#[test]
fn an_area_without_a_guard_and_one_with_share_a_pool_of_their_span() {
    let m = four_cpus(1024);
    let blocks = freed_and_purged(&m);
    let args = VmallocArgs { flags: VmFlags::NO_GUARD, ..VmallocArgs::new(2 * PAGE_SIZE, KERNEL) };
    m.platform().cpu.set(cpu_of(&m, blocks[0]));
    let addr = m.window.vmalloc(&m.pages, &m.slab, &args).unwrap();
    assert!(blocks.contains(&addr));
    assert!(m.frames_behind(addr, 2).iter().all(Option::is_some));
    m.check().unwrap();
    m.vfree(addr).unwrap();
    m.purge();
    m.check().unwrap();
}

#[test]
fn each_purge_gives_a_quarter_of_every_pool_back() {
    let m = four_cpus(1024);
    let blocks = freed_and_purged(&m);
    for (purge, left) in [(1, 12), (2, 10), (3, 8)] {
        // Too large for a pool of its own, so that only what it gives back changes.
        let other = m.vmalloc(257 * PAGE_SIZE, KERNEL).unwrap();
        m.vfree(other).unwrap();
        m.purge();
        m.check().unwrap();
        assert_eq!(kinds(&m, AreaKind::Pooled).len(), left, "after purge {purge}");
    }
    assert_eq!(m.platform().count(Event::VmapPoolDecayed), 3);
    let low = m.vmalloc(3 * PAGE_SIZE, KERNEL).unwrap();
    assert!(low < page(blocks[15], 2) || m.entries().len() > 1);
}

#[test]
fn pools_are_emptied_before_addresses_run_out_whatever_the_flags() {
    for gfp in [KERNEL, GfpFlags::NOWAIT] {
        let mut geometry = flat(1024);
        geometry.cpus = 4;
        geometry.vmalloc_pages = PageCount::new(32);
        let m = Machine::with(&geometry);
        let before = m.ownership();
        freed_and_purged(&m);
        let whole = m.vmalloc(31 * PAGE_SIZE, gfp).unwrap();
        assert_eq!(whole, m.start());
        assert_eq!(m.platform().count(Event::VmapPoolsEmptied), 1);
        m.check().unwrap();
        m.vfree(whole).unwrap();
        m.purge();
        assert_eq!(m.window.empty_pools(&m.pages, &m.slab), 1);
        assert_eq!(m.ownership(), before);
        assert!(m.entries().is_empty());
    }
}

#[test]
fn misuse_is_named_in_every_state_and_across_nodes() {
    let m = four_cpus(2048);
    let blocks = freed_and_purged(&m);
    assert_eq!(m.vfree(blocks[0]), Err(FreeError::DoubleFree(blocks[0])), "in a pool");
    assert_eq!(m.vfree(at(blocks[0], 1)), Err(FreeError::Foreign(at(blocks[0], 1))));
    let large = m.vmalloc(60 * PAGE_SIZE, KERNEL).unwrap();
    for n in [1, 15, 16, 17, 40, 59] {
        let inside = page(large, n);
        assert_eq!(m.vfree(inside), Err(FreeError::Interior { addr: inside, start: large }), "page {n}");
        assert_eq!(m.vrealloc(inside, 1, KERNEL), Err(AllocError::BadAddress(inside)));
    }
    assert_eq!(m.vfree(page(large, 60)), Err(FreeError::Foreign(page(large, 60))), "the guard");
    let wrong = FreeError::WrongKind { addr: large, expected: BlockKind::Vmap, found: BlockKind::Vmalloc };
    assert_eq!(m.vunmap(large), Err(wrong));
    m.vfree(large).unwrap();
    assert_eq!(m.vfree(large), Err(FreeError::DoubleFree(large)), "lazy");
    m.check().unwrap();
}

#[test]
fn a_refused_area_of_a_pool_goes_back_to_the_window() {
    for point in [FaultPoint::Descriptor, FaultPoint::VirtualSpace, FaultPoint::VmallocPages, FaultPoint::PageTable] {
        let m = four_cpus(1024);
        freed_and_purged(&m);
        m.platform().fail(point, 0);
        assert_eq!(m.vmalloc(1, KERNEL), Err(AllocError::Injected(point)));
        m.check().unwrap();
        assert!(m.vmalloc(1, KERNEL).is_ok());
        m.check().unwrap();
    }
}

/// A corruption of a machine with live, lazy and pooled areas on several nodes, and the number of the equation it breaks.
type Corruption = (&'static str, Invariant, fn(&Machine, &Areas));

struct Areas {
    live: VirtAddr,
    lazy: VirtAddr,
    pooled: VirtAddr,
}

fn corrupted(change: fn(&Machine, &Areas)) -> Violation {
    let m = four_cpus(1024);
    let pooled = freed_and_purged(&m)[3];
    let live = m.vmalloc(3 * PAGE_SIZE, KERNEL).unwrap();
    let lazy = m.vmalloc(20 * PAGE_SIZE, KERNEL).unwrap();
    m.vfree(lazy).unwrap();
    m.check().unwrap();
    change(&m, &Areas { live, lazy, pooled });
    m.check().unwrap_err()
}

fn record_of(m: &Machine, addr: VirtAddr) -> Link {
    m.window.space.lock().tree.find(&records(&m.pages.base).window(), addr.vpn().as_u64()).unwrap()
}

fn change_record(m: &Machine, addr: VirtAddr, change: impl FnOnce(&mut super::super::area::Node)) {
    m.window.edit(&m.pages.base, record_of(m, addr), change);
}

fn remove_live(m: &Machine, addr: VirtAddr) {
    let page = addr.vpn().as_u64();
    m.window.nodes.live.remove(&mut m.window.nodes.of(page).lock(), records(&m.pages.base), page);
}

fn insert_live(m: &Machine, at: Link, page: u64) {
    m.window.nodes.live.insert(&mut m.window.nodes.of(page).lock(), records(&m.pages.base), at, page);
}

#[test]
fn each_corruption_of_a_node_is_found_and_named() {
    let cases: [Corruption; 12] = [
        ("I21.6", Invariant::I21CacheCounts, |m, a| remove_live(m, a.live)),
        ("I21.6", Invariant::I21CacheCounts, |m, a| {
            let page = a.lazy.vpn().as_u64();
            insert_live(m, record_of(m, a.lazy), page);
        }),
        ("I21.6", Invariant::I21CacheCounts, |m, a| {
            // In a chain of the next node, as if it started there.
            let (at, page) = (record_of(m, a.live), a.live.vpn().as_u64());
            remove_live(m, a.live);
            insert_live(m, at, page + 16);
        }),
        ("I21.9", Invariant::I21CacheCounts, |m, a| {
            // Found at a page where it does not start.
            insert_live(m, record_of(m, a.lazy), a.lazy.vpn().as_u64() + 16);
        }),
        ("I21.9", Invariant::I21CacheCounts, |m, _| m.window.nodes.of(0).lock().live += 1),
        ("I21.7", Invariant::I21CacheCounts, |m, a| {
            // In a pool of the next node.
            let (page, records) = (a.pooled.vpn().as_u64(), records(&m.pages.base));
            let (at, node) = m.window.nodes.of(page).lock().pools.pop(records, 2, 1).unwrap();
            assert!(m.window.nodes.of(page + 16).lock().pools.push(records, at, &node));
        }),
        ("I21.7", Invariant::I21CacheCounts, |m, a| {
            // In no pool at all.
            let (page, records) = (a.pooled.vpn().as_u64(), records(&m.pages.base));
            assert!(m.window.nodes.of(page).lock().pools.pop(records, 2, 1).is_some());
        }),
        ("I21.8", Invariant::I21CacheCounts, |m, a| {
            change_record(m, a.pooled, |node| {
                node.state = State::Pooled { next: Link::NIL };
            });
        }),
        ("I15.2", Invariant::I15FlushBeforeReuse, |m, a| change_record(m, a.pooled, |node| node.mapped = 1)),
        ("I16.3", Invariant::I16GuardPage, |m, a| change_record(m, a.live, |node| node.flags = VmFlags::NO_GUARD)),
        ("I17.7", Invariant::I17Statistics, |m, _| {
            m.window.lazy_pages.fetch_add(1, crate::sync::Ordering::Relaxed);
        }),
        ("I17.6", Invariant::I17Statistics, |m, a| {
            let mut of = m.window.nodes.of(a.lazy.vpn().as_u64()).lock();
            of.purging = of.lazy;
        }),
    ];
    for (n, (number, invariant, change)) in cases.into_iter().enumerate() {
        let violation = corrupted(change);
        assert!(violation.what.contains(number), "case {n}: {violation}");
        assert_eq!(violation.invariant, invariant, "case {n}: {violation}");
    }
}

#[test]
fn two_cpus_that_allocate_and_free_a_page_do_not_meet_on_a_lock_of_the_window() {
    let m = four_cpus(4096);
    // Warm: sheaves, pages of the CPU, page tables, pools.
    let warm: Vec<VirtAddr> = (0..16).map(|_| m.vmalloc(1, KERNEL).unwrap()).collect();
    let held: Vec<VirtAddr> = (0..16).map(|_| m.vmalloc(1, KERNEL).unwrap()).collect();
    warm.iter().for_each(|&addr| m.vfree(addr).unwrap());
    m.purge();
    let taken = |m: &Machine| {
        let nodes: Vec<u64> = m.window.nodes.all().map(|of| of.acquisitions()).collect();
        (m.window.space.acquisitions(), m.window.purging.acquisitions(), nodes)
    };
    for cpu in [cpu_of(&m, warm[0]), cpu_of(&m, warm[8])] {
        m.platform().cpu.set(cpu);
        let before = taken(&m);
        let addr = m.vmalloc(1, KERNEL).unwrap();
        let allocated = taken(&m);
        m.vfree(addr).unwrap();
        let freed = taken(&m);
        let locks = |from: &[u64], to: &[u64]| -> Vec<u64> { from.iter().zip(to).map(|(a, b)| b - a).collect() };
        let own = |taken: u64| (0..4).map(|n| if n == u64::from(cpu) { taken } else { 0 }).collect::<Vec<_>>();
        assert_eq!((before.0, before.1), (freed.0, freed.1), "neither the window's lock nor the purge's");
        assert_eq!(locks(&before.2, &allocated.2), own(2), "vmalloc: out of the pool, into the live tree");
        assert_eq!(locks(&allocated.2, &freed.2), own(2), "vfree: out of the live tree, onto the lazy list");
    }
    assert_eq!(held.len(), 16);
}

#[test]
fn cpus_that_map_runs_of_their_blocks_take_turns_at_the_locks() {
    let mut geometry = flat(1024);
    (geometry.cpus, geometry.vmalloc_pages) = (4, PageCount::new(1 << 16));
    let m = Machine::with(&geometry);
    let taken = || m.window.nodes.all().map(|of| of.acquisitions()).collect::<Vec<u64>>();
    let mut used = [0; 4];
    for cpu in 0..4 {
        m.platform().cpu.set(cpu);
        let frame = m.frame();
        let map = || m.window.vm_map_ram(&m.pages, &m.slab, &[frame], KERNEL).unwrap();
        let first = map();
        let before = taken();
        let addr = map();
        m.window.vm_unmap_ram(&m.pages, &m.slab, addr, 1).unwrap();
        used.iter_mut().zip(before).zip(taken()).for_each(|((used, from), to)| *used += to - from);
        m.window.vm_unmap_ram(&m.pages, &m.slab, first, 1).unwrap();
        m.check().unwrap();
    }
    // All blocks start at multiples of a power of two: if zones took turns, all would be of one node.
    let most = used.iter().copied().max();
    assert!(most.is_some_and(|most| 2 * most <= used.iter().sum()), "{used:?}");
}
