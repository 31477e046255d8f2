//! Which operation comes next: swarm, weights, and the balance of allocations and frees.

use super::TraceRng;
use super::numbers::{Family, Live};
use crate::trace::{OpGroup, OpKind, Swarm};
use rand::RngExt;

/// What a trace is mostly about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// All tiers.
    Trace,
    /// The front: contiguous or mapped.
    Kvmalloc,
    /// The page allocator.
    Pages,
    /// Caches and `kmalloc`.
    Slab,
    /// The vmalloc window.
    Vmalloc,
    /// Everything that has a notation; for the codecs.
    Codec,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 6] = [Self::Trace, Self::Kvmalloc, Self::Pages, Self::Slab, Self::Vmalloc, Self::Codec];

    /// Returns the name, as commands take it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Kvmalloc => "kvmalloc",
            Self::Pages => "pages",
            Self::Slab => "slab",
            Self::Vmalloc => "vmalloc",
            Self::Codec => "codec",
        }
    }

    /// Returns the target with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// The groups of the tier itself; one of them at least is always on. Empty: all tiers.
    const fn core(self) -> &'static [OpGroup] {
        use OpGroup as G;
        match self {
            Self::Trace | Self::Codec => &[],
            Self::Kvmalloc => &[G::Kvmalloc, G::KvmallocArray, G::Kvrealloc, G::VmallocRange],
            Self::Pages => &[G::Pages, G::PagesExact, G::PagesBulk, G::Contig, G::Moving, G::Nolock],
            Self::Slab => &[
                G::Kmalloc,
                G::Cache,
                G::KmallocArray,
                G::Krealloc,
                G::CacheShrink,
                G::CacheDestroy,
                G::Sensitive,
                G::SlabNode,
                G::SlabBulk,
                G::Sheaf,
                G::Nolock,
            ],
            Self::Vmalloc => &[
                G::Vmalloc,
                G::Vrealloc,
                G::Vmap,
                G::VmallocRange,
                G::Pages,
                G::AreaFlags,
                G::AreaReach,
                G::VfreeAtomic,
                G::VmapRam,
            ],
        }
    }
}

impl Target {
    /// Tells whether traces of this target use the group: its own tier's, and those that belong to no tier.
    pub(crate) fn uses(self, group: OpGroup) -> bool {
        self.core().is_empty() || self.core().contains(&group) || COMMON.contains(&group)
    }
}

/// The groups that belong to no tier.
const COMMON: [OpGroup; 13] = [
    OpGroup::Free,
    OpGroup::Rcu,
    OpGroup::Query,
    OpGroup::Access,
    OpGroup::Cpu,
    OpGroup::Maintain,
    OpGroup::Audit,
    OpGroup::Fault,
    OpGroup::Burst,
    OpGroup::Fragment,
    OpGroup::Debug,
    OpGroup::Misuse,
    OpGroup::PageRefs,
];

/// Every group that the target may use.
pub(crate) fn all_of(target: Target) -> Swarm {
    OpGroup::ALL.into_iter().filter(|&group| target.uses(group)).fold(Swarm::NONE, Swarm::with)
}

/// Switches each group that the target may use on with probability two thirds; the tier's own call is always on.
pub(crate) fn draw_swarm(rng: &mut TraceRng, target: Target) -> Swarm {
    let core = target.core();
    let all = rng.random_ratio(1, 10);
    let drawn = OpGroup::ALL.into_iter().filter(|&group| target.uses(group)).filter(|&group| {
        // Callers are mostly right.
        let chance = if group == OpGroup::Misuse { 1 } else { 4 };
        all || rng.random_ratio(chance, 6)
    });
    let swarm = drawn.fold(Swarm::NONE, Swarm::with);
    let anchors = [OpGroup::Kmalloc, OpGroup::Kvmalloc, OpGroup::Pages, OpGroup::Vmalloc];
    let anchor = core.first().or_else(|| anchors.get(rng.random_range(0..anchors.len())));
    let swarm = anchor.map_or(swarm, |&group| swarm.with(group));
    // These map pages that somebody has allocated.
    let shows = [OpGroup::Vmap, OpGroup::AreaFlags, OpGroup::VmapRam].into_iter().any(|group| swarm.contains(group));
    if shows { swarm.with(OpGroup::Pages) } else { swarm }
}

/// What an operation does to the number of live blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// One more block, or many.
    Allocates(Family),
    /// One block less.
    Frees(Family),
    /// Neither, or both.
    Neutral,
}

