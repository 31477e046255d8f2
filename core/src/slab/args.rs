//! What a user says when a cache is created.

use crate::addr::PhysAddr;
use crate::raw::PhysMem;
use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// How a cache's objects are laid out, where its slabs come from, and what is checked.
    ///
    /// | group | flags |
    /// |---|---|
    /// | layout and placement | `HWCACHE_ALIGN`, `CACHE_DMA`, `CACHE_DMA32`, `RECLAIM_ACCOUNT`, `ACCOUNT` |
    /// | life of the slabs | `TYPESAFE_BY_RCU` |
    /// | sharing | `NO_MERGE`, `NOLEAKTRACE`, `FAILSLAB` |
    /// | debugging | [`SlabFlags::DEBUG`] |
    ///
    /// Source: `include/linux/slab.h` of Linux 7.2; the bits are our own.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SlabFlags: u32 {
        /// Objects do not straddle more cache lines than needed.
        const HWCACHE_ALIGN = 1 << 0;
        /// Slabs from the DMA zone.
        const CACHE_DMA = 1 << 1;
        /// Slabs from the DMA32 zone or below.
        const CACHE_DMA32 = 1 << 2;
        /// The objects can be given back by a shrinker: slabs go to reclaimable pageblocks.
        const RECLAIM_ACCOUNT = 1 << 3;
        /// Never shares slabs with a similar cache.
        const NO_MERGE = 1 << 4;
        /// The objects are charged to whoever asked for them; only caches that agree on it share slabs.
        const ACCOUNT = 1 << 5;
        /// The frames of a slab wait for a grace period before they are used for anything else. An object may find a
        /// new owner at once, so a reader that reaches a freed object still finds memory of the same type.
        const TYPESAFE_BY_RCU = 1 << 6;
        /// The cache serves whoever tracks leaks: no sheaves, no merging.
        const NOLEAKTRACE = 1 << 7;
        /// A fault plan that looks at caches may fail this one; no merging.
        const FAILSLAB = 1 << 8;
        /// In Linux a failed creation panics. Here nothing panics: the error is the same with and without the flag.
        const PANIC = 1 << 9;
        /// The cache behaves as one of `kmalloc` does when debugged: it knows the requested size of each object.
        const KMALLOC = 1 << 10;
        /// Each allocation and free checks the slab and the object.
        const CONSISTENCY_CHECKS = 1 << 11;
        /// Guard bytes on both sides of each object.
        const RED_ZONE = 1 << 12;
        /// A pattern in free objects and in padding.
        const POISON = 1 << 13;
        /// Who allocated and who freed each object last.
        const STORE_USER = 1 << 14;
        /// Each allocation and free is reported.
        const TRACE = 1 << 15;

        /// Whatever takes the slow path of a debug cache.
        const DEBUG = Self::CONSISTENCY_CHECKS.bits() | Self::RED_ZONE.bits() | Self::POISON.bits()
            | Self::STORE_USER.bits() | Self::TRACE.bits();
        /// What forbids sharing slabs.
        const NEVER_MERGE = Self::DEBUG.bits() | Self::TYPESAFE_BY_RCU.bits() | Self::NOLEAKTRACE.bits()
            | Self::FAILSLAB.bits() | Self::NO_MERGE.bits();
        /// What two caches must agree on to share slabs.
        const MERGE_SAME = Self::RECLAIM_ACCOUNT.bits() | Self::CACHE_DMA.bits() | Self::CACHE_DMA32.bits()
            | Self::ACCOUNT.bits();
    }
}

impl SlabFlags {
    /// What [`Kmem::kmem_cache_create`](crate::Kmem::kmem_cache_create) accepts; it refuses the other flags.
    pub(super) const PERMITTED: Self = Self::HWCACHE_ALIGN
        .union(Self::MERGE_SAME)
        .union(Self::NO_MERGE)
        .union(Self::NOLEAKTRACE)
        .union(Self::FAILSLAB)
        .union(Self::TYPESAFE_BY_RCU)
        .union(Self::DEBUG)
        .union(Self::PANIC);
}

/// Builds one object. Called once for each object when its slab is made, never when an object is handed out or given
/// back; an object must be freed in the state in which the constructor left it.
pub type Ctor = fn(&mut CtorObject<'_>);

/// What [`Kmem::kmem_cache_create`](crate::Kmem::kmem_cache_create) needs to know.
#[derive(Clone, Copy, Default)]
pub struct CacheArgs {
    /// Bytes per object.
    pub size: usize,
    /// Alignment of every object, a power of two up to the page size; 0 and 1 leave it to the allocator.
    pub align: usize,
    /// Layout and placement.
    pub flags: SlabFlags,
    /// Builds the objects.
    pub ctor: Option<Ctor>,
    /// Where the bytes begin that may be copied to and from user space.
    pub useroffset: usize,
    /// How many bytes may be copied; 0 for none. A window that does not fit the object is ignored.
    pub usersize: usize,
    /// Where the free pointer lies in a free object. Only for caches whose objects keep their contents when they are
    /// free: with `TYPESAFE_BY_RCU` or a constructor.
    pub freeptr_offset: Option<usize>,
    /// Objects in a sheaf; 0 leaves it to the allocator, anything else forbids sharing slabs.
    pub sheaf_capacity: u16,
}

impl CacheArgs {
    /// Objects of `size` bytes, everything else as the allocator likes.
    pub const fn new(size: usize) -> Self {
        Self {
            size,
            align: 0,
            flags: SlabFlags::empty(),
            ctor: None,
            useroffset: 0,
            usersize: 0,
            freeptr_offset: None,
            sheaf_capacity: 0,
        }
    }
}

impl fmt::Debug for CacheArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheArgs")
            .field("size", &self.size)
            .field("align", &self.align)
            .field("flags", &self.flags)
            .field("ctor", &self.ctor.is_some())
            .field("useroffset", &self.useroffset)
            .field("usersize", &self.usersize)
            .field("freeptr_offset", &self.freeptr_offset)
            .field("sheaf_capacity", &self.sheaf_capacity)
            .finish()
    }
}

/// The bytes of an object that is being built.
pub struct CtorObject<'m> {
    mem: &'m PhysMem,
    addr: PhysAddr,
    len: usize,
}

impl<'m> CtorObject<'m> {
    pub(super) fn new(mem: &'m PhysMem, addr: PhysAddr, len: usize) -> Self {
        Self { mem, addr, len }
    }

    /// Size of the object in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether the object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets every byte to `value`.
    pub fn fill(&mut self, value: u8) {
        let filled = self.mem.fill(self.addr, self.len, value);
        debug_assert!(filled, "a slab lies outside memory");
    }

    /// Copies bytes to `offset`; `false`, and nothing is changed, if they would leave the object.
    #[must_use]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len);
        fits && self.addr.checked_add(offset as u64).is_some_and(|at| self.mem.write(at, bytes))
    }
}

impl fmt::Debug for CtorObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CtorObject").field("addr", &self.addr).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constructor_cannot_write_outside_its_object() {
        let mem = PhysMem::heap(1, 0);
        let mut object = CtorObject::new(&mem, PhysAddr::new(64), 32);
        object.fill(7);
        assert!(object.write(24, &[1; 8]));
        assert!(!object.write(25, &[1; 8]));
        assert!(!object.write(usize::MAX, &[1; 8]));
        let mut bytes = [9; 96];
        assert!(mem.read(PhysAddr::new(32), &mut bytes));
        assert_eq!(bytes[..32], [0; 32]);
        assert_eq!(bytes[32..56], [7; 24]);
        assert_eq!(bytes[64..], [0; 32]);
    }
}
