//! O6: does a reallocation keep the prefix, stay in place when it must, and leave the old block alone when it fails?
//!
//! Contract: I4, I13, 1.4 and 2.4. The first `min(old, new)` bytes equal what was written into the old block. A `krealloc`
//! that fits the block, and a `vrealloc` that fits its mapped pages, answer the same address. Size 0 frees: `krealloc`
//! answers the zero-size address, `vrealloc` null. A `vrealloc` that grows keeps the frames: nothing is copied. Whether a failure left the counters alone is asked by O11. Precision: as
//! the pattern of O4.

use super::pattern;
use super::{Context, Oracle, OracleId, Violation};
use crate::model::{Block, Tier, is_elsewhere, old_address, request};
use crate::subject::{Call, Reply};
use kmem::{PAGE_SIZE, VirtAddr};

/// See the module.
pub(super) struct Realloc;

impl Oracle for Realloc {
    fn id(&self) -> OracleId {
        OracleId::O6Realloc
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let Some(old) = old_address(&step.call).and_then(|old| cx.model.block(old)).cloned() else { return Ok(()) };
        let Some((size, _)) = request(&step.call) else { return Ok(()) };
        match &step.reply {
            Reply::Block { addr, .. } if size == 0 => check_freed(cx, &step.call, &old, *addr),
            Reply::Block { addr, .. } => {
                check_place(cx, &step.call, &old, *addr, size)?;
                check_frames(cx, &step.call, &old, *addr, size)?;
                check_prefix(cx, &old, *addr, size.min(old.requested))
            }
            Reply::Refused(_) => check_prefix(cx, &old, old.addr, old.requested),
            _ => Ok(()),
        }
    }
}

fn check_freed(cx: &Context<'_>, call: &Call, old: &Block, addr: u64) -> Result<(), Violation> {
    let expected = match (call, old.tier) {
        (Call::Krealloc { .. }, _) => VirtAddr::ZERO_SIZE,
        (_, Tier::Vmalloc) => VirtAddr::NULL,
        _ => VirtAddr::ZERO_SIZE,
    };
    if addr == expected.as_u64() || !cx.model.is_tight() {
        return Ok(());
    }
    fail(cx, old, format!("size 0 answered {addr:#x}, not {expected}"))
}

/// A block into which the new size fits stays where it is, unless the caller insists on a node on which it is not; then
/// it does not stay.
fn check_place(cx: &Context<'_>, call: &Call, old: &Block, addr: u64, size: usize) -> Result<(), Violation> {
    let room = if old.tier == Tier::Vmalloc { old.frames.len() * PAGE_SIZE } else { old.usable };
    let (stays, elsewhere) = (addr == old.addr, is_elsewhere(cx.model, call, old));
    if cx.model.is_tight() && stays && elsewhere {
        return fail(cx, old, format!("{call:?} insists on a node, and the first page is on another"));
    }
    if !cx.model.is_tight() || stays || elsewhere || size > room {
        return Ok(());
    }
    fail(cx, old, format!("{size} bytes fit the {room} there are, but the block moved to {addr:#x}"))
}

/// An area that grows keeps its frames, wherever it grows, but for one of huge entries or that goes to another node.
fn check_frames(cx: &Context<'_>, call: &Call, old: &Block, addr: u64, size: usize) -> Result<(), Violation> {
    let is_area = cx.model.is_tight() && old.tier == Tier::Vmalloc && old.leaf == 0;
    if !is_area || size <= old.frames.len() * PAGE_SIZE || is_elsewhere(cx.model, call, old) {
        return Ok(());
    }
    let page = |index: usize| addr + (index * PAGE_SIZE) as u64;
    let behind = |index: usize| cx.subject.translate(page(index)).map(|physical| (physical / PAGE_SIZE as u64) as u32);
    match old.frames.iter().enumerate().find(|&(index, &frame)| behind(index) != Some(frame)) {
        Some((index, frame)) => {
            fail(cx, old, format!("page {index} was in frame {frame:#x} and is now in {:x?}", behind(index)))
        }
        None => Ok(()),
    }
}

fn check_prefix(cx: &mut Context<'_>, old: &Block, addr: u64, kept: usize) -> Result<(), Violation> {
    if !old.written {
        return Ok(());
    }
    pattern::verify(cx.subject, addr, old, kept)
        .or_else(|damage| fail(cx, old, format!("the first {kept} bytes should be at {addr:#x}: {damage}")))
}

fn fail(cx: &Context<'_>, old: &Block, message: String) -> Result<(), Violation> {
    Err(cx.violation(OracleId::O6Realloc, &[old.handle], format!("{}: {message}", old.describe())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use crate::oracle::write_block;
    use kmem::GfpFlags;

    /// A written block of 40 bytes in the 64 class.
    fn written() -> (FakeSubject, Model, u64) {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(3);
        let kmalloc = step(Call::Kmalloc { size: 40, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 64 });
        ask(&Realloc, &mut model, &mut subject, &kmalloc).unwrap();
        write_block(&mut context(&mut model, &mut subject), addr).unwrap();
        (subject, model, addr)
    }

    fn krealloc(old: u64, size: usize, new: u64, usable: usize) -> crate::oracle::Step {
        step(Call::Krealloc { addr: old, size, gfp: GfpFlags::KERNEL }, Reply::Block { addr: new, usable })
    }

    #[test]
    fn a_byte_lost_by_the_copy_is_found() {
        let (mut subject, mut model, old) = written();
        let new = subject.direct(9);
        let copied: Vec<u8> = (0..40).map(|i| subject.memory[3 * PAGE_SIZE + i]).collect();
        crate::subject::Subject::write(&mut subject, new, &copied[..39]).unwrap();
        let moved = krealloc(old, 100, new, 128);
        let wrong = ask(&Realloc, &mut model, &mut subject, &moved).unwrap_err();
        assert!(wrong.message.contains("byte 39"), "{}", wrong.message);
        crate::subject::Subject::write(&mut subject, new, &copied).unwrap();
        assert_eq!(ask(&Realloc, &mut model, &mut subject, &moved), Ok(()));
    }

    #[test]
    fn a_block_that_fits_must_not_move() {
        let (mut subject, mut model, old) = written();
        let elsewhere = subject.direct(9);
        subject.swap_pages(old, elsewhere);
        assert!(ask(&Realloc, &mut model, &mut subject, &krealloc(old, 64, elsewhere, 64)).is_err());
        subject.swap_pages(old, elsewhere);
        assert_eq!(ask(&Realloc, &mut model, &mut subject, &krealloc(old, 64, old, 64)), Ok(()));
    }

    #[test]
    fn size_zero_answers_the_zero_size_address() {
        let (mut subject, mut model, old) = written();
        assert!(ask(&Realloc, &mut model, &mut subject, &krealloc(old, 0, 0, 0)).is_err());
        assert_eq!(ask(&Realloc, &mut model, &mut subject, &krealloc(old, 0, 16, 0)), Ok(()));
    }
}
