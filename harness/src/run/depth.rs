//! How deep traces go: how long they are, how much lives at once, how many states of free memory they see.

use super::{RunReport, Watch};
use crate::model::Model;
use crate::subject::{Subject, WhiteBox};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

/// Vectors are told apart up to this number.
const MOST_VECTORS: usize = 1 << 21;

/// Numbers by how often each was seen.
#[derive(Clone, Debug, Default)]
struct Spread(BTreeMap<u64, u64>);

impl Spread {
    fn add(&mut self, number: u64) {
        *self.0.entry(number).or_default() += 1;
    }

    fn most(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(&most, _)| most)
    }

    /// The lower one of the two in the middle.
    fn median(&self) -> u64 {
        let half = self.0.values().sum::<u64>().div_ceil(2);
        let mut seen = 0;
        for (&number, &count) in &self.0 {
            seen += count;
            if seen >= half {
                return number;
            }
        }
        0
    }
}

/// What runs come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Depth {
    ops: Spread,
    live: Spread,
    vectors: HashSet<u64>,
}

impl Depth {
    pub(crate) fn add(&mut self, report: &RunReport) {
        self.ops.add(report.calls);
        self.live.add(report.peak_live as u64);
    }

    pub(crate) fn row(&self) -> DepthRow {
        DepthRow {
            calls_median: self.ops.median(),
            calls_most: self.ops.most(),
            live_median: self.live.median(),
            live_most: self.live.most(),
            free_vectors: self.vectors.len() as u64,
        }
    }
}

impl Watch for Depth {
    fn look(&mut self, _: usize, _: &Model, subject: &dyn Subject) {
        if self.vectors.len() < MOST_VECTORS {
            self.vectors.extend(subject.white_box().map(free_vector));
        }
    }
}

/// How deep the traces of an engine went on a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DepthRow {
    /// Calls of the trace in the middle, macro operations counted by what they do.
    pub calls_median: u64,
    /// Calls of the longest.
    pub calls_most: u64,
    /// Blocks that were live at once in the trace in the middle.
    pub live_median: u64,
    /// The most blocks that were live at once.
    pub live_most: u64,
    /// Different vectors of the numbers of free blocks, by zone and order, between any two operations; counted up to two million.
    pub free_vectors: u64,
}

impl fmt::Display for DepthRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls_median, calls_most, live_median, live_most, free_vectors } = self;
        write!(f, "{calls_median}/{calls_most}/{live_median}/{live_most}/{free_vectors}")
    }
}

/// The text was not written by [`DepthRow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDepth;

impl FromStr for DepthRow {
    type Err = NoDepth;

    fn from_str(text: &str) -> Result<Self, NoDepth> {
        let numbers: Result<Vec<u64>, _> = text.split('/').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[calls_median, calls_most, live_median, live_most, free_vectors]) => {
                Ok(Self { calls_median, calls_most, live_median, live_most, free_vectors })
            }
            _ => Err(NoDepth),
        }
    }
}

/// A number for how many free blocks each zone has of each order; different for different ones but for one in 2^64.
fn free_vector(inside: &dyn WhiteBox) -> u64 {
    let mut hasher = DefaultHasher::new();
    for zone in inside.buddyinfo().zones() {
        zone.free.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{RunOptions, Runner};
    use crate::subjects::SubjectKind;
    use crate::trace::{Gfp, Op, Trace};

    fn report(calls: u64) -> RunReport {
        RunReport { calls, peak_live: 2 * calls as usize, ..RunReport::default() }
    }

    #[test]
    fn the_middle_the_most_and_the_different_are_counted() {
        let mut depth = Depth::default();
        for calls in [5, 9, 1] {
            depth.add(&report(calls));
        }
        let row = depth.row();
        assert_eq!((row.calls_median, row.calls_most, row.live_median, row.live_most), (5, 9, 10, 18));
        assert_eq!(row.to_string().parse(), Ok(row));
        assert_eq!("1/2/3".parse::<DepthRow>(), Err(NoDepth));
        assert_eq!(Depth::default().row(), DepthRow::default());
    }
    #[test]
    fn vectors_of_free_blocks_are_counted_once() {
        let trace = Trace::new(vec![Op::AllocPages { order: 3, gfp: Gfp::KERNEL }; 5]);
        let mut depth = Depth::default();
        let mut runner = Runner::new();
        let mut run = |depth: &mut Depth| {
            runner.run_watched(&trace, SubjectKind::KMEM, &RunOptions::default(), depth);
            depth.row().free_vectors
        };
        let once = run(&mut depth);
        assert!((3..=7).contains(&once), "{once}");
        assert_eq!(run(&mut depth), once);
    }
}
