//! Allocation flags.

use bitflags::bitflags;

bitflags! {
    /// How an allocation may behave: where it may look, whether it may wait, what it must return.
    ///
    /// The bits are Linux's modifiers, the constants below them its combinations; numbers are those of Linux 7.2
    /// (`include/linux/gfp_types.h`), so that a recorded value can be read by eye.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct GfpFlags: u32 {
        /// Pages from the DMA zone.
        const DMA = 1 << 0;
        /// Pages may come from high memory: with [`Self::MOVABLE`], the movable zone.
        const HIGHMEM = 1 << 1;
        /// Pages from the DMA32 zone or below.
        const DMA32 = 1 << 2;
        /// The pages may be moved: they go to movable pageblocks. Blocks of `alloc_pages` move by
        /// [`Platform::migrate`](crate::Platform::migrate). Areas of `vmalloc` keep their addresses, and single pages of
        /// them may get another frame whenever memory is compacted or a range of frames is wanted; meanwhile an access
        /// faults, and [`Kmem::vmalloc_fault`](crate::Kmem::vmalloc_fault) tells when to repeat it.
        const MOVABLE = 1 << 3;
        /// The pages can be given back by a shrinker: they go to reclaimable pageblocks.
        const RECLAIMABLE = 1 << 4;
        /// May use part of the reserve below the min watermark.
        const HIGH = 1 << 5;
        /// May start input or output.
        const IO = 1 << 6;
        /// May call into a file system.
        const FS = 1 << 7;
        /// The block is zeroed.
        const ZERO = 1 << 8;
        /// May wait for direct reclaim.
        const DIRECT_RECLAIM = 1 << 10;
        /// May wake the background reclaimer.
        const KSWAPD_RECLAIM = 1 << 11;
        /// The pages will be written soon.
        const WRITE = 1 << 12;
        /// A failure is not reported.
        const NOWARN = 1 << 13;
        /// Tries hard, may still fail.
        const RETRY_MAYFAIL = 1 << 14;
        /// Must not fail.
        const NOFAIL = 1 << 15;
        /// One light round of reclaim, then fails.
        const NORETRY = 1 << 16;
        /// Ignores the watermarks.
        const MEMALLOC = 1 << 17;
        /// Compound metadata.
        const COMP = 1 << 18;
        /// Never below the watermarks; stronger than [`Self::MEMALLOC`].
        const NOMEMALLOC = 1 << 19;
        /// Enforces cpuset limits; accepted, without effect here.
        const HARDWALL = 1 << 20;
        /// From the requested node and no other.
        const THISNODE = 1 << 21;
        /// Charged to a memory group; accepted, without effect here.
        const ACCOUNT = 1 << 22;

        /// Both reclaim bits.
        const RECLAIM = Self::DIRECT_RECLAIM.bits() | Self::KSWAPD_RECLAIM.bits();
        /// Cannot wait; may use the reserve.
        const ATOMIC = Self::HIGH.bits() | Self::KSWAPD_RECLAIM.bits();
        /// The usual flags of a caller that may sleep.
        const KERNEL = Self::RECLAIM.bits() | Self::IO.bits() | Self::FS.bits();
        /// Cannot wait and may not use the reserve.
        const NOWAIT = Self::KSWAPD_RECLAIM.bits() | Self::NOWARN.bits();
        /// May wait, starts no input or output.
        const NOIO = Self::RECLAIM.bits();
        /// May wait, calls no file system.
        const NOFS = Self::RECLAIM.bits() | Self::IO.bits();
        /// For a user process, directly reachable by the kernel.
        const USER = Self::KERNEL.bits() | Self::HARDWALL.bits();
        /// For a user process, anywhere.
        const HIGHUSER = Self::USER.bits() | Self::HIGHMEM.bits();
        /// For a user process, anywhere, movable.
        const HIGHUSER_MOVABLE = Self::HIGHUSER.bits() | Self::MOVABLE.bits();
    }
}

/// Flags that a slab cannot honour: they are removed and the request goes on, as Linux does after a warning.
pub(crate) const GFP_SLAB_BUG_MASK: GfpFlags = GfpFlags::DMA32.union(GfpFlags::HIGHMEM);

impl GfpFlags {
    /// Tells whether the caller may wait for reclaim.
    pub const fn may_block(self) -> bool {
        self.contains(Self::DIRECT_RECLAIM)
    }

    /// Tells whether the caller may take a lock that another might hold for long.
    pub const fn may_spin(self) -> bool {
        self.intersects(Self::RECLAIM)
    }

    /// Tells whether the block must be zeroed.
    pub const fn wants_zero(self) -> bool {
        self.contains(Self::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::GfpFlags;

    #[test]
    fn combinations_are_made_of_the_documented_modifiers() {
        assert_eq!(GfpFlags::KERNEL.bits(), 0xcc0);
        assert_eq!(GfpFlags::ATOMIC.bits(), 0x820);
        assert_eq!(GfpFlags::NOWAIT.bits(), 0x2800);
        assert!(GfpFlags::NOIO.may_block() && GfpFlags::NOFS.may_block());
        assert!(!GfpFlags::ATOMIC.may_block() && GfpFlags::ATOMIC.may_spin());
    }
}
