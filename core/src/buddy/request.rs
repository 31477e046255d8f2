//! The calls that users of pages make: with fault points, and with misuse detected.

use super::PageAllocator;
use crate::addr::{PAGE_SIZE, Pfn};
use crate::error::{AllocError, FreeError};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use crate::warn::{FlagsRemovedBy, Warning};
use core::panic::Location;

/// Flags that have no meaning for independent pages.
const EXACT_REMOVES: GfpFlags = GfpFlags::COMP.union(GfpFlags::HIGHMEM);

/// Why the fast path did not serve a request. The fault point is asked once per attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Missed {
    /// The fault plan made the request fail.
    Fault,
    /// The plan was asked, and this CPU's array has nothing.
    Empty,
    /// The plan was asked, and the nearest zone has no such block to give politely.
    NotNear,
    /// The plan was not asked: the request is not one for the fast path.
    NotAsked,
}

impl<P: Platform> PageAllocator<P> {
    /// Allocates a block of pages: one attempt of what [`Kmem`](crate::Kmem) repeats, for the tests of this layer.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_block`], and [`AllocError::Injected`].
    #[cfg(test)]
    #[track_caller]
    pub(crate) fn alloc_pages(&self, order: Order, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        self.alloc_pages_at(order, gfp, None, Location::caller())
    }

    /// Takes a page from this CPU's array, as most requests for one do.
    ///
    /// # Errors
    ///
    /// Why [`Self::alloc_missed`] must be asked; it needs to know.
    #[inline(always)]
    pub(crate) fn take_page(&self, gfp: GfpFlags) -> Result<Pfn, Missed> {
        let cpu = self.base.platform.cpu();
        let array = self.routes.first(cpu).get(gfp);
        let hot = self.hot.get(cpu, array).ok_or(Missed::NotAsked)?;
        if self.base.fault(FaultSite::new(FaultPoint::Page, gfp)) {
            return Err(Missed::Fault);
        }
        self.take_hot(hot, array, gfp).ok_or(Missed::Empty)
    }

    /// Takes a block of several pages from the nearest zone, as most requests for one do.
    ///
    /// # Errors
    ///
    /// Why [`Self::alloc_missed`] must be asked; it needs to know.
    pub(crate) fn take_block(&self, order: Order, gfp: GfpFlags) -> Result<Pfn, Missed> {
        let request = self.request(order, gfp, self.base.node_here()).map_err(|_| Missed::NotAsked)?;
        if self.has_checks() {
            return Err(Missed::NotAsked);
        }
        if self.base.fault(FaultSite::new(FaultPoint::Page, gfp).with_order(order)) {
            return Err(Missed::Fault);
        }
        self.count_slow_alloc(&request);
        let first = self.alloc_from_nearest(&request, FrameKind::Pages).ok_or(Missed::NotNear)?;
        self.hand_over(first, order, gfp, FrameKind::Pages);
        Ok(first)
    }

    /// Serves what [`Self::take_page`] and [`Self::take_block`] did not.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_block`].
    pub(crate) fn alloc_missed(
        &self,
        order: Order,
        gfp: GfpFlags,
        missed: Missed,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        match missed {
            Missed::NotAsked => self.alloc_pages_at(order, gfp, None, location),
            Missed::NotNear => self.alloc_block_far(order, gfp, location),
            Missed::Empty => self.alloc_block_at(order, gfp, None, FrameKind::Pages, location),
            Missed::Fault => Err(AllocError::Injected(FaultPoint::Page)),
        }
    }

    /// Allocates a block of pages from the memory of a node, or of that of the CPU which calls, or near it.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_block_on`], and [`AllocError::Injected`].
    #[inline(always)]
    pub(crate) fn alloc_pages_at(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        let site = FaultSite::new(FaultPoint::Page, gfp).with_order(order);
        if self.request(order, gfp, NodeId::ZERO).is_ok() && self.base.fault(site) {
            return Err(AllocError::Injected(FaultPoint::Page));
        }
        self.alloc_block_at(order, gfp, node, FrameKind::Pages, location)
    }

