//! `hammer bench`: how fast one core executes and judges; how many instructions the hot pairs take.

use super::bench_moving::{self, Growth};
#[cfg(unix)]
use super::bench_programs;
use super::ui::Ui;
use super::{UserError, Verdict, bench_peers, bench_vmalloc};
use crate::machine::{SimMachine, SimPlatform};
use crate::report::table::grouped;
use crate::run::throughput;
use crate::trace::{GeometrySpec, MAX_FRAMES, MAX_VMALLOC_PAGES};
use clap::{Args, ValueEnum};
use kmem::{CpuId, Geometry, GfpFlags, Hardening, Kmem, MetaRegion, Order, PAGE_SIZE, PathCounts, Platform};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

/// Pairs that warm up, and those measured: their difference is free of everything that happens once.
const PAIRS: [u64; 2] = [1_000, 11_000];

/// The largest block of a machine on which every area is made of single pages.
const SHORT_BLOCKS: Order = match Order::new(2) {
    Some(order) => order,
    None => Order::ZERO,
};

/// A table of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Table {
    /// Areas that grow: their pages mapped elsewhere, or copied.
    Realloc,
    /// Large blocks out of a checkerboard of areas, whose pages may move or not.
    Moving,
    /// Linux's test_vmalloc.
    Vmalloc,
    /// The hosted allocator and the page allocator beside other people's, which are built for it.
    Peers,
    /// Whole programs on the system's allocator, on the preloaded hosted one, and on others that are installed.
    #[cfg(unix)]
    Programs,
}

#[derive(Args)]
pub(super) struct BenchArgs {
    /// Only this table.
    #[arg(value_enum)]
    table: Option<Table>,
    /// Write the table of `programs` to a file too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only grows areas: what runs below callgrind.
    #[arg(long, value_enum, hide = true)]
    grow: Option<Growth>,
    /// How large these are.
    #[arg(long, hide = true, default_value_t = 1 << 20)]
    bytes: usize,
    /// How long to measure.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only executes so many hot pairs: what runs below callgrind.
    #[arg(long, value_name = "N", hide = true)]
    pairs: Option<u64>,
    /// Which pair that is.
    #[arg(long, value_enum, default_value_t = HotPair::Kmalloc, hide = true)]
    pair: HotPair,
    /// Only executes a case of test_vmalloc, by its place in the list: what runs below callgrind. `--pairs` says how often.
    #[arg(long, value_name = "N", hide = true)]
    case: Option<usize>,
}

/// An allocation and its free by the fast paths, over and over, on the simulated platform without any oracle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum HotPair {
    /// `kmalloc(64)` and `kfree`.
    Kmalloc,
    /// The same without hardening.
    KmallocOff,
    /// The same with every object checked by red zones, poison and records, and freed ones in quarantine.
    KmallocParanoid,
    /// `kmalloc(64)` and `kfree`, with statistics.
    KmallocCounted,
    /// A size that the compiler does not know.
    KmallocAnySize,
    /// A class whose objects share bytes of the liveness map.
    Kmalloc16,
    /// A page.
    Page,
    /// A page, with statistics.
    PageCounted,
    /// An area of 256 pages, from blocks that are as long.
    AreaOfRuns,
    /// The same where no block is longer than 4 pages: page by page.
    AreaOfPages,
    /// An area of one page, with 15 live areas, from a pool.
    Vmalloc15,
    /// The same with 15,000 live areas.
    Vmalloc15000,
    /// The same on one CPU, where there are no pools, with 15 live areas.
    VmallocSearched15,
    /// The same with 15,000 live areas.
    VmallocSearched15000,
}

