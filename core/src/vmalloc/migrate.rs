//! Pages of movable areas that go to other frames.
//!
//! An area that was asked for with `MOVABLE` promises its addresses and its contents, not its frames. The page layer asks
//! for one of them; the number of the page that it is behind is in the frame's descriptor. What stays: frames of other
//! areas, of areas that are being made, that move, that wait for a grace period or for the flush, and frames that are
//! pinned or that a mapping of `vmap` shows as well.

use super::Vmalloc;
use crate::addr::{Pfn, VirtAddr, Vpn};
use crate::buddy::{Mover, PageAllocator};
use crate::error::{BlockKind, FreeError};
use crate::page::FrameKind;
use crate::platform::Platform;

/// The answer of the vmalloc window to the page layer.
pub(crate) struct VmallocMover<'k, P> {
    pub(crate) pages: &'k PageAllocator<P>,
    pub(crate) window: &'k Vmalloc,
}

impl<P: Platform> Mover for VmallocMover<'_, P> {
    fn migrate(&self, from: Pfn, to: Pfn) -> bool {
        self.window.migrate_page(self.pages, from, to)
    }
}

impl Vmalloc {
    /// Counts one more pin of the frame behind a page of an area that owns it.
    pub(crate) fn pin_page<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Option<Pfn> {
        let base = &pages.base;
        // With the tables held: a page that moves now moves before or after, not in between.
        self.tables.hold(pages, |translate| {
            let frame = translate(addr.vpn()).filter(|_| base.geometry.is_vmalloc_addr(addr))?;
            let owned = base.frames.kind(frame) == FrameKind::Vmalloc;
            owned.then(|| base.frames.add_mapping(frame)).map(|()| frame)
        })
    }

    /// Counts one pin less.
    ///
    /// # Errors
    ///
    /// What the frame is, if it is behind no area, or that it has no pin.
    pub(crate) fn unpin_page<P: Platform>(&self, pages: &PageAllocator<P>, frame: Pfn) -> Result<(), FreeError> {
        let frames = &pages.base.frames;
        let addr = pages.base.virt(frame.addr());
        self.tables.hold(pages, |_| match frames.kind(frame) {
            FrameKind::Vmalloc if frames.mappings(frame) > 0 => {
                frames.remove_mapping(frame);
                Ok(())
            }
            FrameKind::Vmalloc => Err(FreeError::DoubleFree(addr)),
            kind => Err(FreeError::WrongKind { addr, expected: BlockKind::Vmalloc, found: kind.block_kind() }),
        })
    }

    /// Moves what a frame holds, and the page that it is behind.
    fn migrate_page<P: Platform>(&self, pages: &PageAllocator<P>, from: Pfn, to: Pfn) -> bool {
        let (first, end) = self.window;
        // The descriptor has the low half of the page's number; the window may have several such pages.
        let distance = pages.base.frames.private(from).wrapping_sub(first as u32);
        let candidates = (first + u64::from(distance)..end).step_by(1 << 32);
        candidates.map(Vpn::new).any(|page| self.tables.replace(pages, page, from, to))
    }
}
