//! O9 and O3 for the calls of [`ObjectsCall`]: what is asked of them as a whole.
//!
//! Contract: 2.3, 2.10 and 2.11. A bulk is refused only if not all of its objects can be had; a prefilled sheaf gives
//! exactly as many objects as are in it; nothing and more than the room of a sheaf are refused. A caller that insists on a
//! memory node gets objects of that node, or is refused because it has none; one that prefers it gets them if the node had
//! a free object or a slab's frames above the watermark before the call.
//!
//! Leans to "justified": objects in sheaves of other CPUs and barns of other nodes do not oblige; of slabs whose smallest
//! order is above 0, one new slab is counted on.

use super::o09_refusal::{cache_reasons, judge_reasons, kmalloc_reasons};
use super::policy::may_skip_reclaim;
use super::scene::Snapshot;
use super::{Context, OracleId, Step, Violation};
use crate::model::Tier;
use crate::model::classes::{KMALLOC_MAX_CACHE, kmalloc_max};
use crate::subject::{Call, ObjectsCall, Reply, SHEAF_ROOM};
use kmem::{AllocError, CacheId, FreeError, GfpFlags, Hardening};

/// The flags that `kmalloc_nolock` knows.
const NOLOCK: GfpFlags = GfpFlags::ZERO.union(GfpFlags::ACCOUNT).union(GfpFlags::THISNODE);

/// Notes what the call finds and whether a node that the caller prefers has something, before the call.
pub(super) fn before_call(cx: &mut Context<'_>, call: &Call) {
    let found = found_before(cx, call);
    cx.model.notes.near = found.as_ref().and_then(|found| near_before(cx, call, found));
    cx.model.notes.objects = found;
}

/// What a refusal without reclaim, or a preferred node, is judged by. A refused call may leave more than it found: slabs
/// and lists of pages that it emptied on its way.
fn found_before(cx: &Context<'_>, call: &Call) -> Option<Snapshot> {
    let Call::Objects(call) = call else { return None };
    let gives_up = call.gfp().is_some_and(|gfp| !gfp.may_block() || gfp.contains(GfpFlags::NORETRY));
    let inside = cx.subject.white_box().filter(|_| gives_up || call.node().is_some())?;
    Some(Snapshot::of_blocks(cx.model, inside, true))
}

fn near_before(cx: &Context<'_>, call: &Call, found: &Snapshot) -> Option<bool> {
    let Call::Objects(call) = call else { return None };
    let node = call.node()?;
    Some(match *call {
        ObjectsCall::KmallocNode { size, .. } if size > KMALLOC_MAX_CACHE || size == 0 => return None,
        ObjectsCall::KmallocNode { size, gfp, .. } => found.serves_kmalloc_on(cx.model, size, modest(gfp), node),
        ObjectsCall::CacheAllocNode { cache, gfp, .. } => {
            let stride = cx.model.cache(cache)?.stride;
            found.serves_object_on(cx.model, cache, stride, modest(gfp), node)
        }
        _ => return None,
    })
}

/// The flags with which a preferred node is asked.
fn modest(gfp: GfpFlags) -> GfpFlags {
    GfpFlags::NOWAIT | GfpFlags::THISNODE | (gfp & (GfpFlags::DMA | GfpFlags::RECLAIMABLE | GfpFlags::NOMEMALLOC))
}

/// Judges the answer to the call as a whole.
pub(super) fn judge(cx: &Context<'_>, step: &Step, call: &ObjectsCall) -> Result<(), Violation> {
    let verdict = match &step.reply {
        Reply::Refused(error) => judge_refusal(cx, step, call, error),
        Reply::Rejected(error) => judge_rejection(cx, call, error),
        Reply::Objects(objects) => judge_objects(cx, step, call, objects),
        Reply::Size(left) => judge_refill(cx, call, *left),
        Reply::Sheaf(_) => judge_prefill(call),
        _ => Ok(()),
    };
    verdict.map_err(|message| cx.violation(OracleId::O9RefusalJustified, &[], message))
}

fn judge_objects(cx: &Context<'_>, step: &Step, call: &ObjectsCall, objects: &[(u64, usize)]) -> Result<(), String> {
    match *call {
        ObjectsCall::KmallocNolock { size, gfp } if size > KMALLOC_MAX_CACHE || !NOLOCK.contains(gfp) => {
            Err(format!("{call} was served"))
        }
        ObjectsCall::AllocBulk { count, .. } if objects.len() != count || count == 0 => {
            Err(format!("{call} gave {} objects", objects.len()))
        }
        ObjectsCall::AllocFromSheaf { sheaf, .. } if cx.model.sheaf(sheaf).is_none_or(|held| held.left == 0) => {
            Err(format!("{call} gave an object, but none was left"))
        }
        ObjectsCall::KmallocNode { node, gfp, .. } | ObjectsCall::CacheAllocNode { node, gfp, .. } => {
            objects.iter().try_for_each(|&(addr, _)| judge_node(cx, step, gfp, node, addr))
        }
        _ => Ok(()),
    }
}

