//! O10: was the request served by the tier that the contract names?
//!
//! Contract: 1.1, 1.2, 1.4 and 2.3. `kmalloc`, caches and pages answer with the direct map, `vmalloc` and `vmap` with the
//! window. `kvmalloc` up to a page never answers with the window. Above a page it answers contiguously if that was possible
//! without reclaim (with it, if the caller gave `RETRY_MAYFAIL`) in the state before the call, which is looked at then; only
//! otherwise may it fall back; and it may not answer contiguously if that needed reclaim, which the first attempt does
//! not do. `kvrealloc` of an area stays an area. The frame under the block has the owner that its tier says, and the call that is meant to free a live block
//! is not rejected. Exact but for the limits that [`scene`](super::scene) lists; a step during which a fault struck
//! is not asked which attempt it struck.

use super::policy::found_bad_block;
use super::scene::Snapshot;
use super::{Context, Contiguous, Oracle, OracleId, Step, Violation};
use crate::model::areas::AreaWish;
use crate::model::classes::{KMALLOC_MAX_CACHE, get_order, kmalloc_max};
use crate::model::zones::bad_mobility;
use crate::model::{Block, Tier, Tiers, freed_address, old_address, request};
use crate::subject::{Call, Reply, WindowCall};
use kmem::{FrameKind, GfpFlags, PAGE_SIZE};

/// See the module.
pub(super) struct RightTier;

impl Oracle for RightTier {
    fn id(&self) -> OracleId {
        OracleId::O10RightTier
    }

    /// Keeps what a later question needs of the state before the call.
    fn before_call(&self, cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
        let contiguous = contiguous_attempt(cx, call);
        let before = snapshot(cx, call);
        cx.model.notes.contiguous = contiguous;
        cx.model.notes.compacting = matches!(call, Call::CompactMemory);
        cx.model.notes.before = before;
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        let verdict = match step.reply {
            Reply::Block { addr, usable } if usable > 0 => {
                check_window(cx, step, addr).and_then(|()| check_owner(cx, step, addr))
            }
            Reply::Size(answer) => super::moves::check_numbers(cx, &step.call, answer),
            Reply::Rejected(error) => check_rejection(cx, &step.call, &error),
            _ => Ok(()),
        };
        verdict.map_err(|message| cx.violation(OracleId::O10RightTier, &[], message))
    }
}

/// Without reclaim a failed area leaves its pages on per-CPU lists, so what it could have used is noted before. So is what
/// a block without reclaim finds when memory is short: it may not go below the watermark; and what a bulk finds, which looks
/// at the low watermark once.
fn snapshot(cx: &Context<'_>, call: &Call) -> Option<Snapshot> {
    let makes_area = matches!(
        call,
        Call::Vmalloc { .. }
            | Call::VmallocRange(_)
            | Call::KvmallocNode { .. }
            | Call::Vrealloc { .. }
            | Call::Kvmalloc { .. }
            | Call::KvmallocArray { .. }
            | Call::Kvrealloc { .. }
            | Call::Window(WindowCall::Vmalloc { .. })
    );
    let (size, gfp) = request(call).filter(|(size, _)| *size > 0)?;
    let inside = cx.subject.white_box()?;
    let one_block = matches!(call, Call::AllocPages { .. } | Call::AllocPagesNode { .. });
    let is_bulk = matches!(call, Call::AllocPagesBulk { .. });
    if is_bulk || (one_block && has_nodes(cx)) {
        return Some(Snapshot::of_blocks(cx.model, inside, false));
    }
    if gfp.may_block() {
        return None;
    }
    match call {
        _ if (one_block || matches!(call, Call::AllocPagesNolock { .. })) && is_short(cx, size, gfp) => {
            Some(Snapshot::of_blocks(cx.model, inside, false))
        }
        _ => makes_area.then(|| Snapshot::as_is(cx.model, inside)),
    }
}

/// Whether a request can fall back to another node.
fn has_nodes(cx: &Context<'_>) -> bool {
    cx.model.geometry().nodes().nth(1).is_some()
}

/// Whether the marks may matter: always in a small zone, else below an eighth of memory.
fn is_short(cx: &Context<'_>, size: usize, gfp: GfpFlags) -> bool {
    let (Some(last), managed) = (cx.model.last_use, cx.model.geometry().managed().get()) else { return false };
    gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) || last.free < managed / 8 + (size / PAGE_SIZE) as u64
}

