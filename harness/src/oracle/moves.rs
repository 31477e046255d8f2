//! What every oracle asks when a block moves during a call: was it one that may move, and is its new place allowed?
//!
//! Contract: sections 3.7 and 5 of the port [`kmem::Platform::migrate`]. The block was live, movable and not pinned (I6, by O10). Its
//! new place shares no byte with a live block (I1, O1), is aligned to its size (I3, O2), and lies in the zone where it was
//! or a lower one of the same node, which whatever flags it was asked for allow (I10, O3). Compaction fills pageblocks for movable blocks only (3.7, O10). That its contents came along
//! is asked by O4, whose pattern does not depend on the address. Exact.

use super::{Context, OracleId, Violation};
use crate::subject::{Call, Moved};
use kmem::{FrameKind, MigrateType, Mobility, PAGE_SIZE, ZoneSpec};

/// Looks at a move; the model still has the block at its old place.
///
/// # Errors
///
/// The violation found.
pub fn on_move(cx: &mut Context<'_>, moved: &Moved) -> Result<(), Violation> {
    check_right(cx, moved)?;
    let Moved { from, to, order, page } = *moved;
    let bytes = PAGE_SIZE << order;
    let fail = |id, handle: &[u64], what: String| Err(cx.violation(id, handle, format!("{moved:x?}: {what}")));
    if let Some(other) = cx.model.overlapping(to, to.saturating_add(bytes as u64), None) {
        return fail(OracleId::O1Overlap, &[other.handle], format!("the new place overlaps {}", other.describe()));
    }
    let frames = cx.model.direct_frames(to, bytes);
    if let Some(frame) = frames.clone().find(|&frame| cx.model.vmalloc_owner(frame).is_some()) {
        return fail(OracleId::O1Overlap, &[], format!("frame {frame:#x} is behind a vmalloc block"));
    }
    if !frames.start.is_multiple_of(1 << order) {
        return fail(OracleId::O2Alignment, &[], "the new place is not aligned".to_owned());
    }
    let zone_of = |frame: u32, pages: u64| {
        let holds = |zone: &&ZoneSpec| {
            let start = zone.start.as_u32();
            frame >= start && u64::from(frame - start) + pages <= zone.frames.get()
        };
        cx.model.geometry().zones().iter().find(holds)
    };
    if let Some(migrate) = spoilt_by_compaction(cx, frames.start) {
        return fail(OracleId::O10RightTier, &[], format!("compaction moved it into a pageblock of type {migrate:?}"));
    }
    let old = cx.model.direct_frames(from, bytes);
    match (zone_of(old.start, 1), zone_of(frames.start, 1 << order)) {
        (Some(old), Some(new)) if old.node == new.node && new.kind <= old.kind && !frames.is_empty() => {
            cx.model.notes.moved += 1;
            cx.model.notes.moved_pages.extend(page);
            Ok(())
        }
        (old, new) => fail(OracleId::O3Bounds, &[], format!("from zone {old:?} to zone {new:?}")),
    }
}

/// The type of a pageblock into which compaction must not move anything: movable blocks there would be in the way of what
/// belongs there. After a request types may have changed since the move, so this is asked of `compact_memory` only.
fn spoilt_by_compaction(cx: &Context<'_>, frame: u32) -> Option<MigrateType> {
    let judged = cx.model.notes.compacting && cx.model.geometry().mobility != Mobility::Mixed;
    let migrate = cx.subject.white_box().filter(|_| judged)?.pageblock_type(frame)?;
    (!matches!(migrate, MigrateType::Movable | MigrateType::Cma)).then_some(migrate)
}

/// Looks at the pages that went to other frames during a call: no TLB leads elsewhere than the page tables, and they lead
/// to the frame that the page went to.
pub(super) fn check_moved_pages(cx: &Context<'_>) -> Result<(), Violation> {
    let frame_of = |physical: u64| (physical / PAGE_SIZE as u64) as u32;
    for &page in &cx.model.notes.moved_pages {
        let Some(block) = cx.model.overlapping(page, page + 1, None).filter(|block| block.movable) else { continue };
        let expected = block.frames.get((page - block.addr) as usize / PAGE_SIZE).copied();
        let walked = cx.subject.translate(page).map(frame_of);
        let remembered = cx.subject.remembered(page).into_iter().chain(cx.subject.tlb_lookup(page));
        let reached = remembered.map(frame_of).find(|&reached| Some(reached) != expected);
        if walked != expected || reached.is_some() {
            let message =
                format!("{page:#x} went to frame {expected:x?}; the tables say {walked:x?}, the TLB {reached:x?}");
            return Err(cx.violation(OracleId::O15Translation, &[block.handle], message));
        }
    }
    Ok(())
}

