//! State that belongs to one CPU, and the asymmetric lock around it.
//!
//! The owner pays two plain stores and a compiler fence; a remote CPU that wants the state pays a heavy fence:
//!
//! ```text
//! owner                                   remote
//! busy = 1                                claimed = 1;  gates closed
//! compiler fence                          heavy fence (every CPU executes a full barrier)
//! if claimed, or its gate is closed       wait until busy == 0
//!     { busy = 0; give up }
//! ... the state ...                       ... the state ...
//! busy = 0 (release)                      gates open (release);  claimed = 0 (release)
//! ```
//!
//! Either the owner's store to `busy` is before the heavy fence, and the remote sees it and waits; or the owner's load
//! of `claimed` or of the gate is after it, and the owner sees the claim and gives up. Remotes exclude each other by the
//! exchange on `claimed`.
//!
//! **Interrupts.** A call that interrupts another one on the same CPU finds `busy` set, if the other is inside, and gives
//! up. It may run between the owner's look at `busy` and its store: the two need not be one step, because whoever runs
//! in between has left again, and what the owner reads of the state it reads after the store.
//!
//! **Gates.** The fast paths of [`PerCpuStack`] do not look at `claimed`. They compare the count with a bound in any
//! case: an allocation with the floor, a free with a limit. A claim raises the floor above every count and
//! lowers the limits to 0, so that one comparison asks "empty?" or "full?" and "claimed?" at once. The acquiring load
//! of the bound pairs with the releasing store that opens the gate: an owner that finds it open sees what the remote wrote.
//!
//! Invariant of [`PerCpuCell`] and [`PerCpuStack`], with `refs` the number of live `&mut` to the state:
//!
//! ```text
//! I21.1  refs <= 1
//! I21.2  refs == 1  =>  busy == 1 (a local guard) xor claimed == 1 (a remote guard that saw busy == 0)
//! ```

