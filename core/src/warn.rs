//! Warnings: what Linux would write to its log, as values for the platform's hook.
//!
//! A request that is odd but served, one that fails, and memory that is found damaged each give one warning, through
//! [`Platform::warn`](crate::Platform::warn). Where Linux warns only the first time, so does this allocator, counted from
//! when it was made; what `NOWARN` silences in Linux, it silences here.

use crate::addr::{Pfn, VirtAddr};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::platform::Event;
use crate::sync::{AtomicU32, Ordering::Relaxed};
use core::fmt;

/// Which call removed flags that it cannot honour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FlagsRemovedBy {
    /// The slab allocator: `DMA32` and `HIGHMEM`.
    Slab,
    /// `alloc_pages_exact`: `COMP` and `HIGHMEM`.
    Exact,
    /// `vmalloc`: whatever has no meaning for an area.
    Vmalloc,
}

/// Why a page is bad: nobody may have it any more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BadReason {
    /// It is still shown by this many mappings.
    Mapped(u32),
    /// The free lists say that it is free, its descriptor that it has this many references.
    Referenced(u32),
}

/// When a bad page was noticed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Found {
    /// When its owner freed it.
    Freeing,
    /// When it was to be handed out.
    Allocating,
}

/// What happened to the bytes of a poisoned page while nobody owned it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PoisonDamage {
    /// One bit differs: the memory itself may be at fault.
    BitFlip {
        /// The byte's place in the page.
        offset: u16,
        /// The bit's number in that byte.
        bit: u8,
    },
    /// More than a bit differs: somebody wrote to a freed page.
    Corruption {
        /// The first byte that differs.
        first: u16,
        /// The last byte that differs.
        last: u16,
    },
}

/// Something that Linux would report in its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A block above the largest order was asked for. Once; not with `NOWARN`.
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A block of more than two pages must not fail. Once.
    NofailOrder {
        /// The order asked for.
        order: Order,
    },
    /// A request that must not fail may not wait either. Once.
    NofailCannotWait,
    /// Flags that have no meaning for this call were ignored. Once for each call.
    FlagsRemoved {
        /// The call.
        by: FlagsRemovedBy,
        /// The flags.
        flags: GfpFlags,
    },
    /// No block could be had. Not with `NOWARN`.
    AllocFailed {
        /// The order of the block that was missing.
        order: Order,
        /// The flags of the request.
        gfp: GfpFlags,
    },
    /// An area could not be made. Not with `NOWARN`.
    VmallocFailed {
        /// Bytes asked for.
        bytes: usize,
    },
    /// An area of no bytes was asked for. Once.
    VmallocZero,
    /// `vrealloc` was asked about an address at which no area starts.
    VreallocAddress {
        /// The address.
        addr: VirtAddr,
    },
    /// `vrealloc` was asked for an alignment that the area does not have.
    VreallocAlign {
        /// The area's address.
        addr: VirtAddr,
        /// The alignment in bytes.
        align: usize,
    },
    /// More than `INT_MAX` bytes were asked of `kvmalloc`. Once; not with `NOWARN`.
    KvmallocTooLarge {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A mapping was asked for whose pages' permissions are to be reset; it was refused. Once.
    VmapResetsPerms,
    /// A mapping was asked for without a guard page; it has one. Once.
    VmapWithoutGuard,
    /// A mapping of no pages was asked for; it was refused. Once.
    VmMapRamZero,
    /// What `vm_unmap_ram` was to unmap is not a mapping of its own. Once.
    VmUnmapRamOfNothing {
        /// The address.
        addr: VirtAddr,
    },
    /// An address that `vfree_atomic` could only note is not the start of an area.
    VfreeOfNothing {
        /// The address.
        addr: VirtAddr,
    },
    /// A block of pages with something wrong was found and taken out of circulation.
    BadPage {
        /// Its first frame.
        first: Pfn,
        /// Its order.
        order: Order,
        /// The frame at fault.
        frame: Pfn,
        /// What is wrong with it.
        reason: BadReason,
        /// When it was noticed.
        found: Found,
    },
    /// A free page was written to.
    PoisonDamaged {
        /// The page.
        frame: Pfn,
        /// What is wrong with its bytes.
        damage: PoisonDamage,
    },
}

impl Warning {
    /// What a run counts it as.
    pub(crate) const fn event(&self) -> Event {
        match self {
            Self::TooLarge { .. } => Event::WarnTooLarge,
            Self::NofailOrder { .. } => Event::WarnNofailOrder,
            Self::NofailCannotWait => Event::WarnNofailCannotWait,
            Self::FlagsRemoved { by: FlagsRemovedBy::Slab, .. } => Event::WarnFlagsSlab,
            Self::FlagsRemoved { by: FlagsRemovedBy::Exact, .. } => Event::WarnFlagsExact,
            Self::FlagsRemoved { by: FlagsRemovedBy::Vmalloc, .. } => Event::WarnFlagsVmalloc,
            Self::AllocFailed { .. } => Event::WarnAllocFailed,
            Self::VmallocFailed { .. } => Event::WarnVmallocFailed,
            Self::VmallocZero => Event::WarnVmallocZero,
            Self::VreallocAddress { .. } => Event::WarnVreallocAddress,
            Self::VreallocAlign { .. } => Event::WarnVreallocAlign,
            Self::KvmallocTooLarge { .. } => Event::WarnKvmallocTooLarge,
            Self::VmapResetsPerms => Event::WarnVmapResetsPerms,
            Self::VmapWithoutGuard => Event::WarnVmapWithoutGuard,
            Self::VmMapRamZero => Event::WarnVmMapRamZero,
            Self::VmUnmapRamOfNothing { .. } => Event::WarnVmUnmapRamOfNothing,
            Self::VfreeOfNothing { .. } => Event::WarnVfreeOfNothing,
            Self::BadPage { found: Found::Freeing, .. } => Event::WarnBadPageFreed,
            Self::BadPage { found: Found::Allocating, .. } => Event::WarnBadPageAllocated,
            Self::PoisonDamaged { damage: PoisonDamage::BitFlip { .. }, .. } => Event::WarnPoisonBitFlip,
            Self::PoisonDamaged { damage: PoisonDamage::Corruption { .. }, .. } => Event::WarnPoisonCorruption,
        }
    }

