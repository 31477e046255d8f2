//! Free memory over time: what is free in blocks of each order, one above the other.

use crate::report::film::{Film, Look};
use askama::Template;
use kmem::NR_PAGE_ORDERS;
use std::fmt::Write as _;

/// The area of the curves: left, top, width, height.
const AREA: (u32, u32, u32, u32) = (64, 8, 720, 150);
/// The most steps that are drawn.
const MOST_STEPS: usize = 360;
/// How high a band must be at the right edge to have its order written beside it.
const LEGIBLE: f64 = 11.0;

struct Band {
    order: usize,
    points: String,
    /// Where its name goes, if there is room.
    label_y: Option<String>,
}

/// The chart.
#[derive(Template)]
#[template(path = "chart.svg")]
pub(super) struct Chart {
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    /// Pages at the top, and how many operations the width is.
    pages: u64,
    steps: usize,
    /// Where the shown state is.
    now: String,
    bands: Vec<Band>,
}

impl Chart {
    pub(super) fn of(film: &Film) -> Self {
        let (left, top, width, height) = AREA;
        // Each look lasts until the next one, the last one as long as an operation.
        let steps = film.looks.last().map_or(0, |look| look.done) + 1;
        let pages = film.geometry.managed().get().max(1);
        let looks = sample(&film.looks);
        let mut below = vec![0; looks.len()];
        let bands = (0..NR_PAGE_ORDERS).rev().filter_map(|order| band(order, &looks, &mut below, steps, pages));
        let now = film.looks.get(film.shown).map_or(0, |look| look.done);
        Self {
            left,
            top,
            right: left + width,
            bottom: top + height,
            pages,
            steps,
            bands: bands.collect(),
            now: x_of(now as f64 + 0.5, steps),
        }
    }
}

/// Looks that are far enough apart to be seen, the last one among them.
fn sample(looks: &[Look]) -> Vec<&Look> {
    let every = looks.len().div_ceil(MOST_STEPS).max(1);
    looks.iter().rev().step_by(every).collect::<Vec<_>>().into_iter().rev().collect()
}

fn x_of(done: f64, steps: usize) -> String {
    let (left, _, width, _) = AREA;
    format!("{:.1}", f64::from(left) + f64::from(width) * done / steps as f64)
}

fn y_of(free: i64, pages: u64) -> f64 {
    let (_, top, _, height) = AREA;
    f64::from(top + height) - f64::from(height) * free as f64 / pages as f64
}

/// The band of an order on top of those of larger ones, whose pages are in `below`; `None` if it is empty all the time.
fn band(order: usize, looks: &[&Look], below: &mut [i64], steps: usize, pages: u64) -> Option<Band> {
    let own = |look: &Look| look.free.iter().skip(order).step_by(NR_PAGE_ORDERS).sum::<i64>() << order;
    if looks.iter().all(|look| own(look) == 0) {
        return None;
    }
    let (mut upper, mut lower) = (String::new(), Vec::new());
    let mut label_y = None;
    for (n, (look, below)) in looks.iter().zip(below).enumerate() {
        let (start, end) = (look.done, looks.get(n + 1).map_or(steps, |next| next.done));
        let (bottom, top) = (y_of(*below, pages), y_of(*below + own(look), pages));
        *below += own(look);
        let (start, end) = (x_of(start as f64, steps), x_of(end as f64, steps));
        // Writing to a string cannot fail.
        let _ = write!(upper, "{start},{top:.1} {end},{top:.1} ");
        lower.push(format!("{end},{bottom:.1} {start},{bottom:.1}"));
        label_y = (bottom - top >= LEGIBLE).then(|| format!("{:.1}", (bottom + top) / 2.0 + 4.0));
    }
    lower.reverse();
    Some(Band { order, points: upper + &lower.join(" "), label_y })
}
