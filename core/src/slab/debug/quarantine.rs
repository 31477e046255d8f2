//! What [`Hardening::Paranoid`] adds to debug caches: every cache is one, its free objects are in
//! an order that nobody can guess, its red zones and free pointers depend on a secret, and a freed object waits before it can
//! be handed out again.
//!
//! An object in quarantine is painted as a free one and counts as lost: it is neither live nor on the list of its slab. When it
//! leaves, it is checked like one that is handed out: who wrote to it after his free is told of.

use super::{Inspector, State};
use crate::addr::{Pfn, PhysAddr};
use crate::geometry::Geometry;
use crate::hardening::Hardening;
use crate::page::PageList;
use crate::platform::{CpuId, Platform};
use crate::raw::{Carver, MetaSlice};
use crate::slab::SlabFlags;
use crate::slab::node::{LIST_ASIDE, Node};
use crate::sync::SpinLock;

/// How many freed objects a CPU keeps.
const DEPTH: usize = 32;

/// The checks of every cache in paranoid mode.
pub(in crate::slab) fn paranoid_flags(hardening: Hardening) -> SlabFlags {
    match hardening {
        Hardening::Paranoid => {
            SlabFlags::CONSISTENCY_CHECKS | SlabFlags::RED_ZONE | SlabFlags::POISON | SlabFlags::STORE_USER
        }
        Hardening::Off | Hardening::Checked => SlabFlags::empty(),
    }
}

/// The freed objects of one CPU, in the order of their frees.
struct Ring {
    objects: [Option<PhysAddr>; DEPTH],
    /// Where the next one goes: the place of the oldest.
    next: usize,
}

/// The freed objects of all CPUs; without CPUs there is no quarantine.
pub(in crate::slab) struct Quarantine {
    rings: MetaSlice<SpinLock<Ring>>,
}

impl Quarantine {
    pub(in crate::slab) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let rings = if geometry.hardening == Hardening::Paranoid { usize::from(geometry.cpus) } else { 0 };
        Self { rings: carver.carve(rings, |_| SpinLock::new(Ring { objects: [None; DEPTH], next: 0 })) }
    }

    /// Tells whether freed objects wait.
    pub(super) fn is_on(&self) -> bool {
        !self.rings.is_empty()
    }

    /// Puts a freed object in; returns the one that has waited longest if there is no room for both.
    pub(super) fn push(&self, cpu: CpuId, object: PhysAddr) -> Option<PhysAddr> {
        let Some(ring) = self.rings.get(cpu.index()) else { return Some(object) };
        let mut ring = ring.lock();
        let at = ring.next;
        ring.next = (at + 1) % DEPTH;
        ring.objects.get_mut(at).and_then(|slot| slot.replace(object))
    }

    /// All objects that wait.
    pub(in crate::slab) fn each(&self, mut see: impl FnMut(PhysAddr)) {
        self.rings.iter().for_each(|ring| ring.lock().objects.iter().flatten().copied().for_each(&mut see));
    }

    /// Takes an object out that `wanted` accepts.
    pub(super) fn take(&self, wanted: impl Fn(PhysAddr) -> bool) -> Option<PhysAddr> {
        let is_wanted = |slot: &&mut Option<PhysAddr>| slot.is_some_and(&wanted);
        self.rings.iter().find_map(|ring| ring.lock().objects.iter_mut().find(is_wanted).and_then(Option::take))
    }
}

/// Spreads a number over all bits of another one; the inverse is of no use without knowing the input of all calls.
pub(super) const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A walk over `0..count` that meets each number once: where it starts and how far it goes each time.
pub(super) fn stride_of_walk(secret: u64, count: u32) -> (u32, u32) {
    if secret == 0 || count < 2 {
        return (0, 1);
    }
    let random = mix(secret);
    let start = (random % u64::from(count)) as u32;
    let from = (random >> 32) as u32 % count;
    let step = (0..count).map(|n| 1 + (from + n) % (count - 1)).find(|&step| greatest_common_divisor(step, count) == 1);
    (start, step.unwrap_or(1))
}

const fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl<P: Platform> Inspector<'_, P> {
    /// Puts an object that waited in quarantine back into its slab.
    pub(super) fn release(&self, node: &mut Node, object: PhysAddr, discard: &mut PageList) {
        let (head, index): (Pfn, u32) = self.slabs.locate(object);
        let is_waiting = self.slabs.occupancy.is_taken(head, index) && !self.is_live(object);
        if !is_waiting || self.slabs.frames.list(head) == LIST_ASIDE {
            return;
        }
        self.check_object(head, object, State::Free);
        node.lost = node.lost.saturating_sub(1);
        self.push(head, index);
        node.release(self.slabs, object, discard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;
    use std::vec::Vec;

    #[test]
    fn a_walk_meets_each_object_once_and_differs_between_slabs() {
        for count in 0..200 {
            let (start, step) = stride_of_walk(77, count);
            let mut seen: Vec<u32> = (0..count).map(|n| (start + n * step) % count).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "{count}");
        }
        assert_ne!(stride_of_walk(1, 64), stride_of_walk(2, 64));
        assert_eq!(stride_of_walk(0, 64), (0, 1), "without a secret in order");
    }

    #[test]
    fn the_oldest_leaves_when_the_ring_is_full() {
        let mut geometry = Geometry::flat(64);
        geometry.hardening = Hardening::Paranoid;
        let quarantine = Quarantine::carve(&geometry, &mut MetaRegion::heap(4096).carver().unwrap());
        let cpu = CpuId::new(0);
        for n in 0..DEPTH as u64 {
            assert_eq!(quarantine.push(cpu, PhysAddr::new(n)), None);
        }
        assert_eq!(quarantine.push(cpu, PhysAddr::new(99)), Some(PhysAddr::new(0)));
        assert_eq!(quarantine.take(|object| object.as_u64() > 40), Some(PhysAddr::new(99)));
        assert_eq!(quarantine.take(|object| object.as_u64() > 40), None);
        geometry.hardening = Hardening::Checked;
        let off = Quarantine::carve(&geometry, &mut MetaRegion::heap(4096).carver().unwrap());
        assert!(!off.is_on());
        assert_eq!(off.push(cpu, PhysAddr::new(7)), Some(PhysAddr::new(7)));
    }
}
