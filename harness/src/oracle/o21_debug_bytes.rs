//! O21: is each damaged byte that a debug cache guards told of, once, and nothing else?
//!
//! Contract: I20, sections 2.7 and 5.2. Each damaged part of a slot makes one report and one repair: when its object is freed
//! into a cache with consistency checks, which refuses that free once, or when the cache is validated. A free pointer that
//! leads nowhere makes one report, and two more if the count of free objects is wrong because of it. Whatever a program
//! may do makes none. Exact.

use super::{BrokenLink, Context, Oracle, OracleId, Step, Violation};
use crate::model::debugged::set_aside;
use crate::model::{RcuCall, freed_address, old_address};
use crate::subject::{Call, Reply};
use kmem::FreeError;

/// See the module.
pub(super) struct DebugBytes;

impl Oracle for DebugBytes {
    fn id(&self) -> OracleId {
        OracleId::O21DebugBytes
    }

    fn before_call(&self, cx: &mut Context<'_>, _call: &Call) -> Result<(), Violation> {
        cx.model.notes.findings = cx.subject.white_box().map_or(0, |inside| inside.slab_findings());
        cx.model.notes.aside = cx.subject.white_box().map_or(0, set_aside);
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
        let told = inside.slab_findings() - cx.model.notes.findings;
        match (&step.call, &step.reply) {
            // What is validated is what is there.
            (Call::Validate, _) => cx.model.notice_slabs(&*cx.subject),
            (Call::Rcu(call), Reply::Done) => cx.model.put_off_debugged(call),
            _ => {}
        }
        if let (Call::Validate, Reply::Size(found), Some(link)) = (&step.call, &step.reply, cx.model.notes.link) {
            cx.model.notes.link = after_validation(link, *found);
            return check_link(link, *found, told)
                .map_err(|message| cx.violation(OracleId::O21DebugBytes, &[], message));
        }
        let aside = set_aside(inside) - cx.model.notes.aside;
        let verdict = if aside > 0 {
            check_set_aside(cx, step, told, aside)
        } else {
            check_told(cx, step, told).and_then(|()| check_refusal(cx, step))
        };
        verdict
            .and_then(|()| check_awaited(cx, step))
            .map_err(|message| cx.violation(OracleId::O21DebugBytes, &[], message))
    }
}

/// When nothing waits for readers any more, the damage of all that did has been told.
fn check_awaited(cx: &mut Context<'_>, step: &Step) -> Result<(), String> {
    if !matches!(step.call, Call::Reclaim | Call::Rcu(RcuCall::Barrier)) {
        return Ok(());
    }
    match cx.model.debugged.all_awaited() {
        Some(object) => {
            Err(format!("the damaged object at {object:#x} was freed after its grace period, and nobody said so"))
        }
        None => Ok(()),
    }
}

/// A broken free pointer of a live object is one finding. That of a free one is one as well, and two more about the count if
/// it led to other objects; those two come again once they are found again. Nothing else is damaged then.
fn check_link(link: BrokenLink, found: usize, told: u64) -> Result<(), String> {
    let right = match link {
        BrokenLink::Live => found == 1,
        BrokenLink::Free => found == 1 || found == 3,
        BrokenLink::Repaired(count) => found == count,
    };
    if right && told == found as u64 {
        Ok(())
    } else {
        Err(format!("validation found {found} and told of {told} findings about a free pointer: {link:?}"))
    }
}

fn after_validation(link: BrokenLink, found: usize) -> Option<BrokenLink> {
    (link == BrokenLink::Free).then(|| BrokenLink::Repaired(found.saturating_sub(1)))
}

/// Were exactly the findings told that the damage makes? Whatever frees what waited for readers tells of that too.
fn check_told(cx: &mut Context<'_>, step: &Step, told: u64) -> Result<(), String> {
    let expected = match (&step.call, &step.reply) {
        (Call::Validate, Reply::Size(found)) => {
            let (least, most) = cx.model.debugged.damage_of_all();
            if !found.is_multiple_of(2) || !(least..=most).contains(&(found / 2)) {
                return Err(format!("validation found {found}, damaged are {least} to {most} parts of objects"));
            }
            *found
        }
        (call, reply) => match looked_at(call, reply).map(|addr| cx.model.damage_at_free(call, addr)) {
            None | Some(0) => 0,
            // The free is refused, which is told too.
            Some(parts) => 2 * parts + 1,
        },
    };
    // A debug cache tells who freed an object that is freed again.
    let twice = matches!(step.reply, Reply::Rejected(FreeError::DoubleFree(_))) && told == 1;
    let late = told.checked_sub(expected as u64).is_some_and(|late| cx.model.debugged.told_late(late));
    if late || twice { Ok(()) } else { Err(format!("{:?} told of {told} findings, not {expected}", step.call)) }
}

/// A damaged free object was about to be handed out. Each one costs a slab and is told of with its parts; the rest of them
/// may be in slabs that were not asked.
fn check_set_aside(cx: &mut Context<'_>, step: &Step, told: u64, aside: u64) -> Result<(), String> {
    let parts = cx.model.debugged.damage_at_alloc() as u64;
    // A reallocation also frees.
    let freed = looked_at(&step.call, &step.reply).map_or(0, |addr| cx.model.damage_at_free(&step.call, addr)) as u64;
    let of_free = if freed > 0 { 2 * freed + 1 } else { 0 };
    let late = cx.model.debugged.most_told_late();
    if told > 3 * aside + of_free {
        cx.model.debugged.may_have_told_late();
    }
    if (3 * aside + of_free..=2 * parts + aside + of_free + late).contains(&told) {
        return Ok(());
    }
    Err(format!("{aside} slabs were set aside with {told} findings; {parts} parts of free objects are damaged"))
}

/// The object that the call freed, or did not free because it was damaged. One of another cache is not looked at.
fn looked_at(call: &Call, reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Done | Reply::Rejected(FreeError::Corrupted(_)) => freed_address(call),
        Reply::Block { addr, .. } => old_address(call).filter(|old| old != addr),
        _ => None,
    }
}

/// Is a free refused exactly when the object is damaged?
fn check_refusal(cx: &Context<'_>, step: &Step) -> Result<(), String> {
    let single = match &step.call {
        Call::Objects(call) => call.single_frees(),
        call => vec![call.clone()],
    };
    let damaged = |call: &Call| freed_address(call).is_some_and(|addr| cx.model.damage_at_free(call, addr) > 0);
    let is_damaged = single.iter().any(damaged);
    let refused = matches!(step.reply, Reply::Rejected(FreeError::Corrupted(_)));
    match (is_damaged, &step.reply) {
        (false, _) if refused => Err(format!("{:?} was refused without damage", step.call)),
        (true, Reply::Done) => Err(format!("{:?} did not see the damage", step.call)),
        _ => Ok(()),
    }
}
