//! A thread as a CPU: numbers that threads lease.
//!
//! ```text
//! private numbers   0 .. p     a thread's from its first call to its end: entering is two plain stores
//! shared numbers    p .. n     for the threads beyond: leased for one call, under a lock
//! ```
//!
//! A number is the same for every allocator of the process. Whoever forks stops all others first, by the same asymmetric
//! lock as in `raw/percpu.rs`:
//!
//! ```text
//! a thread                              the thread that forks
//! inside += 1                           stopped = its number
//! compiler fence                        heavy fence (every thread executes a full barrier)
//! if stopped { inside = 0; wait }       wait until inside == 0 for every other number
//! ... the allocator ...                 ... fork ...
//! inside -= 1 (release)                 stopped = nobody (release)
//! ```
//!
//! **Fast paths without entering.** A thread that has a private number may take the fast paths of the slab layer, and nothing
//! else, without `inside`: they have the same lock of their own for each sheaf, and whoever forks closes those too, after all
//! threads stopped: then a thread is in no fast path, cannot begin one, and waits at the door before it takes a slow one. Each
//! thread notes at which allocator it may do so, its *front*: one comparison asks whether there is an allocator, whether the
//! thread has a number, and whether the number is its own.
//!
//! Where the host has no `membarrier` there is one number, and it is shared: no two threads are inside at a time, so that
//! neither this lock nor that of the per-CPU state needs the fence.

use super::{Inner, front, sys};
use crate::platform::CpuId;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};
use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

/// The most numbers that there are.
const MOST: usize = 64;
/// The fewest on a host with a heavy fence.
const FEWEST: usize = 16;
/// Nobody has stopped the others.
const NOBODY: u32 = 0;

/// A number, and who has it.
#[repr(align(128))]
struct Slot {
    /// How deep the thread that has it is inside; written by that thread.
    inside: AtomicU32,
    /// 1 while a thread has it.
    taken: AtomicU32,
    number: u16,
}

static SLOTS: [Slot; MOST] = slots();
/// How many numbers there are: private ones in the low half, all in the high half; 0 until that is known.
static COUNTS: AtomicU32 = AtomicU32::new(0);
/// Number of the thread that has stopped the others, plus one.
static STOPPED: AtomicU32 = AtomicU32::new(NOBODY);
/// The numbers whose fast paths whoever has stopped the others has closed, one bit each.
static CLOSED: AtomicU64 = AtomicU64::new(0);

const _: () = assert!(MOST <= 64, "each number has a bit");

const fn slots() -> [Slot; MOST] {
    let mut slots = [const { Slot { inside: AtomicU32::new(0), taken: AtomicU32::new(0), number: 0 } }; MOST];
    let mut at = 0;
    while at < MOST {
        slots[at].number = at as u16;
        at += 1;
    }
    slots
}

std::thread_local! {
    /// The number that this thread has now.
    static HERE: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    /// Whether this thread ends: it has given its number back and leases one for each call.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// The allocator that a place keeps and the number of this thread, if the thread may take its fast paths.
#[inline(always)]
pub(super) fn front(place: &AtomicPtr<Inner>) -> Option<(&Inner, CpuId)> {
    let (at, number) = front::get();
    Some((sys::placed_here(place, at)?, CpuId::new(number)))
}

/// Shows that the current thread is inside, and has a number of its own.
pub(super) struct Inside {
    slot: &'static Slot,
    _of_this_thread: PhantomData<*const ()>,
}

/// How many private numbers there are, and how many in all.
fn counts() -> (usize, usize) {
    match COUNTS.load(Ordering::Acquire) {
        0 => first_counts(),
        counts => (counts as usize & 0xffff, counts as usize >> 16),
    }
}

/// Decides how many there are. Several threads may do so at once: they decide the same, or the first one's word stands.
#[cold]
fn first_counts() -> (usize, usize) {
    let all = (8 * sys::processors()).clamp(FEWEST, MOST);
    let (private, all) = if sys::register_heavy_fence() && sys::heavy_fence() && sys::prepare_exit() {
        (all - all / 4, all)
    } else {
        (0, 1)
    };
    let counts = (private | all << 16) as u32;
    match COUNTS.compare_exchange(0, counts, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => (private, all),
        Err(first) => (first as usize & 0xffff, first as usize >> 16),
    }
}

/// How many numbers there are.
pub(super) fn count() -> u16 {
    counts().1 as u16
}

/// The number of the current thread, which is inside.
#[inline(always)]
pub(super) fn here() -> u16 {
    HERE.get().map_or(0, |slot| slot.number)
}

/// Has every other thread inside execute a full memory barrier.
pub(super) fn heavy_fence() {
    // Without the call no other thread is inside.
    let fenced = counts().0 == 0 || sys::heavy_fence();
    debug_assert!(fenced, "the host has taken its promise back");
    crate::sync::fence(Ordering::SeqCst);
}

/// Enters: from here on the thread has a number that no other thread inside has.
#[inline(always)]
pub(super) fn enter() -> Inside {
    match HERE.get() {
        Some(slot) => slot.step_in(),
        None => enter_without_number(),
    }
}

#[cold]
#[inline(never)]
fn enter_without_number() -> Inside {
    let (private, all) = counts();
    let own = if ENDING.get() { None } else { take_private(private) };
    let slot = own.unwrap_or_else(|| lease_shared(private, all));
    HERE.set(Some(slot));
    if own.is_some() && !sys::tell_exit(slot.number.into()) {
        HERE.set(None);
        slot.taken.store(0, Ordering::Release);
        ENDING.set(true);
        return enter_without_number();
    }
    slot.step_in()
}

/// A private number that nobody has.
fn take_private(private: usize) -> Option<&'static Slot> {
    SLOTS.iter().take(private).find(|slot| slot.try_take())
}

