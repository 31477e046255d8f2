//! One page for a browser that shows a run: needs nothing but itself, and says the same without scripts at the state that
//! matters most.
//!
//! ```text
//! Story: calls, answers, why ─┐
//! Film: looks as deltas ──────┼─► report.html: pictures and tables of one state, drawn here
//! violation ──────────────────┘             └─► report.js draws the same of any other state
//! ```

mod chart;
mod compare;
mod grid;
mod tables;
#[cfg(test)]
mod tests;

use super::film::{Film, MOST_BYTES};
use super::owners::{OWNERS, Owner};
use super::story::Story;
use super::table::grouped;
use crate::oracle::Violation;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use askama::Template;
use chart::Chart;
use compare::{Count, Guilty};
use grid::Grid;
use kmem::NR_PAGE_ORDERS;
use serde_json::json;
use std::fmt;
use std::ops::Range;
use tables::{LeafRow, ZoneRow};

/// Why there is no page.
#[derive(Debug)]
pub struct PageError(askama::Error);

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the page cannot be made: {}", self.0)
    }
}

impl std::error::Error for PageError {}

impl From<PageError> for std::io::Error {
    fn from(error: PageError) -> Self {
        Self::other(error)
    }
}

/// A call of the list.
struct CallRow {
    op: usize,
    call: String,
    tier: &'static str,
    answer: String,
    refused: bool,
    why: String,
}

/// What a run left to be looked at.
struct Pictures {
    film: Film,
    memory: Grid,
    window: Grid,
    guilty: Vec<Guilty>,
    /// Whether the model has not followed the last answer.
    stopped: bool,
}

impl Pictures {
    fn of(trace: &Trace, kind: SubjectKind, story: &Story, violation: Option<&Violation>) -> Option<Self> {
        let film = Film::of(trace, kind, story.report.ops, story.focus)?;
        let (mut memory, mut window) = (Grid::of_frames(&film), Grid::of_window(&film));
        let mut guilty = violation.map_or(Vec::new(), |violation| compare::guilty(&film, violation));
        for block in &guilty {
            memory.mark(block.frames.iter().copied(), "guilty");
            window.mark(block.pages.iter().copied(), "guilty");
        }
        if let Some(answer) = compare::answer(&film, story) {
            memory.mark(answer.frames.iter().copied(), "answer");
            window.mark(answer.pages.iter().copied(), "answer");
            guilty.push(answer);
        }
        let stopped = !compare::is_followed(&film, story);
        Some(Self { film, memory, window, guilty, stopped })
    }
}

/// The page.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: String,
    subject: &'static str,
    violation: Option<&'a Violation>,
    unbootable: Option<String>,
    machine: String,
    trace: String,
    ops: usize,
    calls: Vec<CallRow>,
    left_out: usize,
    pictures: Option<Shown<'a>>,
    css: &'static str,
    map_css: &'static str,
    js: &'static str,
}

/// The part of the page that needs a film.
struct Shown<'a> {
    film: &'a Film,
    memory: &'a Grid,
    window: &'a Grid,
    chart: Chart,
    now: String,
    kept: String,
    frame_owners: Vec<&'static Owner>,
    page_owners: Vec<&'static Owner>,
    orders: Range<usize>,
    zones: Vec<ZoneRow>,
    counts: Vec<Count>,
    guilty: &'a [Guilty],
    /// Whether the model has not followed the last answer.
    stopped: bool,
    leaves_in_words: String,
    leaves: Vec<LeafRow>,
    more_leaves: usize,
    data: String,
}

/// Heap map alone, as a picture of its own.
#[derive(Template)]
#[template(path = "picture.svg")]
struct Picture<'a> {
    memory: &'a Grid,
    title: String,
    width: u32,
    height: u32,
    owners: Vec<(u32, u32, &'static Owner)>,
    legend_y: u32,
    map_css: &'static str,
}

const CSS: &str = include_str!("../../../templates/report.css");
const MAP_CSS: &str = include_str!("../../../templates/map.css");
const JS: &str = concat!(
    include_str!("../../../templates/state.js"),
    include_str!("../../../templates/draw.js"),
    include_str!("../../../templates/report.js"),
);

/// Makes the page of a trace. The story must be that of the trace on this subject; a violation that somebody else found is
/// shown in the place of the story's own.
///
/// # Errors
///
/// The template cannot be filled in, which no trace should bring about.
pub fn html(trace: &Trace, kind: SubjectKind, story: &Story, found: Option<&Violation>) -> Result<String, PageError> {
    let violation = found.or(story.report.violation.as_ref());
    let pictures = Pictures::of(trace, kind, story, violation);
    let (rows, left_out) = story.rows();
    let page = Page {
        title: violation
            .map_or_else(|| "hammer: every oracle is content".to_owned(), |v| format!("hammer: {}", v.oracle)),
        subject: kind.name(),
        violation,
        unbootable: story.report.unbootable.map(|error| error.to_string()),
        machine: machine(trace),
        trace: trace.to_text(),
        ops: trace.ops.len(),
        calls: rows.iter().map(call_row).collect(),
        left_out,
        pictures: pictures.as_ref().map(|pictures| shown(pictures, trace, violation)),
        css: CSS,
        map_css: MAP_CSS,
        js: JS,
    };
    page.render().map_err(PageError)
}

