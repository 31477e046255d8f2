//! The numbers of an operation: sizes from a mix, usual flags, hot and cold picks.

use super::TraceRng;
use super::weights::{Effect, effect_of};
use crate::trace::{CacheFlags, Gfp, Op, OpKind, Role, interesting};
use kmem::{GfpFlags, PAGE_SIZE};
use rand::{Rng, RngExt};

/// Blocks that one kind of free can work on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    Pages,
    Kmalloc,
    Cache,
    Vmalloc,
    Vmap,
    Kvmalloc,
    Contig,
    /// Freed by whatever call fits.
    Any,
}

/// A rough count of live blocks, by family, and how many there should be.
pub(crate) struct Live {
    counts: [u32; 8],
    target: u32,
}

impl Live {
    /// Nothing is live; the target is drawn between 8 and 500, every magnitude equally likely.
    pub(crate) fn new(rng: &mut TraceRng) -> Self {
        let target = 8 << rng.random_range(0..6u32);
        Self { counts: [0; 8], target: target + rng.random_range(0..target) }
    }

    fn total(&self) -> u32 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn of(&self, family: Family) -> u32 {
        if family == Family::Any { self.total() } else { self.counts.get(family as usize).copied().unwrap_or(0) }
    }

    /// Draws whether the next operation frees: an even chance when as many blocks are live as there should be.
    pub(crate) fn wants_free(&self, rng: &mut TraceRng) -> bool {
        let percent = u64::from(self.total()) * 50 / u64::from(self.target);
        rng.random_range(0..100) < percent.clamp(4, 92)
    }

    /// Counts what an operation probably did.
    pub(crate) fn follow(&mut self, op: &Op) {
        match *op {
            Op::Burst { count, .. } => self.add(Family::Kmalloc, u32::from(count)),
            Op::AllocPagesBulk { count, .. } => self.add(Family::Pages, u32::from(count)),
            Op::FreeEvery { step, .. } => {
                let step = u32::from(step).max(1);
                self.counts.iter_mut().for_each(|count| *count -= *count / step);
            }
            _ => match effect_of(op.kind()) {
                Effect::Allocates(family) => self.add(family, 1),
                Effect::Frees(family) => self.subtract(family),
                Effect::Neutral => {}
            },
        }
    }

    fn add(&mut self, family: Family, blocks: u32) {
        if let Some(count) = self.counts.get_mut(family as usize) {
            *count = count.saturating_add(blocks);
        }
    }

    fn subtract(&mut self, family: Family) {
        let any = || self.counts.iter().enumerate().max_by_key(|(_, count)| **count).map_or(0, |(i, _)| i);
        let index = if family == Family::Any { any() } else { family as usize };
        if let Some(count) = self.counts.get_mut(index) {
            *count = count.saturating_sub(1);
        }
    }
}

/// How the sizes of one trace are spread.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    /// Of 1,000 sizes: how many are usual for the call, class boundaries, up to 128 KiB, up to 4 MiB; the rest is
    /// zero or too large.
    mix: [u32; 4],
    /// Of 100 flags: how many are `KERNEL`.
    plain_gfp: u32,
}

impl Numbers {
    /// Draws a spread: mostly small, so that many operations fit a second; sometimes mixed, rarely large.
    pub(crate) fn draw(rng: &mut TraceRng) -> Self {
        let mix = match rng.random_range(0..20) {
            0..15 => [720, 240, 25, 8],
            15..19 => [500, 300, 120, 50],
            _ => [300, 150, 250, 250],
        };
        Self { mix, plain_gfp: rng.random_range(30..=95) }
    }

    /// Makes an operation of a kind.
    pub(crate) fn op(&self, rng: &mut TraceRng, kind: OpKind, live: &Live) -> Op {
        if matches!(kind, OpKind::KmallocArray | OpKind::KvmallocArray) {
            return self.array(rng, kind);
        }
        Op::from_numbers(kind, |role| self.number(rng, kind, role, live))
    }

