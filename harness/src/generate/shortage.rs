//! Prologues that use something up that a machine has little of: reserves, CMA areas, sheaf buffers, names and numbers of
//! caches.

use super::TraceRng;
use crate::trace::{BurstTier, GeometrySpec, Gfp, Misuse, Op, interesting};
use kmem::{GfpFlags, PageDebug};
use rand::{Rng, RngExt};

fn burst(count: u16, tier: BurstTier, size: u64, gfp: Gfp) -> Op {
    Op::Burst { count, tier, size, gfp }
}

/// Memory fills up while urgent callers ask for blocks of several pages: pageblocks are set aside for them, used by them,
/// by single pages that cannot wait, and given up before somebody is refused for good.
pub(super) fn reserves(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    // A hundredth of a zone has to hold a pageblock, or there is no reserve; blocks up to order 3 come from the CPU's lists.
    let frames = interesting::pick(&[3328, 3700, 4096], rng.next_u64());
    let min_free = interesting::pick(&[0, 64, 150, 256], rng.next_u64());
    *geometry =
        GeometrySpec { frames, dma_frames: 0, cpus: 1, pageblock_order: 5, min_free, ..GeometrySpec::default() };
    let urgent = |rng: &mut TraceRng| {
        let order = interesting::pick(&[4, 4, 4, 1, 2, 5], rng.next_u64());
        Op::AllocPages { order, gfp: Gfp::ATOMIC }
    };
    ops.extend([burst(256, BurstTier::Pages, 32 << 10, Gfp::KERNEL); 2]);
    for _ in 0..rng.random_range(3..=8) {
        ops.push(urgent(rng));
    }
    if rng.random() {
        ops.push(burst(256, BurstTier::Pages, 8 << 10, Gfp::NOWAIT));
    }
    ops.push(burst(200, BurstTier::Pages, 4096, Gfp::ATOMIC));
    for _ in 0..rng.random_range(1..=3) {
        ops.extend([Op::FreePages { pick: rng.random_range(0..64) }, urgent(rng)]);
    }
    ops.push(burst(200, BurstTier::Pages, 4096, Gfp::ATOMIC.with(GfpFlags::MEMALLOC)));
    ops.extend([Op::AllocPages { order: rng.random_range(1..=3), gfp: Gfp::KERNEL }, urgent(rng)]);
}

/// Movable blocks with a known owner fill memory, and make way for a large one.
pub(super) fn owners_move(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.page_debug |= PageDebug::OWNER.bits();
    let movable = Gfp::new(GfpFlags::HIGHUSER_MOVABLE);
    let size = 4096 << rng.random_range(0..=1u32);
    ops.extend([burst(256, BurstTier::Pages, size, movable); 4]);
    ops.push(Op::FreeEvery { step: rng.random_range(2..=4), phase: rng.random_range(0..2) });
    for _ in 0..rng.random_range(1..=4) {
        ops.push(Op::AllocPages {
            order: rng.random_range(2..=5),
            gfp: interesting::pick(&[Gfp::KERNEL, movable], rng.next_u64()),
        });
    }
}

/// Movable requests fill a machine with a large CMA area, unmovable ones what is left.
pub(super) fn cma_area(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    *geometry = GeometrySpec {
        frames: 1024,
        dma_frames: 0,
        pageblock_order: 3,
        cma_blocks: rng.random_range(4..=64),
        cpus: rng.random_range(1..=2),
        ..GeometrySpec::default()
    };
    *geometry = geometry.normalized();
    let movable = Gfp::new(GfpFlags::HIGHUSER_MOVABLE);
    let size = 4096 << rng.random_range(0..=2u32);
    ops.extend([
        burst(rng.random_range(1..=256), BurstTier::Pages, size, movable),
        burst(256, BurstTier::Pages, size, Gfp::KERNEL),
        burst(256, BurstTier::Pages, 4096, Gfp::KERNEL),
        burst(256, BurstTier::Pages, 4096, movable),
        burst(256, BurstTier::Pages, 4096, movable),
    ]);
    ops.push(Op::FreeEvery { step: rng.random_range(1..=5), phase: 0 });
    ops.push(Op::AllocPages { order: rng.random_range(0..=5), gfp: movable });
}

