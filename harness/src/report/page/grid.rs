//! A map of frames, or of pages of the window: rows of cells, a letter and a colour with a pattern in each.

use crate::report::film::{Area, Film, ROW, State};
use crate::report::owners::{owner_of, window};
use askama::Template;
use kmem::ZoneSpec;
use std::fmt::Write as _;

/// A cell's side in units of the picture.
const CELL: u32 = 13;
/// Room for the numbers to the left.
const LEFT: u32 = 64;
/// Room for the types of pageblocks to the right.
const RIGHT: u32 = 130;
/// A heading, or a line that stands for rows that are not drawn.
const WORDS: u32 = 20;
/// The most rows that are drawn.
const MOST_ROWS: usize = 1200;
/// The most pageblocks in a row whose types are written beside it.
const MOST_TYPES: u32 = 16;
/// The letters of migrate types, from 1: unmovable, movable, reclaimable, high atomic, CMA, isolated.
pub(super) const TYPES: [char; 7] = ['-', 'U', 'M', 'R', 'H', 'C', 'I'];

/// Cells next to each other that are alike.
struct Run {
    x: u32,
    width: u32,
    style: &'static str,
}

/// A row of cells.
struct Row {
    y: u32,
    /// Its first cell and the one after its last, by number.
    from: u32,
    to: u32,
    x: u32,
    runs: Vec<Run>,
    letters: String,
    /// Where the letters are.
    middles: String,
    /// The pageblocks whose types are beside it: the first, and how many.
    pageblocks: (u32, u32),
    types: String,
}

enum Line {
    Words { y: u32, text: String },
    Row(Row),
}

/// A frame around cells that must be noticed.
struct Mark {
    x: u32,
    y: u32,
    width: u32,
    style: &'static str,
}

/// A map.
#[derive(Template)]
#[template(path = "grid.svg")]
pub(super) struct Grid {
    id: &'static str,
    /// What it shows, for those who cannot see it.
    title: String,
    width: u32,
    height: u32,
    lines: Vec<Line>,
    /// Where pageblocks begin, as a path.
    borders: String,
    marks: Vec<Mark>,
}

impl Grid {
    fn new(id: &'static str, title: String) -> Self {
        let width = LEFT + ROW * CELL + RIGHT;
        Self { id, title, width, height: 4, lines: Vec::new(), borders: String::new(), marks: Vec::new() }
    }

    /// Physical memory.
    pub(super) fn of_frames(film: &Film) -> Self {
        let mut grid = Self::new("memory", format!("{} frames by owner", film.geometry.frames()));
        for zone in film.geometry.zones() {
            grid.add_zone(film, zone);
        }
        grid.height += 4;
        grid
    }

    fn add_zone(&mut self, film: &Film, zone: &ZoneSpec) {
        let start = zone.start.as_u32();
        let end = start + zone.frames.get() as u32;
        let (node, kind) = (zone.node, zone.kind.name());
        self.add_words(format!("node {node}, zone {kind}: frames {start} to {}", end - 1));
        let mut first = start;
        while first < end {
            let next = end.min((first / ROW + 1) * ROW);
            if self.draws(film.busy_frames.contains(&(first / ROW)) || first == start) {
                self.add_frames(film, first, next, start);
                first = next;
                continue;
            }
            let code = film.state.frames.get(first as usize).copied().unwrap_or(0);
            let alike = |row: &u32| {
                !film.busy_frames.contains(row) && film.state.frames.get((row * ROW) as usize) == Some(&code)
            };
            let rows = (first / ROW..end.div_ceil(ROW)).take_while(alike).count().max(1) as u32;
            let last = end.min((first / ROW + rows) * ROW);
            self.add_words(format!("frames {first} to {}: {} throughout", last - 1, owner_of(code).words));
            first = last;
        }
    }

    /// Whether a row is drawn: one that matters, while there is room.
    fn draws(&self, matters: bool) -> bool {
        matters && self.lines.len() < MOST_ROWS
    }

    fn add_words(&mut self, text: String) {
        self.lines.push(Line::Words { y: self.height + 14, text });
        self.height += WORDS;
    }

