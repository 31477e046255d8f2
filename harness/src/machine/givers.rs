//! Who gives memory back when the allocator asks: the answer to [`kmem::Platform::reclaim`].
//!
//! A page block can be one that its owner would give up, like a page of a file: it is freed when a request runs short. And
//! a machine can claim for a while to have given something back although it has not.

use super::SimPlatform;
use kmem::{Kmem, Order, Pfn};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

/// What the machine can give back; nothing at first.
#[derive(Default)]
pub struct Givers {
    allocator: RefCell<Weak<Kmem<SimPlatform>>>,
    evictable: RefCell<VecDeque<(Pfn, Order)>>,
    evicted: RefCell<Vec<Evicted>>,
    claims: Cell<u32>,
}

/// A block that was given up during a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evicted {
    /// Its first frame.
    pub first: Pfn,
    /// How many blocks had moved before in the same call.
    pub after_moves: usize,
}

impl Givers {
    /// Names the allocator that blocks are given back to.
    pub fn set_allocator(&self, allocator: Weak<Kmem<SimPlatform>>) {
        *self.allocator.borrow_mut() = allocator;
    }

    /// The allocator, once it is there.
    pub(super) fn allocator(&self) -> Option<Rc<Kmem<SimPlatform>>> {
        self.allocator.borrow().upgrade()
    }

    /// Tells whether the allocator has a frame behind an area, be it live or waiting for the flush.
    pub(super) fn is_behind_area(&self, frame: Pfn) -> bool {
        let allocator = self.allocator();
        allocator.is_some_and(|allocator| allocator.frame_kind(frame) == kmem::FrameKind::Vmalloc)
    }

    /// Says which blocks may be given up during the next call, the first one first.
    pub fn set_evictable(&self, blocks: impl Iterator<Item = (Pfn, Order)>) {
        let mut evictable = self.evictable.borrow_mut();
        evictable.clear();
        evictable.extend(blocks);
    }

    /// Lets the machine claim progress so often without making any.
    pub fn set_claims(&self, claims: u32) {
        self.claims.set(claims);
    }

    /// What was given up since the last look, in order.
    pub fn take_evicted(&self) -> Vec<Evicted> {
        self.evicted.take()
    }

    /// Follows a block that moved.
    pub(super) fn moved(&self, from: Pfn, to: Pfn) {
        self.evictable.borrow_mut().iter_mut().filter(|(first, _)| *first == from).for_each(|(first, _)| *first = to);
    }

    /// Gives the next block back, or claims to have given something; returns the pages.
    pub(super) fn give(&self, moves: usize) -> (u64, Option<Pfn>) {
        let next = self.evictable.borrow_mut().pop_front();
        if let (Some((first, order)), Some(allocator)) = (next, self.allocator.borrow().upgrade())
            && allocator.free_pages(first, order).is_ok()
        {
            self.evicted.borrow_mut().push(Evicted { first, after_moves: moves });
            return (order.pages(), Some(first));
        }
        let claims = self.claims.get();
        self.claims.set(claims.saturating_sub(1));
        (u64::from(claims.min(1)), None)
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}
