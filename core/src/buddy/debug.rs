//! Checks of pages that cost: bad pages, poison, and who owns what. All are off unless the geometry says otherwise.
//!
//! While a check is on, CPUs keep no pages ([`PcpLimits::NONE`](super::pcp::PcpLimits::NONE)), so that each block passes
//! the slow paths, where the checks are; the fast paths know nothing of them.
//!
//! A bad page is one that must not change hands: it is still mapped. The whole block that it is in goes to the owner
//! `Bad`, is reported, and is never handed out again; whoever asked gets another.

use super::PageAllocator;
use super::relocate::Room;
use super::usage::OwnerClass;
use crate::addr::{PAGE_SIZE, Pfn};
use crate::base::Base;
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::hardening::PageDebug;
use crate::inspect::PageOwner;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{CpuId, Event, Platform};
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU64, Ordering::Relaxed, SpinLock};
use crate::warn::{BadReason, Found, PoisonDamage, Warning};
use core::ops::Range;
use core::panic::Location;

/// What free pages are filled with. Source: `PAGE_POISON`.
const PAGE_POISON: u8 = 0xaa;

/// Who has a block, noted in the entry of its first frame.
#[derive(Clone, Copy)]
struct Owner {
    order: Order,
    gfp: GfpFlags,
    cpu: CpuId,
    sequence: u64,
    location: &'static Location<'static>,
}

/// The metadata of the checks: nothing where they are off.
pub(super) struct DebugParts {
    owners: MetaSlice<SpinLock<Option<Owner>>>,
}

/// Which checks are on, and what they remember.
pub(super) struct PageChecks {
    enabled: PageDebug,
    owners: MetaSlice<SpinLock<Option<Owner>>>,
    /// Blocks handed out since the start.
    sequence: AtomicU64,
}

impl DebugParts {
    pub(super) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let entries = if geometry.page_debug.contains(PageDebug::OWNER) { geometry.frames() as usize } else { 0 };
        Self { owners: carver.carve(entries, |_| SpinLock::new(None)) }
    }
}

impl PageChecks {
    pub(super) fn new(geometry: &Geometry, parts: DebugParts) -> Self {
        Self { enabled: geometry.page_debug, owners: parts.owners, sequence: AtomicU64::new(0) }
    }

    fn note(&self, first: Pfn, owner: Option<Owner>) {
        if let Some(entry) = self.owners.get(first.index()) {
            *entry.lock() = owner;
        }
    }

    fn noted(&self, first: Pfn) -> Option<Owner> {
        *self.owners.get(first.index())?.lock()
    }
}

impl<P: Platform> PageAllocator<P> {
    /// Fills all free memory with poison, if that is on: the machine has just been made.
    pub(super) fn poison_everything(&self) {
        if self.checks.enabled.contains(PageDebug::POISON) {
            for zone in self.zones.iter() {
                zone.pfns().for_each(|page| poison(&self.base, page, Order::ZERO));
            }
        }
    }

    /// Tells whether any check is on.
    #[inline(always)]
    pub(super) fn has_checks(&self) -> bool {
        !self.checks.enabled.is_empty()
    }

    /// Looks at a block that was just taken for somebody; `false` if it is bad and was put aside.
    #[inline]
    pub(super) fn passes_checks(
        &self,
        first: Pfn,
        order: Order,
        gfp: GfpFlags,
        kind: FrameKind,
        location: &'static Location<'static>,
    ) -> bool {
        self.checks.enabled.is_empty() || self.check_allocated(first, order, gfp, kind, location)
    }

    #[cold]
    #[inline(never)]
    fn check_allocated(
        &self,
        first: Pfn,
        order: Order,
        gfp: GfpFlags,
        kind: FrameKind,
        location: &'static Location<'static>,
    ) -> bool {
        let enabled = self.checks.enabled;
        if enabled.contains(PageDebug::CHECK)
            && let Some((frame, reason)) = self.bad_frame(first, order)
        {
            self.retire(first, order, kind, (frame, reason, Found::Allocating));
            return false;
        }
        if enabled.contains(PageDebug::POISON) {
            self.check_poison(first, order);
        }
        self.note_owner(first, order, gfp, location);
        true
    }

    /// Looks at a block that is about to be free; `false` if it is bad and was put aside.
    #[inline]
    pub(super) fn passes_free_checks(&self, first: Pfn, order: Order, kind: FrameKind) -> bool {
        self.checks.enabled.is_empty() || self.check_freed(first, order, kind)
    }

    /// Looks at pages that are about to be free and to become a block; `false`, with nothing done, if one of them is bad.
    #[inline]
    pub(super) fn row_passes_free_checks(&self, first: Pfn, order: Order) -> bool {
        self.checks.enabled.is_empty() || self.check_freed_row(first, order)
    }