/// Draws memory at the state that matters most: after the violation, else after the call that explains most.
///
/// # Errors
///
/// The template cannot be filled in, which no trace should bring about.
pub fn svg(trace: &Trace, kind: SubjectKind, story: &Story) -> Result<String, PageError> {
    const COLUMNS: u32 = 3;
    let Some(pictures) = Pictures::of(trace, kind, story, story.report.violation.as_ref()) else {
        return Ok("<svg xmlns=\"http://www.w3.org/2000/svg\"/>\n".to_owned());
    };
    let (width, grid_height) = pictures.memory.size();
    let owners = seen(&pictures.film, 0..16);
    let place = |(n, owner)| (4 + n as u32 % COLUMNS * (width / COLUMNS), n as u32 / COLUMNS * 20, owner);
    let rows = (owners.len() as u32).div_ceil(COLUMNS);
    let picture = Picture {
        memory: &pictures.memory,
        title: at_what(&pictures.film, trace, story.report.violation.as_ref()),
        width,
        height: grid_height + 40 + rows * 20,
        owners: owners.into_iter().enumerate().map(place).collect(),
        legend_y: grid_height + 30,
        map_css: MAP_CSS,
    };
    picture.render().map_err(PageError)
}

fn call_row(row: &super::story::Row) -> CallRow {
    let (call, why) = (row.call(), row.why());
    CallRow { op: row.op, call, tier: row.tier, answer: row.answer.clone(), refused: !row.granted, why }
}

fn machine(trace: &Trace) -> String {
    let spec = &trace.geometry;
    format!(
        "Frames of 4 KiB: {}; nodes: {}; CPUs: {}; order of a pageblock: {}; pages of the vmalloc window: {}",
        spec.frames, spec.nodes, spec.cpus, spec.pageblock_order, spec.vmalloc_pages
    )
}

/// The owners with these numbers that somebody was, in order.
fn seen(film: &Film, numbers: Range<i64>) -> Vec<&'static Owner> {
    let visible = |owner: &&Owner| owner.symbol != ' ';
    film.owners.range(numbers).filter_map(|&n| OWNERS.get(n as usize)).filter(visible).collect()
}

fn shown<'a>(pictures: &'a Pictures, trace: &Trace, violation: Option<&Violation>) -> Shown<'a> {
    let Pictures { film, memory, window, guilty, stopped } = pictures;
    let (leaves, more_leaves) = tables::leaves(&film.geometry, &film.state);
    Shown {
        film,
        memory,
        window,
        chart: Chart::of(film),
        now: at_what(film, trace, violation),
        kept: kept(film),
        frame_owners: seen(film, 0..16),
        page_owners: seen(film, 16..OWNERS.len() as i64),
        orders: 0..NR_PAGE_ORDERS,
        zones: tables::zones(film),
        counts: compare::counts(film),
        guilty,
        stopped: *stopped,
        leaves_in_words: tables::leaves_in_words(&film.state),
        leaves,
        more_leaves,
        data: data(film, trace, guilty, violation),
    }
}

/// Where a look is, in words.
fn moment(trace: &Trace, done: usize) -> String {
    match done.checked_sub(1).map(|op| trace.ops.get(op)) {
        None => "before the first operation".to_owned(),
        Some(None) => "after everything was freed".to_owned(),
        Some(Some(op)) => format!("after operation {}: {}", done - 1, op.to_text()),
    }
}

/// The state that is shown first, in words.
fn at_what(film: &Film, trace: &Trace, violation: Option<&Violation>) -> String {
    let done = film.looks.get(film.shown).map_or(0, |look| look.done);
    let why = if violation.is_some() { " (the violation)" } else { "" };
    moment(trace, done) + why
}

/// Which states the page has.
fn kept(film: &Film) -> String {
    if film.stride == 1 {
        return "The page has the state after each operation.".to_owned();
    }
    let (stride, last) = (film.stride, film.last);
    let limit = grouped(MOST_BYTES as u64);
    format!(
        "The page has the state after one operation of {stride}, and after each of the last {last}: all states would take \
         more than {limit} bytes, or too long to look at."
    )
}

/// What the script reads. No `<` is left in it, so that no text in it can end the element that it is in.
fn data(film: &Film, trace: &Trace, guilty: &[Guilty], violation: Option<&Violation>) -> String {
    let owners: Vec<_> = OWNERS.iter().map(|owner| (owner.symbol, owner.style, owner.words)).collect();
    let blocks = violation.map_or(&[][..], |violation| &violation.blocks);
    let answer = guilty.get(blocks.len()).map(|answer| (&answer.frames, &answer.pages));
    let zone = |zone: &kmem::ZoneSpec| (zone.node.get(), zone.kind.name(), zone.start.as_u32(), zone.frames.get());
    let head = json!({
        "frames": film.state.frames.len(), "pageblocks": film.state.pageblocks.len(), "lists": film.state.free.len(),
        "counts": film.state.counts.len(), "order": film.geometry.pageblock_order.get(), "owners": owners,
        "types": grid::TYPES, "zones": film.geometry.zones().iter().map(zone).collect::<Vec<_>>(),
        "start": format!("{:#x}", film.geometry.vmalloc_start.as_u64()), "runs": tables::MOST_RUNS,
        "shown": film.shown, "inside": film.shows_inside, "failed": violation.is_some(), "guilty": blocks, "answer": answer,
    });
    let looks = film.looks.iter().map(|look| {
        // A text always has a form in JSON.
        let text = serde_json::to_string(&moment(trace, look.done)).unwrap_or_default();
        format!("[{},{text},{}]", look.done, look.delta)
    });
    let looks = looks.collect::<Vec<_>>().join(",\n");
    format!("{{\"head\":{head},\n\"looks\":[{looks}]}}").replace('<', "\\u003c")
}