/// Looks at a free block that was lent to the host: it is a whole free block, large enough to be worth it, no live block is
/// in it, it was not lent before with nothing happening since, and it is not poisoned, for the host drops contents.
///
/// # Errors
///
/// O1 or O10.
pub fn on_lent(cx: &mut Context<'_>, lent: (u64, u8)) -> Result<(), Violation> {
    let (addr, order) = lent;
    let bytes = PAGE_SIZE << order;
    if let Some(other) = cx.model.overlapping(addr, addr.saturating_add(bytes as u64), None) {
        let message = format!("the free block at {addr:#x} holds {}", other.describe());
        return Err(cx.violation(OracleId::O1Overlap, &[other.handle], message));
    }
    let fail = |what: &str| {
        Err(cx.violation(OracleId::O10RightTier, &[], format!("the block of order {order} lent at {addr:#x} {what}")))
    };
    let frames = cx.model.direct_frames(addr, bytes);
    if frames.is_empty() || !frames.start.is_multiple_of(1 << order) {
        return fail("is not in memory, or not aligned");
    }
    if cx.model.checks(kmem::PageDebug::POISON) {
        return fail("is poisoned");
    }
    if order < cx.model.geometry().pageblock_order.get() {
        return fail("is smaller than a pageblock");
    }
    if cx.subject.white_box().is_some_and(|inside| frames.into_iter().any(|f| inside.frame_kind(f) != FrameKind::Free))
    {
        return fail("is not free");
    }
    if cx.model.notes.lent.contains(&lent) {
        return fail("was lent before, and nothing has happened since");
    }
    cx.model.notes.lent.push(lent);
    cx.model.notes.lent_pages += 1 << order;
    Ok(())
}

/// The numbers that the calls answer are those of the blocks that moved and of the pages that were lent.
pub(super) fn check_numbers(cx: &Context<'_>, call: &Call, answer: usize) -> Result<(), String> {
    let seen = match call {
        Call::CompactMemory => cx.model.notes.moved,
        Call::ReportFree { .. } => cx.model.notes.lent_pages,
        _ => return Ok(()),
    };
    if answer == seen { Ok(()) } else { Err(format!("{call:?} answered {answer}, but it were {seen}")) }
}

