//! O15: does each mapped page reach its own frame, and nothing else reach any, whatever a processor may remember?
//!
//! Contract: I15, I16 and 4.3. The processors are supposed to be as bad as they may be: each CPU remembers every translation
//! and every table that it could have seen since the last flush, and evicts nothing. When an area is handed out, all its
//! pages are mapped and no CPU can remember another frame for any of them; the guard page is neither mapped nor remembered.
//! A freed or shrunk page is not mapped any more. A flush finds nothing given back that it was to make unreachable.
//! `vmalloc_to_page` and the frames of `vmap` are compared with the walk. At audits all live areas are looked at again, and
//! everything remembered: a stale translation of a frame that was the area's own leads to a frame that still waits, neither
//! free nor somebody's; a table above a page that may be remembered is still a table, and in one place.
//!
//! Precision: exact. Frames that `vmap` mapped are their owner's, who may free them before the flush, as in Linux.

use super::{Context, Oracle, OracleId, Violation, window};
use crate::machine::Remembered;
use crate::model::{Block, Tiers, freed_address, old_address, request};
use crate::subject::{AccessFault, Call, Reply, WindowCall};
use kmem::{FrameKind, PAGE_SIZE};
use std::collections::BTreeMap;

/// See the module.
pub(super) struct Translation;

impl Oracle for Translation {
    fn id(&self) -> OracleId {
        OracleId::O15Translation
    }

    fn before_call(&self, cx: &mut Context<'_>, _: &Call) -> Result<(), Violation> {
        cx.model.notes.flushed = cx.subject.white_box().map_or(0, |inside| inside.flushed());
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        if let Some(early) = cx.subject.take_early_reuse() {
            return fail(cx, &[], early);
        }
        window::check_one_flush(cx, step)?;
        match (&step.call, &step.reply) {
            (Call::VmallocToPage { addr } | Call::PinArea { addr }, Reply::Frame(found)) => {
                check_page(cx, *addr, *found)
            }
            (Call::Window(call), reply @ (Reply::Bytes(_) | Reply::Frames(_))) => window::check_seen(cx, call, reply),
            (call, Reply::Done) => freed_address(call).map_or(Ok(()), |addr| check_unmapped(cx, addr, 0)),
            (call, Reply::Block { addr, .. }) => match old_address(call) {
                Some(old) if old == *addr && !grows(cx, call, old) => Ok(()),
                Some(old) if old == *addr => check_fresh(cx, call, *addr),
                old => {
                    old.map_or(Ok(()), |old| check_unmapped(cx, old, 0))?;
                    old.map_or(Ok(()), |old| check_forgotten(cx, old, *addr))?;
                    check_fresh(cx, call, *addr)
                }
            },
            _ => Ok(()),
        }
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        super::moves::check_moved_pages(cx)?;
        window::check_aliases(cx)?;
        window::check_drained(cx, step)?;
        let Reply::Block { addr, .. } = step.reply else { return Ok(()) };
        let Some(block) = cx.model.block(addr).filter(|b| b.tier.is_virtual()) else { return Ok(()) };
        check_guard(cx, block)?;
        match &step.call {
            Call::Vmap { pfns } | Call::Window(WindowCall::Vmap { pfns, .. } | WindowCall::VmMapRam { pfns, .. })
                if block.frames != *pfns =>
            {
                let message = format!("{} reaches {:x?}, not {pfns:x?}", block.describe(), block.frames);
                Err(cx.violation(OracleId::O15Translation, &[block.handle], message))
            }
            Call::Vrealloc { .. } | Call::Kvrealloc { .. } => check_unmapped(cx, addr, block.frames.len()),
            _ => Ok(()),
        }
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        if !cx.model.is_tight() {
            return Ok(());
        }
        cx.model.blocks(Tiers::VIRTUAL).try_for_each(|block| check_area(cx, block))?;
        super::ram::check_blocks(cx)?;
        check_stale(cx)?;
        check_tables(cx)
    }
}