impl HotPair {
    fn label(self) -> &'static str {
        match self {
            Self::Kmalloc => "kmalloc(64) + kfree",
            Self::KmallocOff => "kmalloc(64) + kfree, hardening off",
            Self::KmallocParanoid => "kmalloc(64) + kfree, paranoid",
            Self::KmallocCounted => "kmalloc(64) + kfree, with statistics",
            Self::KmallocAnySize => "kmalloc(n) + kfree, n unknown to the compiler",
            Self::Kmalloc16 => "kmalloc(16) + kfree",
            Self::Page => "alloc_pages + free_pages, order 0",
            Self::PageCounted => "alloc_pages + free_pages, order 0, with statistics",
            Self::AreaOfRuns => "vmalloc(1 MiB) + vfree + purge, from long blocks",
            Self::AreaOfPages => "vmalloc(1 MiB) + vfree + purge, page by page",
            Self::Vmalloc15 => "vmalloc(4096) + vfree, purges included, 15 live areas",
            Self::Vmalloc15000 => "vmalloc(4096) + vfree, purges included, 15,000 live areas",
            Self::VmallocSearched15 => "vmalloc(4096) + vfree without pools, purges included, 15 live areas",
            Self::VmallocSearched15000 => "vmalloc(4096) + vfree without pools, purges included, 15,000 live areas",
        }
    }

    /// Live areas of one page while a vmalloc pair is executed; 0 for other pairs.
    const fn live_areas(self) -> u32 {
        match self {
            Self::Vmalloc15 | Self::VmallocSearched15 => 15,
            Self::Vmalloc15000 | Self::VmallocSearched15000 => 15_000,
            _ => 0,
        }
    }

    /// The machine that the pair is executed on.
    fn geometry(self) -> Geometry {
        let default = GeometrySpec::default();
        let vmalloc = GeometrySpec { frames: MAX_FRAMES, vmalloc_pages: MAX_VMALLOC_PAGES, ..default };
        let mut geometry = match self {
            Self::Vmalloc15 | Self::Vmalloc15000 => vmalloc.to_geometry(),
            Self::VmallocSearched15 | Self::VmallocSearched15000 => GeometrySpec { cpus: 1, ..vmalloc }.to_geometry(),
            _ => default.to_geometry(),
        };
        geometry.hardening = match self {
            Self::KmallocOff => Hardening::Off,
            Self::KmallocParanoid => Hardening::Paranoid,
            _ => Hardening::Checked,
        };
        if self == Self::AreaOfPages {
            (geometry.max_order, geometry.pageblock_order) = (SHORT_BLOCKS, SHORT_BLOCKS);
        }
        geometry
    }

    /// The name on the command line and in the JSON answer.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub(super) fn run(args: &BenchArgs, ui: &Ui) -> Result<Verdict, UserError> {
    match (args.table, args.grow) {
        (Some(Table::Realloc), _) => return bench_moving::realloc_table(ui),
        (Some(Table::Moving), _) => return bench_moving::moving_table(ui),
        (Some(Table::Vmalloc), _) => return bench_vmalloc::table_of_cases(ui),
        (Some(Table::Peers), _) => return bench_peers::run(ui),
        #[cfg(unix)]
        (Some(Table::Programs), _) => return bench_programs::run(args.markdown.as_deref(), ui),
        (None, Some(growth)) => {
            return bench_moving::grow(growth, args.bytes, args.pairs.unwrap_or(1)).map(|_| Verdict::Fine);
        }
        (None, None) => {}
    }
    if let (Some(place), Some(loops)) = (args.case, args.pairs) {
        return bench_vmalloc::only(place, loops);
    }
    if let Some(pairs) = args.pairs {
        hot_pairs(args.pair, pairs)?;
        return Ok(Verdict::Fine);
    }
    let measured = throughput(args.seconds as f64);
    let counts: Vec<_> = HotPair::value_variants().iter().map(|&pair| (pair, instructions_per_pair(pair))).collect();
    let of_pairs: serde_json::Map<_, _> =
        counts.iter().map(|(pair, n)| (pair.name(), serde_json::json!(n.as_ref().ok()))).collect();
    let value = serde_json::json!({
        "ok": true, "throughput": measured, "calls_per_second": measured.calls_per_second(),
        "ops_per_second": measured.ops_per_second(),
        "instructions_per_pair": of_pairs,
    });
    let lines: Vec<String> = counts.iter().map(|(pair, n)| line(*pair, n)).collect();
    let text = format!(
        "{} judged calls a second on one core ({} operations of traces), every oracle asked, full audit every 64 operations\n\
         instructions of hot pairs, the loop around them included (callgrind, simulated platform):\n{}\n{}",
        grouped(measured.calls_per_second() as u64),
        grouped(measured.ops_per_second() as u64),
        lines.join("\n"),
        area_ratios(&counts),
    );
    ui.result(&value, text);
    Ok(Verdict::Fine)
}

