//! What O9 asks about the page allocator's policy: nodes, reserves, boosts, and why a request was given up.
//!
//! Contract: sections 3.1, 3.3, 3.5 and 3.6. Exact, but for one thing: in defrag mode a far node may be preferred to mixing
//! types on a near one, so there nearness is not judged.

use super::{Context, Step};
use crate::model::zones::{bad_mobility, fallback_order, most_boost, most_highatomic};
use crate::subject::{Call, WhiteBox};
use kmem::{
    AllocError, Event, Found, FrameKind, GfpFlags, MigrateType, Mobility, NodeId, Order, PAGE_ALLOC_COSTLY_ORDER,
    PAGE_SIZE, PageDebug, Pfn, Warning,
};
use std::ops::Range;

/// Whether a free block turned out to be bad during the call: it was nobody's to give, whatever the free lists said before.
pub(super) fn found_bad_block(cx: &Context<'_>) -> bool {
    let retires = |warning: &Warning| matches!(warning, Warning::BadPage { found: Found::Allocating, .. });
    cx.subject.white_box().is_some_and(|inside| inside.warnings().iter().any(retires))
}

/// Order, flags and node of a request for one block of pages.
pub(super) fn page_request(call: &Call) -> Option<(u8, GfpFlags, Option<NodeId>)> {
    match *call {
        Call::AllocPages { order, gfp } => Some((order, gfp, None)),
        Call::AllocPagesNode { order, gfp, node } => Some((order, gfp, node)),
        _ => None,
    }
}

/// A block comes from its node if `THISNODE` says so, and from none that is farther away than one which had it to give.
pub(super) fn judge_node(cx: &Context<'_>, call: &Call, addr: u64) -> Result<(), String> {
    let Some((order, gfp, asked)) = page_request(call) else { return Ok(()) };
    let geometry = cx.model.geometry();
    let frame = cx.model.direct_frames(addr, PAGE_SIZE).start;
    let zone =
        geometry.zones().iter().find(|z| frame >= z.start.as_u32() && z.end().is_some_and(|e| frame < e.as_u32()));
    let (Some(found), wanted) = (zone.map(|z| z.node), asked.unwrap_or(cx.model.node_here())) else { return Ok(()) };
    if gfp.contains(GfpFlags::THISNODE) && found != wanted {
        return Err(format!("{call:?} may use node {wanted} only, but {addr:#x} is on node {found}"));
    }
    let rank = |node| fallback_order(geometry, wanted).into_iter().position(|n| n == node);
    let polite = cx.model.notes.before.as_ref().and_then(|before| before.polite_node(cx.model, order, gfp, wanted));
    // In defrag mode a far node is better than mixing types on a near one, and a bad block of a near one is nobody's to give.
    match polite.filter(|_| geometry.mobility != Mobility::Defrag && !found_bad_block(cx)) {
        Some(nearer) if rank(nearer) < rank(found) => {
            Err(format!("{call:?} was served from node {found}, but node {nearer} had the block to give"))
        }
        _ => Ok(()),
    }
}

