//! Prologues that bring memory into a state that random operations seldom reach.

use super::{Target, TraceRng, shortage};
use crate::trace::{BurstTier, GeometrySpec, Gfp, Op, interesting};
use kmem::{FaultPoint, GfpFlags};
use rand::{Rng, RngExt};

/// More caches than fit beside the allocator's own.
const MANY_CACHES: usize = 48;

/// Appends a scene.
type Scene = fn(&mut TraceRng, &mut GeometrySpec, &mut Vec<Op>);

/// Appends one of the scenes that the target can use; it may change the machine to fit.
pub(crate) fn scene(rng: &mut TraceRng, target: Target, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    const ALL: [Scene; 19] = [
        urgent,
        checkerboard,
        exhaust,
        narrow_window,
        common_sizes,
        many_caches,
        cross_cpu,
        realloc_ladder,
        fault_at_each_stage,
        split_orders,
        shortage::reserves,
        shortage::cma_area,
        shortage::owners_move,
        shortage::few_buffers,
        shortage::waiting_frees,
        shortage::troubled_caches,
        shortage::mapped_while_free,
        huge_areas,
        ram_blocks,
    ];
    let scenes: &[Scene] = match target {
        Target::Trace | Target::Codec => &ALL,
        Target::Kvmalloc => &[checkerboard, exhaust, realloc_ladder, fault_at_each_stage, huge_areas],
        Target::Pages => &[
            checkerboard,
            exhaust,
            split_orders,
            shortage::reserves,
            shortage::cma_area,
            shortage::owners_move,
            shortage::mapped_while_free,
            urgent,
        ],
        Target::Slab => &[
            exhaust,
            many_caches,
            cross_cpu,
            shortage::few_buffers,
            shortage::waiting_frees,
            shortage::troubled_caches,
        ],
        Target::Vmalloc => &[narrow_window, common_sizes, checkerboard, fault_at_each_stage, huge_areas, ram_blocks],
    };
    if let Some(scene) = scenes.get(rng.random_range(0..scenes.len())) {
        let start = ops.len();
        scene(rng, geometry, ops);
        *geometry = geometry.normalized();
        let own = ops.split_off(start);
        ops.extend(own.into_iter().filter(|op| target.uses(op.kind().group())));
    }
}

/// No two free pages touch: nothing contiguous is left, vmalloc still serves.
fn checkerboard(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let order = rng.random_range(0..=3u8);
    let spare = rng.random_range(0..=64);
    let size = interesting::neighbour(1 << rng.random_range(13..=20u32), rng.next_u64());
    ops.extend([
        Op::Checkerboard { order, spare },
        Op::Kmalloc { size, gfp: Gfp::KERNEL },
        Op::Kvmalloc { size, gfp: Gfp::KERNEL },
        Op::Kvmalloc { size, gfp: Gfp::KERNEL.with(GfpFlags::ZERO) },
        Op::VmallocToPage { pick: 0, page: rng.random_range(0..256) },
        Op::Kvfree { pick: 0 },
    ]);
}

/// Areas of 2 MiB and more, until there are no such blocks any more; some are freed and made again.
fn huge_areas(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.frames = 1024 * rng.random_range(2..=6u32);
    geometry.max_order = rng.random_range(9..=10);
    geometry.vmalloc_pages = interesting::pick(&[1600, 2600, 8192], rng.next_u64());
    let point = interesting::pick(&[FaultPoint::PageTable, FaultPoint::VmallocPages], rng.next_u64());
    ops.push(Op::Vmalloc { size: 4096, gfp: Gfp::KERNEL });
    for _ in 0..rng.random_range(2..=6u8) {
        if rng.random_ratio(1, 4) {
            ops.push(Op::FailNth { point, nth: rng.random_range(0..3) });
        }
        let size = interesting::neighbour(rng.random_range(1..=3u64) << 21, rng.next_u64());
        ops.extend([
            Op::VmallocRange {
                size,
                align: rng.random_range(0..=22),
                at: interesting::pick(&[0, 512, 1024, 1536, rng.random_range(0..=1024)], rng.next_u64()),
                length: interesting::pick(&[0, 0, 1, 2, 3, 512, 1024], rng.next_u64()),
                gfp: interesting::usual_gfp(rng.next_u64()),
                node: rng.random_range(0..5),
                unguarded: rng.random_ratio(1, 2),
                huge: true,
            },
            Op::Kvmalloc { size, gfp: Gfp::KERNEL },
            Op::TouchGuard { pick: u16::MAX },
            Op::Write { pick: rng.random_range(0..8) },
            Op::Vrealloc { pick: rng.random_range(0..8), size: size / 2, gfp: Gfp::KERNEL },
            Op::Vfree { pick: rng.random_range(0..8) },
        ]);
    }
    ops.extend([Op::Purge, Op::Audit]);
}

