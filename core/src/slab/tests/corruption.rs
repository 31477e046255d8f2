//! The auditor finds each kind of damage and names the invariant.

use super::{CacheArgs, Machine};
use crate::addr::{Pfn, PhysAddr, VirtAddr};
use crate::error::{CacheId, Invariant};
use crate::page::FrameKind;
use crate::slab::live::LiveMode;
use crate::slab::node::LIST_FULL;
use std::vec::Vec;

/// A cache with a full slab and a partial one, nine live objects, three in a sheaf; and the partial slab.
fn scene() -> (Machine, CacheId, Vec<VirtAddr>, Pfn) {
    let m = Machine::with_cpus(1);
    let cache = m.cache(&CacheArgs::new(1024));
    let mut objects = m.objects(cache, 9);
    m.reclaim();
    // While the sheaves are in use, objects are taken one by one, and no sheaf is filled.
    let interrupted = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local();
    objects.extend(m.objects(cache, 3));
    drop(interrupted);
    m.free_all(cache, objects.split_off(9));
    m.check();
    let head = m.slab.nodes[cache.index()].lock().partial.head().unwrap();
    (m, cache, objects, head)
}

fn found(m: &Machine) -> Invariant {
    m.slab.check_invariants(&m.pages).unwrap_err().invariant
}

#[test]
fn a_wrong_occupancy_bit() {
    let (m, _, _, head) = scene();
    m.slab.occupancy.corrupt(head, 7);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_bit_beyond_the_last_object() {
    let (m, _, _, head) = scene();
    m.slab.occupancy.corrupt(head, 8);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_wrong_inuse() {
    let (m, _, _, head) = scene();
    let frames = &m.pages.base.frames;
    frames.set_inuse(head, frames.inuse(head) + 1);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_wrong_number_of_objects() {
    let (m, _, _, head) = scene();
    m.pages.base.frames.set_objects(head, 7);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_slab_on_the_wrong_list() {
    let (m, cache, _, head) = scene();
    let frames = &m.pages.base.frames;
    let mut node = m.slab.nodes[cache.index()].lock();
    node.partial.remove(frames, head);
    node.full.push_head(frames, head);
    frames.set_list(head, LIST_FULL);
    drop(node);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_slab_that_is_on_no_list() {
    let (m, cache, _, head) = scene();
    m.slab.nodes[cache.index()].lock().partial.remove(&m.pages.base.frames, head);
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_frame_of_the_wrong_kind() {
    let (m, _, _, head) = scene();
    m.pages.base.frames.set_kind(head, FrameKind::Slab(CacheId::new(3)));
    assert_eq!(found(&m), Invariant::I12SlabCounts);
}

#[test]
fn a_sheaf_that_forgot_an_object() {
    let (m, cache, ..) = scene();
    let mut sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    sheaves.main.corrupt_count(2);
    drop(sheaves);
    assert_eq!(found(&m), Invariant::I21CacheCounts);
}

#[test]
fn a_sheaf_beyond_its_capacity() {
    let (m, cache, ..) = scene();
    let mut sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    sheaves.main.corrupt_count(13);
    drop(sheaves);
    assert_eq!(found(&m), Invariant::I21CacheCounts);
}

#[test]
fn a_live_object_in_a_sheaf() {
    let (m, cache, objects, _) = scene();
    let mut sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    assert!(sheaves.main.push(12, m.phys(objects[0])));
    drop(sheaves);
    assert_eq!(found(&m), Invariant::I21CacheCounts);
}

#[test]
fn something_in_a_sheaf_that_is_no_object() {
    let (m, cache, objects, _) = scene();
    let mut sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
    assert!(sheaves.main.push(12, PhysAddr::new(m.phys(objects[0]).as_u64() + 8)));
    drop(sheaves);
    assert_eq!(found(&m), Invariant::I21CacheCounts);
}

#[test]
fn a_sheaf_in_a_pocket_that_is_not_full_or_one_too_many() {
    for full in [false, true] {
        let (m, cache, ..) = scene();
        let buffer = m.slab.pool.take().unwrap();
        if full {
            // The machine has no pockets.
            let capacity = m.slab.shape(cache.index()).unwrap().capacity;
            let objects = m.objects(cache, capacity.into());
            m.slab
                .pool
                .with(&buffer, |sheaf| objects.iter().for_each(|&object| assert!(sheaf.push(60, m.phys(object)))));
            objects.into_iter().for_each(|object| assert!(m.slab.live.unmark(LiveMode::Bytes, m.phys(object))));
        }
        let mut sheaves = m.slab.cell(m.pages.base.cpu(), cache.index()).unwrap().try_local().unwrap();
        m.slab.pool.chain(&mut sheaves.spare.pocket, buffer);
        drop(sheaves);
        assert_eq!(found(&m), Invariant::I21CacheCounts);
    }
}

#[test]
fn a_buffer_that_nobody_has() {
    let (m, ..) = scene();
    let _lost = m.slab.pool.take().unwrap();
    assert_eq!(found(&m), Invariant::I21CacheCounts);
}

#[test]
fn a_list_whose_length_is_wrong() {
    let (m, cache, _, head) = scene();
    let frames = &m.pages.base.frames;
    let mut node = m.slab.nodes[cache.index()].lock();
    // The partial slab's links now lead into the full list.
    node.full.push_head(frames, head);
    drop(node);
    assert_eq!(found(&m), Invariant::I8ListCounts);
}
