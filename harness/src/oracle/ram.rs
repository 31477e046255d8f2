//! What O9, O15, O16, O17, O18 and O23 ask about mappings of `vm_map_ram` and the blocks that they are cut from.
//!
//! Contract: section 4.6. A mapping of up to 64 pages takes the next 2^order pages of a block of the calling CPU; a new block is made
//! only if none of them has room, and where an area of its size would go. A block is given back when all of it is dirty,
//! or by a purge if nobody has a mapping of it and less than a quarter is left, or if addresses are short. No page of a
//! block is mapped or remembered that no mapping shows, but for those that wait for the flush. `vm_unmap_ram` takes exactly
//! what was mapped. Exact.

use super::scene::Snapshot;
use super::{Context, OracleId, Step, Violation};
use crate::model::{Block, Model, RamBlock, RamPage, Tier};
use crate::subject::{Call, Reply, WindowCall};
use kmem::{AllocError, Event, FreeError, Geometry, GfpFlags, MAX_NODES, PAGE_SIZE, VmallocEntry};

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages of a mapping that comes from a block; `None` for other calls.
pub(super) fn run_of(model: &Model, call: &Call) -> Option<usize> {
    match call {
        Call::Window(WindowCall::VmMapRam { pfns, .. }) if model.is_run(pfns.len()) => Some(pfns.len()),
        _ => None,
    }
}

/// A mapping of few pages needs page tables, and a record and addresses for a block if the CPU has none with room.
pub(super) fn run_served(
    found: &Snapshot,
    model: &Model,
    pages: usize,
    gfp: GfpFlags,
    error: &AllocError,
) -> Option<&'static str> {
    let verdict = found.serves_run(model, pages, gfp);
    match error {
        AllocError::NoVirtualSpace { .. } => verdict.has_gap.then_some("a block has room, or the window for a block"),
        _ => verdict.has_memory.then_some("there is memory for descriptor and page tables"),
    }
}

/// Whether a mapping is cut where it may be from a block that there is; `None` if it is the first of a new one.
pub(super) fn judge_cut(model: &Model, pages: usize, addr: u64) -> Option<Result<(), String>> {
    let (page, cpu, span) = (addr / PAGE, model.cpu(), pages.next_power_of_two());
    if let Some(block) = model.ram_block(page) {
        let (start, next, free) = (block.start, block.next(), block.free());
        let fits = block.cpu == cpu && page == next && free >= span;
        let found = format!("the block at {start:#x} of CPU {} has {free} free pages from {next:#x} on", block.cpu);
        return Some(if fits { Ok(()) } else { Err(format!("{pages} pages at {page:#x} for CPU {cpu}, but {found}")) });
    }
    let with_room = model.ram_blocks_with_room(pages).next()?;
    Some(Err(format!("a new block for {pages} pages, but CPU {cpu} has room from {:#x} on", with_room.next())))
}

/// The blocks that are gone were nobody's, and those that had to go are gone.
pub(super) fn check_purged(cx: &Context<'_>, step: &Step) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let forced = inside.event_count(Event::ReclaimVa) != cx.model.notes.reclaimed_va;
    let describe = |block: &RamBlock| format!("the block at {:#x} with {} free pages", block.start, block.free());
    if let Some(wrong) = cx.model.purged_ram_blocks().iter().find(|block| !block.is_purged(forced)) {
        return Err(format!("{} was taken from CPU {} though it is not to be purged", describe(wrong), wrong.cpu));
    }
    let purges = matches!(step.call, Call::Purge | Call::Reclaim);
    let stays = cx.model.ram_blocks().iter().find(|block| purges && block.is_purged(forced));
    stays.map_or(Ok(()), |stays| Err(format!("{} is still there after {:?}", describe(stays), step.call)))
}

