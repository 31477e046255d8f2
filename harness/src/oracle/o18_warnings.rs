//! O18: is each warning owed, and is each warning that is owed given?
//!
//! Contract: I14, sections 2.1, 2.3, 3.1, 3.6, 3.7, 4.3 and 4.5. A request that fails for want of memory or addresses is
//! reported, each time, unless its flags hold `NOWARN`; so is one above the largest block, once. What a call cannot honour
//! (flags without meaning, "must not fail" for more than two pages or without waiting) is reported once, whatever the
//! flags. The contiguous attempt of `kvmalloc` is silent. Damage to pages is the matter of O16. Exact for the calls whose
//! answer shows the reason; of a bulk allocation and of `kvrealloc`, which try more than once, only what may be given is
//! known.

use super::{Context, Oracle, OracleId, Step, Violation};
use crate::model::classes::KVMALLOC_MAX;
use crate::model::request;
use crate::subject::{Call, Reply, WindowCall};
use kmem::{AllocError, FlagsRemovedBy, GfpFlags, VmFlags, Warning};

/// Flags that no slab honours (section 2.1).
const SLAB_REMOVES: GfpFlags = GfpFlags::DMA32.union(GfpFlags::HIGHMEM);
/// Flags that have no meaning for an area (section 4.3).
const VMALLOC_REMOVES: GfpFlags = GfpFlags::COMP.union(GfpFlags::RECLAIMABLE).union(GfpFlags::WRITE);
/// Flags that have no meaning for exact allocations (section 3.7).
const EXACT_REMOVES: GfpFlags = GfpFlags::COMP.union(GfpFlags::HIGHMEM);

/// See the module.
pub(super) struct Warnings;

impl Oracle for Warnings {
    fn id(&self) -> OracleId {
        OracleId::O18Warnings
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
        let given: Vec<Warning> = inside.warnings().iter().copied().filter(|w| !is_damage(w)).collect();
        let gfp = flags(&step.call);
        let verdict = given
            .iter()
            .try_for_each(|warning| check_given(cx, step, gfp, warning))
            .and_then(|()| check_owed(step, gfp, &given, cx.model.notes.warned))
            .and_then(|()| check_told_of_nothing(cx, step));
        verdict.map_err(|message| cx.violation(OracleId::O18Warnings, &[], message))
    }
}

/// The flags of a request, also of one whose product overflows.
pub(super) fn flags(call: &Call) -> GfpFlags {
    match call {
        Call::KmallocArray { gfp, .. } | Call::KvmallocArray { gfp, .. } => *gfp,
        call => request(call).map_or(GfpFlags::empty(), |(_, gfp)| gfp),
    }
}

fn is_damage(warning: &Warning) -> bool {
    matches!(warning, Warning::BadPage { .. } | Warning::PoisonDamaged { .. })
}

/// The bit of a warning that comes once only.
fn once(warning: &Warning) -> Option<u32> {
    match warning {
        Warning::TooLarge { .. } => Some(1),
        Warning::NofailOrder { .. } => Some(2),
        Warning::NofailCannotWait => Some(4),
        Warning::KvmallocTooLarge { .. } => Some(8),
        Warning::FlagsRemoved { by: FlagsRemovedBy::Slab, .. } => Some(16),
        Warning::FlagsRemoved { by: FlagsRemovedBy::Exact, .. } => Some(32),
        Warning::FlagsRemoved { by: FlagsRemovedBy::Vmalloc, .. } => Some(64),
        Warning::VmallocZero => Some(128),
        Warning::VmapResetsPerms => Some(256),
        Warning::VmapWithoutGuard => Some(512),
        Warning::VmMapRamZero => Some(1024),
        Warning::VmUnmapRamOfNothing { .. } => Some(2048),
        _ => None,
    }
}

