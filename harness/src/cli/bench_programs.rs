//! `hammer bench programs`: whole programs on the system's allocator, on ours, and on others that are installed.

use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::libfuzzer::FuzzCrate;
use crate::report::table::markdown;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use wait4::Wait4;

/// Rounds in which every program runs once on every allocator.
const ROUNDS: usize = 9;
/// Allocators that are measured too where the loader knows them.
const OTHERS: [(&str, &str); 3] =
    [("mimalloc", "libmimalloc.so"), ("jemalloc", "libjemalloc.so"), ("tcmalloc", "libtcmalloc_minimal.so")];
/// What a program's time and memory are compared with.
const SYSTEM: &str = "the system's";
const OURS: &str = "kmem";

/// A program and what it does.
struct Program {
    name: &'static str,
    /// What is done once before, in the program's folder, by `sh`.
    before: &'static str,
    /// What is measured.
    words: &'static [&'static str],
    /// Variables of its environment.
    env: &'static [(&'static str, &'static str)],
}

const PROGRAMS: [Program; 6] = [
    Program {
        name: "sqlite3",
        before: "",
        words: &[
            "sqlite3",
            ":memory:",
            "create table t(a integer, b text); with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000) \
             insert into t select i * 7919 % 300007, printf('%032x', i * 104729) from n; create index x on t(b); \
             select count(*), max(b) from (select a % 1000 k, max(b) b from t group by k);",
        ],
        env: &[],
    },
    Program {
        name: "python3, PYTHONMALLOC=malloc",
        before: "",
        words: &[
            "python3",
            "-c",
            "import json\nd = {str(i): [i, str(i * 7), {'a': i}] for i in range(150000)}\nt = json.dumps(d)\n\
             e = json.loads(t)\nprint(len(t), sum(len(v[1]) for v in e.values()), len(sorted(e, key=lambda k: e[k][1])))",
        ],
        env: &[("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "0")],
    },
    Program {
        name: "gcc -O2",
        before: "i=0; while [ $i -lt 400 ]; do echo \"int f$i(int a, int b) { int s = 0; for (int k = 0; k < a; k++) \
                 { s += (k * $i) ^ b; if (s & 1) s -= k / (b | 1); else s += f(k, s); } return s; }\"; i=$((i + 1)); done > body.c; \
                 { echo 'int f(int, int);'; cat body.c; } > many.c",
        words: &["gcc", "-O2", "-c", "-o", "/dev/null", "many.c"],
        env: &[],
    },
    Program {
        name: "git repack",
        before: "git init -q . && i=0; while [ $i -lt 800 ]; do seq $i $((i + 300)) > file$i; i=$((i + 1)); done; git add -A && \
                 git -c user.name=a -c user.email=a@localhost commit -q -m all",
        words: &["git", "-c", "pack.threads=1", "repack", "-adfq", "--depth=50", "--window=50"],
        env: &[("GIT_CONFIG_GLOBAL", "/dev/null")],
    },
    Program {
        name: "node",
        before: "",
        words: &[
            "node",
            "-e",
            "const all = []; for (let i = 0; i < 400000; i++) { all.push(Buffer.allocUnsafeSlow(16 + i % 5000)); \
             if (all.length > 5000) all.splice(0, 2500); } console.log(all.length)",
        ],
        env: &[],
    },
    Program {
        name: "rustc -O",
        before: "{ i=0; while [ $i -lt 120 ]; do echo \"pub fn f$i(v: &[u64]) -> Vec<String> { let mut s: Vec<String> = \
                 v.iter().filter(|n| **n % ($i + 2) == 0).map(|n| format!(\\\"{n}-$i\\\")).collect(); s.sort(); s.dedup(); s }\"; \
                 i=$((i + 1)); done; } > many.rs",
        words: &["rustc", "-O", "--crate-type", "lib", "--emit", "metadata,obj", "-o", "out.o", "many.rs"],
        env: &[],
    },
];

/// One run.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    peak: u64,
}

/// The runs of a program on an allocator.
struct Cell {
    program: &'static str,
    allocator: &'static str,
    runs: Vec<Run>,
}

impl Cell {
    /// Median and least of the seconds.
    fn seconds(&self) -> (f64, f64) {
        let mut all: Vec<f64> = self.runs.iter().map(|run| run.seconds).collect();
        all.sort_by(f64::total_cmp);
        let least = all.first().copied().unwrap_or(f64::NAN);
        (all.get(all.len() / 2).copied().unwrap_or(f64::NAN), least)
    }

    /// Median of the peak of resident memory, in MiB.
    fn peak(&self) -> f64 {
        let mut all: Vec<u64> = self.runs.iter().map(|run| run.peak).collect();
        all.sort_unstable();
        all.get(all.len() / 2).map_or(f64::NAN, |&bytes| bytes as f64 / f64::from(1 << 20))
    }
}

pub(super) fn run(file: Option<&Path>, ui: &Ui) -> Result<Verdict, UserError> {
    let allocators = allocators(ui)?;
    let mut cells = Vec::new();
    for program in &PROGRAMS {
        match measure(program, &allocators, ui) {
            Ok(measured) => cells.extend(measured),
            Err(why) => ui.say(format!("left out: {}: {why}", program.name)),
        }
    }
    let rows: Vec<_> = cells.iter().map(|cell| row(cell, &cells)).collect();
    let text = document(&cells);
    if let Some(file) = file {
        std::fs::write(file, &text).map_err(|error| UserError(format!("{}: {error}", file.display())))?;
    }
    ui.result(&serde_json::json!({ "ok": true, "rounds": ROUNDS, "programs": rows }), text);
    Ok(Verdict::Fine)
}

/// Builds our library; finds the others.
fn allocators(ui: &Ui) -> Result<Vec<(&'static str, Option<PathBuf>)>, UserError> {
    let corpus = std::path::absolute(FuzzCrate::locate()?.corpus()).map_err(|error| UserError(error.to_string()))?;
    let root = corpus.parent().ok_or_else(|| UserError("the repository has no folder".to_owned()))?.to_path_buf();
    ui.phase("building kmem-preload");
    let target = root.join("target");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--locked", "-p", "kmem-preload", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return Err(UserError(format!("kmem-preload does not build in {}", root.display())));
    }
    let known = Command::new("ldconfig").arg("-p").output().map(|out| out.stdout).unwrap_or_default();
    let known = String::from_utf8_lossy(&known).into_owned();
    let path = |library: &str| {
        let line = known.lines().find(|line| line.trim_start().starts_with(library))?;
        line.split(" => ").nth(1).map(PathBuf::from)
    };
    let others = OTHERS.iter().filter_map(|&(name, library)| Some((name, Some(path(library)?))));
    let own = [(SYSTEM, None), (OURS, Some(target.join("release/libkmem_preload.so")))];
    Ok(own.into_iter().chain(others).collect())
}