    fn add_frames(&mut self, film: &Film, from: u32, to: u32, zone_start: u32) {
        let codes = film.state.frames.get(from as usize..to as usize).unwrap_or_default();
        if !film.shows_inside {
            return self.add_row(from, to, codes, (0, 0), &film.state);
        }
        let order = film.geometry.pageblock_order.get();
        let starts_here = |n: &u32| n << order >= from || (from == zone_start && *n == from >> order);
        let first = (from >> order..=(to - 1) >> order).find(starts_here);
        let count = first.map_or(0, |first| ((to - 1) >> order) - first + 1);
        let pageblocks = (first.unwrap_or(0), if count <= MOST_TYPES { count } else { 0 });
        for page in (from..to).filter(|page| page.is_multiple_of(1 << order)) {
            self.add_border(page, from, to, order);
        }
        self.add_row(from, to, codes, pageblocks, &film.state);
    }

    /// The left edge of a pageblock, and its upper one if it fills rows.
    fn add_border(&mut self, page: u32, from: u32, to: u32, order: u8) {
        let (x, y) = (LEFT + page % ROW * CELL, self.height);
        let edge = ((1_u32 << order).min(to - from)) * CELL;
        // Writing to a string cannot fail.
        let _ = write!(self.borders, "M{x} {}V{y}h{edge}", y + CELL);
    }

    fn add_row(&mut self, from: u32, to: u32, codes: &[i64], pageblocks: (u32, u32), state: &State) {
        let (x, y) = (LEFT + from % ROW * CELL, self.height);
        let letters = codes.iter().map(|&code| owner_of(code).symbol);
        let letters = letters.map(|letter| if letter == ' ' { '\u{a0}' } else { letter }).collect();
        let middles: Vec<String> = (0..to - from).map(|n| (x + n * CELL + CELL / 2).to_string()).collect();
        let types = (0..pageblocks.1).map(|n| type_letter(state, pageblocks.0 + n)).collect();
        let row = Row { y, from, to, x, runs: runs(x, codes), letters, middles: middles.join(" "), pageblocks, types };
        self.lines.push(Line::Row(row));
        self.height += CELL;
    }

    /// The vmalloc window, as far as anybody ever had it.
    pub(super) fn of_window(film: &Film) -> Self {
        let pages = film.geometry.vmalloc_pages.get();
        let mut grid = Self::new("window", format!("the vmalloc window of {pages} pages by use"));
        let mut next = 0;
        for &row in &film.busy_pages {
            if !grid.draws(true) {
                break;
            }
            grid.add_unused(next, row * ROW);
            next = ((row + 1) * ROW).min(pages as u32);
            let codes: Vec<i64> = (row * ROW..next).map(|page| code_at(&film.state, page)).collect();
            grid.add_row(row * ROW, next, &codes, (0, 0), &film.state);
        }
        grid.add_unused(next, pages as u32);
        grid.height += 4;
        grid
    }

    fn add_unused(&mut self, from: u32, to: u32) {
        if from < to {
            self.add_words(format!("pages {from} to {}: not drawn, never used", to - 1));
        }
    }

    /// Puts frames around these cells.
    pub(super) fn mark(&mut self, cells: impl Iterator<Item = (u32, u32)>, style: &'static str) {
        for (first, count) in cells {
            for line in &self.lines {
                let Line::Row(row) = line else { continue };
                let (from, to) = (first.max(row.from), first.saturating_add(count).min(row.to));
                if from < to {
                    let (x, width) = (row.x + (from - row.from) * CELL, (to - from) * CELL);
                    self.marks.push(Mark { x, y: row.y, width, style });
                }
            }
        }
    }

    /// Width and height of the picture.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

/// The letter of a pageblock's type.
fn type_letter(state: &State, pageblock: u32) -> char {
    let code = state.pageblocks.get(pageblock as usize).copied().unwrap_or(0);
    TYPES.get(code as usize).copied().unwrap_or('?')
}

/// The owner of a page of the window.
fn code_at(state: &State, page: u32) -> i64 {
    let run = state.window.range(..=u64::from(page)).next_back();
    match run {
        Some((first, &Area(pages, code))) if u64::from(page) < first + pages => code,
        _ => window::NOBODY,
    }
}

fn runs(x: u32, codes: &[i64]) -> Vec<Run> {
    let mut at = x;
    let runs = codes.chunk_by(|a, b| owner_of(*a).style == owner_of(*b).style);
    runs.map(|run| {
        let width = run.len() as u32 * CELL;
        at += width;
        Run { x: at - width, width, style: owner_of(run[0]).style }
    })
    .collect()
}
