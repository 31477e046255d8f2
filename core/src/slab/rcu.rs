//! Frees that wait for a grace period: `kfree_rcu`, and the slabs of `TYPESAFE_BY_RCU` caches.
//!
//! A freed object stays as it is until every reader that may still see it has gone. Until then it is in one of:
//!
//! | step | place | when |
//! |---|---|---|
//! | 1 | the rcu sheaf of this CPU and cache | a buffer is there |
//! | 2 | the bulk buffer of the machine | the cache has no sheaves, or the rcu sheaf is in use |
//! | 3 | a chain through heads inside the objects | no buffer is left, and the caller offered a head |
//! | 4 | nowhere: the caller waits for the grace period and frees | no buffer, no head |
//!
//! Large blocks are linked through their frame descriptors and need no memory; so are slabs. What steps 2 and 3 hold, and
//! full rcu sheaves, wait together:
//!
//! ```text
//!  collecting ──► waiting for the grace period that began then ──► freed
//! ```
//!
//! ```text
//! R1  pending(c) == objects of cache c in rcu sheaves, in the bulk buffer, in batches and in chains
//! R2  an object that is pending is not live, and its occupancy bit is set
//! R3  waiting(s) of a slab s of a debug cache == its pending objects
//! ```
//!
//! A head is read again before it is believed: a link that leads to no pending object ends the chain, and what was behind
//! it is lost, not handed out twice. Of the locks, that of the queue is held while an area is marked; else they are taken
//! last, and never while the platform waits.

use super::free::KmallocBlock;
use super::live::LiveMode;
use super::node::Slabs;
use super::sheaf::SheafId;
use super::{SlabFlags, SlabLayer};
use crate::addr::{PAGE_SHIFT, Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::FreeError;
use crate::page::{FrameKind, FrameTable, PageList};
use crate::platform::{Event, Platform, RcuCookie};
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU64, Ordering::Relaxed, SpinLock};

/// Bytes of a head: where the next object is, and where in it the next head is.
pub(crate) const RCU_HEAD_BYTES: usize = 16;
/// A head lies in the first bytes of its object. Source: `kvfree_rcu`, `include/linux/rcupdate.h`.
const RCU_HEAD_MAX_OFFSET: usize = 4096;
/// The slices of the metadata region.
pub(super) struct RcuParts {
    sheaves: MetaSlice<SpinLock<Option<SheafId>>>,
    pending: MetaSlice<AtomicU64>,
}

impl RcuParts {
    pub(super) fn carve(caches: usize, cpus: usize, carver: &mut Carver<'_>) -> Self {
        Self {
            sheaves: carver.carve(caches * cpus, |_| SpinLock::new(None)),
            pending: carver.carve(caches, |_| AtomicU64::new(0)),
        }
    }
}

/// The first object of a chain, and where its head is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Chain {
    first: Option<(PhysAddr, u16)>,
    len: u32,
}

/// What waits for one grace period.
pub(super) struct Batch {
    /// Buffers with objects of any cache, linked through the pool.
    sheaves: Option<SheafId>,
    /// Not yet full; of the batch that is being collected only.
    bulk: Option<SheafId>,
    chain: Chain,
    large: PageList,
    slabs: PageList,
    slab_pages: u64,
    /// Areas of the vmalloc window, which have the batch's number.
    areas: u32,
}

impl Batch {
    const EMPTY: Self = Self {
        sheaves: None,
        bulk: None,
        chain: Chain { first: None, len: 0 },
        large: PageList::EMPTY,
        slabs: PageList::EMPTY,
        slab_pages: 0,
        areas: 0,
    };

    fn is_empty(&self) -> bool {
        let lists = self.large.is_empty() && self.slabs.is_empty() && self.areas == 0;
        lists && self.sheaves.is_none() && self.bulk.is_none() && self.chain.first.is_none()
    }
}

struct Queue {
    collecting: Batch,
    waiting: Batch,
    /// When the waiting batch may be freed.
    cookie: RcuCookie,
    /// Number of the collecting batch; that of the waiting one is the other.
    number: u8,
}

/// A batch whose grace period has ended.
pub(crate) struct Ready {
    batch: Batch,
    number: u8,
}

impl Ready {
    /// The number of the batch's areas; `None` if it has none.
    pub(crate) fn areas(&self) -> Option<u8> {
        (self.batch.areas > 0).then_some(self.number)
    }
}

