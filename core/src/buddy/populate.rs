//! Frames that come to a zone: at the start, and as many more as are asked for.

use super::migrate::MigrateType;
use super::zone::{FreeBlock, LockedZone, Place};
use crate::order::Order;
use crate::platform::Platform;
use crate::sync::Ordering::Relaxed;

impl<P: Platform> LockedZone<'_, P> {
    /// Marks the pageblocks that the geometry sets aside; before anything is free.
    pub(super) fn set_aside(&self) {
        for area in &self.base.geometry.cma {
            for pfn in self.zone.pfns().filter(|&pfn| area.contains(pfn) && self.blocks.order.is_aligned(pfn)) {
                self.blocks.set(self.zone.block_base, pfn, MigrateType::Cma);
            }
        }
    }

    /// Puts all frames of the zone on the free lists.
    pub(super) fn populate(&mut self) {
        self.populate_from(0);
    }

    /// Adds half as many frames as there are, in whole blocks of the largest order, or what is left; tells how many.
    pub(super) fn grow(&mut self) -> u64 {
        let (zone, block) = (self.zone, self.base.geometry.max_order.pages());
        let before = zone.frames();
        let after = (before + before / 2 + block).min(zone.most_frames);
        let after = if after == zone.most_frames { after } else { after - after % block };
        for offset in before..after {
            if let Some(pfn) = zone.start.checked_add(offset) {
                self.base.frames.set_zone(pfn, zone.index);
            }
        }
        zone.frames.store(after, Relaxed);
        self.populate_from(before);
        after - before
    }

    /// Puts the frames from an offset in the zone on on the free lists, in the largest aligned blocks, lowest addresses first
    /// in line.
    fn populate_from(&mut self, mut offset: u64) {
        let zone = self.zone;
        while let Some(first) = zone.start.checked_add(offset).filter(|_| offset < zone.frames()) {
            let inside = |order: &Order| order.is_aligned(first) && order.pages() <= zone.frames() - offset;
            let fits = |order: &Order| inside(order) && self.may_be_one(first, *order);
            let order = Order::ZERO.up_to(self.base.geometry.max_order).rev().find(fits).unwrap_or(Order::ZERO);
            self.base.frames.join_block(first, order);
            self.insert(FreeBlock { first, order }, self.block_type(first), Place::Tail);
            offset += order.pages();
        }
    }
}