/// What refuses a request in the end is what its flags say (section 3.6, the slow path).
pub(super) fn judge_why(cx: &Context<'_>, call: &Call) -> Result<(), String> {
    let (Some((order, gfp, _)), Some(inside)) = (page_request(call), cx.subject.white_box()) else { return Ok(()) };
    // A subject that counts nothing cannot say why.
    if inside.events().iter().all(|&count| count == 0) {
        return Ok(());
    }
    let has = |flag| gfp.contains(flag);
    let costly = order > PAGE_ALLOC_COSTLY_ORDER;
    let allowed: &[Event] = match (gfp.may_block(), has(GfpFlags::NOFAIL)) {
        (false, true) => &[Event::NofailMayNotWait],
        (false, false) => &[Event::RefusedWithoutReclaim],
        (true, true) => &[Event::NofailUnanswered],
        _ if has(GfpFlags::NORETRY) && costly => &[Event::GaveUpNoRetry, Event::GaveUpNoProspect],
        _ if has(GfpFlags::NORETRY) => &[Event::GaveUpNoRetry],
        _ if costly && !has(GfpFlags::RETRY_MAYFAIL) => &[Event::GaveUpCostly],
        _ => &[Event::GaveUpNoProgress, Event::GaveUpTooManyRounds],
    };
    let before = &cx.model.notes.refusals;
    let raised = REFUSALS.iter().zip(refusal_counts(inside)).zip(before).filter(|((_, now), before)| now > before);
    let raised: Vec<Event> = raised.map(|((&event, _), _)| event).collect();
    match raised[..] {
        [why] if allowed.contains(&why) => Ok(()),
        _ => Err(format!("{call:?} was refused because of {raised:?}; its flags say {allowed:?}")),
    }
}

/// The events that say why a request was refused.
pub(super) const REFUSALS: [Event; 8] = [
    Event::RefusedWithoutReclaim,
    Event::NofailMayNotWait,
    Event::GaveUpNoProspect,
    Event::GaveUpNoRetry,
    Event::GaveUpCostly,
    Event::GaveUpNoProgress,
    Event::GaveUpTooManyRounds,
    Event::NofailUnanswered,
];

pub(super) fn refusal_counts(inside: &dyn WhiteBox) -> [u64; REFUSALS.len()] {
    REFUSALS.map(|event| inside.event_count(event))
}

/// Whether the HIGHATOMIC reserve is given back before such a request is refused.
pub(super) fn insists(call: &Call, gfp: GfpFlags) -> bool {
    let costly = page_request(call).is_none_or(|(order, _, _)| order > PAGE_ALLOC_COSTLY_ORDER);
    let gives_up_early = gfp.contains(GfpFlags::NORETRY) || (costly && !gfp.contains(GfpFlags::RETRY_MAYFAIL));
    gfp.contains(GfpFlags::NOFAIL) || !gives_up_early
}

/// Whether a request may be refused before anything is reclaimed: it is costly, wants no second round, and compaction can
/// come up with nothing (section 3.6).
pub(super) fn may_skip_reclaim(gfp: GfpFlags, error: &AllocError) -> bool {
    let costly = matches!(error, AllocError::NoPages { order } if order.get() > PAGE_ALLOC_COSTLY_ORDER);
    costly && gfp.contains(GfpFlags::NORETRY) && !gfp.contains(GfpFlags::NOFAIL)
}

/// A bulk comes from one zone of the nearest node, which must have all of its pages to spare above the low mark; otherwise, and
/// where pages are charged for or their owners noted, it is a single page (section 3.7).
///
/// Each block that is cut up can leave guards, so where there are such a bulk may end early.
pub(super) fn judge_bulk(cx: &Context<'_>, step: &Step, pages: &[u64]) -> Result<(), String> {
    let (&Call::AllocPagesBulk { count, gfp }, Some(before)) = (&step.call, &cx.model.notes.before) else {
        return Ok(());
    };
    if bad_mobility(gfp) {
        return Ok(());
    }
    let one_by_one = count < 2 || gfp.contains(GfpFlags::ACCOUNT) || cx.model.checks(PageDebug::OWNER);
    let source = if one_by_one { None } else { before.bulk_source(cx.model, gfp, count as u64) };
    let given = pages.len();
    let geometry = cx.model.geometry();
    let Some(zone) = source.and_then(|index| geometry.zones().get(index)) else {
        let what = format!("{:?}: no near zone has so many pages to spare, but {given} were given", step.call);
        return if given > 1 { Err(what) } else { Ok(()) };
    };
    let frame = |addr: u64| cx.model.direct_frames(addr, PAGE_SIZE).start;
    let is_inside =
        |&addr: &u64| frame(addr) >= zone.start.as_u32() && zone.end().is_some_and(|e| frame(addr) < e.as_u32());
    if given > 1 && !pages.iter().all(is_inside) {
        return Err(format!("{:?}: not all pages are of zone {:?}, which has them to spare", step.call, zone.kind));
    }
    if given < count && !step.fault_struck && geometry.guardpage_minorder == Order::ZERO {
        return Err(format!(
            "{:?}: zone {:?} has so many pages to spare, but {given} were given",
            step.call, zone.kind
        ));
    }
    Ok(())
}

