//! Giving back what nobody holds.

use super::Kmem;
use crate::buddy::OwnerClass;
use crate::platform::{Event, Platform};

impl<P: Platform> Kmem<P> {
    /// Gives back everything that nobody holds, and returns how many pages that freed.
    ///
    /// In this order, so that one round is enough: what waits for readers is freed once they have gone; what callers freed
    /// that may not wait; lazily freed vmalloc ranges are flushed, and their frames, page tables, addresses and descriptors
    /// released; the sheaves of all CPUs are flushed into their slabs and empty slabs released; the per-CPU pages of all CPUs
    /// go back to the buddy and merge.
    pub fn reclaim(&self) -> u64 {
        let free = || self.pages.owned(OwnerClass::Free);
        let before = free();
        if self.slab.has_pending() {
            self.pages.base.event(Event::ReclaimRcu);
            self.kvfree_rcu_barrier();
        }
        self.drain_deferred_vfree();
        self.pages.base.event(Event::ReclaimVa);
        self.vmalloc.purge(&self.pages, &self.slab, true);
        self.vmalloc.empty_pools(&self.pages, &self.slab);
        self.pages.base.event(Event::ReclaimSlab);
        self.slab.reclaim(&self.pages);
        if self.slab.has_pending() {
            // Slabs whose frames keep their type for readers.
            self.kvfree_rcu_barrier();
        }
        self.pages.base.event(Event::ReclaimPcp);
        self.pages.drain_all_pages();
        self.pages.drop_boosts();
        free().saturating_sub(before)
    }
}
