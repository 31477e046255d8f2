//! O9 about runs of frames: was a range refused for a reason, and was a senseless one refused?
//!
//! Contract: section 3.7, `alloc_contig_range`. A range is refused with `Busy` only if the frame that it names is in the way and
//! cannot be moved: not free, not on a per-CPU list, not in a block whose owner would let it go, and, if the caller may
//! wait, nothing that reclaim gives back. It is refused with `NoPages` only if a block of that order that looks movable is in
//! the way (its owner, who may have pinned it, is asked once there is room) and its zone and the lower ones of its node have
//! no room for it outside of the emptied pageblocks and above the min mark. Any place will do for `alloc_contig_pages`: it
//! may be refused only if no place is wholly free. Exact, but that
//! zones with pages set aside for special requests are taken to be full.

use super::o09_refusal::{ADDRESS_RANGE, FLAGS, ORDER, Reason, ZERO_SIZE};
use super::scene::{Pins, coalesced};
use super::{Context, Step};
use crate::model::Model;
use crate::model::zones::{Class, highest_zone, lowmem_reserve, watermarks};
use crate::subject::{Call, WhiteBox};
use kmem::{AllocError, FrameKind, GfpFlags, Order, PAGE_SIZE, Pfn, ZoneSpec};
use std::ops::Range;

/// Flags that a range honours or ignores; all others it must refuse.
const ACCEPTED: GfpFlags = GfpFlags::KERNEL
    .union(GfpFlags::HIGHUSER_MOVABLE)
    .union(GfpFlags::DMA)
    .union(GfpFlags::DMA32)
    .union(GfpFlags::RECLAIMABLE)
    .union(GfpFlags::WRITE)
    .union(GfpFlags::THISNODE)
    .union(GfpFlags::COMP)
    .union(GfpFlags::RETRY_MAYFAIL)
    .union(GfpFlags::NOWARN)
    .union(GfpFlags::ZERO);

/// Why a range must be refused whatever memory there is.
pub(super) fn reasons(model: &Model, start: Option<u32>, pages: usize, gfp: GfpFlags) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if pages == 0 {
        reasons.push(ZERO_SIZE);
    }
    if !ACCEPTED.contains(gfp) {
        reasons.push(FLAGS);
    }
    let unaligned = start.is_some_and(|start| pages > 0 && !(start as usize).is_multiple_of(pages));
    let in_zone = start.is_none_or(|start| zone_of(model, &(start..start.saturating_add(pages as u32))).is_some());
    let block = gfp.contains(GfpFlags::COMP);
    if !in_zone || (block && (!pages.is_power_of_two() || unaligned)) {
        reasons.push(ADDRESS_RANGE);
    }
    if block && pages > 1 << model.geometry().max_order.get() {
        reasons.push(ORDER);
    }
    if start.is_none() && (highest_zone(gfp).is_none() || pages as u64 > model.geometry().managed().get()) {
        // What is asked first, the place or the flags, the contract does not say.
        reasons.push(Reason { must: false, ..FLAGS });
    }
    reasons
}

/// The zone, by its number, in which all these frames are.
fn zone_of(model: &Model, frames: &Range<u32>) -> Option<usize> {
    let holds = |zone: &ZoneSpec| {
        let start = zone.start.as_u32();
        frames.start >= start && u64::from(frames.end - start) <= zone.frames.get()
    };
    model.geometry().zones().iter().position(holds)
}

/// Whether the refusal of a proper range was justified.
pub(super) fn judge(cx: &Context<'_>, step: &Step, error: &AllocError) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    match (&step.call, error) {
        (&Call::AllocContigRange { start, pages, gfp }, AllocError::Busy { frame }) => {
            judge_busy(cx.model, inside, &(start..start + pages as u32), *frame, gfp)
        }
        (&Call::AllocContigRange { start, pages, .. }, AllocError::NoPages { order }) => {
            judge_no_room(cx.model, inside, &(start..start + pages as u32), *order)
        }
        (&Call::AllocContigPages { pages, gfp }, AllocError::Busy { .. } | AllocError::NoPages { .. }) => {
            match free_place(cx.model, inside, pages as u64, gfp) {
                Some(start) => Err(format!("{pages} frames from {start:#x} on are free")),
                None => Ok(()),
            }
        }
        _ => Err(format!("{:?} is a proper request, but was refused with \"{error}\"", step.call)),
    }
}