/// What `kvmalloc`'s contiguous attempt finds in the present state; `None` if the call makes none.
fn contiguous_attempt(cx: &Context<'_>, call: &Call) -> Option<Contiguous> {
    let (size, gfp) = match call {
        Call::Kvmalloc { .. } | Call::KvmallocNode { .. } | Call::KvmallocArray { .. } => request(call)?,
        Call::Kvrealloc { .. } => request(call).filter(|_| !is_area(cx, call))?,
        _ => return None,
    };
    let inside = cx.subject.white_box()?;
    let node = AreaWish::of(cx.model.geometry(), call).and_then(|wish| wish.node);
    // What both mobility bits at once mean the contract leaves open.
    if size <= PAGE_SIZE || size > kmalloc_max(cx.model.geometry().max_order.get()) || bad_mobility(gfp) {
        return None;
    }
    // The changes of section 1.1 that matter for where memory may come from.
    let insists = gfp.contains(GfpFlags::RETRY_MAYFAIL);
    let adjusted = if insists { gfp } else { gfp.difference(GfpFlags::DIRECT_RECLAIM) };
    let found = match adjusted.may_block() {
        true => Snapshot::reclaimed(cx.model, inside, false),
        false => Snapshot::of_blocks(cx.model, inside, size <= KMALLOC_MAX_CACHE),
    };
    Some(match () {
        () if found.serves_kmalloc_near(cx.model, size, adjusted, node) => Contiguous::Must,
        () if adjusted.may_block() || found.may_serve_kmalloc(cx.model, size, adjusted) => Contiguous::May,
        () => Contiguous::Cannot,
    })
}

fn is_area(cx: &Context<'_>, call: &Call) -> bool {
    old_address(call).is_some_and(|old| cx.model.in_vmalloc_window(old))
}

/// The address lies in the window that the call and its size allow.
fn check_window(cx: &Context<'_>, step: &Step, addr: u64) -> Result<(), String> {
    let virtual_ = cx.model.in_vmalloc_window(addr);
    let size = request(&step.call).map_or(0, |(size, _)| size);
    let expected = match &step.call {
        Call::Vmalloc { .. } | Call::VmallocRange(_) | Call::Vrealloc { .. } | Call::Vmap { .. } | Call::Window(_) => {
            true
        }
        Call::Kvrealloc { .. } if is_area(cx, &step.call) => true,
        Call::Kvmalloc { .. } | Call::KvmallocNode { .. } | Call::KvmallocArray { .. } | Call::Kvrealloc { .. } => {
            let in_place = old_address(&step.call) == Some(addr);
            return if in_place { Ok(()) } else { check_fallback(cx, step, size, virtual_) };
        }
        _ => false,
    };
    if virtual_ == expected {
        return Ok(());
    }
    let where_ = |v| if v { "the vmalloc window" } else { "the direct map" };
    Err(format!("{:?} answered {addr:#x} in {}, not in {}", step.call, where_(virtual_), where_(expected)))
}

/// `kvmalloc` fell back exactly when the contract says.
fn check_fallback(cx: &Context<'_>, step: &Step, size: usize, virtual_: bool) -> Result<(), String> {
    let call = &step.call;
    if virtual_ && size <= PAGE_SIZE {
        return Err(format!("{call:?} fell back, but a page or less never does"));
    }
    if !virtual_ && size > kmalloc_max(cx.model.geometry().max_order.get()) {
        return Err(format!("{call:?} was served contiguously, which no kmalloc can"));
    }
    let order = get_order(size);
    match cx.model.notes.contiguous {
        Some(Contiguous::Must) if virtual_ && !step.fault_struck && !found_bad_block(cx) => {
            Err(format!("{call:?} fell back, but a contiguous block (order {order}, or an object) was there"))
        }
        Some(Contiguous::Cannot) if !virtual_ => {
            Err(format!("{call:?} was served contiguously, but nothing of order {order} was there without reclaim"))
        }
        _ => Ok(()),
    }
}

