//! Makes traces: a swarm of operations, a machine, a prologue that sets a scene, and balanced allocations and frees.
//!
//! A generator knows neither the subject nor the oracles. It keeps only a rough count of live blocks, so that frees
//! balance allocations around a target and live sets of tens to hundreds of blocks build up; what a pick means is
//! decided when the trace runs.

mod numbers;
mod scenarios;
mod shortage;
mod weights;

pub(crate) use numbers::{Live, Numbers};
pub(crate) use scenarios::scene;
pub use weights::Target;
pub(crate) use weights::Weights;
use weights::{Effect, all_of, draw_swarm, effect_of};

use crate::trace::{FaultSpec, GeometrySpec, MAX_OPS, Op, OpGroup, OpKind, Swarm, Trace, VERSION, interesting};
use kmem::{FaultPoint, Hardening};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The random numbers of generators and mutators: seeded, and equal on every platform.
pub type TraceRng = Xoshiro256PlusPlus;

/// Makes the random numbers of a seed.
pub fn rng(seed: u64) -> TraceRng {
    TraceRng::seed_from_u64(seed)
}

/// Which parts of the generator are at work; one is left out to measure what it is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipe {
    /// Groups are left out of a trace, and those that stay have weights of their own.
    pub swarm: bool,
    /// Macro operations, and scenes at the beginning.
    pub macros: bool,
}

impl Recipe {
    /// All of it.
    pub const WHOLE: Self = Self { swarm: true, macros: true };

    /// Takes what is left out from a trace, and keeps mutators from bringing it back.
    pub fn restrict(self, trace: &mut Trace) {
        if !self.macros {
            trace.ops.retain(|op| !is_macro(op.kind()));
            trace.swarm = trace.swarm.without(OpGroup::Fragment).without(OpGroup::Burst);
        }
        if !self.swarm {
            trace.swarm = Swarm::ALL;
        }
    }
}

/// Operations that stand for many calls.
const fn is_macro(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Burst
            | OpKind::FreeEvery
            | OpKind::RcuFreeEvery
            | OpKind::Steer
            | OpKind::Checkerboard
            | OpKind::MovableBoard
            | OpKind::AreaBoard
            | OpKind::RamChurn
    )
}

/// Makes traces from a seed; the same seed gives the same traces.
pub struct Generator {
    rng: TraceRng,
    recipe: Recipe,
}

impl Generator {
    /// Makes a generator.
    pub fn new(seed: u64) -> Self {
        Self::with_recipe(seed, Recipe::WHOLE)
    }

    /// Makes a generator that leaves something out.
    pub fn with_recipe(seed: u64, recipe: Recipe) -> Self {
        Self { rng: rng(seed), recipe }
    }

    /// Makes the next trace of at most `max_ops` operations.
    pub fn trace(&mut self, target: Target, max_ops: usize) -> Trace {
        self.trace_by(self.recipe, target, max_ops)
    }

    /// Makes the next trace by another recipe.
    pub fn trace_by(&mut self, recipe: Recipe, target: Target, max_ops: usize) -> Trace {
        let rng = &mut self.rng;
        let max_ops = max_ops.min(MAX_OPS);
        let swarm = if recipe.swarm { draw_swarm(rng, target) } else { all_of(target) };
        let mut geometry = GeometrySpec::preset(rng.next_u64());
        let mut ops = Vec::with_capacity(max_ops);
        if swarm.contains(OpGroup::Debug) && rng.random_ratio(1, 4) {
            debug_caches(rng, &mut geometry, &mut ops);
        }
        if swarm.contains(OpGroup::Cpu) && rng.random_ratio(1, 6) {
            interleave(rng, &mut geometry, &mut ops);
        }
        if recipe.macros && swarm.contains(OpGroup::Fragment) && rng.random_ratio(1, 2) {
            scene(rng, target, &mut geometry, &mut ops);
        }
        if swarm.contains(OpGroup::Cache) {
            first_caches(rng, &mut ops);
        }
        let length = length(rng, max_ops).max(ops.len()).min(max_ops);
        fill(rng, recipe, swarm, &mut ops, length);
        ops.truncate(max_ops);
        let faults = if swarm.contains(OpGroup::Fault) { faults(rng) } else { Vec::new() };
        let mut trace = Trace { version: VERSION, geometry, swarm, faults, ops };
        recipe.restrict(&mut trace);
        trace
    }
}

