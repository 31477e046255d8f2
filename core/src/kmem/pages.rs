//! The page allocator's public calls.

use super::Kmem;
use crate::addr::{Pfn, VirtAddr};
use crate::buddy::MigrateType;
use crate::buddy::Missed;
use crate::error::{AllocError, FreeError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Platform;

impl<P: Platform> Kmem<P> {
    /// Allocates 2^`order` physically contiguous pages, aligned to their size.
    ///
    /// # Errors
    ///
    /// [`AllocError::OrderTooLarge`] above the geometry's largest order, [`AllocError::BadFlags`] for contradictory
    /// zones or mobility, [`AllocError::NoPages`] when no allowed zone has a block above its watermark.
    #[inline(always)]
    pub fn alloc_pages(&self, order: Order, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        let missed = if order == Order::ZERO { self.pages.take_page(gfp) } else { Err(Missed::NotAsked) };
        match missed {
            Ok(page) => Ok(page),
            Err(missed) => self.alloc_pages_slow(order, gfp, missed),
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_pages_slow(&self, order: Order, gfp: GfpFlags, missed: Missed) -> Result<Pfn, AllocError> {
        let mut missed = missed;
        self.with_reclaim(gfp, |gfp| {
            self.pages.alloc_missed(order, gfp, core::mem::replace(&mut missed, Missed::NotAsked))
        })
    }

    /// As [`Self::alloc_pages`], from the memory of `node`; if that has none to give, from the nearest that has, unless
    /// the flags say [`THISNODE`](GfpFlags::THISNODE). Without a node it is that of the calling CPU.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_pages`].
    pub fn alloc_pages_node(&self, order: Order, gfp: GfpFlags, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.with_reclaim_on(gfp, node, |gfp| self.pages.alloc_pages_node(order, gfp, node))
    }

    /// Tells the migrate type of the pageblock around a frame; `None` outside all zones.
    pub fn pageblock_type(&self, frame: Pfn) -> Option<MigrateType> {
        self.pages.pageblock_type(frame)
    }

    /// Tells which node a frame's memory belongs to; `None` outside all zones.
    pub fn node_of(&self, frame: Pfn) -> Option<NodeId> {
        self.pages.node_of(frame)
    }

    /// Frees a block of [`Self::alloc_pages`].
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    #[inline(always)]
    pub fn free_pages(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        self.pages.free_pages(first, order)
    }

    /// Allocates exactly the pages that `size` bytes need, physically contiguous; each can be freed by itself.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_pages`]; [`AllocError::ZeroSize`] for size 0 and [`AllocError::TooLarge`] above the largest block.
    pub fn alloc_pages_exact(&self, size: usize, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        self.with_reclaim(gfp, |gfp| self.pages.alloc_pages_exact(size, gfp))
    }

    /// Frees what [`Self::alloc_pages_exact`] gave for the same size.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been, for any of the pages; nothing is changed then.
    pub fn free_pages_exact(&self, first: Pfn, size: usize) -> Result<(), FreeError> {
        self.pages.free_pages_exact(first, size)
    }

    /// Fills the empty slots with single pages and returns the length of the filled prefix; it may stop early.
    ///
    /// If not one page can be had at once, one is allocated the ordinary way, with reclaim if the flags allow.
    pub fn alloc_pages_bulk(&self, gfp: GfpFlags, slots: &mut [Option<Pfn>]) -> usize {
        let filled = self.pages.alloc_pages_bulk(gfp, slots);
        let Some(slot) = slots.get_mut(filled).filter(|_| filled == 0) else { return filled };
        match self.alloc_pages(Order::ZERO, gfp) {
            Ok(page) => *slot = Some(page),
            Err(_) => return 0,
        }
        slots.iter().take_while(|slot| slot.is_some()).count()
    }

    /// Returns every per-CPU page, of all CPUs, to the buddy.
    pub fn drain_all_pages(&self) {
        self.pages.drain_all_pages();
    }

    /// Returns the address of a frame in the direct map.
    pub fn page_address(&self, frame: Pfn) -> VirtAddr {
        self.pages.base.virt(frame.addr())
    }

    /// Returns the frame of a direct-map address; `None` outside the direct map.
    pub fn virt_to_pfn(&self, addr: VirtAddr) -> Option<Pfn> {
        self.pages.base.phys(addr)?.pfn()
    }

    /// Tells who owns a frame.
    pub fn frame_kind(&self, frame: Pfn) -> FrameKind {
        self.pages.base.frames.kind(frame)
    }
}
