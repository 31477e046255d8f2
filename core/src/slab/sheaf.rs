//! Arrays of free objects per CPU (Bonwick's magazines), and the pool that buffers come from.
//!
//! Each CPU has for each cache a *main* sheaf, kept in its per-CPU cell, and may have a *spare*; each cache has a
//! *barn* with full and empty ones (Bonwick's depot). Spare and barn hold buffers of a common pool in the metadata
//! region; a swap copies the contents, which keeps the main sheaf at a fixed place.
//!
//! ```text
//! S1  count <= capacity of the cache, for each sheaf
//! S2  a spare is empty or full;  a sheaf in the barn is full on the full shelf, empty on the empty shelf
//! S3  buffers free in the pool + spares + buffers in pockets and barns == buffers of the pool
//! ```

use crate::addr::PhysAddr;
use crate::error::{Invariant, Violation};
use crate::platform::Platform;
use crate::raw::{Carver, LocalStack, MetaSlice, PerCpuStack, RemoteStack, Stack, Stacked};
use crate::sync::{AtomicU8, AtomicU32, Ordering::Relaxed, SpinLock, count_own};

/// The most objects in a sheaf.
pub(super) const SHEAF_MAX: usize = 60;

/// A stack of free objects of one cache.
pub(super) type Sheaf = Stack<PhysAddr, SHEAF_MAX>;

impl Stack<PhysAddr, SHEAF_MAX> {
    /// A stack without objects.
    pub(super) const fn empty() -> Self {
        Self::new(PhysAddr::new(0))
    }

    /// The objects, oldest first.
    pub(super) fn objects(&self) -> &[PhysAddr] {
        self.as_slice()
    }
}

/// What a CPU has of one cache.
pub(super) type CpuSheaves = Stacked<PhysAddr, SHEAF_MAX, Spares>;

/// What a CPU has of one cache beside the main sheaf.
#[derive(Debug)]
pub(super) struct Spares {
    /// The spare sheaf.
    pub(super) first: Option<SheafId>,
    /// The first of a chain of full ones.
    pub(super) pocket: Option<SheafId>,
}

impl Spares {
    /// Tells whether there are none.
    pub(super) const fn is_none(&self) -> bool {
        self.first.is_none() && self.pocket.is_none()
    }
}

/// Objects that have a byte of the liveness map for themselves come back through this gate.
const LINE: usize = 0;
/// Objects that share a byte come back through this one.
const SHARED: usize = 1;

/// The place of a CPU's sheaves.
#[repr(C)]
pub(super) struct CpuCell {
    sheaves: PerCpuStack<PhysAddr, SHEAF_MAX, Spares, 2>,
    /// How often the fast paths served this CPU, modulo 2^32 as in Linux, if anybody wants to know. The CPU writes them
    /// while it has the sheaves.
    allocs: AtomicU32,
    frees: AtomicU32,
}

const _: () = assert!(size_of::<CpuCell>() == 512, "a power of two, so that a cell is found by a shift");

impl CpuCell {
    pub(super) fn vacant() -> Self {
        let none = || AtomicU32::new(0);
        let spares = Spares { first: None, pocket: None };
        Self { sheaves: PerCpuStack::new(PhysAddr::new(0), spares), allocs: none(), frees: none() }
    }

    /// Tells whether objects with a byte for themselves may be put in the main sheaf.
    #[inline(always)]
    pub(super) fn takes_lines(&self) -> bool {
        self.sheaves.limit(LINE) > 0
    }

    /// Sets how many objects the fast paths may put in the main sheaf: of those that have a byte of the liveness map for
    /// themselves, and of those that share one. A cache has one kind, so that one of the two is 0.
    pub(super) fn set_capacities(&self, line: u32, shared: u32) {
        self.sheaves.set_limits([line, shared]);
    }

    /// What was set, if the fast paths may do as much: they may not while another CPU has the sheaves.
    pub(super) fn capacities(&self) -> Option<[u32; 2]> {
        self.sheaves.open_limits()
    }

    /// Allocations and frees that the fast paths served, where they are counted.
    pub(super) fn hits(&self) -> (u32, u32) {
        (self.allocs.load(Relaxed), self.frees.load(Relaxed))
    }

    /// Pops the main sheaf on the CPU that owns it; `None` if it is empty or in use. `mark` hears of the object before
    /// anybody else can have the sheaves.
    #[inline(always)]
    pub(super) fn pop_and(&self, counted: bool, mark: impl FnOnce(PhysAddr)) -> Option<PhysAddr> {
        self.sheaves.pop_and(|object| {
            count_own(&self.allocs, counted);
            mark(object);
        })
    }

    /// Pushes onto the main sheaf on the CPU that owns it, if there is room for an object with a byte for itself and
    /// `agree` says so.
    #[inline(always)]
    pub(super) fn push_line(&self, object: PhysAddr, counted: bool, agree: impl FnOnce() -> bool) -> bool {
        self.sheaves.push_if::<LINE>(object, || {
            let agreed = agree();
            count_own(&self.frees, counted && agreed);
            agreed
        })
    }

