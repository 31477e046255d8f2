//! O24: does what a call asks of other layers stay within what its caller allowed?
//!
//! Contract: I14, 4.3 and 4.5. The machine notes the flags at each fault point that is asked during a call, and each request to give
//! memory back. None of them may wait, start input or output, call a file system, insist or use reserves unless the
//! caller's flags say so; what the caller forbids (warnings, reserves, a second try) stays forbidden. The pages of an area keep
//! its node and its zone, high memory being added where no zone is named; its record and its tables are neither
//! zeroed on behalf of the caller nor taken from his zone. A free may wait for nothing. Exact, but for one leave: whoever must not fail
//! gets the reserve in the end.

use super::o18_warnings::flags;
use super::{Context, Oracle, OracleId, Violation};
use crate::model::{Tier, freed_address, old_address, request};
use crate::subject::{Call, ObjectsCall};
use kmem::{FaultPoint, FaultSite, GfpFlags};

/// What a caller allows by setting it.
const RIGHTS: GfpFlags = GfpFlags::KERNEL
    .union(GfpFlags::NOFAIL)
    .union(GfpFlags::HIGH)
    .union(GfpFlags::MEMALLOC)
    .union(GfpFlags::RETRY_MAYFAIL);
/// What a caller forbids by setting it.
const BANS: GfpFlags = GfpFlags::NOWARN.union(GfpFlags::NOMEMALLOC).union(GfpFlags::NORETRY);
/// What says where memory comes from.
const ZONES: GfpFlags = GfpFlags::DMA.union(GfpFlags::DMA32).union(GfpFlags::HIGHMEM).union(GfpFlags::MOVABLE);
/// What a free must not do.
const SLEEPS: GfpFlags = GfpFlags::DIRECT_RECLAIM.union(GfpFlags::IO).union(GfpFlags::FS);

/// See the module.
pub(super) struct Nested;

impl Oracle for Nested {
    fn id(&self) -> OracleId {
        OracleId::O24Nested
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let (Some(step), Some(inside)) = (cx.step, cx.subject.white_box()) else { return Ok(()) };
        let nested = inside.nested();
        let asked = asks(&step.call).map(|gfp| for_pages_of(cx, &step.call, gfp));
        let judge: &dyn Fn(&FaultSite) -> Result<(), String> = match asked {
            Some(gfp) => &move |site| judge_site(gfp, site),
            None if freed_address(&step.call).is_some() => &judge_free,
            None => return Ok(()),
        };
        let of_sites = nested.sites.iter().try_for_each(judge);
        let of_shortages = nested.shortages.iter().try_for_each(|shortage| match asked {
            Some(gfp) if !gfp.may_block() => Err("memory was reclaimed for a caller who may not wait".to_owned()),
            Some(gfp) => judge_flags(gfp, shortage.gfp, "the request to give memory back"),
            None => Ok(()),
        });
        let verdict = of_sites.and(of_shortages);
        verdict.map_err(|message| cx.violation(OracleId::O24Nested, &[], format!("{:?}: {message}", step.call)))
    }
}

/// The flags of a request for memory.
fn asks(call: &Call) -> Option<GfpFlags> {
    if let Call::Objects(ObjectsCall::KmallocNolock { gfp, .. }) = call {
        return Some(*gfp);
    }
    let is_array = matches!(call, Call::KmallocArray { .. } | Call::KvmallocArray { .. });
    (is_array || request(call).is_some()).then(|| flags(call))
}

/// An area that grows stays movable if it is, and fixed if it is, whatever the call says.
fn for_pages_of(cx: &Context<'_>, call: &Call, gfp: GfpFlags) -> GfpFlags {
    let area = old_address(call).and_then(|old| cx.model.block(old)).filter(|block| block.tier == Tier::Vmalloc);
    match area {
        Some(area) if area.movable => gfp | GfpFlags::MOVABLE,
        Some(_) => gfp.difference(GfpFlags::MOVABLE),
        None => gfp,
    }
}

fn judge_site(gfp: GfpFlags, site: &FaultSite) -> Result<(), String> {
    judge_flags(gfp, site.gfp, &format!("{:?}", site.point))?;
    let (zones, is_zeroed) = (site.gfp & (ZONES | GfpFlags::THISNODE), site.gfp.wants_zero());
    let fits = match site.point {
        FaultPoint::VmallocPages => zones == zones_of_pages(gfp) && is_zeroed == gfp.wants_zero(),
        FaultPoint::Descriptor => zones.is_empty() && !is_zeroed,
        FaultPoint::PageTable => zones.is_empty() && is_zeroed,
        _ => true,
    };
    if fits {
        return Ok(());
    }
    Err(format!("{:?} was asked for with {:?}, which is not what it is to have of {gfp:?}", site.point, site.gfp))
}

