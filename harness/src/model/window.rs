//! What an area holds besides addresses: references to pages, by section 4.6.

use super::{Block, Model, Tier, Why};
use crate::subject::{Call, Reply, WindowCall};
use kmem::{PAGE_SIZE, VmFlags};

impl Block {
    /// References that the program can still drop: its own, not those that areas have.
    pub fn own_references(&self) -> u32 {
        (1 + self.refs).saturating_sub(self.held)
    }

    /// Tells whether the area drops references to its pages when it is freed.
    pub fn puts_pages(&self) -> bool {
        self.tier == Tier::Vmap && self.vm_flags.contains(VmFlags::MAP_PUT_PAGES)
    }
}

impl Model {
    /// Address of the page block that is the frame.
    pub fn address_of(&self, frame: u32) -> u64 {
        self.geometry.direct_map.as_u64() + u64::from(frame) * PAGE_SIZE as u64
    }

    /// A fresh area has one reference to each of its pages from now on, if it was asked for so.
    pub(super) fn take_over(&mut self, area: &Block) {
        if area.puts_pages() {
            area.frames.iter().for_each(|&frame| self.change_held(frame, 1));
        }
    }

    fn change_held(&mut self, frame: u32, by: i32) {
        let addr = self.address_of(frame);
        if let Some(block) = self.live.get_mut(addr) {
            block.held = block.held.saturating_add_signed(by);
        }
    }

    /// An area is gone that had references: `vfree` drops them, and a page whose last one that was is nobody's. Other calls
    /// leave them to the caller.
    pub(super) fn let_go_of_pages(&mut self, call: &Call, area: &Block) {
        if matches!(call, Call::Vunmap { .. }) && area.puts_pages() {
            area.frames.iter().for_each(|&frame| self.change_held(frame, -1));
        } else {
            self.drop_pages(area);
        }
    }

    /// Drops the references that an area has. A page that loses its last one while another mapping shows it is bad.
    pub(super) fn drop_pages(&mut self, area: &Block) {
        for &frame in area.frames.iter().filter(|_| area.puts_pages()) {
            self.change_held(frame, -1);
            let addr = self.address_of(frame);
            if let Some(block) = self.live.get_mut(addr).filter(|block| block.refs > 0) {
                block.refs -= 1;
            } else if self.remove(addr).is_some() && self.mappings(frame) > 0 {
                self.notes.late_bad.push((frame, 0));
            }
        }
    }

    /// Follows a free that waits for somebody who may wait himself.
    pub(super) fn follow_window(&mut self, call: &WindowCall, reply: &Reply) {
        if let (&WindowCall::VfreeAtomic { addr, .. }, Reply::Done) = (call, reply)
            && let Some(area) = self.remove(addr)
        {
            self.limbo.add(area, Why::Deferred);
        }
    }

    /// Follows the frees of this kind that a call has done on its way: what they gave back it may have handed out again.
    pub fn settle_deferred(&mut self, subject: &dyn crate::subject::Subject) {
        self.notes.late_bad.clear();
        let waiting: Vec<Block> = self.limbo.deferred().map(|ghost| ghost.block.clone()).collect();
        if !waiting.is_empty() {
            self.settle(subject);
        }
        let drained: Vec<Block> = waiting.into_iter().filter(|area| self.deferred(area.addr).is_none()).collect();
        self.notes.drained = drained.iter().map(|area| (area.addr, area.end())).collect();
        self.notes.no_longer_shown = drained.into_iter().flat_map(|area| area.frames).collect();
    }

    /// The area at an address that waits for such a free.
    pub fn deferred(&self, addr: u64) -> Option<&Block> {
        self.limbo.get(addr).filter(|ghost| ghost.why == Why::Deferred).map(|ghost| &ghost.block)
    }

    /// An area that waits for such a free, if there is one.
    pub fn any_deferred(&self) -> Option<&Block> {
        self.limbo.deferred().next().map(|ghost| &ghost.block)
    }
}