use super::region::MetaSlice;
use super::stack::Stack;
use crate::geometry::MAX_CPUS;
use crate::platform::{CpuId, Platform};
use crate::sync::{AtomicU8, AtomicU32, Ordering, compiler_fence};
use core::cell::UnsafeCell;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Tells whether the state is in use on the CPU that asks, which is its owner.
#[inline(always)]
fn is_busy(busy: &AtomicU8) -> bool {
    // SAFETY: only the owning CPU writes the byte, and this is it: the read does not race with a write. That no two threads
    // have one CPU number is what `SmpPlatform` promises, and without that trait there is one thread.
    unsafe { busy.as_ptr().read() != 0 }
}

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
        if is_busy(&self.busy) {
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

/// A stack, and what else its CPU keeps beside it.
#[repr(C)]
pub(crate) struct Stacked<T, const N: usize, S> {
    pub(crate) main: Stack<T, N>,
    pub(crate) spare: S,
}

/// The floor that no count exceeds.
const CLOSED: u8 = u8::MAX;

/// A [`Stacked`] owned by one CPU, with fast paths for the top of its stack, borrowed by others only after a heavy fence.
///
/// Frees come through one of `G` gates, each with a limit of its own: how many values the stack may hold then.
///
/// ```text
/// G1  claimed == 0  =>  floor == 0 and limits == open
/// G2  each limit <= N
/// ```
#[repr(C)]
pub(crate) struct PerCpuStack<T, const N: usize, S, const G: usize> {
    busy: AtomicU8,
    claimed: AtomicU8,
    floor: AtomicU8,
    limits: [AtomicU8; G],
    /// What the limits are while nobody claims the stack; written by whoever does.
    open: [AtomicU8; G],
    value: UnsafeCell<Stacked<T, N, S>>,
}

impl<T: Copy, const N: usize, S, const G: usize> PerCpuStack<T, N, S, G> {
    /// An empty stack, all of whose gates have the limit 0.
    pub(crate) const fn new(fill: T, spare: S) -> Self {
        Self {
            busy: AtomicU8::new(0),
            claimed: AtomicU8::new(0),
            floor: AtomicU8::new(0),
            limits: [const { AtomicU8::new(0) }; G],
            open: [const { AtomicU8::new(0) }; G],
            value: UnsafeCell::new(Stacked { main: Stack::new(fill), spare }),
        }
    }

    /// Sets the limit of each gate; one beyond the slots counts as all slots. Waits while another CPU has the stack.
    pub(crate) fn set_limits(&self, limits: [u32; G]) {
        while self.claimed.swap(1, Ordering::AcqRel) != 0 {
            core::hint::spin_loop();
        }
        for (open, limit) in self.open.iter().zip(limits) {
            open.store(limit.min(N as u32) as u8, Ordering::Relaxed);
        }
        self.unclaim();
    }

    /// Opens the gates and ends the claim of the caller.
    fn unclaim(&self) {
        for (limit, open) in self.limits.iter().zip(&self.open) {
            limit.store(open.load(Ordering::Relaxed), Ordering::Release);
        }
        self.floor.store(0, Ordering::Release);
        self.claimed.store(0, Ordering::Release);
    }

    /// The limit of a gate, whether or not another CPU has the stack.
    #[inline(always)]
    pub(crate) fn limit(&self, gate: usize) -> u32 {
        self.open.get(gate).map_or(0, |open| u32::from(open.load(Ordering::Relaxed)))
    }

    /// The limits, if G1 and G2 hold and nobody claims the stack.
    pub(crate) fn open_limits(&self) -> Option<[u32; G]> {
        let read = |cells: &[AtomicU8; G]| cells.each_ref().map(|cell| u32::from(cell.load(Ordering::Relaxed)));
        let (limits, open) = (read(&self.limits), read(&self.open));
        let is_open = self.claimed.load(Ordering::Relaxed) == 0 && self.floor.load(Ordering::Relaxed) == 0;
        (is_open && limits == open && limits.iter().all(|&limit| limit <= N as u32)).then_some(limits)
    }

    /// Closes every way in to the owner, without a borrow: for a stop of all CPUs. Waits while another CPU has the stack.
    /// The owner is outside once [`Self::wait_for_owner`] has returned after a heavy fence, and until [`Self::open_again`].
    #[cfg(feature = "std")]
    #[cold]
    pub(crate) fn close(&self, platform: &impl Platform) {
        while self.claimed.swap(1, Ordering::AcqRel) != 0 {
            platform.relax();
        }
        self.close_gates();
    }

    /// Waits until the owner is outside. The stack is closed, and a heavy fence came after that.
    #[cold]
    pub(crate) fn wait_for_owner(&self, platform: &impl Platform) {
        while self.busy.load(Ordering::Acquire) != 0 {
            platform.relax();
        }
    }

    /// Ends what [`Self::close`] began.
    #[cfg(feature = "std")]
    #[cold]
    pub(crate) fn open_again(&self) {
        self.unclaim();
    }

    fn close_gates(&self) {
        self.floor.store(CLOSED, Ordering::Relaxed);
        self.limits.iter().for_each(|limit| limit.store(0, Ordering::Relaxed));
    }

    /// How many values there are; may be old by the time it is read.
    pub(crate) fn len(&self) -> u32 {
        self.count().load(Ordering::Relaxed)
    }

    /// Notes that the owner is inside; `false` if it is already.
    #[inline(always)]
    fn enter(&self) -> bool {
        if is_busy(&self.busy) {
            return false;
        }
        self.busy.store(1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        true
    }

    #[inline(always)]
    fn leave(&self) {
        self.busy.store(0, Ordering::Release);
    }

    /// The count, which may be read before it is known whose the stack is.
    #[inline(always)]
    fn count(&self) -> &AtomicU32 {
        // SAFETY: the pointer is that of a live cell, and only the place of a field in it is computed.
        let count = unsafe { &raw const (*self.value.get()).main.count };
        // SAFETY: the field is initialised and lives as long as the cell. The only exclusive borrow of it is the owner's, and
        // the owner is here.
        unsafe { &*count }
    }

    /// The first slot of the stack.
    #[inline(always)]
    fn slots(&self) -> *mut T {
        // SAFETY: the pointer is that of a live cell, and only the place of a field in it is computed.
        let slots = unsafe { &raw mut (*self.value.get()).main.slots };
        slots.cast()
    }

    /// Takes the newest value on the CPU that owns the stack; `None` if there is none or the stack is in use.
    ///
    /// As with [`PerCpuCell::try_local`], call it with the stack of [`Platform::cpu`] only.
    ///
    /// `note` is a step of the caller's, with the value, that no call which interrupts it can see half done; it must not come
    /// back to this stack.
    #[inline(always)]
    pub(crate) fn pop_and(&self, note: impl FnOnce(T)) -> Option<T> {
        if !self.enter() {
            return None;
        }
        let floor = self.floor.load(Ordering::Acquire);
        let count = self.count();
        let at = count.load(Ordering::Relaxed);
        // K1: a count fits a byte.
        if at as u8 <= floor {
            self.leave();
            return None;
        }
        // K1: the count exceeds the floor, so it is at least 1.
        let top = (at as usize).wrapping_sub(1);
        // SAFETY: K1: the count is at most N, so the slot below it is one of the stack's.
        let slot = unsafe { self.slots().add(top) };
        // SAFETY: the gate is open after `busy` was set: nobody else has the slots. All slots are initialised.
        let value = unsafe { slot.read() };
        // Nobody changed the count since it was read. To read it again lets the machine count down in place.
        count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        note(value);
        self.leave();
        Some(value)
    }

    /// Puts a value on the CPU that owns the stack, if there is room and then `agree` says so; `agree` must not come back
    /// to this stack. `false` also if the stack is in use. As with [`Self::pop_and`], call it with the own stack only.
    #[inline(always)]
    pub(crate) fn push_if<const GATE: usize>(&self, value: T, agree: impl FnOnce() -> bool) -> bool {
        const { assert!(GATE < G, "no such gate") };
        if !self.enter() {
            return false;
        }
        let limit = self.limits[GATE].load(Ordering::Acquire);
        let count = self.count();
        let at = count.load(Ordering::Relaxed);
        // K1: a count fits a byte.
        let pushes = (at as u8) < limit && agree();
        if pushes {
            // SAFETY: G2: the slot's number is below a limit, which is at most N.
            let slot = unsafe { self.slots().add(at as usize) };
            // SAFETY: the gate is open after `busy` was set: nobody else has the slots.
            unsafe { slot.write(value) };
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        self.leave();
        pushes
    }

    /// Borrows the whole on the CPU that owns it; `None` if an interrupted call on this CPU or a remote CPU has it. As with
    /// [`Self::pop_and`], call it with the own stack only.
    #[inline(always)]
    pub(crate) fn try_local(&self) -> Option<LocalStack<'_, T, N, S, G>> {
        if !self.enter() {
            return None;
        }
        if self.claimed.load(Ordering::Acquire) != 0 {
            self.leave();
            return None;
        }
        Some(LocalStack { stack: self })
    }

    /// Borrows the whole of another CPU's; waits for its owner to finish. `None` if a third CPU has it.
    #[cold]
    pub(crate) fn try_remote(&self, platform: &impl Platform) -> Option<RemoteStack<'_, T, N, S, G>> {
        if self.claimed.swap(1, Ordering::AcqRel) != 0 {
            return None;
        }
        self.close_gates();
        platform.heavy_fence();
        self.wait_for_owner(platform);
        // SAFETY: I21: the claim is the caller's and the owner is outside: nobody writes the value. It is read once, and what
        // was read is put back before the claim ends.
        let taken = unsafe { self.value.get().read() };
        Some(RemoteStack { stack: self, taken: ManuallyDrop::new(taken) })
    }
}

/// A borrow by the owning CPU.
pub(crate) struct LocalStack<'c, T: Copy, const N: usize, S, const G: usize> {
    stack: &'c PerCpuStack<T, N, S, G>,
}

