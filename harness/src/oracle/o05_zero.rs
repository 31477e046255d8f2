//! O5: do the bytes that `ZERO` promises read zero?
//!
//! Contract: I5, 1.4, 2.4. A fresh block is zero over all that is usable (an object
//! over the size that its cache was made for), a fresh area over all of its pages. After a
//! reallocation the promise depends on the tier:
//!
//! | tier | where | zero |
//! |---|---|---|
//! | kmalloc | in place, this call with `ZERO` | from the new size to the usable end |
//! | vmalloc | in place and smaller, this call with `ZERO` | from the new size to the old, as far as mapped |
//! | vmalloc | larger than what was mapped, there or elsewhere, this call with `ZERO` | from the old size to the new |
//! | any | every call of the chain with `ZERO` | from the old size to the new |
//!
//! What a sensitive free wipes, a block of kmalloc that nobody paints over when it is free, reads zero after the call.
//!
//! Precision: of ranges above 16 KiB the first and last 128 bytes of each page are read.

use super::pattern::{ZEROED, verify_bytes};
use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::{Block, Tier, kept_pages, old_address};
use crate::subject::{Call, Reply};
use kmem::{GfpFlags, PAGE_SIZE, PageDebug};
use std::ops::Range;

/// Ranges up to this size are read whole.
const WHOLE: usize = 16 << 10;
/// Bytes read at both ends of each page of larger ranges.
const EDGE: usize = 128;

/// See the module.
pub(super) struct Zero;

impl Oracle for Zero {
    fn id(&self) -> OracleId {
        OracleId::O5Zero
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        if step.reply == Reply::Done {
            return check_wiped(cx, &step.call);
        }
        let wanted = cx.model.promised(&step.call).filter(|(_, gfp)| gfp.wants_zero());
        let Some((requested, gfp)) = wanted else { return Ok(()) };
        match &step.reply {
            Reply::Block { addr, usable } if *usable > 0 => promised_ranges(cx, step, *addr, requested, *usable, gfp)
                .into_iter()
                .try_for_each(|r| check(cx, *addr, r)),
            Reply::Pages(pages) => pages.iter().try_for_each(|&addr| check(cx, addr, 0..PAGE_SIZE)),
            _ => Ok(()),
        }
    }
}

/// Looks at what a sensitive free leaves behind.
fn check_wiped(cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
    let (addr, len) = match *call {
        Call::KfreeSensitive { addr } => (addr, usize::MAX),
        Call::KvfreeSensitive { addr, len } => (addr, len),
        _ => return Ok(()),
    };
    let painted = |block: &&Block| cx.model.debug_layout(block).is_some() || cx.model.checks(PageDebug::POISON);
    let in_slabs = |block: &&Block| matches!(block.tier, Tier::Kmalloc | Tier::LargeKmalloc);
    let block = cx.model.block(addr).filter(in_slabs).filter(|block| !painted(block) && cx.model.is_tight());
    let wiped = block.map_or(0, |block| len.min(block.usable));
    check(cx, addr, 0..wiped)
}

/// The ranges that must read zero after the call.
fn promised_ranges(
    cx: &Context<'_>,
    step: &Step,
    addr: u64,
    requested: usize,
    usable: usize,
    gfp: GfpFlags,
) -> [Range<usize>; 2] {
    let Some(old) = old_address(&step.call).and_then(|old| cx.model.block(old)) else {
        return [0..fresh_bytes(cx, &step.call, addr, requested, usable), 0..0];
    };
    let grown = old.requested.min(requested)..requested;
    let chained = if old.zero_chain { grown.clone() } else { 0..0 };
    match old.tier {
        _ if !cx.model.is_tight() => [chained, 0..0],
        Tier::Vmalloc if old.addr == addr && requested > old.frames.len() * PAGE_SIZE => [grown, 0..0],
        Tier::Vmalloc if old.addr == addr => [chained, shrunk(old, requested, gfp)],
        Tier::Vmalloc => [grown, 0..0],
        // Where the size is kept, the bytes up to it are zeroed and those behind it guarded.
        _ if old.addr == addr && old.asked.is_some() => [old.asked.unwrap_or(usable).min(requested)..requested, 0..0],
        _ if old.addr == addr => [chained, requested..usable],
        _ => [chained, 0..0],
    }
}

/// How much of a fresh block is zero: an object of a cache, else to the end of the class, the order or the last page.
fn fresh_bytes(cx: &Context<'_>, call: &Call, addr: u64, requested: usize, usable: usize) -> usize {
    match call {
        Call::CacheAlloc { .. } => requested,
        _ if !cx.model.is_tight() => requested,
        _ if cx.model.in_vmalloc_window(addr) => requested.next_multiple_of(PAGE_SIZE),
        _ if cx.model.class_layout(usable).is_some_and(|layout| layout.keeps_size()) => requested,
        _ => usable,
    }
}

