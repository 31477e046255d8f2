//! Calls about the vmalloc window besides plain `vmalloc`, `vmap` and their frees.

use kmem::{GfpFlags, PAGE_SIZE, VmFlags};
use std::fmt;

/// One such call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are the arguments of the call that the variant names")]
pub enum WindowCall {
    /// `vmalloc_node_range` with these properties, else anywhere.
    Vmalloc { size: usize, gfp: GfpFlags, flags: VmFlags },
    /// `vmap` of these frames with these properties.
    Vmap { pfns: Vec<u32>, flags: VmFlags, gfp: GfpFlags },
    /// `vm_map_ram` of these frames.
    VmMapRam { pfns: Vec<u32>, gfp: GfpFlags },
    /// `vm_unmap_ram` of so many pages.
    VmUnmapRam { addr: u64, count: usize },
    /// `vread`: answers with the bytes that were filled.
    Vread { addr: u64, len: usize },
    /// `remap_vmalloc_range`: answers with the frames.
    Remap { addr: u64, offset: u64, size: usize },
    /// `vfree_atomic`, or `kvfree_atomic`, of an area.
    VfreeAtomic { addr: u64, kv: bool },
    /// `drain_deferred_vfree`: answers with the number of areas.
    DrainDeferred,
    /// The program makes the pages of an area read-only, also by their addresses in the direct map.
    Protect { addr: u64 },
}

impl WindowCall {
    /// Bytes and flags of a request; `None` for calls that ask for nothing.
    pub fn request(&self) -> Option<(usize, GfpFlags)> {
        match self {
            Self::Vmalloc { size, gfp, .. } => Some((*size, *gfp)),
            Self::Vmap { pfns, gfp, .. } | Self::VmMapRam { pfns, gfp } => Some((pfns.len() * PAGE_SIZE, *gfp)),
            _ => None,
        }
    }

    /// The properties of the area that the call makes.
    pub fn flags(&self) -> VmFlags {
        match self {
            Self::Vmalloc { flags, .. } | Self::Vmap { flags, .. } => *flags,
            _ => VmFlags::empty(),
        }
    }
}

impl fmt::Display for WindowCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmalloc { size, gfp, flags } => write!(f, "vmalloc_node_range({size}, {gfp:?}, {flags:?})"),
            Self::Vmap { pfns, flags, gfp } => write!(f, "vmap({} frames, {flags:?}, {gfp:?})", pfns.len()),
            Self::VmMapRam { pfns, gfp } => write!(f, "vm_map_ram({} frames, {gfp:?})", pfns.len()),
            Self::VmUnmapRam { addr, count } => write!(f, "vm_unmap_ram({addr:#x}, {count})"),
            Self::Vread { addr, len } => write!(f, "vread({addr:#x}, {len} bytes)"),
            Self::Remap { addr, offset, size } => write!(f, "remap_vmalloc_range({addr:#x}, page {offset}, {size})"),
            Self::VfreeAtomic { addr, kv: false } => write!(f, "vfree_atomic({addr:#x})"),
            Self::VfreeAtomic { addr, kv: true } => write!(f, "kvfree_atomic({addr:#x})"),
            Self::DrainDeferred => f.write_str("drain_deferred_vfree()"),
            Self::Protect { addr } => write!(f, "set_memory_ro({addr:#x})"),
        }
    }
}
