//! The vmalloc allocator's public calls.

use super::Kmem;
use crate::addr::{Pfn, VirtAddr};
use crate::error::{AllocError, FreeError, RemapError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::platform::Platform;
use crate::vmalloc::{AreaMapping, VmFlags, VmallocArgs};
use crate::warn::Warning;

impl<P: Platform> Kmem<P> {
    /// Allocates at least `size` bytes, contiguous only in virtual addresses, followed by a page that always faults.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`]; [`AllocError::TooLarge`] above the size of memory; exhaustion of pages or addresses.
    pub fn vmalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.vmalloc_node_range(&VmallocArgs::new(size, gfp))
    }

    /// [`Self::vmalloc`] with a say about alignment, range, node and kind (Linux: `__vmalloc_node_range`).
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`], and [`AllocError::BadAlign`] for an alignment that is no power of two.
    pub fn vmalloc_node_range(&self, args: &VmallocArgs) -> Result<VirtAddr, AllocError> {
        let answer = self.with_reclaim_on(args.gfp, args.node, |gfp| {
            self.vmalloc.vmalloc(&self.pages, &self.slab, &VmallocArgs { gfp, ..*args })
        });
        match answer {
            Err(AllocError::TooLarge { requested, .. }) => {
                self.pages.base.warn(args.gfp, Warning::VmallocFailed { bytes: requested });
            }
            Err(AllocError::ZeroSize) => self.pages.base.warn(args.gfp, Warning::VmallocZero),
            _ => {}
        }
        answer
    }

    /// [`Self::vmalloc`] with pages from the memory of `node`; if that has none to give, from the nearest that has, unless the
    /// flags say [`THISNODE`](GfpFlags::THISNODE). Page tables and the area's record come from wherever there is room.
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`].
    pub fn vmalloc_node(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        self.vmalloc_node_range(&VmallocArgs { node, ..VmallocArgs::new(size, gfp) })
    }

    /// [`Self::vmalloc_node`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`].
    pub fn vzalloc_node(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        self.vmalloc_node(size, gfp | GfpFlags::ZERO, node)
    }

    /// How an area of [`Self::vmalloc`] or [`Self::vmap`] is backed: in how many runs of frames, by how many page-table
    /// entries.
    ///
    /// # Errors
    ///
    /// Which misuse freeing it would have been.
    pub fn vmalloc_mapping(&self, addr: VirtAddr) -> Result<AreaMapping, FreeError> {
        self.vmalloc.mapping_of(&self.pages, addr)
    }

    /// [`Self::vmalloc`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`].
    pub fn vzalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.vmalloc(size, gfp | GfpFlags::ZERO)
    }

    /// [`Self::vzalloc`] of memory whose pages may be mapped into a user's address space.
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`].
    pub fn vmalloc_user(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        let args = VmallocArgs::new(size, gfp | GfpFlags::ZERO);
        self.vmalloc_node_range(&VmallocArgs { flags: VmFlags::USERMAP, ..args })
    }

    /// Shows `map` the frames of a part of an area, one after the other, to be mapped into a user's address space:
    /// `size` bytes, rounded up to pages, from page `offset` of the area on. The area must not be freed meanwhile.
    ///
    /// # Errors
    ///
    /// [`RemapError`]: not an area's start, not asked for with [`VmFlags::USERMAP`], or not wholly within the area. No
    /// frame is shown then.
    pub fn remap_vmalloc_range(
        &self,
        addr: VirtAddr,
        offset: u64,
        size: usize,
        map: impl FnMut(Pfn),
    ) -> Result<(), RemapError> {
        self.vmalloc.show_frames(&self.pages, addr, offset, size, map)
    }

    /// Reads from any place of the vmalloc window, for a debugger or a memory dump: gaps, guard pages and pages that were
    /// given back read as zeros.
    ///
    /// Returns how many bytes of `into` were filled: all, up to the end of the address space; or none, and they are
    /// untouched, if no area has a page there.
    pub fn vread(&self, addr: VirtAddr, into: &mut [u8]) -> usize {
        self.vmalloc.vread(&self.pages, addr, into)
    }

    /// Frees an area of [`Self::vmalloc`], or unmaps one of [`Self::vmap`]. Null is ignored.
    ///
    /// Addresses and frames find a new owner only after every TLB was flushed, which is done for many areas together.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    pub fn vfree(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.vmalloc.vfree(&self.pages, &self.slab, addr)
    }

    /// [`Self::vfree`] for a caller that may wait for nothing, such as one that has interrupted this allocator: always put off
    /// until [`Self::drain_deferred_vfree`] or [`Self::reclaim`]. Until then the area stays mapped, and nobody else gets its
    /// addresses or frames.
    ///
    /// # Errors
    ///
    /// As [`Self::vfree`]; also a second free is detected at once. [`FreeError::WouldBlock`] if the area's record is in use
    /// and no more such frees can be noted. Nothing is changed then.
    pub fn vfree_atomic(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.vmalloc.vfree_atomic(&self.pages, addr)
    }

    /// Frees what [`Self::vfree_atomic`] has put off on any CPU; returns how many areas. A machine has a worker call it, who
    /// may wait.
    pub fn drain_deferred_vfree(&self) -> u64 {
        self.vmalloc.drain_deferred(&self.pages, &self.slab)
    }

    /// Maps frames that the caller owns, in this order, at neighbouring addresses.
    ///
    /// With [`VmFlags::MAP_PUT_PAGES`] the caller hands over one reference to each page, which must be a block of its own:
    /// [`Self::vfree`] drops them, and frees each page whose last one that was. After [`Self::vunmap`] they are the
    /// caller's again.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`] for no frames, [`AllocError::TooLarge`] for more than memory has,
    /// [`AllocError::BadAddress`] for a frame outside memory or without a reference of its own,
    /// [`AllocError::BadFlags`] for [`VmFlags::FLUSH_RESET_PERMS`]; exhaustion otherwise.
    pub fn vmap(&self, frames: &[Pfn], flags: VmFlags, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.with_reclaim(gfp, |gfp| self.vmalloc.vmap(&self.pages, &self.slab, frames, flags, gfp))
    }

    /// Removes a mapping of [`Self::vmap`]. Null is ignored.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    pub fn vunmap(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.vmalloc.vunmap(&self.pages, &self.slab, addr)
    }

    /// Returns the frame behind an address of the vmalloc window; `None` if nothing is mapped there.
    pub fn vmalloc_to_page(&self, addr: VirtAddr) -> Option<Pfn> {
        self.vmalloc.vmalloc_to_page(&self.pages, addr)
    }

    /// Changes the size of an area of [`Self::vmalloc`].
    ///
    /// A null address is a plain [`Self::vmalloc`]; size 0 frees and gives [`VirtAddr::NULL`]. A smaller size gives
    /// whole tail pages back if the flags allow input, output and file systems; a size that still fits the mapped pages
    /// stays in place. A larger one stays too if the addresses behind the area are free; else the same pages appear at
    /// other addresses, and the old ones are dead. Page contents are not copied.
    ///
    /// # Errors
    ///
    /// As [`Self::vmalloc`], and [`AllocError::BadAddress`] for anything but the start of a live area; the old area is
    /// untouched then.
    pub fn vrealloc(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.vrealloc_node_align(addr, size, 1, gfp, None)
    }

    /// [`Self::vrealloc`] with an alignment in bytes, which the area must have already, and a node: with `THISNODE`, an area
    /// whose first page is on another node is copied to a new one.
    ///
    /// # Errors
    ///
    /// As [`Self::vrealloc`], and [`AllocError::BadAlign`] for an alignment that the area does not have; the old area is
    /// untouched then.
    pub fn vrealloc_node_align(
        &self,
        addr: VirtAddr,
        size: usize,
        align: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        let answer = self.with_reclaim_on(gfp, node, |gfp| {
            let args = VmallocArgs { align, node, ..VmallocArgs::new(size, gfp) };
            self.vmalloc.vrealloc(&self.pages, &self.slab, addr, &args)
        });
        match answer {
            Err(AllocError::BadAddress(_)) => self.pages.base.warn(gfp, Warning::VreallocAddress { addr }),
            Err(AllocError::BadAlign(_)) if addr != VirtAddr::NULL => {
                self.pages.base.warn(gfp, Warning::VreallocAlign { addr, align });
            }
            _ => {}
        }
        answer
    }

    /// Tells the frame behind an address of a [`Self::vmalloc`] area, like [`Self::vmalloc_to_page`], and keeps the page
    /// there: until [`Self::unpin_vmalloc_page`] it does not go to another frame, also if the area is movable. Pins are
    /// counted. They do not keep the area alive: take them back before it is freed or resized.
    pub fn pin_vmalloc_page(&self, addr: VirtAddr) -> Option<Pfn> {
        self.vmalloc.pin_page(&self.pages, addr)
    }

    /// Takes one pin of [`Self::pin_vmalloc_page`] back.
    ///
    /// # Errors
    ///
    /// The frame is behind no area, or it has no pin; nothing is changed then.
    pub fn unpin_vmalloc_page(&self, frame: Pfn) -> Result<(), FreeError> {
        self.vmalloc.unpin_page(&self.pages, frame)
    }

    /// Answers a processor that found no translation for an address of the vmalloc window: is there one by now?
    ///
    /// While a page of a [`GfpFlags::MOVABLE`] area moves, an access to it faults for as long as its bytes take to be
    /// copied. The platform's fault handler asks this, which waits for that, and has the access repeated if the answer is
    /// `true`; `false` means that nothing is mapped there.
    pub fn vmalloc_fault(&self, addr: VirtAddr) -> bool {
        self.vmalloc.vmalloc_to_page(&self.pages, addr).is_some()
    }

    /// Maps frames that the caller owns side by side, for a short time: cheaper than [`Self::vmap`] where mappings come and go.
    /// Up to 64 pages are cut from a block of the CPU; no guard page follows.
    ///
    /// # Errors
    ///
    /// As [`Self::vmap`]; [`AllocError::ZeroSize`] after a warning.
    pub fn vm_map_ram(&self, frames: &[Pfn], gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.with_reclaim(gfp, |gfp| self.vmalloc.vm_map_ram(&self.pages, &self.slab, frames, gfp))
    }

    /// Removes a mapping of [`Self::vm_map_ram`] of so many pages.
    ///
    /// # Errors
    ///
    /// [`FreeError::WrongCount`] for a mapping of another number, [`FreeError::Interior`] for an address inside of one,
    /// [`FreeError::DoubleFree`] for one that was unmapped and not yet flushed, [`FreeError::Foreign`] for any other; nothing is
    /// changed then.
    pub fn vm_unmap_ram(&self, addr: VirtAddr, count: usize) -> Result<(), FreeError> {
        self.vmalloc.vm_unmap_ram(&self.pages, &self.slab, addr, count)
    }

    /// Flushes all lazily freed ranges, and all that [`Self::vm_unmap_ram`] unmapped; addresses and frames of what was freed
    /// as a whole can be used again.
    pub fn vm_unmap_aliases(&self) {
        self.vmalloc.purge(&self.pages, &self.slab, false);
    }

    /// Tells whether an address lies in the vmalloc window; a pure range test.
    pub fn is_vmalloc_addr(&self, addr: VirtAddr) -> bool {
        self.geometry().is_vmalloc_addr(addr)
    }
}