impl<T: Copy, const N: usize, S, const G: usize> Deref for LocalStack<'_, T, N, S, G> {
    type Target = Stacked<T, N, S>;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        // SAFETY: I21: this guard set `busy` and saw no claim, so no other guard's borrow is live.
        unsafe { &*self.stack.value.get() }
    }
}

impl<T: Copy, const N: usize, S, const G: usize> DerefMut for LocalStack<'_, T, N, S, G> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as in `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.stack.value.get() }
    }
}

impl<T: Copy, const N: usize, S, const G: usize> Drop for LocalStack<'_, T, N, S, G> {
    #[inline(always)]
    fn drop(&mut self) {
        self.stack.leave();
    }
}

/// A borrow by another CPU. It works on a copy: the owner may read the count while it finds the gate closed.
pub(crate) struct RemoteStack<'c, T: Copy, const N: usize, S, const G: usize> {
    stack: &'c PerCpuStack<T, N, S, G>,
    taken: ManuallyDrop<Stacked<T, N, S>>,
}

impl<T: Copy, const N: usize, S, const G: usize> Deref for RemoteStack<'_, T, N, S, G> {
    type Target = Stacked<T, N, S>;

    fn deref(&self) -> &Self::Target {
        &self.taken
    }
}

impl<T: Copy, const N: usize, S, const G: usize> DerefMut for RemoteStack<'_, T, N, S, G> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.taken
    }
}

