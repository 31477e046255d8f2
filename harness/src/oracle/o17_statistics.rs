//! O17: do the reports say what a recount finds?
//!
//! Contract: I17 and section 3.9. At each audit the pageblocks of each zone are counted by type, guards and bad pages by
//! frame, and the texts of `pagetypeinfo` and `zoneinfo` are read back: the blocks by order are those of `buddyinfo` and add
//! up to the free pages, the pageblocks are those that were counted, and the marks are those of the zone. The fragmentation
//! indices are computed again, from the formulas. `vmallocinfo` is read back in `o17_areas`. Exact: no machine has as many blocks as the text stops counting at.

use super::{Context, Oracle, OracleId, Violation, o17_areas};
use crate::subject::WhiteBox;
use kmem::{FrameKind, MIGRATE_TYPES, NR_PAGE_ORDERS, Order, ZoneInfo, ZoneSpec};

/// See the module.
pub(super) struct Statistics;

impl Oracle for Statistics {
    fn id(&self) -> OracleId {
        OracleId::O17Statistics
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(inside) = cx.subject.white_box() else { return Ok(()) };
        let text = inside.pagetypeinfo();
        let verdict =
            check_zones(inside, &text).and_then(|()| check_owners(inside)).and_then(|()| o17_areas::check(cx));
        verdict.map_err(|message| cx.violation(OracleId::O17Statistics, &[], message))
    }
}

/// The numbers at the end of a line.
fn numbers(line: &str) -> Vec<u64> {
    let words = line.split_whitespace().rev();
    let mut numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    numbers.reverse();
    numbers
}

fn check_zones(inside: &dyn WhiteBox, text: &str) -> Result<(), String> {
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Node")).collect();
    let zones = inside.geometry().zones();
    if lines.len() != zones.len() * (MIGRATE_TYPES + 1) {
        return Err(format!("pagetypeinfo has {} lines for {} zones", lines.len(), zones.len()));
    }
    let (free, pageblocks) = lines.split_at(zones.len() * MIGRATE_TYPES);
    let listed = inside.buddyinfo();
    for (n, (spec, info)) in zones.iter().zip(listed.zones()).enumerate() {
        let by_type = &free[n * MIGRATE_TYPES..(n + 1) * MIGRATE_TYPES];
        check_free(spec, info, by_type)?;
        check_pageblocks(inside, spec, &numbers(pageblocks[n]))?;
        check_zoneinfo(info, &info.to_string())?;
        check_indices(info)?;
    }
    Ok(())
}

/// Each row of a zone's text has the zone's number.
fn check_zoneinfo(info: &ZoneInfo, text: &str) -> Result<(), String> {
    let rows = [
        ("pages free", info.free_pages),
        ("boost", info.boost),
        ("min", info.min),
        ("low", info.low),
        ("high", info.high),
        ("promo", info.promo),
        ("managed", info.managed),
        ("reserved_highatomic:", info.reserved_highatomic),
        ("pagesets:", info.pcp_pages),
        ("start_pfn:", u64::from(info.start.as_u32())),
    ];
    let expected = rows.iter().map(|(name, pages)| format!("{name} {pages}"));
    let listed = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let head = text.lines().next().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    if head == Some(format!("Node {}, zone {}", info.node, info.kind.name())) && listed.eq(expected) {
        return Ok(());
    }
    Err(format!("zoneinfo is not that of {info:?}: {text}"))
}

fn frames(spec: &ZoneSpec) -> std::ops::Range<u32> {
    let start = spec.start.as_u32();
    start..start + spec.frames.get() as u32
}

fn check_free(spec: &ZoneSpec, info: &ZoneInfo, by_type: &[&str]) -> Result<(), String> {
    let mut sums = [0; NR_PAGE_ORDERS];
    for line in by_type {
        sums.iter_mut().zip(numbers(line)).for_each(|(sum, blocks)| *sum += blocks);
    }
    let listed = info.free.map(u64::from);
    if sums != listed {
        return Err(format!("pagetypeinfo has {sums:?} free blocks in zone {:?}, buddyinfo {listed:?}", spec.kind));
    }
    let pages: u64 = listed.iter().enumerate().map(|(order, blocks)| blocks << order).sum();
    if pages == info.free_pages {
        return Ok(());
    }
    Err(format!("the lists of zone {:?} hold {pages} pages, the counter says {}", spec.kind, info.free_pages))
}

