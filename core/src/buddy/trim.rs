//! Large blocks of `kmalloc` that give back what their caller did not ask for, and those that grow into what is free behind them.
//!
//! Pages come in powers of two. A block of five pages takes eight; with [`Geometry::trim_large`](crate::Geometry::trim_large)
//! the last three go back at once, and the five later, each time in the largest aligned pieces. The first frame keeps the
//! order of the whole, which says how the block is aligned, and the number of pages that are left of it.
//!
//! A block that is to grow takes the pages behind it, if they are free, may be had politely, and the whole would lie at a
//! multiple of its size. So it is the lower buddies that can grow: [`PageAllocator::keep_pages`] of a block that is larger than
//! needed leaves such a one, and what it gave back goes past the lists of the CPU, where it could not be taken from.
//!
//! ```text
//! 1 <= private(head) <= 2^order(head)    for a head of kind LargeKmalloc or LargePending
//! ```

use super::PageAllocator;
use super::watermark::AllocFlags;
use super::zone::LockedZone;
use super::zonelist::Request;
use crate::addr::Pfn;
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::ops::Range;

impl<P: Platform> PageAllocator<P> {
    /// Notes how many pages of a new large block its owner keeps, and gives the others back.
    pub(crate) fn keep_pages(&self, first: Pfn, order: Order, kept: u64) {
        self.base.frames.set_private(first, kept as u32);
        if kept < order.pages() {
            self.free_pieces(first, kept, order.pages());
            self.base.event(Event::LargeTrimmed);
        }
    }

    /// Adds pages behind a large block until it has `pages`; `false`, with nothing changed, if one of them is not free, not of the
    /// block's migrate type, or not to be had above the low watermark by a request with these flags.
    pub(crate) fn grow_large(&self, first: Pfn, pages: u64, gfp: GfpFlags) -> bool {
        let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) else { return false };
        let order = self.base.frames.order(first).max(Order::for_pages(pages).unwrap_or(Order::MAX));
        let fits = pages <= order.pages() && order <= self.base.geometry.max_order && order.is_aligned(first);
        // Whoever checks pages does so when a block is handed out.
        if !fits || !zone.spans(first, order) || self.has_checks() {
            return false;
        }
        let Ok(request) = self.request(order, gfp, zone.node) else { return false };
        if !self.zones_of(&request).any(|allowed| allowed.index == zone.index) {
            return false;
        }
        let kept = self.kept_pages(first);
        let pages = if self.base.geometry.trim_large { pages } else { order.pages() };
        let (start, end) = (first.as_u32() + kept as u32, first.as_u32() + pages as u32);
        let grown = self.locked(zone, |locked| locked.append(first, start..end, &request));
        if grown {
            self.base.frames.set_private(first, pages as u32);
            if gfp.wants_zero() {
                (start..end).for_each(|page| self.zero(Pfn::new(page), Order::ZERO));
            }
            self.base.event(Event::ReallocGrown);
        }
        grown
    }

    /// How many pages there are of the large block that a frame heads.
    pub(crate) fn kept_pages(&self, first: Pfn) -> u64 {
        u64::from(self.base.frames.private(first))
    }

    /// Frees a large block.
    pub(crate) fn free_large(&self, first: Pfn) {
        let (order, kept) = (self.base.frames.order(first), self.kept_pages(first));
        if kept == order.pages() {
            self.free_block(first, order);
        } else {
            self.free_pieces(first, 0, kept);
        }
    }

    /// Frees the pages from number `from` up to, but without, number `to` of a block that `first` heads.
    fn free_pieces(&self, first: Pfn, from: u64, to: u64) {
        let migrate = self.base.frames.migrate(first);
        let zone = self.zones.get(usize::from(self.base.frames.zone(first)));
        if let Some(zone) = zone.filter(|_| !self.has_checks()) {
            self.locked(zone, |locked| locked.free_pieces(first, from..to));
            return;
        }
        let mut at = from;
        while at < to {
            let order = piece_at(at, to);
            let Some(piece) = first.checked_add(at) else { return };
            self.base.frames.claim_block(piece, order, FrameKind::LargeKmalloc);
            self.base.frames.set_migrate(piece, migrate);
            self.free_block(piece, order);
            at += order.pages();
        }
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Frees some pages of a large block in the largest aligned pieces.
    fn free_pieces(&mut self, first: Pfn, pages: Range<u64>) {
        self.zone.ledger.take_back(FrameKind::LargeKmalloc, pages.end - pages.start);
        let mut at = pages.start;
        while at < pages.end {
            let order = piece_at(at, pages.end);
            let Some(piece) = first.checked_add(at) else { return };
            self.free(piece, order);
            at += order.pages();
        }
    }

    /// Adds frames to the large block in front of them, if they may be had; what else is in their free blocks stays free.
    fn append(&mut self, first: Pfn, frames: Range<u32>, request: &Request) -> bool {
        let polite = AllocFlags::polite(request.route.migrate());
        let floor = self.zone.marks.low + self.zone.boost();
        if self.spare_above(floor, request, polite).is_none() || !self.may_append(first, &frames) {
            return false;
        }
        let table = &self.base.frames;
        let mut at = frames.start;
        while at < frames.end {
            let Some((start, _)) = self.free_block_around(Pfn::new(at)) else { break };
            let block = self.remove(start);
            let end = start.as_u32().saturating_add(block.order.pages() as u32);
            table.set_kind(start, FrameKind::Pcp);
            if end > frames.end {
                self.free_run(frames.end..end);
            }
            at = end;
        }
        frames.clone().for_each(|frame| table.set_tail(Pfn::new(frame)));
        table.set_order(first, request.order);
        self.zone.ledger.hand_out(FrameKind::LargeKmalloc, u64::from(frames.end - frames.start));
        true
    }

    /// Whether frames behind a block are all free, in blocks that begin behind it, and of its pageblock's type.
    fn may_append(&self, first: Pfn, frames: &Range<u32>) -> bool {
        let migrate = self.block_type(first);
        let mut at = frames.start;
        while at < frames.end {
            let Some((start, order)) = self.free_block_around(Pfn::new(at)) else { return false };
            if start.as_u32() < frames.start || self.base.frames.migrate(start) != migrate as u8 {
                return false;
            }
            at = start.as_u32().saturating_add(order.pages() as u32);
        }
        migrate.is_ordinary()
    }
}

/// The largest piece that is aligned within a block, starts at its page number `at` and ends before `to`.
fn piece_at(at: u64, to: u64) -> Order {
    let aligned = if at == 0 { u32::from(Order::MAX.get()) } else { at.trailing_zeros() };
    Order::new(aligned.min((to - at).ilog2()) as u8).unwrap_or(Order::ZERO)
}
