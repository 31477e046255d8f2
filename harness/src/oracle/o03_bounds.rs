//! O3: does the block lie where it may, and is it as large as the contract says?
//!
//! Contract: I2, I10, I16, 2.1, 2.3, 2.4 and 3.1. A block of the direct map lies in one zone that its flags allow; an area
//! lies in the vmalloc window together with its guard page. A fresh `kmalloc` block has exactly its class or its order;
//! `ksize` answers what the allocation answered; `kmalloc_size_roundup` is a pure function. Of a loose subject
//! `usable >= requested` is demanded, that the block lies in memory that it may have, and that nothing around that was changed.
//! Exact.

use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::areas::AreaWish;
use crate::model::classes::{KMALLOC_MAX_CACHE, size_roundup, usable_on};
use crate::model::zones::{highest_zone, large_page_flags};
use crate::model::{old_address, request};
use crate::subject::{Call, Reply};
use kmem::{GfpFlags, PAGE_SIZE, ZoneKind, ZoneSpec};

/// See the module.
pub(super) struct Bounds;

impl Oracle for Bounds {
    fn id(&self) -> OracleId {
        OracleId::O3Bounds
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        match (&step.call, &step.reply) {
            (call, Reply::Block { addr, usable }) if *addr > 16 => check_block(cx, call, *addr, *usable),
            (Call::AllocPagesBulk { count, gfp }, Reply::Pages(pages)) => check_bulk(cx, *count, *gfp, pages),
            (_, Reply::Size(size)) => check_size(cx, step, *size),
            _ => Ok(()),
        }
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        cx.subject.trespass().map_or(Ok(()), |message| fail(cx, message))
    }
}

fn check_block(cx: &Context<'_>, call: &Call, addr: u64, usable: usize) -> Result<(), Violation> {
    let Some((requested, gfp)) = cx.model.promised(call) else { return Ok(()) };
    if usable < requested {
        return fail(cx, format!("{usable} bytes usable at {addr:#x}, {requested} asked for"));
    }
    if !cx.model.is_tight() {
        return check_memory(cx, addr, usable);
    }
    if cx.model.in_vmalloc_window(addr) {
        return check_area(cx, call, addr, usable);
    }
    check_usable(cx, call, addr, requested, usable)?;
    check_zone(cx, addr, usable, call, gfp)
}

/// A loose subject has the memory that it says.
fn check_memory(cx: &Context<'_>, addr: u64, bytes: usize) -> Result<(), Violation> {
    if cx.subject.has_memory(addr, bytes) {
        return Ok(());
    }
    fail(cx, format!("the block of {bytes} bytes at {addr:#x} does not lie in the memory that the allocator was given"))
}

/// An area and its guard page end inside the window; what is usable is mapped.
fn check_area(cx: &Context<'_>, call: &Call, addr: u64, usable: usize) -> Result<(), Violation> {
    let requested = request(call).map_or(0, |(n, _)| n.next_multiple_of(PAGE_SIZE));
    let (mapped, guard) = match cx.model.block(addr).filter(|_| old_address(call) == Some(addr)) {
        Some(old) => ((old.frames.len() * PAGE_SIZE).max(requested), usize::from(old.guarded)),
        None => {
            let guard = AreaWish::of(cx.model.geometry(), call).map_or(1, |wish| wish.guard as usize);
            (super::area_bytes(cx, call, addr).unwrap_or(0), guard)
        }
    };
    let end = addr + (mapped + guard * PAGE_SIZE) as u64;
    if end > cx.model.geometry().vmalloc_end().as_u64() {
        return fail(cx, format!("the guard page of the area at {addr:#x} is beyond the window"));
    }
    if usable > mapped {
        return fail(cx, format!("{usable} bytes usable at {addr:#x}, {mapped} are mapped"));
    }
    Ok(())
}