    #[cold]
    #[inline(never)]
    fn check_freed_row(&self, first: Pfn, order: Order) -> bool {
        let enabled = self.checks.enabled;
        if enabled.contains(PageDebug::CHECK) && self.bad_frame(first, order).is_some() {
            return false;
        }
        if enabled.contains(PageDebug::OWNER) {
            (0..order.pages()).filter_map(|n| first.checked_add(n)).for_each(|page| self.checks.note(page, None));
        }
        if enabled.contains(PageDebug::POISON) {
            poison(&self.base, first, order);
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn check_freed(&self, first: Pfn, order: Order, kind: FrameKind) -> bool {
        let enabled = self.checks.enabled;
        self.checks.note(first, None);
        if enabled.contains(PageDebug::CHECK)
            && let Some((frame, reason)) = self.bad_frame(first, order)
        {
            self.retire(first, order, kind, (frame, reason, Found::Freeing));
            return false;
        }
        if enabled.contains(PageDebug::POISON) {
            poison(&self.base, first, order);
        }
        true
    }

    /// The first page of a block that a mapping shows.
    pub(super) fn mapped_frame(&self, first: Pfn, order: Order) -> Option<Pfn> {
        let pages = (0..order.pages()).map_while(|offset| first.checked_add(offset));
        pages.into_iter().find(|&page| self.base.frames.mappings(page) > 0)
    }

    /// What is wrong with a block that nobody owns, if anything is.
    pub(super) fn bad_frame(&self, first: Pfn, order: Order) -> Option<(Pfn, BadReason)> {
        let page = self.mapped_frame(first, order)?;
        Some((page, BadReason::Mapped(self.base.frames.mappings(page))))
    }

    /// Takes a block out of circulation for good, and says so.
    #[cold]
    pub(super) fn retire(&self, first: Pfn, order: Order, kind: FrameKind, bad: (Pfn, BadReason, Found)) {
        let (frame, reason, found) = bad;
        self.checks.note(first, None);
        if let Some(zone) = self.zones.get(usize::from(self.base.frames.zone(first))) {
            self.locked(zone, |_| {
                // The pages of a run are blocks of their own.
                self.base.frames.join_block(first, order);
                self.base.frames.claim_block(first, order, FrameKind::Bad);
                zone.ledger.take_back(kind, order.pages());
                zone.ledger.add(OwnerClass::Bad, order.pages());
            });
        }
        self.base.warn(GfpFlags::empty(), Warning::BadPage { first, order, frame, reason, found });
    }

    /// Reports the pages of a block that were written to while they were free.
    fn check_poison(&self, first: Pfn, order: Order) {
        for page in (0..order.pages()).map_while(|offset| first.checked_add(offset)) {
            if let Some(damage) = damage(&self.base, page) {
                self.base.warn(GfpFlags::empty(), Warning::PoisonDamaged { frame: page, damage });
            }
        }
    }

    /// Looks at room that a block shall move to.
    pub(super) fn check_room(&self, room: &Room) {
        if self.checks.enabled.contains(PageDebug::POISON) {
            self.check_poison(room.first, room.order);
        }
    }

    /// Looks at a run of frames that was taken straight from the free lists: one block, or single pages.
    pub(super) fn check_run(
        &self,
        frames: &Range<u32>,
        block: Option<Order>,
        gfp: GfpFlags,
        location: &'static Location<'static>,
    ) {
        let order = block.unwrap_or(Order::ZERO);
        self.note_compound(Pfn::new(frames.start), block.is_some_and(|order| order > Order::ZERO));
        for first in frames.clone().step_by(order.pages() as usize).map(Pfn::new) {
            if self.checks.enabled.contains(PageDebug::POISON) {
                self.check_poison(first, order);
            }
            self.note_owner(first, order, gfp, location);
        }
    }

    fn note_owner(&self, first: Pfn, order: Order, gfp: GfpFlags, location: &'static Location<'static>) {
        if self.checks.enabled.contains(PageDebug::OWNER) {
            let sequence = self.checks.sequence.fetch_add(1, Relaxed);
            let owner = Owner { order, gfp, cpu: self.base.cpu(), sequence, location };
            self.checks.note(first, Some(owner));
        }
    }

    /// Notes that the pages of a block are blocks of their own now: each has the owner that the block had.
    pub(super) fn owner_split(&self, first: Pfn, order: Order) {
        if let Some(owner) = self.checks.noted(first) {
            for page in (0..order.pages()).map_while(|offset| first.checked_add(offset)) {
                self.checks.note(page, Some(Owner { order: Order::ZERO, ..owner }));
            }
        }
    }

    /// Notes that a block's owner has another one now.
    pub(super) fn owner_moved(&self, from: Pfn, to: Pfn) {
        if let Some(owner) = self.checks.noted(from) {
            self.base.event(Event::OwnerMoved);
            self.checks.note(to, Some(owner));
        }
    }

    /// Calls `each` for every block whose owner was noted, in the order of frames.
    pub(crate) fn page_owner(&self, mut each: impl FnMut(PageOwner)) {
        for n in 0..self.checks.owners.len() as u32 {
            let first = Pfn::new(n);
            let Some(Owner { order, gfp, cpu, sequence, location }) = self.checks.noted(first) else { continue };
            let kind = self.base.frames.kind(first);
            each(PageOwner { first, order, kind, gfp, cpu, sequence, location });
        }
    }
}

fn poison<P: Platform>(base: &Base<P>, first: Pfn, order: Order) {
    let inside = base.mem.fill(first.addr(), order.bytes(), PAGE_POISON);
    debug_assert!(inside, "block {first} is not in the memory window");
}

/// How a page differs from poison, if it does.
fn damage<P: Platform>(base: &Base<P>, page: Pfn) -> Option<PoisonDamage> {
    const WORD: usize = size_of::<u64>();
    let expected = u64::from_ne_bytes([PAGE_POISON; WORD]);
    let (mut first, mut last, mut bits) = (None, 0, 0);
    for at in (0..PAGE_SIZE).step_by(WORD) {
        let word = base.mem.read_u64(page.addr().checked_add(at as u64)?)?;
        if word == expected {
            continue;
        }
        for (offset, byte) in (at..).zip(word.to_ne_bytes()).filter(|&(_, byte)| byte != PAGE_POISON) {
            bits += (byte ^ PAGE_POISON).count_ones();
            last = offset as u16;
            first.get_or_insert((last, byte ^ PAGE_POISON));
        }
    }
    let (offset, flipped) = first?;
    Some(if bits == 1 {
        PoisonDamage::BitFlip { offset, bit: flipped.trailing_zeros() as u8 }
    } else {
        PoisonDamage::Corruption { first: offset, last }
    })
}
