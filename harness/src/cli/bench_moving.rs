//! `hammer bench realloc` and `hammer bench moving`: what it costs that pages are mapped elsewhere, and not copied, and what
//! it brings that they may move.

use super::bench::{boot, instructions_of};
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::machine::SimPlatform;
use crate::report::table::grouped;
use clap::ValueEnum;
use kmem::{Geometry, GfpFlags, Kmem, NodeId, Order, PAGE_SIZE, PageCount, Pfn, VirtAddr, ZoneKind, ZoneSpec};
use std::time::Instant;

type Machine = Kmem<SimPlatform<false>>;

/// Frames of the machine: two nodes of 128 MiB each.
const FRAMES: u32 = 1 << 16;
/// Bytes by which an area grows.
const GROWTH: usize = 64 << 10;
/// Growths that warm up, and those counted: their difference is free of what happens once.
const GROWTHS: [u64; 2] = [1, 3];

/// How an area grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Growth {
    /// Not at all: what the allocation and the free around it cost.
    None,
    /// Its frames are mapped at other addresses.
    Remapped,
    /// A new area, a copy, and the old one freed: what Linux does. Asked for by insisting on the other node.
    Copied,
}

fn two_nodes() -> Result<Geometry, UserError> {
    let zone = |node: u8| ZoneSpec {
        kind: ZoneKind::Normal,
        node: NodeId::new(node).unwrap_or_default(),
        start: Pfn::new(u32::from(node) * FRAMES / 2),
        frames: PageCount::new(u64::from(FRAMES / 2)),
    };
    let geometry = Geometry::flat(FRAMES).with_zones(&[zone(0), zone(1)]);
    geometry.map_err(|e| UserError(format!("the machine cannot be made: {e}")))
}

/// Makes an area that cannot grow where it is, grows it, and frees everything, over and over; returns the nanoseconds of the
/// fastest round's growth.
pub(super) fn grow(growth: Growth, bytes: usize, times: u64) -> Result<f64, UserError> {
    let kmem = boot::<false>(&two_nodes()?)?;
    let failed = |e: kmem::AllocError| UserError(format!("{growth:?} of {bytes} bytes: {e}"));
    let misuse = |e: kmem::FreeError| UserError(format!("{growth:?} of {bytes} bytes: {e}"));
    let mut fastest = f64::INFINITY;
    for _ in 0..times {
        let area = kmem.vmalloc(bytes, GfpFlags::KERNEL).map_err(failed)?;
        let neighbour = kmem.vmalloc(1, GfpFlags::KERNEL).map_err(failed)?;
        let start = Instant::now();
        let grown = grow_once(&kmem, growth, area, bytes).map_err(failed)?;
        fastest = fastest.min(start.elapsed().as_nanos() as f64);
        kmem.vfree(grown).and_then(|()| kmem.vfree(neighbour)).map_err(misuse)?;
        kmem.vm_unmap_aliases();
    }
    Ok(fastest)
}

#[inline(never)]
fn grow_once(kmem: &Machine, growth: Growth, area: VirtAddr, bytes: usize) -> Result<VirtAddr, kmem::AllocError> {
    let gfp = GfpFlags::KERNEL;
    match growth {
        Growth::None => Ok(area),
        Growth::Remapped => kmem.vrealloc(area, bytes + GROWTH, gfp),
        Growth::Copied => kmem.vrealloc_node_align(area, bytes + GROWTH, 1, gfp | GfpFlags::THISNODE, NodeId::new(1)),
    }
}

/// Instructions of one round: of a growth, and of what is around it.
fn instructions(growth: Growth, bytes: usize) -> Result<f64, String> {
    let of = |growth: Growth, times: u64| {
        let name = growth.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let (bytes, times) = (bytes.to_string(), times.to_string());
        instructions_of(&["--grow", &name, "--bytes", &bytes, "--pairs", &times])
    };
    let [few, many] = GROWTHS;
    Ok((of(growth, many)? as f64 - of(growth, few)? as f64) / (many - few) as f64)
}

