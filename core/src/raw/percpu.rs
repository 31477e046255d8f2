//! State that belongs to one CPU, and the asymmetric lock around it.
//!
//! The owner pays two plain stores and a compiler fence; a remote CPU that wants the state pays a heavy fence:
//!
//! ```text
//! owner                              remote
//! busy = 1                           claimed = 1
//! compiler fence                     heavy fence (every CPU executes a full barrier)
//! if claimed { busy = 0; give up }   wait until busy == 0
//! ... the state ...                  ... the state ...
//! busy = 0 (release)                 claimed = 0 (release)
//! ```
//!
//! Either the owner's store to `busy` is before the heavy fence, and the remote sees it and waits; or the owner's load
//! of `claimed` is after it, and the owner sees the claim and gives up. Remotes exclude each other by the exchange
//! on `claimed`.
//!
//! Invariant of [`PerCpuCell`], with `refs` the number of live `&mut T`:
//!
//! ```text
//! I21.1  refs <= 1
//! I21.2  refs == 1  =>  busy == 1 (a local guard) xor claimed == 1 (a remote guard that saw busy == 0)
//! ```

use crate::platform::Platform;
use crate::sync::{AtomicU8, Ordering, compiler_fence};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A value owned by one CPU, borrowed by others only after a heavy fence.
#[repr(C)]
pub(crate) struct PerCpuCell<T> {
    busy: AtomicU8,
    claimed: AtomicU8,
    value: UnsafeCell<T>,
}

impl<T> PerCpuCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { busy: AtomicU8::new(0), claimed: AtomicU8::new(0), value: UnsafeCell::new(value) }
    }

    /// Borrows the value on the CPU that owns it; `None` if an interrupted call on this CPU or a remote CPU has it.
    ///
    /// Call it with the cell of [`Platform::cpu`] only: that no two threads have the same CPU number is what
    /// [`SmpPlatform`](crate::SmpPlatform) promises, and without that trait the allocator stays on one thread.
    #[inline(always)]
    pub(crate) fn try_local(&self) -> Option<LocalGuard<'_, T>> {
        if self.busy.load(Ordering::Relaxed) != 0 {
            return None;
        }
        self.busy.store(1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if self.claimed.load(Ordering::Acquire) != 0 {
            self.busy.store(0, Ordering::Release);
            return None;
        }
        Some(LocalGuard { cell: self })
    }

    /// Borrows the value of any CPU; waits for its owner to finish. `None` if another remote CPU has it, or if the
    /// caller itself does on this CPU.
    #[cold]
    pub(crate) fn try_remote(&self, platform: &impl Platform, own_cell: bool) -> Option<RemoteGuard<'_, T>> {
        if own_cell && self.busy.load(Ordering::Relaxed) != 0 {
            return None;
        }
        if self.claimed.swap(1, Ordering::AcqRel) != 0 {
            return None;
        }
        platform.heavy_fence();
        while self.busy.load(Ordering::Acquire) != 0 {
            platform.relax();
        }
        Some(RemoteGuard { cell: self })
    }
}

/// A borrow by the owning CPU.
pub(crate) struct LocalGuard<'c, T> {
    cell: &'c PerCpuCell<T>,
}

impl<T> Deref for LocalGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: I21: this guard set `busy` and saw no claim, so no other guard's borrow is live.
        unsafe { &*self.cell.value.get() }
    }
}

impl<T> DerefMut for LocalGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.cell.value.get() }
    }
}

impl<T> Drop for LocalGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.cell.busy.store(0, Ordering::Release);
    }
}

/// A borrow by another CPU.
pub(crate) struct RemoteGuard<'c, T> {
    cell: &'c PerCpuCell<T>,
}

impl<T> Deref for RemoteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: I21: this guard holds the claim and saw `busy == 0` after the heavy fence.
        unsafe { &*self.cell.value.get() }
    }
}

impl<T> DerefMut for RemoteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.cell.value.get() }
    }
}

impl<T> Drop for RemoteGuard<'_, T> {
    fn drop(&mut self) {
        self.cell.claimed.store(0, Ordering::Release);
    }
}