/// Blocks of `vm_map_ram` are used up, some of them but for a few mappings; addresses are short or not.
fn ram_blocks(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.vmalloc_pages = interesting::pick(&[64, 300, 700, 2100, 16_400], rng.next_u64());
    ops.push(Op::AllocPages { order: rng.random_range(0..=6), gfp: Gfp::KERNEL });
    for _ in 0..rng.random_range(2..=8) {
        let count = interesting::pick(&[1, 2, 3, 8, 17, 32, 33, 64, 64, 65], rng.next_u64());
        let (pick, step, phase) = (rng.random_range(0..4), rng.random_range(0..=6), rng.random_range(0..8));
        ops.push(Op::RamChurn { pick, count, step, phase });
        ops.push(match rng.random_range(0..8) {
            0 => Op::Purge,
            1 => Op::Reclaim,
            2 => Op::SetCpu { cpu: rng.random_range(0..8) },
            3 => Op::FailNth { point: FaultPoint::PageTable, nth: rng.random_range(0..4) },
            4 => Op::UnmapRamWrong { pick, count, page: rng.random_range(0..8) },
            5 => Op::FreeEvery { step: 2, phase },
            6 => Op::Vread { pick, page: rng.random_range(0..512), size: rng.next_u64() >> 50 },
            _ => Op::VmMapRam { pick, count, gfp: Gfp::KERNEL },
        });
    }
    ops.push(Op::Audit);
}

/// Memory is full, then every second block goes, then everything that can be given back is asked for.
fn exhaust(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let size = 1 << rng.random_range(6..=14u32);
    let order = rng.random_range(1..=8u8);
    ops.extend([
        Op::Steer { percent: rng.random_range(90..=100), size },
        Op::Kmalloc { size, gfp: Gfp::ATOMIC },
        Op::Kmalloc { size, gfp: Gfp::NOWAIT },
        Op::FreeEvery { step: rng.random_range(1..=4), phase: 0 },
        Op::AllocPages { order, gfp: Gfp::KERNEL },
        Op::Reclaim,
        Op::AllocPages { order, gfp: Gfp::KERNEL },
    ]);
}

/// Urgent requests of several pages find memory short and make the HIGHATOMIC reserve; then others want what is in it, and the
/// last of them only get it if it is given up.
fn urgent(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.pageblock_order = rng.random_range(1..=3);
    let burst = |size: u64, gfp| Op::Burst { count: 256, tier: BurstTier::Pages, size, gfp };
    // Blocks of up to two pageblocks.
    let size = 4096 << rng.random_range(1..=u32::from(geometry.pageblock_order) + 1);
    ops.extend([
        Op::Checkerboard { order: 2, spare: 0 },
        burst(size, Gfp::KERNEL),
        burst(size, Gfp::ATOMIC),
        Op::FreeEvery { step: rng.random_range(2..=7), phase: rng.random_range(0..7) },
        burst(size, Gfp::ATOMIC),
        burst(4096, interesting::pick(&[Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC], rng.next_u64())),
        burst(4096, Gfp::KERNEL),
    ]);
}

/// The vmalloc window is nearly full of small areas, then gets holes, some of them not yet flushed.
fn narrow_window(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.vmalloc_pages = rng.random_range(24..=160);
    let areas = (geometry.vmalloc_pages / 2) as u16;
    ops.extend([
        Op::Burst { count: areas, tier: BurstTier::Vmalloc, size: 4096, gfp: Gfp::KERNEL },
        Op::FreeEvery { step: rng.random_range(2..=4), phase: rng.random_range(0..4) },
        Op::Vmalloc { size: 8192, gfp: Gfp::KERNEL },
        Op::Vmalloc { size: 4096, gfp: Gfp::NOWAIT },
        Op::Purge,
        Op::Vmalloc { size: 4096, gfp: Gfp::KERNEL },
        Op::TouchGuard { pick: 0 },
    ]);
}

/// Areas of one or two sizes come and go on several CPUs, so that purged ranges serve again; then something needs them all.
fn common_sizes(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.cpus = geometry.cpus.max(rng.random_range(2..=8));
    geometry.vmalloc_pages = interesting::pick(&[64, 256, geometry.vmalloc_pages], rng.next_u64());
    let sizes = [4096, 4096 * rng.random_range(1..=15)];
    for turn in 0..rng.random_range(4..=16u16) {
        let (count, size) = (rng.random_range(4..=24), interesting::pick(&sizes, rng.next_u64()));
        ops.extend([
            Op::SetCpu { cpu: turn },
            Op::Burst { count, tier: BurstTier::Vmalloc, size, gfp: Gfp::KERNEL },
            Op::FreeEvery { step: rng.random_range(1..=3), phase: 0 },
        ]);
        if rng.random() {
            ops.push(Op::Purge);
        }
    }
    let most = u64::from(geometry.vmalloc_pages / 2) * 4096;
    ops.extend([Op::Vmalloc { size: most, gfp: Gfp::NOWAIT }, Op::Vmalloc { size: most, gfp: Gfp::KERNEL }]);
}

