//! Lists threaded through frame descriptors.

use super::{FrameTable, NIL, decode};
use crate::addr::Pfn;
use crate::error::{Invariant, Violation};
use crate::sync::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

/// A doubly linked list threaded through frame descriptors.
///
/// ```text
/// I8.1  len == number of frames reached from head by next
/// I8.2  prev(next(f)) == f for each f on the list but the last;  prev(head) == none
/// I8.3  tail == the last frame reached from head, none for an empty list
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageList {
    head: u32,
    tail: u32,
    len: u32,
}

impl PageList {
    pub(crate) const EMPTY: Self = Self { head: NIL, tail: NIL, len: 0 };

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) const fn head(&self) -> Option<Pfn> {
        decode(self.head)
    }

    pub(crate) const fn tail(&self) -> Option<Pfn> {
        decode(self.tail)
    }

    pub(crate) fn push_head(&mut self, frames: &FrameTable, pfn: Pfn) {
        frames.set_links(pfn, NIL, self.head);
        match self.head() {
            Some(old) => frames.set_prev(old, Some(pfn)),
            None => self.tail = pfn.as_u32(),
        }
        self.head = pfn.as_u32();
        self.len += 1;
    }

    pub(crate) fn push_tail(&mut self, frames: &FrameTable, pfn: Pfn) {
        frames.set_links(pfn, self.tail, NIL);
        match self.tail() {
            Some(old) => frames.set_next(old, Some(pfn)),
            None => self.head = pfn.as_u32(),
        }
        self.tail = pfn.as_u32();
        self.len += 1;
    }

    /// Takes a frame that is on this list off it.
    pub(crate) fn remove(&mut self, frames: &FrameTable, pfn: Pfn) {
        let (prev, next) = frames.take_links(pfn);
        match decode(prev) {
            Some(prev) => frames.set_next(prev, decode(next)),
            None => self.head = next,
        }
        match decode(next) {
            Some(next) => frames.set_prev(next, decode(prev)),
            None => self.tail = prev,
        }
        self.len = self.len.saturating_sub(1);
    }

    pub(crate) fn pop_head(&mut self, frames: &FrameTable) -> Option<Pfn> {
        let pfn = self.head()?;
        self.remove(frames, pfn);
        Some(pfn)
    }

    pub(crate) fn pop_tail(&mut self, frames: &FrameTable) -> Option<Pfn> {
        let pfn = self.tail()?;
        self.remove(frames, pfn);
        Some(pfn)
    }

    /// Checks I8.1 to I8.3, and names them after the layer that the list belongs to.
    pub(crate) fn check_links(&self, frames: &FrameTable, invariant: Invariant) -> Result<(), Violation> {
        let number = |pfn: Option<Pfn>| pfn.map_or(u64::MAX, |pfn| pfn.index() as u64);
        let (mut last, mut len) = (None, 0);
        for pfn in self.iter(frames) {
            let (at, found) = (number(Some(pfn)), number(frames.prev(pfn)));
            Violation::check_eq(invariant, "link back of a frame on a list (I8.2)", at, number(last), found)?;
            (last, len) = (Some(pfn), len + 1);
        }
        let at = number(self.head());
        Violation::check_eq(invariant, "length of the list from this frame (I8.1)", at, u64::from(self.len), len)?;
        Violation::check_eq(invariant, "last of the list from this frame (I8.3)", at, number(last), number(self.tail()))
    }

    /// Walks the list and stops after `limit` frames, so that a cycle cannot hold an auditor up.
    pub(crate) fn iter<'f>(&self, frames: &'f FrameTable) -> impl Iterator<Item = Pfn> + 'f {
        let limit = frames.frames() as usize + 1;
        core::iter::successors(self.head(), |&pfn| frames.next(pfn)).take(limit)
    }
}

/// A stack of blocks threaded through their first frames: anybody pushes without a lock, one at a time empties it whole.
pub(crate) struct PageStack(AtomicU32);

impl PageStack {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(NIL))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Relaxed) == NIL
    }

    pub(crate) fn push(&self, frames: &FrameTable, pfn: Pfn) {
        let mut top = self.0.load(Relaxed);
        loop {
            frames.page(pfn).next.store(top, Relaxed);
            // Releases the link and the block's kind to whoever empties the stack.
            match self.0.compare_exchange_weak(top, pfn.as_u32(), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Empties the stack; the blocks follow each other by [`FrameTable::next`], the newest first.
    pub(crate) fn take_all(&self) -> Option<Pfn> {
        decode(self.0.swap(NIL, Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::table;

    #[test]
    fn lists_keep_order_length_and_back_links() {
        let frames = table();
        let mut list = PageList::EMPTY;
        for n in 0..8 {
            if n % 2 == 0 {
                list.push_head(&frames, Pfn::new(n));
            } else {
                list.push_tail(&frames, Pfn::new(n));
            }
        }
        list.remove(&frames, Pfn::new(0));
        list.remove(&frames, Pfn::new(6));
        let walked: Vec<u32> = list.iter(&frames).map(Pfn::as_u32).collect();
        assert_eq!(walked, [4, 2, 1, 3, 5, 7]);
        assert_eq!(list.len(), 6);
        assert_eq!(list.pop_tail(&frames), Some(Pfn::new(7)));
        assert_eq!(list.pop_head(&frames), Some(Pfn::new(4)));
    }

    #[test]
    fn each_broken_link_is_named() {
        let frames = table();
        let mut list = PageList::EMPTY;
        (0..4).for_each(|n| list.push_tail(&frames, Pfn::new(n)));
        let check = |list: &PageList| list.check_links(&frames, Invariant::I8ListCounts).map_err(|fault| fault.what);
        assert_eq!(check(&list), Ok(()));
        assert!(check(&PageList { tail: 2, ..list }).unwrap_err().contains("I8.3"));
        assert!(check(&PageList { head: NIL, ..list }).unwrap_err().contains("I8.1"));
        assert!(check(&PageList { len: 5, ..list }).unwrap_err().contains("I8.1"));
        frames.set_prev(Pfn::new(2), None);
        assert!(check(&list).unwrap_err().contains("I8.2"));
        assert!(check(&PageList { tail: 0, ..PageList::EMPTY }).unwrap_err().contains("I8.3"));
    }
}
