//! Watermarks: how many free pages a zone keeps back, and who may go below.
//!
//! ```text
//! min  = the zone's share of min_free        low = min + step      high = low + step      promo = high + step
//! step = max(min / 4, managed / 1000)
//! boost <= max(pageblock, high * 3 / 2), on top of each of them
//! ```
//!
//! A request looks for a zone above `low` first, then for one above `min`; urgent ones may go below that. The marks are
//! boosted when a pageblock of mixed types was needed, until reclaim has run: with more pages free that happens less.
//! Nothing looks at `promo` here: Linux promotes pages of slow memory up to it.

use super::migrate::MigrateType;
use crate::addr::PAGE_SIZE;
use crate::geometry::{Geometry, MinFree, ZoneKind, ZoneSpec};
use crate::gfp::GfpFlags;
use crate::order::Order;
use bitflags::bitflags;

/// A zone's watermarks in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Watermarks {
    pub(super) min: u64,
    pub(super) low: u64,
    pub(super) high: u64,
    pub(super) promo: u64,
}

bitflags! {
    /// What an attempt may do that others may not. The names are Linux's (`ALLOC_*`, `mm/internal.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct AllocFlags: u8 {
        /// Half of the min watermark is enough.
        const MIN_RESERVE = 1 << 0;
        /// With that, a quarter less; and if all else fails, the HIGHATOMIC reserve.
        const NON_BLOCK = 1 << 1;
        /// The HIGHATOMIC reserve first, and a new pageblock for it.
        const HIGHATOMIC = 1 << 2;
        /// Pageblocks that are set aside for contiguous ranges.
        const CMA = 1 << 3;

        /// Any of these makes the HIGHATOMIC reserve count as usable.
        const RESERVES = Self::MIN_RESERVE.bits() | Self::NON_BLOCK.bits();
    }
}

impl AllocFlags {
    /// What a request may do as long as nobody is in a hurry.
    pub(super) fn polite(migrate: MigrateType) -> Self {
        if migrate == MigrateType::Movable { Self::CMA } else { Self::empty() }
    }

    /// What a request may do once the polite attempt has failed.
    pub(super) fn entitled(order: Order, gfp: GfpFlags, migrate: MigrateType) -> Self {
        let mut flags = Self::polite(migrate);
        flags.set(Self::MIN_RESERVE, gfp.contains(GfpFlags::HIGH));
        if !gfp.may_block() && !gfp.contains(GfpFlags::NOMEMALLOC) {
            flags |= Self::NON_BLOCK;
            flags.set(Self::HIGHATOMIC, order > Order::ZERO && gfp.contains(GfpFlags::HIGH));
        }
        flags
    }
}

/// Which watermark an attempt must leave standing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watermark {
    /// The low one: nobody is in a hurry yet.
    Low,
    /// The min one, lowered by the request's reserve rights.
    Min,
    /// None: the last page may go.
    Ignored,
}

impl Watermarks {
    /// The watermarks of a zone with `managed` pages whose share of the reserve is `min`.
    pub(super) fn new(min: u64, managed: u64) -> Self {
        let step = (min / 4).max(managed / 1000);
        Self { min, low: min + step, high: min + 2 * step, promo: min + 3 * step }
    }

    /// The watermarks of one zone of a machine.
    pub(super) fn of(geometry: &Geometry, zone: &ZoneSpec) -> Self {
        let managed = zone.frames.get();
        Self::new(zone_min(geometry, zone), managed)
    }

    /// The number of pages that must stay free after a request with these rights; `None` if it may take all.
    pub(super) fn floor(&self, mark: Watermark, boost: u64, rights: AllocFlags) -> Option<u64> {
        match mark {
            Watermark::Low => Some(self.low + boost),
            Watermark::Min => Some(reserve_rights(self.min + boost, rights)),
            Watermark::Ignored => None,
        }
    }

    /// The boost after one more request had to mix types in a zone of `managed` pages. Source: `boost_watermark`, Linux 7.2.
    pub(super) fn boosted(&self, boost: u64, managed: u64, pageblock: u64) -> u64 {
        if pageblock * 4 > managed || self.high == 0 {
            return boost;
        }
        (boost + pageblock).min((self.high * 3 / 2).max(pageblock))
    }
}

/// Pages that all zones together keep back: `min_free_kbytes` as Linux computes it, in pages.
fn auto_min_pages(lowmem_pages: u64) -> u64 {
    let kib_per_page = PAGE_SIZE as u64 / 1024;
    let min_free_kib = (16 * lowmem_pages * kib_per_page).isqrt().clamp(128, 262_144);
    min_free_kib / kib_per_page
}

