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
use core::panic::Location;

impl<P: Platform> Kmem<P> {
    /// Allocates 2^`order` physically contiguous pages, aligned to their size.
    ///
    /// # Errors
    ///
    /// [`AllocError::OrderTooLarge`] above the geometry's largest order, [`AllocError::BadFlags`] for contradictory
    /// zones or mobility, [`AllocError::NoPages`] when no allowed zone has a block above its watermark.
    #[inline(always)]
    #[track_caller]
    pub fn alloc_pages(&self, order: Order, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        let missed = if order == Order::ZERO { self.pages.take_page(gfp) } else { self.pages.take_block(order, gfp) };
        match missed {
            Ok(page) => Ok(page),
            Err(missed) => self.alloc_pages_slow(order, gfp, missed, Location::caller()),
        }
    }

    #[cold]
    #[inline(never)]
    fn alloc_pages_slow(
        &self,
        order: Order,
        gfp: GfpFlags,
        missed: Missed,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        let mut missed = missed;
        self.with_reclaim(gfp, |gfp| {
            self.pages.alloc_missed(order, gfp, core::mem::replace(&mut missed, Missed::NotAsked), location)
        })
    }

    /// As [`Self::alloc_pages`], from the memory of `node`; if that has none to give, from the nearest that has, unless
    /// the flags say [`THISNODE`](GfpFlags::THISNODE). Without a node it is that of the calling CPU.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_pages`].
    #[track_caller]
    pub fn alloc_pages_node(&self, order: Order, gfp: GfpFlags, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let location = Location::caller();
        self.with_reclaim_on(gfp, node, |gfp| self.pages.alloc_pages_at(order, gfp, node, location))
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
    #[track_caller]
    pub fn alloc_pages_exact(&self, size: usize, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        let location = Location::caller();
        self.with_reclaim(gfp, |gfp| self.pages.alloc_pages_exact_at(size, gfp, location))
    }

    /// Frees what [`Self::alloc_pages_exact`] gave for the same size.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been, for any of the pages; nothing is changed then.
    pub fn free_pages_exact(&self, first: Pfn, size: usize) -> Result<(), FreeError> {
        self.pages.free_pages_exact(first, size)
    }

    /// Fills the empty slots with single pages and returns how many slots from the front are filled then; it may stop early.
    ///
    /// All come from one zone of the nearest node that has so many above its low watermark. If there is none, if only one
    /// slot is empty, or if the flags say [`ACCOUNT`](GfpFlags::ACCOUNT), a single page is allocated the ordinary way, with
    /// reclaim if the flags allow; what was filled before behind that page is not counted.
    #[track_caller]
    pub fn alloc_pages_bulk(&self, gfp: GfpFlags, slots: &mut [Option<Pfn>]) -> usize {
        let filled = self.pages.alloc_pages_bulk(gfp, slots);
        let prefix = slots.iter().take_while(|slot| slot.is_some()).count();
        let Some(slot) = slots.get_mut(prefix).filter(|_| filled == 0) else { return prefix };
        match self.alloc_pages(Order::ZERO, gfp) {
            Ok(page) => *slot = Some(page),
            Err(_) => return prefix,
        }
        prefix + 1
    }

    /// Takes one more reference to a block of [`Self::alloc_pages`] by its first page, or by any page of a compound one;
    /// returns how many there are. Whoever frees the block then drops his own reference only.
    ///
    /// # Errors
    ///
    /// What the page is instead; nothing is changed then.
    pub fn get_page(&self, page: Pfn) -> Result<u32, FreeError> {
        self.pages.get_page(page)
    }

    /// Drops a reference of [`Self::get_page`]; returns how many are left, and frees the block with the last.
    ///
    /// A block that is not compound and was freed while there were references consists of its first page only: the
    /// other pages went back at once.
    ///
    /// # Errors
    ///
    /// As [`Self::get_page`]; [`FreeError::WrongOrder`] for the last reference to a block of several pages that is not
    /// compound, which only [`Self::free_pages`] can free; nothing is changed then.
    pub fn put_page(&self, page: Pfn) -> Result<u32, FreeError> {
        self.pages.put_page(page)
    }

    /// How many references there are to the block that a page heads or, if it is compound, belongs to; 0 for any other.
    pub fn page_count(&self, page: Pfn) -> u32 {
        self.pages.page_count(page)
    }

    /// How many mappings of [`Self::vmap`] show a page.
    pub fn page_mapcount(&self, page: Pfn) -> u32 {
        self.pages.page_mapcount(page)
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