/// Was this one allowed?
fn check_given(cx: &mut Context<'_>, step: &Step, gfp: GfpFlags, warning: &Warning) -> Result<(), String> {
    if let Some(bit) = once(warning) {
        if cx.model.notes.warned & bit != 0 {
            return Err(format!("{warning:?} came a second time, with {:?}", step.call));
        }
        cx.model.notes.warned |= bit;
    }
    let silent = gfp.contains(GfpFlags::NOWARN);
    let is_owed = match warning {
        Warning::TooLarge { .. } => !silent && is_too_large(step),
        Warning::KvmallocTooLarge { .. } => !silent && is_kvmalloc(&step.call) && refused_as(step, is_size),
        Warning::AllocFailed { .. } => !silent && (lacks_pages(step) || tries_twice(&step.call)),
        Warning::VmallocFailed { .. } => !silent && (lacks_room(step) || may_lack_room(step)),
        Warning::VmallocZero => is_vmalloc(&step.call) && is_empty(step),
        Warning::VreallocAddress { .. } => {
            is_no_area(step) || (matches!(step.call, Call::Kvrealloc { .. }) && refused_as(step, is_address))
        }
        Warning::VreallocAlign { .. } => is_misaligned(step),
        Warning::NofailOrder { order } => gfp.contains(GfpFlags::NOFAIL) && order.get() > 1,
        Warning::NofailCannotWait => gfp.contains(GfpFlags::NOFAIL) && !gfp.contains(GfpFlags::DIRECT_RECLAIM),
        Warning::FlagsRemoved { by, flags } => {
            let removes = match by {
                FlagsRemovedBy::Slab => SLAB_REMOVES,
                FlagsRemovedBy::Exact => EXACT_REMOVES,
                FlagsRemovedBy::Vmalloc => VMALLOC_REMOVES,
            };
            !flags.is_empty() && gfp.contains(*flags) && removes.contains(*flags)
        }
        Warning::VmapResetsPerms => asks_vmap_for(&step.call, VmFlags::FLUSH_RESET_PERMS),
        Warning::VmapWithoutGuard => asks_vmap_for(&step.call, VmFlags::NO_GUARD),
        Warning::VmMapRamZero => is_ram_of_nothing(step),
        Warning::VmUnmapRamOfNothing { .. } => super::ram::is_of_nothing(step),
        _ => true,
    };
    if is_owed { Ok(()) } else { Err(format!("{warning:?} is not owed: {:?} gave {:?}", step.call, step.reply)) }
}

/// The first unmapping of what is no area is warned of.
fn check_told_of_nothing(cx: &Context<'_>, step: &Step) -> Result<(), String> {
    let owed = super::ram::is_of_no_area(cx.model.geometry(), step) && cx.model.notes.warned & 2048 == 0;
    if owed { Err(format!("nobody was warned of {:?}: {:?}", step.call, step.reply)) } else { Ok(()) }
}

