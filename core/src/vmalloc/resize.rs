//! Growing an area without copying a page: by the addresses behind it, or by mapping its frames at other ones.
//!
//! ```text
//! in place:   addresses widened ──► new frames mapped at the end
//!                 ◄── narrowed ◄────── refused
//! elsewhere:  addresses reserved ──► old and new frames mapped there ──► old addresses unmapped, FLUSHED ──► the caller
//!                 ◄── given back ◄────── refused: the old mapping was never touched
//! ```
//!
//! While an area moves, its frames are mapped twice and nobody but this call knows the new addresses. The old ones are
//! flushed before the caller learns the new ones, and not at the next purge: the frames live on, and a stale entry would
//! let a use after free reach them. In return they are free at once.

use super::alloc::{Place, Reservation, page_flags};
use super::area::{Link, Node, State};
use super::flags::{VmFlags, VmallocArgs};
use super::frames::alloc_frames;
use super::realloc::Owned;
use super::tree::Spot;
use super::{Vmalloc, checked_pages, records};
use crate::addr::{PageCount, VirtAddr, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{AllocError, BlockKind};
use crate::order::Order;
use crate::page::PageList;
use crate::paging::{VpnRange, free_list};
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;

impl Vmalloc {
    /// Gives an area of single pages more of them: where it is if the addresses behind it are free, else elsewhere.
    ///
    /// # Errors
    ///
    /// Those of `vmalloc`; the area is as before.
    pub(super) fn grow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        old: &Owned,
        args: &VmallocArgs,
    ) -> Result<VirtAddr, AllocError> {
        let count = checked_pages(&pages.base, args.size)?;
        if self.set_pages(&pages.base, old.at, old.node.start, count.get().max(old.node.pages)) {
            let extended = self.extend(pages, old, count, args);
            return extended.map(|()| old.node.addr()).inspect_err(|_| {
                let narrowed = self.set_pages(&pages.base, old.at, old.node.start, old.node.pages);
                debug_assert!(narrowed, "less always fits");
            });
        }
        let moved = self.remap(pages, slab, old, count, args)?;
        self.finish_growth(pages, moved, old, args);
        pages.base.event(Event::VreallocRemapped);
        pages.base.event(Event::ReallocMoved);
        Ok(moved)
    }

    /// Maps new frames behind those that the area has; it has the addresses.
    fn extend<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        old: &Owned,
        count: PageCount,
        args: &VmallocArgs,
    ) -> Result<(), AllocError> {
        let range = VpnRange::new(Vpn::new(old.node.start), count.get()).after(old.node.mapped);
        let frames = self.frames_to_grow(pages, range.pages(), args)?;
        self.map_frames(pages, range, Order::ZERO, args.gfp, frames)?;
        self.tables.set_movable(pages, range, old.is_movable());
        self.finish_growth(pages, old.node.addr(), old, args);
        self.edit(&pages.base, old.at, |node| {
            node.mapped = count.get();
            node.state = State::Vmalloc { requested: args.size };
        });
        pages.base.event(Event::VreallocExtended);
        pages.base.event(Event::ReallocInPlace);
        Ok(())
    }

    /// Frames for so many more pages.
    fn frames_to_grow<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        more: u64,
        args: &VmallocArgs,
    ) -> Result<PageList, AllocError> {
        let place = Place::anywhere(PageCount::new(more), VmFlags::empty());
        alloc_frames(pages, &place, page_flags(&pages.base, args.gfp), args.node)
    }

    /// With `ZERO` also the bytes between the old request and the end of its last page are zero: a fresh block's would be.
    fn finish_growth<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, old: &Owned, args: &VmallocArgs) {
        if args.gfp.wants_zero() {
            self.zero_tail(pages, addr, old.requested, old.mapped_bytes());
        }
    }

    /// Maps the area's frames, and new ones behind them, at other addresses; the old addresses are free then.
    fn remap<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        old: &Owned,
        count: PageCount,
        args: &VmallocArgs,
    ) -> Result<VirtAddr, AllocError> {
        // Until it is elsewhere, nobody else moves a page of it.
        self.tables.set_movable(pages, old.node.mapped_range(), false);
        let area = self.appear_elsewhere(pages, slab, old, count, args).inspect_err(|_| {
            self.tables.set_movable(pages, old.node.mapped_range(), old.is_movable());
        })?;
        self.take_now(pages, old.node.mapped_range(), false);
        self.forget(pages, slab, old.at, old.node.start);
        self.tables.visit(pages, area.range, |page, entry| {
            if let Some(frame) = entry.frame() {
                pages.base.frames.set_private(frame, page.as_u64() as u32);
                pages.base.frames.set_movable(frame, old.is_movable());
            }
        });
        self.publish(&pages.base, area.at, |node| {
            node.mapped = count.get();
            node.state = State::Vmalloc { requested: args.size };
        });
        Ok(area.range.start().addr())
    }

    /// Other addresses, with the area's frames and new ones behind them; the old addresses are nobody's then.
    fn appear_elsewhere<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        old: &Owned,
        count: PageCount,
        args: &VmallocArgs,
    ) -> Result<Reservation, AllocError> {
        // As any new area it is followed by a guard, also if the old one was not.
        let flags = old.node.flags - VmFlags::NO_GUARD;
        let place = Place::of(&VmallocArgs { flags, ..*args }, count)?;
        let area = self.reserve(pages, slab, place, args.gfp)?;
        let mapped = self
            .frames_to_grow(pages, count.get() - old.node.mapped, args)
            .and_then(|grown| self.map_twice(pages, old, area.range, args, grown))
            .and_then(|()| self.retire_moved(pages, old, area.range));
        mapped.inspect_err(|_| self.forget(pages, slab, area.at, area.range.start().as_u64()))?;
        Ok(area)
    }

    /// Maps the area's frames a second time, and new ones behind them.
    fn map_twice<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        old: &Owned,
        range: VpnRange,
        args: &VmallocArgs,
        mut grown: PageList,
    ) -> Result<(), AllocError> {
        let frames = &pages.base.frames;
        let mut kept = PageList::EMPTY;
        self.tables.visit(pages, old.node.mapped_range(), |_, entry| {
            if let Some(frame) = entry.frame() {
                kept.push_tail(frames, frame);
            }
        });
        let mut page = range.after(old.node.mapped).start().as_u64();
        let mut next_grown = || {
            let frame = grown.pop_head(frames)?;
            // A frame that does not name its page would not be the area's to give back.
            frames.set_private(frame, page as u32);
            frames.set_movable(frame, false);
            page += 1;
            Some(frame)
        };
        let next = || kept.pop_head(frames).or_else(&mut next_grown);
        let mapped = self.tables.map(pages, range, super::alloc::effort(args.gfp), next);
        mapped.map_err(|refused| {
            free_list(pages, &mut grown);
            self.unmap_twice(pages, old, range.first(refused.mapped));
            refused.error
        })
    }

    /// Takes the second mapping of an area back, with the frames that are only there.
    fn unmap_twice<P: Platform>(&self, pages: &PageAllocator<P>, old: &Owned, range: VpnRange) {
        self.take_now(pages, range.first(old.node.mapped), false);
        self.take_now(pages, range.after(old.node.mapped), true);
    }

    /// Makes the old addresses nobody's, unless somebody has freed the area meanwhile.
    fn retire_moved<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        old: &Owned,
        range: VpnRange,
    ) -> Result<(), AllocError> {
        let addr = old.node.addr();
        let retired = self.retire(&pages.base, addr, BlockKind::Vmalloc);
        retired.map(drop).map_err(|_| {
            self.unmap_twice(pages, old, range);
            AllocError::BadAddress(addr)
        })
    }

    /// Gives a live area so many pages of address space; `false` if the addresses that it lacks are not free.
    fn set_pages<P>(&self, base: &Base<P>, at: Link, start: u64, wanted: u64) -> bool {
        let records = records(base);
        let mut space = self.space.lock();
        let _of = self.nodes.of(start).lock();
        let node = Node { pages: wanted, ..records.load(at) };
        let next = space.tree.ceiling(&records.window(), start.saturating_add(1));
        if node.end() > next.map_or(self.window.1, |(_, spot)| spot.start) {
            return false;
        }
        // The span of an area is part of its place in the tree.
        space.tree.remove(&records.window(), start);
        records.create(at, &node);
        space.tree.insert(&records.window(), at, Spot::new(start, node.span()));
        true
    }
}
