//! The model beside the subject: counts, and what each says of the guilty blocks.

use crate::oracle::Violation;
use crate::report::film::{BlockRecord, COUNTS, COUNTS_OF_MODEL, Film, State, UNKNOWN};
use crate::report::owners::{OWNER_BITS, owner_of};
use crate::report::story::Story;
use crate::report::table::grouped;
use crate::trace::Gfp;
use kmem::{Geometry, PAGE_SIZE, VirtAddr};
use std::collections::BTreeMap;

use super::grid::TYPES;

/// A number of both.
pub(super) struct Count {
    pub(super) name: &'static str,
    pub(super) model: String,
    pub(super) subject: String,
    /// Whether both know it and do not agree.
    pub(super) differs: bool,
}

/// The counts of the state shown, as far as somebody knows them.
pub(super) fn counts(film: &Film) -> Vec<Count> {
    let text = |n: i64| if n == UNKNOWN { "\u{2013}".to_owned() } else { grouped(n as u64) };
    let row = |(name, pair): (&&'static str, &[i64])| Count {
        name,
        model: text(pair[0]),
        subject: text(pair[1]),
        differs: pair[0] != pair[1] && !pair.contains(&UNKNOWN),
    };
    let rows = if film.shows_inside { COUNTS.len() } else { COUNTS_OF_MODEL };
    COUNTS.iter().zip(film.state.counts.chunks_exact(2)).take(rows).map(row).collect()
}

/// What both say of one thing.
pub(super) struct Line {
    pub(super) what: &'static str,
    pub(super) model: String,
    pub(super) subject: String,
}

/// A block that an oracle named, or the block that the last call answered.
pub(super) struct Guilty {
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
    /// Runs of frames: first, and how many.
    pub(super) frames: Vec<(u32, u32)>,
    /// A run of pages of the window.
    pub(super) pages: Vec<(u32, u32)>,
}

/// The blocks that the oracle named.
pub(super) fn guilty(film: &Film, violation: &Violation) -> Vec<Guilty> {
    let state = &film.state;
    let one = |handle: &u64| match state.blocks.get(handle) {
        Some(block) => named(*handle, block, film),
        None => {
            let title = format!("Block {handle}: the model does not have it as live");
            Guilty { title, lines: Vec::new(), frames: Vec::new(), pages: Vec::new() }
        }
    };
    violation.blocks.iter().map(one).collect()
}

fn named(handle: u64, block: &BlockRecord, film: &Film) -> Guilty {
    let state = &film.state;
    let behind = frames_behind(state, block.pages);
    let seen = if block.pages.1 > 0 { &behind } else { &block.frames };
    let dash = || "\u{2013}".to_owned();
    let lines = vec![
        Line { what: "served by", model: block.tier.name().to_owned(), subject: owners(film, seen) },
        Line { what: "address", model: format!("{:#x}", block.addr), subject: window_text(state, block.pages) },
        Line {
            what: "bytes",
            model: format!("{} asked for, {} usable", grouped(block.requested as u64), grouped(block.usable as u64)),
            subject: dash(),
        },
        Line { what: "frames", model: runs_text(&block.frames), subject: runs_text(seen) },
        Line { what: "flags", model: Gfp::new(block.gfp).to_string(), subject: dash() },
        Line { what: "pageblocks", model: dash(), subject: types(film, seen) },
    ];
    Guilty {
        title: format!("Block {handle}"),
        lines,
        frames: block.frames.iter().chain(seen).copied().collect(),
        pages: window_cells(block.pages),
    }
}

/// The block that the last call before a violation answered.
pub(super) fn answer(film: &Film, story: &Story) -> Option<Guilty> {
    let (addr, usable) = story.answer?;
    let state = &film.state;
    let (frames, pages) = place(&film.geometry, state, addr, usable);
    let lines = vec![
        Line {
            what: "answer",
            model: who_is_there(state, addr, usable),
            subject: format!("{addr:#x}, {} usable bytes", grouped(usable as u64)),
        },
        Line { what: "frames", model: String::new(), subject: runs_text(&frames) },
        Line { what: "owner", model: String::new(), subject: owners(film, &frames) },
    ];
    let title = "What the last call answered".to_owned();
    Some(Guilty { title, lines, frames, pages: window_cells(pages) })
}

/// Tells whether the model has what the last call answered as a live block.
pub(super) fn is_followed(film: &Film, story: &Story) -> bool {
    let same = |(addr, usable)| film.state.blocks.values().any(|block| (block.addr, block.usable) == (addr, usable));
    story.answer.is_none_or(same)
}