/// Was anything owed that did not come? `warned` holds the warnings that came once, those of this step included.
fn check_owed(step: &Step, gfp: GfpFlags, given: &[Warning], warned: u32) -> Result<(), String> {
    let silent = gfp.contains(GfpFlags::NOWARN);
    let failures = given.iter().filter(|w| matches!(w, Warning::AllocFailed { .. })).count();
    let known = !tries_twice(&step.call) && step.call.is_ordinary_allocation();
    let nofail = gfp.contains(GfpFlags::NOFAIL) && refused_as(step, |e| matches!(e, AllocError::NoPages { .. }));
    let large = refused_as(step, |e| matches!(e, AllocError::NoPages { order } if order.get() > 1));
    let bad_area = |w: &&Warning| matches!(w, Warning::VreallocAddress { .. } | Warning::VreallocAlign { .. });
    let areas = given.iter().filter(bad_area).count();
    let room = given.iter().filter(|w| matches!(w, Warning::VmallocFailed { .. })).count();
    let rows = [
        (
            "AllocFailed",
            known && !silent && refused_as(step, |e| matches!(e, AllocError::NoPages { .. })),
            failures == 1,
        ),
        ("VmallocFailed", known && !silent && lacks_room(step), room == 1),
        ("VreallocAddress", is_no_area(step), areas == 1),
        ("VreallocAlign", is_misaligned(step), areas == 1),
        ("TooLarge", !silent && must_be_too_large(step), warned & 1 != 0),
        ("KvmallocTooLarge", !silent && is_kvmalloc(&step.call) && beyond_int_max(step), warned & 8 != 0),
        ("NofailOrder", known && nofail && large, warned & 2 != 0),
        ("NofailCannotWait", known && nofail && !gfp.contains(GfpFlags::DIRECT_RECLAIM), warned & 4 != 0),
        ("FlagsRemoved by Exact", removes_exact(step, gfp), warned & 32 != 0),
        ("VmallocZero", is_vmalloc(&step.call) && is_empty(step), warned & 128 != 0),
        ("FlagsRemoved by Vmalloc", removes_vmalloc(step, gfp), warned & 64 != 0),
        ("VmapResetsPerms", asks_vmap_for(&step.call, VmFlags::FLUSH_RESET_PERMS), warned & 256 != 0),
        ("VmapWithoutGuard", served_without_guard(step), warned & 512 != 0),
        ("VmMapRamZero", is_ram_of_nothing(step), warned & 1024 != 0),
        ("FlagsRemoved by Slab", removes_slab(step, gfp), warned & 16 != 0),
    ];
    match rows.into_iter().find(|&(_, owed, came)| owed && !came) {
        Some((what, ..)) => Err(format!("{what} is owed for {:?} that gave {:?}: {given:?}", step.call, step.reply)),
        None => Ok(()),
    }
}

fn asks_vmap_for(call: &Call, flag: VmFlags) -> bool {
    matches!(call, Call::Window(WindowCall::Vmap { flags, .. }) if flags.contains(flag))
}

/// A mapping of no pages.
fn is_ram_of_nothing(step: &Step) -> bool {
    matches!(step.call, Call::Window(WindowCall::VmMapRam { .. })) && is_empty(step)
}

fn served_without_guard(step: &Step) -> bool {
    asks_vmap_for(&step.call, VmFlags::NO_GUARD) && matches!(step.reply, Reply::Block { .. })
}

fn refused_as(step: &Step, kind: impl Fn(&AllocError) -> bool) -> bool {
    matches!(&step.reply, Reply::Refused(error) if kind(error))
}

fn is_size(error: &AllocError) -> bool {
    matches!(error, AllocError::TooLarge { .. } | AllocError::OrderTooLarge { .. })
}

fn is_kvmalloc(call: &Call) -> bool {
    matches!(
        call,
        Call::Kvmalloc { .. } | Call::KvmallocNode { .. } | Call::KvmallocArray { .. } | Call::Kvrealloc { .. }
    )
}

fn is_vmalloc(call: &Call) -> bool {
    matches!(call, Call::Vmalloc { .. } | Call::VmallocRange(_) | Call::Window(WindowCall::Vmalloc { .. }))
}

fn is_virtual(call: &Call) -> bool {
    is_kvmalloc(call)
        || is_vmalloc(call)
        || matches!(call, Call::Vrealloc { .. } | Call::Window(WindowCall::Vmalloc { .. }))
}

/// Calls that may fail inside more than once, or fail inside and succeed.
fn tries_twice(call: &Call) -> bool {
    matches!(call, Call::Kvrealloc { .. } | Call::AllocPagesBulk { .. })
}

/// A block that no order is large enough for, by a call that does not fall back to an area.
fn is_too_large(step: &Step) -> bool {
    !is_virtual(&step.call) && refused_as(step, is_size)
}

/// As above, and certainly heard of by the page allocator: the order itself exists.
fn must_be_too_large(step: &Step) -> bool {
    let exists = match step.call {
        Call::AllocPages { order, .. } => order <= kmem::MAX_PAGE_ORDER,
        Call::AllocPagesExact { .. } | Call::Kmalloc { .. } | Call::KmallocArray { .. } => true,
        _ => false,
    };
    exists && is_too_large(step)
}

