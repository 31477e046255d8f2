//! Frees of callers that may not wait, not even for a lock: `vfree_atomic`.
//!
//! The area becomes Deferred, and its record the top of a stack of the CPU: pushed and emptied without a lock, threaded
//! through the records, so that any number can wait. It stays mapped, and its addresses and frames its own, until somebody
//! who may wait empties the stack and frees it in the ordinary way. To mark it needs the lock of its vmap node for a few
//! steps; if that is held (perhaps by whom the caller has interrupted), the address alone is noted in one of the CPU's
//! slots, and looked at later. Source of the contract: section 4.7.
//!
//! ```text
//! D1  an area is on one CPU's stack  <=>  it is Deferred           (from the end of the call that freed it on)
//! D2  each slot holds nothing or an address that somebody freed and nobody has looked at
//! ```

use super::area::{Link, State};
use super::{Vmalloc, misplaced, records};
use crate::PAGE_SIZE;
use crate::addr::{VirtAddr, Vpn};
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, FreeError};
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::platform::{CpuId, Event, Platform};
use crate::raw::{Carver, MetaSlice};
use crate::slab::SlabLayer;
use crate::sync::{AtomicU64, Ordering};
use crate::warn::Warning;

/// How many addresses a CPU may note.
const SLOTS: usize = 32;

/// What waits, for each CPU.
pub(super) struct Deferred {
    /// The record on top of each stack.
    tops: MetaSlice<AtomicU64>,
    /// Slots of CPU `p`: from `p * SLOTS` on. An address, or 0.
    slots: MetaSlice<AtomicU64>,
}

impl Deferred {
    pub(super) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let cpus = usize::from(geometry.cpus);
        let tops = carver.carve(cpus, |_| AtomicU64::new(Link::NIL.as_u64()));
        Self { tops, slots: carver.carve(cpus * SLOTS, |_| AtomicU64::new(0)) }
    }

    /// Notes an address; `false` if no slot is left.
    fn note(&self, cpu: CpuId, addr: VirtAddr) -> bool {
        let first = cpu.index() * SLOTS;
        let takes =
            |slot: &AtomicU64| slot.compare_exchange(0, addr.as_u64(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.slots.get(first..first + SLOTS).unwrap_or_default().iter().any(takes)
    }
}

impl Vmalloc {
    /// Has the area that starts at `addr` freed later; null is ignored. Waits for nothing.
    ///
    /// # Errors
    ///
    /// What is wrong with the address, or `WouldBlock` if its node is in use and nothing more can be noted; nothing is
    /// changed then. Of an address that was only noted, mistakes are reported as a warning when it is looked at.
    pub(crate) fn vfree_atomic<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        if addr == VirtAddr::NULL {
            return Ok(());
        }
        if let Some(error) = misplaced(&pages.base, addr, BlockKind::Vmalloc) {
            return Err(error);
        }
        match self.push_deferred(pages, addr) {
            Some(pushed) => pushed?,
            None if self.deferred.note(pages.base.cpu(), addr) => pages.base.event(Event::VfreeNoted),
            None => return Err(FreeError::WouldBlock(addr)),
        }
        pages.base.event(Event::VfreeDeferred);
        Ok(())
    }

    /// Makes a live area Deferred and the top of the CPU's stack; `None` if a lock that this needs is held. Whom the caller
    /// has interrupted keeps his locks meanwhile, so that one which is free now is at most held by others for some steps.
    fn push_deferred<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<Result<(), FreeError>> {
        let page = addr.vpn().as_u64();
        let of = self.nodes.of(page).try_lock()?;
        let is_start = self.nodes.live.find(&of, records(&pages.base), page).is_some();
        drop(of);
        // To name a mistake, the whole window is looked at.
        let are_free = || self.space.try_lock().is_some() && self.nodes.all().all(|of| of.try_lock().is_some());
        if !is_start && !are_free() {
            return None;
        }
        let top = self.deferred.tops.get(pages.base.cpu().index())?;
        Some(self.with_live(&pages.base, addr, |_, at, node| {
            let owned = node.state.owns_frames();
            let mut below = top.load(Ordering::Relaxed);
            loop {
                node.state = State::Deferred { next: Link::from_word(below), owned };
                match top.compare_exchange_weak(below, at.as_u64(), Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return Ok(()),
                    Err(now) => below = now,
                }
            }
        }))
    }

    /// Frees what waits on all CPUs; returns how many areas.
    pub(crate) fn drain_deferred<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer) -> u64 {
        let stacks: u64 = self.deferred.tops.iter().map(|top| self.drain_stack(pages, slab, top)).sum();
        let noted = self.deferred.slots.iter().map(|slot| VirtAddr::new(slot.swap(0, Ordering::AcqRel)));
        stacks + noted.filter(|&addr| addr != VirtAddr::NULL && self.free_noted(pages, slab, addr)).count() as u64
    }

    fn drain_stack<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, top: &AtomicU64) -> u64 {
        let records = records(&pages.base);
        let mut at = Link::from_word(top.swap(Link::NIL.as_u64(), Ordering::Acquire));
        let mut freed = 0;
        while !at.is_nil() {
            let start = Vpn::new(records.start(at)).addr();
            let mut next = Link::NIL;
            self.edit(&pages.base, at, |node| {
                let State::Deferred { next: below, owned } = node.state else { return };
                let requested = (node.mapped as usize).saturating_mul(PAGE_SIZE);
                (next, node.state) = (below, if owned { State::Vmalloc { requested } } else { State::Vmap });
            });
            freed += u64::from(self.vfree(pages, slab, start).is_ok());
            at = next;
        }
        freed
    }

    /// Frees what starts at an address that nobody has looked at yet.
    fn free_noted<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, addr: VirtAddr) -> bool {
        let freed = self.vfree(pages, slab, addr).is_ok();
        if !freed {
            pages.base.warn(GfpFlags::empty(), Warning::VfreeOfNothing { addr });
        }
        freed
    }

    /// Tells whether an address was noted, and how often.
    #[cfg(test)]
    pub(super) fn noted(&self, addr: VirtAddr) -> usize {
        self.deferred.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) == addr.as_u64()).count()
    }
}