/// Which live blocks have a byte of a range.
fn who_is_there(state: &State, addr: u64, bytes: usize) -> String {
    let end = |addr: u64, bytes: usize| addr.saturating_add(bytes.max(1) as u64);
    let shares = |block: &BlockRecord| addr < end(block.addr, block.usable) && block.addr < end(addr, bytes);
    let there: Vec<String> =
        state.blocks.iter().filter(|(_, block)| shares(block)).map(|(handle, _)| handle.to_string()).collect();
    if there.is_empty() { "no live block is there".to_owned() } else { format!("live block {}", there.join(", ")) }
}

/// The frames and the pages of the window under a range.
fn place(geometry: &Geometry, state: &State, addr: u64, bytes: usize) -> (Vec<(u32, u32)>, (u64, u64)) {
    let page = PAGE_SIZE as u64;
    let (base, inside) = if geometry.is_vmalloc_addr(VirtAddr::new(addr)) {
        (geometry.vmalloc_start.as_u64(), true)
    } else {
        (geometry.direct_map.as_u64(), false)
    };
    let first = addr.saturating_sub(base) / page;
    let end = addr.saturating_sub(base).saturating_add(bytes.max(1) as u64).div_ceil(page);
    if inside {
        let pages = (first, end - first);
        return (frames_behind(state, pages), pages);
    }
    let end = end.min(state.frames.len() as u64);
    (if first < end { vec![(first as u32, (end - first) as u32)] } else { Vec::new() }, (0, 0))
}

fn window_cells(pages: (u64, u64)) -> Vec<(u32, u32)> {
    if pages.1 > 0 { vec![(pages.0 as u32, pages.1 as u32)] } else { Vec::new() }
}

/// The frames to which the page tables lead from these pages.
fn frames_behind(state: &State, (first, count): (u64, u64)) -> Vec<(u32, u32)> {
    let end = first + count;
    let part = |(&start, leaf): (&u64, &crate::report::film::Leaf)| {
        let (from, to) = (first.max(start), end.min(start + leaf.0));
        (from < to).then(|| (leaf.1 + (from - start) as u32, (to - from) as u32))
    };
    state.leaves.range(..end).filter_map(part).collect()
}

fn runs_text(runs: &[(u32, u32)]) -> String {
    const MOST: usize = 12;
    let run = |&(first, n): &(u32, u32)| if n > 1 { format!("{first}..{}", first + n - 1) } else { first.to_string() };
    let more = if runs.len() > MOST { format!(" and {} more runs", runs.len() - MOST) } else { String::new() };
    let text = runs.iter().take(MOST).map(run).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none".to_owned() } else { text + &more }
}

/// How many of the frames have which owner, as the subject shows them.
fn owners(film: &Film, runs: &[(u32, u32)]) -> String {
    if !film.shows_inside {
        return "not shown".to_owned();
    }
    let state = &film.state;
    let mut counts: BTreeMap<i64, u64> = BTreeMap::new();
    for frame in runs.iter().flat_map(|&(first, n)| first..first + n) {
        *counts.entry(state.frames.get(frame as usize).copied().unwrap_or(0)).or_default() += 1;
    }
    let text = |(&code, n): (&i64, &u64)| {
        let cache = state.caches.get(&((code >> OWNER_BITS) as u64)).filter(|_| owner_of(code).symbol == 'S');
        format!("{n} {}{}", owner_of(code).words, cache.map_or(String::new(), |cache| format!(" of {}", cache.0)))
    };
    counts.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What the window shows at these pages, and behind them.
fn window_text(state: &State, (first, count): (u64, u64)) -> String {
    if count == 0 {
        return "direct map".to_owned();
    }
    let end = first + count + 1;
    let part = |(&start, area): (&u64, &crate::report::film::Area)| {
        let (from, to) = (first.max(start), end.min(start + area.0));
        (from < to).then(|| format!("{} {}", to - from, owner_of(area.1).words))
    };
    let text: Vec<String> = state.window.range(..end).filter_map(part).collect();
    format!(
        "pages {first} to {}: {}",
        first + count - 1,
        if text.is_empty() { "no area".to_owned() } else { text.join(", ") }
    )
}

/// The types of the pageblocks of these frames.
fn types(film: &Film, runs: &[(u32, u32)]) -> String {
    let order = film.geometry.pageblock_order.get();
    let code = |frame: u32| film.state.pageblocks.get((frame >> order) as usize).copied().unwrap_or(0);
    let mut letters: Vec<char> = runs
        .iter()
        .flat_map(|&(first, n)| first..first + n)
        .filter_map(|frame| TYPES.get(code(frame) as usize))
        .copied()
        .collect();
    letters.sort_unstable();
    letters.dedup();
    let letters: String = letters.into_iter().filter(|letter| *letter != '-').collect();
    if letters.is_empty() { "\u{2013}".to_owned() } else { format!("of type {letters}") }
}