impl<T: Copy, const N: usize, S, const G: usize> Drop for RemoteStack<'_, T, N, S, G> {
    fn drop(&mut self) {
        let value = self.stack.value.get();
        // SAFETY: the guard is never used again.
        let taken = unsafe { ManuallyDrop::take(&mut self.taken) };
        // SAFETY: the place is one value, inside the cell.
        let slots = unsafe { &raw mut (*value).main.slots };
        // SAFETY: I21: the claim is still held, so nobody else has the slots. The old contents are plain copies.
        unsafe { slots.write(taken.main.slots) };
        // SAFETY: the place is one value, inside the cell.
        let spare = unsafe { &raw mut (*value).spare };
        // SAFETY: I21, as above; what the place held was moved out when the guard was made.
        unsafe { spare.write(taken.spare) };
        self.stack.count().store(taken.main.count.into_inner(), Ordering::Relaxed);
        self.stack.unclaim();
    }
}

/// An index known to be below `N`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Below<const N: usize>(u8);

impl<const N: usize> Below<N> {
    /// Checks an index.
    #[inline(always)]
    pub(crate) const fn new(index: usize) -> Option<Self> {
        const { assert!(N <= 256, "an index is kept in a byte") };
        if index < N { Some(Self(index as u8)) } else { None }
    }

    /// The index.
    #[inline(always)]
    pub(crate) const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Equally long rows of values, one row for each CPU, each of at least `MIN` values.
///
/// # Invariants
///
/// ```text
/// R1  each entry of rows points to the first of per_cpu values of items
/// R2  per_cpu >= MIN
/// ```
pub(crate) struct PerCpu<T, const MIN: usize> {
    /// A CPU that does not exist has the row of CPU 0, so that a number needs no check.
    rows: [NonNull<T>; MAX_CPUS as usize],
    per_cpu: usize,
    items: MetaSlice<T>,
}

const _: () = assert!(MAX_CPUS == 256, "a CPU's number is cut to eight bits");

impl<T, const MIN: usize> PerCpu<T, MIN> {
    /// Divides `items` among the CPUs.
    ///
    /// # Panics
    ///
    /// If they are too few. A geometry that was validated has enough.
    pub(crate) fn new(items: MetaSlice<T>, cpus: u16) -> Self {
        let (cpus, count) = (usize::from(cpus), items.len());
        assert!(MIN > 0 && (1..=MAX_CPUS.into()).contains(&cpus) && count / cpus >= MIN, "too few values per CPU");
        let per_cpu = count / cpus;
        let row = |cpu: usize| {
            let start = if cpu < cpus { cpu * per_cpu } else { 0 };
            NonNull::from(&items[start..start + per_cpu]).cast()
        };
        Self { rows: core::array::from_fn(row), per_cpu, items }
    }

    /// How many CPUs have a row of their own.
    pub(crate) fn cpus(&self) -> usize {
        self.items.len() / self.per_cpu
    }

    /// The first value of a CPU's row.
    #[inline(always)]
    fn row(&self, cpu: CpuId) -> NonNull<T> {
        self.rows[usize::from(cpu.get() as u8)]
    }

    /// A value of a CPU; `None` if the row is shorter.
    #[inline(always)]
    pub(crate) fn get(&self, cpu: CpuId, index: usize) -> Option<&T> {
        if index >= self.per_cpu {
            return None;
        }
        // SAFETY: R1: the row has more than `index` values.
        let value = unsafe { self.row(cpu).add(index) };
        // SAFETY: the value is initialised, `items` keeps it alive, and nobody borrows it mutably.
        Some(unsafe { value.as_ref() })
    }

    /// A value that the rows of all CPUs have.
    #[inline(always)]
    pub(crate) fn known(&self, cpu: CpuId, index: Below<MIN>) -> &T {
        // SAFETY: R1 and R2: the row has at least `MIN` values.
        let value = unsafe { self.row(cpu).add(index.get()) };
        // SAFETY: the value is initialised, `items` keeps it alive, and nobody borrows it mutably.
        unsafe { value.as_ref() }
    }

    /// The first value of a CPU.
    #[inline(always)]
    pub(crate) fn first(&self, cpu: CpuId) -> &T {
        // SAFETY: R1 and R2: the row has at least one value, `items` keeps it alive, and nobody borrows it mutably.
        unsafe { self.row(cpu).as_ref() }
    }

    /// The values of all CPUs, CPU after CPU.
    pub(crate) fn iter(&self) -> core::slice::Iter<'_, T> {
        self.items.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Vpn;
    use crate::raw::{MetaRegion, PhysMem};
    use core::cell::Cell;

    /// Runs the owner's next step in the middle of the remote's heavy fence.
    struct Fenced<F: Fn()>(PhysMem, F, Cell<u32>);

    impl<F: Fn()> Platform for Fenced<F> {
        fn memory(&self) -> &PhysMem {
            &self.0
        }

        fn cpu(&self) -> CpuId {
            CpuId::new(0)
        }

