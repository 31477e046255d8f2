//! Areas that were freed and wait for a grace period: they stay mapped, and nobody can free them again.

use super::area::{Node, State};
use super::flags::VmFlags;
use super::{Vmalloc, misplaced, records};
use crate::addr::VirtAddr;
use crate::buddy::PageAllocator;
use crate::error::{BlockKind, FreeError};
use crate::platform::Platform;
use crate::slab::SlabLayer;

impl Vmalloc {
    /// Makes an area that `vmalloc` gave wait with a batch, 0 or 1.
    ///
    /// # Errors
    ///
    /// What is wrong with the address; nothing is changed then.
    pub(crate) fn put_off<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        batch: u8,
    ) -> Result<(), FreeError> {
        if let Some(error) = misplaced(&pages.base, addr, BlockKind::Vmalloc) {
            return Err(error);
        }
        let waiting = self.with_live(&pages.base, addr, |_, _, node| {
            let State::Vmalloc { requested } = node.state else {
                return Err(FreeError::WrongKind { addr, expected: BlockKind::Vmalloc, found: BlockKind::Vmap });
            };
            node.state = State::Pending { requested, batch };
            Ok(*node)
        })?;
        if waiting.flags.contains(VmFlags::MOVABLE) {
            // Readers have no reason to expect a fault.
            self.tables.set_movable(pages, waiting.mapped_range(), false);
        }
        Ok(())
    }

    /// Frees the areas of a batch.
    pub(crate) fn free_put_off<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, batch: u8) {
        let mut from = 0;
        while let Some((_, node)) = self.area_from(&pages.base, from) {
            from = node.end();
            let State::Pending { requested, batch: of_area } = node.state else { continue };
            if of_area == batch && self.revive(pages, node.start, requested) {
                let freed = self.vfree(pages, slab, node.addr());
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
        }
    }

    /// Makes a waiting area a live one again, for the free that it waited for.
    fn revive<P: Platform>(&self, pages: &PageAllocator<P>, start: u64, requested: usize) -> bool {
        let records = records(&pages.base);
        let of = self.nodes.of(start).lock();
        let Some(at) = self.nodes.live.find(&of, records, start) else { return false };
        records.store(at, &Node { state: State::Vmalloc { requested }, ..records.load(at) });
        true
    }
}
