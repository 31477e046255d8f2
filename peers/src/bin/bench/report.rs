//! Measuring, and what is shown.

use crate::subjects::{Sample, Subject};
use kmem_harness::report::table::{markdown, table};
use std::process::{Command, Stdio};

/// A table of works and allocators.
pub(crate) struct Table {
    what: &'static str,
    works: Vec<&'static str>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    is_ours: bool,
    is_floor: bool,
    cells: Vec<Option<Cell>>,
}

/// The middle one of all rounds, the least, and how much was refused.
#[derive(Clone, Copy)]
struct Cell {
    median: f64,
    least: f64,
    refused: f64,
}

impl Cell {
    fn of(samples: &[Sample]) -> Option<Self> {
        let mut times: Vec<f64> = samples.iter().map(|sample| sample.nanoseconds).collect();
        times.sort_by(f64::total_cmp);
        let refused = samples.iter().map(|sample| sample.refused).fold(0.0, f64::max);
        Some(Self { median: *times.get(times.len() / 2)?, least: *times.first()?, refused })
    }

    fn show(&self) -> String {
        let refused =
            if self.refused > 0.0 { format!(", {:.0} % refused", 100.0 * self.refused) } else { String::new() };
        if self.least < self.median || !refused.is_empty() {
            format!("{} ({}{refused})", number(self.median), number(self.least))
        } else {
            number(self.median)
        }
    }
}

fn number(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

impl Table {
    /// Interleaved rounds of all works.
    pub(crate) fn measure(subjects: &[&dyn Subject], works: &[&'static str], rounds: u32) -> Self {
        let mut samples = vec![vec![Vec::new(); works.len()]; subjects.len()];
        for round in 0..rounds {
            eprintln!("round {} of {rounds}", round + 1);
            for (column, work) in works.iter().enumerate() {
                for (subject, row) in subjects.iter().zip(&mut samples) {
                    let number = subject.works().iter().position(|known| known == work);
                    let sample = number.map(|number| subject.run(number));
                    row.get_mut(column).into_iter().for_each(|cell| cell.extend(sample));
                }
            }
        }
        let row = |(subject, cells): (&&dyn Subject, Vec<Vec<Sample>>)| {
            Row::new(*subject, cells.iter().map(|cell| Cell::of(cell)).collect())
        };
        let rows = subjects.iter().zip(samples).map(row).collect();
        Self { what: "nanoseconds a pair, median (least)", works: works.to_vec(), rows }
    }

    /// Instructions of a pair; `None` without callgrind.
    pub(crate) fn count(subjects: &[&dyn Subject], works: &[&'static str]) -> Option<Self> {
        let counted = |work: &&'static str| {
            let number = |subject: &&dyn Subject| subject.works().iter().position(|known| known == work);
            subjects.first().is_some_and(|subject| number(subject).is_some_and(|number| subject.is_counted(number)))
        };
        let works: Vec<&'static str> = works.iter().copied().filter(counted).collect();
        let mut rows = Vec::new();
        for subject in subjects {
            eprintln!("counting the instructions of {}", subject.name());
            let cells = works.iter().map(|work| instructions(*subject, work)).collect();
            rows.push(Row::new(*subject, cells));
        }
        let found = rows.iter().any(|row| row.cells.iter().any(Option::is_some));
        found.then_some(Self { what: "instructions a pair", works, rows })
    }

    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    pub(crate) fn text(&self) -> String {
        self.fill(table(&self.headings())).to_string()
    }

    pub(crate) fn markdown(&self) -> String {
        self.fill(markdown(&self.headings())).to_string()
    }

    fn headings(&self) -> Vec<&str> {
        std::iter::once("allocator").chain(self.works.iter().copied()).collect()
    }

    fn fill<T: Grid>(&self, mut grid: T) -> T {
        for row in &self.rows {
            let cells = row.cells.iter().map(|cell| cell.map_or("-".to_owned(), |cell| cell.show()));
            grid.add(std::iter::once(row.name.to_owned()).chain(cells).collect());
        }
        for ours in self.rows.iter().filter(|row| row.is_ours) {
            let ratios = (0..self.works.len()).map(|column| self.ratio(ours, column));
            let name = format!("{} / best of the others", ours.name);
            grid.add(std::iter::once(name).chain(ratios).collect());
        }
        grid
    }

    /// Ours divided by the best one that serves everything.
    fn ratio(&self, ours: &Row, column: usize) -> String {
        let cell = |row: &Row| row.cells.get(column).copied().flatten();
        let others = self.rows.iter().filter(|row| !row.is_ours && !row.is_floor).filter_map(cell);
        let best = others.filter(|cell| cell.refused == 0.0).map(|cell| cell.median).min_by(f64::total_cmp);
        match (cell(ours), best) {
            (Some(ours), Some(best)) if best > 0.0 => format!("{:.2}", ours.median / best),
            _ => "-".to_owned(),
        }
    }
}

impl Row {
    fn new(subject: &dyn Subject, cells: Vec<Option<Cell>>) -> Self {
        Self { name: subject.name(), is_ours: subject.is_ours(), is_floor: subject.is_floor(), cells }
    }
}

/// What rows can be added to.
trait Grid {
    fn add(&mut self, cells: Vec<String>);
}

impl Grid for comfy_table::Table {
    fn add(&mut self, cells: Vec<String>) {
        self.add_row(cells);
    }
}

/// What three times the work takes more than once, for each of the two times between.
fn instructions(subject: &dyn Subject, work: &str) -> Option<Cell> {
    let number = subject.works().iter().position(|known| *known == work)?;
    let [once, thrice] = [1, 3].map(|times| collected(subject.name(), work, times));
    let count = thrice?.checked_sub(once?)? as f64 / (2 * subject.pairs(number)) as f64;
    Some(Cell { median: count, least: count, refused: 0.0 })
}

/// Instructions of a process that does the work so many times.
fn collected(name: &str, work: &str, times: u64) -> Option<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().ok()?);
    valgrind.args(["--subject", name, "--work", work, "--repeat", &times.to_string()]);
    let output = valgrind.stdout(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// The document with the tables.
pub(crate) fn document(tables: &str, rounds: u32) -> String {
    format!(
        "# Benchmarks\n\nOne run, {rounds} interleaved rounds, made by\n\n```\ncargo run --release --manifest-path \
         peers/Cargo.toml --bin bench -- --rounds {rounds} --markdown docs/benchmarks.md\n```\n\nNanoseconds are the median of \
         the rounds and the least; compare columns, not runs. Instructions are what two more repetitions of the work take, so \
         they are free of what happens once; the row `(floor)` is the cost of measuring and part of every row. Allocators of \
         a region have 256 MiB behind a spin lock. `%` refused: not all requests were served, and the row counts for no \
         ratio; `-` in a table of instructions: below callgrind some were refused.\n\n{tables}"
    )
}
