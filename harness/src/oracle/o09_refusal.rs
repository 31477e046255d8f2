//! O9: was a refusal justified, and was a bad request refused?
//!
//! Contract: sections 1.2, 2.1, 2.3, 3.1, 3.5, 3.7, 4.1, 4.3 and the kinds of error. A request that the contract forbids must
//! be refused, with the error that names the reason. A proper request may be refused only for want of memory or of address
//! space, and then it is recomputed whether there was none (and, when memory is short, whether a block without reclaim
//! was served from a reserve to which it has no right):
//!
//! * with `DIRECT_RECLAIM`: on an imagined machine on which only pinned frames are in use;
//! * without, or with `NORETRY` for a costly order: from the free blocks, objects and gaps as they were.
//!
//! An injected fault justifies a refusal if one struck during the call, and nothing else does. The recomputation is in
//! [`scene`](super::scene), which also says where it leans to "justified", and by how much. Of a loose subject only one
//! thing is demanded: with nothing live, a modest request with plain flags is served.
//!
//! What the page allocator's policy adds (nodes, reserves, why it gave up) is in [`policy`](super::policy). At the first
//! audit the zones' marks are compared with those of section 3.5.

use super::contig;
use super::policy::{
    check_reserves, compaction_counts, found_bad_block, insists, judge_boost, judge_bulk, judge_node, judge_put_off,
    judge_reclaim, judge_urgent, judge_why, may_skip_reclaim, mixing_counts, page_request, refusal_counts,
    urgent_counts,
};
use super::ram::{run_of, run_served};
use super::scene::Snapshot;
use super::window::shows_others;
use super::{Context, Contiguous, Oracle, OracleId, Step, Violation};
use crate::model::areas::AreaWish;
use crate::model::classes::{KVMALLOC_MAX, get_order, kmalloc_max};
use crate::model::zones::{bad_mobility, highest_zone, watermarks};
use crate::model::{Block, Model, Tier, Tiers, is_elsewhere, old_address};
use crate::subject::{Call, Reply, WindowCall};
use kmem::{AllocError, CacheId, GfpFlags, NodeId, PAGE_SIZE, VmFlags, ZoneKind};

/// See the module.
pub(super) struct RefusalJustified;

impl Oracle for RefusalJustified {
    fn id(&self) -> OracleId {
        OracleId::O9RefusalJustified
    }

    fn before_call(&self, cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
        super::o09_objects::before_call(cx, call);
        if let Some(inside) = cx.subject.white_box() {
            cx.model.notes.refusals = refusal_counts(inside);
            cx.model.notes.mixing = mixing_counts(inside);
            cx.model.notes.compactions = compaction_counts(inside);
            cx.model.notes.urgent = urgent_counts(inside);
        }
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let policy = judge_boost(cx).and_then(|()| judge_urgent(cx)).and_then(|()| judge_put_off(cx));
        policy.map_err(|message| cx.violation(OracleId::O9RefusalJustified, &[], message))?;
        if let Call::Objects(call) = &step.call {
            return super::o09_objects::judge(cx, step, call);
        }
        let verdict = match &step.reply {
            Reply::Refused(error) if cx.model.is_tight() => judge_refusal(cx, step, error),
            Reply::Refused(error) => judge_loose_refusal(cx, step, error),
            Reply::Pages(pages) if cx.model.is_tight() => {
                judge_empty_bulk(cx, step, pages).and_then(|()| judge_bulk(cx, step, pages))
            }
            Reply::Block { addr, .. } if cx.model.is_tight() => {
                judge_success(cx, &step.call).and_then(|()| judge_node(cx, &step.call, *addr))
            }
            Reply::Done if matches!(step.call, Call::Reclaim) => judge_reclaim(cx),
            _ => Ok(()),
        };
        verdict.map_err(|message| cx.violation(OracleId::O9RefusalJustified, &[], message))
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        if let Some(inside) = cx.subject.white_box() {
            check_reserves(inside).map_err(|message| cx.violation(OracleId::O9RefusalJustified, &[], message))?;
        }
        if std::mem::replace(&mut cx.model.notes.watermarks_checked, true) {
            return Ok(());
        }
        let Some(inside) = cx.subject.white_box() else { return Ok(()) };
        let expected = watermarks(cx.model.geometry());
        for (info, marks) in inside.buddyinfo().zones().iter().zip(expected) {
            if (info.min, info.low, info.high, info.promo) != (marks.min, marks.low, marks.high, marks.promo) {
                let message = format!("the marks of zone {:?} should be {marks:?}: {info:?}", info.kind);
                return Err(cx.violation(OracleId::O9RefusalJustified, &[], message));
            }
        }
        Ok(())
    }
}

