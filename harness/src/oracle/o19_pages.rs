//! O19: is damage to pages found, named, and harmless; and do references keep what they must?
//!
//! Contract: sections 3.2 and 3.8. Of each taken or dropped reference the number that are left is known. A free of pages
//! that a mapping shows gives one warning for each piece with such a page, names a page that is shown, and the piece is
//! never seen again (O7 counts it). Where the geometry checks pages, a free page that a mapping shows is not handed out.
//! Where it poisons them, each free page that was written to gives one warning when it is handed out, with the bytes, and
//! none comes without cause. Where it notes owners, each page block that is live is listed, with its order, its flags and
//! who asked. Exact, but for damage to frames that went to the allocator's own use: that may be told, not must.

use super::{Context, Oracle, OracleId, Step, Violation, pattern};
use crate::model::damage::{Finding, PAGE_POISON};
use crate::model::{Block, Model, Tier, Tiers, freed_address};
use crate::subject::{Call, Reply, WhiteBox};
use kmem::{BadReason, Found, FrameKind, PAGE_SIZE, PageDebug, PageOwner, PoisonDamage, Warning};

/// See the module.
pub(super) struct Pages;

impl Oracle for Pages {
    fn id(&self) -> OracleId {
        OracleId::O19Pages
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
        let warnings = inside.warnings().to_vec();
        let verdict = check_references(cx.model, step)
            .and_then(|()| check_bad(cx.model, step, &warnings))
            .and_then(|()| check_poison(cx.model, &warnings));
        verdict.and_then(|()| check_kept(cx, step)).map_err(|message| cx.violation(OracleId::O19Pages, &[], message))
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let given: &[u64] = match &step.reply {
            Reply::Block { addr, .. } => &[*addr],
            Reply::Pages(pages) => pages,
            _ => return Ok(()),
        };
        let missed = given.iter().find_map(|&addr| missed(cx.model, addr));
        missed.map_or(Ok(()), |message| Err(cx.violation(OracleId::O19Pages, &[], message)))
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(inside) = cx.subject.white_box() else { return Ok(()) };
        check_owners(cx.model, inside).map_err(|message| cx.violation(OracleId::O19Pages, &[], message))
    }
}

/// The number of references that is left is the model's.
fn check_references(model: &Model, step: &Step) -> Result<(), String> {
    let (addr, taken) = match step.call {
        Call::GetPage { addr } => (addr, true),
        Call::PutPage { addr } => (addr, false),
        _ => return Ok(()),
    };
    let Some(block) = model.page_block_around(addr) else { return Ok(()) };
    let is_half = !taken && block.refs == 0 && !block.is_unit();
    let left = if taken { block.refs + 2 } else { block.refs };
    match &step.reply {
        Reply::Rejected(_) if is_half => Ok(()),
        Reply::Size(n) if !is_half && *n == left as usize => Ok(()),
        reply => {
            Err(format!("{:?} of {} with {} extra references gave {reply:?}", step.call, block.describe(), block.refs))
        }
    }
}

/// What somebody still holds of a freed block has its contents.
fn check_kept(cx: &mut Context<'_>, step: &Step) -> Result<(), String> {
    let Some(addr) = freed_address(&step.call).filter(|_| step.reply == Reply::Done) else { return Ok(()) };
    let held = cx.model.block(addr).filter(|block| block.refs > 0 && block.written);
    let Some(block) = held.cloned() else { return Ok(()) };
    let kept = if block.is_unit() { block.requested } else { block.requested.min(PAGE_SIZE) };
    let intact = pattern::verify(cx.subject, addr, &block, kept);
    intact.map_err(|damage| format!("{} is still held and lost its contents: {damage}", block.describe()))
}

fn holds(first: u32, order: u8, frame: u32) -> bool {
    frame.checked_sub(first).is_some_and(|distance| distance < 1 << order)
}

/// Each bad piece is reported once, and nothing else is.
fn check_bad(model: &Model, step: &Step, warnings: &[Warning]) -> Result<(), String> {
    let mut owed = model.bad_pieces(&step.call, &step.reply);
    for warning in warnings {
        let Warning::BadPage { first, order, frame, reason, found } = *warning else { continue };
        let (first, order, frame) = (first.as_u32(), order.get(), frame.as_u32());
        let shown = model.mappings(frame);
        let rightly = holds(first, order, frame) && shown > 0 && reason == BadReason::Mapped(shown as u32);
        let place = owed.iter().position(|&piece| piece == (first, order));
        let known = match (found, place) {
            (Found::Freeing, Some(at)) => {
                owed.swap_remove(at);
                true
            }
            (Found::Allocating, None) => {
                model.checks(PageDebug::CHECK) && (first..first + (1 << order)).all(|f| !model.used_directly(f))
            }
            _ => false,
        };
        if !rightly || !known {
            return Err(format!("{warning:?} without cause: frame {frame} is shown by {shown} mappings"));
        }
    }
    match owed.first() {
        Some((first, order)) => {
            Err(format!("the freed block at frame {first}, order {order}, is mapped; nobody said so"))
        }
        None => Ok(()),
    }
}