/// What a shrink in place clears, as far as it stays mapped.
fn shrunk(old: &Block, requested: usize, gfp: GfpFlags) -> Range<usize> {
    let mapped = kept_pages(old, requested, gfp) * PAGE_SIZE;
    requested..old.requested.min(mapped).max(requested)
}

fn check(cx: &mut Context<'_>, addr: u64, range: Range<usize>) -> Result<(), Violation> {
    for part in parts(range) {
        if let Err(damage) = verify_bytes(cx.subject, addr, part, &ZEROED) {
            return Err(cx.violation(
                OracleId::O5Zero,
                &[],
                format!("the block at {addr:#x} was promised zeroed: {damage}"),
            ));
        }
    }
    Ok(())
}

/// The range itself, or the two ends of each of its pages.
fn parts(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let sampled = range.len() > WHOLE;
    let step = if sampled { PAGE_SIZE } else { WHOLE };
    let end = range.end;
    range.step_by(step).flat_map(move |start| {
        let end = end.min(start + step);
        if sampled && end - start > 2 * EDGE { [start..start + EDGE, end - EDGE..end] } else { [start..end, end..end] }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use crate::subject::{Near, Subject};

    const ZERO: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::ZERO);

    fn zeroed() -> FakeSubject {
        let mut subject = FakeSubject::new(64);
        subject.memory.fill(0);
        subject
    }

    #[test]
    fn one_dirty_byte_of_the_class_is_found() {
        let mut subject = zeroed();
        let addr = subject.direct(3);
        let kmalloc = |gfp| step(Call::Kmalloc { size: 50, gfp }, Reply::Block { addr, usable: 64 });
        assert_eq!(ask(&Zero, &mut subject.model(), &mut subject, &kmalloc(ZERO)), Ok(()));
        subject.flip(addr + 63);
        assert!(ask(&Zero, &mut subject.model(), &mut subject, &kmalloc(ZERO)).is_err());
        assert_eq!(ask(&Zero, &mut subject.model(), &mut subject, &kmalloc(GfpFlags::KERNEL)), Ok(()));
    }

    #[test]
    fn a_byte_that_a_sensitive_free_leaves_is_found() {
        for (len, is_left) in [(49, false), (50, true), (64, true)] {
            let mut subject = zeroed();
            let mut model = subject.model();
            let addr = subject.direct(3);
            let call = Call::Kvmalloc { size: 50, gfp: GfpFlags::KERNEL };
            ask(&Zero, &mut model, &mut subject, &step(call, Reply::Block { addr, usable: 64 })).unwrap();
            subject.flip(addr + 49);
            let free = step(Call::KvfreeSensitive { addr, len }, Reply::Done);
            assert_eq!(ask(&Zero, &mut model, &mut subject, &free).is_err(), is_left, "{len} bytes");
        }
    }

    #[test]
    fn a_dirty_page_of_a_large_block_is_found() {
        let mut subject = zeroed();
        let addr = subject.direct(16);
        let pages = step(Call::AllocPages { order: 4, gfp: ZERO }, Reply::Block { addr, usable: 16 * PAGE_SIZE });
        assert_eq!(ask(&Zero, &mut subject.model(), &mut subject, &pages), Ok(()));
        subject.flip(addr + 9 * PAGE_SIZE as u64);
        assert!(ask(&Zero, &mut subject.model(), &mut subject, &pages).is_err());
    }

    #[test]
    fn growth_in_place_is_zero_only_if_every_call_asked_for_it() {
        for (first, dirty_is_wrong) in [(ZERO, true), (GfpFlags::KERNEL, false)] {
            let mut subject = zeroed();
            let mut model = subject.model();
            let addr = subject.direct(3);
            let kmalloc = step(Call::Kmalloc { size: 40, gfp: first }, Reply::Block { addr, usable: 64 });
            ask(&Zero, &mut model, &mut subject, &kmalloc).unwrap();
            subject.write(addr + 40, &[1]).unwrap();
            let grow = step(Call::Krealloc { addr, size: 50, gfp: ZERO }, Reply::Block { addr, usable: 64 });
            assert_eq!(ask(&Zero, &mut model, &mut subject, &grow).is_err(), dirty_is_wrong);
        }
    }

    #[test]
    fn a_shrink_in_place_clears_above_the_new_size() {
        let mut subject = zeroed();
        let mut model = subject.model();
        subject.map(0, &[5]);
        let addr = subject.window(0);
        let vmalloc = step(Call::Vmalloc { size: 4000, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 4000 });
        ask(&Zero, &mut model, &mut subject, &vmalloc).unwrap();
        subject.write(addr + 3999, &[1]).unwrap();
        let shrink =
            step(Call::Vrealloc { addr, size: 100, gfp: ZERO, near: Near::ANY }, Reply::Block { addr, usable: 100 });
        assert!(ask(&Zero, &mut model, &mut subject, &shrink).is_err());
        subject.write(addr + 3999, &[0]).unwrap();
        assert_eq!(ask(&Zero, &mut model, &mut subject, &shrink), Ok(()));
    }
}