/// The usable size is the one that the contract names for this request.
fn check_usable(cx: &Context<'_>, call: &Call, addr: u64, requested: usize, usable: usize) -> Result<(), Violation> {
    let in_place = old_address(call).filter(|&old| old == addr).and_then(|old| cx.model.block(old));
    let (least, most) = match (call, in_place) {
        (_, Some(old)) if requested <= old.usable => (old.usable, old.usable),
        (
            Call::AllocPages { .. }
            | Call::AllocPagesNode { .. }
            | Call::AllocPagesNolock { .. }
            | Call::AllocContigRange { .. }
            | Call::AllocContigPages { .. },
            _,
        ) => (requested, requested),
        (Call::AllocPagesExact { .. }, _) => (requested, requested.next_multiple_of(PAGE_SIZE)),
        (Call::CacheAlloc { cache, .. }, _) => (requested, cx.model.cache(*cache).map_or(requested, |c| c.stride)),
        (Call::Kmalloc { .. }, _) if cx.model.notes.nolock => {
            let class = cx.model.nolock_class(requested).unwrap_or(requested);
            (class, class)
        }
        _ => {
            let usable = usable_on(cx.model.geometry().trim_large, requested);
            (usable, usable)
        }
    };
    if (least..=most).contains(&usable) {
        return Ok(());
    }
    fail(cx, format!("{usable} bytes usable at {addr:#x} for {requested}; the contract says {least} to {most}"))
}

/// The block lies in one zone, and in one that its flags allow.
fn check_zone(cx: &Context<'_>, addr: u64, usable: usize, call: &Call, gfp: GfpFlags) -> Result<(), Violation> {
    // An object of no bytes is somewhere too.
    let frames = cx.model.direct_frames(addr, usable.max(1));
    let geometry = cx.model.geometry();
    let holds = |zone: &&ZoneSpec| {
        let start = zone.start.as_u32();
        frames.start >= start && u64::from(frames.end - start) <= zone.frames.get()
    };
    let Some(zone) = geometry.zones().iter().find(holds).filter(|_| !frames.is_empty()) else {
        return fail(cx, format!("{usable} bytes at {addr:#x} do not lie in one zone"));
    };
    match allowed_zone(cx, call, usable, gfp) {
        Some(highest) if zone.kind <= highest => Ok(()),
        highest => fail(cx, format!("{addr:#x} is in zone {:?}; the flags {gfp:?} allow {highest:?}", zone.kind)),
    }
}

/// The highest zone in which a block of the direct map may lie.
fn allowed_zone(cx: &Context<'_>, call: &Call, usable: usize, gfp: GfpFlags) -> Option<ZoneKind> {
    match call {
        Call::AllocPages { .. } | Call::AllocPagesNode { .. } | Call::AllocPagesBulk { .. } => highest_zone(gfp),
        Call::AllocPagesNolock { .. } => Some(ZoneKind::Normal),
        Call::AllocPagesExact { .. } => highest_zone(gfp.difference(GfpFlags::HIGHMEM)),
        // The range says where; flags that would say it as well are ignored.
        Call::AllocContigRange { .. } => Some(ZoneKind::Movable),
        Call::AllocContigPages { .. } => highest_zone(gfp),
        // A block that grew in place keeps its zone although the flags are new.
        Call::Krealloc { addr, .. } | Call::Kvrealloc { addr, .. } if *addr > 16 => Some(ZoneKind::Normal),
        Call::CacheAlloc { cache, .. } => {
            Some(cx.model.cache(*cache).map_or(ZoneKind::Normal, |c| c.spec.highest_zone(cx.model.geometry())))
        }
        _ if usable > KMALLOC_MAX_CACHE => highest_zone(large_page_flags(gfp)),
        _ if gfp.contains(GfpFlags::DMA) && has_dma(cx) => Some(ZoneKind::Dma),
        _ => Some(ZoneKind::Normal),
    }
}

fn has_dma(cx: &Context<'_>) -> bool {
    cx.model.geometry().zones().iter().any(|z| z.kind == ZoneKind::Dma)
}

