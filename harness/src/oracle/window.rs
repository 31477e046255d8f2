//! What O15 asks about reads of any place of the window, frames shown to users, and permissions in the direct map.
//!
//! Contract: sections 1.4, 4.6, 4.7 and 4.8. `vread` answers with what a processor reads where a live area maps a page, and with
//! zeros elsewhere; with nothing where no area has a page. `remap_vmalloc_range` shows the frames of the area, exactly
//! where its flags and bounds allow. The address of a frame in the direct map allows everything, unless the frame is
//! behind an area whose user changed that; and when such an area is freed, there is one flush, between the moment in which
//! the addresses become invalid and that in which they are restored. Exact.

use super::{Context, OracleId, Step, Violation};
use crate::model::{Block, Model, Tiers};
use crate::subject::{Call, Reply, WindowCall};
use kmem::{PAGE_SIZE, RemapError, VmFlags};

fn fail(cx: &Context<'_>, blocks: &[u64], message: String) -> Result<(), Violation> {
    Err(cx.violation(OracleId::O15Translation, blocks, message))
}

/// Tells whether a call maps frames that somebody has already.
pub(super) fn shows_others(call: &Call) -> bool {
    matches!(call, Call::Vmap { .. } | Call::Window(WindowCall::Vmap { .. } | WindowCall::VmMapRam { .. }))
}

/// Compares what a call shows of the window with the areas.
pub(super) fn check_seen(cx: &mut Context<'_>, call: &WindowCall, reply: &Reply) -> Result<(), Violation> {
    match (call, reply) {
        (&WindowCall::Vread { addr, len }, Reply::Bytes(found)) => check_read(cx, addr, len, found),
        (&WindowCall::Remap { addr, offset, size }, Reply::Frames(found)) => {
            let expected = frames_for_users(cx.model, addr, offset, size);
            if *found == expected {
                return Ok(());
            }
            fail(cx, &[], format!("{call} answered {found:x?}; it should be {expected:x?}"))
        }
        _ => Ok(()),
    }
}

/// The bytes that `vread` has to answer with, page by page.
fn check_read(cx: &mut Context<'_>, addr: u64, len: usize, found: &[u8]) -> Result<(), Violation> {
    let room = if addr == 0 { u128::MAX } else { (1 << 64) - u128::from(addr) };
    let len = room.min(len as u128) as usize;
    let mut expected = vec![0; len];
    let (mut at, mut met) = (0, false);
    while at < len {
        let start = addr + at as u64;
        let piece = (PAGE_SIZE - start as usize % PAGE_SIZE).min(len - at);
        let area = area_around(cx.model, start);
        met |= area.is_some();
        if let Some(true) = area {
            let read = cx.subject.read(start, &mut expected[at..at + piece]);
            if let Err(fault) = read {
                return fail(cx, &[], format!("{start:#x} of a live area cannot be read: {fault:?}"));
            }
        }
        at += piece;
    }
    if !met {
        expected.clear();
    }
    if expected == found {
        return Ok(());
    }
    let differs = expected.iter().zip(found).position(|(wanted, byte)| wanted != byte);
    let (wanted, answered) = (expected.len(), found.len());
    fail(
        cx,
        &[],
        format!("vread of {len} bytes at {addr:#x} gave {answered}, not {wanted}; they differ at {differs:?}"),
    )
}

/// Whether there is a page of an area at an address, and whether it is mapped.
fn area_around(model: &Model, addr: u64) -> Option<bool> {
    let live = model.overlapping(addr, addr.saturating_add(1), None);
    let ghost = || model.ghost_overlapping(addr, addr.saturating_add(1)).map(|ghost| &ghost.block);
    let area = live.or_else(ghost).filter(|block| block.tier.is_virtual() && addr < block.end());
    // All of a block is one area, whatever of it is mapped.
    let Some(area) = area else { return model.ram_block(addr / PAGE_SIZE as u64).map(|_| false) };
    Some(((addr - area.addr) as usize) < area.frames.len() * PAGE_SIZE)
}

/// The frames that a user may have, or why he may not (section 4.6).
fn frames_for_users(model: &Model, addr: u64, offset: u64, size: usize) -> Result<Vec<u32>, RemapError> {
    let Some(area) = model.block(addr).filter(|block| Tiers::GUARDED.contains(block.tier)) else {
        return Err(RemapError::NotAnArea(kmem::VirtAddr::new(addr)));
    };
    if !area.vm_flags.contains(VmFlags::USERMAP) {
        return Err(RemapError::NotForUsers(kmem::VirtAddr::new(addr)));
    }
    let pages = area.area_pages as u64;
    let wanted = (size as u128).div_ceil(PAGE_SIZE as u128);
    if wanted == 0 || u128::from(offset) + wanted > u128::from(pages) {
        return Err(RemapError::OutOfBounds { offset, size, pages });
    }
    Ok(area.frames[offset as usize..offset as usize + wanted as usize].to_vec())
}

/// Every alias allows everything, but for those that a program has changed and may still have so.
pub(super) fn check_aliases(cx: &Context<'_>) -> Result<(), Violation> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    if let Some(mistake) = inside.alias_mistakes().first() {
        return fail(cx, &[], mistake.clone());
    }
    let unusual = inside.unusual_aliases();
    let Some(&frame) = unusual.iter().find(|&&frame| !is_changed(cx.model, frame)) else { return Ok(()) };
    fail(
        cx,
        &[],
        format!("nobody has the permissions of frame {frame} changed, but its alias does not allow everything"),
    )
}

fn is_changed(model: &Model, frame: u32) -> bool {
    let has = |block: &Block| resets(block) && block.frames.contains(&frame);
    model.blocks(Tiers::VMALLOC).any(has) || model.ghosts().any(|ghost| has(&ghost.block))
}

fn resets(block: &Block) -> bool {
    block.vm_flags.contains(VmFlags::FLUSH_RESET_PERMS)
}

/// Nothing waits to be freed when somebody who may wait has freed what there was.
pub(super) fn check_drained(cx: &Context<'_>, step: &Step) -> Result<(), Violation> {
    let drains = matches!(step.call, Call::Reclaim | Call::Window(WindowCall::DrainDeferred));
    match cx.model.any_deferred().filter(|_| drains) {
        Some(block) => {
            let message = format!("{:?} has left {}, which vfree_atomic put off", step.call, block.describe());
            Err(cx.violation(OracleId::O16Misuse, &[block.handle], message))
        }
        None => Ok(()),
    }
}

/// Freeing an area with permissions to reset flushes once, whatever else waited.
pub(super) fn check_one_flush(cx: &Context<'_>, step: &Step) -> Result<(), Violation> {
    let (Call::Vfree { addr }, Reply::Done, Some(inside)) = (&step.call, &step.reply, cx.subject.white_box()) else {
        return Ok(());
    };
    let flushes = inside.flushed() - cx.model.notes.flushed;
    match cx.model.block(*addr).filter(|block| resets(block)) {
        Some(block) if flushes != 1 => fail(cx, &[block.handle], format!("{flushes} flushes for {}", block.describe())),
        _ => Ok(()),
    }
}
