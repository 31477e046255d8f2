//! What happened in a run, as counters that an engine can tell apart.

use crate::model::Tier;
use crate::oracle::Step;
use crate::subject::{Call, Reply};
use kmem::{AllocError, Event};

/// Kinds of refusal, as [`refusal`] numbers them.
const REFUSALS: [&str; 12] = [
    "Overflow",
    "ZeroSize",
    "TooLarge",
    "OrderTooLarge",
    "BadAlign",
    "BadFlags",
    "BadAddress",
    "NoPages",
    "NoVirtualSpace",
    "Injected",
    "Rejected",
    "CacheRefused",
];

/// Counters of one run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// What happened inside, by [`Event::index`].
    pub events: [u64; Event::COUNT],
    /// Blocks given, by [`Tier`].
    pub tiers: [u64; Tier::COUNT],
    /// Refusals, by kind.
    pub refusals: [u64; REFUSALS.len()],
    /// Every allocation flag that was passed in.
    pub flags: u32,
    /// Steps in which an injected fault struck.
    pub faults: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        let (events, tiers, refusals) = ([0; Event::COUNT], [0; Tier::COUNT], [0; REFUSALS.len()]);
        Self { events, tiers, refusals, flags: 0, faults: 0 }
    }
}

impl Coverage {
    /// Counts a step.
    pub(super) fn step(&mut self, step: &Step) {
        self.flags |= flags(&step.call);
        self.faults += u64::from(step.fault_struck);
        if let Some(count) = refusal(&step.reply).and_then(|n| self.refusals.get_mut(n)) {
            *count += 1;
        }
    }

    /// Counts a block.
    pub(super) fn block(&mut self, tier: Tier) {
        self.tiers[tier as usize] += 1;
    }

    /// Adds the counters of another run.
    pub fn merge(&mut self, other: &Self) {
        let add = |into: &mut [u64], from: &[u64]| into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        add(&mut self.events, &other.events);
        add(&mut self.tiers, &other.tiers);
        add(&mut self.refusals, &other.refusals);
        self.flags |= other.flags;
        self.faults += other.faults;
    }

    /// All counters by name.
    pub fn counters(&self) -> impl Iterator<Item = (String, u64)> {
        let events = Event::ALL.iter().map(|event| (format!("{event:?}"), self.events[event.index()]));
        let tiers = Tier::ALL.iter().map(|&tier| (format!("given by {tier:?}"), self.tiers[tier as usize]));
        let refusals = REFUSALS.iter().zip(self.refusals).map(|(name, n)| (format!("refused: {name}"), n));
        events.chain(tiers).chain(refusals).chain([("faults".to_owned(), self.faults)])
    }

    /// The counters as one number per kind of thing and order of magnitude: two runs with the same features did
    /// roughly the same things roughly as often. An engine without coverage of edges can be guided by them.
    pub fn features(&self) -> impl Iterator<Item = u32> {
        let counters = self.events.into_iter().chain(self.tiers).chain(self.refusals).chain([self.faults]);
        let magnitudes = counters.enumerate().filter(|&(_, n)| n > 0);
        let flags = self.flags;
        let bits = (0..32).filter(move |bit| flags >> bit & 1 == 1).map(|bit| 1 << 16 | bit);
        magnitudes.map(|(i, n)| (i as u32) << 6 | n.ilog2()).chain(bits)
    }
}

/// The number of a refusal in [`REFUSALS`]; `None` for any other answer.
fn refusal(reply: &Reply) -> Option<usize> {
    Some(match reply {
        Reply::Refused(AllocError::Overflow) => 0,
        Reply::Refused(AllocError::ZeroSize) => 1,
        Reply::Refused(AllocError::TooLarge { .. }) => 2,
        Reply::Refused(AllocError::OrderTooLarge { .. }) => 3,
        Reply::Refused(AllocError::BadAlign(_)) => 4,
        Reply::Refused(AllocError::BadFlags) => 5,
        Reply::Refused(AllocError::BadAddress(_)) => 6,
        Reply::Refused(AllocError::NoPages { .. }) => 7,
        Reply::Refused(AllocError::NoVirtualSpace { .. }) => 8,
        Reply::Refused(AllocError::Injected(_)) => 9,
        Reply::Rejected(_) => 10,
        Reply::CacheRefused(_) => 11,
        _ => return None,
    })
}

/// The allocation flags that a call passes.
fn flags(call: &Call) -> u32 {
    match call {
        Call::AllocPages { gfp, .. }
        | Call::AllocPagesExact { gfp, .. }
        | Call::AllocPagesBulk { gfp, .. }
        | Call::Kmalloc { gfp, .. }
        | Call::KmallocArray { gfp, .. }
        | Call::Krealloc { gfp, .. }
        | Call::CacheAlloc { gfp, .. }
        | Call::Vmalloc { gfp, .. }
        | Call::Vrealloc { gfp, .. }
        | Call::Kvmalloc { gfp, .. }
        | Call::KvmallocArray { gfp, .. }
        | Call::Kvrealloc { gfp, .. } => gfp.bits(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::{GfpFlags, Order};

    fn step(reply: Reply) -> Step {
        Step { op: 0, call: Call::Kmalloc { size: 1, gfp: GfpFlags::KERNEL }, reply, fault_struck: false }
    }

    #[test]
    fn runs_that_do_different_things_have_different_features() {
        let mut granted = Coverage::default();
        granted.step(&step(Reply::Block { addr: 0, usable: 8 }));
        granted.block(Tier::Kmalloc);
        let mut refused = Coverage::default();
        refused.step(&step(Reply::Refused(AllocError::NoPages { order: Order::ZERO })));
        let features = |c: &Coverage| c.features().collect::<Vec<_>>();
        assert_ne!(features(&granted), features(&refused));
        refused.merge(&granted);
        let named: Vec<_> = refused.counters().filter(|&(_, n)| n > 0).map(|(name, _)| name).collect();
        assert_eq!(named, ["given by Kmalloc", "refused: NoPages"]);
    }
}
