//! O11: does a failed call change nothing?
//!
//! Contract: I13. After a refusal the owners of pages have what the model says, and no more. What reclaim, or the
//! flush of a cache that could not be destroyed, may have done on the way is allowed: slabs, page tables and lazily freed
//! pages may become fewer, and free pages may move between the buddy and the per-CPU lists. More may remain of
//!
//! * slabs, by one page, for a vmalloc area's descriptor that was given back to its cache when a later stage failed; by two where
//!   an attempt with huge entries failed first and there are several memory nodes;
//! * slabs, by those that a request for several objects of a `TYPESAFE_BY_RCU` cache made before it was refused: they are
//!   given up like any slab of such a cache, whose frames stay its own until a grace period has passed;
//! * lazily freed pages, by those of areas that waited for readers until the call waited for them as well, as the
//!   destruction of a cache does even if it is refused.
//!
//! A call that was rejected as misuse changes no counter at all. That an old block survives a failed reallocation is asked
//! by O6. Exact but for these pages.

use super::o07_conservation::check_use;
use super::{Context, Oracle, OracleId, Violation};
use crate::model::areas::AreaWish;
use crate::model::{Tier, old_address};
use crate::subject::{Call, Reply, WhiteBox};
use kmem::{Event, Geometry, MemInfo, SlabFlags};

/// See the module.
pub(super) struct FailureAtomic;

impl Oracle for FailureAtomic {
    fn id(&self) -> OracleId {
        OracleId::O11FailureAtomic
    }

    fn before_call(&self, cx: &mut Context<'_>, _call: &Call) -> Result<(), Violation> {
        cx.model.notes.put_off = cx.subject.white_box().map_or(0, slabs_put_off);
        cx.model.notes.pending_pages = cx.model.waiting_pages(Tier::Vmalloc);
        Ok(())
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let misuse = match step.reply {
            Reply::Refused(_) | Reply::CacheRefused(_) => false,
            Reply::Rejected(_) => true,
            _ => return Ok(()),
        };
        let (Some(inside), Some(before)) = (cx.subject.white_box(), cx.model.last_use) else { return Ok(()) };
        let after = inside.page_use();
        let verdict = if misuse {
            unchanged(&before, &after)
        } else {
            only_reclaimed(&before, &after, &Remains::of(cx, inside, &step.call))
        };
        verdict
            .and_then(|()| check_use(cx, &after))
            .map_err(|message| cx.violation(OracleId::O11FailureAtomic, &[], format!("after a failure {message}")))
    }
}

fn unchanged(before: &MemInfo, after: &MemInfo) -> Result<(), String> {
    if before == after { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
}

/// How many slabs have been given up whose frames wait for a grace period.
fn slabs_put_off(inside: &dyn WhiteBox) -> u64 {
    inside.event_count(Event::SlabPutOff)
}

/// Pages of the largest slab that readers may look at.
fn typesafe_pages(inside: &dyn WhiteBox) -> u64 {
    let caches = inside.slabinfo().into_iter().filter(|cache| cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU));
    caches.map(|cache| cache.order.pages()).max().unwrap_or(0)
}

/// How many pages more there may be after a refusal.
struct Remains {
    slab: u64,
    lazy: u64,
}

impl Remains {
    fn of(cx: &Context<'_>, inside: &dyn WhiteBox, call: &Call) -> Self {
        let notes = &cx.model.notes;
        let descriptors = slabs_of_descriptors(cx.model.geometry(), call);
        let put_off = slabs_put_off(inside) - notes.put_off;
        let waiting = if put_off > 0 { put_off * typesafe_pages(inside) } else { 0 };
        let lazy = notes.pending_pages.saturating_sub(cx.model.waiting_pages(Tier::Vmalloc));
        Self { slab: descriptors + waiting, lazy }
    }
}

fn only_reclaimed(before: &MemInfo, after: &MemInfo, remains: &Remains) -> Result<(), String> {
    let rows = [
        ("slab", before.slab + remains.slab, after.slab),
        ("page table", before.page_tables, after.page_tables),
        ("lazily freed", before.vmalloc_lazy + remains.lazy, after.vmalloc_lazy),
    ];
    match rows.into_iter().find(|(_, most, found)| found > most) {
        Some((what, most, found)) => Err(format!("{found} {what} pages remain, at most {most} may")),
        None => Ok(()),
    }
}

