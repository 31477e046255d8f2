//! Who owns the page blocks that may be moved: the answer to [`kmem::Platform::migrate`].
//!
//! A block that was allocated with `MOVABLE` has an owner who can use another one instead, unless it is pinned: by the
//! program itself, or by a mapping of its frames at another address.

use crate::subject::Moved;
use kmem::{Order, PAGE_SIZE, Pfn, PhysMem};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The owners of a machine's movable blocks.
///
/// ```text
/// W1  pins[f] == pins of the block that starts at f by the program + mappings of f by vmap, those that leave included
/// ```
#[derive(Default)]
pub struct Owners {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Orders of the movable blocks, by first frame.
    blocks: BTreeMap<u32, Order>,
    /// Pins of each frame that has any.
    pins: BTreeMap<u32, u32>,
    /// Pages of each mapping by `vmap`, by address.
    mappings: BTreeMap<u64, Vec<u32>>,
    /// Pages of mappings whose free waits for somebody who may wait himself, by address. They show their frames until then.
    leaving: Vec<(u64, Vec<u32>)>,
    /// What moved since the last look, with frames for addresses.
    moved: Vec<Moved>,
}

impl Owners {
    pub(super) fn reset(&self) {
        *self.inner.borrow_mut() = Inner::default();
    }

    /// Notes a block that may be moved.
    pub fn add(&self, first: Pfn, order: Order) {
        self.inner.borrow_mut().blocks.insert(first.as_u32(), order);
    }

    /// Forgets the block that a frame is in, and the program's pins of it.
    pub fn remove(&self, frame: Pfn) {
        let mut inner = self.inner.borrow_mut();
        let frame = frame.as_u32();
        let before = inner.blocks.range(..=frame).next_back();
        let around = before.filter(|&(&first, order)| u64::from(frame - first) < order.pages());
        let first = around.map_or(frame, |(&first, _)| first);
        inner.blocks.remove(&first);
        inner.pins.remove(&first);
    }

    /// Notes that a block, if it is one that may be moved, has become single pages. Its pins stay with the first.
    pub fn split(&self, first: Pfn) {
        let mut inner = self.inner.borrow_mut();
        if let Some(order) = inner.blocks.remove(&first.as_u32()) {
            let frames = first.as_u32()..first.as_u32() + order.pages() as u32;
            inner.blocks.extend(frames.map(|frame| (frame, Order::ZERO)));
        }
    }

    /// Pins a frame once more.
    pub fn pin(&self, frame: Pfn) {
        *self.inner.borrow_mut().pins.entry(frame.as_u32()).or_default() += 1;
    }

    /// Takes one pin of a frame back.
    pub fn unpin(&self, frame: Pfn) {
        self.inner.borrow_mut().unpin(frame.as_u32());
    }

    /// Notes that frames are mapped at an address: nothing follows them if they move.
    pub fn map(&self, addr: u64, frames: &[Pfn]) {
        frames.iter().for_each(|&frame| self.pin(frame));
        self.inner.borrow_mut().mappings.insert(addr, frames.iter().map(|frame| frame.as_u32()).collect());
    }

    /// Notes that the mapping at an address, if there is one, is gone; returns the frames that it showed.
    pub fn unmap(&self, addr: u64) -> Vec<u32> {
        let mut inner = self.inner.borrow_mut();
        let frames = inner.mappings.remove(&addr).unwrap_or_default();
        frames.iter().for_each(|&frame| inner.unpin(frame));
        frames
    }

    /// Notes that the mapping at an address, if there is one, goes as soon as somebody frees it who may wait.
    pub fn leave(&self, addr: u64) {
        let mut inner = self.inner.borrow_mut();
        let frames = inner.mappings.remove(&addr);
        inner.leaving.extend(frames.map(|frames| (addr, frames)));
    }

    /// Notes that those are gone of which the first frame is no longer shown at the address; returns the frames that they
    /// showed.
    pub fn left(&self, shown: impl Fn(u64) -> Option<Pfn>) -> Vec<u32> {
        let mut inner = self.inner.borrow_mut();
        if inner.leaving.is_empty() {
            return Vec::new();
        }
        let is_shown =
            |(addr, frames): &(u64, Vec<u32>)| shown(*addr).is_some_and(|at| frames.first() == Some(&at.as_u32()));
        let (stay, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut inner.leaving).into_iter().partition(is_shown);
        inner.leaving = stay;
        let frames: Vec<u32> = gone.into_iter().flat_map(|(_, frames)| frames).collect();
        frames.iter().for_each(|&frame| inner.unpin(frame));
        frames
    }

