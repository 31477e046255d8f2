//! O7: do free, cached and owned pages add up to all pages, and does each owner have what the model says?
//!
//! Contract: I7 and I17. After every step that was not refused (O11 asks about those): the counters sum up to the managed
//! pages, the pages of `alloc_pages`, of large `kmalloc` and of live areas are exactly those of the live blocks, and no more
//! frames than may wait for a flush do. At each audit the same for objects: a cache counts as active exactly the live
//! objects. Exact.

use super::{Context, Oracle, OracleId, Violation};
use crate::model::{ExpectedUse, Tier, Tiers};
use crate::subject::Reply;
use kmem::{MemInfo, PAGE_SIZE};

/// See the module.
pub(super) struct Conservation;

impl Oracle for Conservation {
    fn id(&self) -> OracleId {
        OracleId::O7Conservation
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(found) = cx.subject.white_box().map(|inside| inside.page_use()) else { return Ok(()) };
        cx.model.last_use = Some(found);
        match cx.step.map(|step| &step.reply) {
            Some(Reply::Refused(_) | Reply::Rejected(_) | Reply::CacheRefused(_)) => Ok(()),
            _ => check_use(cx, &found).map_err(|message| cx.violation(OracleId::O7Conservation, &[], message)),
        }
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        check_objects(cx)
            .and_then(|()| check_areas(cx))
            .map_err(|message| cx.violation(OracleId::O7Conservation, &[], message))
    }
}

/// Compares the counters with each other and with the model.
pub(super) fn check_use(cx: &Context<'_>, found: &MemInfo) -> Result<(), String> {
    let MemInfo { managed, free, pcp, pages, large_kmalloc, slab, vmalloc, vmalloc_lazy, .. } = *found;
    let MemInfo { page_tables, leaked, guard, bad, .. } = *found;
    let used = pages + large_kmalloc + slab + vmalloc + vmalloc_lazy + page_tables;
    let sum = free + pcp + used + leaked + guard + bad;
    if managed != cx.model.geometry().managed().get() || sum != managed {
        return Err(format!("the owners have {sum} of {managed} pages: {found:?}"));
    }
    let counted = ExpectedUse { pages, large_kmalloc, vmalloc, bad };
    let mut expected = cx.model.expected_use();
    // What waits for readers has not been given back.
    expected.large_kmalloc += cx.model.waiting_pages(Tier::LargeKmalloc);
    expected.vmalloc += cx.model.waiting_pages(Tier::Vmalloc);
    if counted != expected {
        return Err(format!("the counters say {counted:?}, live are {expected:?}"));
    }
    check_lazy(cx, vmalloc_lazy)
}

/// More frames than this do not wait for a flush: the call that would leave more flushes (section 4.2, and 1/32 of memory,
/// since here frames wait with their addresses). Frames that wait for readers are not yet among them.
fn check_lazy(cx: &Context<'_>, lazy: u64) -> Result<(), String> {
    const PAGES_IN_32_MIB: u64 = (32 << 20) / PAGE_SIZE as u64;
    let geometry = cx.model.geometry();
    let bits = u64::from(geometry.cpus.checked_ilog2().map_or(0, |log| log + 1));
    let most = (bits * PAGES_IN_32_MIB).min(geometry.managed().get() / 32);
    if lazy <= most { Ok(()) } else { Err(format!("{lazy} frames wait for a flush; at most {most} may")) }
}

/// Every cache of the trace counts its live objects.
fn check_objects(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box().filter(|_| !cx.model.caches().is_empty()) else { return Ok(()) };
    let listed = inside.slabinfo();
    for root in cx.model.roots() {
        let Some(info) = listed.iter().find(|info| info.id == root.id) else {
            return Err(format!("slabinfo does not list the live cache {:?}", root.id));
        };
        let live: usize = cx.model.caches().iter().filter(|c| c.root == root.id).map(|c| c.live).sum();
        if info.active_objs != live as u64 {
            return Err(format!("{:?} says {} active objects, {live} are live", root.id, info.active_objs));
        }
        let sheaves = cx.model.sheaves().iter().filter(|sheaf| cx.model.root_of(sheaf.cache) == root.id);
        let reserved: usize = sheaves.map(|sheaf| sheaf.left).sum();
        if info.reserved != reserved as u64 {
            return Err(format!("{info:?} should have {reserved} objects in prefilled sheaves"));
        }
        let (stride, align) = (root.spec.stride(), root.spec.object_align());
        if (info.size, info.align) != (stride, align) {
            return Err(format!("{info:?} should have stride {stride} and alignment {align}"));
        }
    }
    Ok(())
}

/// As many live areas are listed as there are.
fn check_areas(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    let listed = inside.vmallocinfo().iter().filter(|entry| entry.kind.is_live()).count();
    let own_areas = cx.model.blocks(Tiers::MAP_RAM).filter(|block| !cx.model.is_run(block.frames.len())).count();
    let live = cx.model.count(Tiers::GUARDED) + own_areas + cx.model.ram_blocks().len();
    if listed == live { Ok(()) } else { Err(format!("vmallocinfo lists {listed} areas, {live} are live")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::caches::CacheSpec;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use crate::subject::Call;
    use kmem::{GfpFlags, PAGE_SIZE};

    fn alloc(subject: &FakeSubject) -> crate::oracle::Step {
        let call = Call::AllocPages { order: 1, gfp: GfpFlags::KERNEL };
        step(call, Reply::Block { addr: subject.direct(4), usable: 2 * PAGE_SIZE })
    }

    #[test]
    fn too_many_frames_that_wait_for_a_flush_are_noticed() {
        let mut subject = FakeSubject::new(64);
        let mut verdict = |lazy| {
            (subject.counters.free, subject.counters.vmalloc_lazy) = (64 - lazy, lazy);
            let mut model = subject.model();
            ask(&Conservation, &mut model, &mut subject, &step(Call::Vfree { addr: 0 }, crate::subject::Reply::Done))
        };
        assert_eq!(verdict(2), Ok(()));
        assert!(verdict(3).is_err());
    }

    #[test]
    fn a_page_that_nobody_owns_is_missed() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.counters.free = 61;
        subject.counters.pages = 2;
        let alloc = alloc(&subject);
        assert!(ask(&Conservation, &mut model, &mut subject, &alloc).is_err());
        subject.counters.pcp = 1;
        assert_eq!(ask(&Conservation, &mut subject.model(), &mut subject, &alloc), Ok(()));
    }

    #[test]
    fn an_owner_with_more_than_the_live_blocks_has_leaked() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.counters.free = 61;
        subject.counters.pages = 3;
        let alloc = alloc(&subject);
        let wrong = ask(&Conservation, &mut model, &mut subject, &alloc).unwrap_err();
        assert_eq!(wrong.oracle, OracleId::O7Conservation);
    }

    #[test]
    fn an_object_that_is_live_must_be_counted() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let cache = subject.add_cache("mine", 64, 3, 0);
        let create = Call::CacheCreate { spec: CacheSpec::own(64, 64, false, false) };
        model.update(&step(create, Reply::Cache(cache)), &subject);
        assert_eq!(Conservation.audit(&mut context(&mut model, &mut subject)), Ok(()));
        let reply = Reply::Block { addr: subject.direct(4), usable: 64 };
        model.update(&step(Call::CacheAlloc { cache, gfp: GfpFlags::KERNEL }, reply), &subject);
        assert!(Conservation.audit(&mut context(&mut model, &mut subject)).is_err());
        subject.caches[0].active_objs = 1;
        assert_eq!(Conservation.audit(&mut context(&mut model, &mut subject)), Ok(()));
    }
}