/// Accesses the page after an area, which must fault. To be called for the trace's guard operation.
///
/// # Errors
///
/// O15 if the access succeeds.
pub fn touch_guard(cx: &mut Context<'_>, addr: u64) -> Result<(), Violation> {
    let Some((handle, guard)) = cx.model.block(addr).and_then(|b| Some((b.handle, b.guard()?))) else { return Ok(()) };
    match cx.subject.read(guard, &mut [0]) {
        Err(AccessFault::NotMapped(_)) => Ok(()),
        other => fail(cx, &[handle], format!("the guard page at {guard:#x} answers {other:?}")),
    }
}

/// Every page of a fresh area is mapped, and the TLB knows nothing else about it.
fn check_fresh(cx: &mut Context<'_>, call: &Call, addr: u64) -> Result<(), Violation> {
    if !cx.model.in_vmalloc_window(addr) {
        return Ok(());
    }
    let pages = super::area_bytes(cx, call, addr).map_or(0, |bytes| bytes / PAGE_SIZE);
    for at in (0..pages).map(|i| page(addr, i)) {
        let Some(walked) = cx.subject.translate(at) else {
            return fail(cx, &[], format!("{at:#x} in the new area at {addr:#x} is not mapped"));
        };
        let remembered = cx.subject.remembered(at).into_iter().chain(cx.subject.tlb_lookup(at));
        if let Some(reached) = remembered.into_iter().find(|&reached| reached != walked) {
            let (stale, frame) = (frame_of(reached), frame_of(walked));
            let message = format!("a TLB may lead {at:#x} to frame {stale:#x}, the page tables to {frame:#x}");
            return fail(cx, &[], format!("{message}: the new area at {addr:#x} was not flushed before its reuse"));
        }
    }
    cx.subject.speculate(addr, pages);
    Ok(())
}

/// Tells whether a reallocation asks for more pages than the area has.
fn grows(cx: &Context<'_>, call: &Call, old: u64) -> bool {
    let pages = request(call).map_or(0, |(size, _)| size.div_ceil(PAGE_SIZE));
    cx.model.block(old).is_some_and(|block| block.tier.is_virtual() && pages > block.frames.len())
}

/// The old addresses of an area whose frames live on at other ones are in no TLB any more: a stale entry would let a use
/// after free reach them.
fn check_forgotten(cx: &Context<'_>, old: u64, new: u64) -> Result<(), Violation> {
    let Some(block) = cx.model.block(old).filter(|block| block.tier.is_virtual()) else { return Ok(()) };
    for (index, &frame) in block.frames.iter().enumerate() {
        let lives_on = cx.subject.translate(page(new, index)).map(frame_of) == Some(frame);
        let at = page(old, index);
        let stale = cx.subject.remembered(at).into_iter().chain(cx.subject.tlb_lookup(at)).next();
        if let Some(stale) = stale.map(frame_of).filter(|_| lives_on) {
            let message = format!("the TLB still leads {:#x} to frame {stale:#x}, now at {new:#x}", page(old, index));
            return fail(cx, &[block.handle], message);
        }
    }
    Ok(())
}

fn page(addr: u64, index: usize) -> u64 {
    addr + (index * PAGE_SIZE) as u64
}

fn frame_of(physical: u64) -> u32 {
    (physical / PAGE_SIZE as u64) as u32
}

/// Every mapped page reaches its frame by the walk and, if there is an entry, by the TLB; the guard reaches none.
fn check_area(cx: &Context<'_>, block: &Block) -> Result<(), Violation> {
    for (index, &frame) in block.frames.iter().enumerate() {
        let addr = page(block.addr, index);
        check_reached(cx, block, addr, Some(frame), cx.subject.translate(addr), "the page tables")?;
        for reached in cx.subject.remembered(addr).into_iter().chain(cx.subject.tlb_lookup(addr)) {
            check_reached(cx, block, addr, Some(frame), Some(reached), "a TLB may")?;
        }
    }
    check_guard(cx, block)
}