/// What waits for a grace period.
pub(super) struct Rcu {
    parts: RcuParts,
    queue: SpinLock<Queue>,
}

/// Whether a free could be put off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PutOff {
    /// It is in good hands.
    Queued,
    /// It has its place on this CPU; nothing else is to be done for now.
    OnCpu,
    /// There was no place for it. The caller waits for a grace period and then calls [`SlabLayer::free_after_grace`].
    Wait(PhysAddr),
}

impl Rcu {
    pub(super) fn new(parts: RcuParts) -> Self {
        let queue = Queue { collecting: Batch::EMPTY, waiting: Batch::EMPTY, cookie: RcuCookie::default(), number: 0 };
        Self { parts, queue: SpinLock::new(queue) }
    }

    /// Objects of a cache that wait for a grace period.
    pub(super) fn pending(&self, id: usize) -> u64 {
        self.parts.pending.get(id).map_or(0, |n| n.load(Relaxed))
    }

    /// Frames of slabs that wait.
    pub(super) fn slab_pages(&self) -> u64 {
        let queue = self.queue.lock();
        queue.collecting.slab_pages + queue.waiting.slab_pages
    }

    /// Keeps a slab until a grace period has passed.
    pub(super) fn put_slab(&self, frames: &FrameTable, head: Pfn) {
        let mut queue = self.queue.lock();
        queue.collecting.slab_pages += frames.order(head).pages();
        queue.collecting.slabs.push_tail(frames, head);
    }
}

impl SlabLayer {
    /// Counts an object that begins to wait: R1 and R3.
    fn add_pending(&self, slabs: &Slabs<'_>, object: PhysAddr) {
        if let Some(n) = self.rcu.parts.pending.get(slabs.id) {
            n.fetch_add(1, Relaxed);
        }
        if slabs.shape.is_debug() {
            slabs.frames.add_waiting(slabs.locate(object).0);
        }
    }

    /// Counts an object that has waited.
    fn sub_pending(&self, slabs: &Slabs<'_>, object: PhysAddr) {
        if let Some(n) = self.rcu.parts.pending.get(slabs.id) {
            n.fetch_sub(1, Relaxed);
        }
        if slabs.shape.is_debug() {
            slabs.frames.sub_waiting(slabs.locate(object).0);
        }
    }

