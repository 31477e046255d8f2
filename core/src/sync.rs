//! Locks and atomics. The only file that decides where they come from, so that a model checker's can stand in.

pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

/// A lock that spins; held for a bounded number of steps only.
pub(crate) type SpinLock<T> = spin::Mutex<T>;

/// Counts one more, if it is to be counted: a load and a store, since there is one writer at a time.
#[inline(always)]
pub(crate) fn count_own(counter: &AtomicU32, counted: bool) {
    if counted {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Counts one more of what several CPUs count.
#[inline(always)]
pub(crate) fn count_shared(counter: &AtomicU32, counted: bool) {
    if counted {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