/// One zone's share of the reserve, in proportion to its size. With the automatic reserve, the Movable zone has a
/// small fixed one of its own, as in Linux; a number set by hand is divided over all zones.
fn zone_min(geometry: &Geometry, zone: &ZoneSpec) -> u64 {
    let managed = zone.frames.get();
    let share = |total: u64, of: u64| (u128::from(total) * u128::from(managed) / u128::from(of.max(1))) as u64;
    match geometry.min_free {
        MinFree::Pages(total) => share(u64::from(total), geometry.managed().get()),
        MinFree::Auto if zone.kind == ZoneKind::Movable => (managed / 1024).clamp(32, 128),
        MinFree::Auto => {
            let low = geometry.zones().iter().filter(|z| z.kind != ZoneKind::Movable);
            let lowmem = low.map(|z| z.frames.get()).sum();
            share(auto_min_pages(lowmem), lowmem)
        }
    }
}

/// Lowers the min watermark for those who may use the reserve.
const fn reserve_rights(min: u64, rights: AllocFlags) -> u64 {
    if !rights.contains(AllocFlags::MIN_RESERVE) {
        return min;
    }
    let half = min - min / 2;
    if rights.contains(AllocFlags::NON_BLOCK) { half - half / 4 } else { half }
}

/// Tells whether the request may ignore the watermarks.
pub(super) const fn may_ignore(gfp: GfpFlags) -> bool {
    gfp.contains(GfpFlags::MEMALLOC) && !gfp.contains(GfpFlags::NOMEMALLOC)
}

