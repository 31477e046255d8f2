//! `vmalloc` and `vmap`: the stages, and the way back from each.
//!
//! ```text
//! record ──► addresses ──► frames ──► page tables ──► the caller
//!    ◄── free ◄── remove ◄── free ◄── take, flush ◄── refused
//! ```
//!
//! The fault points `Descriptor`, `VirtualSpace`, `VmallocPages` and `PageTable` are asked in this order. A refused
//! call leaves everything as it was. It is one attempt; reclaim and retry are the caller's.

use super::area::{Link, Node, State, guard_pages};
use super::flags::{VmFlags, VmallocArgs};
use super::tree::{Spot, Want};
use super::{Vmalloc, checked_pages, frames, records};
use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::page::{FrameKind, PageList};
use crate::paging::{Detached, HUGE_ORDER, MapError, VpnRange, free_list};
use crate::platform::{Event, Platform};
use crate::slab::SlabLayer;
use crate::warn::{FlagsRemovedBy, Warning};
use crate::{PAGE_SHIFT, PAGE_SIZE};

/// What a record or a page table inherits of the caller's flags: how hard to try, not where from nor what to return.
const EFFORT: GfpFlags = GfpFlags::KERNEL
    .union(GfpFlags::HIGH)
    .union(GfpFlags::NOWARN)
    .union(GfpFlags::RETRY_MAYFAIL)
    .union(GfpFlags::NOFAIL)
    .union(GfpFlags::NORETRY)
    .union(GfpFlags::MEMALLOC)
    .union(GfpFlags::NOMEMALLOC);

/// Flags that mean nothing for single pages mapped side by side; they are dropped, as Linux does after a warning.
const UNSUPPORTED: GfpFlags = GfpFlags::COMP.union(GfpFlags::RECLAIMABLE).union(GfpFlags::WRITE);

/// An area that has its record and its addresses.
#[derive(Clone, Copy)]
pub(super) struct Reservation {
    pub(super) at: Link,
    /// The pages, without the guard.
    pub(super) range: VpnRange,
}

/// What addresses an area needs, and how they shall be mapped.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) want: Want,
    pub(super) pages: u64,
    flags: VmFlags,
    /// log2 of the pages that one entry maps.
    pub(super) leaf: Order,
    /// log2 of the alignment that was asked for, in bytes.
    align: u8,
}

impl Place {
    /// Wherever there is room.
    pub(super) fn anywhere(pages: PageCount, flags: VmFlags) -> Self {
        let want = Want { span: pages.get() + guard_pages(flags), align: 1, within: (0, u64::MAX) };
        Self { want, pages: pages.get(), flags, leaf: Order::ZERO, align: PAGE_SHIFT as u8 }
    }

    /// Tells whether every page of the window will do.
    pub(super) fn is_anywhere(&self, window: &(u64, u64)) -> bool {
        self.want.within.0 <= window.0 && window.1 <= self.want.within.1
    }

    /// The area, if it starts at this page.
    pub(super) fn node_at(&self, start: u64) -> Node {
        Node { leaf: self.leaf, align: self.align, ..Node::reserved(start, self.pages, self.flags) }
    }

    /// Where the caller wants it.
    pub(super) fn of(args: &VmallocArgs, pages: PageCount) -> Result<Self, AllocError> {
        if !args.align.is_power_of_two() {
            return Err(AllocError::BadAlign(args.align));
        }
        let anywhere = Self::anywhere(pages, args.flags);
        let align = args.align.max(PAGE_SIZE);
        let first = args.range.0.as_u64().div_ceil(PAGE_SIZE as u64);
        let within = (first, args.range.1.vpn().as_u64());
        let want = Want { align: (align / PAGE_SIZE) as u64, within, ..anywhere.want };
        Ok(Self { want, align: align.trailing_zeros() as u8, ..anywhere })
    }