    /// Makes a number of an operation.
    pub(crate) fn number(&self, rng: &mut TraceRng, kind: OpKind, role: Role, live: &Live) -> u64 {
        let log = |rng: &mut TraceRng, bits| interesting::log_uniform(rng.next_u64(), bits);
        match role {
            Role::Size => self.size(rng, kind),
            Role::Gfp => u64::from(self.gfp(rng).bits()),
            Role::Pick => pick(rng, kind, live),
            Role::Order => u64::from(rng.next_u32() & rng.next_u32() & rng.next_u32() & 15),
            Role::N => log(rng, 10),
            Role::Count if kind == OpKind::Burst => rng.random_range(1..=64),
            Role::Count if matches!(kind, OpKind::AllocContigRange | OpKind::AllocContigPages) => log(rng, 9),
            Role::Count if kind == OpKind::PrefillSheaf || kind == OpKind::RefillSheaf => log(rng, 7),
            // Powers of two are the edges between mappings; 64 pages are the most from a block.
            Role::Count if matches!(kind, OpKind::VmMapRam | OpKind::RamChurn | OpKind::UnmapRamWrong) => {
                match rng.random_range(0..8) {
                    0 => rng.random_range(60..=68),
                    1 => rng.random_range(0..=160),
                    n if n < 5 => 1 << (n - 2),
                    _ => rng.random_range(1..=24),
                }
            }
            Role::Count => rng.random_range(0..=24),
            Role::Align if rng.random_ratio(1, 32) => log(rng, 16),
            Role::Align => (1 << rng.random_range(2..=9u32)) & !7,
            Role::Shift if rng.random_ratio(1, 64) => 41,
            Role::Shift if kind == OpKind::VmallocRange => rng.random_range(0..=22),
            Role::Shift => rng.random_range(0..=3),
            Role::Nth => log(rng, 5),
            Role::Flag if kind == OpKind::VmallocRange => u64::from(rng.random_ratio(1, 3)),
            // Caches with a constructor share nothing.
            Role::Flag2 if kind == OpKind::CacheCreateWith => u64::from(rng.random_ratio(1, 8)),
            Role::CacheFlags => u64::from(CacheFlags::useful(rng.next_u64()).bits()),
            Role::Length if kind == OpKind::VmallocRange && rng.random_ratio(1, 2) => 0,
            Role::Length if kind == OpKind::VmallocRange => log(rng, 10),
            Role::Offset if kind == OpKind::VmallocRange => log(rng, 13),
            Role::Offset | Role::Length if rng.random_ratio(3, 4) => 0,
            Role::Offset | Role::Length => log(rng, 8),
            Role::FreePointer | Role::Capacity if rng.random_ratio(7, 8) => 0,
            Role::FreePointer => rng.random_range(1..=9),
            Role::Capacity => rng.random_range(1..=70),
            Role::Percent => rng.random_range(0..=100),
            Role::Step if kind == OpKind::RamChurn => rng.random_range(0..=6),
            Role::Step => rng.random_range(1..=6),
            Role::Spare => log(rng, 8),
            Role::Page => log(rng, 10),
            Role::Frame => rng.random_range(0..=0xffff),
            Role::Cache => log(rng, 4),
            Role::Node => u64::from(rng.next_u32() % 5),
            Role::Cpu | Role::Phase => u64::from(rng.next_u32() & 7),
            Role::Checks => u64::from(rng.next_u32() & 31).max(1),
            Role::Flag | Role::Flag2 | Role::Point | Role::Tier => u64::from(rng.next_u32() & 0xff),
        }
    }

    /// Mostly plain `KERNEL`, else what callers use, and now and then any bits at all; some of them want no warning.
    fn gfp(&self, rng: &mut TraceRng) -> Gfp {
        let gfp = self.loud_gfp(rng);
        if rng.random_ratio(1, 16) { gfp.with(GfpFlags::NOWARN) } else { gfp }
    }

    fn loud_gfp(&self, rng: &mut TraceRng) -> Gfp {
        match rng.random_range(0..100) {
            n if n < self.plain_gfp => Gfp::KERNEL,
            99 => Gfp::from_bits_truncate(rng.next_u32() & rng.next_u32()),
            _ => interesting::usual_gfp(rng.next_u64()),
        }
    }

    fn size(&self, rng: &mut TraceRng, kind: OpKind) -> u64 {
        let [usual, class, medium, large] = self.mix;
        let n = rng.next_u64();
        match rng.random_range(0..1000) {
            at if at < usual => usual_size(rng, kind),
            at if at < usual + class => interesting::class_boundary(n),
            at if at < usual + class + medium => interesting::log_uniform(n, 17),
            at if at < usual + class + medium + large && n & 4 == 0 => interesting::log_uniform(n >> 3, 22),
            at if at < usual + class + medium + large => interesting::boundary(n >> 3),
            _ if n & 4 == 0 => n & 1,
            _ => interesting::huge(n >> 3),
        }
    }

    /// An array: element count and size of a usual product, or one that overflows.
    fn array(&self, rng: &mut TraceRng, kind: OpKind) -> Op {
        let size = self.size(rng, kind);
        let bytes = usual_size(rng, kind).max(1);
        let n = match rng.random_range(0..100) {
            0 => (u64::MAX / size.max(1)).saturating_add(1),
            1 => u64::MAX / size.max(1),
            2 => 0,
            _ => (bytes / size.max(1)).max(1),
        };
        let gfp = u64::from(self.gfp(rng).bits());
        Op::from_numbers(kind, |role| match role {
            Role::N => n,
            Role::Size => size,
            _ => gfp,
        })
    }
}