        fn flush_tlb(&self, _start: Vpn, _pages: u64) {}

        fn heavy_fence(&self) {
            self.2.set(self.2.get() + 1);
            (self.1)();
        }
    }

    type Four = PerCpuStack<u32, 4, Option<u8>, 2>;

    fn pop(stack: &Four) -> Option<u32> {
        stack.pop_and(|_| ())
    }

    fn fenced<F: Fn()>(during: F) -> Fenced<F> {
        Fenced(PhysMem::heap(1, 0), during, Cell::new(0))
    }

    #[test]
    fn each_gate_has_its_own_limit_and_the_stack_is_one() {
        let stack = Four::new(0, None);
        assert!(!stack.push_if::<0>(1, || true), "closed until a limit is set");
        stack.set_limits([2, 3]);
        assert!(stack.push_if::<0>(1, || true) && stack.push_if::<0>(2, || true));
        assert!(!stack.push_if::<0>(3, || true) && stack.push_if::<1>(3, || true));
        assert!(!stack.push_if::<1>(4, || true));
        stack.set_limits([99, 0]);
        assert!(stack.push_if::<0>(4, || true) && !stack.push_if::<0>(5, || true), "never beyond the slots");
        assert_eq!(
            [pop(&stack), pop(&stack), pop(&stack), pop(&stack), pop(&stack)],
            [4, 3, 2, 1, 0].map(|n| (n > 0).then_some(n))
        );
    }

    #[test]
    fn a_push_asks_only_when_there_is_room_and_obeys_the_answer() {
        let stack = Four::new(0, None);
        stack.set_limits([1, 0]);
        assert!(!stack.push_if::<0>(1, || false));
        assert_eq!(pop(&stack), None);
        assert!(stack.push_if::<0>(1, || true));
        assert!(!stack.push_if::<0>(2, || unreachable!("there is no room")));
    }

    #[test]
    fn whoever_interrupts_the_owner_finds_the_stack_in_use_and_leaves_it_as_it_was() {
        let stack = Four::new(0, None);
        stack.set_limits([4, 4]);
        let interrupt = || {
            assert!(pop(&stack).is_none() && !stack.push_if::<1>(9, || true) && stack.try_local().is_none());
            true
        };
        assert!(stack.push_if::<0>(1, interrupt));
        let guard = stack.try_local().unwrap();
        interrupt();
        drop(guard);
        assert_eq!((pop(&stack), pop(&stack)), (Some(1), None));
    }

    #[test]
    fn a_claim_closes_every_way_in_and_its_end_opens_them_on_what_the_remote_left() {
        let stack = Four::new(0, None);
        stack.set_limits([4, 2]);
        assert!(stack.push_if::<0>(1, || true) && stack.push_if::<0>(2, || true));
        let shut = || {
            assert!(pop(&stack).is_none() && stack.try_local().is_none());
            assert!(!stack.push_if::<0>(9, || true) && !stack.push_if::<1>(9, || true));
        };
        let platform = fenced(shut);
        let mut remote = stack.try_remote(&platform).unwrap();
        assert_eq!(platform.2.get(), 1);
        shut();
        assert!(stack.try_remote(&platform).is_none(), "remotes exclude each other");
        assert_eq!(remote.main.pop(), Some(2));
        assert!(remote.main.push(4, 7) && remote.main.push(4, 8));
        remote.spare = Some(5);
        drop(remote);
        assert_eq!(stack.try_local().unwrap().spare, Some(5));
        assert_eq!((pop(&stack), pop(&stack), pop(&stack), pop(&stack)), (Some(8), Some(7), Some(1), None));
        assert_eq!((stack.limit(0), stack.limit(1)), (4, 2));
        assert!(stack.push_if::<1>(3, || true));
    }

    #[test]
    fn a_cpu_that_does_not_exist_has_the_row_of_the_first() {
        let items = MetaRegion::heap(4096).carver().unwrap().carve(6, |i| i);
        let rows = PerCpu::<usize, 2>::new(items, 2);
        let of = |cpu, index| rows.get(CpuId::new(cpu), index).copied();
        assert_eq!((of(0, 0), of(0, 2), of(0, 3), of(1, 0), of(1, 2)), (Some(0), Some(2), None, Some(3), Some(5)));
        assert_eq!((of(2, 1), of(255, 1), of(256, 1), of(257, 1)), (Some(1), Some(1), Some(1), Some(4)));
        assert_eq!(*rows.known(CpuId::new(1), Below::new(1).unwrap()), 4);
        assert!(Below::<2>::new(2).is_none());
    }
}
