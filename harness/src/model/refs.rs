//! References to page blocks, by the rules of section 3.2: who holds what after a reference was taken or dropped.

use super::{Block, Model, Tier};
use crate::oracle::Step;
use crate::subject::{Call, Reply, Subject};
use kmem::{Found, GfpFlags, PAGE_SIZE, PageDebug, Warning};

/// A part of a page block that goes back in one piece: first frame and order.
pub(super) type Piece = (u32, u8);

impl Block {
    /// Tells whether all references to the block are to the whole of it.
    pub fn is_unit(&self) -> bool {
        self.tier == Tier::Pages && (self.order == 0 || self.gfp.contains(GfpFlags::COMP))
    }
}

impl Model {
    /// The pieces that a free gives back, in no particular order: one block, single pages, or what is left of a block
    /// whose first page somebody else holds. Empty for calls that free no page block.
    pub fn freed_pieces(&self, call: &Call, reply: &Reply) -> Vec<Piece> {
        let (addr, last) = match (call, reply) {
            (
                Call::FreePages { addr, .. } | Call::FreePagesNolock { addr, .. } | Call::FreePagesExact { addr, .. },
                Reply::Done,
            ) => (*addr, false),
            (Call::PutPage { addr }, Reply::Size(0)) => (*addr, true),
            _ => return Vec::new(),
        };
        let Some(block) = self.page_block_around(addr) else { return Vec::new() };
        let frames = self.direct_frames(block.addr, block.usable);
        match (block.tier, block.refs) {
            _ if last => vec![(frames.start, block.order)],
            (Tier::PagesExact, refs) => frames.skip(usize::from(refs > 0)).map(|frame| (frame, 0)).collect(),
            (_, 0) => vec![(frames.start, block.order)],
            _ if block.is_unit() => Vec::new(),
            _ => (0..block.order).map(|order| (frames.start + (1 << order), order)).collect(),
        }
    }

    /// The page block that an address lies in.
    pub fn page_block_around(&self, addr: u64) -> Option<&Block> {
        let block = self.block(addr).or_else(|| self.overlapping(addr, addr + 1, None))?;
        matches!(block.tier, Tier::Pages | Tier::PagesExact).then_some(block)
    }

    /// How many live mappings show a frame.
    pub fn mappings(&self, frame: u32) -> usize {
        let areas = self.blocks(super::Tiers::SHOWING);
        areas.map(|area| area.frames.iter().filter(|&&shown| shown == frame).count()).sum()
    }

    /// The pieces freed by a call, or by frees that were put off and that it has done on its way, that are bad: a mapping
    /// shows a page of them.
    pub fn bad_pieces(&self, call: &Call, reply: &Reply) -> Vec<Piece> {
        if self.count(super::Tiers::SHOWING) == 0 {
            return Vec::new();
        }
        let mut pieces = self.freed_pieces(call, reply);
        pieces.retain(|&(first, order)| (first..first + (1 << order)).any(|frame| self.mappings(frame) > 0));
        pieces.extend(&self.notes.late_bad);
        pieces
    }

    /// Tells whether a check of pages is on.
    pub fn checks(&self, check: PageDebug) -> bool {
        self.geometry.page_debug.contains(check)
    }

    /// Notes what left circulation, and whose damage was found.
    pub(crate) fn follow_damage(&mut self, step: &Step, subject: &dyn Subject) {
        let freed = self.bad_pieces(&step.call, &step.reply);
        let told = subject.white_box().map(|inside| inside.warnings().to_vec()).unwrap_or_default();
        self.expected.bad += freed.iter().map(|&(_, order)| 1 << order).sum::<u64>();
        for warning in told {
            match warning {
                Warning::BadPage { order, found: Found::Allocating, .. } => self.expected.bad += order.pages(),
                Warning::PoisonDamaged { frame, .. } => self.damage.forget(frame.as_u32()),
                _ => {}
            }
        }
    }

    /// Follows a change of references; `false` if the call is something else and the block is gone as usual.
    pub(super) fn follow_references(&mut self, call: &Call, reply: &Reply) -> bool {
        match (call, reply) {
            (Call::GetPage { addr }, Reply::Size(_)) => self.change_refs(*addr, |refs| refs + 1),
            (Call::PutPage { addr }, Reply::Size(left)) if *left > 0 => {
                self.change_refs(*addr, |refs| refs.saturating_sub(1));
            }
            (Call::PutPage { addr }, Reply::Size(_)) => {
                if let Some(start) = self.page_block_around(*addr).map(|block| block.addr) {
                    self.remove(start);
                }
            }
            (
                Call::FreePages { addr, .. } | Call::FreePagesNolock { addr, .. } | Call::FreePagesExact { addr, .. },
                Reply::Done,
            ) => {
                return self.keep_referenced(*addr);
            }
            _ => return false,
        }
        true
    }

    fn change_refs(&mut self, addr: u64, change: impl Fn(u32) -> u32) {
        if let Some(start) = self.page_block_around(addr).map(|block| block.addr)
            && let Some(block) = self.live.get_mut(start)
        {
            block.refs = change(block.refs);
        }
    }

    /// A block with references is not gone when it is freed: whole if it is a unit, else as its first page.
    fn keep_referenced(&mut self, addr: u64) -> bool {
        if self.block(addr).is_none_or(|block| block.refs == 0) {
            return false;
        }
        let Some(mut block) = self.remove(addr) else { return false };
        block.refs -= 1;
        block.disowned = true;
        if !block.is_unit() {
            block.tier = Tier::Pages;
            block.order = 0;
            block.requested = PAGE_SIZE;
            block.usable = PAGE_SIZE;
            // What was written goes by the size that the block had.
            block.written = false;
        }
        self.insert(block);
        true
    }
}