/// What callers of this kind ask for.
fn usual_size(rng: &mut TraceRng, kind: OpKind) -> u64 {
    let n = rng.next_u64();
    let page = PAGE_SIZE as u64;
    match kind {
        // An area that may be mapped by huge entries, or one of a few pages.
        OpKind::VmallocRange if n.is_multiple_of(3) => {
            interesting::neighbour((interesting::log_uniform(n >> 8, 2) + 1) << 21, n >> 3)
        }
        OpKind::VmallocRange
        | OpKind::Vmalloc
        | OpKind::VmallocWith
        | OpKind::RemapVmalloc
        | OpKind::Vrealloc
        | OpKind::VreallocNear
        | OpKind::AllocPagesExact => interesting::neighbour((interesting::log_uniform(n >> 8, 4) + 1) * page, n),
        OpKind::Kvmalloc | OpKind::Kvrealloc | OpKind::KvmallocArray | OpKind::KvmallocNode if n.is_multiple_of(4) => {
            interesting::neighbour((interesting::log_uniform(n >> 8, 4) + 1) * page, n >> 2)
        }
        // Objects smaller than a word have their free pointer elsewhere.
        OpKind::DebugCache if n.is_multiple_of(4) => 1 + (n >> 8) % 8,
        OpKind::CacheCreate | OpKind::DebugCache => interesting::log_uniform(n, 11),
        // Few sizes, so that caches are alike.
        OpKind::CacheCreateWith | OpKind::NamedCache => interesting::pick(&[64, 61, 60, 40, 192, 200, 512, 1000], n),
        OpKind::Steer => 1 << rng.random_range(5..=14u32),
        _ => interesting::log_uniform(n, 12),
    }
}

/// Half of the picks mean any block, a quarter the oldest, a quarter the newest.
fn pick(rng: &mut TraceRng, kind: OpKind, live: &Live) -> u64 {
    let family = match effect_of(kind) {
        Effect::Frees(family) | Effect::Allocates(family) => family,
        Effect::Neutral => Family::Any,
    };
    let blocks = live.of(family).max(1);
    let near = rng.next_u32() & rng.next_u32() & 7;
    match rng.next_u32() % 4 {
        0 => u64::from(near),
        1 => u64::from(blocks.saturating_sub(1 + near)),
        _ => u64::from(rng.random_range(0..blocks)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng;

    #[test]
    fn the_count_of_live_blocks_follows_the_operations() {
        let mut live = Live::new(&mut rng(1));
        live.follow(&Op::Kmalloc { size: 8, gfp: Gfp::KERNEL });
        live.follow(&Op::AllocPagesBulk { count: 9, gfp: Gfp::KERNEL });
        assert_eq!((live.of(Family::Kmalloc), live.of(Family::Pages), live.total()), (1, 9, 10));
        live.follow(&Op::Free { pick: 0 });
        live.follow(&Op::Kfree { pick: 0 });
        live.follow(&Op::Kfree { pick: 0 });
        assert_eq!((live.of(Family::Kmalloc), live.of(Family::Pages)), (0, 8));
        live.follow(&Op::FreeEvery { step: 2, phase: 0 });
        assert_eq!(live.total(), 4);
    }

    #[test]
    fn picks_are_mostly_below_the_number_of_live_blocks() {
        let mut rng = rng(2);
        let mut live = Live::new(&mut rng);
        (0..100).for_each(|_| live.follow(&Op::Kmalloc { size: 8, gfp: Gfp::KERNEL }));
        let picks: Vec<u64> = (0..4000).map(|_| pick(&mut rng, OpKind::Kfree, &live)).collect();
        assert!(picks.iter().all(|&p| p < 100));
        let hot = picks.iter().filter(|&&p| p >= 92).count();
        let cold = picks.iter().filter(|&&p| p < 8).count();
        assert!(hot > 1000 && cold > 1000, "{hot} hot, {cold} cold of 4000");
    }

    #[test]
    fn arrays_overflow_now_and_then_and_are_mostly_small() {
        let mut rng = rng(3);
        let numbers = Numbers::draw(&mut rng);
        let products: Vec<Option<u64>> = (0..4000)
            .map(|_| numbers.array(&mut rng, OpKind::KmallocArray))
            .map(|op| op.number(Role::N).unwrap().checked_mul(op.number(Role::Size).unwrap()))
            .collect();
        assert!(products.iter().any(Option::is_none));
        assert!(products.iter().filter(|p| p.is_some_and(|bytes| bytes <= 16384)).count() > 2500);
    }
}
