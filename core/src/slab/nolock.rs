//! Objects in any context, also in one that interrupted this allocator in the middle of a call on the same CPU.
//!
//! Nothing here waits: a lock that is held is passed by. An allocation may fail for that, and tries the next larger class
//! once. A free finds the sheaves, else the slab; if both are in use, the object is *deferred*: noted in one of the CPU's
//! slots, from which the next ordinary slow path of that CPU, or reclaim, gives it back. Source: section 2.10.
//!
//! ```text
//! D1  each slot holds nothing or an object that is out of its slab, not live, and in no sheaf
//! D2  pending of a CPU >= its slots that hold something, and is 0 only if none does
//! ```

use super::alloc::slab_site;
use super::barn::Stored;
use super::free::KmallocBlock;
use super::node::Slabs;
use super::sheaf::CpuSheaves;
use super::{SlabLayer, cache_id, classes, node_of};
use crate::addr::{Pfn, PhysAddr, VirtAddr};
use crate::buddy::PageAllocator;
use crate::error::{AllocError, BlockKind, FreeError};
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::page::FrameKind;
use crate::platform::{CpuId, Event, Platform};
use crate::raw::{Carver, MetaSlice};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How many frees a CPU may defer.
const SLOTS: usize = 32;
/// What a caller may ask for; everything else has no meaning where nothing may wait.
const PERMITTED: GfpFlags = GfpFlags::ZERO.union(GfpFlags::ACCOUNT).union(GfpFlags::THISNODE);

/// Objects whose free waits, for each CPU.
pub(super) struct Deferred {
    /// Slots of CPU `p`: from `p * SLOTS` on. An object's address plus one, or 0.
    slots: MetaSlice<AtomicU64>,
    pending: MetaSlice<AtomicU32>,
}

impl Deferred {
    pub(super) fn carve(cpus: usize, carver: &mut Carver<'_>) -> Self {
        let slots = carver.carve(cpus * SLOTS, |_| AtomicU64::new(0));
        Self { slots, pending: carver.carve(cpus, |_| AtomicU32::new(0)) }
    }

    fn of(&self, cpu: CpuId) -> &[AtomicU64] {
        self.slots.get(cpu.index() * SLOTS..(cpu.index() + 1) * SLOTS).unwrap_or_default()
    }

    /// Notes an object; `false` if no slot is left.
    fn push(&self, cpu: CpuId, object: PhysAddr) -> bool {
        let Some(pending) = self.pending.get(cpu.index()) else { return false };
        pending.fetch_add(1, Ordering::AcqRel);
        let noted = object.as_u64() + 1;
        let takes = |slot: &AtomicU64| slot.compare_exchange(0, noted, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let pushed = self.of(cpu).iter().any(takes);
        if !pushed {
            pending.fetch_sub(1, Ordering::AcqRel);
        }
        pushed
    }

    /// Takes an object out of the slots of a CPU.
    fn pop(&self, cpu: CpuId) -> Option<PhysAddr> {
        let pending = self.pending.get(cpu.index()).filter(|pending| pending.load(Ordering::Acquire) > 0)?;
        let taken = self.of(cpu).iter().map(|slot| slot.swap(0, Ordering::AcqRel)).find(|&noted| noted != 0)?;
        pending.fetch_sub(1, Ordering::AcqRel);
        Some(PhysAddr::new(taken - 1))
    }

    /// The objects that wait, on all CPUs.
    pub(super) fn objects(&self) -> impl Iterator<Item = PhysAddr> {
        let noted = self.slots.iter().filter_map(|slot| slot.load(Ordering::Acquire).checked_sub(1));
        noted.map(PhysAddr::new)
    }
}

impl SlabLayer {
    /// Hands out `size` bytes of an ordinary class without waiting for anything, near the node if one is named.
    ///
    /// # Errors
    ///
    /// `BadFlags` for flags that have no meaning here, `TooLarge` above the largest class, `WouldBlock` if everything that
    /// would have served is in use, `NoPages`, `Injected`.
    pub(crate) fn kmalloc_nolock<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        size: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        if !PERMITTED.contains(gfp) {
            return Err(AllocError::BadFlags);
        }
        if size == 0 {
            return Ok(VirtAddr::ZERO_SIZE);
        }
        let limit = classes::KMALLOC_MAX_CACHE_SIZE.min(self.kmalloc_max);
        let class = classes::class_of(size).map(classes::Class::get).filter(|_| size <= limit);
        let class = class.ok_or(AllocError::TooLarge { requested: size, limit })?;
        if pages.base.fault(slab_site(class, gfp)) {
            return Err(AllocError::Injected(FaultPoint::Slab));
        }
        let (id, object) = match self.take_nolock(pages, class, gfp, node) {
            Err(AllocError::WouldBlock) if self.has_class(class + 1) => {
                pages.base.event(Event::NolockNextClass);
                (class + 1, self.take_nolock(pages, class + 1, gfp, node)?)
            }
            answer => (class, answer?),
        };
        if gfp.wants_zero() {
            self.zero(pages, id, object);
        }
        Ok(pages.base.virt(object))
    }