/// Waits for a shared number, whichever is free first. Where it looks first depends on the thread.
fn lease_shared(private: usize, all: usize) -> &'static Slot {
    let shared = SLOTS.get(private..all).unwrap_or(&SLOTS[..1]);
    let first = HERE.with(|here| core::ptr::from_ref(here) as usize >> 12) % shared.len().max(1);
    let (later, sooner) = shared.split_at(first);
    loop {
        if let Some(slot) = sooner.iter().chain(later).find(|slot| slot.try_take()) {
            return slot;
        }
        sys::yield_now();
    }
}

impl Slot {
    fn try_take(&self) -> bool {
        self.taken.load(Ordering::Relaxed) == 0 && self.taken.swap(1, Ordering::Acquire) == 0
    }

    #[inline(always)]
    fn step_in(&'static self) -> Inside {
        let depth = self.inside.load(Ordering::Relaxed);
        self.inside.store(depth.wrapping_add(1), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if depth == 0 && STOPPED.load(Ordering::Acquire) != NOBODY {
            self.wait_for_start();
        }
        Inside { slot: self, _of_this_thread: PhantomData }
    }

    /// Stays outside until whoever has stopped everybody lets them go on.
    #[cold]
    #[inline(never)]
    fn wait_for_start(&self) {
        loop {
            self.inside.store(0, Ordering::Release);
            while STOPPED.load(Ordering::Acquire) != NOBODY {
                sys::yield_now();
            }
            self.inside.store(1, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            if STOPPED.load(Ordering::Acquire) == NOBODY {
                return;
            }
        }
    }

    /// Whether the number is leased for one call only.
    #[inline(always)]
    fn is_shared(&self) -> bool {
        u32::from(self.number) >= COUNTS.load(Ordering::Relaxed) & 0xffff
    }
}

impl Inside {
    /// From here on this thread takes the fast paths of this allocator without entering, if its number is its own. Forks must
    /// stop them: see [`close`].
    pub(super) fn set_front(&self, inner: &Inner) {
        if !self.slot.is_shared() {
            front::set(NonNull::from(inner), self.slot.number);
        }
    }

    /// Ends also a stay of this thread whose guard was forgotten.
    pub(super) fn leave_twice(self) {
        let forgotten = Self { slot: self.slot, _of_this_thread: PhantomData };
        drop(self);
        drop(forgotten);
    }
}

impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        let depth = self.slot.inside.load(Ordering::Relaxed).wrapping_sub(1);
        self.slot.inside.store(depth, Ordering::Release);
        if depth == 0 && self.slot.is_shared() {
            end_lease(self.slot);
        }
    }
}

#[cold]
#[inline(never)]
fn end_lease(slot: &Slot) {
    HERE.set(None);
    slot.taken.store(0, Ordering::Release);
}

