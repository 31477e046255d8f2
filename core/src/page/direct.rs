//! The direct map: all of physical memory at one place of the address space.

use crate::addr::VirtAddr;
use crate::geometry::Geometry;

/// Where a physical frame is in the direct map, and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectMap {
    base: VirtAddr,
    bytes: u64,
}

impl DirectMap {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self { base: geometry.direct_map, bytes: u64::from(geometry.frames()) << crate::addr::PAGE_SHIFT }
    }

    /// The direct-map address of a physical address.
    #[inline(always)]
    pub(crate) fn virt(&self, phys: crate::addr::PhysAddr) -> VirtAddr {
        VirtAddr::new(self.base.as_u64().wrapping_add(phys.as_u64()))
    }

    /// What a direct-map address would be in physical memory. Addresses outside the map give numbers beyond memory,
    /// which no frame has: whoever looks the frame up needs no other check.
    #[inline(always)]
    pub(crate) fn phys_unchecked(&self, virt: VirtAddr) -> crate::addr::PhysAddr {
        crate::addr::PhysAddr::new(virt.as_u64().wrapping_sub(self.base.as_u64()))
    }

    /// The physical address of a direct-map address; `None` outside the map.
    #[inline(always)]
    pub(crate) fn phys(&self, virt: VirtAddr) -> Option<crate::addr::PhysAddr> {
        let offset = virt.as_u64().wrapping_sub(self.base.as_u64());
        (offset < self.bytes).then(|| crate::addr::PhysAddr::new(offset))
    }
}