    fn has_class(&self, class: usize) -> bool {
        class < classes::NR_CLASSES && self.shape(class).is_some()
    }

    /// Takes a live object of a cache, from whatever is not in use.
    fn take_nolock<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<PhysAddr, AllocError> {
        // Whoever tracks each object does so under the lock.
        let slabs = self.slabs(pages, id).filter(|slabs| !slabs.shape.is_debug()).ok_or(AllocError::WouldBlock)?;
        let object = match self.cached_nolock(pages, &slabs, node) {
            Some(object) => object,
            None => self.direct_nolock(pages, &slabs, gfp, node)?,
        };
        self.live.mark(slabs.shape.live, object);
        Ok(object)
    }

    /// Pops this CPU's sheaves, refilled at most from what no lock guards and a barn that is not in use.
    fn cached_nolock<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        node: Option<NodeId>,
    ) -> Option<PhysAddr> {
        let cell = self.cell(pages.base.cpu(), slabs.id).filter(|_| slabs.shape.capacity > 0)?;
        let Some(mut sheaves) = cell.try_local() else {
            pages.base.event(Event::NolockSheafInUse);
            return None;
        };
        if sheaves.main.is_empty() && !self.swap_with_spare(pages, &mut sheaves) {
            let barn = self.node(slabs.id, self.node_here(pages)).and_then(|node| node.try_lock());
            let filled = barn.is_some_and(|mut node| node.barn.fill_if_kept(&self.pool, &mut sheaves.main));
            if filled {
                pages.base.event(Event::BarnGet);
            }
        }
        let next = sheaves.main.objects().last()?.pfn()?;
        if node.is_some_and(|node| node_of(pages, next) != node.index()) {
            return None;
        }
        sheaves.main.pop()
    }

    /// Takes an object from a partial slab, or a new one, of a node whose lists are not in use.
    fn direct_nolock<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slabs: &Slabs<'_>,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<PhysAddr, AllocError> {
        let first = node.map_or(self.node_here(pages), NodeId::index);
        let insists = node.is_some() && gfp.contains(GfpFlags::THISNODE);
        let others = (0..self.nr_nodes()).filter(|&number| number != first && !insists);
        let mut refused = AllocError::NoPages { order: slabs.shape.orders.min };
        for number in core::iter::once(first).chain(others) {
            let Some(place) = self.node(slabs.id, number) else { continue };
            let Some(mut lists) = place.try_lock() else {
                pages.base.event(Event::NolockSlabInUse);
                refused = AllocError::WouldBlock;
                continue;
            };
            let mut object = None;
            let mut put = |taken| object = Some(taken);
            if lists.take(slabs, 1, &mut put) == 0 {
                match new_nolock(pages, slabs, number) {
                    Ok(head) => {
                        slabs.take(head, 1, &mut put);
                        lists.attach(slabs, head);
                    }
                    Err(error) => refused = error,
                }
            }
            if let Some(object) = object {
                pages.base.event(Event::SlabDirectAlloc);
                return Ok(object);
            }
        }
        Err(refused)
    }

    /// Takes back an object of a `kmalloc` class, or of any cache, without waiting for anything. Null and the zero-size
    /// address are ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; `WrongKind` for a large block and `WouldBlock` if everything is in use and no more
    /// frees can be deferred. Nothing was changed.
    pub(crate) fn kfree_nolock<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<(), FreeError> {
        if addr.is_zero_or_null() {
            return Ok(());
        }
        let KmallocBlock::Object { object, id } = self.find_block(pages, addr)? else {
            return Err(FreeError::WrongKind { addr, expected: BlockKind::Slab, found: BlockKind::LargeKmalloc });
        };
        let slabs = self.slabs(pages, id).ok_or(FreeError::Foreign(addr))?;
        if slabs.shape.is_debug() {
            return Err(FreeError::WouldBlock(addr));
        }
        if !self.live.unmark(slabs.shape.live, object) {
            return Err(FreeError::DoubleFree(addr));
        }
        if self.push_nolock(pages, &slabs, object) || self.release_nolock(pages, &slabs, object) {
            return Ok(());
        }
        if self.deferred.push(pages.base.cpu(), object) {
            pages.base.event(Event::NolockDeferred);
            return Ok(());
        }
        self.live.mark(slabs.shape.live, object);
        pages.base.event(Event::NolockFreeRefused);
        Err(FreeError::WouldBlock(addr))
    }

    /// Puts an object into this CPU's sheaves; `false` if they are in use, or full and nothing can be done about it.
    fn push_nolock<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, object: PhysAddr) -> bool {
        let cell = self.cell(pages.base.cpu(), slabs.id).filter(|_| slabs.shape.capacity > 0);
        let Some(cell) = cell.filter(|_| self.is_near(pages, object)) else { return false };
        let Some(mut sheaves) = cell.try_local() else {
            pages.base.event(Event::NolockSheafInUse);
            return false;
        };
        let capacity = u32::from(slabs.shape.capacity);
        if sheaves.main.len() >= capacity {
            self.make_room_nolock(pages, slabs, &mut sheaves);
        }
        sheaves.main.push(capacity, object)
    }

    /// Moves the full main sheaf into an empty spare, or into a barn that is not in use and has an empty sheaf for it.
    fn make_room_nolock<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, sheaves: &mut CpuSheaves) {
        if self.move_main_to_spare(pages, sheaves) {
            return;
        }
        let place = self.node(slabs.id, self.node_here(pages));
        let Some(mut node) = place.and_then(|node| node.try_lock()) else { return };
        if sheaves.spare.first.is_none() {
            sheaves.spare.first = node.barn.empty.pop();
            drop(node);
            self.move_main_to_spare(pages, sheaves);
        } else if node.barn.store_if_empty(&self.pool, &mut sheaves.main) == Stored::Done {
            pages.base.event(Event::BarnPut);
        }
    }

    /// Puts an object back into its slab; `false` if the node's lists are in use. A slab that becomes empty is kept: giving
    /// its frames back would need locks.
    fn release_nolock<P: Platform>(&self, pages: &PageAllocator<P>, slabs: &Slabs<'_>, object: PhysAddr) -> bool {
        let number = node_of(pages, object.pfn().unwrap_or_default());
        let Some(place) = self.node(slabs.id, number) else { return false };
        let Some(mut node) = place.try_lock() else {
            pages.base.event(Event::NolockSlabInUse);
            return false;
        };
        node.release_kept(slabs, object);
        pages.base.event(Event::SlabDirectFree);
        true
    }

    /// Gives back what the frees of this CPU deferred.
    #[inline]
    pub(super) fn drain_deferred<P: Platform>(&self, pages: &PageAllocator<P>) {
        self.drain_deferred_of(pages, pages.base.cpu());
    }

    /// Gives back what the frees of all CPUs deferred.
    pub(super) fn drain_all_deferred<P: Platform>(&self, pages: &PageAllocator<P>) {
        (0..pages.base.geometry.cpus).for_each(|cpu| self.drain_deferred_of(pages, CpuId::new(cpu)));
    }

    fn drain_deferred_of<P: Platform>(&self, pages: &PageAllocator<P>, cpu: CpuId) {
        while let Some(object) = self.deferred.pop(cpu) {
            let id = object.pfn().and_then(|frame| pages.base.frames.slab_cache(frame.index()));
            if let Some(slabs) = id.and_then(|id| self.slabs(pages, id)) {
                self.return_objects(pages, slabs.id, &slabs, &[object]);
                pages.base.event(Event::NolockDrained);
            }
        }
    }

    /// Objects of a cache whose free waits.
    pub(super) fn nr_deferred<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> u64 {
        let frame_kind = |object: &PhysAddr| pages.base.frames.kind(object.pfn().unwrap_or_default());
        let of_cache = |object: &PhysAddr| frame_kind(object) == FrameKind::Slab(cache_id(id));
        self.deferred.objects().filter(of_cache).count() as u64
    }
}

/// Makes a slab on a node without waiting for anything: of the preferred order, or of the smallest.
fn new_nolock<P: Platform>(pages: &PageAllocator<P>, slabs: &Slabs<'_>, node: usize) -> Result<Pfn, AllocError> {
    let orders = slabs.shape.orders;
    let mut refused = AllocError::NoPages { order: orders.min };
    let Some(node) = NodeId::all().nth(node) else { return Err(refused) };
    let smallest = Some(orders.min).filter(|&min| min != orders.preferred);
    for order in core::iter::once(orders.preferred).chain(smallest) {
        let (gfp, id) = (slabs.shape.alloc_gfp, cache_id(slabs.id));
        if pages.base.fault(FaultSite::new(FaultPoint::NewSlab, gfp).with_order(order).with_cache(id)) {
            refused = AllocError::Injected(FaultPoint::NewSlab);
            continue;
        }
        match pages.alloc_block_nolock(order, gfp, node, FrameKind::Slab(id)) {
            Ok(head) => {
                slabs.lay_out(head, order);
                pages.base.event(Event::SlabNew);
                return Ok(head);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
