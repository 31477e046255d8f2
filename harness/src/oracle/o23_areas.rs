//! O23: is an area where, and made of what, it was asked for?
//!
//! Contract: 4.1, 4.3 and 4.4.
//!
//! * Place: the lowest address of the wanted range that is a multiple of the alignment and has room for the pages and the guard,
//!   among the areas that are there, or a pooled range of that size. If the call has purged, those of them that wait for a
//!   flush may be gone; exact without pools, between both extremes with them. Stronger than Linux, which looks for size +
//!   align - 1.
//! * Mappings of `vm_map_ram`: in [`ram`](super::ram).
//! * Entries: 512 pages each in all of the area or in none of it; only where the request allows it (the caller asks for it, may
//!   wait, and wants 2 MiB or more; the machine has such blocks). If the nearest node had the blocks, and one to spare, above its low
//!   marks before the call, and there was room: in all of it.
//! * Node: with `THISNODE` each page is of the node. Else no page comes from farther away if the nearest node had enough
//!   for all above its low marks. The pages that an area keeps when it grows are not asked. Leans to "justified" by what
//!   records, tables and per-CPU lists can take.
//!
//! Among more than 32 areas only some of the calls are judged, in proportion.

use super::scene::{self, Snapshot, WITHOUT_POOLS};
use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::areas::{AreaWish, HUGE_ORDER, HUGE_PAGES};
use crate::model::zones::fallback_order;
use crate::model::{Tiers, old_address};
use crate::subject::{Call, Reply, WhiteBox, WindowCall};
use kmem::{AreaKind, Event, GfpFlags, Mobility, NodeId, PAGE_SIZE, PageDebug};

/// The areas that stay besides the live ones: as it is; without the ranges in pools; when lazy areas are flushed as well; when
/// also those that wait for somebody are freed.
const AS_IS: &[AreaKind] = &[AreaKind::Pooled, AreaKind::Lazy, AreaKind::Pending, AreaKind::Deferred];
const FLUSHED: &[AreaKind] = &[AreaKind::Pending, AreaKind::Deferred];
const LIVE: &[AreaKind] = &[];
/// How many areas are looked at before a call, on average. Among more, only some of the calls are judged.
const LOOKED_AT: usize = 32;
/// Pages that record, tables and the refill of a per-CPU list may take beside those of the area.
const BESIDE: u64 = 256;

/// See the module.
pub(super) struct Areas;

/// What is known before a call that may make an area.
#[derive(Clone, Debug)]
pub(crate) struct Before {
    /// What was in the window.
    areas: scene::Areas,
    /// How often addresses had been given back.
    given_back: u64,
    /// Whether huge entries are owed.
    must_be_huge: bool,
    /// The node from which all pages are to come, if that is owed.
    near: Option<NodeId>,
}

impl Oracle for Areas {
    fn id(&self) -> OracleId {
        OracleId::O23Areas
    }

    fn before_call(&self, cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
        let wish = AreaWish::of(cx.model.geometry(), call).filter(|wish| makes_area(cx, call, wish));
        let before = wish.filter(|_| is_due(cx)).and_then(|wish| before(cx, wish, call));
        cx.model.notes.reclaimed_va = cx.subject.white_box().map_or(0, |inside| inside.event_count(Event::ReclaimVa));
        cx.model.notes.area = before;
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let fail = |message| Err(cx.violation(OracleId::O23Areas, &[], format!("{:?}: {message}", step.call)));
        if let Err(message) = super::ram::check_purged(cx, step) {
            return fail(message);
        }
        let Reply::Block { addr, .. } = step.reply else { return Ok(()) };
        let cut =
            super::ram::run_of(cx.model, &step.call).and_then(|pages| super::ram::judge_cut(cx.model, pages, addr));
        if let Some(verdict) = cut {
            return verdict.or_else(fail);
        }
        let is_fresh = cx.model.in_vmalloc_window(addr) && old_address(&step.call) != Some(addr);
        let (Some(wish), Some(before)) = (AreaWish::of(cx.model.geometry(), &step.call), &cx.model.notes.area) else {
            return Ok(());
        };
        if !is_fresh {
            return Ok(());
        }
        let area = wish.as_mapped(cx.subject.leaf_order(addr));
        let verdict = judge_where(cx, step, before, &area, addr)
            .and_then(|()| judge_entries(cx, step, before, &wish, addr))
            .and_then(|()| judge_nodes(cx, step, before, &area, addr));
        verdict.map_err(|message| {
            cx.violation(OracleId::O23Areas, &[], format!("{:?} gave {addr:#x}: {message}", step.call))
        })
    }
}

/// Whether a call that may make an area is judged, so that what this costs does not grow with the number of areas.
fn is_due(cx: &mut Context<'_>) -> bool {
    let waited = cx.model.notes.unjudged_areas + LOOKED_AT;
    let is_due = waited >= cx.model.count(Tiers::GUARDED);
    cx.model.notes.unjudged_areas = if is_due { 0 } else { waited };
    is_due
}