/// What a kind of operation does to the number of live blocks.
pub(crate) const fn effect_of(kind: OpKind) -> Effect {
    use OpKind as K;
    match kind {
        K::AllocPages | K::AllocPagesNode | K::AllocPagesExact | K::AllocPagesBulk | K::AllocPagesNolock => {
            Effect::Allocates(Family::Pages)
        }
        K::Kmalloc | K::KmallocArray | K::KmallocNode | K::KmallocNolock => Effect::Allocates(Family::Kmalloc),
        K::CacheAlloc | K::CacheAllocNode | K::CacheAllocBulk | K::AllocFromSheaf => Effect::Allocates(Family::Cache),
        K::Vmalloc | K::VmallocRange | K::VmallocWith => Effect::Allocates(Family::Vmalloc),
        K::Vmap | K::VmapWith | K::VmMapRam => Effect::Allocates(Family::Vmap),
        K::AllocContigRange | K::AllocContigPages => Effect::Allocates(Family::Contig),
        K::Kvmalloc | K::KvmallocArray | K::KvmallocNode => Effect::Allocates(Family::Kvmalloc),
        K::FreePages | K::FreePagesNolock => Effect::Frees(Family::Pages),
        K::Kfree | K::KfreeSensitive => Effect::Frees(Family::Kmalloc),
        K::KfreeNolock => Effect::Frees(Family::Kmalloc),
        K::CacheFree | K::CacheFreeBulk => Effect::Frees(Family::Cache),
        K::Vfree | K::VfreeAtomic => Effect::Frees(Family::Vmalloc),
        K::Vunmap | K::VmUnmapRam => Effect::Frees(Family::Vmap),
        K::FreeContigRange => Effect::Frees(Family::Contig),
        K::Kvfree | K::KvfreeSensitive => Effect::Frees(Family::Kvmalloc),
        K::KfreeRcu => Effect::Frees(Family::Kmalloc),
        K::KvfreeRcu | K::KvfreeRcuMightsleep => Effect::Frees(Family::Kvmalloc),
        K::Free => Effect::Frees(Family::Any),
        _ => Effect::Neutral,
    }
}

/// How often a kind comes when all groups are equal.
const fn base_weight(kind: OpKind) -> u32 {
    use OpKind as K;
    match kind {
        K::Kmalloc | K::Kfree => 600,
        K::Free => 400,
        K::CacheAlloc | K::CacheFree => 300,
        K::AllocPages | K::FreePages | K::Kvmalloc | K::Kvfree => 200,
        K::Krealloc => 100,
        K::Vmalloc | K::Vfree => 80,
        K::VmallocRange | K::KvmallocNode => 40,
        K::KmallocArray | K::Kvrealloc | K::Write | K::Read | K::SetCpu => 60,
        K::AllocPagesNode | K::AllocPagesExact | K::CacheCreate | K::CacheCreateWith | K::CacheFreeBulk => 40,
        K::KmallocNode | K::CacheAllocNode | K::CacheAllocBulk | K::AllocFromSheaf => 60,
        K::PrefillSheaf | K::RefillSheaf | K::ReturnSheaf | K::KmallocNolock | K::KfreeNolock => 20,
        K::KvmallocArray | K::Vrealloc | K::VreallocNear | K::VmallocWith | K::VmapWith | K::VmMapRam => 40,
        K::Protect | K::Vread | K::RemapVmalloc | K::VfreeAtomic => 20,
        K::DrainDeferred => 5,
        K::AllocPagesBulk | K::KfreeSensitive | K::Ksize | K::Vmap | K::Vunmap => 30,
        K::VmallocToPage | K::KvfreeSensitive | K::TouchGuard | K::FailNth => 20,
        // There are many ways to be wrong, each with few kinds of blocks.
        K::Wrong => 60,
        K::KfreeRcu => 120,
        K::KvfreeRcu | K::RcuReadLock | K::RcuReadUnlock | K::RcuGracePeriod => 30,
        K::RcuFreeEvery => 4,
        K::KvfreeRcuMightsleep | K::KfreeRcuMonitor => 15,
        K::KvfreeRcuBarrier => 3,
        K::KmallocSizeRoundup | K::CacheShrink | K::CacheDestroy | K::Burst => 10,
        K::NamedCache => 20,
        K::DrainPages | K::Purge | K::FreeEvery | K::Interleave => 6,
        K::GetPage | K::PutPage => 40,
        K::WriteFree => 20,
        K::FreeMapped => 10,
        K::FailPages | K::FailSlabs => 8,
        K::VmapFree => 4,
        K::VmUnmapRam => 40,
        K::UnmapRamWrong => 20,
        K::RamChurn => 2,
        K::Reclaim | K::Audit | K::DebugCache | K::Validate => 3,
        K::Overflow | K::WriteFreed => 30,
        K::BreakLink => 6,
        K::Evictable => 20,
        K::ClaimProgress => 6,
        K::Steer | K::Checkerboard | K::MovableBoard | K::AreaBoard => 1,
        K::AllocContigRange | K::FreeContigRange | K::SplitPage | K::Pin | K::Unpin | K::PinArea | K::UnpinArea => 20,
        K::AllocPagesNolock | K::FreePagesNolock => 20,
        K::AllocContigPages | K::CompactMemory | K::ReportFree => 6,
    }
}

