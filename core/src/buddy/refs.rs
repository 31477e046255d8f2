//! Blocks that more than their owner uses: extra references, and mappings that show their pages.
//!
//! Most blocks never have either, and pay nothing: a block whose reference count is one and which nobody maps has the
//! kind `Pages`. With the first extra reference or mapping it becomes `PagesShared`, which no fast path knows. Counts of
//! references change under the zone's lock; a page's mappings are counted in its own descriptor.
//!
//! ```text
//! references(block) == 1 + private(head)   if kind(head) == PagesShared,   else 1
//! ```
//!
//! A block without `COMP` is no unit: what frees it takes its own reference from the first page, and if that has another
//! holder, the rest goes back piece by piece and the first page stays with the holder. A compound block stays whole until
//! the last reference is gone.

use super::PageAllocator;
use crate::addr::Pfn;
use crate::error::{BlockKind, FreeError};
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use crate::warn::Found;

/// Whose reference is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// Of whoever frees the block.
    Owner,
    /// Of whoever took an extra reference.
    Other,
}

/// What became of a block when a reference was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dropped {
    /// So many references are left.
    Kept(u32),
    /// So many are left on the first page; the other pages are nobody's.
    FirstKept(u32),
    /// That was the last one.
    Last,
}

/// A count of extra references that never changes again: it was too large to be true.
const SATURATED: u32 = u32::MAX;

impl<P: Platform> PageAllocator<P> {
    /// Takes one more reference to the block of a page; returns how many there are.
    ///
    /// # Errors
    ///
    /// The page is not the first of a block of `alloc_pages`, nor in a compound one.
    pub(crate) fn get_page(&self, page: Pfn) -> Result<u32, FreeError> {
        let head = self.counted(page)?;
        let frames = &self.base.frames;
        let extra = self.with_zone_of(head, || {
            let extra = if frames.kind(head) == FrameKind::PagesShared { frames.private(head) } else { 0 };
            let extra = extra.saturating_add(1);
            frames.set_private(head, extra);
            frames.set_kind(head, FrameKind::PagesShared);
            extra
        });
        self.base.event(Event::PageGet);
        Ok(extra.saturating_add(1))
    }

    /// Drops a reference to the block of a page; returns how many are left, and frees the block with the last.
    ///
    /// # Errors
    ///
    /// As [`Self::get_page`]; [`FreeError::WrongOrder`] for the last reference to a block of several pages that is not
    /// compound: only whoever knows its order can free it.
    pub(crate) fn put_page(&self, page: Pfn) -> Result<u32, FreeError> {
        let head = self.counted(page)?;
        let order = self.base.frames.order(head);
        if self.page_count(head) == 1 && order > Order::ZERO && !self.is_compound(head) {
            return Err(FreeError::WrongOrder { found: order });
        }
        match self.drop_reference(head, Holder::Other) {
            Dropped::Kept(left) | Dropped::FirstKept(left) => {
                self.base.event(Event::PagePut);
                Ok(left)
            }
            Dropped::Last => {
                self.base.event(Event::PagePutLast);
                self.free_last(head, order);
                Ok(0)
            }
        }
    }

    /// Drops a reference to a single page that a mapping had, of which processors may still have a translation. With the
    /// last reference the page is not free yet, but the mapping's own, of kind `owner`; tells whether it is.
    ///
    /// A page that is no single page any more lost that reference before, to somebody who had none and was told so.
    pub(crate) fn put_page_late(&self, page: Pfn, owner: FrameKind) -> bool {
        if !self.is_single(page) {
            return false;
        }
        if self.drop_reference(page, Holder::Other) != Dropped::Last {
            self.base.event(Event::VmapPut);
            return false;
        }
        self.base.event(Event::VmapPutLast);
        if let Some((frame, reason)) = self.bad_frame(page, Order::ZERO) {
            self.retire(page, Order::ZERO, FrameKind::Pages, (frame, reason, Found::Freeing));
            return false;
        }
        self.change_owner(page, Order::ZERO, owner);
        true
    }