/// Why the contract forbids a request.
#[derive(Clone)]
pub(super) struct Reason {
    pub(super) what: &'static str,
    pub(super) accepts: fn(&AllocError) -> bool,
    /// Whether the request must be refused; otherwise the contract leaves it open.
    pub(super) must: bool,
}

const OVERFLOW: Reason =
    Reason { what: "n * size overflows", accepts: |e| matches!(e, AllocError::Overflow), must: true };
pub(super) const ZERO_SIZE: Reason =
    Reason { what: "size 0", accepts: |e| matches!(e, AllocError::ZeroSize), must: true };
const TOO_LARGE: Reason = Reason {
    what: "more than the call ever gives",
    accepts: |e| matches!(e, AllocError::TooLarge { .. } | AllocError::Overflow),
    must: true,
};
pub(super) const ORDER: Reason = Reason {
    what: "an order above the largest",
    accepts: |e| matches!(e, AllocError::OrderTooLarge { .. } | AllocError::TooLarge { .. }),
    must: true,
};
pub(super) const FLAGS: Reason =
    Reason { what: "flags that contradict each other", accepts: |e| matches!(e, AllocError::BadFlags), must: true };
const FLAGS_OPEN: Reason = Reason { must: false, ..FLAGS };
const ADDRESS: Reason = Reason {
    what: "an address that is no block of this kind",
    accepts: |e| matches!(e, AllocError::BadAddress(_)),
    must: true,
};

const ALIGN: Reason =
    Reason { what: "an alignment that cannot be had", accepts: |e| matches!(e, AllocError::BadAlign(_)), must: true };

pub(super) const ADDRESS_RANGE: Reason = Reason {
    what: "frames that are not in one zone or, as a block, no aligned power of two",
    accepts: |e| matches!(e, AllocError::BadRange { .. }),
    must: true,
};

/// The reasons for which a request must or may be refused whatever memory there is.
fn reasons(model: &Model, call: &Call) -> Vec<Reason> {
    let largest = model.geometry().max_order.get();
    match *call {
        Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. } => page_reasons(order > largest, gfp),
        // Only orders of which CPUs keep lists (section 3.4).
        Call::AllocPagesNolock { order } => {
            let listed = order <= 3 || order == model.geometry().pageblock_order.get();
            if listed && order <= largest { Vec::new() } else { vec![ORDER] }
        }
        Call::AllocPagesBulk { gfp, .. } => page_reasons(false, gfp),
        Call::AllocPagesExact { size: 0, .. } => vec![ZERO_SIZE],
        Call::AllocPagesExact { size, gfp } => {
            page_reasons(get_order(size) > largest, gfp.difference(GfpFlags::HIGHMEM))
        }
        Call::Kmalloc { size, gfp } => kmalloc_reasons(model, Some(size), gfp),
        Call::KmallocArray { n, size, gfp } => kmalloc_reasons(model, n.checked_mul(size), gfp),
        Call::Krealloc { size, gfp, .. } => realloc_reasons(model, call, Tiers::KMALLOC, size, gfp, kmalloc_reasons),
        Call::CacheAlloc { cache, gfp } => cache_reasons(model, cache, gfp),
        Call::Vmalloc { size, gfp } => vmalloc_reasons(model, Some(size), gfp),
        Call::VmallocRange(ref area) => {
            let mut reasons = vmalloc_reasons(model, Some(area.size), area.gfp);
            reasons.extend((!area.align.is_power_of_two()).then_some(ALIGN));
            reasons
        }
        Call::KvmallocNode { size, align, gfp, .. } => match promised_align(size, align) {
            true => kvmalloc_reasons(model, Some(size), gfp),
            false => vec![ALIGN],
        },
        Call::Vrealloc { size, gfp, near, .. } => {
            let mut reasons = realloc_reasons(model, call, Tiers::VMALLOC, size, gfp, vmalloc_reasons);
            if let Some(block) = old_block(model, call).filter(|_| size > 0) {
                if !near.align.is_power_of_two() || !block.addr.is_multiple_of(near.align as u64) {
                    reasons.push(ALIGN);
                }
                if is_elsewhere(model, call, block) {
                    reasons.extend(vmalloc_reasons(model, Some(size), gfp));
                }
            }
            reasons
        }
        Call::Vmap { ref pfns } => vmap_reasons(model, pfns),
        Call::Window(ref call) => window_reasons(model, call),
        Call::AllocContigRange { start, pages, gfp } => contig::reasons(model, Some(start), pages, gfp),
        Call::AllocContigPages { pages, gfp } => contig::reasons(model, None, pages, gfp),
        Call::Kvmalloc { size, gfp } => kvmalloc_reasons(model, Some(size), gfp),
        Call::KvmallocArray { n, size, gfp } => kvmalloc_reasons(model, n.checked_mul(size), gfp),
        Call::Kvrealloc { size, gfp, .. } => match old_block(model, call).map(|b| b.tier) {
            Some(Tier::Vmalloc) => realloc_reasons(model, call, Tiers::VMALLOC, size, gfp, vmalloc_reasons),
            _ => realloc_reasons(model, call, Tiers::KMALLOC, size, gfp, kvmalloc_reasons),
        },
        _ => Vec::new(),
    }
}

