//! Readers that look at memory which others give up, and the grace periods that protect them.

use std::cell::{Cell, RefCell};

/// The most readers at one time.
const MAX_READERS: usize = 16;

/// A clock that counts readers and grace periods, and the readers that are inside a section.
///
/// ```text
/// G1  a grace period named c has ended  <=>  c <= completed
/// G2  each reader that is inside began at a time >= completed
/// ```
#[derive(Default)]
pub struct Readers {
    now: Cell<u64>,
    completed: Cell<u64>,
    /// When each reader began.
    inside: RefCell<Vec<u64>>,
}

impl Readers {
    fn tick(&self) -> u64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    /// The time, and the last grace period that has ended.
    pub fn times(&self) -> (u64, u64) {
        (self.now.get(), self.completed.get())
    }

    /// A reader enters; one too many is ignored.
    pub fn enter(&self) {
        if self.inside.borrow().len() < MAX_READERS {
            let now = self.tick();
            self.inside.borrow_mut().push(now);
        }
    }

    /// The reader number `n`, modulo their count, leaves; none there: nobody does.
    pub fn leave(&self, n: usize) {
        let mut inside = self.inside.borrow_mut();
        if let Some(at) = n.checked_rem(inside.len()) {
            inside.remove(at);
        }
    }

    /// Ends every grace period that no reader holds up.
    pub fn end_grace_periods(&self) {
        let oldest = self.inside.borrow().iter().min().copied();
        self.completed.set(oldest.unwrap_or(self.now.get()).max(self.completed.get()));
    }

    /// Names the grace period that begins now.
    pub fn cookie(&self) -> u64 {
        self.tick()
    }

    /// Tells whether a grace period has ended.
    pub fn is_done(&self, cookie: u64) -> bool {
        cookie <= self.completed.get()
    }

    /// All readers leave while somebody waits for them.
    pub fn synchronize(&self) {
        self.inside.borrow_mut().clear();
        self.tick();
        self.end_grace_periods();
    }

    /// Starts over.
    pub fn reset(&self) {
        self.inside.borrow_mut().clear();
        self.now.set(0);
        self.completed.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_holds_up_the_grace_periods_that_began_after_it() {
        let readers = Readers::default();
        let early = readers.cookie();
        readers.enter();
        let late = readers.cookie();
        readers.end_grace_periods();
        assert!(readers.is_done(early) && !readers.is_done(late));
        readers.leave(5);
        assert!(!readers.is_done(late), "nobody has noticed");
        readers.end_grace_periods();
        assert!(readers.is_done(late));
    }

    #[test]
    fn whoever_waits_sees_all_readers_go() {
        let readers = Readers::default();
        readers.enter();
        let cookie = readers.cookie();
        readers.synchronize();
        assert!(readers.is_done(cookie));
        assert_eq!(readers.times().0, readers.times().1);
    }
}