fn check_bulk(cx: &Context<'_>, count: usize, gfp: GfpFlags, pages: &[u64]) -> Result<(), Violation> {
    if pages.len() > count {
        return fail(cx, format!("{} pages given, {count} asked for", pages.len()));
    }
    if !cx.model.is_tight() {
        return Ok(());
    }
    let call = Call::AllocPagesBulk { count, gfp };
    pages.iter().try_for_each(|&addr| check_zone(cx, addr, PAGE_SIZE, &call, gfp))
}

/// `ksize` and `kmalloc_size_roundup`.
fn check_size(cx: &Context<'_>, step: &Step, size: usize) -> Result<(), Violation> {
    let expected = match step.call {
        Call::Ksize { addr } if addr <= 16 => 0,
        Call::Ksize { addr } => match cx.model.block(addr) {
            Some(block) => block.usable,
            None => return Ok(()),
        },
        Call::KmallocSizeRoundup { size } if cx.model.is_tight() => {
            size_roundup(size, cx.model.geometry().max_order.get(), cx.model.geometry().trim_large)
        }
        _ => return Ok(()),
    };
    if size == expected {
        return Ok(());
    }
    fail(cx, format!("{:?} answered {size}, not {expected}", step.call))
}

fn fail(cx: &Context<'_>, message: String) -> Result<(), Violation> {
    Err(cx.violation(OracleId::O3Bounds, &[], message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};

    fn verdict(subject: &mut FakeSubject, call: Call, reply: Reply) -> bool {
        let mut model = subject.model();
        ask(&Bounds, &mut model, subject, &step(call, reply)).is_ok()
    }

    #[test]
    fn a_kmalloc_block_has_its_class_and_no_byte_less() {
        let mut subject = FakeSubject::new(64);
        let addr = subject.direct(3);
        let mut kmalloc = |size, usable| {
            verdict(&mut subject, Call::Kmalloc { size, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable })
        };
        assert!(kmalloc(65, 96) && kmalloc(8193, 16384));
        assert!(!kmalloc(65, 64) && !kmalloc(65, 128) && !kmalloc(8193, 12288));
    }

    #[test]
    fn a_block_lies_in_one_zone_that_its_flags_allow() {
        let mut subject = FakeSubject::with_two_zones(64);
        let mut pages = |frame, gfp| {
            let reply = Reply::Block { addr: subject.direct(frame), usable: 4 * PAGE_SIZE };
            verdict(&mut subject, Call::AllocPages { order: 2, gfp }, reply)
        };
        assert!(pages(40, GfpFlags::KERNEL) && pages(4, GfpFlags::KERNEL) && pages(4, GfpFlags::DMA));
        assert!(!pages(40, GfpFlags::DMA), "a DMA request in the Normal zone");
        assert!(!pages(30, GfpFlags::KERNEL), "across the boundary");
        assert!(!pages(62, GfpFlags::KERNEL), "beyond memory");
    }

    #[test]
    fn an_area_ends_inside_the_window_with_its_guard() {
        let mut subject = FakeSubject::new(64);
        let mut vmalloc = |page| {
            let reply = Reply::Block { addr: subject.window(page), usable: 2 * PAGE_SIZE };
            verdict(&mut subject, Call::Vmalloc { size: 2 * PAGE_SIZE, gfp: GfpFlags::KERNEL }, reply)
        };
        assert!(vmalloc(61) && !vmalloc(62));
    }

    #[test]
    fn ksize_answers_what_the_allocation_answered() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(3);
        let kmalloc = step(Call::Kmalloc { size: 9, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 16 });
        assert!(ask(&Bounds, &mut model, &mut subject, &kmalloc).is_ok());
        let mut ksize = |size| {
            let asked = step(Call::Ksize { addr }, Reply::Size(size));
            ask(&Bounds, &mut model, &mut subject, &asked).is_ok()
        };
        assert!(ksize(16) && !ksize(9) && !ksize(32));
    }
}
