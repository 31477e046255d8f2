//! The auditor: recounts everything from the lists and the frames' kinds. Call it while nobody allocates or frees.

use super::PageAllocator;
use super::migrate::{MigrateType, PCP_TYPES};
use super::pcp::{NR_PCP_LISTS, PcpLists, PerCpuPages, list_shape};
use super::usage::{OWNER_CLASSES, OwnerClass};
use super::zone::{LockedZone, Zone};
use crate::addr::Pfn;
use crate::error::{Invariant, Violation};
use crate::order::Order;
use crate::page::{FrameKind, FrameTable, PageList, TAIL};
use crate::platform::{CpuId, Platform};

type Check = Result<(), Violation>;

/// The block that the auditor was in last: its kind byte, and the frame after its last.
#[derive(Clone, Copy)]
struct Around {
    kind: u8,
    end: u32,
}

impl<P: Platform> PageAllocator<P> {
    /// Compares lists, ledgers, descriptors and kinds with each other.
    ///
    /// # Errors
    ///
    /// The first [`Violation`] found: one of I7, I8, I9, I10, I11, I21.
    pub(crate) fn check_invariants(&self) -> Check {
        for zone in self.zones.iter() {
            self.locked(zone, |locked| locked.check_free_areas())?;
            for cpu in 0..self.base.geometry.cpus {
                self.check_cpu(zone, CpuId::new(cpu))?;
            }
        }
        self.check_frames()
    }

