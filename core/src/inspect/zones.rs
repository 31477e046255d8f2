//! Zones as Linux shows them: fragmentation indices, `/proc/pagetypeinfo`, `/proc/zoneinfo`.
//!
//! All are computed from the free lists. Formulas of the indices: `mm/vmstat.c`; divisions are those of integers, the
//! inner one first.

use super::{MIGRATE_TYPES, ZoneInfo};
use crate::geometry::MAX_ZONES;
use crate::order::{NR_PAGE_ORDERS, Order};
use core::fmt;

/// A list with more blocks than this is not counted to its end.
const COUNT_LIMIT: u32 = 100_000;

/// The names of the migrate types, as Linux prints them.
const TYPE_NAMES: [&str; MIGRATE_TYPES] = ["Unmovable", "Movable", "Reclaimable", "HighAtomic", "CMA", "Isolate"];

/// The free blocks of a zone, as the indices see them.
pub(crate) struct Fill {
    pages: u64,
    blocks: u64,
    /// How many blocks of the order could be cut from what is free.
    suitable: u64,
}

impl Fill {
    /// From the numbers of free blocks of each order, the smallest first.
    pub(crate) fn of(free: impl IntoIterator<Item = u32>, order: Order) -> Self {
        let mut fill = Self { pages: 0, blocks: 0, suitable: 0 };
        for (each, blocks) in Order::ZERO.up_to(Order::MAX).zip(free) {
            let blocks = u64::from(blocks);
            fill.blocks += blocks;
            fill.pages += blocks * each.pages();
            if each >= order {
                fill.suitable += blocks * (each.pages() / order.pages());
            }
        }
        fill
    }

    /// See [`ZoneInfo::fragmentation_index`].
    pub(crate) fn fragmentation_index(&self, order: Order) -> i32 {
        match (self.blocks, self.suitable) {
            (0, _) => 0,
            (_, 1..) => -1000,
            (blocks, 0) => 1000 - ((1000 + self.pages * 1000 / order.pages()) / blocks) as i32,
        }
    }

    /// Free pages that are no part of a block of the order.
    fn scattered(&self, order: Order) -> u64 {
        self.pages.saturating_sub(self.suitable * order.pages())
    }
}

impl ZoneInfo {
    /// Why a block of this order is missing, in thousandths: towards 0 because memory is short, towards 1000 because it
    /// is fragmented; -1000 if one is free, 0 if nothing is.
    pub fn fragmentation_index(&self, order: Order) -> i32 {
        Fill::of(self.free, order).fragmentation_index(order)
    }

    /// How much of the free memory a request of this order cannot use, in thousandths.
    pub fn unusable_index(&self, order: Order) -> u32 {
        let fill = Fill::of(self.free, order);
        (fill.scattered(order) * 1000).checked_div(fill.pages).map_or(1000, |index| index as u32)
    }

    /// The same in hundredths, and 0 where nothing is free: what proactive compaction goes by.
    pub fn extfrag_percent(&self, order: Order) -> u32 {
        let fill = Fill::of(self.free, order);
        (fill.scattered(order) * 100).checked_div(fill.pages).map_or(0, |percent| percent as u32)
    }
}

/// Its text is the zone's part of `/proc/zoneinfo`.
impl fmt::Display for ZoneInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Node {}, zone {:>8}", self.node, self.kind.name())?;
        writeln!(f, "  pages free     {}", self.free_pages)?;
        let rows = [
            ("boost", self.boost),
            ("min", self.min),
            ("low", self.low),
            ("high", self.high),
            ("promo", self.promo),
            ("managed", self.managed),
        ];
        for (name, pages) in rows {
            writeln!(f, "        {name:<8} {pages}")?;
        }
        writeln!(f, "  reserved_highatomic: {}", self.reserved_highatomic)?;
        writeln!(f, "  pagesets: {}", self.pcp_pages)?;
        writeln!(f, "  start_pfn:           {}", self.start.as_u32())
    }
}

/// Free blocks and pageblocks of each zone by migrate type; its text is `/proc/pagetypeinfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageTypeInfo {
    pageblock_order: Order,
    zones: [(ZoneInfo, [u64; MIGRATE_TYPES]); MAX_ZONES],
    nr_zones: usize,
}

impl PageTypeInfo {
    pub(crate) fn new(pageblock_order: Order, zones: impl Iterator<Item = (ZoneInfo, [u64; MIGRATE_TYPES])>) -> Self {
        let mut info = Self { pageblock_order, zones: [(ZoneInfo::EMPTY, [0; MIGRATE_TYPES]); MAX_ZONES], nr_zones: 0 };
        for (slot, zone) in info.zones.iter_mut().zip(zones) {
            *slot = zone;
            info.nr_zones += 1;
        }
        info
    }