/// Tells whether a kind of operation may add live blocks.
pub(crate) fn allocates(kind: OpKind) -> bool {
    matches!(effect_of(kind), Effect::Allocates(_))
}

/// Tells whether a kind of operation takes one live block away.
pub(crate) fn frees(kind: OpKind) -> bool {
    matches!(effect_of(kind), Effect::Frees(_))
}

/// Mostly long: fragmentation takes tens to hundreds of operations. One in eight is of any length.
fn length(rng: &mut TraceRng, max_ops: usize) -> usize {
    let least = if rng.random_ratio(1, 8) { 0 } else { max_ops / 2 };
    rng.random_range(least..=max_ops)
}

/// Up to three planned failures, early ones likelier.
fn faults(rng: &mut TraceRng) -> Vec<FaultSpec> {
    (0..rng.random_range(0..=3u8))
        .map(|_| FaultSpec {
            point: interesting::pick(&FaultPoint::ALL, rng.next_u64()),
            nth: interesting::log_uniform(rng.next_u64(), 8) as u32,
        })
        .collect()
}

/// Every call comes from another CPU than the one before it, often on a machine with many.
fn interleave(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.cpus = interesting::pick(&[geometry.cpus.max(2), 3, 8, 16], rng.next_u64());
    ops.push(Op::Interleave { cpu: rng.random_range(1..=geometry.cpus) });
}

/// A debug cache or two, and often debug flags on the kmalloc caches.
fn debug_caches(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    match rng.random_range(0..6u8) {
        0 => geometry.hardening = Hardening::Paranoid,
        1..=3 => geometry.slub_debug = rng.random_range(1..32u8),
        _ => {}
    }
    let numbers = Numbers::draw(rng);
    let live = Live::new(rng);
    for _ in 0..rng.random_range(0..=2u8) {
        ops.push(numbers.op(rng, OpKind::DebugCache, &live));
    }
}

/// Without a cache the operations on caches would have no effect.
fn first_caches(rng: &mut TraceRng, ops: &mut Vec<Op>) {
    let numbers = Numbers::draw(rng);
    let live = Live::new(rng);
    for _ in 0..rng.random_range(1..=3u8) {
        let kind = if rng.random() { OpKind::CacheCreate } else { OpKind::CacheCreateWith };
        ops.push(numbers.op(rng, kind, &live));
    }
}

