//! Times to detection where some runs ended without one.
//!
//! A run that found nothing is *censored*: it says that the bug takes longer, not how long. The product-limit estimator of Kaplan
//! and Meier uses that; a mean of the runs that did find something would not. Intervals are percentiles of bootstrap samples, in
//! which bugs are drawn anew and then the runs of each, since runs of one bug are more alike than bugs are.

use crate::generate::TraceRng;
use rand::RngExt;

/// One run: how long it took, and whether it ended with a detection.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trial {
    /// Until the detection, or in all.
    pub time: f64,
    /// Whether something was detected.
    pub detected: bool,
}

/// How large a part of the runs is still without a detection after a time.
///
/// S1: the times ascend, the parts descend, from 1 on.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve(Vec<(f64, f64)>);

impl Curve {
    /// Estimates the curve of these runs.
    pub fn of(trials: &[Trial]) -> Self {
        let mut trials = trials.to_vec();
        // At one time, detections come before the end of runs without one.
        trials.sort_by(|a, b| a.time.total_cmp(&b.time).then(b.detected.cmp(&a.detected)));
        let (mut steps, mut part, mut at_risk) = (Vec::new(), 1.0, trials.len());
        for same in trials.chunk_by(|a, b| a.time == b.time) {
            let detected = same.iter().filter(|trial| trial.detected).count();
            if let (Some(first), 1..) = (same.first(), detected) {
                part *= 1.0 - detected as f64 / at_risk as f64;
                steps.push((first.time, part));
            }
            at_risk -= same.len();
        }
        Self(steps)
    }

    /// The part that is left after a time.
    pub fn at(&self, time: f64) -> f64 {
        self.0.iter().rev().find(|(step, _)| *step <= time).map_or(1.0, |(_, part)| *part)
    }

    /// When half is left; infinite if that is never so.
    pub fn median(&self) -> f64 {
        // Products of fractions miss a half by a rounding.
        self.0.iter().find(|(_, part)| *part <= 0.5 + 1e-9).map_or(f64::INFINITY, |(time, _)| *time)
    }

    /// The mean time, if everything is over at `horizon`: the area below the curve.
    pub fn restricted_mean(&self, horizon: f64) -> f64 {
        let (mut area, mut from, mut part) = (0.0, 0.0, 1.0);
        for &(time, next) in self.0.iter().take_while(|(time, _)| *time < horizon) {
            area += (time - from) * part;
            (from, part) = (time, next);
        }
        area + (horizon - from) * part
    }
}

/// An estimate, and where 95 of 100 bootstrap samples have it.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Estimate {
    /// Of the runs themselves.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Estimates something of the runs of several bugs; `groups[i]` are the runs of one bug, of one contestant or of several.
pub fn bootstrap<T: Clone>(
    groups: &[Vec<T>],
    resamples: usize,
    rng: &mut TraceRng,
    statistic: impl Fn(&[Vec<T>]) -> f64,
) -> Estimate {
    let mut values: Vec<f64> = (0..resamples).map(|_| statistic(&resampled(groups, rng))).collect();
    values.sort_by(f64::total_cmp);
    let quantile = |part: f64| {
        let rank = (part * values.len().saturating_sub(1) as f64).round() as usize;
        values.get(rank).copied().unwrap_or(f64::NAN)
    };
    Estimate { value: statistic(groups), low: quantile(0.025), high: quantile(0.975) }
}

/// As many groups, each drawn from all, with as many members, each drawn from its own.
fn resampled<T: Clone>(groups: &[Vec<T>], rng: &mut TraceRng) -> Vec<Vec<T>> {
    let draw = |rng: &mut TraceRng, len: usize| rng.random_range(0..len.max(1));
    let mut one = || {
        let group = groups.get(draw(rng, groups.len())).map_or(&[][..], Vec::as_slice);
        (0..group.len()).filter_map(|_| group.get(draw(rng, group.len())).cloned()).collect()
    };
    (0..groups.len()).map(|_| one()).collect()
}

/// Wilson's interval of a probability, at 95 of 100, after `hits` of `trials`.
pub fn wilson(hits: usize, trials: usize) -> Estimate {
    const Z: f64 = 1.959_963_985;
    let n = trials as f64;
    if trials == 0 {
        return Estimate { value: f64::NAN, low: 0.0, high: 1.0 };
    }
    let p = hits as f64 / n;
    let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Estimate { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::rng;

    /// Weeks of remission under 6-MP (Freireich and others, 1963), the textbook's example; below zero: censored.
    const WEEKS: [i32; 21] = [6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35];

    fn trials(times: &[i32]) -> Vec<Trial> {
        times.iter().map(|&t| Trial { time: f64::from(t.abs()), detected: t > 0 }).collect()
    }

    #[test]
    fn the_curve_of_a_published_example_is_the_published_one() {
        let curve = Curve::of(&trials(&WEEKS));
        let known = [(5.0, 1.0), (6.0, 0.857), (7.0, 0.807), (10.0, 0.753), (13.0, 0.690), (16.0, 0.627)];
        for (time, part) in known.into_iter().chain([(22.0, 0.538), (23.0, 0.448), (35.0, 0.448)]) {
            assert!((curve.at(time) - part).abs() < 0.0005, "{time}: {}", curve.at(time));
        }
        assert_eq!(curve.median(), 23.0);
        assert!((curve.restricted_mean(35.0) - 23.287).abs() < 0.001, "{}", curve.restricted_mean(35.0));
    }

    #[test]
    fn without_censoring_it_is_the_plain_median_and_mean() {
        let curve = Curve::of(&trials(&[1, 2, 3, 10]));
        assert_eq!((curve.median(), curve.restricted_mean(10.0)), (2.0, 4.0));
        let nothing = Curve::of(&trials(&[-5, -5]));
        assert_eq!((nothing.median(), nothing.restricted_mean(5.0)), (f64::INFINITY, 5.0));
        assert_eq!(Curve::of(&[]).median(), f64::INFINITY);
    }

    #[test]
    fn an_interval_holds_its_estimate_and_is_a_function_of_its_seed() {
        let groups = vec![trials(&WEEKS), trials(&[1, 2, 3, 10])];
        let mean = |groups: &[Vec<Trial>]| Curve::of(&groups.concat()).restricted_mean(35.0);
        let estimate = |seed| bootstrap(&groups, 2000, &mut rng(seed), mean);
        let one = estimate(1);
        assert!(one.low < one.value && one.value < one.high, "{one:?}");
        assert_eq!(one, estimate(1));
        assert_ne!(one, estimate(2));
    }

    #[test]
    fn wilsons_interval_is_the_published_one() {
        let nine = wilson(9, 10);
        assert!((nine.low - 0.5958).abs() < 0.0005 && (nine.high - 0.9821).abs() < 0.0005, "{nine:?}");
        assert_eq!((wilson(0, 5).low, wilson(5, 5).high), (0.0, 1.0));
    }
}