    /// The zones, each with its pageblocks by migrate type.
    pub fn zones(&self) -> &[(ZoneInfo, [u64; MIGRATE_TYPES])] {
        self.zones.get(..self.nr_zones).unwrap_or_default()
    }
}

/// A number of free blocks, counted to the limit.
struct Counted(u32);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.0 >= COUNT_LIMIT { ">" } else { "" };
        write!(f, "{more}{:>6}", self.0.min(COUNT_LIMIT))
    }
}

impl fmt::Display for PageTypeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Page block order: {}", self.pageblock_order)?;
        writeln!(f, "Pages per block:  {}\n", self.pageblock_order.pages())?;
        write!(f, "{:<43} ", "Free pages count per migrate type at order")?;
        (0..NR_PAGE_ORDERS).try_for_each(|order| write!(f, "{order:>6} "))?;
        writeln!(f)?;
        for (zone, _) in self.zones() {
            for (name, free) in TYPE_NAMES.iter().zip(&zone.free_by_type) {
                write!(f, "Node {:>4}, zone {:>8}, type {name:>12} ", zone.node, zone.kind.name())?;
                free.iter().try_for_each(|&blocks| write!(f, "{} ", Counted(blocks)))?;
                writeln!(f)?;
            }
        }
        write!(f, "\n{:<23}", "Number of blocks type")?;
        TYPE_NAMES.iter().try_for_each(|name| write!(f, "{name:>12} "))?;
        writeln!(f)?;
        for (zone, pageblocks) in self.zones() {
            write!(f, "Node {}, zone {:>8} ", zone.node, zone.kind.name())?;
            pageblocks.iter().try_for_each(|blocks| write!(f, "{blocks:>12} "))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    fn zone(free: &[u32]) -> ZoneInfo {
        let mut zone = ZoneInfo::EMPTY;
        zone.free[..free.len()].copy_from_slice(free);
        zone
    }

    fn indices(order: u8, free: &[u32]) -> (i32, u32, u32) {
        let (zone, order) = (zone(free), Order::new(order).unwrap());
        (zone.fragmentation_index(order), zone.unusable_index(order), zone.extfrag_percent(order))
    }

    #[test]
    fn the_indices_are_those_of_the_golden_vectors() {
        assert_eq!(indices(0, &[]), (0, 1000, 0));
        assert_eq!(indices(3, &[100]), (865, 1000, 100));
        assert_eq!(indices(3, &[10, 5, 2]), (736, 1000, 100));
        assert_eq!(indices(9, &[512]), (997, 1000, 100));
        assert_eq!(indices(9, &[0, 0, 0, 0, 0, 0, 0, 0, 4]), (250, 1000, 100));
        assert_eq!(indices(2, &[3, 1, 1]), (-1000, 555, 55));
        assert_eq!(indices(10, &[1; 10]), (801, 1000, 100));
    }

    #[test]
    fn pagetypeinfo_names_orders_types_and_pageblocks() {
        let mut of_zone = zone(&[]);
        of_zone.free_by_type[1] = [1, 0, 99_999, 100_000, 100_001, 0, 0, 0, 0, 0, 7];
        let info = PageTypeInfo::new(Order::new(9).unwrap(), [(of_zone, [1, 2, 3, 4, 5, 6])].into_iter());
        let text = info.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["Page block order: 9", "Pages per block:  512"]);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[3])[8..], ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]);
        let movable = words(lines[5]);
        assert_eq!(movable[..6], ["Node", "0,", "zone", "Normal,", "type", "Movable"]);
        assert_eq!(movable[6..], ["1", "0", "99999", ">100000", ">100000", "0", "0", "0", "0", "0", "7"]);
        assert_eq!(words(lines[lines.len() - 1]), ["Node", "0,", "zone", "Normal", "1", "2", "3", "4", "5", "6"]);
    }

    #[test]
    fn zoneinfo_has_the_marks_in_the_order_of_linux() {
        let zone =
            ZoneInfo { min: 1, low: 2, high: 3, promo: 4, managed: 5, boost: 6, free_pages: 7, ..ZoneInfo::EMPTY };
        let text = zone.to_string();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[..7], ["Node", "0,", "zone", "Normal", "pages", "free", "7"]);
        let marks = ["boost", "6", "min", "1", "low", "2", "high", "3", "promo", "4", "managed", "5"];
        assert_eq!(words[7..19], marks);
    }
}
