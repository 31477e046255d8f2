//! Permissions of single frames in the direct map, and what processors remember of them.
//!
//! Almost every frame can be read and written by its address in the direct map, as ever; only the others are noted.

use kmem::Pfn;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// What a frame's address in the direct map allows, if it is not everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Alias {
    /// Reads: the program has it so.
    ReadOnly,
    /// Nothing; and whether every processor has been made to forget what it allowed before.
    Invalid { flushed: bool },
}

/// The frames whose aliases are not as usual.
///
/// ```text
/// D1  odd is set  <=>  states or remembered is not empty
/// D2  (c, f) in remembered: CPU c has used the alias of f while it was read-only, and was not flushed since
/// ```
#[derive(Default)]
pub struct DirectAliases {
    odd: Cell<bool>,
    states: RefCell<BTreeMap<u32, Alias>>,
    remembered: RefCell<BTreeSet<(u16, u32)>>,
    /// What the allocator did in the wrong order.
    mistakes: RefCell<Vec<String>>,
}

impl DirectAliases {
    pub(super) fn reset(&self) {
        self.odd.set(false);
        self.states.borrow_mut().clear();
        self.remembered.borrow_mut().clear();
        self.mistakes.borrow_mut().clear();
    }

    fn note(&self) {
        self.odd.set(!self.states.borrow().is_empty() || !self.remembered.borrow().is_empty());
    }

    /// The program makes an alias read-only, and has it flushed.
    pub fn protect(&self, frame: u32) {
        self.states.borrow_mut().insert(frame, Alias::ReadOnly);
        self.remembered.borrow_mut().retain(|&(_, of)| of != frame);
        self.note();
    }

    /// The allocator makes an alias invalid.
    pub(super) fn invalidate(&self, frame: Pfn) {
        let before = self.states.borrow_mut().insert(frame.as_u32(), Alias::Invalid { flushed: false });
        if let Some(Alias::Invalid { .. }) = before {
            self.mistake(format!("the alias of frame {frame} became invalid twice"));
        }
        self.note();
    }

    /// The allocator restores an alias of a frame, which is free already or still belongs to its area.
    pub(super) fn restore(&self, frame: Pfn, is_free: bool) {
        let before = self.states.borrow_mut().remove(&frame.as_u32());
        self.note();
        match before {
            Some(Alias::Invalid { flushed: true }) if !is_free => {}
            Some(Alias::Invalid { flushed: true }) => {
                self.mistake(format!("frame {frame} was given back before its alias was restored"));
            }
            Some(Alias::Invalid { flushed: false }) => {
                self.mistake(format!("the alias of frame {frame} was restored before it was flushed"));
            }
            _ => self.mistake(format!("the alias of frame {frame} was restored and had not been invalid")),
        }
    }

    fn mistake(&self, what: String) {
        self.mistakes.borrow_mut().push(what);
    }

    /// All processors forget the aliases of the frames that `covers` names.
    pub(super) fn flush(&self, covers: impl Fn(u32) -> bool) {
        if !self.odd.get() {
            return;
        }
        self.remembered.borrow_mut().retain(|&(_, frame)| !covers(frame));
        for (frame, alias) in self.states.borrow_mut().iter_mut() {
            if let (Alias::Invalid { flushed }, true) = (alias, covers(*frame)) {
                *flushed = true;
            }
        }
        self.note();
    }

    /// Tells whether every alias is as usual.
    #[inline(always)]
    pub(super) fn are_usual(&self) -> bool {
        !self.odd.get()
    }

    /// Tells whether a processor may use the alias of a frame, and remembers what it had to know for that.
    pub(super) fn allows(&self, cpu: u16, frame: u32, write: bool) -> bool {
        if !self.odd.get() {
            return true;
        }
        if self.remembered.borrow().contains(&(cpu, frame)) {
            return !write;
        }
        match self.states.borrow().get(&frame) {
            None => true,
            Some(Alias::Invalid { .. }) => false,
            Some(Alias::ReadOnly) => {
                self.remembered.borrow_mut().insert((cpu, frame));
                !write
            }
        }
    }

    /// What the allocator has done in the wrong order so far.
    pub fn mistakes(&self) -> Vec<String> {
        self.mistakes.borrow().clone()
    }

    /// Frames whose aliases are not as usual, or are not for some processor.
    pub fn unusual(&self) -> Vec<u32> {
        if !self.odd.get() {
            return Vec::new();
        }
        let remembered = self.remembered.borrow();
        let mut frames: BTreeSet<u32> = remembered.iter().map(|&(_, frame)| frame).collect();
        frames.extend(self.states.borrow().keys());
        frames.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_without_flush_or_in_another_order_is_noticed() {
        type Step = (&'static str, fn(&DirectAliases));
        let steps: [Step; 3] = [
            ("before it was flushed", |d| {
                d.invalidate(Pfn::new(3));
                d.restore(Pfn::new(3), false);
            }),
            ("had not been invalid", |d| {
                d.flush(|_| true);
                d.restore(Pfn::new(3), false);
            }),
            ("given back", |d| {
                d.invalidate(Pfn::new(3));
                d.flush(|frame| frame == 3);
                d.restore(Pfn::new(3), true);
            }),
        ];
        for (what, act) in steps {
            let direct = DirectAliases::default();
            direct.protect(3);
            act(&direct);
            assert!(direct.mistakes().iter().any(|mistake| mistake.contains(what)), "{what}: {:?}", direct.mistakes());
        }
    }

    #[test]
    fn a_processor_that_was_not_flushed_still_cannot_write() {
        let direct = DirectAliases::default();
        direct.protect(3);
        assert!(direct.allows(0, 3, false) && !direct.allows(1, 3, true) && direct.allows(0, 4, true));
        direct.invalidate(Pfn::new(3));
        assert!(direct.allows(0, 3, false) && !direct.allows(2, 3, false), "one remembers, one does not");
        direct.flush(|frame| frame != 3);
        direct.restore(Pfn::new(3), false);
        assert!(!direct.allows(0, 3, true) && direct.allows(2, 3, true));
        assert_eq!(direct.unusual(), [3]);
        direct.flush(|frame| frame == 3);
        assert!(direct.allows(0, 3, true) && direct.unusual().is_empty());
    }
}
