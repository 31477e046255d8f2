//! A run as a film: memory after each operation, each look as the differences from the one before.
//!
//! The run is repeated until the film fits: each time looks are taken less often, except at the beginning, at the call
//! that matters, and at the end.

mod delta;
mod state;

pub(super) use delta::Delta;
pub(super) use state::{Area, BlockRecord, COUNTS, COUNTS_OF_MODEL, Leaf, State, UNKNOWN};

use crate::model::Model;
use crate::run::{RunOptions, Runner, Watch};
use crate::subject::Subject;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use kmem::{Geometry, NR_PAGE_ORDERS};
use std::collections::BTreeSet;

/// Bytes that the differences may take as text; past it looks are taken less often.
pub(super) const MOST_BYTES: usize = 2 << 20;
/// Frames that are looked at in all, one frame at one moment counted once.
const MOST_FRAMES_SEEN: usize = 1 << 24;
/// Looks that are taken, the last ones apart.
const MOST_LOOKS: usize = 2500;
/// Frames, or pages of the window, in a row of a map.
pub(super) const ROW: u32 = 64;

/// One look.
pub(super) struct Look {
    /// Operations that were executed before it; one more than the trace has: everything was freed.
    pub(super) done: usize,
    /// The differences from the look before, as JSON.
    pub(super) delta: String,
    /// Free blocks, as in [`State::free`].
    pub(super) free: Vec<i64>,
}

/// How often looks are taken.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Every how many operations.
    stride: usize,
    /// So many of the last operations have a look each.
    last: usize,
    /// Operations that the run executes.
    end: usize,
    /// The operation after which the state is to be shown.
    focus: usize,
}

impl Pace {
    fn first(trace: &Trace, end: usize, focus: usize) -> Self {
        let seen = (end * trace.geometry.frames as usize).div_ceil(MOST_FRAMES_SEEN);
        let stride = seen.max(end.div_ceil(MOST_LOOKS)).max(1);
        Self { stride, last: 64, end, focus }
    }

    /// After a film that was full after so many operations.
    fn slower(self, reached: usize) -> Self {
        let times = (self.end / reached.max(1)).clamp(2, 64);
        Self { stride: self.stride * times, last: (self.last / 2).max(1), ..self }
    }

    /// Whether every look that can be left out is.
    fn is_slowest(&self) -> bool {
        self.stride > self.end
    }

    fn wants(&self, done: usize) -> bool {
        done.is_multiple_of(self.stride) || done + self.last > self.end || done == self.focus
    }
}

/// What a run looked like.
pub(super) struct Film {
    /// The machine.
    pub(super) geometry: Geometry,
    /// All looks, the first one before the first operation.
    pub(super) looks: Vec<Look>,
    /// Which look is the one to show first.
    pub(super) shown: usize,
    /// Memory at that look.
    pub(super) state: State,
    /// Rows of frames that were not all alike at first, or did not stay as they were.
    pub(super) busy_frames: BTreeSet<u32>,
    /// Rows of the window that belonged to somebody.
    pub(super) busy_pages: BTreeSet<u32>,
    /// Every owner that a frame or a page ever had, by number.
    pub(super) owners: BTreeSet<i64>,
    /// Every how many operations a look was taken, the last ones apart.
    pub(super) stride: usize,
    /// How many of the last operations have a look each.
    pub(super) last: usize,
    /// Whether the subject shows its inside.
    pub(super) shows_inside: bool,
}

impl Film {
    /// Films the first `end` operations of a trace, which is where its run ends, and shows the state after `focus` of them
    /// first. `None` if there is nothing to see: no machine could be made.
    pub(super) fn of(trace: &Trace, kind: SubjectKind, end: usize, focus: usize) -> Option<Self> {
        let mut pace = Pace::first(trace, end, focus);
        loop {
            let mut camera = Camera::new(trace, pace);
            Runner::new().run_watched(trace, kind, &RunOptions::default(), &mut camera);
            if camera.bytes <= MOST_BYTES || pace.is_slowest() {
                return camera.finish();
            }
            pace = pace.slower(camera.reached);
        }
    }
}

/// Takes the looks of one run.
struct Camera {
    pace: Pace,
    geometry: Geometry,
    now: State,
    bytes: usize,
    /// Operations before the last look.
    reached: usize,
    film: Option<Film>,
}

impl Camera {
    fn new(trace: &Trace, pace: Pace) -> Self {
        let geometry = trace.geometry.to_geometry();
        let frames = geometry.frames() as usize;
        let pageblocks = frames.div_ceil(1 << geometry.pageblock_order.get());
        let now = State::blank(frames, pageblocks, geometry.zones().len() * NR_PAGE_ORDERS);
        Self { pace, geometry, now, bytes: 0, reached: 0, film: None }
    }

    /// The film; a run that ended before the call that matters is shown as it ended.
    fn finish(self) -> Option<Film> {
        let mut film = self.film.filter(|film| !film.looks.is_empty())?;
        if film.looks.get(film.shown).is_none_or(|look| look.done != self.pace.focus) {
            film.shown = film.looks.len() - 1;
            film.state = self.now;
        }
        Some(film)
    }

