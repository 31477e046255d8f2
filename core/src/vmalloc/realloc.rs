//! `vrealloc`.

use super::Vmalloc;
use super::area::{Link, Node, State};
use super::flags::VmallocArgs;
use crate::PAGE_SHIFT;
use crate::addr::{PageCount, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;

/// An area that `vmalloc` made.
struct Owned {
    at: Link,
    node: Node,
    requested: usize,
}

impl Owned {
    /// Bytes that have a frame behind them.
    fn mapped_bytes(&self) -> usize {
        (self.node.mapped as usize) << PAGE_SHIFT
    }
}

impl Vmalloc {
    /// Changes the size of a block that `vmalloc` gave.
    ///
    /// | new size | answer |
    /// |---|---|
    /// | 0 | the block is freed, null |
    /// | any, address null | as `vmalloc` |
    /// | up to the last requested | in place; with `ZERO` the rest is zeroed; with `IO` and `FS` whole pages go back, but not from under huge entries |
    /// | up to the end of the mapped pages | in place, nothing is zeroed |
    /// | larger | moved: new block, contents copied, old block freed |
    ///
    /// A caller that wants zeroed growth passes `ZERO` on every call from the first on: then the bytes between request
    /// and page end are zero already.
    ///
    /// # Errors
    ///
    /// [`AllocError::BadAddress`] if `addr` is not the start of such a block, and those of `vmalloc`; the old block is
    /// as before.
    pub(crate) fn vrealloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        if addr == VirtAddr::NULL {
            return if size == 0 { Ok(addr) } else { self.vmalloc(pages, slab, &VmallocArgs::new(size, gfp)) };
        }
        let old = self.owned_at(pages, addr)?;
        if size == 0 {
            return self.free_old(pages, slab, addr).map(|()| VirtAddr::NULL);
        }
        if size > old.mapped_bytes() {
            return self.move_block(pages, slab, addr, &old, size, gfp);
        }
        if size <= old.requested {
            self.shrink(pages, addr, &old, size, gfp);
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

    /// Keeps the address range and gives the pages after the new size back, if the flags allow what Linux has to do for
    /// that. The pages were in use until now, so they are flushed at once.
    fn shrink<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, old: &Owned, size: usize, gfp: GfpFlags) {
        let may_free = gfp.contains(GfpFlags::IO | GfpFlags::FS) && old.node.leaf == Order::ZERO;
        let keep = if may_free { PageCount::from_bytes_up(size).get() } else { old.node.mapped };
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
    fn zero_tail<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, from: usize, to: usize) {
        let tail = addr.checked_add(from as u64);
        let zeroed = tail.is_some_and(|tail| self.zero(pages, tail, to.saturating_sub(from)));
        debug_assert!(zeroed, "a live block has an unmapped page");
    }

    fn move_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        old: &Owned,
        size: usize,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let new = self.vmalloc(pages, slab, &VmallocArgs::new(size, gfp))?;
        let copied = self.copy(pages, addr, new, old.requested);
        debug_assert!(copied, "a live block has an unmapped page");
        self.free_old(pages, slab, addr)?;
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
