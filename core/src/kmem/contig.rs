//! Public calls about runs of frames, and about moving what is in their way.

use super::Kmem;
use crate::addr::{PageCount, Pfn};
use crate::error::{AllocError, FreeError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::platform::Platform;
use crate::vmalloc::VmallocMover;

impl<P: Platform> Kmem<P> {
    /// Allocates exactly these frames, moving movable blocks and pages of movable areas out of the way. With `COMP` they are one block, to be freed
    /// with its order; otherwise each is a page of its own.
    ///
    /// If something is in the way and the caller may wait, everything that nobody holds is given back and the range tried
    /// once more.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`]; [`AllocError::BadRange`] if the frames are not in one zone or, with `COMP`, no aligned
    /// power of two; [`AllocError::OrderTooLarge`] for a block above the largest; [`AllocError::BadFlags`] for flags that a
    /// range cannot honour, such as `HIGH` or `NOFAIL`; [`AllocError::Busy`] names a frame that cannot be moved;
    /// [`AllocError::NoPages`] if there is no room elsewhere for a block that can; [`AllocError::Injected`] before anything
    /// has moved.
    pub fn alloc_contig_range(&self, start: Pfn, pages: PageCount, gfp: GfpFlags) -> Result<(), AllocError> {
        self.with_way_cleared(gfp, || self.pages.alloc_contig_range(start, pages, gfp, &self.mover()))
    }

    /// Allocates that many neighbouring frames, aligned to their number if that is a power of two, on this node (the
    /// calling CPU's, if none is named) or, unless the flags say `THISNODE`, on another.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_contig_range`], about the last place that was tried.
    pub fn alloc_contig_pages(&self, pages: PageCount, gfp: GfpFlags, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.with_way_cleared(gfp, || self.pages.alloc_contig_pages(pages, gfp, node, &self.mover()))
    }

    /// Frees a range of [`Self::alloc_contig_range`], in whole or in part.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been, for any of the pages; nothing is changed then.
    pub fn free_contig_range(&self, start: Pfn, pages: PageCount) -> Result<(), FreeError> {
        self.pages.free_contig_range(start, pages)
    }

    /// Turns a block of [`Self::alloc_pages`] into 2^`order` pages, each to be freed by itself.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been to free the block; nothing is changed then.
    pub fn split_page(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        self.pages.split_page(first, order)
    }

    /// Moves all movable blocks and pages of movable areas towards the ends of their zones, as far as their owners let them go, so that large blocks
    /// are free at the beginnings; returns how many moved. What Linux does when `/proc/sys/vm/compact_memory` is written.
    pub fn compact_memory(&self) -> u64 {
        self.pages.drain_all_pages();
        self.pages.compact_everything(&self.mover())
    }

    /// Allocates a zeroed block without waiting for any lock: in an interrupt of any kind, or inside of another call.
    ///
    /// # Errors
    ///
    /// [`AllocError::OrderTooLarge`] for orders of which CPUs keep no lists; [`AllocError::NoPages`] if there is none, or
    /// if somebody has the lock.
    #[track_caller]
    pub fn alloc_pages_nolock(&self, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.pages.alloc_pages_nolock(order, node)
    }

    /// Frees a block of [`Self::alloc_pages_nolock`] or [`Self::alloc_pages`] without waiting for any lock; only one with
    /// extra references, or that is mapped, waits for its zone's.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    pub fn free_pages_nolock(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        self.pages.free_pages_nolock(first, order)
    }

    /// Lends every large free block to the host that it does not have yet, by [`Platform::report_free`]; returns how many
    /// pages these were: none where free pages are poisoned. Linux does this two seconds after memory was freed; here it is
    /// the caller's timer.
    pub fn report_free_pages(&self) -> u64 {
        self.pages.report_free_pages(0)
    }

    /// The same, but for so many pages that the platform was not told about either, which stay at hand.
    pub fn report_free_pages_beyond(&self, kept: u64) -> u64 {
        self.pages.report_free_pages(kept)
    }

    /// Who moves the pages of areas.
    pub(super) fn mover(&self) -> VmallocMover<'_, P> {
        VmallocMover { pages: &self.pages, window: &self.vmalloc }
    }

    /// Runs one attempt and, if something was in the way and the caller may wait, another one after reclaim.
    fn with_way_cleared<T>(&self, gfp: GfpFlags, attempt: impl Fn() -> Result<T, AllocError>) -> Result<T, AllocError> {
        match attempt() {
            Err(AllocError::Busy { .. } | AllocError::NoPages { .. }) if gfp.may_block() => {
                self.reclaim();
                attempt()
            }
            answer => answer,
        }
    }
}
