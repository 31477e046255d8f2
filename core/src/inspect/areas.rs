//! What is in the vmalloc window.

use crate::addr::{PAGE_SIZE, PageCount, VirtAddr};
use crate::numa::{MAX_NODES, NodeId};
use crate::vmalloc::VmFlags;
use core::fmt;

/// What a range of the vmalloc window is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AreaKind {
    /// Owns its frames.
    Vmalloc,
    /// Maps frames of somebody else.
    Vmap,
    /// Has mappings of `vm_map_ram`.
    Ram,
    /// Freed, and waits for a grace period.
    Pending,
    /// Freed by a caller that may not wait; somebody else has to do it.
    Deferred,
    /// Freed, not yet flushed.
    Lazy,
    /// Freed and flushed; the addresses wait for the next area of this size.
    Pooled,
}

impl AreaKind {
    /// Tells whether somebody has the area.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Vmalloc | Self::Vmap | Self::Ram)
    }
}

/// One area of the vmalloc window; its text is a line of `/proc/vmallocinfo`, where Linux leaves pooled ranges out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmallocEntry {
    /// First address.
    pub start: VirtAddr,
    /// Pages of address space, without the guard page.
    pub pages: PageCount,
    /// Pages after them that are never mapped.
    pub guard: PageCount,
    /// Pages that are mapped now (or were, if lazy).
    pub mapped: PageCount,
    /// Bytes that the caller asked for.
    pub requested: usize,
    /// What it is.
    pub kind: AreaKind,
    /// Properties that it was asked for with.
    pub flags: VmFlags,
    /// Mapped pages of a live area whose frames are on each memory node.
    pub on_nodes: [u32; MAX_NODES],
}

impl VmallocEntry {
    /// The address after the guard page.
    pub const fn end(&self) -> VirtAddr {
        VirtAddr::new(self.start.as_u64().saturating_add(self.bytes() as u64))
    }

    /// Bytes of address space, guard included.
    const fn bytes(&self) -> usize {
        (self.pages.get().saturating_add(self.guard.get()) as usize).saturating_mul(PAGE_SIZE)
    }
}

impl fmt::Display for VmallocEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}-{:#018x} {:>7} ", self.start.as_u64(), self.end().as_u64(), self.bytes())?;
        let word = match self.kind {
            AreaKind::Lazy => return write!(f, "unpurged vm_area"),
            AreaKind::Pooled => return write!(f, "pooled vm_area"),
            AreaKind::Vmalloc => "vmalloc",
            AreaKind::Vmap => "vmap",
            AreaKind::Ram => "vm_map_ram",
            AreaKind::Pending => "vmalloc waits for readers",
            AreaKind::Deferred => "vmalloc waits to be freed",
        };
        write!(f, "pages={} {word}", self.mapped)?;
        if self.flags.contains(VmFlags::USERMAP) {
            write!(f, " user")?;
        }
        for (node, pages) in NodeId::all().zip(self.on_nodes).filter(|(_, pages)| *pages > 0) {
            write!(f, " N{node}={pages}")?;
        }
        Ok(())
    }
}
