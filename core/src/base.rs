//! What every layer stands on: the platform, the frame table, the memory window, the geometry.

use crate::addr::{PhysAddr, VirtAddr};
use crate::fault::FaultSite;
use crate::geometry::{Geometry, MAX_CPUS};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::page::{DirectMap, FrameTable};
use crate::platform::{CpuId, Event, Platform};
use crate::raw::PhysMem;
use crate::warn::{Warned, Warning};

pub(crate) struct Base<P> {
    pub(crate) platform: P,
    pub(crate) geometry: Geometry,
    pub(crate) frames: FrameTable,
    pub(crate) mem: PhysMem,
    pub(crate) direct: DirectMap,
    warned: Warned,
}

impl<P: Platform> Base<P> {
    pub(crate) fn new(platform: P, geometry: &Geometry, frames: FrameTable) -> Self {
        Self {
            mem: platform.memory().clone(),
            platform,
            geometry: geometry.clone(),
            frames,
            direct: DirectMap::new(geometry),
            warned: Warned::new(),
        }
    }

    /// The CPU that runs this call; one that the geometry has, whatever the platform names.
    #[inline(always)]
    pub(crate) fn cpu(&self) -> CpuId {
        // Cut as `PerCpu` cuts it.
        let cpu = self.platform.cpu().get() % MAX_CPUS;
        CpuId::new(if cpu < self.geometry.cpus { cpu } else { 0 })
    }

    /// The node of the CPU that runs this call.
    #[inline(always)]
    pub(crate) fn node_here(&self) -> NodeId {
        self.geometry.node_of_cpu(self.cpu())
    }

    #[inline(always)]
    pub(crate) fn fault(&self, site: FaultSite) -> bool {
        self.platform.fault(site)
    }

    #[inline(always)]
    pub(crate) fn event(&self, event: Event) {
        self.platform.event(event);
    }

    /// Gives a warning, unless the flags of the request silence it or it was given before and is given once only.
    #[cold]
    #[inline(never)]
    pub(crate) fn warn(&self, gfp: GfpFlags, warning: Warning) {
        if self.warned.is_due(&warning, gfp) {
            self.platform.event(warning.event());
            self.platform.warn(warning);
        }
    }

    /// The direct-map address of a physical address.
    #[inline(always)]
    pub(crate) fn virt(&self, phys: PhysAddr) -> VirtAddr {
        self.direct.virt(phys)
    }

    /// The physical address of a direct-map address; `None` outside the map.
    #[inline(always)]
    pub(crate) fn phys(&self, virt: VirtAddr) -> Option<PhysAddr> {
        self.direct.phys(virt)
    }
}