/// Counts that tell whether types had to mix and whether reclaim has run, before a call.
pub(super) fn mixing_counts(inside: &dyn WhiteBox) -> [u64; 2] {
    [Event::ClaimRefused, Event::ReclaimPcp].map(|event| inside.event_count(event))
}

/// Where a pageblock was too full to be claimed, types mix, and the marks are boosted until reclaim has run (section 3.3).
pub(super) fn judge_boost(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let ([refused, reclaimed], before) = (mixing_counts(inside), cx.model.notes.mixing);
    if refused == before[0] || reclaimed != before[1] {
        return Ok(());
    }
    let geometry = cx.model.geometry();
    // Where no boost is possible in some zone, it may have been there.
    let possible = (0..geometry.zones().len()).all(|index| most_boost(geometry, index) > 0);
    if possible && inside.buddyinfo().zones().iter().all(|info| info.boost == 0) {
        return Err("a pageblock could not be claimed, so that types mix, but no zone is boosted".to_owned());
    }
    Ok(())
}

/// How often pageblocks had joined the HIGHATOMIC reserve, or served from it first, before a call.
pub(super) fn urgent_counts(inside: &dyn WhiteBox) -> [u64; 2] {
    [Event::HighAtomicReserved, Event::HighAtomicUsed].map(|event| inside.event_count(event))
}

/// The HIGHATOMIC reserve grows for, and serves first, only requests of several pages that are urgent, must not wait, and may
/// use reserves (section 3.3).
pub(super) fn judge_urgent(cx: &Context<'_>) -> Result<(), String> {
    let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
    let Some((order, gfp, _)) = page_request(&step.call) else { return Ok(()) };
    let has = |flag| gfp.contains(flag);
    // Whoever must not fail is urgent in the end.
    let urgent = has(GfpFlags::HIGH) && !gfp.may_block() && !has(GfpFlags::NOMEMALLOC);
    if (urgent && order > 0) || has(GfpFlags::NOFAIL) || urgent_counts(inside) == cx.model.notes.urgent {
        return Ok(());
    }
    Err(format!("{:?} has no right to the HIGHATOMIC reserve, and used it or made it larger", step.call))
}

/// How compaction of a zone can go: put off, in vain over all or a part of the zone, done, and futile.
const COMPACTIONS: [Event; 5] = [
    Event::CompactDeferred,
    Event::CompactComplete,
    Event::CompactPartial,
    Event::CompactSuccess,
    Event::CompactSkipped,
];

/// How often each of them has happened, before a call.
pub(super) fn compaction_counts(inside: &dyn WhiteBox) -> [u64; COMPACTIONS.len()] {
    COMPACTIONS.map(|event| inside.event_count(event))
}

