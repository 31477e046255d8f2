//! O16: is every right free accepted, and every wrong one named and harmless?
//!
//! Contract: I6. A free by the right call of the start of a live block is done. Anything else is rejected, and the reason is
//! what the model knows: inside a live block, with its start; a live block of another kind; an object of another cache; a
//! block of another order. A bulk is rejected because of its first wrong address, and an object of a cache that was destroyed
//! as leaked. What else is not live may be rejected for any reason, but for a block that was freed just before by
//! the same call: that is a double free. That a rejected free changes nothing is asked by O11, of the contents by O4.
//! Exact, for subjects that verify each free.

use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::{Block, Model, Tier, Tiers, Why, freed_address};
use crate::subject::{Call, ObjectsCall, Reply, WindowCall};
use kmem::{BlockKind, CacheId, FreeError, Hardening, VirtAddr};

/// See the module.
pub(super) struct MisuseNamed;

impl Oracle for MisuseNamed {
    fn id(&self) -> OracleId {
        OracleId::O16Misuse
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        if let Call::Objects(call @ ObjectsCall::FreeBulk { .. }) = &step.call
            && verifies(cx)
        {
            return judge_bulk(cx.model, step, &call.single_frees())
                .map_err(|message| cx.violation(OracleId::O16Misuse, &[], message));
        }
        let addr = freed_address(&step.call)
            .or_else(|| deferred_address(&step.call))
            .filter(|&addr| addr > VirtAddr::ZERO_SIZE.as_u64());
        let freed_before = std::mem::take(&mut cx.model.notes.freed);
        let Some(addr) = addr.filter(|_| is_free(&step.call) && verifies(cx)) else { return Ok(()) };
        if step.reply == Reply::Done {
            cx.model.notes.freed = Some(step.call.clone());
        }
        check_waiting(cx, step, addr)?;
        // An object of no bytes overlaps nothing.
        let block = cx.model.block(addr).or_else(|| cx.model.overlapping(addr, addr + 1, None));
        let leaked = cx.model.ghost_at(addr).is_some_and(|ghost| ghost.why == Why::Leaked);
        if leaked && block.is_none() && step.reply != Reply::Rejected(FreeError::Leaked(VirtAddr::new(addr))) {
            let message = format!("{addr:#x} is of a cache that is gone, but {:?} answers {:?}", step.call, step.reply);
            return Err(cx.violation(OracleId::O16Misuse, &[], message));
        }
        let again = block.is_none() && freed_before.as_ref() == Some(&step.call);
        judge(cx.model, step, addr, block, again).map_err(|message| {
            let blocks: Vec<u64> = block.map(|block| block.handle).into_iter().collect();
            cx.violation(OracleId::O16Misuse, &blocks, message)
        })
    }
}

fn verifies(cx: &Context<'_>) -> bool {
    cx.model.is_tight() && cx.model.geometry().hardening != Hardening::Off
}

/// The area that a call has freed later.
fn deferred_address(call: &Call) -> Option<u64> {
    match call {
        Call::Window(WindowCall::VfreeAtomic { addr, .. }) => Some(*addr),
        _ => None,
    }
}

/// An area that waits to be freed is no more to be freed, and one that is put off stays mapped.
fn check_waiting(cx: &Context<'_>, step: &Step, addr: u64) -> Result<(), Violation> {
    let waits = cx.model.deferred(addr);
    let puts_off = deferred_address(&step.call).is_some();
    let wrong = match &step.reply {
        Reply::Rejected(FreeError::DoubleFree(_)) => false,
        Reply::Done => waits.is_some() || (puts_off && cx.subject.translate(addr).is_none()),
        Reply::Rejected(_) => waits.is_some() && is_virtual_free(&step.call),
        _ => false,
    };
    if !wrong {
        return Ok(());
    }
    let message = format!("{:?} gave {:?}; an area that waits there: {}", step.call, step.reply, waits.is_some());
    Err(cx.violation(OracleId::O16Misuse, &[], message))
}

fn is_virtual_free(call: &Call) -> bool {
    matches!(call, Call::Vfree { .. } | Call::Vunmap { .. } | Call::Kvfree { .. } | Call::Window(_))
}

/// Reallocations to nothing free too, but answer otherwise.
fn is_free(call: &Call) -> bool {
    !matches!(call, Call::Krealloc { .. } | Call::Vrealloc { .. } | Call::Kvrealloc { .. })
}