fn judge_busy(
    model: &Model,
    inside: &dyn WhiteBox,
    range: &Range<u32>,
    frame: Pfn,
    gfp: GfpFlags,
) -> Result<(), String> {
    let direct = |frame: u32| model.geometry().direct_map.as_u64() + u64::from(frame) * PAGE_SIZE as u64;
    let frame = frame.as_u32();
    let block = model.overlapping(direct(frame), direct(frame) + PAGE_SIZE as u64, None);
    let extent = block.map_or(frame..frame + 1, |block| model.direct_frames(block.addr, block.usable));
    if extent.end <= range.start || extent.start >= range.end {
        return Err(format!("frame {frame:#x} is not in the way of {range:x?}"));
    }
    let caches = inside.slabinfo();
    let pins = Pins { model, inside, caches: &caches };
    let was_shown = model.notes.no_longer_shown.iter().any(|frame| extent.contains(frame));
    match inside.frame_kind(frame) {
        FrameKind::Free | FrameKind::Pcp => Err(format!("frame {frame:#x} is free")),
        FrameKind::Pages | FrameKind::PagesTail if was_shown => Ok(()),
        FrameKind::Pages | FrameKind::PagesTail if block.is_none_or(|block| model.is_movable(block)) => {
            Err(format!("frame {frame:#x} can be moved: {:?}", block.map(|block| block.describe())))
        }
        FrameKind::Vmalloc if model.movable_page(frame).is_some() => {
            Err(format!("frame {frame:#x} is behind a page of a movable area"))
        }
        kind if gfp.may_block() && !pins.is_pinned(frame) => {
            Err(format!("reclaim gives frame {frame:#x}, {kind:?}, back"))
        }
        _ => Ok(()),
    }
}

fn judge_no_room(model: &Model, inside: &dyn WhiteBox, range: &Range<u32>, order: Order) -> Result<(), String> {
    let touches = |frames: Range<u32>| frames.start < range.end && frames.end > range.start;
    let in_the_way = |block: &crate::model::Block| {
        block.order == order.get()
            && touches(model.direct_frames(block.addr, block.usable))
            && model.looks_movable(block)
    };
    let page_in_the_way = order == Order::ZERO && range.clone().any(|frame| model.movable_page(frame).is_some());
    if !page_in_the_way && !model.blocks(crate::model::Tiers::PAGES).any(in_the_way) {
        return Err(format!("no movable block of order {order} is in the way of {range:x?}"));
    }
    let geometry = model.geometry();
    let Some((home, own)) = zone_of(model, range).and_then(|n| Some((n, geometry.zones().get(n)?))) else {
        return Ok(());
    };
    let pageblock = geometry.pageblock_order;
    let emptied = pageblock.align_down(Pfn::new(range.start)).as_u32()
        ..pageblock.align_down(Pfn::new(range.end - 1)).as_u32().saturating_add(pageblock.pages() as u32);
    let (marks, listed) = (watermarks(geometry), inside.buddyinfo());
    for (number, zone) in geometry.zones().iter().enumerate() {
        let eligible = number == home || (zone.node == own.node && zone.kind < own.kind);
        let special =
            listed.zones().get(number).is_none_or(|info| info.free_by_type[3..].iter().flatten().any(|&n| n > 0));
        if !eligible || special {
            continue;
        }
        let outside = |frame: u32| number != home || !emptied.contains(&frame);
        let is_free = |f: u32| outside(f) && inside.frame_kind(f) == FrameKind::Free;
        let class = |f: u32| inside.pageblock_type(f).and_then(Class::of).filter(|_| is_free(f));
        let state = coalesced(zone, geometry, class);
        let usable = [Class::Ordinary, Class::Cma];
        let has_block = usable.iter().any(|&class| state.has(class, order.get()));
        let kept = marks[number].min + lowmem_reserve(geometry, number, own.kind);
        if has_block && usable.iter().map(|&class| state.pages(class)).sum::<u64>() >= kept + order.pages() {
            return Err(format!("zone {:?} has room for a block of order {order}", zone.kind));
        }
    }
    Ok(())
}

