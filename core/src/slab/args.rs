//! What a user says when a cache is created.

use crate::addr::PhysAddr;
use crate::raw::PhysMem;
use bitflags::bitflags;
use core::fmt;

bitflags! {
    /// How a cache's objects are laid out and where its slabs come from.
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
        /// Never shares slabs with a similar cache. No cache does here; the flag says that the caller relies on it.
        const NO_MERGE = 1 << 4;
    }
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
}

impl CacheArgs {
    /// Objects of `size` bytes, everything else as the allocator likes.
    pub const fn new(size: usize) -> Self {
        Self { size, align: 0, flags: SlabFlags::empty(), ctor: None }
    }
}

impl fmt::Debug for CacheArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheArgs")
            .field("size", &self.size)
            .field("align", &self.align)
            .field("flags", &self.flags)
            .field("ctor", &self.ctor.is_some())
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