/// Whether `kmalloc` promises this alignment for the size (sections 1.3 and 2.2): a power of two that divides it, or 8.
fn promised_align(size: usize, align: usize) -> bool {
    align.is_power_of_two() && (align <= 8 || size.is_multiple_of(align))
}

fn page_reasons(too_large: bool, gfp: GfpFlags) -> Vec<Reason> {
    let mut reasons = mobility_reasons(gfp);
    if too_large {
        reasons.push(ORDER);
    }
    if highest_zone(gfp).is_none() {
        reasons.push(FLAGS);
    }
    reasons
}

/// Both mobility bits at once are a bug of the caller (3.1); what the answer is, the contract does not say.
fn mobility_reasons(gfp: GfpFlags) -> Vec<Reason> {
    if bad_mobility(gfp) { vec![FLAGS_OPEN] } else { Vec::new() }
}

pub(super) fn cache_reasons(model: &Model, cache: CacheId, gfp: GfpFlags) -> Vec<Reason> {
    match model.cache(cache) {
        Some(cache) if cache.ctor && gfp.wants_zero() => vec![FLAGS],
        _ => mobility_reasons(gfp),
    }
}

pub(super) fn kmalloc_reasons(model: &Model, size: Option<usize>, gfp: GfpFlags) -> Vec<Reason> {
    let limit = kmalloc_max(model.geometry().max_order.get());
    match size {
        None => vec![OVERFLOW],
        Some(size) if size > limit => [vec![TOO_LARGE], mobility_reasons(gfp)].concat(),
        Some(_) => mobility_reasons(gfp),
    }
}

fn vmalloc_reasons(model: &Model, size: Option<usize>, gfp: GfpFlags) -> Vec<Reason> {
    match size {
        None => vec![OVERFLOW],
        Some(0) => vec![ZERO_SIZE],
        Some(size) if size.div_ceil(PAGE_SIZE) as u64 > model.geometry().managed().get() => {
            [vec![TOO_LARGE], vmalloc_flags(gfp)].concat()
        }
        Some(_) => vmalloc_flags(gfp),
    }
}

/// Which of two reasons is told the contract leaves open.
fn vmalloc_flags(gfp: GfpFlags) -> Vec<Reason> {
    if highest_zone(gfp).is_none() || bad_mobility(gfp) { vec![FLAGS_OPEN] } else { Vec::new() }
}

fn kvmalloc_reasons(model: &Model, size: Option<usize>, gfp: GfpFlags) -> Vec<Reason> {
    match size {
        Some(size) if size > KVMALLOC_MAX => vec![TOO_LARGE],
        Some(size) if size <= PAGE_SIZE => kmalloc_reasons(model, Some(size), gfp),
        size => vmalloc_reasons(model, size, gfp),
    }
}

