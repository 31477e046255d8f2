//! What came of the patches: a table for people, JSON for machines, a document for the project.

use super::{BugsArgs, Row, middle};
use crate::cli::nursery::Nursery;
use crate::cli::ui::Ui;
use crate::cli::{UserError, Verdict};
use crate::report::table::{grouped, table};
use std::fs;
use std::process::Command;

/// A minimal trace may be so many times as long as the witness.
const MOST_TIMES: f64 = 1.5;

/// Tells what came of all patches.
pub(super) fn tell(rows: &[Row], args: &BugsArgs, nursery: &Nursery, ui: &Ui) -> Result<Verdict, UserError> {
    let mut text = table(&HEADINGS);
    for row in rows {
        text.add_row(cells(row));
    }
    let wrong: Vec<_> = rows.iter().filter_map(|row| Some(format!("{}: {}", row.bug, row.error.as_ref()?))).collect();
    let value = serde_json::json!({ "ok": wrong.is_empty(), "bugs": rows });
    let complaints: String = wrong.iter().map(|line| format!("{line}\n")).collect();
    ui.result(&value, format!("{text}\n{complaints}{}", sums(rows).join("\n")));
    if let Some(file) = &args.markdown {
        let document = document(rows, &wrong, args, nursery);
        fs::write(file, document).map_err(|e| UserError(format!("{}: {e}", file.display())))?;
    }
    Ok(if wrong.is_empty() { Verdict::Fine } else { Verdict::Incomplete })
}

const HEADINGS: [&str; 9] =
    ["bug", "breaks", ">witness", "its oracle", ">found", ">operations", ">seconds", ">minimal", "first found by"];

fn cells(row: &Row) -> [String; 9] {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| grouped(value as u64));
    let first = row.hunts.iter().find_map(|hunt| hunt.found.as_ref());
    [
        row.bug.clone(),
        row.invariant.map_or("nothing".to_owned(), |number| format!("I{number}")),
        row.witness.map_or("control".to_owned(), |ops| ops.to_string()),
        row.oracle.clone().unwrap_or_else(|| "-".to_owned()),
        format!("{}/{}", row.found(), row.hunts.len()),
        number(row.median(|hunt, _| hunt.ops as f64)),
        row.median(|hunt, _| hunt.seconds).map_or("-".to_owned(), |seconds| format!("{seconds:.2}")),
        number(row.median(|_, prey| prey.minimal as f64)),
        first.map_or("-".to_owned(), |prey| format!("{} ({})", prey.oracle, prey.origin)),
    ]
}

/// How many times as long as the witness the minimal trace is, in the middle. A trace without operations counts as one.
fn times(row: &Row) -> Option<f64> {
    let witness = row.witness?.max(1) as f64;
    row.median(|_, prey| prey.minimal.max(1) as f64 / witness)
}

/// What is to be known of all rows at once.
fn sums(rows: &[Row]) -> Vec<String> {
    let wrong = rows.iter().filter(|row| row.error.is_some()).count();
    let mut lines = vec![format!("{} patches, {wrong} wrong", rows.len())];
    let (controls, bugs): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.control);
    if rows.iter().all(|row| row.hunts.is_empty()) {
        return lines;
    }
    let count = |which: &dyn Fn(&Row) -> bool| bugs.iter().filter(|row| which(row)).count();
    let (always, often) = (count(&Row::is_always_found), count(&Row::is_found_often));
    let (once, all) = (count(&|row| row.found() > 0), bugs.len());
    lines.push(format!(
        "of {all} bugs, {always} are found from each seed, {often} from nine of ten, {once} from one at least"
    ));
    if let Some(middle) = middle(bugs.iter().filter_map(|row| times(row))) {
        let long = count(&|row| times(row).is_some_and(|times| times > MOST_TIMES));
        lines.push(format!(
            "minimal traces are {middle:.2} times as long as the witness in the middle; {long} are more than {MOST_TIMES} times"
        ));
    }
    let (alarms, hunts) = controls.iter().fold((0, 0), |(a, h), row| (a + row.found(), h + row.hunts.len()));
    let ops: u64 = controls.iter().flat_map(|row| &row.hunts).map(|hunt| hunt.ops).sum();
    lines.push(format!("{alarms} alarms in {hunts} hunts of {} controls, {} operations", controls.len(), grouped(ops)));
    lines
}

fn document(rows: &[Row], wrong: &[String], args: &BugsArgs, nursery: &Nursery) -> String {
    let mut text = String::from(HEAD);
    let commit = commit(nursery).map_or(String::new(), |commit| format!(" of commit {commit}"));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (seeds, seconds) = (args.seeds, args.seconds);
    text +=
        &format!("Measured on the sources{commit}, on {cores} cores, with at most {seconds} seconds for a hunt:\n\n");
    text += &format!("```console\n$ hammer bugs --seeds {seeds} --seconds {seconds} --markdown docs/bugs.md\n```\n\n");
    for line in sums(rows) {
        text += &format!("* {line}\n");
    }
    text += "\n| bug | breaks | witness | its oracle | found | operations | seconds | minimal | first found by |\n";
    text += "|---|---|---:|---|---:|---:|---:|---:|---|\n";
    for row in rows {
        text += &format!("| {} |\n", cells(row).join(" | "));
    }
    if !wrong.is_empty() {
        text += "\nWhat is not as it should be:\n\n";
        wrong.iter().for_each(|line| text += &format!("* {line}\n"));
    }
    text
}

const HEAD: &str = "# Planted bugs

Each patch in `fuzz/bugs/` brings one known mistake into the allocator; most are real mistakes of the kernel, which their headers
name. A program with the mistake is built and hunted by the engines of this process, from nothing but a seed: they are
given neither the witness nor the corpus.

* *witness*: operations of the shortest trace that is known to show the bug; *its oracle* is the one that objects to it.
* *found*: hunts that found the bug, of all hunts, one for each seed.
* *operations*, *seconds*: until the first violation, all threads together; *minimal*: operations after shrinking. All three in
  the middle of the hunts, where one without success counts as more than any.
* A *control* changes nothing wrong. Nothing must be found in it.

Each minimal trace was replayed: it fails by the same oracle in the program with the bug, and passes in the one without.

";

fn commit(nursery: &Nursery) -> Option<String> {
    let mut git = Command::new("git");
    let output = git.args(["rev-parse", "--short", "HEAD"]).current_dir(nursery.root()).output().ok()?;
    let hash = String::from_utf8(output.stdout).ok()?;
    Some(hash.trim().to_owned()).filter(|hash| !hash.is_empty())
}