/// What is reported is what was done.
fn check_poison(model: &Model, warnings: &[Warning]) -> Result<(), String> {
    for warning in warnings {
        let Warning::PoisonDamaged { frame, damage } = *warning else { continue };
        let found = match damage {
            PoisonDamage::BitFlip { offset, bit } => Finding::Bit(offset, bit),
            PoisonDamage::Corruption { first, last } => Finding::Bytes(first, last),
        };
        let done = model.damage.finding(frame.as_u32());
        if done != Some(found) || !model.checks(PageDebug::POISON) {
            return Err(format!("{warning:?}, but what was done is {done:?}"));
        }
    }
    Ok(())
}

/// A damaged frame under a block that was handed out without a word.
fn missed(model: &Model, addr: u64) -> Option<String> {
    let block = model.block(addr).filter(|block| !block.tier.is_virtual())?;
    let frame = model.damage.first_in(model.direct_frames(block.addr, block.usable))?;
    Some(format!(
        "{} was handed out and frame {frame} had been written to: {:?}",
        block.describe(),
        model.damage.finding(frame)
    ))
}

/// Each live page block has its entry.
fn check_owners(model: &Model, inside: &dyn WhiteBox) -> Result<(), String> {
    let listed = inside.page_owner();
    if !model.checks(PageDebug::OWNER) {
        return if listed.is_empty() { Ok(()) } else { Err("owners are listed that nobody wants".to_owned()) };
    }
    let entry = |frame: u32| listed.iter().find(|owner| owner.first.as_u32() == frame);
    for block in model.blocks(Tiers::COUNTED_PAGES) {
        let frames = model.direct_frames(block.addr, block.usable);
        let heads: Vec<u32> = if block.tier == Tier::Pages { vec![frames.start] } else { frames.collect() };
        if let Some(&head) = heads.iter().find(|&&head| !entry(head).is_some_and(|owner| fits(owner, block))) {
            return Err(format!("frame {head} of {} is listed as {:?}", block.describe(), entry(head)));
        }
    }
    let free = |owner: &&PageOwner| matches!(owner.kind, FrameKind::Free | FrameKind::Pcp | FrameKind::Bad);
    match listed.iter().find(free) {
        Some(owner) => Err(format!("nobody has the block, but {owner:?}")),
        None => Ok(()),
    }
}

fn fits(owner: &PageOwner, block: &Block) -> bool {
    let at = owner.location;
    // A block of which the first page was left has the order of that; its entry still tells how it was asked for.
    let order = owner.order.get() == block.order || block.order == 0;
    order && at.line() > 0 && at.file().contains("subjects")
}

