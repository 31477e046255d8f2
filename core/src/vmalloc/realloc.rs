//! `vrealloc`: which row of the contract a call is, and what happens in place. How an area grows is in `resize`.

use super::Vmalloc;
use super::area::{Link, Node, State};
use super::flags::{VmFlags, VmallocArgs};
use crate::PAGE_SHIFT;
use crate::addr::{PageCount, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;

/// An area that `vmalloc` made.
pub(super) struct Owned {
    pub(super) at: Link,
    pub(super) node: Node,
    pub(super) requested: usize,
}

impl Owned {
    /// Bytes that have a frame behind them.
    pub(super) fn mapped_bytes(&self) -> usize {
        (self.node.mapped as usize) << PAGE_SHIFT
    }

    /// Whether the pages of the area may move.
    pub(super) fn is_movable(&self) -> bool {
        self.node.flags.contains(VmFlags::MOVABLE)
    }

    /// The flags for more pages of the area: movable if its pages are.
    fn like(&self, gfp: GfpFlags) -> GfpFlags {
        if self.is_movable() { gfp | GfpFlags::MOVABLE } else { gfp - GfpFlags::MOVABLE }
    }

    /// How many pages stay mapped if the area shrinks to `size` bytes.
    fn pages_kept(&self, size: usize, gfp: GfpFlags) -> u64 {
        let keeps = self.node.leaf > Order::ZERO || self.node.flags.intersects(VmFlags::KEEPS_PAGES);
        let gives = gfp.contains(GfpFlags::IO | GfpFlags::FS) && !keeps;
        if gives { PageCount::from_bytes_up(size).get() } else { self.node.mapped }
    }
}

impl Vmalloc {
    /// Changes the size of a block that `vmalloc` gave; of the arguments, size, alignment, flags and node count.
    ///
    /// | new size | answer |
    /// |---|---|
    /// | any, address null | as `vmalloc` |
    /// | 0 | the block is freed, null |
    /// | any, `THISNODE` and the first page on another node | a new block on that node, contents copied, old block freed |
    /// | up to the last requested | in place; with `ZERO` the rest is zeroed; with `IO` and `FS` whole pages go back, but not from under huge entries |
    /// | up to the end of the mapped pages | in place, nothing is zeroed |
    /// | larger, the addresses behind are free | in place, with new pages at the end |
    /// | larger | elsewhere, with the same pages and new ones at the end; an area of huge entries is copied |
    ///
    /// A caller that wants zeroed growth passes `ZERO` on every call from the first on: then the bytes between request
    /// and page end are zero already.
    ///
    /// # Errors
    ///
    /// [`AllocError::BadAddress`] if `addr` is not the start of such a block, [`AllocError::BadAlign`] if it is no multiple
    /// of the alignment, and those of `vmalloc`; the old block is as before.
    pub(crate) fn vrealloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        args: &VmallocArgs,
    ) -> Result<VirtAddr, AllocError> {
        let size = args.size;
        if addr == VirtAddr::NULL {
            return if size == 0 { Ok(addr) } else { self.vmalloc(pages, slab, args) };
        }
        let old = self.owned_at(pages, addr)?;
        if size == 0 {
            return self.free_old(pages, slab, addr).map(|()| VirtAddr::NULL);
        }
        if !args.align.is_power_of_two() || addr.as_u64() & (args.align as u64 - 1) != 0 {
            return Err(AllocError::BadAlign(args.align));
        }
        let args = &VmallocArgs { gfp: old.like(args.gfp), ..*args };
        let grows = size > old.mapped_bytes();
        if self.is_elsewhere(pages, addr, args) || (grows && old.node.leaf > Order::ZERO) {
            return self.copy_block(pages, slab, addr, &old, args);
        }
        if grows {
            return self.grow(pages, slab, &old, args);
        }
        if size <= old.requested {
            self.shrink(pages, addr, &old, size, args.gfp);
        } else {
            self.edit(&pages.base, old.at, |node| node.state = State::Vmalloc { requested: size });
        }
        pages.base.event(Event::ReallocInPlace);
        Ok(addr)
    }

    fn owned_at<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<Owned, AllocError> {
        match self.live_at(&pages.base, addr) {
            Ok((at, node @ Node { state: State::Vmalloc { requested }, .. })) => Ok(Owned { at, node, requested }),
            _ => Err(AllocError::BadAddress(addr)),
        }
    }

    /// Tells whether the caller insists on a node and the first page is on another.
    fn is_elsewhere<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, args: &VmallocArgs) -> bool {
        let wanted = args.node.filter(|_| args.gfp.contains(GfpFlags::THISNODE));
        let first = || self.vmalloc_to_page(pages, addr).and_then(|frame| pages.node_of(frame));
        wanted.is_some_and(|node| first() != Some(node))
    }

    /// Keeps the address range and gives the pages after the new size back, if flags and area allow what has to be done
    /// for that. The pages were in use until now, so they are flushed at once.
    fn shrink<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, old: &Owned, size: usize, gfp: GfpFlags) {
        let keep = old.pages_kept(size, gfp);
        if gfp.wants_zero() {
            self.zero_tail(pages, addr, size, old.requested);
        }
        self.edit(&pages.base, old.at, |node| {
            node.mapped = keep;
            node.state = State::Vmalloc { requested: size };
        });
        if keep < old.node.mapped {
            self.take_now(pages, old.node.mapped_range().after(keep), true);
            pages.base.event(Event::VreallocShrunk);
        }
    }

    /// Zeroes the bytes `from..to` of a block.
    pub(super) fn zero_tail<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, from: usize, to: usize) {
        let tail = addr.checked_add(from as u64);
        let zeroed = tail.is_some_and(|tail| self.zero(pages, tail, to.saturating_sub(from)));
        debug_assert!(zeroed, "a live block has an unmapped page");
    }

    /// A whole new block, as Linux makes one for every growth: here only where the pages cannot be the same.
    fn copy_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        old: &Owned,
        args: &VmallocArgs,
    ) -> Result<VirtAddr, AllocError> {
        let new = self.vmalloc(pages, slab, args)?;
        let copied = self.copy(pages, addr, new, old.requested.min(args.size));
        debug_assert!(copied, "a live block has an unmapped page");
        self.free_old(pages, slab, addr)?;
        pages.base.event(Event::VreallocCopied);
        pages.base.event(Event::ReallocMoved);
        Ok(new)
    }

    fn free_old<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
    ) -> Result<(), AllocError> {
        self.vfree(pages, slab, addr).map_err(|_| AllocError::BadAddress(addr))
    }
}