/// Kinds with cumulated weights.
#[derive(Default)]
struct Table {
    kinds: Vec<(u32, OpKind)>,
    total: u32,
}

impl Table {
    fn push(&mut self, weight: u32, kind: OpKind) {
        self.total += weight;
        self.kinds.push((self.total, kind));
    }

    fn draw(&self, rng: &mut TraceRng) -> Option<OpKind> {
        if self.total == 0 {
            return None;
        }
        let at = rng.random_range(0..self.total);
        let index = self.kinds.partition_point(|&(end, _)| end <= at);
        self.kinds.get(index).map(|&(_, kind)| kind)
    }
}

/// The weights of one trace.
pub(crate) struct Weights {
    allocate: Table,
    free: Table,
    neutral: Table,
}

impl Weights {
    /// Gives each group of the swarm a weight between its usual one and sixteen times that.
    pub(crate) fn new(rng: &mut TraceRng, swarm: Swarm) -> Self {
        Self::by(swarm, || 1 << rng.random_range(0..=4u32))
    }

    /// Gives each group its usual weight.
    pub(crate) fn even(swarm: Swarm) -> Self {
        Self::by(swarm, || 1)
    }

    fn by(swarm: Swarm, mut factor: impl FnMut() -> u32) -> Self {
        let mut weights = Self { allocate: Table::default(), free: Table::default(), neutral: Table::default() };
        for group in swarm.groups() {
            let factor = factor();
            for kind in OpKind::ALL.into_iter().filter(|kind| kind.group() == group) {
                weights.table(kind).push(base_weight(kind) * factor, kind);
            }
        }
        weights
    }

    fn table(&mut self, kind: OpKind) -> &mut Table {
        match effect_of(kind) {
            Effect::Allocates(_) => &mut self.allocate,
            Effect::Frees(_) => &mut self.free,
            Effect::Neutral => &mut self.neutral,
        }
    }

    /// Draws a kind; `None` if the swarm is empty.
    pub(crate) fn draw(&self, rng: &mut TraceRng, live: &Live) -> Option<OpKind> {
        let total = self.allocate.total + self.free.total + self.neutral.total;
        if total == 0 {
            return None;
        }
        if rng.random_range(0..total) < self.neutral.total {
            return self.neutral.draw(rng);
        }
        let first = if live.wants_free(rng) { [&self.free, &self.allocate] } else { [&self.allocate, &self.free] };
        first.into_iter().find_map(|table| table.draw(rng)).or_else(|| self.neutral.draw(rng))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng;

    #[test]
    fn a_swarm_leaves_groups_out_but_never_the_tier_itself() {
        let mut rng = rng(1);
        for target in Target::ALL {
            let swarms: Vec<Swarm> = (0..100).map(|_| draw_swarm(&mut rng, target)).collect();
            assert!(swarms.iter().any(|s| *s != swarms[0]));
            assert!(swarms.iter().all(|s| target.core().first().is_none_or(|&g| s.contains(g))));
        }
    }

    #[test]
    fn names_of_targets_are_read_back() {
        assert!(Target::ALL.into_iter().all(|target| Target::by_name(target.name()) == Some(target)));
        assert_eq!(Target::by_name("nothing"), None);
    }

    #[test]
    fn an_empty_swarm_draws_nothing() {
        let mut rng = rng(2);
        let weights = Weights::new(&mut rng, Swarm::NONE);
        let live = Live::new(&mut rng);
        assert_eq!(weights.draw(&mut rng, &live), None);
    }

    #[test]
    fn allocations_come_first_and_frees_when_many_blocks_are_live() {
        let mut rng = rng(3);
        let weights = Weights::new(&mut rng, Swarm::NONE.with(OpGroup::Kmalloc));
        let mut live = Live::new(&mut rng);
        let frees = |rng: &mut TraceRng, live: &Live| {
            (0..1000).filter(|_| weights.draw(rng, live) == Some(OpKind::Kfree)).count()
        };
        assert!(frees(&mut rng, &live) < 100);
        (0..5000).for_each(|_| live.follow(&crate::trace::Op::Kmalloc { size: 8, gfp: crate::trace::Gfp::KERNEL }));
        assert!(frees(&mut rng, &live) > 800);
    }
}