/// Writes to a free page, the `page`-th or the next after it: flips one bit, or two.
///
/// # Errors
///
/// The access faults.
pub fn write_free(cx: &mut Context<'_>, page: u32, place: u64, twice: bool) -> Result<(), Violation> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let frames = cx.model.geometry().frames();
    let free = |frame: &u32| inside.frame_kind(*frame) == FrameKind::Free;
    let Some(frame) = (0..frames).map(|n| (page % frames + n) % frames).find(free) else { return Ok(()) };
    let poisoned = cx.model.checks(PageDebug::POISON);
    let offset = (place % PAGE_SIZE as u64) as u16;
    let xor = if twice { 3 } else { 1 } << (place / PAGE_SIZE as u64 % 7);
    let addr = cx.model.geometry().direct_map.as_u64() + u64::from(frame) * PAGE_SIZE as u64 + u64::from(offset);
    let mut byte = [0];
    let read = cx.subject.read(addr, &mut byte);
    let done = read.and_then(|()| cx.subject.write(addr, &[byte[0] ^ xor]));
    if let Err(fault) = done {
        return Err(cx.violation(OracleId::O19Pages, &[], format!("memory at {addr:#x} cannot be reached: {fault:?}")));
    }
    if poisoned {
        if cx.model.damage.finding(frame).is_none() && byte[0] != PAGE_POISON {
            let message = format!("byte {offset} of the free frame {frame} is {:#x}, not poison", byte[0]);
            return Err(cx.violation(OracleId::O19Pages, &[], message));
        }
        cx.model.damage.flip(frame, offset, xor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use kmem::{FreeError, GfpFlags, Order, Pfn, VirtAddr};

    fn poisoning() -> FakeSubject {
        let mut subject = FakeSubject::new(64);
        subject.geometry.page_debug = PageDebug::POISON | PageDebug::CHECK;
        subject
    }

    fn alloc(subject: &FakeSubject, frame: u32) -> Step {
        let call = Call::AllocPages { order: 0, gfp: GfpFlags::KERNEL };
        step(call, Reply::Block { addr: subject.direct(frame), usable: PAGE_SIZE })
    }

    #[test]
    fn damage_must_be_told_as_it_is() {
        let mut subject = poisoning();
        let told = |damage| vec![Warning::PoisonDamaged { frame: Pfn::new(5), damage }];
        let right = PoisonDamage::BitFlip { offset: 9, bit: 2 };
        let wrong = PoisonDamage::Corruption { first: 9, last: 9 };
        for (warnings, fine) in [(told(right), true), (told(wrong), false), (Vec::new(), false)] {
            let mut model = subject.model();
            model.damage.flip(5, 9, 4);
            subject.warnings = warnings;
            let step = alloc(&subject, 5);
            assert_eq!(ask(&Pages, &mut model, &mut subject, &step).is_ok(), fine, "{:?}", subject.warnings);
        }
        subject.warnings = told(right);
        let step = alloc(&subject, 5);
        assert!(ask(&Pages, &mut subject.model(), &mut subject, &step).is_err(), "nothing was done");
    }

    #[test]
    fn a_mapped_block_that_is_freed_must_be_told() {
        let mut subject = FakeSubject::new(64);
        let bad = Warning::BadPage {
            first: Pfn::new(8),
            order: Order::ZERO,
            frame: Pfn::new(8),
            reason: BadReason::Mapped(1),
            found: Found::Freeing,
        };
        for (mapped, warnings, fine) in [
            (true, vec![bad], true),
            (true, Vec::new(), false),
            (true, vec![bad, bad], false),
            (false, vec![bad], false),
        ] {
            subject.warnings.clear();
            let mut model = subject.model();
            let block = alloc(&subject, 8);
            assert_eq!(ask(&Pages, &mut model, &mut subject, &block), Ok(()));
            if mapped {
                subject.map(0, &[8]);
                let reply = Reply::Block { addr: subject.window(0), usable: PAGE_SIZE };
                model.update(&step(Call::Vmap { pfns: vec![8] }, reply), &subject);
            }
            subject.warnings = warnings;
            let free = step(Call::FreePages { addr: subject.direct(8), order: 0 }, Reply::Done);
            assert_eq!(ask(&Pages, &mut model, &mut subject, &free).is_ok(), fine);
            if fine {
                assert_eq!(model.expected_use().bad, 1);
            }
        }
    }

    #[test]
    fn references_are_counted_and_keep_the_first_page() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(8);
        let call = Call::AllocPages { order: 2, gfp: GfpFlags::KERNEL };
        model.update(&step(call, Reply::Block { addr, usable: 4 * PAGE_SIZE }), &subject);
        let rejected = Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr)));
        let put = Call::PutPage { addr };
        assert_eq!(
            ask(&Pages, &mut model, &mut subject, &step(put.clone(), rejected)),
            Ok(()),
            "the last of four pages"
        );
        assert!(ask(&Pages, &mut model, &mut subject, &step(Call::GetPage { addr }, Reply::Size(3))).is_err());
        assert_eq!(ask(&Pages, &mut model, &mut subject, &step(Call::GetPage { addr }, Reply::Size(2))), Ok(()));
        model.update(&step(Call::FreePages { addr, order: 2 }, Reply::Done), &subject);
        let left = model.block(addr).unwrap();
        assert_eq!((left.order, left.usable, left.refs), (0, PAGE_SIZE, 0));
        assert_eq!(model.expected_use().pages, 1);
        assert!(ask(&Pages, &mut model, &mut subject, &step(put.clone(), Reply::Size(1))).is_err());
        let last = step(put, Reply::Size(0));
        assert_eq!(
            Pages.before_update(&mut Context { model: &mut model, subject: &mut subject, step: Some(&last), op: 0 }),
            Ok(())
        );
        model.update(&last, &subject);
        assert!(model.is_empty());
    }
}
