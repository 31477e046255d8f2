//! O22: does what was freed stay as it is until every reader that may see it has gone?
//!
//! Contract: 1.5, 2.5 (`TYPESAFE_BY_RCU`) and I22. A block that was given to `kfree_rcu` is handed out to nobody, and keeps its
//! contents but for the head, until a grace period has passed that began after the call. The frames of objects of a typesafe
//! cache hold objects of that cache until then. After a reclaim nothing waits any more. What the machine's clock says decides.
//! Exact, but for contents: those are looked at in audits.

use super::{Context, Oracle, OracleId, Step, Violation, pattern};
use crate::model::{Ghost, RcuCall, Tier, Why};
use crate::subject::{Call, Reply};
use kmem::{FreeError, PAGE_SIZE};

/// Bytes of a head.
const HEAD: usize = 16;

/// See the module.
pub(super) struct GracePeriods;

impl Oracle for GracePeriods {
    fn id(&self) -> OracleId {
        OracleId::O22GracePeriods
    }

    fn before_call(&self, cx: &mut Context<'_>, _: &Call) -> Result<(), Violation> {
        cx.model.notes.time = cx.subject.white_box().map_or(0, |inside| inside.grace_periods().0);
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        let verdict = match (&step.call, &step.reply) {
            (Call::Rcu(call), Reply::Rejected(error)) => judge_rejection(cx, call, error),
            (Call::Rcu(call), Reply::Done) => judge_acceptance(cx, call),
            (_, Reply::Block { addr, usable }) if *addr > 16 => judge_block(cx, step, *addr, *usable),
            (_, Reply::Pages(pages)) => pages.iter().try_for_each(|&addr| judge_block(cx, step, addr, PAGE_SIZE)),
            _ => Ok(()),
        };
        verdict.map_err(|message| cx.violation(OracleId::O22GracePeriods, &[], message))
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        check_counts(cx)
            .and_then(|()| check_contents(cx))
            .map_err(|message| cx.violation(OracleId::O22GracePeriods, &[], message))
    }

    fn at_end(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        match cx.model.ghosts().find(|ghost| ghost.why != Why::Leaked) {
            Some(ghost) => {
                let message = format!("{} still waits after a reclaim", ghost.block.describe());
                Err(cx.violation(OracleId::O22GracePeriods, &[ghost.block.handle], message))
            }
            None => Ok(()),
        }
    }
}

/// A live block with room for a head is accepted.
fn judge_rejection(cx: &Context<'_>, call: &RcuCall, error: &FreeError) -> Result<(), String> {
    let Some((block, head)) = call.block().and_then(|(addr, head)| Some((cx.model.block(addr)?, head))) else {
        return Ok(());
    };
    match error {
        FreeError::BadRcuHead { .. } if !fits(head, block.requested) => Ok(()),
        _ => Err(format!("{call:?} is right for {} but was rejected with \"{error}\"", block.describe())),
    }
}

/// A head without a place in the block is not.
fn judge_acceptance(cx: &Context<'_>, call: &RcuCall) -> Result<(), String> {
    let Some((block, head)) = call.block().and_then(|(addr, head)| Some((cx.model.block(addr)?, head))) else {
        return Ok(());
    };
    if fits(head, block.usable) {
        Ok(())
    } else {
        Err(format!("{call:?} was accepted, but the head has no place in {}", block.describe()))
    }
}

/// Tells whether a head has its place in a block of this size.
fn fits(head: Option<usize>, size: usize) -> bool {
    head.is_none_or(|head| head % 8 == 0 && head < PAGE_SIZE && head + HEAD <= size)
}

fn completed(cx: &Context<'_>) -> u64 {
    cx.subject.white_box().map_or(u64::MAX, |inside| inside.grace_periods().1)
}

/// Tells whether a reader may still look at the ghost.
fn is_seen(ghost: &Ghost, completed: u64) -> bool {
    matches!(ghost.why, Why::Rcu { stamp, .. } if stamp > completed)
}

fn judge_block(cx: &Context<'_>, step: &Step, addr: u64, usable: usize) -> Result<(), String> {
    let completed = completed(cx);
    let end = addr.saturating_add(usable as u64);
    let in_place = crate::model::old_address(&step.call) == Some(addr);
    if let Some(ghost) = cx.model.ghost_overlapping(addr, end).filter(|ghost| is_seen(ghost, completed)) {
        return Err(format!("[{addr:#x}, {end:#x}) overlaps {}, which readers may see", ghost.block.describe()));
    }
    if crate::oracle::window::shows_others(&step.call) || in_place {
        return Ok(());
    }
    let root = match step.call {
        Call::CacheAlloc { cache, .. } => Some(cx.model.root_of(cache)),
        _ => None,
    };
    for frame in frames(cx, addr, usable) {
        let of_area = |ghost: &&Ghost| ghost.block.tier == Tier::Vmalloc || cx.model.in_vmalloc_window(addr);
        if let Some(ghost) = cx.model.ghost_on_frame(frame).filter(of_area).filter(|ghost| is_seen(ghost, completed)) {
            return Err(format!("frame {frame:#x} of {addr:#x} is that of {}", ghost.block.describe()));
        }
        if let Some(cache) = cx.model.guard_of(frame, completed).filter(|&cache| root != Some(cache)) {
            return Err(format!("frame {frame:#x} of {addr:#x} may be looked at by readers of {cache:?}"));
        }
    }
    Ok(())
}