    /// How many references there are to the block that a page heads or, if it is compound, belongs to; 0 for any other.
    pub(crate) fn page_count(&self, page: Pfn) -> u32 {
        let frames = &self.base.frames;
        match self.counted(page) {
            Ok(head) if frames.kind(head) == FrameKind::PagesShared => frames.private(head).saturating_add(1),
            Ok(_) => 1,
            Err(_) => 0,
        }
    }

    /// How many mappings show a page.
    pub(crate) fn page_mapcount(&self, page: Pfn) -> u32 {
        self.base.frames.mappings(page)
    }

    /// The page whose count is that of `page`.
    fn counted(&self, page: Pfn) -> Result<Pfn, FreeError> {
        let frames = &self.base.frames;
        match frames.kind(page) {
            FrameKind::Pages | FrameKind::PagesShared => Ok(page),
            FrameKind::PagesTail if self.is_compound(frames.head_of(page)) => Ok(frames.head_of(page)),
            _ => Err(self.misuse(page)),
        }
    }

    pub(super) fn is_compound(&self, head: Pfn) -> bool {
        self.base.frames.order(head) > Order::ZERO && self.base.frames.list(head) == COMPOUND
    }

    /// Notes whether a new block of several pages is compound.
    pub(super) fn note_compound(&self, head: Pfn, compound: bool) {
        self.base.frames.set_list(head, if compound { COMPOUND } else { 0 });
    }

    fn with_zone_of<R>(&self, page: Pfn, body: impl FnOnce() -> R) -> R {
        match self.zones.get(usize::from(self.base.frames.zone(page))) {
            Some(zone) => self.locked(zone, |_| body()),
            None => body(),
        }
    }

    fn drop_reference(&self, head: Pfn, holder: Holder) -> Dropped {
        let frames = &self.base.frames;
        let compound = self.is_compound(head);
        self.with_zone_of(head, || {
            let extra = if frames.kind(head) == FrameKind::PagesShared { frames.private(head) } else { 0 };
            let left = match extra {
                0 => return Dropped::Last,
                SATURATED => SATURATED,
                extra => extra - 1,
            };
            let order = frames.order(head);
            frames.set_private(head, left);
            let peeled = holder == Holder::Owner && order > Order::ZERO && !compound;
            if peeled {
                frames.set_order(head, Order::ZERO);
            }
            if left == 0 && self.mapped_frame(head, frames.order(head)).is_none() {
                frames.set_kind(head, FrameKind::Pages);
            }
            let left = left.saturating_add(1);
            if peeled { Dropped::FirstKept(left) } else { Dropped::Kept(left) }
        })
    }

    /// Frees a block of `alloc_pages` that the fast path does not know: a shared one.
    ///
    /// # Errors
    ///
    /// The misuse found; nothing is changed then.
    #[cold]
    #[inline(never)]
    pub(super) fn free_shared(&self, first: Pfn, order: Order) -> Result<(), FreeError> {
        let frames = &self.base.frames;
        if frames.kind(first) != FrameKind::PagesShared || frames.order(first) != order {
            return Err(self.misuse(first));
        }
        match self.drop_reference(first, Holder::Owner) {
            Dropped::Kept(_) => self.base.event(Event::FreeKeptByReference),
            Dropped::FirstKept(_) => {
                self.base.event(Event::FreePiecewise);
                self.free_upper_halves(first, order);
            }
            Dropped::Last => self.free_last(first, order),
        }
        Ok(())
    }

    /// Frees all pages of a block but the first, in the largest pieces.
    fn free_upper_halves(&self, first: Pfn, order: Order) {
        let frames = &self.base.frames;
        let migrate = frames.migrate(first);
        let mut piece = order;
        while let Some(half) = piece.down() {
            let upper = half.buddy_of(first);
            frames.claim_block(upper, half, FrameKind::Pages);
            frames.set_migrate(upper, migrate);
            self.free_last(upper, half);
            piece = half;
        }
    }