/// Takes the number of a thread that ends back. What it kept is there for the next one that has it.
pub(super) fn give_back(number: usize) {
    front::clear();
    HERE.set(None);
    ENDING.set(true);
    if let Some(slot) = SLOTS.get(number) {
        slot.taken.store(0, Ordering::Release);
    }
}

/// Stops all other threads at the door of the allocator, and waits for those inside. The caller is inside.
pub(super) fn stop(caller: &Inside) {
    let own = u32::from(caller.slot.number) + 1;
    while STOPPED.compare_exchange(NOBODY, own, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // Another thread forks, and waits for this one.
        let depth = caller.slot.inside.swap(0, Ordering::AcqRel);
        while STOPPED.load(Ordering::Acquire) != NOBODY {
            sys::yield_now();
        }
        caller.slot.inside.store(depth, Ordering::Release);
    }
    heavy_fence();
    for slot in SLOTS.iter().filter(|slot| slot.number != caller.slot.number) {
        while slot.inside.load(Ordering::Acquire) != 0 {
            sys::yield_now();
        }
    }
}

/// Stops the fast paths of all other threads at these allocators too, and waits for those in one. The others are stopped.
pub(super) fn close<'i>(caller: &Inside, allocators: impl Iterator<Item = &'i Inner> + Clone) {
    let others = SLOTS.iter().filter(|slot| slot.number != caller.slot.number);
    let taken = others.filter(|slot| slot.taken.load(Ordering::Acquire) != 0).map(|slot| slot.number);
    let numbers = taken.fold(0, |numbers, number| numbers | 1 << number);
    CLOSED.store(numbers, Ordering::Relaxed);
    let each = |step: &dyn Fn(&Inner, CpuId)| {
        allocators.clone().for_each(|inner| members(numbers).for_each(|cpu| step(inner, cpu)));
    };
    each(&|inner, cpu| inner.kmem.close_cpu(cpu));
    heavy_fence();
    each(&|inner, cpu| inner.kmem.wait_for_cpu(cpu));
}

/// Ends what [`close`] began, with the same allocators.
pub(super) fn open<'i>(allocators: impl Iterator<Item = &'i Inner>) {
    let numbers = CLOSED.swap(0, Ordering::Relaxed);
    allocators.for_each(|inner| members(numbers).for_each(|cpu| inner.kmem.open_cpu(cpu)));
}

fn members(numbers: u64) -> impl Iterator<Item = CpuId> {
    (0..MOST as u16).filter(move |number| numbers >> number & 1 != 0).map(CpuId::new)
}

/// Lets them go on.
pub(super) fn start() {
    STOPPED.store(NOBODY, Ordering::Release);
}

/// In a fork's child: no other thread is left, and their numbers are nobody's.
pub(super) fn forget_others(caller: &Inside) {
    for slot in SLOTS.iter().filter(|slot| slot.number != caller.slot.number) {
        slot.inside.store(0, Ordering::Relaxed);
        slot.taken.store(0, Ordering::Relaxed);
    }
    // The child has an address space of its own, which may have to ask anew.
    let registered = counts().0 == 0 || sys::register_heavy_fence();
    debug_assert!(registered, "a child of this process has no heavy fence");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, mpsc};

    #[test]
    fn no_two_threads_inside_have_the_same_number_however_many_there_are() {
        const THREADS: usize = 3 * MOST;
        let owners: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
        let ready = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    ready.wait();
                    for _ in 0..200 {
                        let _inside = enter();
                        let _nested = enter();
                        let owner = &owners[usize::from(here())];
                        assert_eq!(owner.swap(1, Ordering::AcqRel), 0, "number {} is taken twice", here());
                        std::thread::yield_now();
                        owner.store(0, Ordering::Release);
                    }
                });
            }
        });
        assert!(HERE.get().is_none_or(|slot| slot.inside.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_thread_that_ends_gives_its_number_back() {
        // Many more threads than numbers, one after the other: were they kept, all but the first would share.
        for _ in 0..4 * MOST {
            let (give, take) = mpsc::channel();
            std::thread::spawn(move || {
                let inside = enter();
                give.send(inside.slot.is_shared()).unwrap();
            })
            .join()
            .unwrap();
            if !take.recv().unwrap() || counts().0 == 0 {
                return;
            }
            // Other tests of this process may have taken all numbers for a while.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("no thread got a private number");
    }
}