    /// The same, mapped by huge entries: whole runs of their pages, aligned to them.
    fn huge(self, leaf: Order) -> Self {
        let pages = self.pages.next_multiple_of(leaf.pages());
        let span = pages + guard_pages(self.flags);
        let want = Want { span, align: self.want.align.max(leaf.pages()), ..self.want };
        Self { want, pages, leaf, ..self }
    }
}

/// The leaf order of huge entries, if such a request may be mapped by them on this machine.
fn huge_leaf<P>(base: &Base<P>, args: &VmallocArgs) -> Option<Order> {
    let leaf = Order::new(HUGE_ORDER)?;
    let geometry = &base.geometry;
    let possible = geometry.vmap_allow_huge && leaf <= geometry.max_order;
    let wanted = args.flags.contains(VmFlags::ALLOW_HUGE_VMAP) && args.gfp.may_block() && args.size >= leaf.bytes();
    (possible && wanted).then_some(leaf)
}

impl Vmalloc {
    /// Allocates bytes in whole pages, side by side in the window, followed by an unmapped guard page unless the flags
    /// say otherwise.
    ///
    /// # Errors
    ///
    /// `BadFlags` for `MAP_PUT_PAGES`; `ZeroSize`; `TooLarge` above all of memory; `BadAlign` for no power of two;
    /// `NoVirtualSpace`; `Injected`; the refusal of slab or page allocator.
    pub(crate) fn vmalloc<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        args: &VmallocArgs,
    ) -> Result<VirtAddr, AllocError> {
        if args.flags.intersects(VmFlags::MAP_PUT_PAGES | VmFlags::MAP_RAM) {
            return Err(AllocError::BadFlags);
        }
        let count = checked_pages(&pages.base, args.size)?;
        // Others know the frames of such areas, or have changed them.
        let movable = args.gfp.contains(GfpFlags::MOVABLE) && !args.flags.intersects(VmFlags::KEEPS_PAGES);
        let mut flags = args.flags;
        flags.set(VmFlags::MOVABLE, movable);
        let plain = Place::of(&VmallocArgs { flags, ..*args }, count)?;
        // Pages move one by one.
        if let Some(leaf) = huge_leaf(&pages.base, args).filter(|_| !movable) {
            if let Ok(addr) = self.make_area(pages, slab, args, plain.huge(leaf)) {
                pages.base.event(Event::HugeMapped);
                return Ok(addr);
            }
            pages.base.event(Event::HugeRetried);
        }
        self.make_area(pages, slab, args, plain)
    }

    fn make_area<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        args: &VmallocArgs,
        place: Place,
    ) -> Result<VirtAddr, AllocError> {
        let area = self.reserve(pages, slab, place, args.gfp)?;
        let gfp = page_flags(&pages.base, args.gfp);
        let filled = frames::alloc_frames(pages, &place, gfp, args.node)
            .and_then(|frames| self.map_frames(pages, area.range, place.leaf, args.gfp, frames));
        let addr = self.settle(pages, slab, area, State::Vmalloc { requested: args.size }, filled)?;
        if place.flags.contains(VmFlags::MOVABLE) {
            self.tables.set_movable(pages, area.range, true);
        }
        Ok(addr)
    }

    /// Maps frames of the caller side by side. They stay the caller's, who frees them after [`Self::vunmap`]; but with
    /// `MAP_PUT_PAGES` the area has one of the caller's references to each page, and `vfree` drops it.
    ///
    /// # Errors
    ///
    /// `BadFlags` for `FLUSH_RESET_PERMS`; `ZeroSize` for no frame, `TooLarge` for more than memory has; `BadAddress` for a
    /// frame outside memory, or one to which there is no reference of its own; what else can refuse a record, addresses
    /// or a page table.
    pub(crate) fn vmap<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        frames: &[Pfn],
        flags: VmFlags,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let flags = mapping_flags(&pages.base, flags)?;
        checked_frames(&pages.base, frames)?;
        if flags.contains(VmFlags::MAP_PUT_PAGES) {
            check_references(pages, frames)?;
        }
        self.map_side_by_side(pages, slab, frames, flags, gfp)
    }

    /// An area that shows frames of the caller, all of which are memory.
    pub(super) fn map_side_by_side<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        frames: &[Pfn],
        flags: VmFlags,
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let count = PageCount::new(frames.len() as u64);
        let area = self.reserve(pages, slab, Place::anywhere(count, flags), gfp)?;
        let mut rest = frames.iter().copied();
        let mapped = self.tables.map(pages, area.range, gfp & EFFORT, || rest.next());
        let mapped = mapped.map_err(|refused| self.give_up(pages, area.range, false, refused));
        let addr = self.settle(pages, slab, area, State::Vmap, mapped)?;
        frames.iter().for_each(|&frame| pages.map_page(frame));
        Ok(addr)
    }

    /// The first two stages: the record and the addresses, from a pool or the lowest that fit.
    pub(super) fn reserve<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        wanted: Place,
        gfp: GfpFlags,
    ) -> Result<Reservation, AllocError> {
        for point in [FaultPoint::Descriptor, FaultPoint::VirtualSpace] {
            if pages.base.fault(FaultSite::new(point, gfp & EFFORT)) {
                return Err(AllocError::Injected(point));
            }
        }
        let (at, node) = match self.take_pooled(pages, &wanted) {
            Some(pooled) => pooled,
            None => self.reserve_new(pages, slab, &wanted, gfp)?,
        };
        Ok(Reservation { at, range: node.whole_range().first(node.pages) })
    }

    /// A new record, and the lowest addresses that fit.
    fn reserve_new<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        wanted: &Place,
        gfp: GfpFlags,
    ) -> Result<(Link, Node), AllocError> {
        let object = slab.internal_alloc(pages, self.records, gfp & EFFORT)?;
        let at = pages.base.phys(object).map(Link::new).ok_or(AllocError::BadAddress(object))?;
        let place = || self.place(&pages.base, at, wanted);
        let short = || AllocError::NoVirtualSpace { pages: PageCount::new(wanted.want.span) };
        // What the pools keep may be what is missing.
        let node = place().or_else(|| if self.empty_pools(pages, slab) > 0 { place() } else { None });
        let node = node.ok_or_else(short).inspect_err(|_| self.free_record(pages, slab, at))?;
        Ok((at, node))
    }

    pub(super) fn free_record<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, at: Link) {
        let freed = slab.internal_free(pages, self.records, pages.base.virt(at.addr()));
        debug_assert_eq!(freed, Ok(()), "a record was not the slab's");
    }

    /// Finds the lowest gap that fits and puts the area there.
    fn place<P>(&self, base: &Base<P>, at: Link, wanted: &Place) -> Option<Node> {
        let records = records(base);
        let mut space = self.space.lock();
        let node = wanted.node_at(space.tree.lowest_fit(&records.window(), wanted.want)?);
        records.create(at, &node);
        space.tree.insert(&records.window(), at, Spot::new(node.start, node.span()));
        Some(node)
    }

    /// Maps frames, which become the area's, 2^`leaf` by each entry. On refusal all of them go back to the page allocator.
    pub(super) fn map_frames<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        leaf: Order,
        gfp: GfpFlags,
        mut frames: PageList,
    ) -> Result<(), AllocError> {
        let descriptors = &pages.base.frames;
        let mut page = range.start().as_u64();
        let mut next = || {
            let frame = frames.pop_head(descriptors)?;
            descriptors.set_private(frame, page as u32);
            descriptors.set_movable(frame, false);
            page += 1;
            Some(frame)
        };
        let mapped = if leaf == Order::ZERO {
            self.tables.map(pages, range, gfp & EFFORT, next)
        } else {
            let next_run = || (0..leaf.pages()).map_while(|_| next()).fold(None, |first, frame| first.or(Some(frame)));
            self.tables.map_huge(pages, range, gfp & EFFORT, next_run)
        };
        mapped.map_err(|refused| {
            free_list(pages, &mut frames);
            self.give_up(pages, range, true, refused)
        })
    }

    /// Takes back what a refused mapping had mapped.
    #[cold]
    pub(super) fn give_up<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        owned: bool,
        refused: MapError,
    ) -> AllocError {
        self.take_now(pages, range.first(refused.mapped), owned);
        refused.error
    }

    /// Takes pages out of the tables, flushes, and frees: for what cannot wait for the purge.
    pub(super) fn take_now<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange, owned: bool) -> u64 {
        let mut gone = Detached::new();
        self.tables.take(pages, range, owned, &mut gone);
        let flushed = gone.to_flush().flush(&pages.base.platform);
        gone.release(pages, &flushed)
    }

    /// The last stage: the area becomes the caller's, or its addresses and its record go back.
    fn settle<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        area: Reservation,
        state: State,
        filled: Result<(), AllocError>,
    ) -> Result<VirtAddr, AllocError> {
        match filled {
            Ok(()) => self.publish(&pages.base, area.at, |node| {
                node.mapped = node.pages;
                node.state = state;
            }),
            Err(_) => self.forget(pages, slab, area.at, area.range.start().as_u64()),
        }
        filled.map(|()| area.range.start().addr())
    }

    /// Gives an area's addresses and its record back.
    pub(super) fn forget<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, at: Link, start: u64) {
        self.space.lock().tree.remove(&records(&pages.base).window(), start);
        self.free_record(pages, slab, at);
    }
}

