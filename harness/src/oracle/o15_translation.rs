//! O15: does each mapped page reach its own frame, and nothing else reach any?
//!
//! Contract: I15, I16 and 4.3. Every page of a fresh area is mapped, and what the TLB of the current CPU would reach is what
//! a walk of the page tables reaches: an entry left from an earlier owner of the address is found here. The guard page is
//! neither mapped nor in the TLB. A freed or shrunk page is not mapped any more. `vmalloc_to_page` and the frames of
//! `vmap` are compared with the walk. At audits all live areas are looked at again, and lately freed areas: an entry that
//! the TLB still holds may not lead to a frame which a live block has by now. Precision: a TLB is looked into through the
//! CPU that is current then; of freed areas the last 32 are remembered.

use super::{Context, Oracle, OracleId, Violation};
use crate::model::{Block, Tiers, freed_address, old_address, request};
use crate::subject::{AccessFault, Call, Reply};
use kmem::PAGE_SIZE;

/// See the module.
pub(super) struct Translation;

impl Oracle for Translation {
    fn id(&self) -> OracleId {
        OracleId::O15Translation
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        match (&step.call, &step.reply) {
            (Call::VmallocToPage { addr }, Reply::Frame(found)) => check_page(cx, *addr, *found),
            (call, Reply::Done) => freed_address(call).map_or(Ok(()), |addr| check_unmapped(cx, addr, 0)),
            (call, Reply::Block { addr, .. }) => match old_address(call) {
                Some(old) if old == *addr => Ok(()),
                old => {
                    old.map_or(Ok(()), |old| check_unmapped(cx, old, 0))?;
                    check_fresh(cx, call, *addr)
                }
            },
            _ => Ok(()),
        }
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        let Reply::Block { addr, .. } = step.reply else { return Ok(()) };
        let Some(block) = cx.model.block(addr).filter(|b| b.tier.is_virtual()) else { return Ok(()) };
        check_guard(cx, block)?;
        match &step.call {
            Call::Vmap { pfns } if block.frames != *pfns => {
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
        cx.model.blocks(Tiers::GUARDED).try_for_each(|block| check_area(cx, block))?;
        check_freed_areas(cx)
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
fn check_fresh(cx: &Context<'_>, call: &Call, addr: u64) -> Result<(), Violation> {
    let pages = request(call).map_or(0, |(size, _)| size.div_ceil(PAGE_SIZE));
    if !cx.model.in_vmalloc_window(addr) {
        return Ok(());
    }
    for at in (0..pages).map(|i| page(addr, i)) {
        let Some(walked) = cx.subject.translate(at) else {
            return fail(cx, &[], format!("{at:#x} in the new area at {addr:#x} is not mapped"));
        };
        if let Some(reached) = cx.subject.tlb_lookup(at).filter(|&reached| reached != walked) {
            let (stale, frame) = (frame_of(reached), frame_of(walked));
            let message = format!("the TLB leads {at:#x} to frame {stale:#x}, the page tables to {frame:#x}");
            return fail(cx, &[], format!("{message}: the new area at {addr:#x} was not flushed before its reuse"));
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
        if let Some(reached) = cx.subject.tlb_lookup(addr) {
            check_reached(cx, block, addr, Some(frame), Some(reached), "the TLB")?;
        }
    }
    check_guard(cx, block)
}

fn check_guard(cx: &Context<'_>, block: &Block) -> Result<(), Violation> {
    let Some(guard) = block.guard() else { return Ok(()) };
    check_reached(cx, block, guard, None, cx.subject.translate(guard), "the page tables")?;
    check_reached(cx, block, guard, None, cx.subject.tlb_lookup(guard), "the TLB")
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

/// No entry that outlived its area leads to a frame that a live block has now.
fn check_freed_areas(cx: &Context<'_>) -> Result<(), Violation> {
    for area in cx.model.freed_areas().iter().filter(|area| area.owned) {
        for addr in (0..area.pages).map(|i| page(area.addr, i)) {
            let Some(frame) = cx.subject.tlb_lookup(addr).map(frame_of) else { continue };
            let remapped = cx.subject.translate(addr).map(frame_of) == Some(frame);
            if !remapped && (cx.model.used_directly(frame) || cx.model.vmalloc_owner(frame).is_some()) {
                return fail(
                    cx,
                    &[],
                    format!("a stale entry for {addr:#x} still leads to frame {frame:#x}, now in use"),
                );
            }
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
        subject.unmap(2, 1);
        let free = step(Call::Vfree { addr: subject.window(2) }, Reply::Done);
        ask(&Translation, &mut model, &mut subject, &free).unwrap();
        assert_eq!(Translation.audit(&mut context(&mut model, &mut subject)), Ok(()), "nobody has frame 7 yet");
        let reply = Reply::Block { addr: subject.direct(7), usable: 64 };
        model.update(&step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, reply), &subject);
        assert!(Translation.audit(&mut context(&mut model, &mut subject)).is_err());
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