/// Node and zone of the pages of an area: those of the caller, and high memory if he names no zone.
fn zones_of_pages(gfp: GfpFlags) -> GfpFlags {
    let named = gfp & (ZONES | GfpFlags::THISNODE);
    if named.intersects(GfpFlags::DMA | GfpFlags::DMA32) { named } else { named | GfpFlags::HIGHMEM }
}

fn judge_flags(gfp: GfpFlags, found: GfpFlags, what: &str) -> Result<(), String> {
    let insists = gfp.contains(GfpFlags::NOFAIL | GfpFlags::DIRECT_RECLAIM);
    let rights = if insists { gfp | GfpFlags::HIGH } else { gfp };
    let (taken, dropped) = ((found & RIGHTS) - rights, (gfp & BANS) - found);
    match (taken.is_empty(), dropped.is_empty()) {
        (true, true) => Ok(()),
        (false, _) => Err(format!("{what} had {taken:?}, which the caller did not give")),
        _ => Err(format!("{what} lacked {dropped:?}, which the caller gave")),
    }
}

fn judge_free(site: &FaultSite) -> Result<(), String> {
    let taken = site.gfp & SLEEPS;
    if taken.is_empty() { Ok(()) } else { Err(format!("a free asked for memory ({:?}) with {taken:?}", site.point)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, ask, step};
    use crate::subject::Reply;

    fn verdict(gfp: GfpFlags, point: FaultPoint, found: GfpFlags) -> bool {
        let mut subject = FakeSubject::new(64);
        subject.nested.sites.push(FaultSite::new(point, found));
        let reply = Reply::Block { addr: subject.window(0), usable: 4096 };
        ask(&Nested, &mut subject.model(), &mut subject, &step(Call::Vmalloc { size: 1, gfp }, reply)).is_ok()
    }

    #[test]
    fn a_nested_request_has_no_right_that_its_caller_has_not() {
        let record = |gfp, found| verdict(gfp, FaultPoint::Descriptor, found);
        assert!(record(GfpFlags::KERNEL, GfpFlags::KERNEL) && record(GfpFlags::KERNEL, GfpFlags::NOIO));
        for narrow in [GfpFlags::NOFS, GfpFlags::NOIO, GfpFlags::ATOMIC, GfpFlags::NOWAIT] {
            assert!(!record(narrow, GfpFlags::KERNEL), "{narrow:?}");
        }
        assert!(!record(GfpFlags::KERNEL | GfpFlags::NOWARN, GfpFlags::KERNEL), "a warning that nobody wants");
        assert!(!record(GfpFlags::KERNEL, GfpFlags::KERNEL | GfpFlags::HIGH));
        assert!(record(GfpFlags::KERNEL | GfpFlags::NOFAIL, GfpFlags::KERNEL | GfpFlags::HIGH), "the last chance");
    }

    #[test]
    fn zone_and_node_are_kept_for_the_pages_and_for_them_only() {
        let dma = GfpFlags::KERNEL | GfpFlags::DMA | GfpFlags::THISNODE;
        assert!(verdict(dma, FaultPoint::VmallocPages, dma));
        assert!(!verdict(dma, FaultPoint::VmallocPages, GfpFlags::KERNEL | GfpFlags::HIGHMEM));
        assert!(!verdict(dma, FaultPoint::VmallocPages, GfpFlags::KERNEL | GfpFlags::DMA));
        assert!(!verdict(dma, FaultPoint::Descriptor, GfpFlags::KERNEL | GfpFlags::DMA));
        let plain = GfpFlags::KERNEL;
        assert!(verdict(plain, FaultPoint::VmallocPages, plain | GfpFlags::HIGHMEM));
        assert!(verdict(plain, FaultPoint::PageTable, plain | GfpFlags::ZERO));
        assert!(!verdict(plain, FaultPoint::PageTable, plain), "a table full of junk");
        assert!(!verdict(plain | GfpFlags::ZERO, FaultPoint::Descriptor, plain | GfpFlags::ZERO));
    }

    #[test]
    fn nothing_is_reclaimed_for_whoever_may_not_wait() {
        let mut subject = FakeSubject::new(64);
        let order = kmem::Order::ZERO;
        subject.nested.shortages.push(kmem::Shortage { order, gfp: GfpFlags::NOIO, round: 1 });
        let refused = Reply::Refused(kmem::AllocError::NoPages { order });
        let of = |gfp| step(Call::Kmalloc { size: 8, gfp }, refused.clone());
        assert!(ask(&Nested, &mut subject.model(), &mut subject, &of(GfpFlags::ATOMIC)).is_err());
        assert!(ask(&Nested, &mut subject.model(), &mut subject, &of(GfpFlags::KERNEL)).is_ok());
    }
}
