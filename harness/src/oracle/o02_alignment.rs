//! O2: is the address a multiple of what the contract promises?
//!
//! Contract: 2.2 and I3. A page block is aligned to its own size, an object to its cache's alignment, a `kmalloc` block to
//! the largest power of two that divides the request, never to less than 8 bytes; of a tight subject also to the class
//! that serves it. An area is page aligned. Alignments above a page are demanded of the physical address, which is what
//! a page allocator aligns. Exact.

use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::classes::{get_order, kmalloc_align, kmalloc_usable};
use crate::model::old_address;
use crate::subject::{Call, Reply};
use kmem::PAGE_SIZE;

/// See the module.
pub(super) struct Alignment;

impl Oracle for Alignment {
    fn id(&self) -> OracleId {
        OracleId::O2Alignment
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        match &step.reply {
            // Where no block can be, O3 says more.
            Reply::Block { addr, usable } if !cx.subject.has_memory(*addr, *usable) => Ok(()),
            Reply::Block { addr, usable } if *usable > 0 && old_address(&step.call) != Some(*addr) => {
                check(cx, *addr, promise(cx, step, *addr))
            }
            Reply::Pages(pages) => pages.iter().try_for_each(|&addr| check(cx, addr, PAGE_SIZE)),
            _ => Ok(()),
        }
    }
}

fn check(cx: &Context<'_>, addr: u64, align: usize) -> Result<(), Violation> {
    let base = cx.model.geometry().direct_map.as_u64();
    let position = if cx.model.in_direct_map(addr, 1) { addr - base } else { addr };
    if position.is_multiple_of(align as u64) {
        return Ok(());
    }
    Err(cx.violation(OracleId::O2Alignment, &[], format!("{addr:#x} is not a multiple of the promised {align} bytes")))
}

/// The alignment that the answer to a call must have.
fn promise(cx: &Context<'_>, step: &Step, addr: u64) -> usize {
    let requested = cx.model.promised(&step.call).map_or(1, |(n, _)| n);
    match &step.call {
        Call::AllocPages { .. } | Call::AllocPagesNode { .. } | Call::AllocPagesNolock { .. } => {
            PAGE_SIZE << get_order(requested)
        }
        Call::AllocContigRange { .. } => PAGE_SIZE,
        Call::AllocContigPages { pages, .. } => {
            if pages.is_power_of_two() {
                requested
            } else {
                PAGE_SIZE
            }
        }
        // They are the head of a block of the order that holds them, but only `kmem` promises to do it that way.
        Call::AllocPagesExact { .. } => PAGE_SIZE << if cx.model.is_tight() { get_order(requested) } else { 0 },
        Call::VmallocRange(call) => call.align.max(PAGE_SIZE),
        // What a caller may ask of `GlobalAlloc`; `kmem` answers only what the size promises anyway.
        Call::KvmallocNode { align, .. } if !cx.model.is_tight() => *align,
        Call::KvmallocNode { align, .. } if cx.model.in_vmalloc_window(addr) => *align.max(&PAGE_SIZE),
        Call::Vmalloc { .. } | Call::Vrealloc { .. } | Call::Vmap { .. } | Call::Window(_) => PAGE_SIZE,
        Call::CacheAlloc { cache, .. } => cx.model.cache(*cache).map_or(1, |c| c.align),
        _ if cx.model.in_vmalloc_window(addr) => PAGE_SIZE,
        _ if cx.model.is_tight() => kmalloc_align(kmalloc_usable(requested)),
        _ => kmalloc_align(requested),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use kmem::GfpFlags;

    fn verdict(call: Call, addr: impl Fn(&FakeSubject) -> u64) -> bool {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let reply = Reply::Block { addr: addr(&subject), usable: 8 };
        ask(&Alignment, &mut model, &mut subject, &step(call, reply)).is_ok()
    }

    #[test]
    fn kmalloc_is_aligned_to_its_class() {
        let kmalloc = |size| Call::Kmalloc { size, gfp: GfpFlags::KERNEL };
        assert!(verdict(kmalloc(64), |s| s.direct(1) + 64) && !verdict(kmalloc(64), |s| s.direct(1) + 32));
        assert!(verdict(kmalloc(96), |s| s.direct(1) + 96) && !verdict(kmalloc(96), |s| s.direct(1) + 16));
        assert!(verdict(kmalloc(16384), |s| s.direct(4)) && !verdict(kmalloc(16384), |s| s.direct(6)));
    }

    #[test]
    fn page_blocks_are_naturally_aligned_and_areas_page_aligned() {
        let pages = || Call::AllocPages { order: 2, gfp: GfpFlags::KERNEL };
        assert!(verdict(pages(), |s| s.direct(8)) && !verdict(pages(), |s| s.direct(9)));
        let vmalloc = || Call::Vmalloc { size: 1, gfp: GfpFlags::KERNEL };
        assert!(verdict(vmalloc(), |s| s.window(1)) && !verdict(vmalloc(), |s| s.window(1) + 8));
    }
}