/// Whether a call makes an area if it is granted: what fits a page is none for `kvmalloc`, and what fits the old block, or a
/// block for short mappings, is no new one.
fn makes_area(cx: &Context<'_>, call: &Call, wish: &AreaWish) -> bool {
    let stays = |old: u64| cx.model.block(old).is_some_and(|old| wish.pages <= (old.usable / PAGE_SIZE) as u64);
    let is_area = matches!(
        call,
        Call::Vmalloc { .. }
            | Call::VmallocRange(_)
            | Call::Vmap { .. }
            | Call::Window(WindowCall::Vmap { .. } | WindowCall::VmMapRam { .. })
    );
    let is_small = wish.pages <= 1 && !is_area;
    let from_block =
        super::ram::run_of(cx.model, call).is_some_and(|pages| cx.model.ram_blocks_with_room(pages).next().is_some());
    !is_small && !from_block && !old_address(call).is_some_and(stays)
}

fn before(cx: &Context<'_>, wish: AreaWish, call: &Call) -> Option<Before> {
    let inside = cx.subject.white_box().filter(|_| cx.model.is_tight())?;
    let areas = scene::Areas::as_is(cx.model, inside);
    let node = wish.node.unwrap_or(cx.model.node_here());
    let near = fallback_order(cx.model.geometry(), node)
        .into_iter()
        .find(|near| cx.model.geometry().nodes().any(|with_memory| with_memory == *near))?;
    let has_nodes = cx.model.geometry().nodes().nth(1).is_some();
    let plain = cx.model.geometry().page_debug & PageDebug::CHECK == PageDebug::empty();
    let found = (wish.huge || has_nodes).then(|| Snapshot::of_blocks(cx.model, inside, false));
    let must_be_huge = wish.huge
        && plain
        && areas.window(cx.model.geometry(), AS_IS).lowest_gap(&wish.as_huge()).is_some()
        && found.as_ref().is_some_and(|found| {
            found.polite_runs(cx.model, wish.gfp, near, HUGE_ORDER) > wish.as_huge().pages / HUGE_PAGES
        });
    let suffices = |found: &Snapshot| found.polite_pages(cx.model, wish.gfp, near) >= wish.as_huge().pages + BESIDE;
    let judged = has_nodes && !super::window::shows_others(call) && cx.model.geometry().mobility != Mobility::Defrag;
    let near = found.as_ref().filter(|_| judged).is_some_and(suffices).then_some(near);
    Some(Before { areas, given_back: given_back(inside), must_be_huge, near })
}

/// The area is where it belongs; of a mapping that is the first of a block, the block is.
fn judge_where(cx: &Context<'_>, step: &Step, before: &Before, area: &AreaWish, addr: u64) -> Result<(), String> {
    let block = super::ram::run_of(cx.model, &step.call).map(|_| AreaWish::ram_block(cx.model.geometry(), area.gfp));
    judge_place(cx, before, block.as_ref().unwrap_or(area), addr)
}

/// The area is at the lowest place that there was.
fn judge_place(cx: &Context<'_>, before: &Before, area: &AreaWish, addr: u64) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let page = addr / PAGE_SIZE as u64;
    let window = |stay| before.areas.window(cx.model.geometry(), stay);
    let lowest = |stay| window(stay).lowest_gap(area);
    let is_lowest = |stay| lowest(stay) == Some(page);
    let is_pooled = || window(AS_IS).pooled_for(area).any(|pooled| pooled == page);
    let is_lowest_purged = || {
        let after = [(FLUSHED, false), (FLUSHED, true), (LIVE, false), (LIVE, true)];
        let window = |(stay, forced)| before.areas.purged_window(cx.model.geometry(), stay, forced);
        after.into_iter().any(|after| window(after).lowest_gap(area) == Some(page))
    };
    let has_pools = cx.model.geometry().cpus > 1;
    let fits = match given_back(inside) != before.given_back {
        false => is_lowest(AS_IS) || is_lowest(WITHOUT_POOLS) || is_pooled(),
        true if has_pools => {
            let freest = before.areas.purged_window(cx.model.geometry(), LIVE, true).lowest_gap(area);
            let freest = freest.is_some_and(|lowest| lowest <= page);
            let in_range = area.within.is_none_or(|(first, end)| (first..end).contains(&page));
            freest && in_range && page.is_multiple_of(area.align)
        }
        true => [AS_IS, WITHOUT_POOLS, FLUSHED, LIVE].into_iter().any(is_lowest) || is_lowest_purged(),
    };
    let places = || [AS_IS, WITHOUT_POOLS, FLUSHED, LIVE].map(lowest);
    if fits { Ok(()) } else { Err(format!("page {page:#x}, but the lowest place for {area:x?} is {:x?}", places())) }
}

