//! Locks and atomics. The only file that decides where they come from, so that a model checker's can stand in.

pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

/// A lock that spins; held for a bounded number of steps only.
pub(crate) type SpinLock<T> = spin::Mutex<T>;