/// More than `kvmalloc` ever asks `vmalloc` for: by the size that was asked for, where the call names one.
fn beyond_int_max(step: &Step) -> bool {
    let asked = match step.call {
        Call::Kvmalloc { size, .. } | Call::KvmallocNode { size, .. } => Some(size),
        Call::KvmallocArray { n, size, .. } => n.checked_mul(size),
        _ => None,
    };
    if let Some(size) = asked {
        return size > KVMALLOC_MAX && refused_as(step, is_size);
    }
    let beyond = |e: &AllocError| matches!(e, AllocError::TooLarge { limit, .. } if *limit == i32::MAX as usize);
    refused_as(step, beyond)
}

fn lacks_pages(step: &Step) -> bool {
    refused_as(step, |e| matches!(e, AllocError::NoPages { .. }))
}

/// An area that does not fit the window, or memory.
fn lacks_room(step: &Step) -> bool {
    refused_as(step, |e| matches!(e, AllocError::NoVirtualSpace { .. }))
        || (is_virtual(&step.call) && !beyond_int_max(step) && in_vmalloc(step) && refused_as(step, is_size))
}

/// `kvrealloc` of a contiguous block may have asked `vmalloc` for a new one.
fn may_lack_room(step: &Step) -> bool {
    matches!(step.call, Call::Kvrealloc { .. }) && refused_as(step, is_size)
}

/// Whether the refusal for size came from `vmalloc`: `vrealloc` of a live area refuses without a word.
fn in_vmalloc(step: &Step) -> bool {
    !matches!(step.call, Call::Vrealloc { .. } | Call::Kvrealloc { .. })
}

/// A `vrealloc` of an address at which no area starts.
fn is_no_area(step: &Step) -> bool {
    matches!(step.call, Call::Vrealloc { .. }) && refused_as(step, is_address)
}

fn is_address(error: &AllocError) -> bool {
    matches!(error, AllocError::BadAddress(_))
}

/// A `vrealloc` of an area that does not have the alignment.
fn is_misaligned(step: &Step) -> bool {
    matches!(step.call, Call::Vrealloc { .. }) && refused_as(step, |e| matches!(e, AllocError::BadAlign(_)))
}

fn removes_exact(step: &Step, gfp: GfpFlags) -> bool {
    let served = matches!(step.reply, Reply::Block { .. }) || lacks_pages(step);
    matches!(step.call, Call::AllocPagesExact { .. }) && gfp.intersects(EXACT_REMOVES) && served
}

/// An area that was made had pages.
fn removes_vmalloc(step: &Step, gfp: GfpFlags) -> bool {
    is_vmalloc(&step.call) && gfp.intersects(VMALLOC_REMOVES) && matches!(step.reply, Reply::Block { .. })
}

fn is_empty(step: &Step) -> bool {
    refused_as(step, |e| matches!(e, AllocError::ZeroSize))
}

