//! Reads what a libFuzzer program writes on its error stream.

use crate::run::{Coverage, DepthRow};
use std::path::PathBuf;

/// What the target's glue prints before its counters; see [`crate::engines::target`].
pub(in crate::engines) const COUNTERS: &str = "hammer: ";

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// How many edges are covered.
    Edges(u64),
    /// Executions and operations so far, from our own glue.
    Counters { executions: u64, ops: u64, depth: DepthRow, coverage: Coverage },
    /// The final count of executions.
    Executions(u64),
    /// An input that failed was written.
    Artifact(PathBuf),
    /// Anything else.
    Other,
}

/// Reads one line.
pub(super) fn parse(line: &str) -> Line {
    if let Some(rest) = line.strip_prefix(COUNTERS) {
        return counters(rest).unwrap_or(Line::Other);
    }
    if let Some(rest) = line.strip_prefix("stat::number_of_executed_units:") {
        return rest.trim().parse().map_or(Line::Other, Line::Executions);
    }
    if let Some((_, path)) = line.split_once("Test unit written to ") {
        return Line::Artifact(PathBuf::from(path.trim()));
    }
    if line.starts_with('#') { edges(line).map_or(Line::Other, Line::Edges) } else { Line::Other }
}

fn counters(rest: &str) -> Option<Line> {
    let mut words = rest.split_whitespace();
    let executions = words.next()?.strip_prefix("executions=")?.parse().ok()?;
    let ops = words.next()?.strip_prefix("ops=")?.parse().ok()?;
    let depth = words.next()?.strip_prefix("depth=")?.parse().ok()?;
    let coverage = Coverage::from_line(words.next()?.strip_prefix("coverage=")?);
    Some(Line::Counters { executions, ops, depth, coverage })
}

fn edges(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "cov:");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_give_the_edges() {
        let line = "#2048\tpulse  cov: 1042 ft: 3999 corp: 77/12Kb lim: 744 exec/s: 1024 rss: 61Mb";
        assert_eq!(parse(line), Line::Edges(1042));
        assert_eq!(parse("#0\tREAD units: 17"), Line::Other);
    }

    #[test]
    fn our_own_counters_and_the_final_statistics_are_read() {
        let line = parse("hammer: executions=12 ops=345 depth=5/9/2/4/77 coverage=0:7,3:1");
        let coverage = Coverage::from_line("0:7,3:1");
        assert_eq!(coverage.counts()[..4], [7, 0, 0, 1]);
        let depth = DepthRow { calls_median: 5, calls_most: 9, live_median: 2, live_most: 4, free_vectors: 77 };
        assert_eq!(line, Line::Counters { executions: 12, ops: 345, depth, coverage });
        assert_eq!(parse("hammer: executions=12 ops= coverage="), Line::Other);
        assert_eq!(parse("stat::number_of_executed_units: 987"), Line::Executions(987));
    }

    #[test]
    fn the_path_of_a_failing_input_is_found() {
        let line = "artifact_prefix='a/'; Test unit written to a/crash-0123";
        assert_eq!(parse(line), Line::Artifact(PathBuf::from("a/crash-0123")));
        assert_eq!(parse("SUMMARY: libFuzzer: deadly signal"), Line::Other);
    }
}
