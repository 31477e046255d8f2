//! The allocator as its users see it: one object that owns and wires the layers, under Linux's names.
//!
//! Every layer call is one attempt that leaves nothing behind when it fails. The retry policy is here, in one place:
//! see [`Kmem::reclaim`] for what is given back before a caller that may wait is refused.

mod contig;
mod kvmalloc;
#[cfg(test)]
mod lost_writes;
mod memory;
mod pages;
mod rcu;
mod reclaim;
mod report;
mod retry;
mod slab;
mod vmalloc;

use crate::base::Base;
use crate::buddy::{PageAllocator, PageParts};
use crate::geometry::{Geometry, GeometryError};
use crate::page::FrameTable;
use crate::platform::Platform;
use crate::raw::{Carver, MetaRegion};
use crate::slab::{SlabLayer, SlabParts};
use crate::vmalloc::{Vmalloc, VmallocParts};

/// A whole kernel memory allocator on a platform `P`.
///
/// All calls take `&self`. Without more, an allocator stays on the thread that made it; a platform that implements
/// [`SmpPlatform`](crate::SmpPlatform) promises what sharing it needs.
///
/// # Examples
///
/// ```
/// use kmem::{CpuId, Geometry, GfpFlags, Kmem, MetaRegion, PhysMem, Platform, Vpn};
///
/// struct OneCpu(PhysMem);
///
/// impl Platform for OneCpu {
///     fn memory(&self) -> &PhysMem {
///         &self.0
///     }
///     fn cpu(&self) -> CpuId {
///         CpuId::new(0)
///     }
///     fn flush_tlb(&self, _start: Vpn, _pages: u64) {}
/// }
///
/// let geometry = Geometry::flat(1024);
/// let region = MetaRegion::heap(Kmem::<OneCpu>::metadata_bytes(&geometry)?);
/// let kmem = Kmem::new(OneCpu(PhysMem::heap(1024, 0)), &geometry, region)?;
///
/// let small = kmem.kmalloc(100, GfpFlags::KERNEL)?;
/// assert_eq!(kmem.ksize(small)?, 128);
/// let large = kmem.kvmalloc(1 << 20, GfpFlags::KERNEL)?;
/// kmem.kvfree(large)?;
/// kmem.kfree(small)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Kmem<P: Platform> {
    pub(crate) slab: SlabLayer,
    pub(crate) vmalloc: Vmalloc,
    pub(crate) pages: PageAllocator<P>,
    region: MetaRegion,
}

/// The slices of the metadata region, by layer.
struct Parts {
    frames: FrameTable,
    pages: PageParts,
    slab: SlabParts,
    vmalloc: VmallocParts,
}

impl Parts {
    fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        Self {
            frames: FrameTable::carve(geometry, carver),
            pages: PageParts::carve(geometry, carver),
            slab: SlabParts::carve(geometry, carver),
            vmalloc: VmallocParts::carve(geometry, carver),
        }
    }
}

impl<P: Platform> Kmem<P> {
    /// Returns how many bytes of metadata an allocator of this geometry needs.
    ///
    /// # Errors
    ///
    /// What is wrong with the geometry.
    pub fn metadata_bytes(geometry: &Geometry) -> Result<usize, GeometryError> {
        geometry.validate()?;
        let mut carver = Carver::measuring();
        let _measured = Parts::carve(geometry, &mut carver);
        Ok(carver.bytes())
    }

    /// Makes an allocator over all frames of the geometry's zones. The contents of memory and region do not matter.
    ///
    /// # Errors
    ///
    /// What is wrong with the geometry, the platform's memory or the region, or [`GeometryError::Boot`] if there is not
    /// even a frame for the top-level page table.
    pub fn new(platform: P, geometry: &Geometry, mut region: MetaRegion) -> Result<Self, GeometryError> {
        let needed = Self::metadata_bytes(geometry)?;
        if region.len() < needed {
            return Err(GeometryError::Metadata { needed, given: region.len() });
        }
        let (frames, given) = (u64::from(geometry.frames()), platform.memory().frames());
        if given < frames {
            return Err(GeometryError::Memory { needed: frames, given });
        }
        let mut carver = region.carver().ok_or(GeometryError::RegionInUse)?;
        let parts = Parts::carve(geometry, &mut carver);
        let pages = PageAllocator::new(Base::new(platform, geometry, parts.frames), parts.pages);
        let slab = SlabLayer::new(&pages, parts.slab);
        let vmalloc = Vmalloc::new(&pages, &slab, parts.vmalloc).map_err(|_| GeometryError::Boot)?;
        pages.drain_all_pages();
        Ok(Self { slab, vmalloc, pages, region })
    }

    /// Takes the allocator apart, to make another of the same parts. Blocks that were live are forgotten.
    pub fn into_parts(self) -> (P, MetaRegion) {
        let Self { pages, region, .. } = self;
        (pages.into_platform(), region)
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.pages.base.platform
    }

    /// The geometry that the allocator was made with.
    pub fn geometry(&self) -> &Geometry {
        &self.pages.base.geometry
    }
}

impl<P: Platform> core::fmt::Debug for Kmem<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Kmem").field("meminfo", &self.meminfo()).finish_non_exhaustive()
    }
}