/// The frames of a block, wherever it lies.
fn frames(cx: &Context<'_>, addr: u64, usable: usize) -> Vec<u32> {
    if !cx.model.in_vmalloc_window(addr) {
        return cx.model.direct_frames(addr, usable).collect();
    }
    let pages = (0..usable.div_ceil(PAGE_SIZE)).map(|page| addr + (page * PAGE_SIZE) as u64);
    pages.filter_map(|page| cx.subject.translate(page)).map(|at| (at / PAGE_SIZE as u64) as u32).collect()
}

/// A cache counts as pending what must be.
fn check_counts(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box().filter(|_| cx.model.has_ghosts()) else { return Ok(()) };
    let completed = completed(cx);
    let listed = inside.slabinfo();
    for root in cx.model.roots() {
        let of_root = |ghost: &&Ghost| ghost.block.cache.is_some_and(|cache| cx.model.root_of(cache) == root.id);
        let least = cx.model.ghosts().filter(of_root).filter(|ghost| is_seen(ghost, completed)).count() as u64;
        let counted = listed.iter().find(|info| info.id == root.id).map_or(0, |info| info.rcu_pending);
        if counted < least {
            return Err(format!("{:?} counts {counted} pending objects, {least} are", root.id));
        }
    }
    Ok(())
}

/// Readers find what was there, but for the head.
fn check_contents(cx: &mut Context<'_>) -> Result<(), String> {
    let completed = completed(cx);
    let seen = |ghost: &&Ghost| ghost.block.written && is_seen(ghost, completed);
    let ghosts: Vec<Ghost> = cx.model.ghosts().filter(seen).cloned().collect();
    for ghost in ghosts {
        let hole = match ghost.why {
            Why::Rcu { head: Some(head), .. } => head..head + HEAD,
            _ => 0..0,
        };
        pattern::verify_but(cx.subject, ghost.block.addr, &ghost.block, hole).map_err(|damage| {
            format!("{}, which readers may see, lost its contents: {damage}", ghost.block.describe())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use crate::subject::Subject;
    use kmem::GfpFlags;

    /// A block of 64 bytes in frame 4 that was given up at time 0.
    fn given_up() -> (FakeSubject, crate::model::Model, u64) {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(4);
        let kmalloc = step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 64 });
        ask(&GracePeriods, &mut model, &mut subject, &kmalloc).unwrap();
        crate::oracle::write_block(&mut context(&mut model, &mut subject), addr).unwrap();
        let call = Call::Rcu(RcuCall::Kfree { addr, head: 16 });
        ask(&GracePeriods, &mut model, &mut subject, &step(call, Reply::Done)).unwrap();
        (subject, model, addr)
    }

    #[test]
    fn nobody_gets_the_block_before_the_grace_period_ends() {
        for (completed, allowed) in [(0, false), (1, true)] {
            let (mut subject, mut model, addr) = given_up();
            subject.grace_periods = (1, completed);
            let again = step(Call::Kmalloc { size: 8, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 8 });
            assert_eq!(ask(&GracePeriods, &mut model, &mut subject, &again).is_ok(), allowed);
        }
    }

    #[test]
    fn contents_stay_but_for_the_head() {
        let (mut subject, mut model, addr) = given_up();
        subject.grace_periods = (1, 0);
        subject.write(addr + 16, &[0; 16]).unwrap();
        assert_eq!(GracePeriods.audit(&mut context(&mut model, &mut subject)), Ok(()));
        subject.flip(addr + 32);
        assert!(GracePeriods.audit(&mut context(&mut model, &mut subject)).is_err());
    }

    #[test]
    fn what_waits_at_the_end_is_found() {
        let (mut subject, mut model, _) = given_up();
        assert!(GracePeriods.at_end(&mut context(&mut model, &mut subject)).is_err());
    }

    #[test]
    fn a_rejection_needs_a_reason() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(4);
        let kmalloc = step(Call::Kmalloc { size: 20, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 32 });
        ask(&GracePeriods, &mut model, &mut subject, &kmalloc).unwrap();
        let mut rejected = |head, error| {
            let call = Call::Rcu(RcuCall::Kfree { addr, head });
            ask(&GracePeriods, &mut model, &mut subject, &step(call, Reply::Rejected(error))).is_ok()
        };
        let virt = kmem::VirtAddr::new(addr);
        assert!(!rejected(0, FreeError::DoubleFree(virt)));
        assert!(!rejected(0, FreeError::BadRcuHead { addr: virt, offset: 0 }));
        assert!(rejected(8, FreeError::BadRcuHead { addr: virt, offset: 8 }));
    }

    #[test]
    fn a_head_needs_a_place() {
        for (head, has_place) in [(0, true), (48, true), (49, false), (56, false)] {
            let mut subject = FakeSubject::new(64);
            let mut model = subject.model();
            let addr = subject.direct(4);
            let kmalloc = step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 64 });
            ask(&GracePeriods, &mut model, &mut subject, &kmalloc).unwrap();
            let call = Call::Rcu(RcuCall::Kfree { addr, head });
            assert_eq!(ask(&GracePeriods, &mut model, &mut subject, &step(call, Reply::Done)).is_ok(), has_place);
        }
    }
}
