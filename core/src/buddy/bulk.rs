//! Many single pages at once, from one zone that has plenty of them.
//!
//! Whoever asks for a bulk can do with fewer pages, so nothing is strained for it. The low watermark is looked at once, for
//! all pages that are missing, and only zones of the nearest node count. Where none has so many the bulk is cut off: the
//! caller gets a single page, the ordinary way. Source of the contract: `alloc_pages_bulk`, Linux 7.2.

use super::PageAllocator;
use super::watermark::{AllocFlags, Watermark};
use super::zone::{LockedZone, Zone};
use super::zonelist::{NoFragment, Pass, Request};
use crate::addr::Pfn;
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::hardening::PageDebug;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};
use core::panic::Location;

impl<P: Platform> PageAllocator<P> {
    /// Fills the empty slots with single pages, from the front, and stops at the first that cannot be filled; returns how
    /// many were filled. None is if the bulk is cut off, or if only one slot is empty.
    ///
    /// The fault point is asked for each page: each is an opportunity of its own.
    #[track_caller]
    pub(crate) fn alloc_pages_bulk(&self, gfp: GfpFlags, slots: &mut [Option<Pfn>]) -> usize {
        let missing = slots.iter().filter(|slot| slot.is_none()).count();
        if missing < 2 {
            return 0;
        }
        let Some((zone, request)) = self.bulk_source(gfp, missing as u64) else {
            self.base.event(Event::BulkCutOff);
            return 0;
        };
        let rights = AllocFlags::polite(request.route.migrate());
        let pass = Pass { mark: Watermark::Ignored, rights, nofragment: NoFragment::No };
        let mut filled = 0;
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = self.take_for_bulk(zone, &request, pass, Location::caller());
            if slot.is_none() {
                break;
            }
            filled += 1;
        }
        self.base.event(Event::BulkServed);
        filled
    }

    /// The zone that a bulk comes from: the first of the nearest node that has so many pages above its low watermark. Pages
    /// whose owners are noted, and those that somebody is charged for, are taken one by one.
    fn bulk_source(&self, gfp: GfpFlags, missing: u64) -> Option<(&Zone, Request)> {
        if gfp.contains(GfpFlags::ACCOUNT) || self.base.geometry.page_debug.contains(PageDebug::OWNER) {
            return None;
        }
        let request = self.request(Order::ZERO, gfp, self.base.node_here()).ok()?;
        let near = self.zones_of(&request).next()?.node;
        let mut zones = self.zones_of(&request).take_while(|zone| zone.node == near);
        let zone = zones.find(|zone| self.locked(zone, |locked| locked.has_for_bulk(&request, missing)))?;
        Some((zone, request))
    }

    fn take_for_bulk(
        &self,
        zone: &Zone,
        request: &Request,
        pass: Pass,
        location: &'static Location<'static>,
    ) -> Option<Pfn> {
        if self.base.fault(FaultSite::new(FaultPoint::Page, request.gfp)) {
            return None;
        }
        self.prepared(request, FrameKind::Pages, location, |request| {
            self.alloc_from_zone(zone, request, pass, FrameKind::Pages)
        })
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Tells whether so many single pages leave the low watermark standing, whatever the request's rights are.
    fn has_for_bulk(&self, request: &Request, pages: u64) -> bool {
        let floor = self.zone.marks.low + self.zone.boost() + pages;
        self.spare_above(floor, request, AllocFlags::polite(request.route.migrate())).is_some()
    }
}