/// What is wrong with an unmapping by what is mapped there.
pub(super) fn named(model: &Model, addr: u64, count: usize, block: &Block, error: &FreeError) -> Result<(), String> {
    let pages = block.requested / PAGE_SIZE;
    let is_page = addr.is_multiple_of(PAGE);
    // The number alone decides whether a block is looked for, or an area.
    let is_alike = block.tier == Tier::MapRam && count > 0 && model.is_run(count) == model.is_run(pages);
    let starts = addr == block.addr;
    let fits = match *error {
        FreeError::WrongCount { count: given, found, .. } => is_alike && starts && given == count && found == pages,
        FreeError::Interior { start, .. } => {
            is_alike && is_page && !starts && model.is_run(pages) && start.as_u64() == block.addr
        }
        FreeError::Foreign(_) => !is_alike || !is_page || (!starts && !model.is_run(pages)),
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(format!("vm_unmap_ram({addr:#x}, {count}) of {} is rejected because {error} ({error:?})", block.describe()))
}

/// Whether an unmapping was of an area of its own that is none; that is warned of.
pub(super) fn is_of_nothing(step: &Step) -> bool {
    matches!(
        (&step.call, &step.reply),
        (Call::Window(WindowCall::VmUnmapRam { .. }), Reply::Rejected(FreeError::Foreign(_)))
    )
}

/// As above, and certainly looked for as an area: more pages than a block's mapping ever has, at a page of the window.
pub(super) fn is_of_no_area(geometry: &Geometry, step: &Step) -> bool {
    let Call::Window(WindowCall::VmUnmapRam { addr, count }) = step.call else { return false };
    let in_window = geometry.is_vmalloc_addr(kmem::VirtAddr::new(addr)) && addr.is_multiple_of(PAGE);
    in_window && count > 64 && is_of_nothing(step)
}

/// No page of a block is reached that no mapping shows: neither by the tables, nor, once flushed, by any TLB.
pub(super) fn check_blocks(cx: &Context<'_>) -> Result<(), Violation> {
    for block in cx.model.ram_blocks() {
        for (page, addr) in block.pages.iter().zip((block.start..).map(|page| page * PAGE)) {
            let (walked, remembered) = match page {
                RamPage::Shown(_) => continue,
                RamPage::Unflushed => (cx.subject.translate(addr), None),
                _ => (cx.subject.translate(addr), cx.subject.remembered(addr).into_iter().next()),
            };
            if let Some(reached) = walked.or(remembered) {
                let message = format!("{addr:#x} of a block is {page:?}, but leads to {reached:#x}");
                return Err(cx.violation(OracleId::O15Translation, &[], message));
            }
        }
    }
    Ok(())
}

/// Compares a line of `vmallocinfo` with the block, or the mapping of its own, that it is about.
pub(super) fn check_listed(model: &Model, entry: &VmallocEntry, text: &str) -> Result<(), String> {
    let block = model.ram_blocks().iter().find(|block| block.start == entry.start.vpn().as_u64());
    let own = model.block(entry.start.as_u64()).filter(|own| own.tier == Tier::MapRam);
    let (pages, shown): (usize, Vec<u32>) = match (block, own) {
        (Some(block), _) => (block.pages.len(), block.shown().collect()),
        (None, Some(own)) => (own.area_pages, own.frames.clone()),
        (None, None) => return Err(format!("vmallocinfo has {text:?}, but nobody maps anything there")),
    };
    let mut on_nodes = [0; MAX_NODES];
    shown.iter().filter_map(|&frame| model.node_of(frame)).for_each(|node| on_nodes[usize::from(node)] += 1);
    let is_right = entry.pages.get() == pages as u64
        && entry.guard.get() == 0
        && entry.on_nodes == on_nodes
        && text.contains(&format!("pages={} vm_map_ram", shown.len()));
    if is_right { Ok(()) } else { Err(format!("vmallocinfo has {text:?} for {} of {pages} pages", shown.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context, step};
    use kmem::VirtAddr;

    /// A machine on which one page is mapped at the first of a block.
    fn mapped() -> (FakeSubject, Model) {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(0, &[7]);
        let call = Call::Window(WindowCall::VmMapRam { pfns: vec![7], gfp: GfpFlags::KERNEL });
        let reply = Reply::Block { addr: subject.window(0), usable: PAGE_SIZE };
        model.update(&step(call, reply), &subject);
        (subject, model)
    }

    #[test]
    fn a_mapping_takes_the_next_pages_of_a_block_with_room() {
        let (subject, model) = mapped();
        let cut = |pages, page| judge_cut(&model, pages, subject.window(page));
        assert_eq!((cut(1, 1), cut(4, 1)), (Some(Ok(())), Some(Ok(()))));
        assert!(cut(1, 2).unwrap().is_err(), "a page is left out");
        assert!(cut(1, 0).unwrap().is_err(), "somebody has it");
        let block = model.ram_blocks()[0].pages.len() as u64;
        assert!(cut(1, block).unwrap().is_err(), "a new block, but there is room");
    }

    #[test]
    fn what_nothing_shows_must_not_be_reached() {
        let (mut subject, mut model) = mapped();
        assert_eq!(check_blocks(&context(&mut model, &mut subject)), Ok(()));
        subject.tlb.insert(subject.window(3) / PAGE, 9);
        assert!(check_blocks(&context(&mut model, &mut subject)).is_err());
        subject.tlb.clear();
        subject.map(1, &[8]);
        assert!(check_blocks(&context(&mut model, &mut subject)).is_err());
    }

    #[test]
    fn the_reason_of_a_rejection_is_the_right_one() {
        let (subject, model) = mapped();
        let (addr, block) = (subject.window(0), model.block(subject.window(0)).unwrap());
        let wrong = |count, found| FreeError::WrongCount { addr: VirtAddr::new(addr), count, found };
        let foreign = FreeError::Foreign(VirtAddr::new(addr));
        assert!(named(&model, addr, 2, block, &wrong(2, 1)).is_ok());
        assert!(named(&model, addr, 2, block, &wrong(2, 3)).is_err());
        assert!(named(&model, addr, 2, block, &foreign).is_err());
        assert!(named(&model, addr, 0, block, &foreign).is_ok() && named(&model, addr, 65, block, &foreign).is_ok());
    }

    #[test]
    fn a_block_in_use_is_not_purged_and_an_idle_one_is() {
        let (mut subject, mut model) = mapped();
        let purge = step(Call::Purge, Reply::Done);
        assert_eq!(check_purged(&context(&mut model, &mut subject), &purge), Ok(()));
        let unmap = Call::Window(WindowCall::VmUnmapRam { addr: subject.window(0), count: 1 });
        model.settle_ram(&unmap, &Reply::Done, &subject);
        assert_eq!(check_purged(&context(&mut model, &mut subject), &purge), Ok(()), "most of it is left");
        model.notes.reclaimed_va = 1;
        assert!(check_purged(&context(&mut model, &mut subject), &purge).is_err(), "addresses were short");
    }
}