/// A reallocation of something that is no block of these tiers is refused; one that fits never is; the rest is as an
/// allocation of the new size.
fn realloc_reasons(
    model: &Model,
    call: &Call,
    tiers: Tiers,
    size: usize,
    gfp: GfpFlags,
    fresh: fn(&Model, Option<usize>, GfpFlags) -> Vec<Reason>,
) -> Vec<Reason> {
    match (old_address(call), old_block(model, call)) {
        (Some(_), Some(block)) if tiers.contains(block.tier) => {
            if size <= room(block) {
                Vec::new()
            } else {
                fresh(model, Some(size), gfp)
            }
        }
        (Some(_), _) => vec![ADDRESS],
        // Reallocating nothing to nothing is answered by null or refused; the contract has a row for either.
        (None, _) if size == 0 => vec![Reason { must: false, ..ZERO_SIZE }],
        (None, _) => fresh(model, Some(size), gfp),
    }
}

fn vmap_reasons(model: &Model, pfns: &[u32]) -> Vec<Reason> {
    let zones = model.geometry().zones();
    let owned = |&pfn: &u32| {
        zones.iter().any(|z| pfn >= z.start.as_u32() && u64::from(pfn - z.start.as_u32()) < z.frames.get())
    };
    match pfns {
        [] => vec![ZERO_SIZE],
        _ if pfns.len() as u64 > model.geometry().managed().get() => vec![TOO_LARGE],
        _ if !pfns.iter().all(owned) => vec![Reason { must: false, ..ADDRESS }],
        _ => Vec::new(),
    }
}

fn window_reasons(model: &Model, call: &WindowCall) -> Vec<Reason> {
    let mut reasons = match call {
        WindowCall::Vmalloc { size, gfp, .. } => vmalloc_reasons(model, Some(*size), *gfp),
        WindowCall::Vmap { pfns, .. } | WindowCall::VmMapRam { pfns, .. } => vmap_reasons(model, pfns),
        _ => Vec::new(),
    };
    let WindowCall::Vmap { pfns, flags, .. } = call else { return reasons };
    if flags.contains(VmFlags::FLUSH_RESET_PERMS) {
        reasons.push(FLAGS);
    }
    // An area has a reference to a page only if that is a block of its own.
    let is_single = |frame: &u32| match model.page_block_around(model.address_of(*frame)) {
        Some(block) => block.tier == Tier::PagesExact || block.order == 0,
        None => false,
    };
    if flags.contains(VmFlags::MAP_PUT_PAGES) && !pfns.iter().all(is_single) {
        reasons.push(ADDRESS);
    }
    reasons
}

fn old_block<'m>(model: &'m Model, call: &Call) -> Option<&'m Block> {
    model.block(old_address(call)?)
}

/// Bytes to which a block can grow where it is.
fn room(block: &Block) -> usize {
    if block.tier == Tier::Vmalloc { block.frames.len() * PAGE_SIZE } else { block.usable }
}

fn judge_success(cx: &Context<'_>, call: &Call) -> Result<(), String> {
    match reasons(cx.model, call).into_iter().find(|reason| reason.must) {
        Some(reason) => Err(format!("{call:?} was served in spite of {}", reason.what)),
        None => judge_generosity(cx, call),
    }
}

/// The reserve is for those who have a right to it: without reclaim a block must come from above the watermark.
fn judge_generosity(cx: &Context<'_>, call: &Call) -> Result<(), String> {
    let asked = match *call {
        Call::AllocPagesNolock { order } => Some((order, GfpFlags::NOMEMALLOC, None)),
        _ => page_request(call),
    };
    let (Some((order, gfp, node)), Some(before)) = (asked, &cx.model.notes.before) else { return Ok(()) };
    if gfp.may_block() || before.may_serve_pages_on(cx.model, order, gfp, node) {
        return Ok(());
    }
    Err(format!("{call:?} was served from below the watermark"))
}