fn check_guard(cx: &Context<'_>, block: &Block) -> Result<(), Violation> {
    let Some(guard) = block.guard() else { return Ok(()) };
    check_reached(cx, block, guard, None, cx.subject.translate(guard), "the page tables")?;
    let remembered = cx.subject.remembered(guard).into_iter().next().or(cx.subject.tlb_lookup(guard));
    check_reached(cx, block, guard, None, remembered, "a TLB may")
}

fn check_reached(
    cx: &Context<'_>,
    block: &Block,
    addr: u64,
    expected: Option<u32>,
    reached: Option<u64>,
    by: &str,
) -> Result<(), Violation> {
    let reached = reached.map(frame_of);
    if reached == expected {
        return Ok(());
    }
    fail(
        cx,
        &[block.handle],
        format!("{by} lead {addr:#x} to frame {reached:x?}, not {expected:x?}: {}", block.describe()),
    )
}

/// The pages of an area from `first` on are not mapped; if the address is no area there is nothing to ask.
fn check_unmapped(cx: &Context<'_>, addr: u64, first: usize) -> Result<(), Violation> {
    let Some(block) = cx.model.block(addr).filter(|b| b.tier.is_virtual()) else { return Ok(()) };
    match (first..block.area_pages).map(|i| page(addr, i)).find(|&at| cx.subject.translate(at).is_some()) {
        Some(at) => {
            fail(cx, &[block.handle], format!("{at:#x} was given back and is still mapped: {}", block.describe()))
        }
        None => Ok(()),
    }
}

fn check_page(cx: &Context<'_>, addr: u64, found: Option<u32>) -> Result<(), Violation> {
    let walked = cx.subject.translate(addr).map(frame_of).filter(|_| cx.model.in_vmalloc_window(addr));
    if found == walked {
        return Ok(());
    }
    fail(cx, &[], format!("vmalloc_to_page({addr:#x}) answered {found:x?}; the tables say {walked:x?}"))
}

/// No translation that outlived its area leads to a frame that is free or somebody's.
fn check_stale(cx: &Context<'_>) -> Result<(), Violation> {
    for entry in cx.subject.stale().into_iter().filter(|entry| entry.owned) {
        let Remembered { vpn, pfn, .. } = entry;
        let kind = cx.subject.white_box().map(|inside| inside.frame_kind(pfn));
        let waits = kind.is_none_or(|kind| kind == FrameKind::Vmalloc);
        if !waits || cx.model.used_directly(pfn) || cx.model.vmalloc_owner(pfn).is_some() {
            let (addr, what) = (vpn * PAGE_SIZE as u64, "free or in use");
            return fail(
                cx,
                &[],
                format!("a stale entry for {addr:#x} still leads to frame {pfn:#x}, now {what}: {kind:?}"),
            );
        }
    }
    Ok(())
}

/// Every table that a walk may still go through is a table, and is in one place only.
fn check_tables(cx: &Context<'_>) -> Result<(), Violation> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let mut places = BTreeMap::new();
    for table in cx.subject.remembered_tables() {
        let kind = inside.frame_kind(table.pfn);
        if kind != FrameKind::PageTable {
            return fail(
                cx,
                &[],
                format!("a walk may still go through {table:x?}, now {kind:?}: freed before its flush"),
            );
        }
        if let Some(other) = places.insert(table.pfn, table) {
            return fail(cx, &[], format!("a walk may still go through {other:x?}, which is in use as {table:x?}"));
        }
    }
    Ok(())
}