/// Runs a program on every allocator by turns; a round more than is counted, the first.
fn measure(program: &Program, allocators: &[(&'static str, Option<PathBuf>)], ui: &Ui) -> Result<Vec<Cell>, String> {
    let folder = std::env::temp_dir().join(format!("hammer-programs-{}", std::process::id()));
    let _left = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let prepared = Command::new("sh").args(["-ec", program.before]).current_dir(&folder).status();
    if !prepared.is_ok_and(|status| status.success()) {
        return Err("what it works on cannot be made".to_owned());
    }
    let cell = |&(allocator, _): &(&'static str, _)| Cell { program: program.name, allocator, runs: Vec::new() };
    let mut cells: Vec<Cell> = allocators.iter().map(cell).collect();
    for round in 0..=ROUNDS {
        ui.phase(&format!("{}, round {round} of {ROUNDS}", program.name));
        for (cell, (allocator, library)) in cells.iter_mut().zip(allocators) {
            let run = once(program, library.as_deref(), &folder).map_err(|why| format!("on {allocator}: {why}"))?;
            cell.runs.extend((round > 0).then_some(run));
        }
    }
    let _left = std::fs::remove_dir_all(&folder);
    Ok(cells)
}

fn once(program: &Program, library: Option<&Path>, folder: &Path) -> Result<Run, String> {
    let (name, words) = program.words.split_first().ok_or("it has no name")?;
    let mut command = Command::new(name);
    command.args(words).envs(program.env.iter().copied()).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("LC_ALL", "C").env("LD_PRELOAD", library.map_or_else(OsString::new, OsString::from));
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let used = child.wait4().map_err(|error| error.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    if used.status.success() { Ok(Run { seconds, peak: used.rusage.maxrss }) } else { Err(used.status.to_string()) }
}

/// The cell of the same program on the system's allocator.
fn base<'c>(cell: &Cell, cells: &'c [Cell]) -> Option<&'c Cell> {
    cells.iter().find(|other| other.program == cell.program && other.allocator == SYSTEM)
}

fn row(cell: &Cell, cells: &[Cell]) -> serde_json::Value {
    let (median, least) = cell.seconds();
    let base = base(cell, cells);
    serde_json::json!({
        "program": cell.program, "allocator": cell.allocator, "seconds_median": median, "seconds_least": least,
        "peak_mib": cell.peak(), "seconds_to_system": base.map(|base| median / base.seconds().0),
        "peak_to_system": base.map(|base| cell.peak() / base.peak()),
    })
}

fn document(cells: &[Cell]) -> String {
    let mut table = markdown(&[
        "program",
        "allocator",
        ">seconds, median (least)",
        ">to the system's",
        ">peak, MiB",
        ">to the system's",
    ]);
    for cell in cells {
        let ((median, least), Some(base)) = (cell.seconds(), base(cell, cells)) else { continue };
        table.add_row([
            cell.program.to_owned(),
            cell.allocator.to_owned(),
            format!("{median:.3} ({least:.3})"),
            format!("{:.2}", median / base.seconds().0),
            format!("{:.1}", cell.peak()),
            format!("{:.2}", cell.peak() / base.peak()),
        ]);
    }
    let mut text = String::from("# Whole programs\n\n");
    let _ = write!(
        text,
        "One run, {ROUNDS} rounds after one that is not counted, in each of which every program ran on every allocator, made by\n\n\
         ```\ncargo run --release -- bench programs --markdown docs/programs.md\n```\n\n\
         Unmodified programs by `LD_PRELOAD`. Compare rows of one program; peak is the resident memory of the largest process, \
         median of the rounds.\n\n{table}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_the_least_and_the_ratio_are_told() {
        let runs = |seconds: [f64; 3], peak: u64| seconds.map(|seconds| Run { seconds, peak: peak << 20 }).to_vec();
        let cells = [
            Cell { program: "p", allocator: SYSTEM, runs: runs([2.0, 1.0, 4.0], 10) },
            Cell { program: "p", allocator: OURS, runs: runs([3.0, 1.0, 9.0], 15) },
        ];
        assert_eq!((cells[1].seconds(), cells[1].peak()), ((3.0, 1.0), 15.0));
        let row = row(&cells[1], &cells);
        assert_eq!((row["seconds_to_system"].as_f64(), row["peak_to_system"].as_f64()), (Some(1.5), Some(1.5)));
        let text = document(&cells);
        let line = text.lines().find(|line| line.contains("| kmem")).unwrap_or_default();
        let told: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(told, ["", "p", OURS, "3.000 (1.000)", "1.50", "15.0", "1.50", ""]);
    }

    #[test]
    fn a_program_that_fails_is_left_out_with_its_reason() {
        let program = Program { name: "p", before: "", words: &["sh", "-c", "exit 3"], env: &[] };
        let why = once(&program, None, &std::env::temp_dir()).err().unwrap_or_default();
        assert!(why.contains('3'), "{why}");
        let run = once(&Program { words: &["true"], ..program }, None, &std::env::temp_dir()).unwrap();
        assert!(run.peak > 0 && run.seconds > 0.0);
    }
}
