//! The list of free objects of a debug slab. Its links lie in the objects, where users can damage them.
//!
//! A link holds the address of the next free object, or 0 at the end. In [`Hardening::Paranoid`](crate::Hardening::Paranoid)
//! it is mixed with a secret of the cache and with the byte-reversed address of the link itself: who does not know the secret
//! cannot make it lead where he likes, and a link that was copied elsewhere leads nowhere.
//!
//! A link is never believed: it counts if it leads to an object of the same slab, and is followed if the bitmap says that
//! the object is free.

use super::Inspector;
use super::quarantine::stride_of_walk;
use crate::addr::{Pfn, PhysAddr, VirtAddr};
use crate::bug::SlabFinding;
use crate::platform::Platform;
use crate::slab::node::Node;

/// Where a link leads: to the object of this index, or to the end.
pub(super) type Link = Option<u32>;

/// What following a list to its end showed.
struct Walk {
    /// Free objects on it.
    length: u32,
    /// Whether it came back to where it was.
    is_cycle: bool,
}

impl<P: Platform> Inspector<'_, P> {
    /// The first free object of a slab.
    pub(super) fn first(&self, head: Pfn) -> Link {
        self.slabs.frames.private(head).checked_sub(1)
    }

    pub(super) fn set_first(&self, head: Pfn, first: Link) {
        self.slabs.frames.set_private(head, first.map_or(0, |index| index + 1));
    }

    /// Reads an object's link; `None` if it leads to no object of the slab.
    pub(super) fn link(&self, head: Pfn, object: PhysAddr) -> Option<Link> {
        let at = object.saturating_add(self.layout.free_pointer);
        let word = self.pages.base.mem.read_u64(at)? ^ self.mask(at);
        if word == 0 {
            return Some(None);
        }
        let next = self.pages.base.phys(VirtAddr::new(word))?;
        let (owner, index) = self.slabs.locate(next);
        let leads = owner == head && index < self.slabs.objects(head) && self.slabs.object(head, index) == next;
        leads.then_some(Some(index))
    }

    pub(super) fn set_link(&self, object: PhysAddr, next: Option<PhysAddr>) {
        let base = &self.pages.base;
        let at = object.saturating_add(self.layout.free_pointer);
        let word = next.map_or(0, |next| base.virt(next).as_u64()) ^ self.mask(at);
        let written = base.mem.write_u64(at, word);
        debug_assert!(written, "a slab lies outside memory");
    }

    /// What the word at an address is mixed with.
    fn mask(&self, at: PhysAddr) -> u64 {
        if self.secret == 0 { 0 } else { self.secret ^ self.pages.base.virt(at).as_u64().swap_bytes() }
    }

    /// Links all objects of a fresh slab: in ascending order, or with a secret in one that it decides.
    pub(super) fn link_all(&self, head: Pfn) {
        let objects = self.slabs.objects(head);
        let of_slab = if self.secret == 0 { 0 } else { self.secret ^ u64::from(head.as_u32()) };
        let (start, step) = stride_of_walk(of_slab, objects);
        let nth = |n: u32| ((u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(objects.max(1))) as u32;
        for n in 0..objects {
            let next = (n + 1 < objects).then(|| self.slabs.object(head, nth(n + 1)));
            self.set_link(self.slabs.object(head, nth(n)), next);
        }
        self.set_first(head, (objects > 0).then(|| nth(0)));
    }

    /// Puts an object in front of the list.
    pub(super) fn push(&self, head: Pfn, index: u32) {
        let next = self.first(head).map(|first| self.slabs.object(head, first));
        self.set_link(self.slabs.object(head, index), next);
        self.set_first(head, Some(index));
    }

    /// Where the list goes on after an object. A link that cannot be followed is told of and cut off.
    pub(super) fn next(&self, head: Pfn, index: u32) -> Link {
        let object = self.slabs.object(head, index);
        let next = self.link(head, object).filter(|next| next.is_none_or(|next| self.may_be_free(head, next)));
        if next.is_none() {
            self.tell(head, Some(object), SlabFinding::FreeChain);
            self.set_link(object, None);
        }
        next.flatten()
    }

    /// Tells whether a link may lead to an object: not while somebody has it.
    fn may_be_free(&self, head: Pfn, index: u32) -> bool {
        !self.slabs.occupancy.is_taken(head, index) || !self.is_live(self.slabs.object(head, index))
    }

    /// Follows the list of a slab and makes the slab's counts agree with it. Objects that the list no longer reaches are
    /// lost until it reaches them again.
    pub(super) fn check_chain(&self, node: &mut Node, head: Pfn) -> bool {
        let before = self.findings.get();
        let mut walk = self.walk(head, |_| ());
        if walk.is_cycle {
            self.tell(head, None, SlabFinding::FreeCycle);
            self.set_first(head, None);
            self.tell(head, None, SlabFinding::ListCleared);
            walk.length = 0;
        }
        let (objects, counter) = (self.slabs.objects(head), self.slabs.inuse(head));
        let counted = objects - walk.length.min(objects);
        if counter != counted {
            if !walk.is_cycle {
                self.tell(head, None, SlabFinding::ObjectCount { counter, counted });
                self.tell(head, None, SlabFinding::CountAdjusted(counted));
            }
            self.adjust(node, head, counter, counted);
        }
        self.findings.get() == before
    }

    fn walk(&self, head: Pfn, mut visit: impl FnMut(u32)) -> Walk {
        let mut walk = Walk { length: 0, is_cycle: false };
        let mut at = self.first(head);
        while let Some(index) = at {
            if walk.length == self.slabs.objects(head) {
                walk.is_cycle = true;
                break;
            }
            visit(index);
            walk.length += 1;
            at = self.next(head, index);
        }
        walk
    }

    /// Makes bitmap and counters say what the list says.
    fn adjust(&self, node: &mut Node, head: Pfn, counter: u32, counted: u32) {
        let objects = self.slabs.objects(head);
        self.slabs.occupancy.take(head, objects, objects, |_| ());
        self.walk(head, |index| {
            self.slabs.occupancy.release(head, index);
        });
        let shift = |count: u64| (count + u64::from(counted)).saturating_sub(u64::from(counter));
        node.inuse = shift(node.inuse);
        node.lost = shift(node.lost);
        self.slabs.frames.set_inuse(head, counted as u16);
        node.relist(self.slabs, head);
    }
}
