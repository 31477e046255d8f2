//! Free page reporting: large free blocks are lent to the host until they are used again.
//!
//! A block is reported once; allocating from it, splitting it or merging it makes it a new one. While the platform is
//! told about a block, it is off the lists, so that nobody can be given it. Where free pages are poisoned nothing is lent:
//! a host that drops the contents would look like somebody who writes to free pages. Source: `mm/page_reporting.c` and
//! `virtballoon_validate`, Linux 7.2.

use super::PageAllocator;
use super::migrate::MigrateType;
use super::zone::{FreeBlock, LockedZone, Place, Zone};
use crate::addr::Pfn;
use crate::hardening::PageDebug;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::{Event, Platform};

/// What a free block's first frame remembers of it.
const REPORTED: u32 = 1;

/// What the host said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Host {
    /// It took the block.
    Accepted,
    /// It wants no more, or there is none.
    Declined,
}

/// What became of one list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reported {
    pages: u64,
    host: Host,
}

impl<P: Platform> PageAllocator<P> {
    /// Tells the platform about every free block of at least the pageblock order that it was not told about before;
    /// returns how many pages these were. A zone keeps what its low watermark asks for, and isolated blocks, to itself.
    /// Nothing is lent where free pages are poisoned: the host drops contents, and that would look like a write.
    ///
    /// Once no more than `kept` pages are left in such blocks, the rest stays at hand.
    pub(crate) fn report_free_pages(&self, kept: u64) -> u64 {
        let mut reported = 0;
        let most = if kept == 0 { u64::MAX } else { self.unreported().saturating_sub(kept) };
        if self.base.geometry.page_debug.contains(PageDebug::POISON) || most == 0 {
            return reported;
        }
        for zone in self.zones.iter() {
            for order in self.blocks.order.up_to(self.base.geometry.max_order) {
                for migrate in MigrateType::ALL.into_iter().filter(|&migrate| migrate != MigrateType::Isolate) {
                    let list = self.report_list(zone, (order, migrate), most - reported);
                    reported += list.pages;
                    if list.host == Host::Declined || reported >= most {
                        return reported;
                    }
                }
            }
        }
        reported
    }

    /// Pages in free blocks of which the platform was not told yet.
    fn unreported(&self) -> u64 {
        let orders = || self.blocks.order.up_to(self.base.geometry.max_order);
        self.zones
            .iter()
            .map(|zone| self.locked(zone, |locked| orders().map(|order| locked.unreported(order)).sum::<u64>()))
            .sum()
    }

    /// Reports the blocks of one list, until they have so many pages.
    fn report_list(&self, zone: &Zone, (order, migrate): (Order, MigrateType), most: u64) -> Reported {
        let mut reported = Reported { pages: 0, host: Host::Accepted };
        while reported.pages < most
            && let Some(first) = self.locked(zone, |locked| locked.take_unreported(order, migrate))
        {
            let accepted = self.base.platform.report_free(first, order);
            self.locked(zone, |locked| locked.put_reported(FreeBlock { first, order }, accepted));
            if !accepted {
                reported.host = Host::Declined;
                break;
            }
            self.base.event(Event::FreeReported);
            reported.pages += order.pages();
        }
        reported
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Pages in the blocks of this order that were not reported yet.
    fn unreported(&self, order: Order) -> u64 {
        let frames = &self.base.frames;
        let lists = MigrateType::ALL.into_iter().filter(|&migrate| migrate != MigrateType::Isolate);
        let blocks = lists.flat_map(|migrate| self.areas.lists[order.index()][migrate.index()].iter(frames));
        blocks.filter(|&first| frames.private(first) != REPORTED).count() as u64 * order.pages()
    }

    /// Takes a block off its list that was not reported yet.
    fn take_unreported(&mut self, order: Order, migrate: MigrateType) -> Option<Pfn> {
        let frames = &self.base.frames;
        if self.zone.free_pages() <= self.zone.marks.low + order.pages() {
            return None;
        }
        let list = &self.areas.lists[order.index()][migrate.index()];
        let first = list.iter(frames).find(|&first| frames.private(first) != REPORTED)?;
        let block = self.remove(first);
        // No neighbour that is freed meanwhile may merge with it.
        frames.set_block_kind(block.first, block.order, FrameKind::Pcp);
        Some(block.first)
    }

    /// Puts a block back; it stays reported unless it merges now.
    fn put_reported(&mut self, block: FreeBlock, reported: bool) {
        let FreeBlock { first, order } = block;
        self.free_to(first, order, Place::Tail);
        let frames = &self.base.frames;
        if reported && frames.kind(first) == FrameKind::Free && frames.order(first) == order {
            frames.set_private(first, REPORTED);
        }
    }
}