fn check_pageblocks(inside: &dyn WhiteBox, spec: &ZoneSpec, listed: &[u64]) -> Result<(), String> {
    let order = inside.geometry().pageblock_order.get();
    let mut counted = [0; MIGRATE_TYPES];
    let mut last = None;
    for pfn in frames(spec) {
        if last.replace(pfn >> order) != Some(pfn >> order)
            && let Some(migrate) = inside.pageblock_type(pfn)
        {
            counted[migrate as usize] += 1;
        }
    }
    if counted == listed {
        Ok(())
    } else {
        Err(format!("pagetypeinfo lists {listed:?} pageblocks, there are {counted:?}"))
    }
}

/// Section 3.9, from the numbers of blocks.
fn check_indices(info: &ZoneInfo) -> Result<(), String> {
    let free = info.free.map(i64::from);
    let blocks: i64 = free.iter().sum();
    let pages: i64 = free.iter().enumerate().map(|(order, n)| n << order).sum();
    for order in 0..NR_PAGE_ORDERS {
        let suit: i64 = (order..NR_PAGE_ORDERS).map(|k| free[k] << (k - order)).sum();
        let index = match (blocks, suit) {
            (0, _) => 0,
            (_, 1..) => -1000,
            _ => 1000 - (1000 + pages * 1000 / (1 << order)) / blocks,
        };
        let scattered = pages - (suit << order);
        let (unusable, percent) =
            if pages == 0 { (1000, 0) } else { (scattered * 1000 / pages, scattered * 100 / pages) };
        let Some(of) = Order::new(order as u8) else { continue };
        let found = (info.fragmentation_index(of), info.unusable_index(of), info.extfrag_percent(of));
        if (i64::from(found.0), i64::from(found.1), i64::from(found.2)) != (index, unusable, percent) {
            return Err(format!("indices of order {order}: {found:?}, not {index}, {unusable}, {percent}: {info:?}"));
        }
    }
    Ok(())
}

/// Guards and bad pages, by kind. Where neither is listed, O7's sum over all owners would have missed them.
fn check_owners(inside: &dyn WhiteBox) -> Result<(), String> {
    let counted = |kind| (0..inside.geometry().frames()).filter(|&pfn| inside.frame_kind(pfn) == kind).count() as u64;
    let found = inside.page_use();
    if found.guard == 0 && found.bad == 0 {
        return Ok(());
    }
    let (guard, bad) = (counted(FrameKind::Guard), counted(FrameKind::Bad));
    if (found.guard, found.bad) == (guard, bad) {
        return Ok(());
    }
    Err(format!("there are {guard} guards and {bad} bad pages: {found:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context};

    /// 64 free frames in one block, all in one movable pageblock of 512.
    fn text(blocks: &str, pageblocks: &str) -> String {
        let line = |n: usize| {
            format!("Node 0, zone Normal, type X {}\n", if n == 0 { blocks } else { "0 0 0 0 0 0 0 0 0 0 0" })
        };
        (0..MIGRATE_TYPES).map(line).collect::<String>() + &format!("Node 0, zone Normal {pageblocks}\n")
    }

    fn verdict(text: String) -> Result<(), Violation> {
        let mut subject = FakeSubject::new(64);
        subject.pagetypes = text;
        let mut model = subject.model();
        Statistics.audit(&mut context(&mut model, &mut subject))
    }

    #[test]
    fn a_report_that_is_off_by_one_is_found() {
        let blocks = "0 0 0 0 0 0 1 0 0 0 0";
        let right = FakeSubject::new(64).pageblock_type(0).map_or("0 0 0 0 0 0".to_owned(), |migrate| {
            (0..MIGRATE_TYPES).map(|t| if t == migrate as usize { "1 " } else { "0 " }).collect()
        });
        assert_eq!(verdict(text(blocks, &right)), Ok(()));
        assert!(verdict(text("1 0 0 0 0 0 1 0 0 0 0", &right)).is_err());
        assert!(verdict(text(blocks, "2 2 2 2 2 2")).is_err());
        assert!(verdict(String::new()).is_err());
    }

    #[test]
    fn a_zone_with_another_number_than_its_text_is_found() {
        let listed = FakeSubject::new(64).buddyinfo();
        let info = listed.zones()[0];
        let text = info.to_string();
        assert_eq!(check_zoneinfo(&info, &text), Ok(()));
        for other in [ZoneInfo { low: info.low + 1, ..info }, ZoneInfo { pcp_pages: info.pcp_pages + 1, ..info }] {
            assert!(check_zoneinfo(&other, &text).is_err());
        }
        let short: String = text.lines().take(3).collect();
        assert!(check_zoneinfo(&info, &short).is_err());
    }
}
