//! Memory that is no live block any more and still belongs to somebody.

use super::block::{Block, Tier};
use super::frames::FrameMap;
use std::collections::{BTreeMap, BTreeSet};

/// Why a block that was given up must not be touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its cache was destroyed while it was live: it stays for ever.
    Leaked,
    /// It was freed by a caller who may not wait: it stays as it is until somebody who may frees it.
    Deferred,
    /// Readers may see it until a grace period has passed.
    Rcu {
        /// The first grace period that is late enough.
        stamp: u64,
        /// Where 16 bytes are the allocator's.
        head: Option<usize>,
    },
}

/// A block in limbo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ghost {
    /// What it was when it was live.
    pub block: Block,
    /// Why it is still there.
    pub why: Why,
}

/// All blocks in limbo, by address. They overlap neither each other nor a live block.
///
/// ```text
/// ghosts[a].why == Deferred       <=>  a in deferred
/// ghosts[a].why == Rcu { stamp }  <=>  (stamp, a) in readers
/// pages[tier] == sum of the pages of the ghosts of that tier that are not Leaked
/// ```
#[derive(Debug)]
pub(super) struct Limbo {
    ghosts: BTreeMap<u64, Ghost>,
    deferred: BTreeSet<u64>,
    readers: BTreeSet<(u64, u64)>,
    pages: [u64; Tier::COUNT],
    frames: FrameMap,
}

impl Limbo {
    pub(super) fn new(frames: FrameMap) -> Self {
        let (ghosts, deferred, readers) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { ghosts, deferred, readers, pages: [0; Tier::COUNT], frames }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ghosts.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Ghost> {
        self.ghosts.values()
    }

    pub(super) fn get(&self, addr: u64) -> Option<&Ghost> {
        self.ghosts.get(&addr)
    }

    /// The areas whose freeing was put off.
    pub(super) fn deferred(&self) -> impl Iterator<Item = &Ghost> {
        self.deferred.iter().filter_map(|addr| self.ghosts.get(addr))
    }

    /// The blocks that wait for a grace period up to this one.
    pub(super) fn awaited(&self, completed: u64) -> impl Iterator<Item = &Ghost> {
        self.readers.range(..=(completed, u64::MAX)).filter_map(|(_, addr)| self.ghosts.get(addr))
    }

    /// Pages that blocks of a tier still have, but for those that stay for ever.
    pub(super) fn waiting_pages(&self, tier: Tier) -> u64 {
        self.pages[tier as usize]
    }

    pub(super) fn add(&mut self, block: Block, why: Why) {
        self.frames.add(&block);
        match why {
            Why::Leaked => {}
            Why::Deferred => drop(self.deferred.insert(block.addr)),
            Why::Rcu { stamp, .. } => drop(self.readers.insert((stamp, block.addr))),
        }
        if why != Why::Leaked {
            self.pages[block.tier as usize] += block.pages();
        }
        self.ghosts.insert(block.addr, Ghost { block, why });
    }

    pub(super) fn remove(&mut self, addr: u64) -> Option<Ghost> {
        let ghost = self.ghosts.remove(&addr)?;
        self.frames.remove(&ghost.block);
        match ghost.why {
            Why::Leaked => {}
            Why::Deferred => drop(self.deferred.remove(&addr)),
            Why::Rcu { stamp, .. } => drop(self.readers.remove(&(stamp, addr))),
        }
        if ghost.why != Why::Leaked {
            self.pages[ghost.block.tier as usize] -= ghost.block.pages();
        }
        Some(ghost)
    }

    /// The area, and the number of its page, whose page is behind a frame, of a movable area whose freeing was put off.
    /// Those that readers may look at stay where they are.
    pub(super) fn movable_page(&self, frame: u32) -> Option<(&Block, usize)> {
        let areas = self.deferred().map(|ghost| &ghost.block).filter(|block| block.movable);
        let page = |block: &Block| block.frames.iter().position(|&other| other == frame);
        areas.filter(|block| block.tier == Tier::Vmalloc).find_map(|block| Some((block, page(block)?)))
    }

    /// Puts another frame behind a page of an area.
    pub(super) fn replace_frame(&mut self, addr: u64, index: usize, frame: u32) {
        let Some(Ghost { mut block, why }) = self.remove(addr) else { return };
        if let Some(slot) = block.frames.get_mut(index) {
            *slot = frame;
        }
        self.add(block, why);
    }

    /// A ghost that shares a byte with `[start, end)`.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> Option<&Ghost> {
        let (_, ghost) = self.ghosts.range(..end).next_back()?;
        (ghost.block.end() > start).then_some(ghost)
    }

    /// The ghost whose memory is the frame, wholly or in part, seen by somebody who wants the whole frame.
    pub(super) fn on_frame(&self, frame: u32) -> Option<&Ghost> {
        if !self.frames.used_directly(frame) && self.frames.vmalloc_owner(frame).is_none() {
            return None;
        }
        self.ghosts.values().find(|ghost| match ghost.block.tier {
            Tier::Vmalloc => ghost.block.frames.contains(&frame),
            _ => self.frames.direct_range(ghost.block.addr, ghost.block.usable).contains(&frame),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::block;

    #[test]
    fn a_ghost_is_found_by_address_and_by_frame() {
        let mut limbo = Limbo::new(FrameMap::new(8, 0x10000));
        limbo.add(block(Tier::Cache, 0x13040, 64), Why::Leaked);
        assert!(limbo.overlapping(0x13000, 0x13040).is_none());
        assert!(limbo.overlapping(0x13000, 0x13041).is_some());
        assert!(limbo.overlapping(0x1307f, 0x13100).is_some());
        assert!(limbo.on_frame(3).is_some() && limbo.on_frame(4).is_none());
    }
}