    /// The place in [`Warned`] of a warning that is given once only.
    const fn once(&self) -> Option<u32> {
        match self {
            Self::TooLarge { .. } => Some(0),
            Self::NofailOrder { .. } => Some(1),
            Self::NofailCannotWait => Some(2),
            Self::KvmallocTooLarge { .. } => Some(3),
            Self::FlagsRemoved { by, .. } => Some(4 + *by as u32),
            Self::VmallocZero => Some(7),
            Self::VmapResetsPerms => Some(8),
            Self::VmapWithoutGuard => Some(9),
            Self::VmMapRamZero => Some(10),
            Self::VmUnmapRamOfNothing { .. } => Some(11),
            _ => None,
        }
    }

    /// Tells whether `NOWARN` silences it.
    const fn is_silenced(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. }
                | Self::AllocFailed { .. }
                | Self::VmallocFailed { .. }
                | Self::KvmallocTooLarge { .. }
        )
    }
}

impl fmt::Display for PoisonDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BitFlip { offset, bit } => write!(f, "single bit error: bit {bit} of byte {offset:#x}"),
            Self::Corruption { first, last } => write!(f, "memory corruption: bytes {first:#x} to {last:#x}"),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLarge { bytes } => write!(f, "{bytes} bytes asked for: no block is that large; use vmalloc"),
            Self::NofailOrder { order } => write!(f, "a block of order {order} must not fail; only orders 0 and 1 can"),
            Self::NofailCannotWait => f.write_str("a request must not fail and may not wait; add DIRECT_RECLAIM"),
            Self::FlagsRemoved { by, flags } => write!(f, "{by:?} ignores {flags:?}; leave them out"),
            Self::AllocFailed { order, gfp } => write!(f, "page allocation failure: order {order}, {gfp:?}"),
            Self::VmallocFailed { bytes } => write!(f, "vmalloc: allocation failure of {bytes} bytes"),
            Self::VmallocZero => f.write_str("vmalloc of no bytes; check the size"),
            Self::VreallocAddress { addr } => write!(f, "vrealloc of {addr}, at which no area starts"),
            Self::VreallocAlign { addr, align } => write!(f, "vrealloc of {addr}, which is no multiple of {align}"),
            Self::KvmallocTooLarge { bytes } => write!(f, "kvmalloc of {bytes} bytes; check the size for overflow"),
            Self::VmapResetsPerms => f.write_str("vmap cannot reset permissions; leave FLUSH_RESET_PERMS out"),
            Self::VmapWithoutGuard => f.write_str("a mapping of vmap has a guard page; leave NO_GUARD out"),
            Self::VmMapRamZero => f.write_str("vm_map_ram of no pages"),
            Self::VmUnmapRamOfNothing { addr } => write!(f, "vm_unmap_ram of {addr}, which is no mapping of its own"),
            Self::VfreeOfNothing { addr } => write!(f, "vfree_atomic of {addr}, which is not the start of an area"),
            Self::BadPage { first, order, frame, reason, found } => {
                write!(f, "bad page: frame {frame} of the block at {first}, order {order}: {reason:?}, {found:?}")
            }
            Self::PoisonDamaged { frame, damage } => write!(f, "pagealloc: frame {frame}: {damage}"),
        }
    }
}

/// Which of the warnings that are given once were given.
pub(crate) struct Warned(AtomicU32);

impl Warned {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Tells whether a warning is due, and notes that it was given.
    pub(crate) fn is_due(&self, warning: &Warning, gfp: GfpFlags) -> bool {
        if warning.is_silenced() && gfp.contains(GfpFlags::NOWARN) {
            return false;
        }
        let Some(place) = warning.once() else { return true };
        let bit = 1 << place;
        self.0.fetch_or(bit, Relaxed) & bit == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_LARGE: Warning = Warning::TooLarge { bytes: 1 << 30 };

    #[test]
    fn once_means_once_and_a_silenced_warning_does_not_count() {
        let warned = Warned::new();
        assert!(!warned.is_due(&TOO_LARGE, GfpFlags::NOWARN));
        assert!(warned.is_due(&TOO_LARGE, GfpFlags::KERNEL));
        assert!(!warned.is_due(&TOO_LARGE, GfpFlags::KERNEL));
        let removed = |by| Warning::FlagsRemoved { by, flags: GfpFlags::HIGHMEM };
        for by in [FlagsRemovedBy::Slab, FlagsRemovedBy::Exact, FlagsRemovedBy::Vmalloc] {
            assert!(warned.is_due(&removed(by), GfpFlags::NOWARN), "a bug of the caller is told in any case");
            assert!(!warned.is_due(&removed(by), GfpFlags::KERNEL));
        }
    }

    #[test]
    fn a_failure_is_told_each_time() {
        let warned = Warned::new();
        let failed = Warning::AllocFailed { order: Order::ZERO, gfp: GfpFlags::KERNEL };
        assert!(warned.is_due(&failed, GfpFlags::KERNEL) && warned.is_due(&failed, GfpFlags::KERNEL));
        assert!(!warned.is_due(&failed, GfpFlags::NOWARN));
    }
}
