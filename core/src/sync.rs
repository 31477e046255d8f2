//! Locks and atomics. The only file that decides where they come from, so that a model checker's can stand in.

pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};
#[cfg(feature = "std")]
pub(crate) use core::sync::atomic::{AtomicPtr, AtomicUsize, fence};

/// A lock that spins; held for a bounded number of steps only.
#[cfg(not(test))]
pub(crate) type SpinLock<T> = spin::mutex::Mutex<T, Wait>;

/// What a processor does between two looks at a lock.
#[cfg(not(feature = "std"))]
pub(crate) type Wait = spin::relax::Spin;
/// On a host the thread that has the lock may not be running: after a few looks somebody else may.
#[cfg(feature = "std")]
pub(crate) struct Wait;

#[cfg(feature = "std")]
impl spin::relax::RelaxStrategy for Wait {
    fn relax() {
        (0..32).for_each(|_| core::hint::spin_loop());
        std::thread::yield_now();
    }
}

#[cfg(test)]
pub(crate) use counted::SpinLock;

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

/// The lock of unit tests, which tells how often it was taken: who meets on it is a question of counts, not of luck.
#[cfg(test)]
mod counted {
    use super::Wait;
    use super::{AtomicU64, Ordering};

    type MutexGuard<'m, T> = spin::mutex::MutexGuard<'m, T, Wait>;
    type Mutex<T> = spin::mutex::Mutex<T, Wait>;

    pub(crate) struct SpinLock<T> {
        lock: Mutex<T>,
        taken: AtomicU64,
    }

    impl<T> SpinLock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self { lock: Mutex::new(value), taken: AtomicU64::new(0) }
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.taken.fetch_add(1, Ordering::Relaxed);
            self.lock.lock()
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.taken.fetch_add(1, Ordering::Relaxed);
            self.lock.try_lock()
        }

        /// How often it was asked for.
        pub(crate) fn acquisitions(&self) -> u64 {
            self.taken.load(Ordering::Relaxed)
        }
    }
}