/// How often addresses were given back.
fn given_back(inside: &dyn WhiteBox) -> u64 {
    [Event::Purge, Event::ReclaimVa].map(|event| inside.event_count(event)).iter().sum()
}

/// All entries map the same number of pages, and no more than the request allows.
fn judge_entries(cx: &Context<'_>, step: &Step, before: &Before, wish: &AreaWish, addr: u64) -> Result<(), String> {
    let leaf = cx.subject.leaf_order(addr);
    if leaf > 0 && !(wish.huge && leaf == HUGE_ORDER) {
        return Err(format!("its first entry maps 2^{leaf} pages, for which nobody asked"));
    }
    if leaf == 0 && before.must_be_huge && !step.fault_struck {
        return Err("mapped page by page, but there were blocks and addresses for huge entries".to_owned());
    }
    let pages = wish.as_mapped(leaf).pages;
    let mut others = (0..pages).map(|n| addr + n * PAGE_SIZE as u64).filter(|&at| cx.subject.leaf_order(at) != leaf);
    match others.next() {
        Some(other) => Err(format!("the entry for {other:#x} maps another number of pages than the first, 2^{leaf}")),
        None => Ok(()),
    }
}

/// The pages are of the nodes that the flags allow.
fn judge_nodes(cx: &Context<'_>, step: &Step, before: &Before, area: &AreaWish, addr: u64) -> Result<(), String> {
    let strict = area.gfp.contains(GfpFlags::THISNODE).then(|| area.node.unwrap_or(cx.model.node_here()));
    let Some(wanted) = strict.or(before.near.filter(|_| !step.fault_struck)) else { return Ok(()) };
    if super::window::shows_others(&step.call) {
        return Ok(());
    }
    // What grows by other addresses keeps the frames that it has, wherever these are.
    let old = old_address(&step.call).and_then(|old| cx.model.block(old)).map_or(&[][..], |old| &old.frames);
    for (n, at) in (0..area.pages).map(|n| (n as usize, addr + n * PAGE_SIZE as u64)) {
        let frame = cx.subject.translate(at).map(|physical| (physical / PAGE_SIZE as u64) as u32);
        let found = frame.and_then(|frame| cx.model.node_of(frame));
        if frame.is_some() && frame != old.get(n).copied() && found != Some(wanted.get()) {
            return Err(format!("{at:#x} has frame {frame:x?} of node {found:?}, but node {wanted} was to give it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use crate::subject::AreaCall;

    fn call(within: Option<(u64, u64)>, align: usize) -> AreaCall {
        let (size, gfp) = (2 * PAGE_SIZE, GfpFlags::KERNEL);
        AreaCall { size, align, within, gfp, node: None, guard: true, huge: false }
    }

    fn verdict(subject: &mut FakeSubject, area: AreaCall, page: u64) -> Result<(), String> {
        let mut model = subject.model();
        let call = Call::VmallocRange(area);
        Areas.before_call(&mut context(&mut model, subject), &call).unwrap();
        subject.map(page, &[8, 9]);
        let reply = Reply::Block { addr: subject.window(page), usable: area.size };
        let judged = ask(&Areas, &mut model, subject, &step(call, reply)).map_err(|wrong| wrong.message);
        subject.unmap(page, 2);
        judged
    }

    #[test]
    fn the_lowest_place_of_the_range_is_the_right_one() {
        let mut subject = FakeSubject::new(64);
        let first = subject.window(0) / PAGE_SIZE as u64;
        assert!(verdict(&mut subject, call(None, 1), 0).is_ok() && verdict(&mut subject, call(None, 1), 1).is_err());
        let range = call(Some((first + 5, first + 20)), 4 * PAGE_SIZE);
        assert!(verdict(&mut subject, range, 8).is_ok());
        for wrong in [4, 5, 12] {
            assert!(verdict(&mut subject, range, wrong).unwrap_err().contains("lowest"), "page {wrong}");
        }
    }

    #[test]
    fn entries_of_many_pages_must_be_allowed_and_alike() {
        let mut subject = FakeSubject::new(64);
        subject.leaf = 9;
        assert!(verdict(&mut subject, call(None, 1), 0).unwrap_err().contains("nobody asked"));
    }

    #[test]
    fn a_strict_node_gives_every_page() {
        let mut subject = FakeSubject::new(64);
        let strict = AreaCall { gfp: GfpFlags::KERNEL | GfpFlags::THISNODE, node: NodeId::new(0), ..call(None, 1) };
        assert!(verdict(&mut subject, strict, 0).is_ok());
        let other = AreaCall { node: NodeId::new(1), ..strict };
        assert!(verdict(&mut subject, other, 0).unwrap_err().contains("node 1"));
    }
}