/// Appends operations up to a length.
fn fill(rng: &mut TraceRng, recipe: Recipe, swarm: Swarm, ops: &mut Vec<Op>, length: usize) {
    let weights = if recipe.swarm { Weights::new(rng, swarm) } else { Weights::even(swarm) };
    let numbers = Numbers::draw(rng);
    let mut live = Live::new(rng);
    ops.iter().for_each(|op| live.follow(op));
    while ops.len() < length {
        let Some(kind) = weights.draw(rng, &live) else { return };
        let op = numbers.op(rng, kind, &live);
        live.follow(&op);
        ops.push(op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Role;

    fn traces(target: Target, count: u64) -> impl Iterator<Item = Trace> {
        (0..count).map(move |seed| Generator::new(seed).trace(target, 400))
    }

    #[test]
    fn a_seed_names_a_trace() {
        let make = |seed| Generator::new(seed).trace(Target::Trace, 300);
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn traces_are_in_range_and_keep_to_length_and_swarm() {
        for target in Target::ALL {
            for trace in traces(target, 100) {
                let mut normal = trace.clone();
                normal.normalize();
                assert_eq!(trace, normal);
                assert!(trace.ops.len() <= 400);
                assert!(!trace.ops.is_empty() || trace.swarm == Swarm::NONE);
            }
        }
        for max_ops in [0, 1, 7] {
            assert!(Generator::new(3).trace(Target::Trace, max_ops).ops.len() <= max_ops);
        }
    }

    #[test]
    fn what_a_recipe_leaves_out_does_not_come() {
        let recipe = Recipe { swarm: false, macros: false };
        for seed in 0..50 {
            let trace = Generator::with_recipe(seed, recipe).trace(Target::Trace, 200);
            assert!(trace.ops.iter().all(|op| !is_macro(op.kind())) && trace.swarm == Swarm::ALL);
        }
        let kinds = |recipe| {
            let trace = Generator::with_recipe(9, recipe).trace(Target::Trace, 4000);
            trace.ops.iter().map(|op| op.kind().group()).collect::<std::collections::HashSet<_>>().len()
        };
        assert!(kinds(Recipe { swarm: false, ..Recipe::WHOLE }) > kinds(Recipe::WHOLE));
    }

    #[test]
    fn every_kind_of_operation_is_generated() {
        let mut seen = vec![false; OpKind::ALL.len()];
        traces(Target::Trace, 200).flat_map(|trace| trace.ops).for_each(|op| seen[op.kind() as usize] = true);
        let missing: Vec<&str> = OpKind::ALL.iter().filter(|k| !seen[**k as usize]).map(|k| k.name()).collect();
        assert!(missing.is_empty(), "never generated: {missing:?}");
    }

    #[test]
    fn traces_are_long_and_live_sets_are_large() {
        let mut lengths: Vec<usize> = traces(Target::Trace, 200).map(|t| t.ops.len()).collect();
        lengths.sort_unstable();
        assert!(lengths[100] >= 200, "median length {}", lengths[100]);
        let mut peaks: Vec<i64> = traces(Target::Trace, 200).map(|t| peak(&t.ops)).collect();
        peaks.sort_unstable();
        assert!(peaks[100] >= 20, "median of the largest live sets {}", peaks[100]);
        assert!(peaks[180] >= 100, "a tenth of the largest live sets has {}", peaks[180]);
    }

    /// The largest surplus of allocations over frees.
    fn peak(ops: &[Op]) -> i64 {
        let surplus = ops.iter().scan(0i64, |live, op| {
            *live = match (effect_of(op.kind()), op) {
                (_, Op::Burst { count, .. }) => *live + i64::from(*count),
                (Effect::Allocates(_), _) => *live + 1,
                (Effect::Frees(_), _) => (*live - 1).max(0),
                _ => *live,
            };
            Some(*live)
        });
        surplus.max().unwrap_or(0)
    }

    #[test]
    fn most_sizes_are_small_and_the_rare_ones_are_there() {
        let sizes: Vec<u64> = traces(Target::Trace, 400)
            .flat_map(|t| t.ops)
            .filter(|op| matches!(op, Op::Kmalloc { .. } | Op::Kvmalloc { .. } | Op::Vmalloc { .. }))
            .filter_map(|op| op.number(Role::Size))
            .collect();
        let share = |test: fn(&u64) -> bool| sizes.iter().filter(|s| test(s)).count() as f64 / sizes.len() as f64;
        assert!(share(|&s| s <= 8192) > 0.75, "{}", share(|&s| s <= 8192));
        assert!(share(|&s| s > 1 << 17) > 0.002 && share(|&s| s > 1 << 17) < 0.1, "{}", share(|&s| s > 1 << 17));
        for size in [0, 1, 8, 9, 95, 96, 97, 8191, 8192, 8193, 4095, 4096, 4097, u64::MAX] {
            assert!(sizes.contains(&size), "size {size} is never asked for");
        }
        assert!(sizes.contains(&((4 << 20) + 1)) && sizes.contains(&(1 << 31)));
    }

    #[test]
    fn a_target_keeps_to_its_tier() {
        for trace in traces(Target::Pages, 50) {
            assert!(trace.ops.iter().all(|op| !matches!(op, Op::Kvmalloc { .. } | Op::Krealloc { .. })));
        }
        let with = |target, kind| traces(target, 50).any(|t| t.ops.iter().any(|op| op.kind() == kind));
        assert!(with(Target::Kvmalloc, OpKind::Kvrealloc) && with(Target::Vmalloc, OpKind::Vrealloc));
        assert!(with(Target::Slab, OpKind::CacheDestroy) && with(Target::Pages, OpKind::AllocPagesBulk));
    }
}