fn line(pair: HotPair, count: &Result<f64, String>) -> String {
    match count {
        Ok(n) => format!("  {n:7.1}  {}", pair.label()),
        Err(why) => format!("  not counted: {why}  {}", pair.label()),
    }
}

fn hot_pairs(pair: HotPair, pairs: u64) -> Result<(), UserError> {
    let geometry = pair.geometry();
    if matches!(pair, HotPair::KmallocCounted | HotPair::PageCounted) {
        execute(&boot::<true>(&geometry)?, pair, pairs)
    } else {
        execute(&boot::<false>(&geometry)?, pair, pairs)
    }
}

pub(super) fn boot<const STATISTICS: bool>(geometry: &Geometry) -> Result<Kmem<SimPlatform<STATISTICS>>, UserError> {
    let failed = |e: kmem::GeometryError| UserError(format!("the machine cannot be made: {e}"));
    let bytes = Kmem::<SimPlatform<STATISTICS>>::metadata_bytes(geometry).map_err(failed)?;
    let platform = SimPlatform::new(Rc::new(SimMachine::new(geometry)));
    Kmem::new(platform, geometry, MetaRegion::heap(bytes)).map_err(failed)
}

/// Executes the pairs and, where paths are counted, checks that all but the first few were fast.
fn execute<P: Platform>(kmem: &Kmem<P>, pair: HotPair, pairs: u64) -> Result<(), UserError> {
    let before = counts(kmem, pair);
    let done = match pair {
        HotPair::Kmalloc | HotPair::KmallocOff | HotPair::KmallocParanoid | HotPair::KmallocCounted => {
            kmalloc_pairs::<P, 64>(kmem, pairs)
        }
        HotPair::Kmalloc16 => kmalloc_pairs::<P, 16>(kmem, pairs),
        HotPair::KmallocAnySize => kmalloc_any_pairs(kmem, pairs, std::hint::black_box(64)),
        HotPair::Page | HotPair::PageCounted => page_pairs(kmem, pairs),
        HotPair::AreaOfRuns | HotPair::AreaOfPages => area_pairs(kmem, pairs),
        HotPair::Vmalloc15 | HotPair::Vmalloc15000 | HotPair::VmallocSearched15 | HotPair::VmallocSearched15000 => {
            (0..pair.live_areas()).all(|_| kmem.vmalloc(PAGE_SIZE, GfpFlags::KERNEL).is_ok())
                && vmalloc_pairs(kmem, pairs)
        }
    };
    let after = counts(kmem, pair);
    let fast = (after.alloc_fastpath - before.alloc_fastpath).min(after.free_fastpath - before.free_fastpath);
    if !done || (P::STATISTICS && fast + 16 < pairs) {
        return Err(UserError(format!("{}: {pairs} pairs asked for, {after:?}", pair.label())));
    }
    Ok(())
}

/// How often the paths that a pair goes through were used.
fn counts<P: Platform>(kmem: &Kmem<P>, pair: HotPair) -> PathCounts {
    if matches!(pair, HotPair::Page | HotPair::PageCounted) {
        return kmem.page_statistics(CpuId::new(0));
    }
    let mut counts = PathCounts::default();
    kmem.slabinfo(|cache| {
        if cache.name.as_str() == "kmalloc-64" {
            counts = kmem.slab_statistics(cache.id);
        }
    });
    counts
}