/// How many slabs of descriptors a call may leave: one for each attempt. The second attempt at an area, without huge entries,
/// finds the first one's slab again, unless that is of another memory node.
fn slabs_of_descriptors(geometry: &Geometry, call: &Call) -> u64 {
    let has_nodes = geometry.nodes().nth(1).is_some();
    let twice = has_nodes && AreaWish::of(geometry, call).is_some_and(|wish| wish.huge);
    if may_need_descriptor(call) { 1 + u64::from(twice) } else { 0 }
}

fn may_need_descriptor(call: &Call) -> bool {
    matches!(
        call,
        Call::Vmalloc { .. }
            | Call::VmallocRange(_)
            | Call::KvmallocNode { .. }
            | Call::Vmap { .. }
            | Call::Window(_)
            | Call::Vrealloc { .. }
            | Call::Kvmalloc { .. }
            | Call::KvmallocArray { .. }
    ) || (matches!(call, Call::Kvrealloc { .. }) && old_address(call).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::Step;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use kmem::{AllocError, FreeError, GfpFlags, Order, VirtAddr};

    fn refused(call: Call) -> Step {
        step(call, Reply::Refused(AllocError::NoPages { order: Order::ZERO }))
    }

    fn verdict(step: &Step, change: impl Fn(&mut MemInfo)) -> bool {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        model.last_use = Some(subject.counters);
        change(&mut subject.counters);
        ask(&FailureAtomic, &mut model, &mut subject, step).is_ok()
    }

    #[test]
    fn a_refused_call_may_not_keep_pages() {
        let kmalloc = refused(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL });
        let vmalloc = refused(Call::Vmalloc { size: 64, gfp: GfpFlags::KERNEL });
        let take = |n: u64, owner: fn(&mut MemInfo) -> &mut u64| {
            move |u: &mut MemInfo| {
                u.free -= n;
                *owner(u) += n;
            }
        };
        assert!(verdict(&kmalloc, |_| ()) && verdict(&kmalloc, take(3, |u| &mut u.pcp)));
        assert!(!verdict(&kmalloc, take(1, |u| &mut u.slab)) && verdict(&vmalloc, take(1, |u| &mut u.slab)));
        assert!(!verdict(&vmalloc, take(2, |u| &mut u.slab)));
        assert!(!verdict(&vmalloc, take(1, |u| &mut u.vmalloc)));
        assert!(!verdict(&vmalloc, take(1, |u| &mut u.vmalloc_lazy)));
        assert!(!verdict(&vmalloc, take(1, |u| &mut u.page_tables)));
        assert!(!verdict(&vmalloc, |u| u.free -= 1), "a page got lost");
    }

    #[test]
    fn an_area_that_waited_for_readers_may_be_freed_by_a_refused_call_and_no_other() {
        let cx = |waited: u64| {
            let (mut subject, inside) = (FakeSubject::new(64), FakeSubject::new(64));
            let mut model = subject.model();
            model.notes.pending_pages = waited;
            let call = Call::CacheDestroy { cache: kmem::CacheId::new(0) };
            Remains::of(&crate::oracle::fake::context(&mut model, &mut subject), &inside, &call).lazy
        };
        assert_eq!((cx(0), cx(3)), (0, 3));
        let before = FakeSubject::new(64).counters;
        let after = MemInfo { vmalloc_lazy: before.vmalloc_lazy + 3, ..before };
        let verdict = |lazy| only_reclaimed(&before, &after, &Remains { slab: 0, lazy }).is_ok();
        assert!(verdict(3) && !verdict(2));
    }

    #[test]
    fn a_rejected_free_changes_no_counter() {
        let addr = 0x1000;
        let free = step(Call::Kfree { addr }, Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr))));
        assert!(verdict(&free, |_| ()));
        let moved = |u: &mut MemInfo| {
            u.free -= 1;
            u.pcp += 1;
        };
        assert!(!verdict(&free, moved));
    }
}