fn judge_refusal(cx: &Context<'_>, step: &Step, error: &AllocError) -> Result<(), String> {
    let reasons = reasons(cx.model, &step.call);
    if let Some(verdict) = judge_reasons(&reasons, step, error) {
        return verdict;
    }
    match (&step.call, error) {
        (Call::AllocContigRange { .. } | Call::AllocContigPages { .. }, _) => contig::judge(cx, step, error),
        (_, AllocError::NoPages { .. } | AllocError::NoVirtualSpace { .. }) => {
            judge_exhaustion(cx, step, error).and_then(|()| judge_why(cx, &step.call))
        }
        _ => Err(format!("{:?} is a proper request, but was refused with \"{error}\"", step.call)),
    }
}

/// What the reasons alone say about a refusal; `None` if memory or address space has to be looked at.
pub(super) fn judge_reasons(reasons: &[Reason], step: &Step, error: &AllocError) -> Option<Result<(), String>> {
    if reasons.iter().any(|reason| (reason.accepts)(error)) {
        return Some(Ok(()));
    }
    if step.fault_struck && error.is_exhaustion() {
        return Some(Ok(()));
    }
    if let Some(reason) = reasons.iter().find(|reason| reason.must) {
        return Some(Err(format!("{:?} has {}, but was refused with \"{error}\"", step.call, reason.what)));
    }
    match error {
        AllocError::Injected(point) => Some(Err(format!("refused with a fault at {point:?}, but none was injected"))),
        _ => None,
    }
}

fn judge_empty_bulk(cx: &Context<'_>, step: &Step, pages: &[u64]) -> Result<(), String> {
    match step.call {
        Call::AllocPagesBulk { count, gfp }
            if pages.is_empty() && count > 0 && !step.fault_struck && page_reasons(false, gfp).is_empty() =>
        {
            judge_exhaustion(cx, step, &AllocError::NoPages { order: kmem::Order::ZERO })
        }
        _ => Ok(()),
    }
}

/// Recomputes whether memory or address space had run out.
fn judge_exhaustion(cx: &Context<'_>, step: &Step, error: &AllocError) -> Result<(), String> {
    let (Some(inside), Some((size, gfp))) = (cx.subject.white_box(), cx.model.promised(&step.call)) else {
        return Ok(());
    };
    let fits = |block: &&Block| size <= room(block) && !is_elsewhere(cx.model, &step.call, block);
    if old_block(cx.model, &step.call).filter(fits).is_some() {
        return Err(format!("{:?} fits the block as it is, but was refused with \"{error}\"", step.call));
    }
    // Who must not fail may use the reserve in the end.
    let gfp = if gfp.may_block() && gfp.contains(GfpFlags::NOFAIL) { gfp | GfpFlags::HIGH } else { gfp };
    let reclaims = gfp.may_block() && !may_skip_reclaim(gfp, error);
    let found = match &cx.model.notes.before {
        _ if reclaims => Snapshot::reclaimed(cx.model, inside, insists(&step.call, gfp)),
        Some(before) => before.clone(),
        None => Snapshot::as_is(cx.model, inside),
    };
    match served_by(cx, &found, &step.call, size, gfp, error) {
        Some(how) => {
            let state = if reclaims { "after reclaim" } else { "without reclaim" };
            Err(format!("{:?} was refused with \"{error}\", but {state} {how}", step.call))
        }
        None => Ok(()),
    }
}