#[inline(never)]
fn kmalloc_pairs<P: Platform, const SIZE: usize>(kmem: &Kmem<P>, pairs: u64) -> bool {
    for _ in 0..pairs {
        let Ok(addr) = kmem.kmalloc(SIZE, GfpFlags::KERNEL) else { return false };
        let Ok(()) = kmem.kfree(addr) else { return false };
    }
    true
}

#[inline(never)]
fn kmalloc_any_pairs<P: Platform>(kmem: &Kmem<P>, pairs: u64, size: usize) -> bool {
    for _ in 0..pairs {
        let Ok(addr) = kmem.kmalloc(size, GfpFlags::KERNEL) else { return false };
        let Ok(()) = kmem.kfree(addr) else { return false };
    }
    true
}

#[inline(never)]
fn page_pairs<P: Platform>(kmem: &Kmem<P>, pairs: u64) -> bool {
    for _ in 0..pairs {
        let Ok(page) = kmem.alloc_pages(Order::ZERO, GfpFlags::KERNEL) else { return false };
        let Ok(()) = kmem.free_pages(page, Order::ZERO) else { return false };
    }
    true
}

#[inline(never)]
fn area_pairs<P: Platform>(kmem: &Kmem<P>, pairs: u64) -> bool {
    for _ in 0..pairs {
        let Ok(addr) = kmem.vmalloc(1 << 20, GfpFlags::KERNEL) else { return false };
        let Ok(()) = kmem.vfree(addr) else { return false };
        kmem.vm_unmap_aliases();
    }
    true
}

#[inline(never)]
fn vmalloc_pairs<P: Platform>(kmem: &Kmem<P>, pairs: u64) -> bool {
    for _ in 0..pairs {
        let Ok(addr) = kmem.vmalloc(PAGE_SIZE, GfpFlags::KERNEL) else { return false };
        let Ok(()) = kmem.vfree(addr) else { return false };
    }
    true
}

/// What the number of live areas costs: each pair of rows of which the second has a thousand times as many.
fn area_ratios(counts: &[(HotPair, Result<f64, String>)]) -> String {
    let of = |wanted| counts.iter().find(|(pair, _)| *pair == wanted).and_then(|(_, n)| n.as_ref().ok());
    let ratio = |few, many| match (of(few), of(many)) {
        (Some(few), Some(many)) => format!("{:.2}", many / few),
        _ => "-".to_owned(),
    };
    format!(
        "15,000 live areas cost {} times what 15 cost, without pools {} times",
        ratio(HotPair::Vmalloc15, HotPair::Vmalloc15000),
        ratio(HotPair::VmallocSearched15, HotPair::VmallocSearched15000),
    )
}

fn instructions_per_pair(pair: HotPair) -> Result<f64, String> {
    // One of an area takes as long as hundreds of the others.
    let is_area = matches!(pair, HotPair::AreaOfRuns | HotPair::AreaOfPages);
    let [few, many] = if is_area { PAIRS.map(|pairs| pairs / 50) } else { PAIRS };
    let difference = instructions(pair, many)?.saturating_sub(instructions(pair, few)?);
    Ok(difference as f64 / (many - few) as f64)
}

/// Instructions of this program when it does nothing but pairs.
fn instructions(pair: HotPair, pairs: u64) -> Result<u64, String> {
    instructions_of(&["--pairs", &pairs.to_string(), "--pair", &pair.name()])
}

/// Instructions of this program's `bench` with these arguments.
pub(super) fn instructions_of(args: &[&str]) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program's path is unknown: {e}"))?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.arg("bench").args(args).stdout(Stdio::null());
    let output = command.output().map_err(|e| format!("valgrind could not be started: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    collected.ok_or_else(|| "callgrind printed no count".to_owned())
}