    /// Checks a CPU's lists of a zone. If somebody else has them, the machine is not at rest and nothing can be said.
    fn check_cpu(&self, zone: &Zone, cpu: CpuId) -> Check {
        let Some(pcp) = self.pcp(cpu, usize::from(zone.index)) else { return Ok(()) };
        self.with_lists(pcp, cpu, |lists| self.check_lists(zone, pcp, lists)).unwrap_or(Ok(()))?;
        for migrate in MigrateType::ALL.into_iter().take(PCP_TYPES) {
            let Some(hot) = self.hot(cpu, usize::from(zone.index), migrate.index()) else { continue };
            let own = cpu == self.base.cpu();
            let checked = hot.with(&self.base.platform, own, |pages| self.check_hot(zone, migrate, pages.as_slice()));
            checked.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Checks one array of newest pages.
    fn check_hot(&self, zone: &Zone, migrate: MigrateType, pages: &[Pfn]) -> Check {
        check_distinct(pages)?;
        pages.iter().try_for_each(|&pfn| check_parked(&self.base.frames, zone, pfn, Order::ZERO, Some(migrate)))
    }

    fn check_lists(&self, zone: &Zone, pcp: &PerCpuPages, lists: &PcpLists) -> Check {
        let mut pages = 0;
        for index in 0..NR_PCP_LISTS {
            let (order, migrate) = list_shape(index, self.blocks.order);
            lists.lists[index].check_links(&self.base.frames, Invariant::I21CacheCounts)?;
            for first in lists.lists[index].iter(&self.base.frames) {
                check_parked(&self.base.frames, zone, first, order, migrate)?;
                pages += order.pages();
            }
        }
        let what = "pages on a CPU's lists of the zone against the CPU's ledger (I21.3)";
        Violation::check_eq(Invariant::I21CacheCounts, what, u64::from(zone.index), pages, pcp.pages())
    }

    /// Counts the frames of each owner, and checks that blocks with a tail are whole.
    fn check_frames(&self) -> Check {
        let mut kinds = [0; 1 << u8::BITS];
        for zone in self.zones.iter() {
            self.check_frames_of(zone, &mut kinds)?;
        }
        self.check_absent(self.managed())?;
        let mut counts = [0; OWNER_CLASSES];
        for (byte, frames) in (0..=u8::MAX).zip(kinds) {
            if let Some(class) = OwnerClass::of(FrameKind::from_byte(byte)) {
                counts[class as usize] += frames;
            }
        }
        for (class, (counted, noted)) in counts.into_iter().zip(self.owners()).enumerate() {
            let what = "frames of an owner, by the kind map, against the ledgers";
            Violation::check_eq(Invariant::I7Conservation, what, class as u64, counted, noted)?;
        }
        Ok(())
    }

    /// Adds the frames of a zone to the count of each kind byte: tails to that of their first frame.
    fn check_frames_of(&self, zone: &Zone, kinds: &mut [u64; 1 << u8::BITS]) -> Check {
        let mut around = Around { kind: FrameKind::Absent.to_byte(), end: zone.start.as_u32() };
        for (pfn, (kind, zone_number)) in zone.pfns().zip(self.base.frames.run(zone.start, zone.frames())) {
            if zone_number != zone.index {
                let what = "zone number in a frame's descriptor";
                let (expected, found) = (zone.index.into(), zone_number.into());
                return Err(violation(Invariant::I10InsideZone, what, pfn, expected, found));
            }
            around = self.check_frame(zone, around, pfn, kind)?;
            kinds[usize::from(around.kind)] += 1;
        }
        Ok(())
    }

    /// I10.2 to I10.4 for a frame behind those that are in or in front of the block `around`; returns its own.
    fn check_frame(&self, zone: &Zone, around: Around, pfn: Pfn, kind: u8) -> Result<Around, Violation> {
        let frames = &self.base.frames;
        let inside = pfn.as_u32() < around.end;
        if inside != (kind == TAIL) {
            let what = "a frame is marked as part of a block, or is inside one (I10.3)";
            return Err(violation(Invariant::I10InsideZone, what, pfn, inside.into(), u64::from(kind == TAIL)));
        }
        let slab = FrameKind::is_everywhere(kind);
        if !slab && frames.head_distance(pfn) != 0 {
            let what = "distance to the first frame of what is no slab (I10.4)";
            return Err(violation(Invariant::I10InsideZone, what, pfn, 0, frames.head_distance(pfn).into()));
        }
        if inside || slab || kind == FrameKind::Absent.to_byte() {
            return Ok(if inside { around } else { Around { kind, end: pfn.as_u32() } });
        }
        check_span(zone, pfn, frames.order(pfn))?;
        Ok(Around { kind, end: pfn.as_u32().saturating_add(frames.pages_of(pfn) as u32) })
    }

    /// Outside of the zones every frame is absent.
    fn check_absent(&self, in_zones: u64) -> Check {
        let frames = &self.base.frames;
        let all = frames.run(Pfn::new(0), u64::from(frames.frames()));
        let present = all.filter(|&(kind, _)| kind != FrameKind::Absent.to_byte());
        let what = "frames that are not absent against frames in zones";
        Violation::check_eq(Invariant::I10InsideZone, what, 0, in_zones, present.count() as u64)
    }
}

impl<P: Platform> LockedZone<'_, P> {
    fn check_free_areas(&self) -> Check {
        let mut pages = 0;
        for (order, lists) in Order::ZERO.up_to(Order::MAX).zip(&self.areas.lists) {
            for (migrate, list) in MigrateType::ALL.into_iter().zip(lists) {
                self.check_emptiness_bit(order, migrate, list)?;
                list.check_links(&self.base.frames, Invariant::I8ListCounts)?;
                for first in list.iter(&self.base.frames) {
                    self.check_free_block(first, order, migrate)?;
                    pages += order.pages();
                }
            }
        }
        let what = "pages on a zone's free lists against its ledger (I8.4)";
        Violation::check_eq(Invariant::I8ListCounts, what, u64::from(self.zone.index), pages, self.zone.free_pages())
    }

    fn check_emptiness_bit(&self, order: Order, migrate: MigrateType, list: &PageList) -> Check {
        let bit = self.areas.nonempty[migrate.index()] >> order.get() & 1;
        let what = "emptiness bit of a free list, by order (I8.3)";
        let expected = u64::from(!list.is_empty());
        Violation::check_eq(Invariant::I8ListCounts, what, u64::from(order.get()), expected, u64::from(bit))
    }

    fn check_free_block(&self, first: Pfn, order: Order, migrate: MigrateType) -> Check {
        let frames = &self.base.frames;
        check_span(self.zone, first, order)?;
        let expect = |invariant, what, expected: u8, found: u8| {
            Violation::check_eq(invariant, what, first.index() as u64, expected.into(), found.into())
        };
        expect(
            Invariant::I8ListCounts,
            "order of a free block against its list",
            order.get(),
            frames.order_raw(first),
        )?;
        expect(
            Invariant::I11MigrateList,
            "type of a free block against its list",
            migrate as u8,
            frames.migrate(first),
        )?;
        let what = "kind of a frame in a free block";
        expect(Invariant::I8ListCounts, what, FrameKind::Free.to_byte(), frames.kind_byte(first))?;
        if let Some((kind, _)) = frames.run(first, order.pages()).skip(1).find(|&(kind, _)| kind != TAIL) {
            expect(Invariant::I8ListCounts, what, TAIL, kind)?;
        }
        for pfn in block(first, order).step_by(self.blocks.order.pages() as usize) {
            let what = "type of a free block's pageblock against its list";
            expect(Invariant::I11MigrateList, what, migrate as u8, self.block_type(pfn) as u8)?;
        }
        self.check_coalesced(first, order, migrate)
    }

    fn check_coalesced(&self, first: Pfn, order: Order, migrate: MigrateType) -> Check {
        let buddy = order.buddy_of(first);
        if order < self.base.geometry.max_order
            && self.is_free_block(buddy, order)
            && self.may_join(buddy, order, migrate)
        {
            let what = "a free block has a free buddy of its order";
            return Err(violation(Invariant::I9Coalesced, what, first, 0, buddy.index() as u64));
        }
        Ok(())
    }
}

fn violation(invariant: Invariant, what: &'static str, at: Pfn, expected: u64, found: u64) -> Violation {
    Violation::new(invariant, what, at.index() as u64, expected, found)
}

/// The frames of a block.
fn block(first: Pfn, order: Order) -> impl Iterator<Item = Pfn> {
    (0..order.pages()).map_while(move |offset| first.checked_add(offset))
}

/// I21.4 within one array; two arrays differ in type, CPU or zone, which the frame's descriptor or the count tells.
fn check_distinct(hot: &[Pfn]) -> Check {
    for (i, pfn) in hot.iter().enumerate() {
        if hot.iter().skip(i + 1).any(|other| other == pfn) {
            return Err(violation(Invariant::I21CacheCounts, "a page is twice in a CPU's array (I21.4)", *pfn, 1, 2));
        }
    }
    Ok(())
}

/// I21.5, and that all frames of a block on a per-CPU list are marked so.
fn check_parked(frames: &FrameTable, zone: &Zone, first: Pfn, order: Order, migrate: Option<MigrateType>) -> Check {
    let expect = |what, expected: u8, found: u8| {
        Violation::check_eq(Invariant::I21CacheCounts, what, first.index() as u64, expected.into(), found.into())
    };
    check_span(zone, first, order)?;
    expect("order of a parked block against its list (I21.5)", order.get(), frames.order_raw(first))?;
    if let Some(migrate) = migrate {
        expect("type of a parked block against its list (I21.5)", migrate as u8, frames.migrate(first))?;
    }
    for pfn in block(first, order) {
        let expected = if pfn == first { FrameKind::Pcp.to_byte() } else { TAIL };
        expect("kind of a frame in a parked block", expected, frames.kind_byte(pfn))?;
    }
    Ok(())
}

/// I10.2: aligned and inside the zone.
fn check_span(zone: &Zone, first: Pfn, order: Order) -> Check {
    let offset = first.offset_from(zone.start);
    let inside = offset.is_some_and(|offset| offset + order.pages() <= zone.frames());
    if inside && order.is_aligned(first) {
        return Ok(());
    }
    let what = "a block is not aligned, or not inside its zone (I10.2)";
    Err(violation(Invariant::I10InsideZone, what, first, u64::from(zone.index), order.pages()))
}