    fn start(&self, subject: &dyn Subject) -> Film {
        Film {
            geometry: self.geometry.clone(),
            looks: Vec::new(),
            shown: 0,
            state: State::default(),
            busy_frames: BTreeSet::new(),
            busy_pages: BTreeSet::new(),
            owners: BTreeSet::new(),
            stride: self.pace.stride,
            last: self.pace.last,
            shows_inside: subject.white_box().is_some(),
        }
    }
}

impl Watch for Camera {
    fn look(&mut self, done: usize, model: &Model, subject: &dyn Subject) {
        let is_full = self.bytes > MOST_BYTES && !self.pace.is_slowest();
        if is_full || !self.pace.wants(done) {
            return;
        }
        let mut film = self.film.take().unwrap_or_else(|| self.start(subject));
        let next = self.now.read(model, subject);
        let delta = Delta::between(&self.now, &next);
        film.note_busy_rows(&self.now, &next);
        film.owners.extend(delta.owners());
        // Numbers and texts always have a form in JSON.
        let delta = serde_json::to_string(&delta).unwrap_or_else(|_| "{}".to_owned());
        self.bytes += delta.len();
        self.reached = done;
        if done == self.pace.focus {
            film.shown = film.looks.len();
            film.state.clone_from(&next);
        }
        film.looks.push(Look { done, delta, free: next.free.clone() });
        self.now = next;
        self.film = Some(film);
    }
}

impl Film {
    fn note_busy_rows(&mut self, from: &State, to: &State) {
        let is_first = self.looks.is_empty();
        let rows = from.frames.chunks(ROW as usize).zip(to.frames.chunks(ROW as usize));
        let is_mixed = |row: &[i64]| row.iter().any(|code| *code != row[0]);
        let busy = (0..).zip(rows).filter(|(_, (old, new))| if is_first { is_mixed(new) } else { old != new });
        self.busy_frames.extend(busy.map(|(n, _)| n));
        for (&first, &Area(pages, _)) in &to.window {
            let row = |page: u64| (page / u64::from(ROW)) as u32;
            self.busy_pages.extend(row(first)..=row(first + pages.max(1) - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{GeometrySpec, Gfp, Op};

    fn trace(frames: u32, ops: Vec<Op>) -> Trace {
        let geometry = GeometrySpec { frames, ..GeometrySpec::default() }.normalized();
        Trace { geometry, ops, ..Trace::default() }
    }

    fn film(trace: &Trace) -> Film {
        Film::of(trace, SubjectKind::KMEM, trace.ops.len(), trace.ops.len()).unwrap()
    }

    /// What the deltas say, read back from their text as the page reads it.
    fn letters_at(film: &Film, look: usize) -> Vec<i64> {
        let mut frames = vec![0; film.geometry.frames() as usize];
        for look in &film.looks[..=look] {
            let delta: serde_json::Value = serde_json::from_str(&look.delta).unwrap();
            let runs: Vec<i64> =
                delta["f"].as_array().map_or(Vec::new(), |f| f.iter().flat_map(|n| n.as_i64()).collect());
            let mut at = 0;
            for run in runs.chunks(3) {
                at += run[0] as usize;
                frames[at..at + run[1] as usize].fill(run[2]);
                at += run[1] as usize;
            }
        }
        frames
    }

    #[test]
    fn there_is_a_look_for_each_operation_and_one_at_each_end() {
        let ops = vec![Op::Vmalloc { size: 9000, gfp: Gfp::KERNEL }, Op::Vfree { pick: 0 }, Op::Purge];
        let film = film(&trace(1024, ops));
        assert_eq!(film.looks.iter().map(|look| look.done).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!((film.shown, film.stride), (3, 1));
        assert_eq!(letters_at(&film, film.shown), film.state.frames);
        let frames_of_area =
            letters_at(&film, 1).iter().filter(|code| **code == super::super::owners::frame_code('V')).count();
        assert_eq!(frames_of_area, 3);
        assert!(film.busy_pages.contains(&0) && film.busy_pages.len() == 1);
    }

    #[test]
    fn what_does_not_fit_is_looked_at_less_often_but_the_end_is_there() {
        let turn = [Op::Checkerboard { order: 0, spare: 0 }, Op::FreeEvery { step: 1, phase: 0 }];
        let film = film(&trace(4096, turn.into_iter().cycle().take(90).collect()));
        assert!(film.stride > 1 && film.looks.len() > 2, "{} looks", film.looks.len());
        assert!(film.looks.iter().map(|look| look.delta.len()).sum::<usize>() <= MOST_BYTES);
        assert_eq!(film.looks.iter().map(|look| look.done).rev().take(2).collect::<Vec<_>>(), [91, 90]);
        assert_eq!(letters_at(&film, film.shown), film.state.frames);
    }

    #[test]
    fn no_machine_no_film() {
        let kind = SubjectKind::new("never", |_, _, _| Err(kmem::GeometryError::Cpus(0)));
        assert!(Film::of(&trace(64, Vec::new()), kind, 0, 0).is_none());
    }
}
