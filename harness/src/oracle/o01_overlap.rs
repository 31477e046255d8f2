//! O1: do any two live blocks share a byte, virtual or physical?
//!
//! Contract: I1 and I16. Virtual ranges are compared byte by byte; of an area the whole address range counts, its guard
//! page too. Physical frames are compared frame by frame: those behind a vmalloc block are found by walking the page
//! tables, so two areas that share a frame are found although their addresses differ. `vmap` areas alias on purpose and
//! are compared by address only. Exact.

use super::{Context, Oracle, OracleId, Violation};
use crate::model::areas::AreaWish;
use crate::model::{Block, old_address, request};
use crate::subject::{Call, Reply};
use kmem::PAGE_SIZE;

/// See the module.
pub(super) struct Overlap;

impl Oracle for Overlap {
    fn id(&self) -> OracleId {
        OracleId::O1Overlap
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        match &step.reply {
            Reply::Block { addr, usable } if *usable > 0 => {
                let in_place = old_address(&step.call).filter(|old| old == addr);
                check_block(cx, &step.call, *addr, *usable, in_place)
            }
            Reply::Pages(pages) => check_pages(cx, pages),
            _ => Ok(()),
        }
    }
}

fn check_block(
    cx: &Context<'_>,
    call: &Call,
    addr: u64,
    usable: usize,
    in_place: Option<u64>,
) -> Result<(), Violation> {
    let is_area = cx.model.is_tight() && cx.model.in_vmalloc_window(addr);
    let size = request(call).map_or(usable, |(n, _)| n);
    let bytes = match in_place.and_then(|old| cx.model.block(old)) {
        Some(block) => block.span().max(if is_area { size.next_multiple_of(PAGE_SIZE) } else { 0 }),
        None if is_area => super::area_bytes(cx, call, addr).unwrap_or(usable),
        None => usable,
    };
    // Others than `kmem` may move a block by a part of its length, as memmove does.
    let except = if cx.model.is_tight() { in_place } else { old_address(call) };
    check_addresses(cx, addr, bytes, except)?;
    if !is_area {
        return check_direct_frames(cx, addr, usable);
    }
    check_guards(cx, call, addr, bytes, in_place)?;
    match call {
        call if super::window::shows_others(call) => Ok(()),
        _ => check_area_frames(cx, addr, bytes / PAGE_SIZE, old_address(call)),
    }
}

fn check_addresses(cx: &Context<'_>, addr: u64, bytes: usize, except: Option<u64>) -> Result<(), Violation> {
    let Some(end) = addr.checked_add(bytes as u64) else {
        return Err(cx.violation(OracleId::O1Overlap, &[], format!("{addr:#x} plus {bytes} bytes wraps")));
    };
    match cx.model.overlapping(addr, end, except) {
        Some(other) => Err(shared(cx, other, format!("[{addr:#x}, {end:#x}) overlaps {}", other.describe()))),
        None => Ok(()),
    }
}

/// The page after the area belongs to nobody, nor does the area start in the guard page of the one below.
fn check_guards(
    cx: &Context<'_>,
    call: &Call,
    addr: u64,
    bytes: usize,
    in_place: Option<u64>,
) -> Result<(), Violation> {
    let (end, page) = (addr + bytes as u64, PAGE_SIZE as u64);
    let guarded = match in_place.and_then(|old| cx.model.block(old)) {
        Some(old) => old.guarded,
        None => AreaWish::of(cx.model.geometry(), call).is_none_or(|wish| wish.guard > 0),
    };
    if let Some(other) = cx.model.overlapping(end, end + page, in_place).filter(|_| guarded) {
        return Err(shared(cx, other, format!("the guard page at {end:#x} overlaps {}", other.describe())));
    }
    match cx.model.overlapping(addr.saturating_sub(page), addr, in_place).filter(|other| other.guarded) {
        Some(other) => Err(shared(cx, other, format!("{addr:#x} is in the guard page of {}", other.describe()))),
        None => Ok(()),
    }
}

fn check_direct_frames(cx: &Context<'_>, addr: u64, usable: usize) -> Result<(), Violation> {
    match cx.model.direct_frames(addr, usable).find_map(|f| Some((f, cx.model.vmalloc_owner(f)?))) {
        Some((frame, handle)) => {
            let message = format!("frame {frame:#x} under {addr:#x} is behind the vmalloc block {handle}");
            Err(cx.violation(OracleId::O1Overlap, &[handle], message))
        }
        None => Ok(()),
    }
}