fn fail(cx: &Context<'_>, blocks: &[u64], message: String) -> Result<(), Violation> {
    Err(cx.violation(OracleId::O15Translation, blocks, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Step;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use kmem::GfpFlags;

    fn vmalloc(subject: &FakeSubject, page: u64, pages: usize) -> Step {
        let size = pages * PAGE_SIZE;
        step(Call::Vmalloc { size, gfp: GfpFlags::KERNEL }, Reply::Block { addr: subject.window(page), usable: size })
    }

    fn vpn(subject: &FakeSubject, page: u64) -> u64 {
        subject.window(page) / PAGE_SIZE as u64
    }

    #[test]
    fn a_stale_entry_under_a_new_area_is_found() {
        let mut subject = FakeSubject::new(64);
        subject.map(2, &[7, 8]);
        let fresh = vmalloc(&subject, 2, 2);
        assert_eq!(ask(&Translation, &mut subject.model(), &mut subject, &fresh), Ok(()));
        subject.tlb.insert(vpn(&subject, 3), 8);
        assert_eq!(ask(&Translation, &mut subject.model(), &mut subject, &fresh), Ok(()));
        subject.tlb.insert(vpn(&subject, 3), 9);
        let wrong = ask(&Translation, &mut subject.model(), &mut subject, &fresh).unwrap_err();
        assert!(wrong.message.contains("TLB"), "{}", wrong.message);
    }

    #[test]
    fn a_page_left_out_and_a_mapped_guard_are_found() {
        let mut subject = FakeSubject::new(64);
        subject.map(2, &[7]);
        let fresh = vmalloc(&subject, 2, 2);
        assert!(ask(&Translation, &mut subject.model(), &mut subject, &fresh).is_err());
        subject.map(2, &[7, 8, 9]);
        assert!(ask(&Translation, &mut subject.model(), &mut subject, &fresh).unwrap_err().message.contains("9"));
        let mut model = subject.model();
        model.update(&fresh, &subject);
        let addr = subject.window(2);
        assert!(touch_guard(&mut context(&mut model, &mut subject), addr).is_err());
        subject.unmap(4, 1);
        assert_eq!(touch_guard(&mut context(&mut model, &mut subject), addr), Ok(()));
    }

    #[test]
    fn a_freed_area_must_be_unmapped() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(2, &[7, 8]);
        let fresh = vmalloc(&subject, 2, 2);
        ask(&Translation, &mut model, &mut subject, &fresh).unwrap();
        subject.unmap(2, 1);
        let free = step(Call::Vfree { addr: subject.window(2) }, Reply::Done);
        assert!(ask(&Translation, &mut model, &mut subject, &free).is_err());
        subject.unmap(3, 1);
        assert_eq!(ask(&Translation, &mut model, &mut subject, &free), Ok(()));
    }

    #[test]
    fn a_stale_entry_to_a_frame_with_a_new_owner_is_found() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(2, &[7]);
        let fresh = vmalloc(&subject, 2, 1);
        ask(&Translation, &mut model, &mut subject, &fresh).unwrap();
        subject.tlb.insert(vpn(&subject, 2), 7);
        subject.kinds[7] = FrameKind::Vmalloc;
        subject.unmap(2, 1);
        let free = step(Call::Vfree { addr: subject.window(2) }, Reply::Done);
        ask(&Translation, &mut model, &mut subject, &free).unwrap();
        assert_eq!(Translation.audit(&mut context(&mut model, &mut subject)), Ok(()), "nobody has frame 7 yet");
        let reply = Reply::Block { addr: subject.direct(7), usable: 64 };
        model.update(&step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, reply), &subject);
        assert!(Translation.audit(&mut context(&mut model, &mut subject)).is_err());
        let mut model = subject.model();
        subject.kinds[7] = FrameKind::Free;
        let freed = Translation.audit(&mut context(&mut model, &mut subject)).unwrap_err();
        assert!(freed.message.contains("free"), "free before the flush: {}", freed.message);
    }

    #[test]
    fn vmalloc_to_page_answers_what_the_walk_finds() {
        let mut subject = FakeSubject::new(64);
        subject.map(2, &[7]);
        let asked = |addr, frame| step(Call::VmallocToPage { addr }, Reply::Frame(frame));
        let addr = subject.window(2);
        assert_eq!(ask(&Translation, &mut subject.model(), &mut subject, &asked(addr, Some(7))), Ok(()));
        assert!(ask(&Translation, &mut subject.model(), &mut subject, &asked(addr, Some(8))).is_err());
        assert!(ask(&Translation, &mut subject.model(), &mut subject, &asked(addr, None)).is_err());
    }
}
