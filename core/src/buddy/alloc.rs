//! The way of a block from a zone to its owner.

use super::PageAllocator;
use super::migrate::{MigrateType, PCP_TYPES};
use super::pcp::{HotPages, PcpLists, PerCpuPages, list_index};
use super::usage::OwnerClass;
use super::watermark::{AllocFlags, Watermark};
use super::zone::Zone;
use super::zonelist::{Pass, Request};
use crate::addr::Pfn;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::mobility::Mobility;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use crate::sync::count_shared;
use crate::warn::Warning;
use core::panic::Location;

impl<P: Platform> PageAllocator<P> {
    /// Allocates a block and tags its frames. One attempt: nothing is reclaimed, and no fault point is asked.
    ///
    /// # Errors
    ///
    /// [`AllocError::BadFlags`], [`AllocError::OrderTooLarge`], or [`AllocError::NoPages`].
    #[inline(always)]
    #[track_caller]
    pub(crate) fn alloc_block(&self, order: Order, gfp: GfpFlags, kind: FrameKind) -> Result<Pfn, AllocError> {
        if order == Order::ZERO
            && let Some(pfn) = self.alloc_page_fast(gfp, kind)
        {
            return Ok(pfn);
        }
        self.alloc_block_slow(order, gfp, self.base.node_here(), kind, Location::caller())
    }

    /// As [`Self::alloc_block`], from the memory of this node or, unless the flags say `THISNODE`, of the nearest to it.
    /// Without a node it is that of the CPU which calls.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_block`].
    #[inline]
    #[track_caller]
    pub(crate) fn alloc_block_on(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
        kind: FrameKind,
    ) -> Result<Pfn, AllocError> {
        self.alloc_block_at(order, gfp, node, kind, Location::caller())
    }

    /// As [`Self::alloc_block_on`], for a caller at `location`.
    ///
    /// # Errors
    ///
    /// As [`Self::alloc_block`].
    #[inline(always)]
    pub(super) fn alloc_block_at(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
        kind: FrameKind,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        if node.is_none()
            && order == Order::ZERO
            && let Some(pfn) = self.alloc_page_fast(gfp, kind)
        {
            return Ok(pfn);
        }
        self.alloc_block_slow(order, gfp, node.unwrap_or_else(|| self.base.node_here()), kind, location)
    }

    /// Takes a page from this CPU's array; `None` if that is empty or in use, or if the request makes no sense.
    #[inline(always)]
    fn alloc_page_fast(&self, gfp: GfpFlags, kind: FrameKind) -> Option<Pfn> {
        let cpu = self.base.platform.cpu();
        let array = self.routes.first(cpu).get(gfp);
        let pfn = self.take_hot(self.hot.get(cpu, array)?, array, gfp)?;
        if kind != FrameKind::Pages {
            self.give_to(pfn, kind);
        }
        Some(pfn)
    }

    /// Takes a page for a caller of `alloc_pages` from an array of this CPU that has a kind byte.
    #[inline(always)]
    pub(super) fn take_hot(&self, hot: &HotPages, array: usize, gfp: GfpFlags) -> Option<Pfn> {
        let pfn = hot.take(P::STATISTICS)?;
        if let Some(kind) = self.base.frames.kind_ref(pfn) {
            kind.set_home(array);
        }
        self.base.event(Event::PcpHit);
        if gfp.wants_zero() {
            self.zero(pfn, Order::ZERO);
        }
        Some(pfn)
    }

    /// Hands a page that was taken from an array to an owner other than a caller of `alloc_pages`.
    #[inline(never)]
    fn give_to(&self, pfn: Pfn, kind: FrameKind) {
        self.base.frames.set_kind(pfn, kind);
        // The array counts all of its pages as those of such callers.
        if let Some(pcp) = self.pcp(self.base.cpu(), usize::from(self.base.frames.zone(pfn))) {
            pcp.ledger.move_between(FrameKind::Pages, kind, 1);
        }
    }

