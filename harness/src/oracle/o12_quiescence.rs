//! O12: once everything is freed and reclaimed, is the state the initial one, fully coalesced?
//!
//! Contract: I7 and I9. At the end nobody owns a page but the page tables, of which only the root is left; no area, no slab
//! and no cached page remains; and the free blocks are those that coalescing all free frames gives: counted here again,
//! zone by zone, from the owners of single frames. Exact. A loose subject is asked only what it promises itself: that a block
//! as large as at the start is to be had again.

use super::scene::coalesced;
use super::{Context, Oracle, OracleId, Violation};
use crate::model::zones::{Class, ZoneState};
use crate::subject::WhiteBox;
use kmem::{FrameKind, MemInfo};

/// See the module.
pub(super) struct Quiescence;

impl Oracle for Quiescence {
    fn id(&self) -> OracleId {
        OracleId::O12Quiescence
    }

    fn at_end(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        if !cx.model.is_tight() && cx.model.is_empty() {
            let lost = cx.subject.lost();
            return lost.map_or(Ok(()), |message| Err(cx.violation(OracleId::O12Quiescence, &[], message)));
        }
        let (Some(inside), true) = (cx.subject.white_box(), cx.model.is_empty()) else { return Ok(()) };
        check_owners(inside, cx.model.has_ghosts() || cx.model.debugged.has_set_aside())
            .and_then(|()| check_guards(inside))
            .and_then(|()| check_lists(inside))
            .and_then(|()| check_coalesced(inside))
            .map_err(|message| cx.violation(OracleId::O12Quiescence, &[], message))
    }
}

/// Only the root page table is left, and what was lost with the caches of live objects.
fn check_owners(inside: &dyn WhiteBox, has_ghosts: bool) -> Result<(), String> {
    let found = inside.page_use();
    let leaked = if has_ghosts { found.leaked } else { 0 };
    let managed = inside.geometry().managed().get();
    let (guard, bad) = (found.guard, found.bad);
    let free = managed.saturating_sub(1 + leaked + guard + bad);
    let expected = MemInfo { managed, free, page_tables: 1, leaked, guard, bad, ..MemInfo::default() };
    if found == expected { Ok(()) } else { Err(format!("everything is freed, but {found:?}")) }
}

/// A guard stands only beside something that is still used: the root page table, or a bad page.
fn check_guards(inside: &dyn WhiteBox) -> Result<(), String> {
    let span = 1 << inside.geometry().guardpage_minorder.get();
    let used = |pfn: u32| matches!(inside.frame_kind(pfn), FrameKind::PageTable | FrameKind::Bad | FrameKind::Leaked);
    let is_stray = |pfn: &u32| {
        let first = pfn / span * span;
        inside.frame_kind(*pfn) == FrameKind::Guard && !(first..first + span).any(used)
    };
    match (0..inside.geometry().frames()).find(is_stray) {
        Some(pfn) => Err(format!("everything is freed, but frame {pfn} is still a guard")),
        None => Ok(()),
    }
}

fn check_lists(inside: &dyn WhiteBox) -> Result<(), String> {
    if let Some(area) = inside.vmallocinfo().first() {
        return Err(format!("everything is freed, but {area:?} remains"));
    }
    match inside.slabinfo().iter().find(|cache| cache.num_objs > 0 || cache.nr_slabs > 0) {
        Some(cache) => Err(format!("everything is freed, but {cache:?} remains")),
        None => Ok(()),
    }
}

/// The free lists hold the largest blocks that the free frames allow.
fn check_coalesced(inside: &dyn WhiteBox) -> Result<(), String> {
    let class = |pfn| inside.pageblock_type(pfn).and_then(Class::of);
    for (zone, info) in inside.geometry().zones().iter().zip(inside.buddyinfo().zones()) {
        let free_class = |pfn| if inside.frame_kind(pfn) == FrameKind::Free { class(pfn) } else { None };
        let expected = coalesced(zone, inside.geometry(), free_class);
        let found = ZoneState::of(info).blocks;
        if found != expected.blocks {
            let wanted = expected.blocks;
            return Err(format!("zone {:?} has {found:?} free blocks; coalesced they are {wanted:?}", zone.kind));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context};

    /// 64 frames, the first of which is the root page table.
    fn quiet() -> FakeSubject {
        let mut subject = FakeSubject::new(64);
        subject.kinds[0] = FrameKind::PageTable;
        subject.counters.free = 63;
        subject.counters.page_tables = 1;
        subject.set_free(&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
        subject
    }

    fn verdict(mut subject: FakeSubject) -> Result<(), Violation> {
        let mut model = subject.model();
        Quiescence.at_end(&mut context(&mut model, &mut subject))
    }

    #[test]
    fn the_initial_state_is_quiet() {
        assert_eq!(verdict(quiet()), Ok(()));
    }

    #[test]
    fn two_buddies_left_apart_are_found() {
        let mut subject = quiet();
        subject.set_free(&[(0, 1), (1, 1), (2, 1), (3, 1), (4, 3)]);
        assert!(verdict(subject).unwrap_err().message.contains("coalesced"));
    }

    #[test]
    fn a_page_or_a_slab_left_behind_is_found() {
        let mut subject = quiet();
        subject.counters.free -= 1;
        subject.counters.pcp += 1;
        assert!(verdict(subject).is_err());
        let mut subject = quiet();
        subject.add_cache("kmalloc-64", 64, 64, 0);
        assert!(verdict(subject).is_err());
    }
}
