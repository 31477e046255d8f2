//! Blocks that move, split and are pinned.

use super::{Block, Model, Tier, Tiers};
use crate::subject::{Call, Moved, Reply};
use kmem::{GfpFlags, PAGE_SIZE};

/// The flags that a request without a lock stands for: zeroed, and no way into any reserve.
pub(super) const NOLOCK: GfpFlags =
    GfpFlags::ZERO.union(GfpFlags::NOWARN).union(GfpFlags::NOMEMALLOC).union(GfpFlags::COMP);

impl Model {
    /// Tells whether the owner of a block would let it be moved: there is one, he may be asked, and nobody has pinned it.
    pub fn is_movable(&self, block: &Block) -> bool {
        block.pins == 0 && !block.disowned && self.looks_movable(block)
    }

    /// Tells whether a block looks movable to whoever has not asked its owner, nor whether it still has one: it was allocated as
    /// movable, and its frames are mapped nowhere else.
    pub fn looks_movable(&self, block: &Block) -> bool {
        let frames = self.direct_frames(block.addr, block.usable);
        let shows = |area: &Block| area.frames.iter().any(|frame| frames.contains(frame));
        block.tier == Tier::Pages
            && block.gfp.contains(GfpFlags::MOVABLE)
            && block.refs == 0
            && block.held == 0
            && !self.blocks(Tiers::SHOWING).any(shows)
    }

    /// The area, and the number of its page, whose page is behind a frame and may go to another one: of a movable area, live
    /// or put off by `vfree_atomic`, and not pinned.
    pub fn movable_page(&self, frame: u32) -> Option<(&Block, usize)> {
        if self.pinned_frames.contains(&frame) {
            return None;
        }
        let Some(owner) = self.vmalloc_owner(frame) else { return self.limbo.movable_page(frame) };
        let block = self.blocks(Tiers::VMALLOC).find(|block| block.handle == owner && block.movable)?;
        let index = block.frames.iter().position(|&other| other == frame)?;
        Some((block, index))
    }

    /// A frame behind a page of the block that the program has pinned.
    pub fn pinned_frame(&self, block: &Block) -> Option<u32> {
        let pinned = |frame: &&u32| block.tier == Tier::Vmalloc && self.pinned_frames.contains(frame);
        block.frames.iter().find(pinned).copied().filter(|_| !self.pinned_frames.is_empty())
    }

    /// The program pins a page of an area, and so the frame behind it, or takes a pin back.
    pub(super) fn pin_frame(&mut self, call: &Call, reply: &Reply) {
        match (call, reply) {
            (Call::PinArea { .. }, Reply::Frame(Some(frame))) => self.pinned_frames.push(*frame),
            (Call::UnpinArea { frame }, Reply::Done) => {
                if let Some(at) = self.pinned_frames.iter().position(|pinned| pinned == frame) {
                    self.pinned_frames.swap_remove(at);
                }
            }
            _ => {}
        }
    }

    /// Follows a page of an area, if it is one that may move, to another frame.
    fn replace_frame(&mut self, moved: &Moved) {
        let frame = |addr| self.direct_frames(addr, PAGE_SIZE).start;
        let (from, to) = (frame(moved.from), frame(moved.to));
        let Some((addr, index)) = self.movable_page(from).map(|(block, index)| (block.addr, index)) else { return };
        let Some(mut block) = self.remove(addr) else { return self.limbo.replace_frame(addr, index, to) };
        block.frames[index] = to;
        self.insert(block);
    }

    /// Follows a block to its new address, or a page to its new frame. Handle, contents and all else stay.
    pub fn relocate(&mut self, moved: &Moved) {
        if moved.page.is_some() {
            return self.replace_frame(moved);
        }
        let let_go = self.block(moved.from).is_some_and(|block| self.evictable.contains(&block.handle));
        let Some(block) = self.remove(moved.from) else { return };
        if let_go {
            self.evictable.insert(block.handle);
        }
        self.insert(Block { addr: moved.to, ..block });
    }

    /// A block became single pages: blocks of their own from then on, the pins with the first.
    pub(super) fn split(&mut self, addr: u64, order: u8) {
        let Some(old) = self.remove(addr) else { return };
        for page in (0..1 << order).map(|n| addr + n * PAGE_SIZE as u64) {
            let (pins, refs) = if page == addr { (old.pins, old.refs) } else { (0, 0) };
            let block = self.new_block(Tier::Pages, page, PAGE_SIZE, PAGE_SIZE, old.gfp);
            self.insert(Block { pins, refs, disowned: old.disowned, zero_chain: false, ..block });
        }
    }

    pub(super) fn pin(&mut self, addr: u64, pins: i32) {
        if let Some(block) = self.live.get_mut(addr) {
            block.pins = block.pins.saturating_add_signed(pins);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, step};
    use crate::subject::{Call, Reply};

    #[test]
    fn a_moved_block_is_the_same_block_elsewhere() {
        let subject = FakeSubject::new(64);
        let mut model = subject.model();
        let gfp = GfpFlags::HIGHUSER_MOVABLE;
        let (from, to) = (subject.direct(4), subject.direct(8));
        let alloc = step(Call::AllocPages { order: 2, gfp }, Reply::Block { addr: from, usable: 4 * PAGE_SIZE });
        model.update(&alloc, &subject);
        let before = model.block(from).unwrap().clone();
        assert!(model.is_movable(&before));
        model.update(&step(Call::Pin { addr: from }, Reply::Done), &subject);
        assert!(!model.is_movable(model.block(from).unwrap()));
        model.update(&step(Call::Unpin { addr: from }, Reply::Done), &subject);
        model.relocate(&Moved { from, to, order: 2, page: None });
        assert_eq!(model.block(to), Some(&Block { addr: to, ..before }));
        assert!(model.block(from).is_none() && model.used_directly(8) && !model.used_directly(4));
        model.update(&step(Call::SplitPage { addr: to, order: 2 }, Reply::Done), &subject);
        assert_eq!((model.count(Tiers::PAGES), model.expected_use().pages), (4, 4));
    }
}