/// The frame under the block belongs to the block's tier.
fn check_owner(cx: &Context<'_>, step: &Step, addr: u64) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let physical = match cx.model.in_vmalloc_window(addr) {
        true => cx.subject.translate(addr),
        false => addr.checked_sub(cx.model.geometry().direct_map.as_u64()),
    };
    let Some(physical) = physical else { return Ok(()) };
    let kind = inside.frame_kind((physical / PAGE_SIZE as u64) as u32);
    let fits = match &step.call {
        call if super::window::shows_others(call) => true,
        _ if cx.model.in_vmalloc_window(addr) => kind == FrameKind::Vmalloc,
        Call::AllocPages { .. }
        | Call::AllocPagesNode { .. }
        | Call::AllocPagesExact { .. }
        | Call::AllocPagesNolock { .. }
        | Call::AllocContigRange { .. }
        | Call::AllocContigPages { .. } => kind == FrameKind::Pages,
        Call::CacheAlloc { cache, .. } => kind == FrameKind::Slab(cx.model.root_of(*cache)),
        call => match (cx.model.block(addr).filter(|_| old_address(call) == Some(addr)), request(call)) {
            (Some(block), _) => is_kmalloc_kind(kind, block.tier == Tier::LargeKmalloc),
            (None, Some((size, _))) => is_kmalloc_kind(kind, size > KMALLOC_MAX_CACHE),
            (None, None) => true,
        },
    };
    if fits { Ok(()) } else { Err(format!("{:?} answered {addr:#x}, whose frame is {kind:?}", step.call)) }
}

fn is_kmalloc_kind(kind: FrameKind, large: bool) -> bool {
    if large { kind == FrameKind::LargeKmalloc } else { matches!(kind, FrameKind::Slab(_)) }
}

/// The call that is meant to free a live block must be accepted.
fn check_rejection(cx: &Context<'_>, call: &Call, error: &kmem::FreeError) -> Result<(), String> {
    let asked = match call {
        Call::SplitPage { addr, .. } => Some(*addr),
        call => freed_address(call),
    };
    let Some(block) = asked.and_then(|addr| cx.model.block(addr)) else { return Ok(()) };
    // Whether there was damage to refuse it for is asked by O21.
    if !frees(call, block) || matches!(error, kmem::FreeError::Corrupted(_)) {
        return Ok(());
    }
    Err(format!("{call:?} is right for {} but was rejected with \"{error}\"", block.describe()))
}