/// `hammer bench realloc`.
pub(super) fn realloc_table(ui: &Ui) -> Result<Verdict, UserError> {
    let mut rows = Vec::new();
    let mut text = format!(
        "an area grows by {} KiB and has no room where it is: its pages mapped elsewhere, or copied to a new area (as Linux does)\n\
         {:>8}  {:>14} {:>12}  {:>14} {:>12}  copied / remapped\n",
        GROWTH >> 10,
        "bytes",
        "remapped, ins.",
        "ns",
        "copied, ins.",
        "ns"
    );
    for shift in [16, 20, 24, 26] {
        let bytes = 1usize << shift;
        let (remapped, copied) = (grow(Growth::Remapped, bytes, 5)?, grow(Growth::Copied, bytes, 5)?);
        let around = instructions(Growth::None, bytes);
        let net = |growth| Ok(instructions(growth, bytes)? - around.clone()?);
        let counts: [Result<f64, String>; 2] = [Growth::Remapped, Growth::Copied].map(net);
        let shown = |count: &Result<f64, String>| match count {
            Ok(n) => grouped(*n as u64),
            Err(why) => why.clone(),
        };
        text += &format!(
            "{:>4} KiB  {:>14} {:>12}  {:>14} {:>12}  {:.1} in time\n",
            bytes >> 10,
            shown(&counts[0]),
            grouped(remapped as u64),
            shown(&counts[1]),
            grouped(copied as u64),
            copied / remapped
        );
        rows.push(serde_json::json!({
            "bytes": bytes, "remapped_ns": remapped, "copied_ns": copied,
            "remapped_instructions": counts[0].as_ref().ok(), "copied_instructions": counts[1].as_ref().ok(),
        }));
    }
    ui.result(&serde_json::json!({ "ok": true, "growths": rows }), text);
    Ok(Verdict::Fine)
}

/// What came of asking a checkerboard of areas for large blocks.
struct Board {
    got: u64,
    possible: u64,
    nanoseconds: f64,
}

/// Fills memory with areas of one page, frees every second, and takes blocks of an order until one is refused.
fn board(order: Order, gfp: GfpFlags) -> Result<Board, UserError> {
    let kmem = boot::<false>(&Geometry::flat(1 << 13))?;
    let areas: Vec<VirtAddr> = std::iter::from_fn(|| kmem.vmalloc(PAGE_SIZE, gfp | GfpFlags::NOWARN).ok()).collect();
    for area in areas.iter().step_by(2) {
        kmem.vfree(*area).map_err(|e| UserError(format!("an area cannot be freed: {e}")))?;
    }
    kmem.reclaim();
    let possible = kmem.meminfo().free >> order.get();
    let start = Instant::now();
    let block = || kmem.alloc_pages(order, GfpFlags::KERNEL | GfpFlags::RETRY_MAYFAIL | GfpFlags::NOWARN);
    let got = std::iter::from_fn(|| block().ok()).count() as u64;
    Ok(Board { got, possible, nanoseconds: start.elapsed().as_nanos() as f64 })
}

/// `hammer bench moving`.
pub(super) fn moving_table(ui: &Ui) -> Result<Verdict, UserError> {
    let mut rows = Vec::new();
    let mut text =
        "memory is a checkerboard of areas of one page each; how many blocks of an order can be had of what is free\n"
            .to_owned();
    for (kind, gfp) in [("movable", GfpFlags::HIGHUSER_MOVABLE), ("unmovable, as all of Linux's", GfpFlags::KERNEL)] {
        for order in [4, 6, 9].into_iter().filter_map(Order::new) {
            let Board { got, possible, nanoseconds } = board(order, gfp)?;
            let each =
                if got > 0 { format!("{} ns each", grouped((nanoseconds / got as f64) as u64)) } else { String::new() };
            text += &format!("  order {}  {got:>4} of {possible:>4}  {kind}  {each}\n", order.get());
            rows.push(serde_json::json!({
                "order": order.get(), "areas": kind, "blocks": got, "possible": possible, "ns": nanoseconds,
            }));
        }
    }
    ui.result(&serde_json::json!({ "ok": true, "boards": rows }), text);
    Ok(Verdict::Fine)
}