/// A large block always asks for pages; an object need not.
fn removes_slab(step: &Step, gfp: GfpFlags) -> bool {
    let large = matches!(step.call, Call::Kmalloc { size, .. } if size > crate::model::classes::KMALLOC_MAX_CACHE);
    large && gfp.intersects(SLAB_REMOVES) && matches!(step.reply, Reply::Block { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use kmem::{Order, PAGE_SIZE};

    fn verdict(call: Call, reply: Reply, warnings: &[Warning]) -> bool {
        let mut subject = FakeSubject::new(64);
        subject.warnings = warnings.to_vec();
        let mut model = subject.model();
        ask(&Warnings, &mut model, &mut subject, &step(call, reply)).is_ok()
    }

    #[test]
    fn a_size_that_kvmalloc_never_serves_is_told_as_that() {
        let size = 1 << 32;
        let call = Call::Kvmalloc { size, gfp: GfpFlags::KERNEL };
        let refused = |limit| Reply::Refused(AllocError::TooLarge { requested: size, limit });
        let told = Warning::KvmallocTooLarge { bytes: size };
        assert!(verdict(call.clone(), refused(KVMALLOC_MAX), &[told]));
        assert!(!verdict(call, refused(PAGE_SIZE), &[Warning::VmallocFailed { bytes: size }]));
    }

    fn no_pages(order: u8) -> Reply {
        Reply::Refused(AllocError::NoPages { order: Order::new(order).unwrap() })
    }

    #[test]
    fn a_failure_is_told_exactly_once_unless_nobody_wants_to_know() {
        let failed = Warning::AllocFailed { order: Order::ZERO, gfp: GfpFlags::KERNEL };
        let call = |gfp| Call::AllocPages { order: 0, gfp };
        assert!(verdict(call(GfpFlags::KERNEL), no_pages(0), &[failed]));
        assert!(!verdict(call(GfpFlags::KERNEL), no_pages(0), &[]), "silent");
        assert!(!verdict(call(GfpFlags::KERNEL), no_pages(0), &[failed, failed]), "twice");
        assert!(verdict(call(GfpFlags::NOWAIT), no_pages(0), &[]));
        assert!(!verdict(call(GfpFlags::NOWAIT), no_pages(0), &[failed]), "in spite of NOWARN");
        let served = Reply::Block { addr: FakeSubject::new(64).direct(1), usable: PAGE_SIZE };
        assert!(!verdict(call(GfpFlags::KERNEL), served, &[failed]), "nothing failed");
    }

    #[test]
    fn once_is_not_twice() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.warnings = vec![Warning::TooLarge { bytes: 1 << 30 }];
        let reply = Reply::Refused(AllocError::TooLarge { requested: 1 << 30, limit: 1 << 22 });
        let step = step(Call::Kmalloc { size: 1 << 30, gfp: GfpFlags::KERNEL }, reply);
        assert_eq!(ask(&Warnings, &mut model, &mut subject, &step), Ok(()));
        assert!(ask(&Warnings, &mut model, &mut subject, &step).is_err());
        subject.warnings.clear();
        assert_eq!(ask(&Warnings, &mut model, &mut subject, &step), Ok(()));
        assert!(ask(&Warnings, &mut subject.model(), &mut subject, &step).is_err(), "owed the first time");
    }

    #[test]
    fn what_must_not_fail_and_does_is_told() {
        let gfp = GfpFlags::ATOMIC | GfpFlags::NOFAIL;
        let failed = Warning::AllocFailed { order: Order::new(2).unwrap(), gfp };
        let order = Warning::NofailOrder { order: Order::new(2).unwrap() };
        let call = Call::AllocPages { order: 2, gfp };
        assert!(verdict(call.clone(), no_pages(2), &[order, Warning::NofailCannotWait, failed]));
        assert!(!verdict(call.clone(), no_pages(2), &[order, failed]));
        assert!(!verdict(call, no_pages(2), &[Warning::NofailCannotWait, failed]));
        let plain = Call::AllocPages { order: 2, gfp: GfpFlags::ATOMIC };
        assert!(!verdict(plain, no_pages(2), &[order, failed]), "nobody said it must not fail");
    }

    #[test]
    fn removed_flags_are_those_that_were_passed() {
        let served = Reply::Block { addr: FakeSubject::new(64).direct(1), usable: PAGE_SIZE };
        let exact = |gfp| Call::AllocPagesExact { size: PAGE_SIZE, gfp };
        let removed = |flags| [Warning::FlagsRemoved { by: FlagsRemovedBy::Exact, flags }];
        let comp = GfpFlags::KERNEL | GfpFlags::COMP;
        assert!(verdict(exact(comp), served.clone(), &removed(GfpFlags::COMP)));
        assert!(!verdict(exact(comp), served.clone(), &removed(GfpFlags::HIGHMEM)));
        assert!(!verdict(exact(comp), served.clone(), &[]));
        assert!(!verdict(exact(GfpFlags::KERNEL), served, &removed(GfpFlags::COMP)));
    }
}