fn frees(call: &Call, block: &Block) -> bool {
    match call {
        Call::FreePages { order, .. } | Call::FreePagesNolock { order, .. } => {
            block.tier == Tier::Pages && *order == block.order
        }
        Call::FreePagesExact { size, .. } => block.tier == Tier::PagesExact && *size == block.requested,
        Call::FreeContigRange { pages, .. } => block.tier == Tier::Contig && pages * PAGE_SIZE == block.requested,
        Call::SplitPage { order, .. } => block.tier == Tier::Pages && *order == block.order,
        Call::Kfree { .. } => Tiers::KMALLOC.contains(block.tier),
        Call::CacheFree { cache, .. } => block.cache == Some(*cache),
        Call::Vfree { .. } => Tiers::GUARDED.contains(block.tier),
        Call::Vunmap { .. } => block.tier == Tier::Vmap,
        Call::Kvfree { .. } | Call::KvfreeSensitive { .. } => Tiers::KVMALLOC.contains(block.tier),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use kmem::{FreeError, PageCount, VirtAddr};

    /// Asks about a call that the subject answers with a block in one or the other window.
    fn verdict(subject: &mut FakeSubject, call: Call, virtual_: bool) -> bool {
        let mut model = subject.model();
        verdict_on(subject, &mut model, call, virtual_)
    }

    fn verdict_on(subject: &mut FakeSubject, model: &mut Model, call: Call, virtual_: bool) -> bool {
        RightTier.before_call(&mut context(model, subject), &call).unwrap();
        let size = request(&call).unwrap().0;
        let pages: Vec<u32> = (16..16 + size.div_ceil(PAGE_SIZE).min(8) as u32).collect();
        if virtual_ {
            subject.map(0, &pages);
        } else {
            let large = size > KMALLOC_MAX_CACHE;
            subject.kinds[32] = if large { FrameKind::LargeKmalloc } else { FrameKind::Slab(kmem::CacheId::new(0)) };
        }
        let addr = if virtual_ { subject.window(0) } else { subject.direct(32) };
        ask(&RightTier, model, subject, &step(call, Reply::Block { addr, usable: size })).is_ok()
    }

    fn kvmalloc(size: usize, gfp: GfpFlags) -> Call {
        Call::Kvmalloc { size, gfp }
    }

    #[test]
    fn kvmalloc_falls_back_exactly_when_no_contiguous_block_is_there() {
        let mut subject = FakeSubject::new(64);
        let size = 8 * PAGE_SIZE;
        assert!(!verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), true), "an order-6 block is free");
        assert!(verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), false));
        subject.set_free(&[(2, 16)]);
        assert!(verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), true), "fragmented");
        assert!(!verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), false), "it must have reclaimed");
        subject.zones[0].pcp_pages = 8;
        assert!(verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), false), "a per-CPU list may have had a block");
        assert!(!verdict(&mut subject, kvmalloc(2 * size, GfpFlags::KERNEL), false), "but none of this order");
        subject.set_free(&[(3, 2), (0, 7)]);
        assert!(verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), true), "23 free, 16 + 7 kept back");
        subject.set_free(&[(3, 2), (0, 8)]);
        assert!(!verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), true), "24 free");
    }

    #[test]
    fn only_a_caller_that_insists_gets_reclaim_in_the_first_attempt() {
        let mut subject = FakeSubject::new(64);
        // Everything is reclaimable, nothing is free.
        subject.kinds.fill(FrameKind::Pcp);
        subject.set_free(&[]);
        let size = 8 * PAGE_SIZE;
        assert!(verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL), true));
        subject.kinds.fill(FrameKind::Pcp);
        assert!(!verdict(&mut subject, kvmalloc(size, GfpFlags::KERNEL | GfpFlags::RETRY_MAYFAIL), true));
    }

    #[test]
    fn an_object_of_the_largest_class_counts_as_contiguous() {
        let mut subject = FakeSubject::new(64);
        subject.set_free(&[]);
        assert!(verdict(&mut subject, kvmalloc(5000, GfpFlags::KERNEL), true));
        subject.add_cache("kmalloc-8k", 8192, 1, 0);
        assert!(!verdict(&mut subject, kvmalloc(5000, GfpFlags::KERNEL), true));
    }

    #[test]
    fn a_page_or_less_never_falls_back() {
        let mut subject = FakeSubject::new(64);
        subject.set_free(&[]);
        assert!(!verdict(&mut subject, kvmalloc(PAGE_SIZE, GfpFlags::KERNEL), true));
        assert!(verdict(&mut subject, kvmalloc(PAGE_SIZE, GfpFlags::KERNEL), false));
    }

    #[test]
    fn each_call_answers_in_its_window() {
        let mut subject = FakeSubject::new(64);
        subject.geometry.vmalloc_pages = PageCount::new(64);
        let kmalloc = Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL };
        let vmalloc = Call::Vmalloc { size: 64, gfp: GfpFlags::KERNEL };
        assert!(verdict(&mut subject, kmalloc.clone(), false) && !verdict(&mut subject, kmalloc, true));
        assert!(verdict(&mut subject, vmalloc.clone(), true) && !verdict(&mut subject, vmalloc, false));
    }

    #[test]
    fn an_area_stays_an_area() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(4, &[9]);
        let old = subject.window(4);
        let reply = Reply::Block { addr: old, usable: 100 };
        model.update(&step(Call::Vmalloc { size: 100, gfp: GfpFlags::KERNEL }, reply), &subject);
        let kvrealloc = Call::Kvrealloc { addr: old, size: 8, gfp: GfpFlags::KERNEL };
        assert!(!verdict_on(&mut subject, &mut model, kvrealloc, false));
    }

    #[test]
    fn the_right_free_may_not_be_rejected() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(4);
        let reply = Reply::Block { addr, usable: 64 };
        model.update(&step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, reply), &subject);
        let rejected = |call| step(call, Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr))));
        assert!(ask(&RightTier, &mut model, &mut subject, &rejected(Call::Kvfree { addr })).is_err());
        assert!(ask(&RightTier, &mut model, &mut subject, &rejected(Call::Vfree { addr })).is_ok());
    }
}