    /// Puts the free of a block off until every reader that may see it has gone. `head` says where in the block the
    /// caller has room for a head.
    ///
    /// # Errors
    ///
    /// What is wrong with the address, `BadRcuHead`; nothing was changed.
    pub(crate) fn put_off<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        head: Option<usize>,
    ) -> Result<PutOff, FreeError> {
        match self.find_block(pages, addr)? {
            KmallocBlock::Large { first, pages: kept } => {
                check_head(addr, head, (kept as usize) << PAGE_SHIFT)?;
                pages.base.frames.set_kind(first, FrameKind::LargePending);
                self.rcu.queue.lock().collecting.large.push_tail(&pages.base.frames, first);
                pages.base.event(Event::RcuLarge);
                Ok(PutOff::Queued)
            }
            KmallocBlock::Object { object, id } => {
                let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
                check_head(addr, head, slabs.shape.object_size)?;
                // Counted first: whoever sees that it is not live sees that something waits.
                self.add_pending(&slabs, object);
                if !self.live.unmark(slabs.shape.live, object) {
                    self.sub_pending(&slabs, object);
                    return Err(FreeError::DoubleFree(addr));
                }
                let capacity = if slabs.shape.is_debug() { 0 } else { u32::from(slabs.shape.capacity) };
                Ok(self.park(pages, id, capacity, object, head))
            }
        }
    }

    /// Finds a place for an object: steps 1 to 4.
    fn park<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        capacity: u32,
        object: PhysAddr,
        head: Option<usize>,
    ) -> PutOff {
        if capacity > 0
            && let Some(parked) = self.park_in_sheaf(pages, id, capacity, object)
        {
            return parked;
        }
        let mut queue = self.rcu.queue.lock();
        if self.park_in_bulk(&mut queue.collecting, object) {
            pages.base.event(Event::RcuBulk);
            return PutOff::Queued;
        }
        let Some(offset) = head else { return PutOff::Wait(object) };
        let chain = &mut queue.collecting.chain;
        let (next, next_offset) = chain.first.map_or((u64::MAX, 0), |(next, at)| (next.as_u64(), at));
        let at = PhysAddr::new(object.as_u64() + offset as u64);
        let tail = PhysAddr::new(at.as_u64() + 8);
        let written = pages.base.mem.write_u64(at, next) && pages.base.mem.write_u64(tail, u64::from(next_offset));
        debug_assert!(written, "object {object} lies outside memory");
        *chain = Chain { first: Some((object, offset as u16)), len: chain.len + 1 };
        pages.base.event(Event::RcuHead);
        PutOff::Queued
    }

    /// Step 1; a sheaf that becomes full joins the batch.
    fn park_in_sheaf<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        capacity: u32,
        object: PhysAddr,
    ) -> Option<PutOff> {
        let place = self.rcu.parts.sheaves.get(pages.base.cpu().index() * self.nr_caches() + id)?;
        let mut place = place.try_lock()?;
        let buffer = place.take().or_else(|| self.pool.take())?;
        let len = self.pool.with(&buffer, |sheaf| {
            sheaf.push(capacity, object);
            sheaf.len()
        });
        pages.base.event(Event::RcuSheaf);
        if len < Some(capacity) {
            *place = Some(buffer);
            return Some(PutOff::OnCpu);
        }
        drop(place);
        self.pool.chain(&mut self.rcu.queue.lock().collecting.sheaves, buffer);
        pages.base.event(Event::RcuSheafFull);
        Some(PutOff::Queued)
    }

    /// Step 2.
    fn park_in_bulk(&self, batch: &mut Batch, object: PhysAddr) -> bool {
        let Some(buffer) = batch.bulk.take().or_else(|| self.pool.take()) else { return false };
        let most = super::sheaf::SHEAF_MAX as u32;
        let len = self.pool.with(&buffer, |sheaf| {
            sheaf.push(most, object);
            sheaf.len()
        });
        if len < Some(most) {
            batch.bulk = Some(buffer);
        } else {
            self.pool.chain(&mut batch.sheaves, buffer);
        }
        true
    }

    /// Counts an area of the vmalloc window to the batch that is being collected; `mark` gets the batch's number.
    ///
    /// # Errors
    ///
    /// That of `mark`.
    pub(crate) fn put_off_area(&self, mark: impl FnOnce(u8) -> Result<(), FreeError>) -> Result<(), FreeError> {
        let mut queue = self.rcu.queue.lock();
        mark(queue.number)?;
        queue.collecting.areas += 1;
        Ok(())
    }

    /// Moves the rcu sheaves of all CPUs to the batch that is being collected.
    pub(crate) fn collect_rcu_sheaves<P: Platform>(&self, pages: &PageAllocator<P>) {
        for place in self.rcu.parts.sheaves.iter() {
            if let Some(buffer) = place.lock().take() {
                self.pool.chain(&mut self.rcu.queue.lock().collecting.sheaves, buffer);
                pages.base.event(Event::RcuSheafCollected);
            }
        }
    }

    /// Tells whether something waits for a grace period.
    pub(crate) fn has_pending(&self) -> bool {
        let queue = self.rcu.queue.lock();
        let on_cpus = || self.rcu.parts.pending.iter().any(|n| n.load(Relaxed) > 0);
        !queue.collecting.is_empty() || !queue.waiting.is_empty() || on_cpus()
    }

    /// Lets the collected batch wait if none does, and takes the waiting one if its grace period has ended.
    pub(crate) fn next_ready<P: Platform>(&self, pages: &PageAllocator<P>) -> Option<Ready> {
        let mut queue = self.rcu.queue.lock();
        if queue.waiting.is_empty() && !queue.collecting.is_empty() {
            queue.waiting = core::mem::replace(&mut queue.collecting, Batch::EMPTY);
            queue.cookie = pages.base.platform.rcu_cookie();
            queue.number = 1 - queue.number;
            pages.base.event(Event::RcuBatch);
        }
        if queue.waiting.is_empty() || !pages.base.platform.rcu_done(queue.cookie) {
            return None;
        }
        let batch = core::mem::replace(&mut queue.waiting, Batch::EMPTY);
        Some(Ready { batch, number: 1 - queue.number })
    }

    /// Frees all but the areas of a batch.
    #[track_caller]
    pub(crate) fn free_ready<P: Platform>(&self, pages: &PageAllocator<P>, ready: Ready) {
        let Batch { mut sheaves, bulk, chain, mut large, mut slabs, .. } = ready.batch;
        if let Some(buffer) = bulk {
            self.free_buffer(pages, buffer);
        }
        while let Some(buffer) = self.pool.unchain(&mut sheaves) {
            self.free_buffer(pages, buffer);
        }
        self.free_chain(pages, chain);
        let frames = &pages.base.frames;
        while let Some(first) = large.pop_head(frames) {
            frames.set_kind(first, FrameKind::LargeKmalloc);
            pages.free_large(first);
        }
        while let Some(head) = slabs.pop_head(frames) {
            pages.free_block(head, frames.order(head));
            pages.base.event(Event::SlabRelease);
        }
        pages.base.event(Event::RcuBatchFreed);
    }

    #[track_caller]
    fn free_buffer<P: Platform>(&self, pages: &PageAllocator<P>, buffer: SheafId) {
        while let Some(Some(object)) = self.pool.with(&buffer, super::sheaf::Sheaf::pop) {
            self.free_after_grace(pages, object);
        }
        self.pool.put(buffer);
    }

    /// Frees the objects of a chain, as long as its links can be believed.
    #[track_caller]
    fn free_chain<P: Platform>(&self, pages: &PageAllocator<P>, chain: Chain) {
        let mut at = chain.first;
        for _ in 0..chain.len {
            let Some((object, offset)) = at.filter(|&(object, _)| self.is_pending(pages, object)) else {
                pages.base.event(Event::RcuChainLost);
                return;
            };
            let head = PhysAddr::new(object.as_u64() + u64::from(offset));
            let word = |at: u64| pages.base.mem.read_u64(PhysAddr::new(head.as_u64() + at));
            at = match (word(0), word(8)) {
                (Some(next), Some(offset)) if next != u64::MAX => Some((PhysAddr::new(next), offset as u16)),
                _ => None,
            };
            self.free_after_grace(pages, object);
        }
    }

    /// Tells whether an address is that of an object which is out of its slab and not live.
    fn is_pending<P: Platform>(&self, pages: &PageAllocator<P>, object: PhysAddr) -> bool {
        let id = object.pfn().and_then(|frame| pages.base.frames.slab_cache(frame.index()));
        let Some((id, slabs)) = id.and_then(|id| Some((id, self.slabs(pages, id)?))) else { return false };
        let (head, index) = slabs.locate(object);
        let starts = index < slabs.objects(head) && slabs.object(head, index) == object;
        let out = starts && slabs.occupancy.is_taken(head, index);
        let live = slabs.shape.live != LiveMode::Off && self.live.is_live(slabs.shape.live, object);
        self.rcu.pending(id) > 0 && out && !live
    }

    /// Frees an object whose grace period is over, as any other object is freed.
    #[track_caller]
    pub(crate) fn free_after_grace<P: Platform>(&self, pages: &PageAllocator<P>, object: PhysAddr) {
        let id = object.pfn().and_then(|frame| pages.base.frames.slab_cache(frame.index()));
        let Some(slabs) = id.and_then(|id| self.slabs(pages, id)) else { return };
        self.live.mark(slabs.shape.live, object);
        self.sub_pending(&slabs, object);
        let addr = pages.base.virt(object);
        if matches!(self.kfree(pages, addr), Err(FreeError::Corrupted(_))) {
            // Its bytes were repaired; now it goes.
            let freed = self.kfree(pages, addr);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }

    /// Buffers that wait, those of all CPUs included.
    pub(super) fn rcu_buffers(&self) -> u64 {
        let on_cpus = self.rcu.parts.sheaves.iter().filter(|place| place.lock().is_some()).count() as u64;
        let queue = self.rcu.queue.lock();
        let of = |batch: &Batch| u64::from(batch.bulk.is_some()) + self.pool.chained(&batch.sheaves);
        on_cpus + of(&queue.collecting) + of(&queue.waiting)
    }

    /// Tells whether the slabs of a cache wait for a grace period before they are used for anything else.
    pub(super) fn is_typesafe(&self, id: usize) -> bool {
        self.shapes.get(id).is_some_and(|record| record.flags().contains(SlabFlags::TYPESAFE_BY_RCU))
    }
}

/// A head lies wholly in the block, near its start, and is aligned.
fn check_head(addr: VirtAddr, head: Option<usize>, size: usize) -> Result<(), FreeError> {
    let Some(offset) = head else { return Ok(()) };
    let fits = offset < RCU_HEAD_MAX_OFFSET && offset.is_multiple_of(8) && offset + RCU_HEAD_BYTES <= size;
    if fits { Ok(()) } else { Err(FreeError::BadRcuHead { addr, offset }) }
}
