//! Memory that is no live block any more and still belongs to somebody.

use super::block::{Block, Tier};
use super::frames::FrameMap;
use std::collections::BTreeMap;

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
#[derive(Debug)]
pub(super) struct Limbo {
    ghosts: BTreeMap<u64, Ghost>,
    frames: FrameMap,
}

impl Limbo {
    pub(super) fn new(frames: FrameMap) -> Self {
        Self { ghosts: BTreeMap::new(), frames }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ghosts.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Ghost> {
        self.ghosts.values()
    }

    pub(super) fn add(&mut self, block: Block, why: Why) {
        self.frames.add(&block);
        self.ghosts.insert(block.addr, Ghost { block, why });
    }

    pub(super) fn remove(&mut self, addr: u64) {
        if let Some(ghost) = self.ghosts.remove(&addr) {
            self.frames.remove(&ghost.block);
        }
    }

    /// The area, and the number of its page, whose page is behind a frame, of a movable area that waits.
    pub(super) fn movable_page(&self, frame: u32) -> Option<(&Block, usize)> {
        let areas = self.ghosts.values().map(|ghost| &ghost.block).filter(|block| block.tier == Tier::Vmalloc);
        let page = |block: &Block| block.frames.iter().position(|&other| other == frame);
        areas.filter(|block| block.movable).find_map(|block| Some((block, page(block)?)))
    }

    /// Puts another frame behind a page of an area.
    pub(super) fn replace_frame(&mut self, addr: u64, index: usize, frame: u32) {
        let Some(Ghost { mut block, why }) = self.ghosts.remove(&addr) else { return };
        self.frames.remove(&block);
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
