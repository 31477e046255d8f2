//! Several memory nodes: each object goes home, and a caller who names a node gets it from there.

use super::{CacheArgs, Machine};
use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::error::CacheId;
use crate::geometry::{Geometry, MinFree, ZoneKind, ZoneSpec};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::platform::Event;
use std::vec::Vec;

const THISNODE: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::THISNODE);

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

/// Two nodes of 512 frames; CPU 0 is of node 0, CPU 1 of node 1, CPU 2 of node 2, which has no memory.
fn geometry() -> Geometry {
    let zone = |n: u8| ZoneSpec {
        kind: ZoneKind::Normal,
        node: node(n),
        start: Pfn::new(u32::from(n) * 512),
        frames: PageCount::new(512),
    };
    let mut geometry = Geometry::flat(1).with_zones(&[zone(0), zone(1)]).unwrap();
    geometry.min_free = MinFree::Pages(0);
    geometry.cpus = 3;
    geometry.with_cpu_nodes(&[node(0), node(1), node(2)])
}

fn machine() -> (Machine, CacheId) {
    let m = Machine::new(&geometry());
    let cache = m.cache(&CacheArgs::new(1024));
    (m, cache)
}

impl Machine {
    fn node_of(&self, object: VirtAddr) -> NodeId {
        self.pages.node_of(self.phys(object).pfn().unwrap()).unwrap()
    }

    fn on(&self, cache: CacheId, n: u8, gfp: GfpFlags) -> VirtAddr {
        self.slab.cache_alloc_node(&self.pages, cache, gfp, node(n)).unwrap()
    }
}

#[test]
fn each_cpu_gets_objects_of_its_own_node_and_frees_them_into_its_sheaf() {
    let (m, cache) = machine();
    for cpu in [0, 1] {
        m.run_on(cpu);
        let objects = m.objects(cache, 30);
        assert!(objects.iter().all(|&object| m.node_of(object) == node(cpu as u8)), "CPU {cpu}");
        m.free_all(cache, objects);
        m.check();
    }
    assert_eq!(m.count(Event::RemoteNodeFree), 0);
}

#[test]
fn an_object_of_another_node_goes_past_the_sheaves_to_its_slab() {
    let (m, cache) = machine();
    let objects = m.objects(cache, 24);
    let cached = m.info(cache).in_sheaves;
    m.run_on(1);
    m.free_all(cache, objects[..5].iter().copied());
    assert_eq!((m.count(Event::RemoteNodeFree), m.info(cache).in_sheaves), (5, cached));
    m.check();
    m.slab.free_bulk(&m.pages, Some(cache), &objects[5..10]).unwrap();
    assert_eq!((m.count(Event::RemoteNodeFree), m.info(cache).in_sheaves), (10, cached));
    m.check();
    let mine = m.objects(cache, 12);
    assert!(mine.iter().all(|&object| m.node_of(object) == node(1)), "nothing of node 0 is near");
}

#[test]
fn a_named_node_serves_from_any_cpu() {
    let (m, cache) = machine();
    for (cpu, n) in [(0, 1), (1, 0), (0, 0), (2, 0), (2, 1)] {
        m.run_on(cpu);
        for gfp in [GfpFlags::KERNEL, THISNODE, GfpFlags::ATOMIC] {
            let objects: Vec<_> = (0..20).map(|_| m.on(cache, n, gfp)).collect();
            assert!(objects.iter().all(|&object| m.node_of(object) == node(n)), "CPU {cpu}, node {n}");
            m.free_all(cache, objects);
        }
        let large = m.slab.kmalloc_node(&m.pages, 20000, THISNODE, node(n)).unwrap();
        let small = m.slab.kmalloc_node(&m.pages, 100, THISNODE, node(n)).unwrap();
        assert_eq!((m.node_of(large), m.node_of(small)), (node(n), node(n)));
        m.kfree(large).unwrap();
        m.kfree(small).unwrap();
        m.check();
    }
}

/// Takes all memory of a node.
fn fill(m: &Machine, n: u8) -> Vec<Pfn> {
    m.pages.drain_all_pages();
    std::iter::from_fn(|| m.pages.alloc_pages_node(Order::ZERO, THISNODE, Some(node(n))).ok()).collect()
}

#[test]
fn a_full_node_refuses_those_who_insist_and_its_neighbour_serves_the_others() {
    let (m, cache) = machine();
    let hog = fill(&m, 1);
    let insists = m.slab.cache_alloc_node(&m.pages, cache, THISNODE, node(1));
    assert!(insists.is_err());
    assert!(m.slab.kmalloc_node(&m.pages, 20000, THISNODE, node(1)).is_err());
    assert_eq!(m.node_of(m.on(cache, 1, GfpFlags::KERNEL)), node(0));
    assert_eq!(m.count(Event::SlabOtherNode), 1);
    let large = m.slab.kmalloc_node(&m.pages, 20000, GfpFlags::KERNEL, node(1)).unwrap();
    assert_eq!(m.node_of(large), node(0));
    m.check();
    drop(hog);
}

#[test]
fn the_last_objects_of_another_node_serve_when_no_slab_can_be_made() {
    let (m, cache) = machine();
    m.on(cache, 1, THISNODE);
    let hogs = [fill(&m, 0), fill(&m, 1)];
    let object = m.objects(cache, 1)[0];
    assert_eq!((m.node_of(object), m.count(Event::PartialLastResort)), (node(1), 1));
    assert_eq!(m.count(Event::PartialRemote), 0, "one partial slab is kept for its own node");
    m.check();
    drop(hogs);
}

#[test]
fn a_node_with_many_partial_slabs_serves_others_before_a_new_slab_is_made() {
    let (m, cache) = machine();
    let objects: Vec<_> = (0..160).map(|_| m.on(cache, 1, THISNODE)).collect();
    // One object of each slab of 16 goes home: ten partial slabs, five are kept.
    m.free_all(cache, objects.iter().step_by(16).copied());
    assert_eq!(m.info(cache).nr_partial, 10);
    let slabs = m.count(Event::SlabNew);
    let remote = m.objects(cache, 1)[0];
    assert_eq!(m.node_of(remote), node(1));
    assert!(m.count(Event::PartialRemote) > 0);
    assert_eq!(m.count(Event::SlabNew), slabs + 1, "ten objects of node 1, the other two of a new slab");
    for _ in 0..2 {
        assert_eq!(m.node_of(m.on(cache, 0, GfpFlags::KERNEL)), node(0), "its sheaf has two under those of node 1");
    }
    assert_eq!(m.count(Event::SheafOfOtherNode), 0);
    assert_eq!(m.node_of(m.on(cache, 0, GfpFlags::KERNEL)), node(0));
    assert_eq!(m.count(Event::SheafOfOtherNode), 1, "those that are left in it are all of node 1");
    m.check();
}

#[test]
fn shrinking_and_reclaim_reach_every_node() {
    let (m, cache) = machine();
    let before = m.use_of_pages();
    let objects: Vec<_> =
        [0, 1].into_iter().flat_map(|n| (0..20).map(move |_| n)).map(|n| m.on(cache, n, THISNODE)).collect();
    m.free_all(cache, objects);
    assert!(m.info(cache).nr_slabs >= 4);
    assert_eq!(m.slab.cache_shrink(&m.pages, cache), Ok(true));
    assert_eq!(m.use_of_pages(), before);
    m.on(cache, 1, THISNODE);
    assert_eq!(m.slab.cache_shrink(&m.pages, cache), Ok(false));
    m.check();
}
