//! proptest-state-machine: each operation is chosen for the state in which it will run.
//!
//! The reference state is a rough count of what lives in each tier. It need not be right (an allocation may be refused)
//! because picks wrap around; it only keeps frees and reallocations from being chosen where there is nothing to free,
//! and lets live sets grow and shrink in turns.

use super::exec::Outcome;
use super::props::run_strategy;
use super::{Engine, Job, Live, draw};
use crate::trace::{Op, OpKind, Swarm, Trace};
use proptest::prelude::{Strategy, any};
use proptest::sample::select;
use proptest::strategy::BoxedStrategy;
use proptest_state_machine::strategy::Sequential;

/// The longest sequence: choosing for a state costs far more than executing.
const MAX_SEQUENCE: usize = 96;

/// The proptest-state-machine engine.
pub struct StateMachine;

impl Engine for StateMachine {
    fn name(&self) -> &'static str {
        "state-machine"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let strategy = sequences(draw::groups(job.target), job.max_ops.clamp(1, MAX_SEQUENCE));
        run_strategy(job, live, &strategy, |(_, ops, _)| Trace::new(ops))
    }
}

/// Sequences of operations from these groups.
pub fn sequences(
    groups: Swarm,
    max_ops: usize,
) -> Sequential<State, Op, impl Strategy<Value = State>, BoxedStrategy<Op>> {
    Sequential::new((1..=max_ops).into(), move || initial(groups), |_, _| true, State::transitions, State::after)
}

/// Each case starts with some groups switched off and with a level at which frees take over from allocations.
fn initial(groups: Swarm) -> impl Strategy<Value = State> {
    any::<(u64, u8)>().prop_map(move |(mask, level)| State {
        swarm: Swarm::from_bits_truncate(groups.bits() & (mask | mask.rotate_left(11))),
        level: u32::from(level),
        live: [0; TIERS],
    })
}

/// How many kinds of live things the state counts.
const TIERS: usize = 5;

/// What is known before an operation is chosen.
#[derive(Clone, Debug)]
pub struct State {
    swarm: Swarm,
    level: u32,
    /// Page blocks, kmalloc blocks, caches and their objects, vmalloc areas, kvmalloc blocks.
    live: [u32; TIERS],
}

impl State {
    fn transitions(&self) -> BoxedStrategy<Op> {
        let kinds: Vec<OpKind> = OpKind::ALL.into_iter().filter(|&kind| self.is_sensible(kind)).collect();
        (select(kinds), any::<[u64; 4]>()).prop_map(|(kind, raw)| operation(kind, raw)).boxed()
    }

    /// Tells whether the operation can do something now. An audit always can, so that there is always a choice.
    fn is_sensible(&self, kind: OpKind) -> bool {
        let (tier, change) = effect(kind);
        match change {
            Change::Grow => self.swarm.contains(kind.group()) && self.total() <= self.level,
            Change::Shrink => tier.map_or(self.total(), |t| self.live[t]) > 0,
            Change::None => kind == OpKind::Audit || self.swarm.contains(kind.group()),
        }
    }

    fn total(&self) -> u32 {
        self.live.iter().sum()
    }

    fn after(mut self, op: &Op) -> Self {
        let (tier, change) = effect(op.kind());
        let Some(live) = tier.and_then(|t| self.live.get_mut(t)) else { return self };
        match change {
            Change::Grow => *live += 1,
            Change::Shrink => *live = live.saturating_sub(1),
            Change::None => {}
        }
        self
    }
}

/// What an operation does to the number of live things.
enum Change {
    Grow,
    Shrink,
    None,
}

/// Which tier an operation changes, and how.
fn effect(kind: OpKind) -> (Option<usize>, Change) {
    use OpKind as K;
    match kind {
        K::AllocPages | K::AllocPagesNode | K::AllocPagesExact | K::AllocPagesBulk | K::Checkerboard => {
            (Some(0), Change::Grow)
        }
        K::FreePages => (Some(0), Change::Shrink),
        K::Kmalloc | K::KmallocArray => (Some(1), Change::Grow),
        K::Kfree | K::KfreeSensitive => (Some(1), Change::Shrink),
        K::CacheCreate | K::CacheCreateWith | K::NamedCache | K::CacheAlloc => (Some(2), Change::Grow),
        K::CacheFree | K::CacheDestroy => (Some(2), Change::Shrink),
        K::Vmalloc | K::Vmap | K::VmMapRam => (Some(3), Change::Grow),
        K::Vfree | K::Vunmap | K::VmUnmapRam => (Some(3), Change::Shrink),
        K::Kvmalloc | K::KvmallocArray | K::Burst | K::Steer => (Some(4), Change::Grow),
        K::Kvfree | K::KvfreeSensitive => (Some(4), Change::Shrink),
        K::Free | K::FreeEvery | K::RcuFreeEvery => (None, Change::Shrink),
        _ => (None, Change::None),
    }
}

/// Makes an operation whose numbers are useful ones.
fn operation(kind: OpKind, raw: [u64; 4]) -> Op {
    let mut numbers = raw.into_iter();
    Op::from_numbers(kind, |role| draw::number(role, numbers.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::OpGroup;

    fn state(live: [u32; TIERS], level: u32) -> State {
        State { swarm: Swarm::ALL, level, live }
    }

    #[test]
    fn nothing_is_freed_where_nothing_lives() {
        let empty = state([0; TIERS], 10);
        assert!(!empty.is_sensible(OpKind::Kfree));
        assert!(!empty.is_sensible(OpKind::Free));
        assert!(empty.is_sensible(OpKind::Kmalloc));
        assert!(state([0, 1, 0, 0, 0], 10).is_sensible(OpKind::Kfree));
    }

    #[test]
    fn above_its_level_a_case_only_shrinks() {
        let full = state([3, 3, 3, 3, 3], 10);
        assert!(!full.is_sensible(OpKind::Kmalloc));
        assert!(full.is_sensible(OpKind::Free));
    }

    #[test]
    fn even_an_empty_swarm_leaves_a_choice() {
        let nothing = State { swarm: Swarm::NONE, level: 0, live: [0; TIERS] };
        assert!(OpKind::ALL.into_iter().any(|kind| nothing.is_sensible(kind)));
        assert!(nothing.swarm.groups().all(|group| group != OpGroup::Audit));
    }
}
