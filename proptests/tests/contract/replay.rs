//! Replays the corpus: every stored trace, with every oracle.

use kmem_harness::generate::Target;
use kmem_harness::run::{Coverage, RunOptions, Runner};
use kmem_harness::subjects::SubjectKind;
use kmem_harness::trace::Trace;
use kmem_proptests::judge;
use std::path::{Path, PathBuf};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus")
}

/// The traces of a folder, in the order of their names.
fn traces(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(corpus().join(folder)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "ron"));
    files.sort();
    files
}

/// Replays a folder; the number of its files, or all complaints.
fn replay(folder: &str) -> Result<usize, String> {
    let files = traces(folder);
    let complaint = |path: &PathBuf| match Trace::load(path) {
        Ok(trace) => judge(Target::Codec, &trace).err().map(|e| format!("{}: {e}", path.display())),
        Err(e) => Some(e.to_string()),
    };
    let complaints: Vec<String> = files.iter().filter_map(complaint).collect();
    if complaints.is_empty() { Ok(files.len()) } else { Err(complaints.join("\n")) }
}

/// What the traces of a folder reach.
pub(crate) fn coverage(folder: &str) -> Vec<Coverage> {
    let mut runner = Runner::new();
    let mut run = |trace: &Trace| runner.run(trace, SubjectKind::KMEM, &RunOptions::default()).coverage;
    traces(folder).iter().filter_map(|path| Trace::load(path).ok()).map(|trace| run(&trace)).collect()
}

/// Prints past the capture of the test runner: how many files were replayed must be seen in every run.
fn announce(folder: &str, files: usize) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "corpus/{folder}: {files} files replayed");
}

#[test]
fn every_seed_keeps_the_contract() {
    let files = replay("seeds").unwrap();
    announce("seeds", files);
    assert!(files >= 15, "only {files} seeds: is the corpus there?");
}

#[test]
fn every_regression_stays_fixed() {
    announce("regressions", replay("regressions").unwrap());
}

#[test]
fn every_recorded_program_keeps_the_contract() {
    let files = replay("recorded").unwrap();
    announce("recorded", files);
    assert!(files >= 4, "only {files} recorded programs: is the corpus there?");
}

#[test]
fn every_scenario_says_what_it_shows() {
    for path in traces("seeds").into_iter().chain(traces("regressions")) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!kmem_harness::trace::leading_comment(&text).is_empty(), "{}", path.display());
    }
}