/// What a record or a page table inherits of a request's flags.
pub(super) fn effort(gfp: GfpFlags) -> GfpFlags {
    gfp & EFFORT
}

/// Flags for the pages themselves: they may come from high memory, unless the caller named a zone.
pub(super) fn page_flags<P: Platform>(base: &Base<P>, gfp: GfpFlags) -> GfpFlags {
    let removed = gfp & UNSUPPORTED;
    if !removed.is_empty() {
        base.warn(gfp, Warning::FlagsRemoved { by: FlagsRemovedBy::Vmalloc, flags: removed });
    }
    let gfp = gfp - removed;
    if gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) { gfp } else { gfp | GfpFlags::HIGHMEM }
}

/// The flags of a mapping of the caller's frames. A guard follows it in any case, and the frames' permissions are not the
/// area's to reset: both are mistakes of the caller.
fn mapping_flags<P: Platform>(base: &Base<P>, flags: VmFlags) -> Result<VmFlags, AllocError> {
    if flags.contains(VmFlags::MAP_RAM) {
        return Err(AllocError::BadFlags);
    }
    if flags.contains(VmFlags::FLUSH_RESET_PERMS) {
        base.warn(GfpFlags::empty(), Warning::VmapResetsPerms);
        return Err(AllocError::BadFlags);
    }
    if flags.contains(VmFlags::NO_GUARD) {
        base.warn(GfpFlags::empty(), Warning::VmapWithoutGuard);
    }
    Ok(flags - VmFlags::NO_GUARD)
}

/// References are counted by block, so an area can have one to a page only if the page is a block of its own.
fn check_references<P: Platform>(pages: &PageAllocator<P>, frames: &[Pfn]) -> Result<(), AllocError> {
    match frames.iter().find(|frame| !pages.is_single(**frame)) {
        Some(other) => Err(AllocError::BadAddress(pages.base.virt(other.addr()))),
        None => Ok(()),
    }
}

/// How many frames there are, if they can all be mapped.
pub(super) fn checked_frames<P>(base: &Base<P>, frames: &[Pfn]) -> Result<PageCount, AllocError> {
    let requested = frames.len().saturating_mul(PAGE_SIZE);
    let count = checked_pages(base, requested)?;
    match frames.iter().find(|frame| base.frames.kind(**frame) == FrameKind::Absent) {
        Some(outside) => Err(AllocError::BadAddress(base.direct.virt(outside.addr()))),
        None => Ok(count),
    }
}