fn judge(model: &Model, step: &Step, addr: u64, block: Option<&Block>, again: bool) -> Result<(), String> {
    let right = block.is_some_and(|block| accepts(model, &step.call, addr, block));
    match (&step.reply, block) {
        (Reply::Unsupported, _) => Ok(()),
        // Whether there was damage to refuse it for is asked by O21.
        (Reply::Rejected(FreeError::Corrupted(_)), Some(_)) if right => Ok(()),
        (Reply::Rejected(error), Some(_)) if right => Err(format!("a right free of {addr:#x} is rejected: {error}")),
        (Reply::Rejected(error), Some(block)) => named(model, &step.call, addr, block, error),
        (Reply::Rejected(error), None) if again && !is_double(error, &step.call) => {
            Err(format!("{addr:#x} was freed just before, but is rejected because {error}"))
        }
        (Reply::Rejected(_), None) => Ok(()),
        _ if right => Ok(()),
        (_, Some(block)) => Err(format!("a wrong free of {addr:#x} in {:?} at {:#x} is done", block.tier, block.addr)),
        (_, None) => Err(format!("{addr:#x} is no live block, but is freed")),
    }
}

/// A bulk is rejected because of its first wrong address, as that would be by itself, or done.
fn judge_bulk(model: &Model, step: &Step, frees: &[Call]) -> Result<(), String> {
    for (n, call) in frees.iter().enumerate() {
        let Some(addr) = freed_address(call).filter(|&addr| addr > VirtAddr::ZERO_SIZE.as_u64()) else { continue };
        let block = model.block(addr).or_else(|| model.overlapping(addr, addr + 1, None));
        let earlier = frees.iter().take(n).any(|other| freed_address(other) == Some(addr));
        if !earlier && block.is_some_and(|block| accepts(model, call, addr, block)) {
            continue;
        }
        return match (&step.reply, block) {
            (Reply::Unsupported, _) => Ok(()),
            (Reply::Rejected(error), _) if earlier && *error == FreeError::DoubleFree(VirtAddr::new(addr)) => Ok(()),
            (Reply::Rejected(error), Some(block)) if !earlier => named(model, call, addr, block, error),
            (Reply::Rejected(_), None) => Ok(()),
            (reply, _) => Err(format!("address {n} of a bulk, {addr:#x}, is wrong, but the answer is {reply:?}")),
        };
    }
    match &step.reply {
        // Whether there was damage to refuse it for is asked by O21.
        Reply::Done | Reply::Unsupported | Reply::Rejected(FreeError::Corrupted(_)) => Ok(()),
        reply => Err(format!("every address of a bulk is right, but the answer is {reply:?}")),
    }
}

/// Address space that was freed may be flushed and forgotten at once.
fn is_double(error: &FreeError, call: &Call) -> bool {
    let window = matches!(call, Call::Vfree { .. } | Call::Vunmap { .. } | Call::Kvfree { .. } | Call::Window(_));
    matches!(error, FreeError::DoubleFree(_)) || window && matches!(error, FreeError::Foreign(_))
}

/// Tells whether the call frees this block.
fn accepts(model: &Model, call: &Call, addr: u64, block: &Block) -> bool {
    let single = matches!(call, Call::FreePages { order: 0, .. } | Call::FreePagesNolock { order: 0, .. });
    if single && (block.tier == Tier::PagesExact || is_single_pages(block)) {
        return addr.is_multiple_of(kmem::PAGE_SIZE as u64);
    }
    addr == block.addr
        && match call {
            Call::FreePages { order, .. } | Call::FreePagesNolock { order, .. } => {
                block.tier == Tier::Pages && *order == block.order
            }
            Call::FreeContigRange { pages, .. } => block.tier == Tier::Contig && *pages as u64 == block.pages(),
            Call::FreePagesExact { size, .. } => {
                block.tier == Tier::PagesExact && size.div_ceil(kmem::PAGE_SIZE) as u64 <= block.pages()
            }
            Call::CacheFree { cache, .. } => {
                // Caches that share slabs free each other's objects.
                block.tier == Tier::Cache && block.cache.is_some_and(|own| share(model, own, *cache))
            }
            Call::Vunmap { .. } => block.tier == Tier::Vmap,
            Call::Window(WindowCall::VmUnmapRam { count, .. }) => {
                block.tier == Tier::MapRam && block.requested / kmem::PAGE_SIZE == *count
            }
            Call::Vfree { .. } | Call::Window(_) => Tiers::GUARDED.contains(block.tier),
            Call::Kfree { .. } | Call::KfreeSensitive { .. } => is_slab(block.tier) || block.tier == Tier::LargeKmalloc,
            _ => !matches!(block.tier, Tier::Pages | Tier::PagesExact | Tier::Contig | Tier::MapRam),
        }
}

/// Tells whether a run of frames was not asked for as a block.
fn is_single_pages(block: &Block) -> bool {
    block.tier == Tier::Contig && !block.gfp.contains(kmem::GfpFlags::COMP)
}

fn share(model: &Model, one: CacheId, other: CacheId) -> bool {
    model.root_of(one) == model.root_of(other)
}

fn is_slab(tier: Tier) -> bool {
    matches!(tier, Tier::Kmalloc | Tier::Cache)
}

