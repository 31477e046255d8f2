//! `vfree`, `vunmap`, and the purge.
//!
//! ```text
//! vfree:  state = Lazy ──► entries unmapped ──► on the lazy list, flush deferred
//! purge:  list taken ──► entries emptied, empty tables cut off ──► ONE flush ──► frames, tables, areas freed
//! ```

use super::area::{Link, Node, State, Store};
use super::{Space, Vmalloc, misplaced, records};
use crate::addr::VirtAddr;
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, FreeError};
use crate::paging::{Detached, TlbFlush, VpnRange};
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;

/// The freed areas that wait for the flush, linked through their records, and what is known of them together.
pub(super) struct LazyList {
    head: Link,
    /// Their pages of address space, guards included.
    span: u64,
    /// The frames that they own.
    frames: u64,
    unflushed: TlbFlush,
}

impl LazyList {
    pub(super) const EMPTY: Self = Self { head: Link::NIL, span: 0, frames: 0, unflushed: TlbFlush::NONE };

    pub(super) const fn head(&self) -> Link {
        self.head
    }

    pub(super) const fn span(&self) -> u64 {
        self.span
    }

    pub(super) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Tells whether the deferred flush will make the processors forget `range`.
    pub(super) fn will_flush(&self, range: VpnRange) -> bool {
        self.unflushed.covers(range)
    }

    /// Puts an area, already Lazy, at the head.
    fn push(&mut self, store: &impl Store, at: Link, flush: TlbFlush) {
        let mut node = store.load(at);
        let owned = node.state.owns_frames();
        node.state = State::Lazy { next: self.head, owned };
        store.store(at, &node);
        self.head = at;
        self.span += node.span();
        self.frames += if owned { node.mapped } else { 0 };
        self.unflushed = self.unflushed.and(flush);
    }
}

/// How many lazy pages may wait: `fls(cpus) * 32 MiB` as in Linux, but at most 1/32 of memory, since here the frames
/// wait too.
pub(super) fn lazy_max_pages(cpus: u16, managed: u64) -> u64 {
    const PAGES_IN_32_MIB: u64 = (32 << 20) >> crate::PAGE_SHIFT;
    let fls = u64::from(u16::BITS - cpus.leading_zeros());
    (fls * PAGES_IN_32_MIB).min(managed / 32)
}

impl Vmalloc {
    /// Frees the area that starts at `addr`; null is ignored. An area made by `vmap` is unmapped and its frames are
    /// left alone, as in Linux.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing is changed then.
    pub(crate) fn vfree<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        self.free_area(pages, slab, addr, BlockKind::Vmalloc)
    }

    /// Takes a mapping that `vmap` made away; null is ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing is changed then.
    pub(crate) fn vunmap<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
    ) -> Result<(), FreeError> {
        self.free_area(pages, slab, addr, BlockKind::Vmap)
    }

    fn free_area<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        call: BlockKind,
    ) -> Result<(), FreeError> {
        if addr == VirtAddr::NULL {
            return Ok(());
        }
        let (at, node) = self.retire(&pages.base, addr, call)?;
        if !node.state.owns_frames() {
            self.tables.visit(pages, node.mapped_range(), |_, entry| {
                if let Some(frame) = entry.frame() {
                    pages.unmap_page(frame);
                }
            });
        }
        let flush = self.tables.unmap(pages, node.mapped_range());
        if self.defer(&pages.base, at, flush) > self.lazy_max {
            self.purge_unless_under_way(pages, slab);
        }
        Ok(())
    }

    /// Makes a live area Lazy: from here on it is nobody's, and only this call works on it.
    fn retire<P>(&self, base: &Base<P>, addr: VirtAddr, call: BlockKind) -> Result<(Link, Node), FreeError> {
        if let Some(error) = misplaced(base, addr, call) {
            return Err(error);
        }
        let space = self.space.lock();
        let (at, mut node) = space.live_at(base, addr)?;
        let owned = node.state.owns_frames();
        if owned && call == BlockKind::Vmap {
            return Err(FreeError::WrongKind { addr, expected: call, found: BlockKind::Vmalloc });
        }
        node.state = State::Lazy { next: Link::NIL, owned };
        records(base).store(at, &node);
        Ok((at, node))
    }

    /// Puts a retired area on the lazy list; returns how many pages of address space wait.
    fn defer<P>(&self, base: &Base<P>, at: Link, flush: TlbFlush) -> u64 {
        let mut space = self.space.lock();
        space.lazy.push(&records(base), at, flush);
        space.lazy.span
    }

    /// Flushes once and gives back what all lazy areas held (Linux: `vm_unmap_aliases`); returns how many frames.
    pub(crate) fn purge<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) -> u64 {
        let _under_way = self.purging.lock();
        self.purge_all(pages, slab)
    }

    /// The purge of a caller that may not wait.
    #[cold]
    #[inline(never)]
    fn purge_unless_under_way<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) {
        if let Some(_under_way) = self.purging.try_lock() {
            self.purge_all(pages, slab);
        }
    }

    fn purge_all<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) -> u64 {
        let lazy = self.space.lock().take_lazy();
        if lazy.head.is_nil() {
            return 0;
        }
        pages.base.event(Event::Purge);
        let mut gone = Detached::new();
        self.each_lazy(&pages.base, lazy.head, |_, node| {
            self.tables.take(pages, node.mapped_range(), node.state.owns_frames(), &mut gone);
        });
        let flushed = lazy.unflushed.and(gone.to_flush()).flush(&pages.base.platform);
        let released = gone.release(pages, &flushed);
        self.each_lazy(&pages.base, lazy.head, |at, node| self.forget(pages, slab, at, node.start));
        released
    }

    /// Shows the lazy areas from `head` on; `see` may free the record. The lock is held for the read only: a neighbour
    /// that is rebalanced writes the record's links.
    fn each_lazy<P>(&self, base: &Base<P>, head: Link, mut see: impl FnMut(Link, &Node)) {
        let mut at = head;
        while let Some((node, next)) = self.lazy_at(base, at) {
            see(at, &node);
            at = next;
        }
    }

    /// The lazy area whose record is at `at`, and where the next one's is.
    fn lazy_at<P>(&self, base: &Base<P>, at: Link) -> Option<(Node, Link)> {
        if at.is_nil() {
            return None;
        }
        let _space = self.space.lock();
        let node = records(base).load(at);
        let State::Lazy { next, .. } = node.state else { return None };
        Some((node, next))
    }
}

impl Space {
    /// Takes all lazy areas off the list. Nobody else reaches them then: an address of theirs is a double free.
    fn take_lazy(&mut self) -> LazyList {
        core::mem::replace(&mut self.lazy, LazyList::EMPTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_follows_the_formula_and_stays_small_on_small_machines() {
        const HUGE: u64 = 1 << 32;
        for (cpus, pages) in [(1, 8192), (2, 16384), (3, 16384), (4, 24576), (7, 24576), (8, 32768), (16, 40960)] {
            assert_eq!(lazy_max_pages(cpus, HUGE), pages, "{cpus} CPUs");
        }
        for (cpus, pages) in [(64, 57344), (128, 65536), (256, 73728)] {
            assert_eq!(lazy_max_pages(cpus, HUGE), pages, "{cpus} CPUs");
        }
        assert_eq!(lazy_max_pages(1, 1024), 32);
    }
}
