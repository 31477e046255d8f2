//! `vfree`, `vunmap`, and the purge.
//!
//! ```text
//! vfree:  state = Lazy ──► entries unmapped ──► on the lazy list, flush deferred
//! purge:  all nodes' lists collected ──► entries emptied, empty tables cut off ──► ONE flush ──► frames and tables freed,
//!         a quarter of each pool given back, addresses into pools or back to the window
//! ```
//!
//! Pages whose permissions the user of their area may have changed are unusable in the direct map during the flush, and
//! get their usual permissions back after it: then no processor remembers either of their addresses as it was. Such an
//! area is purged as soon as it is freed.

use super::area::{Link, Node, State};
use super::flags::VmFlags;
use super::record::Records;
use super::{Vmalloc, records};
use crate::addr::VirtAddr;
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, FreeError};
use crate::page::FrameKind;
use crate::paging::{Detached, TlbFlush, VpnRange};
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;
use crate::sync::Ordering;

/// The freed areas of a vmap node that wait for the flush, linked through their records, and what is known of them together.
#[derive(Clone, Copy)]
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

    /// Puts an area, already Lazy, at the head; `frames` are its own. Returns how many pages of address space it has.
    fn push(&mut self, records: Records<'_>, at: Link, flush: TlbFlush, frames: u64) -> u64 {
        let mut node = records.load(at);
        let owned = node.state.owns_frames();
        node.state = State::Lazy { next: self.head, owned };
        records.store(at, &node);
        self.head = at;
        self.span += node.span();
        self.frames += if owned { frames } else { 0 };
        self.unflushed = self.unflushed.and(flush);
        node.span()
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
        let retired = self.retire(&pages.base, addr, call)?;
        self.free_retired(pages, slab, retired);
        Ok(())
    }

    /// Unmaps an area that is Lazy, and has it wait for the flush.
    pub(super) fn free_retired<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        (at, node, shows_others): (Link, Node, bool),
    ) {
        let owned = if shows_others { self.let_go(pages, &node) } else { node.mapped };
        let flush = self.tables.unmap(pages, node.mapped_range());
        let waiting = self.defer(&pages.base, at, flush, owned);
        if node.flags.contains(VmFlags::FLUSH_RESET_PERMS) {
            pages.base.event(Event::PermsReset);
            self.purge(pages, slab, false);
        } else if waiting > self.lazy_max {
            self.purge_unless_under_way(pages, slab);
        }
    }

    /// Ends a mapping's hold on frames that it did not allocate, and with the area's references, if it has any, that too;
    /// returns how many frames are the area's own after that, since nobody else had a reference to them.
    fn let_go<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> u64 {
        let mut owned = 0;
        self.tables.visit(pages, node.mapped_range(), |page, entry| {
            let Some(frame) = entry.frame() else { return };
            pages.unmap_page(frame);
            if node.state.owns_frames() && pages.put_page_late(frame, FrameKind::Vmalloc) {
                pages.base.frames.set_private(frame, page.as_u64() as u32);
                owned += 1;
            }
        });
        owned
    }

    /// Puts a retired area, which owns so many frames, on the lazy list of its node; returns how many pages of address space
    /// wait in all.
    pub(super) fn defer<P>(&self, base: &Base<P>, at: Link, flush: TlbFlush, owned: u64) -> u64 {
        let records = records(base);
        let span = self.nodes.of(records.start(at)).lock().lazy.push(records, at, flush, owned);
        self.lazy_pages.fetch_add(span, Ordering::Relaxed) + span
    }

    /// Flushes once and gives back what all lazy areas held; returns how many frames. If it is forced, all blocks of
    /// `vm_map_ram` go that nobody uses, else only those that are nearly used up.
    pub(crate) fn purge<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, forced: bool) -> u64 {
        let _under_way = self.purging.lock();
        self.purge_all(pages, slab, forced)
    }

    /// The purge of a caller that may not wait.
    #[cold]
    #[inline(never)]
    pub(super) fn purge_unless_under_way<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) {
        if let Some(_under_way) = self.purging.try_lock() {
            self.purge_all(pages, slab, false);
        }
    }

    fn purge_all<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, forced: bool) -> u64 {
        let (mut gone, mut changed) = (Detached::new(), Detached::new());
        self.purge_blocks(pages, forced, &mut gone);
        let lazy = self.collect_lazy();
        if lazy.is_none() && gone.to_flush() == TlbFlush::NONE {
            return 0;
        }
        let unflushed = lazy.unwrap_or(TlbFlush::NONE);
        pages.base.event(Event::Purge);
        self.each_purged(&pages.base, |_, node| {
            let resets = node.flags.contains(VmFlags::FLUSH_RESET_PERMS);
            let gone = if resets { &mut changed } else { &mut gone };
            self.tables.take(pages, node.mapped_range(), node.state.owns_frames(), gone);
        });
        changed.hide_aliases(&pages.base);
        let flush = unflushed.and(gone.to_flush()).and(changed.to_flush());
        let flushed = flush.flush(&pages.base.platform);
        changed.restore_aliases(&pages.base, &flushed);
        let released = gone.release(pages, &flushed) + changed.release(pages, &flushed);
        self.decay_pools(pages, slab);
        self.each_purged(&pages.base, |at, node| self.reuse(pages, slab, (at, node), &flushed));
        self.nodes.all().for_each(|of| of.lock().purging = LazyList::EMPTY);
        released
    }

    /// Takes all lazy areas off their lists, for the purge, which alone reaches them then: an address of theirs is a double
    /// free. Returns what has to be flushed; `None` if there are none.
    fn collect_lazy(&self) -> Option<TlbFlush> {
        let mut unflushed = None;
        for of in self.nodes.all() {
            let mut of = of.lock();
            if of.lazy.head.is_nil() {
                continue;
            }
            self.lazy_pages.fetch_sub(of.lazy.span, Ordering::Relaxed);
            unflushed = Some(unflushed.unwrap_or(TlbFlush::NONE).and(of.lazy.unflushed));
            of.purging = core::mem::replace(&mut of.lazy, LazyList::EMPTY);
        }
        unflushed
    }

    /// Shows the areas that the purge has collected; `see` may give the record away.
    fn each_purged<P>(&self, base: &Base<P>, mut see: impl FnMut(Link, &Node)) {
        for of in self.nodes.all() {
            let mut at = of.lock().purging.head;
            while !at.is_nil() {
                let node = records(base).load(at);
                let State::Lazy { next, .. } = node.state else { break };
                see(at, &node);
                at = next;
            }
        }
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