/// The object is of the node that the caller insists on, or that it prefers and that had something.
fn judge_node(cx: &Context<'_>, step: &Step, gfp: GfpFlags, node: u8, addr: u64) -> Result<(), String> {
    let Some(frame) = cx.model.direct_frames(addr, 1).next() else { return Ok(()) };
    let found = cx.model.node_of(frame);
    let prefers = cx.model.notes.near == Some(true) && !step.fault_struck;
    if found == Some(node) || !(gfp.contains(GfpFlags::THISNODE) || prefers) {
        return Ok(());
    }
    Err(format!("{:?} gave {addr:#x} of node {found:?}, but node {node} was to serve it", step.call))
}

fn judge_prefill(call: &ObjectsCall) -> Result<(), String> {
    match *call {
        ObjectsCall::PrefillSheaf { count, .. } if count == 0 || count > SHEAF_ROOM => {
            Err(format!("{call} was served"))
        }
        _ => Ok(()),
    }
}

/// A refill adds what is missing and takes nothing away.
fn judge_refill(cx: &Context<'_>, call: &ObjectsCall, left: usize) -> Result<(), String> {
    let ObjectsCall::RefillSheaf { sheaf, count, .. } = *call else { return Ok(()) };
    let before = cx.model.sheaf(sheaf).map_or(0, |held| held.left);
    if left == before.max(count) && count <= SHEAF_ROOM {
        return Ok(());
    }
    Err(format!("{call} left {left} objects in a sheaf that had {before}"))
}

fn judge_refusal(cx: &Context<'_>, step: &Step, call: &ObjectsCall, error: &AllocError) -> Result<(), String> {
    let allowed = |what: bool, why: &str| {
        if what { Ok(()) } else { Err(format!("{call} was refused with \"{error}\", {why}")) }
    };
    let (count, has) = match *call {
        ObjectsCall::AllocFromSheaf { sheaf, cache, gfp } => {
            let zeroed = cx.model.cache(cache).is_some_and(|cache| cache.ctor) && gfp.wants_zero();
            let left = cx.model.sheaf(sheaf).map_or(0, |held| held.left);
            return match error {
                AllocError::BadFlags => allowed(zeroed, "but the flags are proper"),
                AllocError::SheafEmpty => allowed(left == 0, "but the sheaf has objects"),
                _ => allowed(false, "but the sheaf was filled beforehand"),
            };
        }
        ObjectsCall::KmallocNolock { size, gfp } => {
            return judge_nolock(cx, step, call, size, gfp, error);
        }
        ObjectsCall::KmallocNode { .. } | ObjectsCall::CacheAllocNode { .. } => (1, 0),
        ObjectsCall::AllocBulk { count, .. } | ObjectsCall::PrefillSheaf { count, .. } => (count, 0),
        ObjectsCall::RefillSheaf { sheaf, count, .. } => (count, cx.model.sheaf(sheaf).map_or(0, |held| held.left)),
        _ => return Ok(()),
    };
    let is_sheaf = matches!(call, ObjectsCall::PrefillSheaf { .. } | ObjectsCall::RefillSheaf { .. });
    match error {
        AllocError::ZeroSize => return allowed(count == 0, "but it asks for something"),
        AllocError::TooLarge { .. } if is_sheaf => return allowed(count > SHEAF_ROOM, "but there is room"),
        _ => (),
    }
    judge_shortage(cx, step, call, error, count.saturating_sub(has))
}