    /// The same for an object that shares a byte.
    #[inline(always)]
    pub(super) fn push_shared(&self, object: PhysAddr, counted: bool, agree: impl FnOnce() -> bool) -> bool {
        self.sheaves.push_if::<SHARED>(object, || {
            let agreed = agree();
            count_own(&self.frees, counted && agreed);
            agreed
        })
    }

    /// Borrows the sheaves on the CPU that owns them; `None` if they are in use.
    pub(super) fn try_local(&self) -> Option<LocalStack<'_, PhysAddr, SHEAF_MAX, Spares, 2>> {
        self.sheaves.try_local()
    }

    /// Closes the fast paths of the CPU that owns the sheaves.
    #[cfg(feature = "std")]
    pub(super) fn close(&self, platform: &impl Platform) {
        self.sheaves.close(platform);
    }

    /// Waits until the owner is in none of them. They are closed, and a heavy fence came after that.
    #[cfg(feature = "std")]
    pub(super) fn wait_for_owner(&self, platform: &impl Platform) {
        self.sheaves.wait_for_owner(platform);
    }

    /// Opens them again.
    #[cfg(feature = "std")]
    pub(super) fn open_again(&self) {
        self.sheaves.open_again();
    }

    /// Borrows the sheaves of another CPU; `None` if a third one has them.
    pub(super) fn try_remote(
        &self,
        platform: &impl Platform,
    ) -> Option<RemoteStack<'_, PhysAddr, SHEAF_MAX, Spares, 2>> {
        self.sheaves.try_remote(platform)
    }
}

/// The right to use one buffer of the pool. Not `Clone`: whoever has it is the buffer's only owner.
#[derive(Debug)]
pub(super) struct SheafId(u16);

/// The buffers that nobody uses.
struct FreeBuffers {
    head: Option<u16>,
    count: u32,
}

struct Buffer {
    sheaf: SpinLock<Sheaf>,
    /// The next free buffer, under the lock of [`FreeBuffers`]; kept apart from the contents.
    next: SpinLock<Option<u16>>,
    /// How many buffers its chain has from it on.
    depth: AtomicU8,
}

/// The buffers of all spares and barns.
pub(super) struct SheafPool {
    buffers: MetaSlice<Buffer>,
    free: SpinLock<FreeBuffers>,
}

impl SheafPool {
    pub(super) fn carve(buffers: usize, carver: &mut Carver<'_>) -> Self {
        let buffers = buffers.min(usize::from(u16::MAX));
        let next = |i: usize| (i + 1 < buffers).then_some((i + 1) as u16);
        let buffers = carver.carve(buffers, |i| Buffer {
            sheaf: SpinLock::new(Sheaf::empty()),
            next: SpinLock::new(next(i)),
            depth: AtomicU8::new(0),
        });
        let free = FreeBuffers { head: (!buffers.is_empty()).then_some(0), count: buffers.len() as u32 };
        Self { buffers, free: SpinLock::new(free) }
    }

    /// How many buffers there are.
    pub(super) fn len(&self) -> u32 {
        self.buffers.len() as u32
    }

    /// How many nobody uses.
    pub(super) fn free_count(&self) -> u32 {
        self.free.lock().count
    }

    /// Hands out an empty buffer, if more than half of all are free.
    pub(super) fn take_if_plenty(&self) -> Option<SheafId> {
        let mut free = self.free.lock();
        if free.count > self.len() / 2 { self.take_from(&mut free) } else { None }
    }

    /// Hands out an empty buffer.
    pub(super) fn take(&self) -> Option<SheafId> {
        self.take_from(&mut self.free.lock())
    }

    fn take_from(&self, free: &mut FreeBuffers) -> Option<SheafId> {
        let id = free.head?;
        free.head = self.buffers.get(usize::from(id)).and_then(|buffer| *buffer.next.lock());
        free.count -= 1;
        Some(SheafId(id))
    }

    /// Takes a buffer back; its contents are forgotten.
    pub(super) fn put(&self, id: SheafId) {
        let Some(buffer) = self.buffers.get(usize::from(id.0)) else { return };
        buffer.sheaf.lock().clear();
        let mut free = self.free.lock();
        *buffer.next.lock() = free.head;
        free.head = Some(id.0);
        free.count += 1;
    }

    /// Checks that the chain of free buffers has as many as are counted (I21.6), and that all are empty (I21.7).
    pub(super) fn check_free(&self) -> Result<(), Violation> {
        let (mut at, count) = {
            let free = self.free.lock();
            (free.head, free.count)
        };
        for number in 0..count {
            let Some(buffer) = at.and_then(|at| self.buffers.get(usize::from(at))) else {
                let what = "buffers in the chain of free ones (I21.6)";
                return Err(Violation::new(Invariant::I21CacheCounts, what, 0, count.into(), number.into()));
            };
            let (what, left) = ("objects in a free buffer (I21.7)", buffer.sheaf.lock().len());
            Violation::check_eq(Invariant::I21CacheCounts, what, at.unwrap_or(0).into(), 0, left.into())?;
            at = *buffer.next.lock();
        }
        let (what, beyond) = ("a buffer beyond the chain of free ones (I21.6)", u64::from(at.is_some()));
        Violation::check_eq(Invariant::I21CacheCounts, what, at.unwrap_or(0).into(), 0, beyond)
    }