    /// How many blocks have moved since the last look.
    pub(super) fn moves(&self) -> usize {
        self.inner.borrow().moved.len()
    }

    /// What moved since the last call, in order, with direct-map addresses.
    pub fn take_moved(&self, direct_map: u64) -> Vec<Moved> {
        let address = |frame: u64| direct_map + frame * PAGE_SIZE as u64;
        let moved = std::mem::take(&mut self.inner.borrow_mut().moved);
        moved.into_iter().map(|m| Moved { from: address(m.from), to: address(m.to), ..m }).collect()
    }

    /// Notes that a page of an area is behind another frame.
    pub(super) fn page_moved(&self, page: u64, from: Pfn, to: Pfn) {
        let (from, to) = (from.as_u32().into(), to.as_u32().into());
        self.inner.borrow_mut().moved.push(Moved { from, to, order: 0, page: Some(page) });
    }

    /// Moves a block, if there is such a block and none of its frames is pinned.
    pub(super) fn migrate(&self, memory: &PhysMem, from: Pfn, to: Pfn, order: Order) -> bool {
        let mut inner = self.inner.borrow_mut();
        let frames = from.as_u32()..from.as_u32().saturating_add(order.pages() as u32);
        if inner.blocks.get(&from.as_u32()) != Some(&order) || inner.pins.range(frames).next().is_some() {
            return false;
        }
        if !memory.copy(from.addr(), to.addr(), order.bytes()) {
            return false;
        }
        inner.blocks.remove(&from.as_u32());
        inner.blocks.insert(to.as_u32(), order);
        let (from, to) = (from.as_u32().into(), to.as_u32().into());
        inner.moved.push(Moved { from, to, order: order.get(), page: None });
        true
    }
}

impl Inner {
    fn unpin(&mut self, frame: u32) {
        if let Some(pins) = self.pins.get_mut(&frame) {
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(&frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_moves_with_its_contents_unless_a_frame_of_it_is_pinned() {
        let (memory, owners) = (PhysMem::heap(8, 0), Owners::default());
        let (from, to, order) = (Pfn::new(2), Pfn::new(4), Order::new(1).unwrap());
        assert!(!owners.migrate(&memory, from, to, order), "there is no such block");
        owners.add(from, order);
        assert!(memory.write_u64(Pfn::new(3).addr(), 7));
        owners.map(0x1000, &[Pfn::new(3)]);
        owners.pin(from);
        assert!(!owners.migrate(&memory, from, to, order));
        owners.unmap(0x1000);
        assert!(!owners.migrate(&memory, from, to, order));
        owners.unpin(from);
        assert!(!owners.migrate(&memory, from, to, Order::ZERO), "another order");
        assert!(owners.migrate(&memory, from, to, order));
        assert!(!owners.migrate(&memory, from, to, order), "it is elsewhere now");
        assert_eq!(memory.read_u64(Pfn::new(5).addr()), Some(7));
        let page = PAGE_SIZE as u64;
        assert_eq!(owners.take_moved(page), [Moved { from: 3 * page, to: 5 * page, order: 1, page: None }]);
        assert_eq!(owners.take_moved(page), []);
    }

    #[test]
    fn single_pages_move_one_by_one_after_a_split() {
        let (memory, owners) = (PhysMem::heap(8, 0), Owners::default());
        owners.add(Pfn::new(2), Order::new(1).unwrap());
        owners.pin(Pfn::new(2));
        owners.split(Pfn::new(2));
        assert!(owners.migrate(&memory, Pfn::new(3), Pfn::new(5), Order::ZERO));
        assert!(!owners.migrate(&memory, Pfn::new(2), Pfn::new(6), Order::ZERO), "the pin is on the first page");
        owners.remove(Pfn::new(2));
        owners.add(Pfn::new(2), Order::ZERO);
        assert!(owners.migrate(&memory, Pfn::new(2), Pfn::new(6), Order::ZERO), "a new block is not pinned");
    }

    #[test]
    fn a_block_is_forgotten_by_any_of_its_frames() {
        let (memory, owners) = (PhysMem::heap(8, 0), Owners::default());
        owners.add(Pfn::new(2), Order::new(1).unwrap());
        owners.add(Pfn::new(4), Order::ZERO);
        owners.remove(Pfn::new(5));
        owners.remove(Pfn::new(3));
        assert!(!owners.migrate(&memory, Pfn::new(2), Pfn::new(6), Order::new(1).unwrap()));
        assert!(owners.migrate(&memory, Pfn::new(4), Pfn::new(6), Order::ZERO), "the next frame is another's");
    }
}