    /// Frees a block from [`Self::alloc_block`].
    ///
    /// # Errors
    ///
    /// The misuse found; nothing is changed then.
    #[inline(always)]
    pub(crate) fn free_pages(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        if order == Order::ZERO && self.free_page_fast(first) { Ok(()) } else { self.free_pages_slow(first, order) }
    }

    #[cold]
    #[inline(never)]
    fn free_pages_slow(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        match self.base.frames.frame(first) {
            Some(frame) if frame.heads(FrameKind::Pages, order) => {
                self.free_slow(first, order, FrameKind::Pages);
                Ok(())
            }
            _ => self.free_shared(first, order),
        }
    }

    /// Allocates just as many pages as `size` bytes need: contiguous, and each a page of its own from then on.
    ///
    /// The rest of the block is given back page by page, as Linux does. `COMP` and `HIGHMEM` have no meaning here and
    /// are removed.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`], and as [`Self::alloc_block`].
    pub(crate) fn alloc_pages_exact_at(
        &self,
        size: usize,
        gfp: GfpFlags,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        if size == 0 {
            return Err(AllocError::ZeroSize);
        }
        let max = self.base.geometry.max_order;
        let too_large = AllocError::OrderTooLarge { max };
        let order = Order::for_bytes(size).ok_or(too_large).inspect_err(|error| self.note_refusal(error, size, gfp))?;
        let removed = gfp & EXACT_REMOVES;
        if !removed.is_empty() {
            self.base.warn(gfp, Warning::FlagsRemoved { by: FlagsRemovedBy::Exact, flags: removed });
        }
        let first = self.alloc_pages_at(order, gfp - EXACT_REMOVES, None, location)?;
        let wanted = size.div_ceil(PAGE_SIZE) as u64;
        self.make_single(first, order);
        for pfn in pfns(first, order.pages()).skip(wanted as usize) {
            self.free_block(pfn, Order::ZERO);
        }
        Ok(first)
    }

    /// Turns a block of [`Self::alloc_block`] into pages that are freed one by one.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been to free it.
    pub(crate) fn split_page(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        let frames = &self.base.frames;
        let is_block = matches!(frames.kind(first), FrameKind::Pages | FrameKind::PagesShared);
        if !is_block || frames.order(first) != order {
            return Err(self.misuse(first));
        }
        self.make_single(first, order);
        self.base.event(Event::PageSplit);
        Ok(())
    }

    /// Turns a block into independent pages.
    fn make_single(&self, first: Pfn, order: Order) {
        let frames = &self.base.frames;
        let (migrate, kind) = (frames.migrate(first), frames.kind(first));
        for pfn in pfns(first, order.pages()) {
            frames.claim_block(pfn, Order::ZERO, FrameKind::Pages);
            frames.set_migrate(pfn, migrate);
        }
        if kind == FrameKind::PagesShared {
            // Extra references stay with the first page, mappings with the page that they show.
            frames.set_kind(first, kind);
            pfns(first, order.pages()).skip(1).for_each(|page| self.settle_single(page));
        }
        self.owner_split(first, order);
    }

    /// Frees what `alloc_pages_exact` gave for the same size. Size 0 frees nothing.
    ///
    /// # Errors
    ///
    /// The misuse found on the first page that is not a page of its own; none is freed then.
    pub(crate) fn free_pages_exact(&self, first: Pfn, size: usize) -> Result<(), FreeError> {
        self.free_single_pages(first, size.div_ceil(PAGE_SIZE) as u64)
    }

    /// Frees a run of single pages.
    ///
    /// # Errors
    ///
    /// The misuse found on the first page that is not a page of its own; none is freed then.
    pub(super) fn free_single_pages(&self, first: Pfn, pages: u64) -> Result<(), FreeError> {
        if let Some(bad) = pfns(first, pages).find(|&page| !self.is_single(page)) {
            return Err(self.misuse(bad));
        }
        pfns(first, pages).for_each(|page| self.free_single(page));
        Ok(())
    }
}

/// The frames of a run; it ends early at the end of the frame number space.
fn pfns(first: Pfn, pages: u64) -> impl Iterator<Item = Pfn> {
    (0..pages).map_while(move |offset| first.checked_add(offset))
}
