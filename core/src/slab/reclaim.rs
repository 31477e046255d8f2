//! Giving back what nobody uses: cached objects to their slabs, empty slabs to the page allocator.

use super::SlabLayer;
use super::node::{Node, Slabs};
use super::sheaf::{CpuSheaves, SheafId, Spares};
use crate::buddy::PageAllocator;
use crate::page::PageList;
use crate::platform::{CpuId, Platform};
use crate::sync::SpinLock;

impl SlabLayer {
    /// Empties the sheaves of all CPUs and all barns and releases all empty slabs; returns how many pages came free.
    pub(crate) fn reclaim<P: Platform>(&self, pages: &PageAllocator<P>) -> u64 {
        self.caches().map(|id| self.trim(pages, id)).sum()
    }

    /// Does the same for one cache.
    pub(super) fn trim<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> u64 {
        // A cache without slabs has no object in any sheaf: no other CPU needs to be disturbed.
        if self.nr_slabs(id) == 0 { 0 } else { self.strip(pages, id) }
    }

    /// Does the same for a cache that may have nothing but empty buffers, and gives those back too.
    pub(super) fn strip<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> u64 {
        let Some(slabs) = self.slabs(pages, id) else { return 0 };
        self.drain_all_deferred(pages);
        let flush = |cpu| self.with_sheaves(pages, cpu, id, |sheaves| self.flush_sheaves(pages, id, &slabs, sheaves));
        let from_cpus: u64 = self.cpus(pages).filter_map(flush).sum();
        let from_barns: u64 = self.nodes_of(id).map(|node| self.flush_barn(pages, id, &slabs, node)).sum();
        let from_quarantine = self.flush_quarantine(pages, id);
        from_cpus + from_barns + from_quarantine + self.release_empty(pages, id, &slabs)
    }

    /// Releases all empty slabs of a cache; returns how many pages came free.
    pub(super) fn release_empty<P: Platform>(&self, pages: &PageAllocator<P>, id: usize, slabs: &Slabs<'_>) -> u64 {
        let mut discard = PageList::EMPTY;
        self.nodes_of(id).for_each(|node| node.lock().detach_empty(slabs, &mut discard));
        self.release_slabs(pages, discard)
    }

    /// Slabs of a cache on all nodes.
    pub(super) fn nr_slabs(&self, id: usize) -> u64 {
        self.nodes_of(id).map(|node| node.lock().nr_slabs()).sum()
    }

    pub(super) fn cpus<P: Platform>(&self, pages: &PageAllocator<P>) -> impl Iterator<Item = CpuId> + use<P> {
        (0..pages.base.geometry.cpus).map(CpuId::new)
    }

    /// Works on the sheaves of any CPU; `None` if they cannot be borrowed. The caller holds no lock.
    pub(super) fn with_sheaves<P: Platform, R>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        id: usize,
        work: impl FnOnce(&mut CpuSheaves) -> R,
    ) -> Option<R> {
        let cell = self.cell(cpu, id)?;
        if cpu == pages.base.cpu() {
            cell.try_local().map(|mut sheaves| work(&mut sheaves))
        } else {
            cell.try_remote(&pages.base.platform).map(|mut sheaves| work(&mut sheaves))
        }
    }

    fn flush_sheaves<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        sheaves: &mut CpuSheaves,
    ) -> u64 {
        let released = self.return_objects(pages, id, slabs, sheaves.main.objects());
        sheaves.main.clear();
        let spares = &mut sheaves.spare;
        let next = || spares.first.take().or_else(|| self.pool.unchain(&mut spares.pocket));
        released + core::iter::from_fn(next).map(|buffer| self.flush_buffer(pages, id, slabs, buffer)).sum::<u64>()
    }

    /// Returns a buffer's objects to their slabs and the buffer to the pool.
    fn flush_buffer<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        buffer: SheafId,
    ) -> u64 {
        let released = self.pool.with(&buffer, |sheaf| self.return_objects(pages, id, slabs, sheaf.objects()));
        self.pool.put(buffer);
        released.unwrap_or(0)
    }

    fn flush_barn<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        node: &SpinLock<Node>,
    ) -> u64 {
        // Each buffer is taken out before it is emptied: its objects go back under the same lock.
        let next = || {
            let mut node = node.lock();
            node.barn.full.pop().or_else(|| node.barn.empty.pop())
        };
        core::iter::from_fn(next).map(|buffer| self.flush_buffer(pages, id, slabs, buffer)).sum()
    }

    /// Objects in the main and spare sheaves of all CPUs.
    pub(super) fn objects_on_cpus<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> u64 {
        let count = |sheaves: &mut CpuSheaves| {
            let (mut objects, Spares { first, pocket }) = (u64::from(sheaves.main.len()), &sheaves.spare);
            let mut count = |buffer: &SheafId| {
                objects += self.buffered(buffer);
                Ok(())
            };
            let counted =
                first.as_ref().map_or(Ok(()), &mut count).and_then(|()| self.pool.each_chained(pocket, count));
            debug_assert_eq!(counted, Ok(()));
            objects
        };
        self.cpus(pages).filter_map(|cpu| self.with_sheaves(pages, cpu, id, count)).sum()
    }

    /// Objects in a buffer.
    pub(super) fn buffered(&self, buffer: &SheafId) -> u64 {
        self.pool.with(buffer, |sheaf| u64::from(sheaf.len())).unwrap_or(0)
    }

    /// Pages in the slabs of all caches.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.nodes.iter().map(|node| node.lock().pages).sum::<u64>() + self.rcu.slab_pages()
    }
}