    /// Frees a block that nobody has a reference to. One that is still mapped is bad: nobody gets it any more.
    fn free_last(&self, first: Pfn, order: Order) {
        match self.bad_frame(first, order) {
            Some((frame, reason)) => self.retire(first, order, FrameKind::Pages, (frame, reason, Found::Freeing)),
            None => {
                self.base.frames.set_kind(first, FrameKind::Pages);
                self.free_block(first, order);
            }
        }
    }

    /// Notes that a mapping shows a page.
    pub(crate) fn map_page(&self, page: Pfn) {
        let frames = &self.base.frames;
        frames.add_mapping(page);
        let head = match frames.kind(page) {
            FrameKind::Pages => page,
            FrameKind::PagesTail => frames.head_of(page),
            _ => return,
        };
        self.with_zone_of(head, || {
            if frames.kind(head) == FrameKind::Pages {
                frames.set_private(head, 0);
                frames.set_kind(head, FrameKind::PagesShared);
            }
        });
    }

    /// Notes that a mapping shows a page no longer. Its block is a plain one again if that was all.
    pub(crate) fn unmap_page(&self, page: Pfn) {
        let frames = &self.base.frames;
        if frames.remove_mapping(page) > 0 {
            return;
        }
        let head = match frames.kind(page) {
            FrameKind::PagesShared => page,
            FrameKind::PagesTail => frames.head_of(page),
            _ => return,
        };
        self.with_zone_of(head, || {
            let plain = frames.kind(head) == FrameKind::PagesShared && frames.private(head) == 0;
            if plain && self.mapped_frame(head, frames.order(head)).is_none() {
                frames.set_kind(head, FrameKind::Pages);
            }
        });
    }

    /// Gives pages that were one block each a block of their own the kind that their mappings call for.
    pub(super) fn settle_single(&self, page: Pfn) {
        if self.base.frames.mappings(page) > 0 {
            self.base.frames.set_private(page, 0);
            self.base.frames.set_kind(page, FrameKind::PagesShared);
        }
    }

    /// Tells whether a page is a block of its own, shared or not.
    pub(crate) fn is_single(&self, page: Pfn) -> bool {
        let frames = &self.base.frames;
        matches!(frames.kind(page), FrameKind::Pages | FrameKind::PagesShared) && frames.order(page) == Order::ZERO
    }

    /// Frees a page for which [`Self::is_single`] holds.
    pub(super) fn free_single(&self, page: Pfn) {
        if self.base.frames.kind(page) == FrameKind::PagesShared {
            let freed = self.free_shared(page, Order::ZERO);
            debug_assert_eq!(freed, Ok(()), "the page was looked at");
        } else {
            self.free_block(page, Order::ZERO);
        }
    }

    /// Names what is wrong with freeing pages, or taking a reference to them, at `pfn`.
    #[cold]
    #[inline(never)]
    pub(super) fn misuse(&self, pfn: Pfn) -> FreeError {
        let frames = &self.base.frames;
        let addr = self.base.virt(pfn.addr());
        match frames.kind(pfn) {
            FrameKind::Absent => FreeError::Foreign(addr),
            FrameKind::Free | FrameKind::Pcp | FrameKind::Deferred | FrameKind::Guard | FrameKind::Bad => {
                FreeError::DoubleFree(addr)
            }
            FrameKind::Pages | FrameKind::PagesShared => FreeError::WrongOrder { found: frames.order(pfn) },
            FrameKind::PagesTail => FreeError::Interior { addr, start: self.base.virt(frames.head_of(pfn).addr()) },
            other => FreeError::WrongKind { addr, expected: BlockKind::Pages, found: other.block_kind() },
        }
    }
}

/// In the descriptor of the first page of a block of several: `COMP` was asked for.
const COMPOUND: u8 = 1;