/// The frames are nobody else's: an area that was resized may have kept its own.
fn check_area_frames(cx: &Context<'_>, addr: u64, pages: usize, old: Option<u64>) -> Result<(), Violation> {
    let own = old.and_then(|old| cx.model.block(old)).map(|block| block.handle);
    let page = |i: usize| addr + (i * PAGE_SIZE) as u64;
    let mut frames: Vec<u32> = Vec::with_capacity(pages);
    // A page that is not mapped is the business of the translation oracle.
    for physical in (0..pages).filter_map(|i| cx.subject.translate(page(i))) {
        let frame = (physical / PAGE_SIZE as u64) as u32;
        if let Some(handle) = cx.model.vmalloc_owner(frame).filter(|&handle| Some(handle) != own) {
            let message = format!("frame {frame:#x} behind {addr:#x} is also behind the vmalloc block {handle}");
            return Err(cx.violation(OracleId::O1Overlap, &[handle], message));
        }
        if cx.model.used_directly(frame) {
            let start = cx.model.geometry().direct_map.as_u64() + u64::from(frame) * PAGE_SIZE as u64;
            let other = cx.model.overlapping(start, start + PAGE_SIZE as u64, None);
            let message =
                format!("frame {frame:#x} behind {addr:#x} holds {}", other.map_or_else(String::new, Block::describe));
            return Err(cx.violation(OracleId::O1Overlap, other.map(|b| b.handle).as_slice(), message));
        }
        frames.push(frame);
    }
    frames.sort_unstable();
    match frames.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let message = format!("two pages of the area at {addr:#x} share frame {:#x}", pair[0]);
            Err(cx.violation(OracleId::O1Overlap, &[], message))
        }
        None => Ok(()),
    }
}

fn check_pages(cx: &Context<'_>, pages: &[u64]) -> Result<(), Violation> {
    for &addr in pages {
        check_addresses(cx, addr, PAGE_SIZE, None)?;
        check_direct_frames(cx, addr, PAGE_SIZE)?;
    }
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[1] - pair[0] < PAGE_SIZE as u64) {
        Some(pair) => Err(cx.violation(OracleId::O1Overlap, &[], format!("{:#x} was given twice at once", pair[0]))),
        None => Ok(()),
    }
}

fn shared(cx: &Context<'_>, other: &Block, message: String) -> Violation {
    cx.violation(OracleId::O1Overlap, &[other.handle], message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use kmem::GfpFlags;

    fn kmalloc(addr: u64, size: usize) -> crate::oracle::Step {
        step(Call::Kmalloc { size, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: size })
    }

    fn vmalloc(addr: u64, pages: usize) -> crate::oracle::Step {
        let size = pages * PAGE_SIZE;
        step(Call::Vmalloc { size, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: size })
    }

    #[test]
    fn neighbours_are_allowed_and_one_shared_byte_is_not() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let base = subject.direct(5);
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &kmalloc(base, 64)), Ok(()));
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &kmalloc(base + 64, 64)), Ok(()));
        let wrong = ask(&Overlap, &mut model, &mut subject, &kmalloc(base + 127, 8)).unwrap_err();
        assert_eq!((wrong.oracle, wrong.blocks), (OracleId::O1Overlap, vec![1]));
    }

    #[test]
    fn a_frame_behind_two_areas_is_found() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(0, &[7, 8]);
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(0), 2)), Ok(()));
        subject.map(3, &[9, 8]);
        let wrong = ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(3), 2)).unwrap_err();
        assert!(wrong.message.contains("frame 0x8"), "{}", wrong.message);
        subject.map(3, &[9, 9]);
        assert!(ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(3), 2)).is_err());
        subject.map(3, &[9, 10]);
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(3), 2)), Ok(()));
        let slab = kmalloc(subject.direct(10), 64);
        assert!(ask(&Overlap, &mut model, &mut subject, &slab).is_err());
    }

    #[test]
    fn an_area_in_the_guard_page_of_another_is_found() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(0, &[7, 8]);
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(0), 2)), Ok(()));
        subject.map(2, &[9]);
        let wrong = ask(&Overlap, &mut model, &mut subject, &vmalloc(subject_window(2), 1)).unwrap_err();
        assert!(wrong.message.contains("guard"), "{}", wrong.message);
    }

    #[test]
    fn a_page_given_twice_in_one_bulk_is_found() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let (a, b) = (subject.direct(5), subject.direct(6));
        let bulk = |pages: &[u64]| {
            step(Call::AllocPagesBulk { count: 2, gfp: GfpFlags::KERNEL }, Reply::Pages(pages.to_vec()))
        };
        assert!(ask(&Overlap, &mut model, &mut subject, &bulk(&[a, a])).is_err());
        assert_eq!(ask(&Overlap, &mut model, &mut subject, &bulk(&[a, b])), Ok(()));
    }

    fn subject_window(page: u64) -> u64 {
        FakeSubject::new(64).window(page)
    }
}