/// Only a live block that is movable and not pinned moves, as a whole; and only a page of a movable area that nobody else
/// shows.
fn check_right(cx: &Context<'_>, moved: &Moved) -> Result<(), Violation> {
    if let Some(page) = moved.page {
        let from = cx.model.direct_frames(moved.from, PAGE_SIZE).start;
        let of_area = cx.model.movable_page(from);
        return match of_area.filter(|(block, index)| block.addr + (index * PAGE_SIZE) as u64 == page) {
            Some(_) => Ok(()),
            None if cx.model.notes.drained.iter().any(|&(start, end)| (start..end).contains(&page)) => Ok(()),
            None => {
                let message = format!("{moved:x?}: that is no page of a movable area, or somebody else shows it");
                Err(cx.violation(OracleId::O10RightTier, &[], message))
            }
        };
    }
    let wrong = match cx.model.block(moved.from) {
        None => Some((Vec::new(), "no live block was there".to_owned())),
        Some(block) if block.order != moved.order || !cx.model.is_movable(block) => {
            Some((vec![block.handle], format!("{} must not move", block.describe())))
        }
        Some(_) => None,
    };
    match wrong {
        Some((handles, what)) => Err(cx.violation(OracleId::O10RightTier, &handles, format!("{moved:x?}: {what}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context, step};
    use crate::subject::Reply;
    use kmem::GfpFlags;

    /// Blocks of order 1 at frames 4 (movable), 8 (not) and 40 (movable, in the upper zone).
    fn verdict(from: u32, to: u32, order: u8) -> Result<(), OracleId> {
        let mut subject = FakeSubject::with_two_zones(64);
        let mut model = subject.model();
        for (frame, gfp) in [(4, GfpFlags::HIGHUSER_MOVABLE), (8, GfpFlags::KERNEL), (40, GfpFlags::HIGHUSER_MOVABLE)] {
            let reply = Reply::Block { addr: subject.direct(frame), usable: 2 * PAGE_SIZE };
            model.update(&step(Call::AllocPages { order: 1, gfp }, reply), &subject);
        }
        let moved = Moved { from: subject.direct(from), to: subject.direct(to), order, page: None };
        on_move(&mut context(&mut model, &mut subject), &moved).map_err(|violation| violation.oracle)
    }

    #[test]
    fn a_movable_block_may_go_to_a_free_place_of_its_zone_or_a_lower_one() {
        assert_eq!((verdict(4, 16, 1), verdict(40, 50, 1), verdict(40, 16, 1)), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn only_whole_free_blocks_are_lent_and_each_once() {
        let mut subject = FakeSubject::new(64);
        subject.geometry.pageblock_order = kmem::Order::new(3).unwrap();
        let mut model = subject.model();
        let mut lend = |subject: &mut FakeSubject, frame: u32, order| {
            let lent = (subject.direct(frame), order);
            on_lent(&mut context(&mut model, subject), lent).map_err(|violation| violation.oracle)
        };
        assert_eq!(lend(&mut subject, 16, 3), Ok(()));
        assert_eq!(lend(&mut subject, 16, 3), Err(OracleId::O10RightTier), "twice");
        assert_eq!(lend(&mut subject, 24, 2), Err(OracleId::O10RightTier), "too small");
        subject.kinds[27] = FrameKind::PageTable;
        assert_eq!(lend(&mut subject, 24, 3), Err(OracleId::O10RightTier), "not free");
        assert_eq!(lend(&mut subject, 28, 3), Err(OracleId::O10RightTier), "not aligned");
    }

    #[test]
    fn each_wrong_move_is_reported_by_its_oracle() {
        assert_eq!(verdict(8, 16, 1), Err(OracleId::O10RightTier), "not movable");
        assert_eq!(verdict(5, 16, 0), Err(OracleId::O10RightTier), "no block starts there");
        assert_eq!(verdict(4, 16, 0), Err(OracleId::O10RightTier), "half a block");
        assert_eq!(verdict(4, 8, 1), Err(OracleId::O1Overlap), "onto another block");
        assert_eq!(verdict(4, 17, 1), Err(OracleId::O2Alignment), "an odd frame");
        assert_eq!(verdict(4, 36, 1), Err(OracleId::O3Bounds), "a higher zone");
        assert_eq!(verdict(40, 64, 1), Err(OracleId::O3Bounds), "beyond memory");
    }

    #[test]
    fn compaction_keeps_out_of_pageblocks_for_what_cannot_move() {
        let mut subject = FakeSubject::new(64);
        subject.special = vec![(16..32, MigrateType::Reclaimable)];
        let moves = |subject: &mut FakeSubject, compacting| {
            let mut model = subject.model();
            let reply = Reply::Block { addr: subject.direct(4), usable: PAGE_SIZE };
            model.update(&step(Call::AllocPages { order: 0, gfp: GfpFlags::HIGHUSER_MOVABLE }, reply), subject);
            model.notes.compacting = compacting;
            let moved = Moved { from: subject.direct(4), to: subject.direct(20), order: 0, page: None };
            on_move(&mut context(&mut model, subject), &moved).map_err(|violation| violation.oracle)
        };
        assert_eq!(moves(&mut subject, true), Err(OracleId::O10RightTier));
        assert_eq!(moves(&mut subject, false), Ok(()), "a range goes wherever there is room");
        subject.geometry.mobility = Mobility::Mixed;
        assert_eq!(moves(&mut subject, true), Ok(()), "types are not kept apart");
    }

    #[test]
    fn a_poisoned_block_must_not_be_lent() {
        let mut subject = FakeSubject::new(64);
        subject.geometry.pageblock_order = kmem::Order::new(4).unwrap();
        let lent = (subject.direct(16), 4);
        assert_eq!(on_lent(&mut context(&mut subject.model(), &mut subject), lent), Ok(()));
        subject.geometry.page_debug = kmem::PageDebug::POISON;
        assert!(on_lent(&mut context(&mut subject.model(), &mut subject), lent).is_err());
    }
}