/// The first place of an allowed zone at which all frames are free.
fn free_place(model: &Model, inside: &dyn WhiteBox, pages: u64, gfp: GfpFlags) -> Option<u64> {
    let highest = highest_zone(gfp)?;
    let step = if pages.is_power_of_two() { pages } else { 1 };
    let zones = model.geometry().zones().iter().filter(|zone| {
        // Which node is meant is the business of those who know the CPU's.
        zone.kind <= highest && !gfp.contains(GfpFlags::THISNODE)
    });
    for zone in zones {
        let (start, end) = (u64::from(zone.start.as_u32()), u64::from(zone.start.as_u32()) + zone.frames.get());
        let mut free = 0;
        for frame in start..end {
            free = if inside.frame_kind(frame as u32) == FrameKind::Free { free + 1 } else { 0 };
            let first = frame + 1 - free.min(frame + 1);
            let place = first.next_multiple_of(step);
            if place + pages <= frame + 1 {
                return Some(place);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use crate::oracle::o09_refusal::RefusalJustified;
    use crate::subject::Reply;
    use kmem::{PageCount, VirtAddr};

    fn range(start: u32, pages: usize) -> Call {
        Call::AllocContigRange { start, pages, gfp: GfpFlags::KERNEL }
    }

    /// Live: a movable block of order 1 at frame 4, an unmovable page at 8.
    fn verdict(subject: &mut FakeSubject, call: Call, error: AllocError) -> bool {
        let mut model = subject.model();
        let blocks = [(4, 1, GfpFlags::HIGHUSER_MOVABLE), (8, 0, GfpFlags::KERNEL)];
        for (frame, order, gfp) in blocks {
            let usable = PAGE_SIZE << order;
            let reply = Reply::Block { addr: subject.direct(frame), usable };
            model.update(&step(Call::AllocPages { order, gfp }, reply), subject);
            let frames = frame as usize..frame as usize + (1 << order);
            subject.kinds[frames].fill(FrameKind::Pages);
        }
        ask(&RefusalJustified, &mut model, subject, &step(call, Reply::Refused(error))).is_ok()
    }

    fn busy(frame: u32) -> AllocError {
        AllocError::Busy { frame: Pfn::new(frame) }
    }

    #[test]
    fn a_frame_in_the_way_must_be_there_and_stay_there() {
        let mut subject = FakeSubject::new(64);
        assert!(verdict(&mut subject, range(0, 16), busy(8)));
        assert!(!verdict(&mut subject, range(0, 8), busy(8)), "outside");
        assert!(!verdict(&mut subject, range(0, 16), busy(4)), "movable");
        assert!(!verdict(&mut subject, range(0, 16), busy(9)), "free");
        subject.kinds[9] = FrameKind::PageTable;
        assert!(verdict(&mut subject, range(0, 16), busy(9)));
        subject.kinds[9] = FrameKind::Slab(kmem::CacheId::new(0));
        assert!(!verdict(&mut subject, range(0, 16), AllocError::BadAddress(VirtAddr::NULL)));
    }

    #[test]
    fn there_must_be_no_room_for_what_is_in_the_way() {
        let mut subject = FakeSubject::new(64);
        subject.geometry.pageblock_order = Order::new(3).unwrap();
        let no_room = |order| AllocError::NoPages { order: Order::new(order).unwrap() };
        assert!(!verdict(&mut subject, range(0, 8), no_room(1)), "all else is free");
        assert!(!verdict(&mut subject, range(0, 8), no_room(0)), "no such block");
        subject.kinds[8..].fill(FrameKind::PageTable);
        assert!(verdict(&mut subject, range(0, 8), no_room(1)));
        subject.kinds[20..40].fill(FrameKind::Free);
        assert!(!verdict(&mut subject, range(0, 8), no_room(1)), "18 free pages and a block of two are enough");
        subject.kinds[37..40].fill(FrameKind::PageTable);
        assert!(verdict(&mut subject, range(0, 8), no_room(1)), "17 are not");
    }

    #[test]
    fn pages_anywhere_are_refused_only_if_no_place_is_free() {
        let mut subject = FakeSubject::new(64);
        let anywhere = |pages| Call::AllocContigPages { pages, gfp: GfpFlags::KERNEL };
        assert!(!verdict(&mut subject, anywhere(32), busy(8)), "frames 32 to 63");
        assert!(verdict(&mut subject, anywhere(64), busy(8)));
        assert!(!verdict(&mut subject, anywhere(55), busy(8)) && verdict(&mut subject, anywhere(56), busy(8)));
        subject.kinds[40] = FrameKind::PageTable;
        assert!(!verdict(&mut subject, anywhere(16), busy(8)), "16 to 31");
        assert!(verdict(&mut subject, anywhere(32), busy(8)));
    }

    #[test]
    fn senseless_ranges_are_refused_with_their_reason() {
        let mut subject = FakeSubject::new(64);
        let bad = |start, pages| AllocError::BadRange { start: Pfn::new(start), pages: PageCount::new(pages) };
        assert!(verdict(&mut subject, range(60, 8), bad(60, 8)));
        assert!(!verdict(&mut subject, range(60, 8), busy(60)));
        assert!(!verdict(&mut subject, range(16, 8), bad(16, 8)));
        let block = |start, pages| Call::AllocContigRange { start, pages, gfp: GfpFlags::KERNEL | GfpFlags::COMP };
        assert!(verdict(&mut subject, block(4, 8), bad(4, 8)) && !verdict(&mut subject, block(16, 8), bad(16, 8)));
        let nofail = Call::AllocContigRange { start: 16, pages: 8, gfp: GfpFlags::KERNEL | GfpFlags::NOFAIL };
        assert!(verdict(&mut subject, nofail, AllocError::BadFlags));
        assert!(!verdict(&mut subject, range(16, 8), AllocError::BadFlags));
    }
}