/// After a compaction that came to nothing the next request of this order or above is put off once at least (section 3.7).
///
/// Asked where there is one zone only, so that it is known which one failed; and only after calls in which nothing was put
/// off, for how many more requests wait depends on failures that nobody has seen.
pub(super) fn judge_put_off(cx: &mut Context<'_>) -> Result<(), String> {
    let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
    let (now, before) = (compaction_counts(inside), cx.model.notes.compactions);
    let [put_off, complete, partial, done, futile] = std::array::from_fn(|i| now[i].saturating_sub(before[i]));
    if put_off + complete + partial + done + futile == 0 {
        return Ok(());
    }
    let owed = cx.model.notes.compaction_failed.take();
    let is_one_zone = cx.model.geometry().zones().len() == 1;
    let Some((order, gfp, _)) = page_request(&step.call).filter(|_| is_one_zone) else { return Ok(()) };
    if let Some(failed) = owed.filter(|&failed| order >= failed && put_off == 0) {
        return Err(format!("compaction for order {failed} has just failed, and was not put off for order {order}"));
    }
    // The walk before any reclaim is a cheap one, whose failure has no consequence.
    let cheap = u64::from(order > PAGE_ALLOC_COSTLY_ORDER || !gfp.contains(GfpFlags::MOVABLE));
    let has_failed = put_off == 0 && done == 0 && complete + partial > cheap;
    cx.model.notes.compaction_failed = has_failed.then_some(order);
    Ok(())
}

/// Reclaim lowers boosted watermarks again.
pub(super) fn judge_reclaim(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    match inside.buddyinfo().zones().iter().find(|info| info.boost > 0) {
        Some(info) => Err(format!("reclaim has run, but zone {:?} is still boosted: {info:?}", info.kind)),
        None => Ok(()),
    }
}

/// What is kept back is as much as section 3.3 allows: boosts, the HIGHATOMIC reserve, and the CMA areas, which hold nothing
/// that stays where it is.
pub(super) fn check_reserves(inside: &dyn WhiteBox) -> Result<(), String> {
    let geometry = inside.geometry();
    let pageblock = geometry.pageblock_order;
    for (index, (zone, info)) in geometry.zones().iter().zip(inside.buddyinfo().zones()).enumerate() {
        let (boost, most) = (info.boost, most_boost(geometry, index));
        if boost > most {
            return Err(format!("the marks of zone {:?} are boosted by {boost} pages; the most is {most}", zone.kind));
        }
        let frames = zone.start.as_u32()..zone.end().map_or(0, kmem::Pfn::as_u32);
        let count = |wanted: MigrateType| -> u64 {
            let blocks =
                pageblocks(pageblock, frames.clone()).filter(|b| inside.pageblock_type(b.start) == Some(wanted));
            blocks.map(|block| block.len() as u64).sum()
        };
        let (reserved, counted) = (count(MigrateType::HighAtomic), info.reserved_highatomic);
        let most = most_highatomic(geometry, zone);
        if reserved > most || reserved != counted || !reserved.is_multiple_of(pageblock.pages()) {
            let kind = zone.kind;
            return Err(format!(
                "{reserved} pages of {kind:?} are HIGHATOMIC; the zone counts {counted}, the most is {most}"
            ));
        }
        for block in pageblocks(pageblock, frames.clone()) {
            check_cma(inside, block)?;
        }
    }
    Ok(())
}

/// The parts of a range of frames that lie in one pageblock each.
fn pageblocks(order: Order, frames: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let mut next = frames.start;
    std::iter::from_fn(move || {
        let start = next;
        let end = order.align_down(Pfn::new(start)).as_u32() + order.pages() as u32;
        next = end.min(frames.end);
        (start < frames.end).then_some(start..next)
    })
}

fn check_cma(inside: &dyn WhiteBox, block: Range<u32>) -> Result<(), String> {
    let set_aside = inside.geometry().cma.iter().any(|area| area.contains(Pfn::new(block.start)));
    let is_cma = inside.pageblock_type(block.start) == Some(MigrateType::Cma);
    if set_aside != is_cma {
        return Err(format!("pageblock {block:?} is set aside for CMA: {set_aside}; it is of type CMA: {is_cma}"));
    }
    let stays = |frame: &u32| matches!(inside.frame_kind(*frame), FrameKind::Slab(_) | FrameKind::PageTable);
    match block.clone().filter(|_| set_aside).find(stays) {
        Some(frame) => Err(format!("frame {frame} is set aside for CMA, but holds what cannot move")),
        None => Ok(()),
    }
}