/// What would have served the request; `None` if nothing.
fn served_by(
    cx: &Context<'_>,
    found: &Snapshot,
    call: &Call,
    size: usize,
    gfp: GfpFlags,
    error: &AllocError,
) -> Option<&'static str> {
    let model: &Model = cx.model;
    let wish = AreaWish::of(model.geometry(), call);
    let area = |own: bool| area_served(found, model, &AreaWish { gfp, ..wish? }, own, error);
    let block = "a free block of an allowed zone passes the watermark";
    let object = "a free object or a slab's frames are there";
    match call {
        Call::AllocPages { order, .. } | Call::AllocPagesNolock { order } => {
            found.serves_pages(model, *order, gfp).then_some(block)
        }
        Call::AllocPagesNode { order, node, .. } => found.serves_pages_on(model, *order, gfp, *node).then_some(block),
        Call::AllocPagesBulk { .. } => found.serves_pages(model, 0, gfp).then_some(block),
        Call::AllocPagesExact { .. } => {
            found.serves_pages(model, get_order(size), gfp.difference(GfpFlags::HIGHMEM)).then_some(block)
        }
        Call::CacheAlloc { cache, .. } => {
            let stride = model.cache(*cache)?.stride;
            found.serves_object(model, *cache, stride, gfp).then_some(object)
        }
        Call::Vmalloc { .. } | Call::VmallocRange(_) => area(true),
        // What a node must serve is not asked here.
        Call::Vrealloc { near, .. } if near.node.is_some() => None,
        Call::Vrealloc { .. } | Call::Kvrealloc { .. }
            if old_block(model, call).is_some_and(|block| block.tier == Tier::Vmalloc) =>
        {
            old_block(model, call).zip(wish).and_then(|(block, wish)| growth_served(found, model, block, &wish, error))
        }
        Call::Vrealloc { .. } => area(true),
        _ if run_of(model, call).is_some() => run_served(found, model, run_of(model, call)?, gfp, error),
        call if shows_others(call) => area(false),
        Call::Window(_) => area(true),
        Call::Kvmalloc { .. } | Call::KvmallocNode { .. } | Call::KvmallocArray { .. } | Call::Kvrealloc { .. }
            if size > PAGE_SIZE =>
        {
            let node = wish.and_then(|wish| wish.node);
            contiguous_served(cx, found, size, gfp, node)
                .then_some("a contiguous block is there")
                .or_else(|| area(true))
        }
        Call::KvmallocNode { node, .. } => found.serves_kmalloc_near(model, size, gfp, *node).then_some(object),
        _ => found.serves_kmalloc(model, size, gfp).then_some(object),
    }
}

/// Whether `kvmalloc`'s first attempt had to succeed: without reclaim in the state before the call, or with it if the
/// caller insists.
fn contiguous_served(cx: &Context<'_>, found: &Snapshot, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> bool {
    if size > kmalloc_max(cx.model.geometry().max_order.get()) {
        return false;
    }
    let reclaims = gfp.may_block() && gfp.contains(GfpFlags::RETRY_MAYFAIL);
    (cx.model.notes.contiguous == Some(Contiguous::Must) && !found_bad_block(cx))
        || (reclaims && found.serves_kmalloc_near(cx.model, size, gfp, node))
}

/// An area that grows needs the pages that it lacks, and the addresses behind it or a gap for all of it.
fn growth_served(
    found: &Snapshot,
    model: &Model,
    block: &Block,
    wish: &AreaWish,
    error: &AllocError,
) -> Option<&'static str> {
    let verdict = found.serves_growth(model, block, wish);
    match error {
        AllocError::NoVirtualSpace { .. } => verdict.has_gap.then_some("the area can grow there, or elsewhere"),
        _ => verdict.has_memory.then_some("there is memory for the pages that the area lacks"),
    }
}

fn area_served(
    found: &Snapshot,
    model: &Model,
    wish: &AreaWish,
    own: bool,
    error: &AllocError,
) -> Option<&'static str> {
    let verdict = found.serves_area(model, wish, own);
    match error {
        AllocError::NoVirtualSpace { .. } => verdict.has_gap.then_some("the window has a gap"),
        _ => verdict.has_memory.then_some("there is memory for descriptor, pages and page tables"),
    }
}

/// With nothing live, a modest request with plain flags is served by every allocator.
fn judge_loose_refusal(cx: &Context<'_>, step: &Step, error: &AllocError) -> Result<(), String> {
    let Some((size, gfp)) = cx.model.promised(&step.call) else { return Ok(()) };
    let zones = cx.model.geometry().zones().iter().filter(|zone| zone.kind != ZoneKind::Movable);
    let memory = zones.map(|zone| zone.frames.get()).sum::<u64>() as usize * PAGE_SIZE;
    let plain = gfp.difference(GfpFlags::ZERO | GfpFlags::NOWARN) == GfpFlags::KERNEL;
    // A block as large as its alignment can lie nowhere else.
    let size = if let Call::KvmallocNode { align, .. } = step.call { size.max(align.min(memory)) } else { size };
    if cx.model.is_empty() && error.is_exhaustion() && plain && !step.fault_struck && (1..=memory / 16).contains(&size)
    {
        return Err(format!("nothing is live, but {:?} was refused: {:?}", step.call, step.reply));
    }
    Ok(())
}

#[cfg(test)]
#[path = "o09_tests.rs"]
mod tests;
