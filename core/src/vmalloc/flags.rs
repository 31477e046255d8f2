//! What kind of area is wanted, or is there.

use crate::addr::VirtAddr;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use bitflags::bitflags;

bitflags! {
    /// Properties of an area of the vmalloc window. Names and numbers are those of Linux 7.2 (`include/linux/vmalloc.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct VmFlags: u16 {
        /// The pages may be mapped into a user's address space, and start zeroed where the call promises that.
        const USERMAP = 0x8;
        /// No unmapped page follows the area.
        const NO_GUARD = 0x40;
        /// The user changes the permissions of the area's pages, which are to be reset in the direct map before others get
        /// the pages.
        const FLUSH_RESET_PERMS = 0x100;
        /// The area has one reference to each page, which `vfree` drops.
        const MAP_PUT_PAGES = 0x200;
        /// 2 MiB or more may be mapped by huge entries, 512 pages each, if the caller may block. Size and alignment grow to
        /// multiples of 2 MiB then; without the memory for it the area is made as if the flag were not there.
        const ALLOW_HUGE_VMAP = 0x400;
        /// The addresses are those of `vm_map_ram`: a mapping, or a block from which mappings are cut. Linux keeps that
        /// elsewhere; it cannot be asked for.
        const MAP_RAM = 0x4000;
        /// The area was asked for with [`GfpFlags::MOVABLE`], and neither for users nor with permissions to reset: its pages
        /// may go to other frames. Follows from that, whatever is asked for here; Linux has no such areas.
        const MOVABLE = 0x8000;
    }
}

impl VmFlags {
    /// Areas with one of these give no page back before they are freed: others may have it mapped, or changed its
    /// permissions.
    pub(super) const KEEPS_PAGES: Self = Self::USERMAP.union(Self::FLUSH_RESET_PERMS);
}

/// What [`Kmem::vmalloc_node_range`](crate::Kmem::vmalloc_node_range) is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmallocArgs {
    /// Bytes, rounded up to whole pages.
    pub size: usize,
    /// The address is a multiple of that many bytes, a power of two; a page at least, whatever it says.
    pub align: usize,
    /// Where the area may lie, guard included: from the first address up to, but without, the second; cut to the window.
    pub range: (VirtAddr, VirtAddr),
    /// How to get pages, page tables and the area's record.
    pub gfp: GfpFlags,
    /// Properties of the area.
    pub flags: VmFlags,
    /// Where the pages come from; any node if none is named.
    pub node: Option<NodeId>,
}

impl VmallocArgs {
    /// `size` bytes anywhere in the window, with a guard page.
    pub const fn new(size: usize, gfp: GfpFlags) -> Self {
        let anywhere = (VirtAddr::NULL, VirtAddr::new(u64::MAX));
        Self { size, align: 1, range: anywhere, gfp, flags: VmFlags::empty(), node: None }
    }
}
