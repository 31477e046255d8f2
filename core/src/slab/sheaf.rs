//! Arrays of free objects per CPU (Bonwick's magazines), and the pool that buffers come from.
//!
//! Each CPU has for each cache a *main* sheaf, kept in its per-CPU cell, and may have a *spare*; each cache has a
//! *barn* with full and empty ones (Bonwick's depot). Spare and barn hold buffers of a common pool in the metadata
//! region; a swap copies the contents, which keeps the main sheaf at a fixed place.
//!
//! ```text
//! S1  count <= capacity of the cache, for each sheaf
//! S2  a spare is empty or full;  a sheaf in the barn is full on the full shelf, empty on the empty shelf
//! S3  buffers free in the pool + spares + buffers in barns == buffers of the pool
//! ```

use crate::addr::PhysAddr;
use crate::platform::Platform;
use crate::raw::{Carver, LocalGuard, MetaSlice, PerCpuCell, RemoteGuard};
use crate::sync::{AtomicU32, Ordering::Relaxed, SpinLock};

/// The most objects in a sheaf.
pub(super) const SHEAF_MAX: usize = 60;

/// A stack of free objects of one cache.
#[repr(C)]
pub(super) struct Sheaf {
    count: u32,
    objects: [PhysAddr; SHEAF_MAX],
}

impl Sheaf {
    pub(super) const EMPTY: Self = Self { count: 0, objects: [PhysAddr::new(0); SHEAF_MAX] };

    pub(super) const fn len(&self) -> u32 {
        self.count
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The objects, oldest first.
    pub(super) fn objects(&self) -> &[PhysAddr] {
        self.objects.get(..self.count as usize).unwrap_or(&self.objects)
    }

    /// Takes the object that was put last.
    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<PhysAddr> {
        // Empty wraps to a position beyond the end: one comparison answers both questions.
        let top = self.count.wrapping_sub(1);
        let object = *self.objects.get(top as usize)?;
        self.count = top;
        Some(object)
    }

    /// Puts an object; `false` if `capacity` objects are in already.
    pub(super) fn push(&mut self, capacity: u32, object: PhysAddr) -> bool {
        self.push_if(capacity, object, || true)
    }

    /// Puts an object if there is room and then `agree` says so.
    #[inline(always)]
    pub(super) fn push_if(&mut self, capacity: u32, object: PhysAddr, agree: impl FnOnce() -> bool) -> bool {
        let at = self.count;
        if at >= capacity {
            return false;
        }
        let Some(slot) = self.objects.get_mut(at as usize).filter(|_| agree()) else { return false };
        *slot = object;
        self.count = at + 1;
        true
    }

    /// Turns the order around, so that the object put first is popped first.
    pub(super) fn reverse(&mut self) {
        if let Some(objects) = self.objects.get_mut(..self.count as usize) {
            objects.reverse();
        }
    }

    /// Forgets the objects.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Forgets all but the first `kept` objects.
    pub(super) fn truncate(&mut self, kept: u32) {
        self.count = self.count.min(kept);
    }

    /// Moves all objects to `to`, which is empty.
    pub(super) fn move_to(&mut self, to: &mut Self) {
        debug_assert!(to.is_empty(), "objects would be lost");
        for (slot, object) in to.objects.iter_mut().zip(self.objects()) {
            *slot = *object;
        }
        to.count = self.count;
        self.count = 0;
    }

    /// Sets the count, so that a test can see the auditor find it.
    #[cfg(test)]
    pub(super) fn corrupt_count(&mut self, count: u32) {
        self.count = count;
    }
}

/// What a CPU has of one cache.
#[repr(C)]
pub(super) struct CpuSheaves {
    pub(super) main: Sheaf,
    pub(super) spare: Option<SheafId>,
}

/// The place of a CPU's sheaves.
#[repr(C)]
pub(super) struct CpuCell {
    /// How many objects the fast path may put in the main sheaf, if each has a byte of the liveness map for itself;
    /// else 0. Both capacities are outside the lock, because a cache is made and destroyed on one CPU for all.
    line_capacity: AtomicU32,
    /// The same if objects share bytes; else 0.
    shared_capacity: AtomicU32,
    sheaves: PerCpuCell<CpuSheaves>,
}

impl CpuCell {
    pub(super) fn vacant() -> Self {
        let sheaves = CpuSheaves { main: Sheaf::EMPTY, spare: None };
        let none = || AtomicU32::new(0);
        Self { line_capacity: none(), shared_capacity: none(), sheaves: PerCpuCell::new(sheaves) }
    }

    #[inline(always)]
    pub(super) fn line_capacity(&self) -> u32 {
        self.line_capacity.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn shared_capacity(&self) -> u32 {
        self.shared_capacity.load(Relaxed)
    }

    pub(super) fn set_capacities(&self, line: u32, shared: u32) {
        self.line_capacity.store(line, Relaxed);
        self.shared_capacity.store(shared, Relaxed);
    }

    /// Borrows the sheaves on the CPU that owns them; `None` if they are in use.
    #[inline(always)]
    pub(super) fn try_local(&self) -> Option<LocalGuard<'_, CpuSheaves>> {
        self.sheaves.try_local()
    }

    /// Borrows the sheaves of another CPU; `None` if a third one has them.
    pub(super) fn try_remote(&self, platform: &impl Platform) -> Option<RemoteGuard<'_, CpuSheaves>> {
        self.sheaves.try_remote(platform, false)
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
        let buffers =
            carver.carve(buffers, |i| Buffer { sheaf: SpinLock::new(Sheaf::EMPTY), next: SpinLock::new(next(i)) });
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

    /// Hands out an empty buffer.
    pub(super) fn take(&self) -> Option<SheafId> {
        let mut free = self.free.lock();
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
        let mut sheaf = Sheaf::EMPTY;
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
