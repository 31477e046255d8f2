//! Telling the platform what was found and what was done about it.

use super::Inspector;
use super::track::Use;
use crate::addr::{Pfn, PhysAddr};
use crate::bug::{DebugZone, SlabBug, SlabFinding};
use crate::platform::{Event, Platform};
use crate::slab::cache_id;

impl<P: Platform> Inspector<'_, P> {
    /// Tells of a finding about an object, or about the whole slab, and counts it.
    pub(super) fn tell(&self, head: Pfn, object: Option<PhysAddr>, finding: SlabFinding) {
        let base = &self.pages.base;
        self.findings.set(self.findings.get().saturating_add(1));
        base.event(event_of(&finding));
        base.platform.slab_bug(&SlabBug {
            cache: cache_id(self.id),
            name: self.name,
            slab: head,
            object: object.map(|object| base.virt(object)),
            finding,
            allocated: object.and_then(|object| self.track(object, Use::Allocated)),
            freed: object.and_then(|object| self.track(object, Use::Freed)),
        });
    }
}

/// The event by which a finding is counted.
const fn event_of(finding: &SlabFinding) -> Event {
    match finding {
        SlabFinding::Overwritten { zone, .. } => match zone {
            DebugZone::LeftRedZone | DebugZone::RightRedZone => Event::DebugRedZone,
            DebugZone::KmallocRedZone => Event::DebugKmallocRedZone,
            DebugZone::Poison | DebugZone::EndPoison => Event::DebugPoison,
            DebugZone::AlignmentPadding | DebugZone::ObjectPadding | DebugZone::SlabPadding => Event::DebugPadding,
        },
        SlabFinding::FreePointer => Event::DebugFreePointer,
        SlabFinding::FreeChain | SlabFinding::FreeCycle => Event::DebugFreeChain,
        SlabFinding::ObjectCount { .. } => Event::DebugObjectCount,
        SlabFinding::AlreadyFree => Event::DebugAlreadyFree,
        SlabFinding::Restored { .. } => Event::DebugRestored,
        SlabFinding::ListCleared | SlabFinding::CountAdjusted(_) => Event::DebugCountAdjusted,
        SlabFinding::SetAside => Event::SlabSetAside,
        SlabFinding::NotFreed => Event::DebugNotFreed,
    }
}
