//! Frees that wait for readers: `kfree_rcu` and its relatives.

use super::Kmem;
use crate::addr::VirtAddr;
use crate::error::FreeError;
use crate::platform::{Event, Platform};
use crate::slab::{PutOff, RCU_HEAD_BYTES};

/// How often batches follow each other: one that waits, one that was collected, and the slabs that both gave up, with
/// room for what other CPUs add. More is left to the next call.
const ROUNDS: usize = 8;

impl<P: Platform> Kmem<P> {
    /// Frees a block of [`Self::kmalloc`] or an object of any cache once every reader that may still see it has gone. Never
    /// waits. Null and zero-size addresses are ignored.
    ///
    /// From `head` on, 16 bytes of the block are the allocator's from now on: it uses them when it finds no other memory
    /// to remember the block. Everything else stays as it is until the block is freed.
    ///
    /// # Errors
    ///
    /// As [`Self::kfree`], which detects a second call for the same block; [`FreeError::BadRcuHead`] for a head that is not
    /// aligned to 8 bytes, not within the first 4096, or not wholly in the block.
    pub fn kfree_rcu(&self, addr: VirtAddr, head: usize) -> Result<(), FreeError> {
        self.put_off(addr, Some(head))
    }

    /// [`Self::kfree_rcu`] of a block of [`Self::kvmalloc`], or of either kind alone.
    ///
    /// # Errors
    ///
    /// As [`Self::kfree_rcu`] and [`Self::vfree`].
    pub fn kvfree_rcu(&self, addr: VirtAddr, head: usize) -> Result<(), FreeError> {
        if !self.is_vmalloc_addr(addr) {
            return self.put_off(addr, Some(head));
        }
        let size = self.vmalloc.size_of(&self.pages, addr)?;
        if !head.is_multiple_of(8) || head >= crate::PAGE_SIZE || head + RCU_HEAD_BYTES > size {
            return Err(FreeError::BadRcuHead { addr, offset: head });
        }
        self.put_area_off(addr)
    }

    /// [`Self::kvfree_rcu`] without a head in the block. Waits for a grace period if there is no memory to remember the
    /// block: the caller holds no lock and is no reader.
    ///
    /// # Errors
    ///
    /// As [`Self::kfree`] and [`Self::vfree`].
    pub fn kvfree_rcu_mightsleep(&self, addr: VirtAddr) -> Result<(), FreeError> {
        if self.is_vmalloc_addr(addr) { self.put_area_off(addr) } else { self.put_off(addr, None) }
    }

    fn put_off(&self, addr: VirtAddr, head: Option<usize>) -> Result<(), FreeError> {
        if addr.is_zero_or_null() {
            return Ok(());
        }
        match self.slab.put_off(&self.pages, addr, head)? {
            PutOff::OnCpu => (),
            PutOff::Queued => self.free_ready_batches(),
            PutOff::Wait(object) => {
                self.pages.base.event(Event::RcuSynchronized);
                self.pages.base.platform.synchronize_rcu();
                self.slab.free_after_grace(&self.pages, object);
            }
        }
        Ok(())
    }

    fn put_area_off(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.slab.put_off_area(|batch| self.vmalloc.put_off(&self.pages, addr, batch))?;
        self.pages.base.event(Event::RcuArea);
        self.free_ready_batches();
        Ok(())
    }

    /// Frees what has waited long enough, and starts the wait for what came since, rcu sheaves that are not full
    /// included. A machine calls it now and then, so that few frees do not wait for many (Linux: every five seconds).
    pub fn kfree_rcu_monitor(&self) {
        self.slab.collect_rcu_sheaves(&self.pages);
        self.free_ready_batches();
    }

    /// Waits until everything that was put off before is freed. The caller holds no lock and is no reader.
    pub fn kvfree_rcu_barrier(&self) {
        for _ in 0..ROUNDS {
            self.kfree_rcu_monitor();
            if !self.slab.has_pending() {
                return;
            }
            self.pages.base.event(Event::RcuBarrier);
            self.pages.base.platform.synchronize_rcu();
        }
    }

    fn free_ready_batches(&self) {
        for _ in 0..ROUNDS {
            let Some(ready) = self.slab.next_ready(&self.pages) else { return };
            if let Some(batch) = ready.areas() {
                self.vmalloc.free_put_off(&self.pages, &self.slab, batch);
            }
            self.slab.free_ready(&self.pages, ready);
        }
    }
}

#[cfg(test)]
#[path = "rcu_tests.rs"]
mod tests;