/// Caches of many shapes, each with live objects, some shrunk or destroyed under load.
fn many_caches(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let caches = rng.random_range(2..=12u16);
    if rng.random_ratio(1, 8) {
        // As many as the allocator has room for, and more.
        let tiny = Op::CacheCreate { size: 8, align: 0, hwcache: false, ctor: true };
        ops.extend([tiny; MANY_CACHES]);
    }
    for cache in 0..caches {
        let size = interesting::log_uniform(rng.next_u64(), 12) as u32;
        let align = interesting::pick(&[0, 8, 16, 64, 256], rng.next_u64());
        ops.push(Op::CacheCreate { size, align, hwcache: rng.random(), ctor: rng.random() });
        let count = rng.random_range(1..=48);
        ops.push(Op::Burst { count, tier: BurstTier::Cache, size: u64::from(cache), gfp: Gfp::KERNEL });
    }
    let any = rng.random_range(0..caches);
    ops.extend([
        Op::FreeEvery { step: rng.random_range(1..=3), phase: 0 },
        Op::CacheShrink { cache: any },
        Op::CacheDestroy { cache: any },
    ]);
}

/// Blocks are allocated on one CPU and freed on another, in turns.
fn cross_cpu(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    geometry.cpus = geometry.cpus.max(2);
    let size = interesting::class_boundary(rng.next_u64());
    for turn in 0..rng.random_range(2..=6u16) {
        ops.extend([
            Op::SetCpu { cpu: turn },
            Op::Burst { count: rng.random_range(8..=80), tier: BurstTier::Kmalloc, size, gfp: Gfp::KERNEL },
            Op::SetCpu { cpu: turn + 1 },
            Op::FreeEvery { step: rng.random_range(1..=3), phase: rng.random_range(0..3) },
        ]);
    }
    ops.push(Op::DrainPages);
}

/// One block grows and shrinks through every boundary, by each of the three calls.
fn realloc_ladder(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let gfp = interesting::usual_gfp(rng.next_u64());
    ops.push(Op::Kvmalloc { size: 16, gfp });
    for _ in 0..rng.random_range(3..=12) {
        let size = interesting::boundary(rng.next_u64()).min(1 << 18);
        ops.extend([Op::Kvrealloc { pick: 0, size, gfp }, Op::Read { pick: 0 }, Op::Write { pick: 0 }]);
    }
}

/// Each stage of a vmalloc fails once, and memory must be as before.
fn fault_at_each_stage(rng: &mut TraceRng, _: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let size = 4096 * rng.random_range(2..=24);
    for point in FaultPoint::ALL {
        let nth = interesting::log_uniform(rng.next_u64(), 2) as u16;
        ops.extend([Op::FailNth { point, nth }, Op::Vmalloc { size, gfp: Gfp::KERNEL }]);
        ops.extend([Op::FailNth { point, nth }, Op::Kvmalloc { size, gfp: Gfp::KERNEL }]);
    }
}

/// The largest blocks are split down to single pages, freed in another order, and must merge again.
fn split_orders(rng: &mut TraceRng, geometry: &mut GeometrySpec, ops: &mut Vec<Op>) {
    let top = geometry.max_order.min(6);
    for order in (0..=top).rev() {
        let movable = interesting::pick(&[Gfp::KERNEL, Gfp::new(GfpFlags::HIGHUSER_MOVABLE)], rng.next_u64());
        ops.extend([Op::AllocPages { order, gfp: movable }, Op::AllocPages { order: 0, gfp: Gfp::KERNEL }]);
    }
    for _ in 0..=top {
        ops.push(Op::FreePages { pick: rng.random_range(0..16) });
    }
    ops.extend([Op::DrainPages, Op::AllocPages { order: top, gfp: Gfp::KERNEL }]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng;

    #[test]
    fn every_target_has_scenes_that_fit_its_machine() {
        let mut rng = rng(1);
        for target in Target::ALL {
            for n in 0..200 {
                let mut geometry = GeometrySpec::preset(n);
                let mut ops = Vec::new();
                scene(&mut rng, target, &mut geometry, &mut ops);
                assert!((1..=64 + MANY_CACHES).contains(&ops.len()), "{} operations", ops.len());
                assert_eq!(geometry.out_of_range(), None);
            }
        }
    }

    #[test]
    fn the_window_scene_fills_most_of_a_small_window() {
        let (mut geometry, mut ops) = (GeometrySpec::default(), Vec::new());
        narrow_window(&mut rng(2), &mut geometry, &mut ops);
        let Some(Op::Burst { count, .. }) = ops.first() else { panic!("a burst comes first") };
        // One page and one guard page each.
        assert!(u32::from(*count) * 2 + 2 > geometry.vmalloc_pages && geometry.vmalloc_pages < 200);
    }
}