/// Pages of `zone` that requests which could use `highest` must leave to those which cannot: the size of the zones in
/// between, divided by a ratio per kind. Source: `lowmem_reserve_ratio`, Linux 7.2.
pub(super) fn lowmem_reserve(geometry: &Geometry, zone: &ZoneSpec, highest: ZoneKind) -> u64 {
    let ratio = match zone.kind {
        ZoneKind::Dma | ZoneKind::Dma32 => 256,
        ZoneKind::Normal => 32,
        ZoneKind::Movable => return 0,
    };
    let above = |z: &&ZoneSpec| z.node == zone.node && z.kind > zone.kind && z.kind <= highest;
    geometry.zones().iter().filter(above).map(|z| z.frames.get()).sum::<u64>() / ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PageCount, Pfn};
    use crate::numa::NodeId;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn zone(kind: ZoneKind, start: u64, bytes: u64) -> ZoneSpec {
        let frames = PageCount::new(bytes / PAGE_SIZE as u64);
        ZoneSpec { kind, node: NodeId::ZERO, start: Pfn::new((start / PAGE_SIZE as u64) as u32), frames }
    }

    fn machine(zones: &[ZoneSpec]) -> Geometry {
        Geometry::flat(1).with_zones(zones).unwrap()
    }

    #[test]
    fn one_zone_has_the_watermarks_of_linux() {
        for (bytes, min_free_kib, min, low, high) in [
            (16 * MIB, 512, 128, 160, 192),
            (64 * MIB, 1024, 256, 320, 384),
            (256 * MIB, 2048, 512, 640, 768),
            (GIB, 4096, 1024, 1286, 1548),
            (4 * GIB, 8192, 2048, 3096, 4144),
            (16 * GIB, 16384, 4096, 8290, 12484),
            (64 * GIB, 32768, 8192, 24969, 41746),
            (1024 * GIB, 131_072, 32768, 301_203, 569_638),
        ] {
            let spec = zone(ZoneKind::Normal, 0, bytes);
            assert_eq!(auto_min_pages(spec.frames.get()) * 4, min_free_kib, "{bytes} bytes");
            assert_eq!(
                Watermarks::of(&machine(&[spec]), &spec),
                Watermarks { min, low, high, promo: high + (high - low) },
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn the_automatic_reserve_has_a_floor_and_a_ceiling() {
        assert_eq!(auto_min_pages(1) * 4, 128);
        assert_eq!(auto_min_pages(255) * 4, 128, "sqrt(16 * 1020) is just below 128");
        assert_eq!(auto_min_pages(1 << 32) * 4, 262_144);
    }

    #[test]
    fn zones_share_the_reserve_by_size_and_the_movable_zone_has_its_own() {
        let zones = [
            zone(ZoneKind::Dma, 0, 16 * MIB),
            zone(ZoneKind::Normal, 16 * MIB, 240 * MIB),
            zone(ZoneKind::Movable, 256 * MIB, 256 * MIB),
        ];
        let mut geometry = machine(&zones);
        let mins = |g: &Geometry| zones.map(|z| Watermarks::of(g, &z).min);
        assert_eq!(mins(&geometry), [32, 480, 64]);
        geometry.min_free = MinFree::Pages(320);
        assert_eq!(mins(&geometry), [10, 150, 160]);
    }

    #[test]
    fn low_memory_is_reserved_by_the_size_of_what_lies_above() {
        let zones = [
            zone(ZoneKind::Dma, 0, 16 * MIB),
            zone(ZoneKind::Dma32, 16 * MIB, 4080 * MIB),
            zone(ZoneKind::Normal, 4 * GIB, 12 * GIB),
            zone(ZoneKind::Movable, 16 * GIB, GIB),
            ZoneSpec { node: NodeId::new(1).unwrap(), ..zone(ZoneKind::Normal, 17 * GIB, GIB) },
        ];
        let geometry = machine(&zones);
        let reserve = |i: usize, highest| lowmem_reserve(&geometry, &zones[i], highest);
        let pages = |bytes: u64| bytes / PAGE_SIZE as u64;
        assert_eq!(reserve(0, ZoneKind::Dma), 0);
        assert_eq!(reserve(0, ZoneKind::Dma32), pages(4080 * MIB) / 256);
        assert_eq!(reserve(0, ZoneKind::Normal), pages(4080 * MIB + 12 * GIB) / 256);
        assert_eq!(reserve(1, ZoneKind::Normal), pages(12 * GIB) / 256);
        assert_eq!(reserve(2, ZoneKind::Normal), 0);
        assert_eq!(reserve(2, ZoneKind::Movable), pages(GIB) / 32);
        assert_eq!(reserve(3, ZoneKind::Movable), 0);
    }

    #[test]
    fn only_urgent_requests_of_several_pages_use_the_highatomic_reserve_first() {
        let has = |order, gfp| {
            let rights = AllocFlags::entitled(Order::new(order).unwrap(), gfp, MigrateType::Movable);
            assert!(rights.contains(AllocFlags::CMA));
            rights.contains(AllocFlags::HIGHATOMIC)
        };
        assert!(has(1, GfpFlags::ATOMIC) && !has(0, GfpFlags::ATOMIC) && !has(1, GfpFlags::NOWAIT));
        assert!(!has(1, GfpFlags::KERNEL | GfpFlags::HIGH) && !has(1, GfpFlags::ATOMIC | GfpFlags::NOMEMALLOC));
        let unmovable = AllocFlags::entitled(Order::ZERO, GfpFlags::NOWAIT, MigrateType::Unmovable);
        assert_eq!(unmovable, AllocFlags::NON_BLOCK);
    }

    #[test]
    fn a_boost_grows_by_pageblocks_up_to_three_halves_of_high() {
        let marks = Watermarks::new(400, 0);
        assert_eq!(marks.high, 600);
        let boosts: std::vec::Vec<u64> = (0..3)
            .scan(0, |boost, _| {
                *boost = marks.boosted(*boost, 1 << 16, 512);
                Some(*boost)
            })
            .collect();
        assert_eq!(boosts, [512, 900, 900]);
        assert_eq!(marks.boosted(0, 2047, 512), 0, "a zone of less than four pageblocks");
        assert_eq!(Watermarks::new(8, 0).boosted(0, 2048, 512), 512, "one pageblock at least");
        assert_eq!(Watermarks::new(0, 0).boosted(0, 2048, 512), 0, "no reserve, no boost");
    }

    #[test]
    fn each_right_lowers_the_min_watermark_as_far_as_it_should() {
        let floor = |gfp| {
            let rights = AllocFlags::entitled(Order::ZERO, gfp, MigrateType::Unmovable);
            Watermarks::new(1001, 0).floor(Watermark::Min, 0, rights)
        };
        assert_eq!(floor(GfpFlags::KERNEL), Some(1001));
        assert_eq!(floor(GfpFlags::NOWAIT), Some(1001));
        assert_eq!(floor(GfpFlags::KERNEL | GfpFlags::HIGH), Some(501));
        assert_eq!(floor(GfpFlags::ATOMIC), Some(501 - 125));
        assert_eq!(floor(GfpFlags::ATOMIC | GfpFlags::NOMEMALLOC), Some(501));
        let marks = Watermarks::new(1000, 0);
        assert_eq!(
            marks.floor(Watermark::Low, 7, AllocFlags::MIN_RESERVE),
            Some(1257),
            "no right before the last attempt"
        );
        assert_eq!(marks.floor(Watermark::Min, 8, AllocFlags::MIN_RESERVE), Some(504), "half of the boosted mark");
        assert!(may_ignore(GfpFlags::MEMALLOC) && !may_ignore(GfpFlags::MEMALLOC | GfpFlags::NOMEMALLOC));
    }
}