    /// Remembers which buffer comes after one in a chain. A buffer in use has no other need for the link.
    pub(super) fn set_next(&self, id: &SheafId, next: Option<SheafId>) {
        if let Some(buffer) = self.buffers.get(usize::from(id.0)) {
            *buffer.next.lock() = next.map(|next| next.0);
        }
    }

    /// Takes the buffer that comes after one in a chain.
    pub(super) fn take_next(&self, id: &SheafId) -> Option<SheafId> {
        self.buffers.get(usize::from(id.0))?.next.lock().take().map(SheafId)
    }

    /// Adds a buffer to a chain of them.
    pub(super) fn chain(&self, to: &mut Option<SheafId>, buffer: SheafId) {
        let depth = self.depth(to).saturating_add(1);
        if let Some(buffer) = self.buffers.get(usize::from(buffer.0)) {
            buffer.depth.store(depth, Relaxed);
        }
        self.set_next(&buffer, to.take());
        *to = Some(buffer);
    }

    /// Takes a buffer from a chain.
    pub(super) fn unchain(&self, from: &mut Option<SheafId>) -> Option<SheafId> {
        let buffer = from.take()?;
        *from = self.take_next(&buffer);
        Some(buffer)
    }

    /// How many buffers a chain has, as its first one knows; at most 255.
    pub(super) fn depth(&self, first: &Option<SheafId>) -> u8 {
        let buffer = first.as_ref().and_then(|id| self.buffers.get(usize::from(id.0)));
        buffer.map_or(0, |buffer| buffer.depth.load(Relaxed))
    }

    /// Calls `each` with every buffer of a chain, the first one first.
    pub(super) fn each_chained(
        &self,
        first: &Option<SheafId>,
        mut each: impl FnMut(&SheafId) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let next =
            |id: &SheafId| self.buffers.get(usize::from(id.0)).and_then(|buffer| *buffer.next.lock()).map(SheafId);
        let mut at = first.as_ref().map(|id| SheafId(id.0));
        for _ in 0..self.buffers.len() {
            let Some(id) = at else { return Ok(()) };
            each(&id)?;
            at = next(&id);
        }
        Ok(())
    }

    /// How many buffers a chain has.
    pub(super) fn chained(&self, first: &Option<SheafId>) -> u64 {
        let next = |&id: &u16| self.buffers.get(usize::from(id)).and_then(|buffer| *buffer.next.lock());
        let chain = core::iter::successors(first.as_ref().map(|id| id.0), next);
        chain.take(self.buffers.len()).count() as u64
    }

    /// Works on the contents of a buffer. Its lock is never contended: the owner is the only one to come here.
    pub(super) fn with<R>(&self, id: &SheafId, work: impl FnOnce(&mut Sheaf) -> R) -> Option<R> {
        self.buffers.get(usize::from(id.0)).map(|buffer| work(&mut buffer.sheaf.lock()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::raw::MetaRegion;

    pub(in super::super) fn pool(buffers: usize) -> SheafPool {
        SheafPool::carve(buffers, &mut MetaRegion::heap(64 << 10).carver().unwrap())
    }

    pub(in super::super) fn filled(objects: u32) -> Sheaf {
        let mut sheaf = Sheaf::empty();
        for n in 0..objects {
            assert!(sheaf.push(60, PhysAddr::new(u64::from(n) * 8)));
        }
        sheaf
    }

    #[test]
    fn a_sheaf_is_a_stack_with_a_capacity() {
        let mut sheaf = filled(4);
        assert!(!sheaf.push(4, PhysAddr::new(99)));
        assert_eq!(sheaf.pop(), Some(PhysAddr::new(24)));
        sheaf.reverse();
        assert_eq!(sheaf.pop(), Some(PhysAddr::new(0)));
        sheaf.truncate(1);
        assert_eq!((sheaf.pop(), sheaf.pop()), (Some(PhysAddr::new(16)), None));
        assert!(sheaf.is_empty());
        assert!(!filled(60).push(u32::MAX, PhysAddr::new(0)), "never beyond the array");
    }

    #[test]
    fn the_pool_hands_out_each_buffer_once() {
        let pool = pool(3);
        let ids = [pool.take().unwrap(), pool.take().unwrap(), pool.take().unwrap()];
        assert!(pool.take().is_none());
        assert!(ids[0].0 != ids[1].0 && ids[1].0 != ids[2].0 && ids[0].0 != ids[2].0);
        ids.into_iter().for_each(|id| pool.put(id));
        assert_eq!(pool.free_count(), 3);
    }
}
