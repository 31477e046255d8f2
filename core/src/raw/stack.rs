//! A stack with a fixed number of slots, of which the count is known to be right.

use crate::sync::{AtomicU32, Ordering::Relaxed};

/// Up to `N` values, last in first out.
///
/// # Invariants
///
/// ```text
/// K1  count <= N <= 254
/// ```
///
/// The count is an atomic because a [`PerCpuStack`](super::PerCpuStack) reads it before it knows whose the slots are. Only
/// this room writes it.
#[repr(C)]
pub(crate) struct Stack<T, const N: usize> {
    pub(super) count: AtomicU32,
    pub(super) slots: [T; N],
}

impl<T: Copy, const N: usize> Stack<T, N> {
    /// A stack without values; the slots hold `fill`.
    pub(crate) const fn new(fill: T) -> Self {
        const { assert!(N < 255, "a limit of 255 would not fit") };
        Self { count: AtomicU32::new(0), slots: [fill; N] }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Tells whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, oldest first.
    pub(crate) fn as_slice(&self) -> &[T] {
        self.slots.get(..self.len() as usize).unwrap_or_default()
    }

    /// Takes the newest value.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let value = *self.as_slice().last()?;
        *self.count.get_mut() -= 1;
        Some(value)
    }

    /// Takes the newest value that `wanted` accepts; the newest of all gets its place.
    pub(crate) fn pop_wanted(&mut self, wanted: impl Fn(T) -> bool) -> Option<T> {
        let last = self.as_slice().len().checked_sub(1)?;
        let at = self.as_slice().iter().rposition(|&value| wanted(value))?;
        self.slots.swap(at, last);
        self.pop()
    }

    /// Takes the oldest values, up to `most`; `each` hears of them, the oldest first.
    pub(crate) fn take_oldest(&mut self, most: u32, each: impl FnMut(T)) {
        let len = self.len();
        let taken = most.min(len);
        self.as_slice().iter().take(taken as usize).copied().for_each(each);
        self.slots.copy_within(taken as usize..len as usize, 0);
        *self.count.get_mut() = len - taken;
    }

    /// Puts a value; `false` if `capacity` values are in already.
    pub(crate) fn push(&mut self, capacity: u32, value: T) -> bool {
        let at = self.len();
        let Some(slot) = self.slots.get_mut(at as usize).filter(|_| at < capacity) else { return false };
        *slot = value;
        *self.count.get_mut() = at + 1;
        true
    }

    /// Turns the order around, so that the value put first is popped first.
    pub(crate) fn reverse(&mut self) {
        let len = self.len() as usize;
        if let Some(values) = self.slots.get_mut(..len) {
            values.reverse();
        }
    }

    /// Forgets the values.
    pub(crate) fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forgets all but the oldest `kept` values.
    pub(crate) fn truncate(&mut self, kept: u32) {
        let count = self.count.get_mut();
        *count = kept.min(*count);
    }

    /// Moves all values to `to`, which is empty.
    pub(crate) fn move_to(&mut self, to: &mut Self) {
        debug_assert!(to.is_empty(), "values would be lost");
        let len = self.len() as usize;
        for (slot, value) in to.slots.iter_mut().zip(self.as_slice()) {
            *slot = *value;
        }
        *to.count.get_mut() = len as u32;
        self.clear();
    }

    /// Sets the count to any that the slots allow, so that a test can see the auditor find it.
    #[cfg(test)]
    pub(crate) fn corrupt_count(&mut self, count: u32) {
        *self.count.get_mut() = count.min(N as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::Stack;

    #[test]
    fn the_newest_wanted_value_is_taken_from_anywhere() {
        let mut stack: Stack<u32, 4> = Stack::new(0);
        (1..=4).for_each(|n| assert!(stack.push(4, n)));
        assert_eq!(stack.pop_wanted(|n| n % 2 == 1), Some(3));
        assert_eq!(stack.pop_wanted(|n| n > 4), None);
        assert_eq!(stack.as_slice(), [1, 2, 4]);
        assert_eq!((stack.pop_wanted(|_| true), stack.len()), (Some(4), 2));
        assert_eq!(Stack::<u32, 4>::new(0).pop_wanted(|_| true), None);
    }

    #[test]
    fn a_stack_gives_the_newest_first_and_never_holds_more_than_its_slots() {
        let mut stack = Stack::<u32, 5>::new(0);
        for n in 0..5 {
            assert!(stack.push(u32::MAX, n));
        }
        assert!(!stack.push(u32::MAX, 5), "never beyond the slots");
        assert_eq!(stack.pop(), Some(4));
        stack.reverse();
        let mut oldest = 0;
        stack.take_oldest(1, |value| oldest = value);
        assert_eq!((oldest, stack.as_slice()), (3, &[2, 1, 0][..]));
        stack.truncate(1);
        assert_eq!((stack.pop(), stack.pop()), (Some(2), None));
    }

    #[test]
    fn a_move_leaves_nothing_behind() {
        let (mut from, mut to) = (Stack::<u32, 3>::new(0), Stack::new(0));
        assert!(from.push(2, 7) && from.push(2, 8) && !from.push(2, 9));
        from.move_to(&mut to);
        assert!(from.is_empty());
        assert_eq!(to.as_slice(), [7, 8]);
    }
}