fn kind_of(tier: Tier) -> BlockKind {
    match tier {
        Tier::Pages | Tier::PagesExact | Tier::Contig => BlockKind::Pages,
        Tier::Kmalloc | Tier::Cache => BlockKind::Slab,
        Tier::LargeKmalloc => BlockKind::LargeKmalloc,
        Tier::Vmalloc => BlockKind::Vmalloc,
        Tier::Vmap | Tier::MapRam => BlockKind::Vmap,
    }
}

/// Compares the reason of a rejection with what is at the address.
fn named(model: &Model, call: &Call, addr: u64, block: &Block, error: &FreeError) -> Result<(), String> {
    if let Call::Window(WindowCall::VmUnmapRam { count, .. }) = call {
        return super::ram::named(model, addr, *count, block, error);
    }
    let kind = kind_of(block.tier);
    // From outside the window its two kinds look the same.
    let is_kind = |found: BlockKind| found == kind || (kind == BlockKind::Vmap && found == BlockKind::Vmalloc);
    let fits = match error {
        FreeError::Interior { start, .. } => addr != block.addr && start.as_u64() == block.addr,
        FreeError::WrongKind { found, .. } => is_kind(*found) && !accepts(model, call, block.addr, block),
        FreeError::WrongCache { owner, .. } => {
            is_slab(block.tier) && addr == block.addr && block.cache.is_none_or(|own| share(model, own, *owner))
        }
        FreeError::WrongOrder { found } => matches!(call, Call::FreePages { .. }) && found.get() == block.order,
        // A call for page blocks sees frames, and an address that is no frame's start is foreign to it.
        FreeError::Foreign(_) => {
            let of_frames = matches!(call, Call::FreePages { .. } | Call::FreePagesExact { .. })
                && (block.tier.is_virtual() || !addr.is_multiple_of(kmem::PAGE_SIZE as u64));
            // Mappings of `vm_map_ram` are known to its own call alone.
            of_frames || (block.tier == Tier::MapRam && is_virtual_free(call))
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let place = format!("{addr:#x} is in {:?} of {:#x}..+{:#x}", block.tier, block.addr, block.usable);
    Err(format!("{place}, but {call:?} is rejected because {error} ({error:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::block;
    use crate::oracle::fake::{FakeSubject, step};
    use kmem::Order;

    fn verdict(call: Call, reply: Reply, block: Option<&Block>) -> bool {
        let addr = freed_address(&call).unwrap();
        judge(&FakeSubject::new(64).model(), &step(call, reply), addr, block, false).is_ok()
    }

    #[test]
    fn a_right_free_is_done_and_a_wrong_one_is_not() {
        let live = block(Tier::Kmalloc, 0x9000, 64);
        let (start, middle) = (Call::Kfree { addr: 0x9000 }, Call::Kfree { addr: 0x9020 });
        let interior =
            Reply::Rejected(FreeError::Interior { addr: VirtAddr::new(0x9020), start: VirtAddr::new(0x9000) });
        assert!(
            verdict(start.clone(), Reply::Done, Some(&live)) && verdict(middle.clone(), interior.clone(), Some(&live))
        );
        assert!(!verdict(start.clone(), interior, Some(&live)) && !verdict(middle.clone(), Reply::Done, Some(&live)));
        let foreign = Reply::Rejected(FreeError::Foreign(VirtAddr::new(0x9020)));
        assert!(!verdict(middle.clone(), foreign.clone(), Some(&live)), "the model knows better");
        assert!(verdict(middle, foreign, None) && !verdict(start, Reply::Done, None));
    }

    #[test]
    fn the_reason_must_be_the_right_one() {
        let mut pages = block(Tier::Pages, 0x8000, 0x4000);
        pages.order = 2;
        let free = |order| Call::FreePages { addr: 0x8000, order };
        let wrong_order = |order| Reply::Rejected(FreeError::WrongOrder { found: Order::new(order).unwrap() });
        assert!(verdict(free(2), Reply::Done, Some(&pages)) && verdict(free(1), wrong_order(2), Some(&pages)));
        assert!(!verdict(free(1), wrong_order(3), Some(&pages)) && !verdict(free(2), wrong_order(2), Some(&pages)));
        let mut object = block(Tier::Cache, 0x9000, 64);
        object.cache = Some(CacheId::new(7));
        let other = Call::CacheFree { cache: CacheId::new(8), addr: 0x9000 };
        let owner = |n| FreeError::WrongCache { addr: VirtAddr::new(0x9000), owner: CacheId::new(n) };
        assert!(verdict(other.clone(), Reply::Rejected(owner(7)), Some(&object)));
        assert!(!verdict(other, Reply::Rejected(owner(6)), Some(&object)));
    }

    #[test]
    fn a_second_free_is_a_double_free() {
        let (addr, call) = (VirtAddr::new(0x9000), Call::Kfree { addr: 0x9000 });
        let model = FakeSubject::new(64).model();
        let again = |error| judge(&model, &step(call.clone(), Reply::Rejected(error)), 0x9000, None, true).is_ok();
        assert!(again(FreeError::DoubleFree(addr)) && !again(FreeError::Foreign(addr)));
    }
}
