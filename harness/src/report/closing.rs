//! What a run of the engines comes to: the closing table, and the same for machines.

use super::table::{grouped, table};
use crate::run::{ContractCoverage, DepthRow};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One engine on one target.
#[derive(Clone, Debug, Serialize)]
pub struct EngineRow {
    /// The engine.
    pub name: String,
    /// The target.
    pub target: String,
    /// Traces executed.
    pub executions: u64,
    /// Operations executed.
    pub ops: u64,
    /// Covered edges, where the engine measures them.
    pub edges: Option<u64>,
    /// How deep the traces went.
    pub depth: DepthRow,
    /// Ways in which blocks were served: those that the contract calls tiers.
    pub tiers: u64,
    /// Reasons for which a request was refused.
    pub refusals: u64,
    /// Violations found: at most one, for it ends the job.
    pub violations: u64,
    /// Why the engine did not do its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The files that were replayed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct CorpusRow {
    /// How many there are.
    pub files: u64,
    /// How many broke the contract.
    pub failed: u64,
    /// How many could not be read.
    pub unreadable: u64,
    /// Operations executed.
    pub ops: u64,
}

/// The wrong allocators that were caught.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct DegenerateRow {
    /// Caught by the oracle meant for them.
    pub killed: u64,
    /// How many there are.
    pub total: u64,
}

/// A violation and where its folder is.
#[derive(Clone, Debug, Serialize)]
pub struct ViolationRow {
    /// The oracle.
    pub oracle: String,
    /// What it said.
    pub message: String,
    /// Engine and target, or the file.
    pub origin: String,
    /// Operations of the minimal trace.
    pub ops: usize,
    /// The minimal trace.
    pub reproducer: PathBuf,
}

/// Everything that a command of the engines found out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// No violation, every file readable, every degenerate subject caught, every engine at work.
    pub ok: bool,
    /// Time in which traces were executed; waiting for the compiler is not part of it.
    pub seconds: f64,
    /// Operations executed by all.
    pub ops: u64,
    /// The same per second.
    pub ops_per_second: f64,
    /// Where random numbers started, if any were drawn.
    pub seed: Option<u64>,
    /// Whether the user ended it early.
    pub interrupted: bool,
    /// One row for each engine and target.
    pub engines: Vec<EngineRow>,
    /// The corpus.
    pub corpus: CorpusRow,
    /// The degenerate subjects.
    pub degenerate: DegenerateRow,
    /// What the traces reached, and what they never did.
    pub coverage_of_contract: ContractCoverage,
    /// What was found.
    pub violations: Vec<ViolationRow>,
}

impl Summary {
    /// Fills in what follows from the rest.
    pub fn close(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
        self.ops = self.engines.iter().map(|row| row.ops).sum::<u64>() + self.corpus.ops;
        self.ops_per_second = if self.seconds > 0.0 { self.ops as f64 / self.seconds } else { 0.0 };
        let caught = self.degenerate.killed == self.degenerate.total;
        let readable = self.corpus.unreadable == 0;
        let at_work = self.engines.iter().all(|row| row.error.is_none());
        self.ok = self.violations.is_empty() && caught && readable && at_work;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = table(&["engine", "target", ">executions", ">operations", ">edges", ">violations"]);
        for row in &self.engines {
            let edges = row.edges.map_or("-".to_owned(), grouped);
            let counts = [grouped(row.executions), grouped(row.ops), edges, row.violations.to_string()];
            rows.add_row([row.name.clone(), row.target.clone()].into_iter().chain(counts));
        }
        if !self.engines.is_empty() {
            writeln!(f, "{rows}\n\nhow deep the traces went\n{}", self.depths())?;
        }
        for row in &self.engines {
            if let Some(error) = &row.error {
                writeln!(f, "{} on {} did not run: {error}", row.name, row.target)?;
            }
        }
        if !self.coverage_of_contract.is_empty() {
            writeln!(f, "{}", self.coverage_of_contract)?;
        }
        self.fmt_totals(f)
    }
}

impl Summary {
    fn depths(&self) -> comfy_table::Table {
        let headings = [
            "engine",
            "target",
            ">calls: median",
            ">most",
            ">live blocks: median",
            ">most",
            ">tiers",
            ">refusals",
            ">free vectors",
        ];
        let mut rows = table(&headings);
        for row in self.engines.iter().filter(|row| row.executions > 0) {
            let DepthRow { calls_median, calls_most, live_median, live_most, free_vectors } = row.depth;
            let counts = [calls_median, calls_most, live_median, live_most, row.tiers, row.refusals, free_vectors];
            rows.add_row([row.name.clone(), row.target.clone()].into_iter().chain(counts.map(grouped)));
        }
        rows
    }

    fn fmt_totals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.corpus.files > 0 {
            let CorpusRow { files, failed, unreadable, .. } = self.corpus;
            writeln!(f, "corpus: {files} files replayed, {failed} failed, {unreadable} unreadable")?;
        }
        if self.degenerate.total > 0 {
            let DegenerateRow { killed, total } = self.degenerate;
            writeln!(f, "degenerate subjects: {killed} of {total} caught by the oracle meant for them")?;
        }
        let (ops, rate) = (grouped(self.ops), grouped(self.ops_per_second as u64));
        let seed = self.seed.map_or(String::new(), |seed| format!(", seed {seed}"));
        writeln!(f, "{ops} operations in {:.1} s, {rate} a second{seed}", self.seconds)?;
        for row in &self.violations {
            writeln!(f, "\n{} ({} operations, {}): {}", row.oracle, row.ops, row.origin, row.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(error: Option<&str>) -> EngineRow {
        EngineRow {
            name: "random".to_owned(),
            target: "trace".to_owned(),
            executions: 10,
            ops: 2_000,
            edges: None,
            depth: DepthRow { calls_median: 7, ..DepthRow::default() },
            tiers: 3,
            refusals: 2,
            violations: 0,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn a_run_is_fine_only_if_every_part_of_it_is() {
        let mut fine = Summary { engines: vec![row(None)], ..Summary::default() };
        fine.close(Duration::from_secs(2));
        assert!(fine.ok);
        assert_eq!((fine.ops, fine.ops_per_second), (2_000, 1_000.0));
        let breakages: [fn(&mut Summary); 3] =
            [|s| s.engines.push(row(Some("no compiler"))), |s| s.degenerate.total = 1, |s| s.corpus.unreadable = 1];
        for breakage in breakages {
            let mut broken = fine.clone();
            breakage(&mut broken);
            broken.close(Duration::from_secs(2));
            assert!(!broken.ok);
        }
    }

    #[test]
    fn the_table_shows_each_engine_and_why_one_did_not_run() {
        let mut summary = Summary { engines: vec![row(None), row(Some("no compiler"))], ..Summary::default() };
        summary.close(Duration::from_secs(1));
        let text = summary.to_string();
        assert!(text.contains("2,000"), "{text}");
        assert!(text.contains("random on trace did not run: no compiler"), "{text}");
    }
}
