//! Full sheaves that a CPU keeps for itself before it gives any to the barn, on machines whose geometry says so.
//!
//! Linux has none: there a CPU keeps two sheaves of a cache, and what is more goes to the barn of its memory node, where all
//! CPUs meet, and mixes their objects. A CPU whose user takes and gives back more at a time than two sheaves hold meets them
//! less often with a pocket, and gets objects back that it had before.
//!
//! ```text
//! P1  every buffer in a pocket is full
//! P2  a pocket has at most geometry.pocket buffers;  each knows how many come after it
//! ```
//!
//! A pocket takes a buffer only while more than half of all are free: spare sheaves and barns go before.

use super::SlabLayer;
use super::sheaf::CpuSheaves;
use crate::buddy::PageAllocator;
use crate::platform::{Event, Platform};

impl SlabLayer {
    /// Moves the full main sheaf's objects into the pocket; `false` if there is no room, and on most machines.
    pub(super) fn put_in_pocket<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let (most, pocket) = (pages.base.geometry.pocket, &mut sheaves.spare.pocket);
        if most == 0 || self.pool.depth(pocket) >= most {
            return false;
        }
        let Some(buffer) = self.pool.take_if_plenty() else { return false };
        self.pool.with(&buffer, |sheaf| sheaves.main.move_to(sheaf));
        self.pool.chain(pocket, buffer);
        pages.base.event(Event::PocketPut);
        true
    }

    /// Moves the objects of the newest sheaf in the pocket into the empty main one; `false` if there is none.
    pub(super) fn take_from_pocket<P: Platform>(&self, pages: &PageAllocator<P>, sheaves: &mut CpuSheaves) -> bool {
        let Some(buffer) = self.pool.unchain(&mut sheaves.spare.pocket) else { return false };
        self.pool.with(&buffer, |sheaf| sheaf.move_to(&mut sheaves.main));
        self.pool.put(buffer);
        pages.base.event(Event::PocketGet);
        true
    }
}