/// The buffers of spare sheaves and barns are few: two classes take them all, the third has none.
pub(super) fn few_buffers(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    *geometry = GeometrySpec { frames: 256, dma_frames: 0, cpus: rng.random_range(1..=2), min_free: 4, ..*geometry };
    *geometry = geometry.normalized();
    let gfp = Gfp::KERNEL;
    for size in [8, 16] {
        ops.extend([burst(256, BurstTier::Kmalloc, size, gfp); 3]);
    }
    ops.push(Op::FreeEvery { step: 1, phase: 0 });
    ops.push(burst(rng.random_range(100..=256), BurstTier::Kmalloc, interesting::pick(&[32, 64], rng.next_u64()), gfp));
    ops.push(Op::FreeEvery { step: rng.random_range(1..=2), phase: 0 });
}

/// More objects wait for a reader than there are buffers to remember them in: the heads inside them are used, and who has
/// no head waits.
pub(super) fn waiting_frees(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    *geometry = GeometrySpec { frames: 256, dma_frames: 0, cpus: rng.random_range(1..=3), ..*geometry };
    *geometry = geometry.normalized();
    let size = interesting::pick(&[16, 24, 32], rng.next_u64());
    ops.push(Op::RcuReadLock);
    for _ in 0..rng.random_range(4..=6) {
        ops.push(burst(256, BurstTier::Kmalloc, size, Gfp::KERNEL));
        ops.push(Op::RcuFreeEvery { step: 1, sleep: rng.random_ratio(1, 8) });
    }
    ops.extend([burst(20, BurstTier::Kmalloc, 100, Gfp::KERNEL), Op::KfreeRcu { pick: 0, head: 32 }]);
    ops.extend([Op::KvfreeRcuMightsleep { pick: 1 }, Op::KfreeRcuMonitor, Op::RcuReadUnlock { nth: 0 }]);
    ops.push(if rng.random() { Op::KvfreeRcuBarrier } else { Op::KfreeRcuMonitor });
}

/// Caches of equal names, some of whose objects are promised or outlive them.
pub(super) fn troubled_caches(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    for _ in 0..rng.random_range(2..=8) {
        ops.push(Op::NamedCache {
            size: interesting::pick(&[40, 64, 200], rng.next_u64()),
            name: rng.random_range(0..8),
        });
    }
    let count = rng.random_range(1..=24);
    ops.extend([
        Op::CacheCreate { size: 72, align: 0, hwcache: false, ctor: rng.random() },
        burst(30, BurstTier::Cache, rng.random_range(0..8), Gfp::KERNEL),
        Op::PrefillSheaf { cache: rng.random_range(0..8), count, gfp: Gfp::KERNEL },
        Op::PrefillSheaf { cache: rng.random_range(0..8), count, gfp: Gfp::KERNEL },
        Op::Wrong { pick: 0, how: Misuse::BusyCache },
        Op::Wrong { pick: rng.random_range(0..30), how: Misuse::TwiceInBulk },
        Op::CacheDestroy { cache: rng.random_range(0..8) },
        Op::CacheDestroy { cache: rng.random_range(0..8) },
        Op::Wrong { pick: rng.random_range(0..30), how: Misuse::OfGoneCache },
    ]);
}

/// Pages are checked, and some of them are mapped although they are free: they are found when they are handed out.
pub(super) fn mapped_while_free(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.page_debug |= PageDebug::CHECK.bits();
    let pages = rng.random_range(1..=4);
    ops.extend((0..pages).map(|_| Op::VmapFree { pick: rng.random_range(0..512) }));
    ops.extend([burst(256, BurstTier::Pages, 4096, Gfp::KERNEL); 4]);
    ops.push(Op::FreeEvery { step: rng.random_range(1..=2), phase: 0 });
}