/// The harness frees blocks that are live; only a large one is none for `kfree_nolock`, and one of a debug cache may have
/// been damaged, or cannot be looked at without a lock. Whether a bulk is right is asked by O16.
fn judge_rejection(cx: &Context<'_>, call: &ObjectsCall, error: &FreeError) -> Result<(), String> {
    let of_debug = |cache: &CacheId| cx.model.cache(*cache).is_some_and(|cache| cache.spec.is_debugged());
    let blocks = call.single_frees();
    let debug = blocks.iter().any(|free| matches!(free, Call::CacheFree { cache, .. } if of_debug(cache)));
    let is_large = |addr: u64| cx.model.block(addr).is_some_and(|block| block.tier == Tier::LargeKmalloc);
    let justified = match (call, error) {
        (&ObjectsCall::KfreeNolock { addr, .. }, FreeError::WrongKind { .. }) => is_large(addr),
        (ObjectsCall::KfreeNolock { .. }, FreeError::WouldBlock(_)) => debug || has_debug_classes(cx),
        (_, FreeError::Corrupted(_)) => debug || has_debug_classes(cx),
        (ObjectsCall::FreeBulk { .. }, _) => cx.model.geometry().hardening != Hardening::Off,
        _ => false,
    };
    if justified { Ok(()) } else { Err(format!("{call} is right, but was rejected with \"{error}\"")) }
}

/// Whether the machine makes the classes of `kmalloc` debug caches.
fn has_debug_classes(cx: &Context<'_>) -> bool {
    !cx.model.geometry().slub_debug.is_empty() || cx.model.checks_of_all() != 0
}

/// Without a lock there is less: only ordinary flags, only classes whose objects nobody checks, and no reclaim. Nobody uses
/// anything at the same time here, so that what is at hand has to be given.
fn judge_nolock(
    cx: &Context<'_>,
    step: &Step,
    call: &ObjectsCall,
    size: usize,
    gfp: GfpFlags,
    error: &AllocError,
) -> Result<(), String> {
    let limit = KMALLOC_MAX_CACHE.min(kmalloc_max(cx.model.geometry().max_order.get()));
    let wrong = || Err(format!("{call} was refused with \"{error}\""));
    match error {
        AllocError::BadFlags if !NOLOCK.contains(gfp) => Ok(()),
        AllocError::TooLarge { .. } if size > limit => Ok(()),
        AllocError::WouldBlock if cx.model.nolock_class(size).is_none() => Ok(()),
        AllocError::Injected(_) | AllocError::NoPages { .. } if step.fault_struck => Ok(()),
        AllocError::NoPages { .. } => {
            let Some(inside) = cx.subject.white_box() else { return Ok(()) };
            let found = Snapshot::of_blocks(cx.model, inside, true);
            let served = cx.model.nolock_class(size).is_some_and(|class| found.has_class_object(class));
            if served { wrong() } else { Ok(()) }
        }
        _ => wrong(),
    }
}

/// Recomputes whether memory had run out.
fn judge_shortage(
    cx: &Context<'_>,
    step: &Step,
    call: &ObjectsCall,
    error: &AllocError,
    missing: usize,
) -> Result<(), String> {
    let (Some(inside), Some(gfp), Some(single)) = (cx.subject.white_box(), call.gfp(), call.single_allocation()) else {
        return Ok(());
    };
    let reasons = match single {
        Call::Kmalloc { size, gfp } => kmalloc_reasons(cx.model, Some(size), gfp),
        Call::CacheAlloc { cache, gfp } => cache_reasons(cx.model, cache, gfp),
        _ => Vec::new(),
    };
    if let Some(verdict) = judge_reasons(&reasons, step, error) {
        return verdict;
    }
    if !matches!(error, AllocError::NoPages { .. }) {
        return Err(format!("{call} is a proper request, but was refused with \"{error}\""));
    }
    let found = match &cx.model.notes.objects {
        _ if gfp.may_block() && !may_skip_reclaim(gfp, error) => Snapshot::reclaimed(cx.model, inside, false),
        Some(before) => before.clone(),
        None => Snapshot::as_is(cx.model, inside),
    };
    let node = call.node().filter(|_| gfp.contains(GfpFlags::THISNODE));
    let served = match (single, node) {
        (Call::Kmalloc { size, .. }, Some(node)) => found.serves_kmalloc_on(cx.model, size, gfp, node),
        (Call::Kmalloc { size, .. }, None) => found.serves_kmalloc(cx.model, size, gfp),
        (Call::CacheAlloc { cache, .. }, node) => match (cx.model.cache(cache).map(|cache| cache.stride), node) {
            (Some(stride), Some(node)) => found.serves_object_on(cx.model, cache, stride, gfp, node),
            (Some(stride), None) => found.serves_objects(cx.model, cache, stride, gfp, missing),
            (None, _) => false,
        },
        _ => false,
    };
    if served && step_is_exact(step) {
        let pages = inside.page_use().free;
        return Err(format!("{call} was refused with \"{error}\", but it could be served; {pages} pages are free"));
    }
    Ok(())
}

/// A fault that struck explains a refusal.
fn step_is_exact(step: &Step) -> bool {
    !step.fault_struck
}