    /// Checks that a request makes sense, and looks up where it starts.
    pub(super) fn request(&self, order: Order, gfp: GfpFlags, node: NodeId) -> Result<Request, AllocError> {
        let route = self.zonelists.route(node, gfp);
        let max = self.base.geometry.max_order;
        if route.is_bad() {
            return Err(AllocError::BadFlags);
        }
        if order > max {
            return Err(AllocError::OrderTooLarge { max });
        }
        Ok(Request { order, gfp, route, node, replaces: false })
    }

    #[cold]
    #[inline(never)]
    fn alloc_block_slow(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: NodeId,
        kind: FrameKind,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        let request =
            self.request(order, gfp, node).inspect_err(|error| self.note_refusal(error, order.bytes(), gfp))?;
        self.count_slow_alloc(&request);
        let take =
            |request: &Request| self.alloc_from_nearest(request, kind).or_else(|| self.alloc_from_zones(request, kind));
        self.prepared(&request, kind, location, take).ok_or(AllocError::NoPages { order })
    }

    /// Allocates a block for a caller of `alloc_pages` from wherever it is to be had but by the first step, which was made.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_block_far(
        &self,
        order: Order,
        gfp: GfpFlags,
        location: &'static Location<'static>,
    ) -> Result<Pfn, AllocError> {
        let request = self.request(order, gfp, self.base.node_here())?;
        let take = |request: &Request| self.alloc_from_zones(request, FrameKind::Pages);
        self.prepared(&request, FrameKind::Pages, location, take).ok_or(AllocError::NoPages { order })
    }

    /// Counts a request that came to a slow path, where such are counted.
    #[inline(always)]
    pub(super) fn count_slow_alloc(&self, request: &Request) {
        if P::STATISTICS
            && let Some(pcp) = self.pcp(self.base.cpu(), request.route.zone())
        {
            count_shared(&pcp.slow_allocs, true);
        }
    }

    /// The first step of [`Self::alloc_from_zones`], which most requests need not go beyond.
    #[inline]
    pub(super) fn alloc_from_nearest(&self, request: &Request, kind: FrameKind) -> Option<Pfn> {
        let zone = self.zones.get(request.route.zone()).filter(|zone| zone.node == request.node)?;
        self.alloc_from_zone(zone, request, self.zonelists.first_pass(request), kind)
    }

    /// Takes a block and makes it ready for its owner: checked, noted and zeroed as the request says.
    pub(super) fn prepared(
        &self,
        request: &Request,
        kind: FrameKind,
        location: &'static Location<'static>,
        mut take: impl FnMut(&Request) -> Option<Pfn>,
    ) -> Option<Pfn> {
        let Request { order, gfp, .. } = *request;
        let mut first = take(request)?;
        // A bad block is out of circulation, so the next one is another.
        while !self.passes_checks(first, order, gfp, kind, location) {
            first = take(&Request { replaces: true, ..*request })?;
        }
        self.hand_over(first, order, gfp, kind);
        Some(first)
    }

    /// Notes what the flags say of a block that an owner of this kind gets, and zeroes it if they ask for that.
    #[inline]
    pub(super) fn hand_over(&self, first: Pfn, order: Order, gfp: GfpFlags, kind: FrameKind) {
        if kind == FrameKind::Pages {
            self.note_use(first, order, gfp);
        }
        if gfp.wants_zero() {
            self.zero(first, order);
        }
    }

    /// Notes what the flags say about a block and neither its pageblock nor its list does.
    fn note_use(&self, first: Pfn, order: Order, gfp: GfpFlags) {
        if order > Order::ZERO {
            self.note_compound(first, gfp.contains(GfpFlags::COMP));
        }
        if self.base.geometry.mobility == Mobility::Mixed && gfp.contains(GfpFlags::MOVABLE) {
            self.base.frames.set_migrate(first, MigrateType::Movable as u8);
            // It comes back by way of a list, which notes that the next owner need not let it move.
            self.base.frames.forget_home(first);
        }
    }

    /// Warns if a request was refused because no block is that large.
    pub(super) fn note_refusal(&self, error: &AllocError, bytes: usize, gfp: GfpFlags) {
        if matches!(error, AllocError::OrderTooLarge { .. }) {
            self.base.warn(gfp, Warning::TooLarge { bytes });
        }
    }

    /// Walks over the zones until one has a block, politely at first; without the step that was made.
    #[cold]
    #[inline(never)]
    fn alloc_from_zones(&self, request: &Request, kind: FrameKind) -> Option<Pfn> {
        let first = self.zonelists.first_pass(request);
        for pass in self.zonelists.passes(request) {
            for zone in self.zones_of(request) {
                if pass == first && usize::from(zone.index) == request.route.zone() && zone.node == request.node {
                    continue;
                }
                if self.zonelists.ends_before(request, pass, usize::from(zone.index)) {
                    break;
                }
                let Some(first) = self.alloc_from_zone(zone, request, pass, kind) else { continue };
                self.reserve_highatomic(zone, first, request.order, pass);
                self.note_reserve(zone, pass);
                if zone.node != request.node {
                    self.base.event(Event::NodeFallback);
                } else if usize::from(zone.index) != request.route.zone() {
                    self.base.event(Event::ZoneFallback);
                }
                return Some(first);
            }
        }
        None
    }

    /// Tells the platform how far down a request has taken a zone.
    fn note_reserve(&self, zone: &Zone, pass: Pass) {
        match pass.mark {
            Watermark::Low => {}
            Watermark::Ignored => self.base.event(Event::WatermarkIgnored),
            Watermark::Min if zone.free_pages() < zone.marks.min => self.base.event(Event::BelowMin),
            Watermark::Min => self.base.event(Event::BelowLow),
        }
    }

    /// The zones that a request may use, best first.
    pub(super) fn zones_of(&self, request: &Request) -> impl Iterator<Item = &Zone> {
        self.zonelists.zones(request).filter_map(|index| self.zones.get(index))
    }

    /// Takes a block from a zone, by way of this CPU's lists if they keep such blocks and nobody else uses them.
    ///
    /// A block that is on a list already is given without a look at the watermarks: it is not among the free pages that
    /// they protect.
    pub(super) fn alloc_from_zone(&self, zone: &Zone, request: &Request, pass: Pass, kind: FrameKind) -> Option<Pfn> {
        let Some(list) = list_index(request.order, request.route.migrate(), self.blocks.order) else {
            return self.alloc_past_lists(zone, request, pass, kind);
        };
        let cpu = self.base.cpu();
        let hot = if request.order == Order::ZERO { self.hot(cpu, usize::from(zone.index), list) } else { None };
        if let Some(first) = hot.and_then(|hot| hot.take(false)) {
            self.base.event(Event::PcpHit);
            self.base.frames.claim_block(first, Order::ZERO, FrameKind::Pages);
            if kind != FrameKind::Pages {
                self.give_to(first, kind);
            }
            return Some(first);
        }
        if let Some(pcp) = self.pcp(cpu, usize::from(zone.index))
            && let Some(mut lists) = pcp.cell.try_local()
        {
            let there = !lists.is_empty(list);
            if there {
                self.base.event(Event::PcpHit);
            }
            if there || self.refill(zone, request, pass, pcp, &mut lists, list).is_some() {
                let first = self.unpark(pcp, &mut lists, list, request.order, kind)?;
                if let Some(hot) = hot {
                    self.warm_up(hot, pcp, &mut lists, list);
                }
                return Some(first);
            }
            if !pass.rights.contains(AllocFlags::NON_BLOCK) {
                return None;
            }
            // What is left is the HIGHATOMIC reserve, of which lists are never filled.
        }
        self.alloc_past_lists(zone, request, pass, kind)
    }

    #[inline(never)]
    fn alloc_past_lists(&self, zone: &Zone, request: &Request, pass: Pass, kind: FrameKind) -> Option<Pfn> {
        let migrate = request.route.migrate();
        self.locked(zone, |locked| {
            if !locked.passes(request, pass) {
                return None;
            }
            let block = locked.take(request, pass)?;
            self.base.frames.set_migrate(block.first, migrate as u8);
            self.base.frames.claim_block(block.first, block.order, kind);
            zone.ledger.hand_out(kind, block.order.pages());
            Some(block.first)
        })
    }

    /// Fetches blocks for an empty list, if the zone may give any: the one requested, from wherever it can be had, and
    /// more of the own type, as many as are worth taking the lock for.
    #[inline(never)]
    fn refill(
        &self,
        zone: &Zone,
        request: &Request,
        pass: Pass,
        pcp: &PerCpuPages,
        lists: &mut PcpLists,
        list: usize,
    ) -> Option<()> {
        let (order, migrate) = (request.order, request.route.migrate());
        let fetched = self.locked(zone, |locked| {
            if !locked.passes(request, pass) {
                return None;
            }
            let count = self.pcp_pages(self.base.cpu(), usize::from(zone.index));
            let ahead = lists.plan_refill(zone.pcp, order, count, zone.has_plenty());
            let ahead = ahead.min(locked.blocks_ahead(request));
            let mut next = Some(locked.take_ordinary(order, migrate, pass)?);
            let mut fetched = 0;
            while let Some(block) = next {
                self.park(block.first, order, migrate);
                lists.append(&self.base.frames, list, block.first);
                fetched += 1;
                next = if fetched <= ahead { locked.take_smallest(order, migrate) } else { None };
            }
            Some(fetched)
        })?;
        pcp.ledger.add(OwnerClass::Pcp, fetched * order.pages());
        lists.settle(pcp.pages());
        self.base.event(Event::PcpRefill);
        Some(())
    }

    /// Moves the newest pages of a list into its empty array.
    #[inline(never)]
    fn warm_up(&self, hot: &HotPages, pcp: &PerCpuPages, lists: &mut PcpLists, list: usize) {
        let most = hot.limit().div_ceil(2);
        let moved = hot.with(&self.base.platform, true, |pages| {
            while pages.len() < most {
                let Some(pfn) = lists.pop(&self.base.frames, list) else { break };
                pages.push(most, pfn);
            }
            // The list gave its newest first; in the array the newest is last.
            pages.reverse();
            pages.len()
        });
        pcp.ledger.sub(OwnerClass::Pcp, moved.unwrap_or(0).into());
    }

    /// Takes the newest block of a per-CPU list and tags it.
    pub(super) fn unpark(
        &self,
        pcp: &PerCpuPages,
        lists: &mut PcpLists,
        list: usize,
        order: Order,
        kind: FrameKind,
    ) -> Option<Pfn> {
        let first = lists.pop(&self.base.frames, list)?;
        self.base.frames.claim_block(first, order, kind);
        if kind == FrameKind::Pages && order == Order::ZERO {
            let zone = usize::from(self.base.frames.zone(first));
            self.base.frames.set_home(first, zone * PCP_TYPES + list);
        }
        pcp.hand_out(kind, order.pages());
        Some(first)
    }

    /// Tags the frames of a block that goes to a per-CPU list.
    pub(super) fn park(&self, first: Pfn, order: Order, migrate: MigrateType) {
        let frames = &self.base.frames;
        frames.set_block_kind(first, order, FrameKind::Pcp);
        frames.set_order(first, order);
        frames.set_migrate(first, migrate as u8);
    }

    #[inline(never)]
    pub(super) fn zero(&self, first: Pfn, order: Order) {
        let inside = self.base.mem.fill(first.addr(), order.bytes(), 0);
        debug_assert!(inside, "block {first} is not in the memory window");
    }
}
