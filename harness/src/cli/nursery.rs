//! Where programs with planted bugs are made and kept, so that a bug that was built once is never built again.
//!
//! Everything is below `target/bugs` of the repository:
//!
//! | path | what |
//! |---|---|
//! | `src/` | the sources that the program is made of, with the patch of the bug that was built last |
//! | `target/` | what the compiler keeps between builds |
//! | `programs/<name>` | the program with this bug |
//! | `programs/<name>.key` | what it was made of, as a hash |
//!
//! Only one process may work here at a time.

use super::{UserError, apart};
use crate::bugs::Bug;
use crate::engines::libfuzzer::FuzzCrate;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What of the repository cargo needs to see.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "core", "harness", "preload", "proptests"];
/// Commands that a program with a bug never runs: they plant bugs. A change to them makes no program stale.
const WITHOUT_EFFECT: [&str; 4] =
    ["harness/src/bugs.rs", "harness/src/cli/bugs.rs", "harness/src/cli/bugs", "harness/src/cli/nursery.rs"];
/// How the programs are built: a build of few seconds is worth more here than the last third of speed, since most bugs are
/// found in less time than a build with all optimisation takes.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_INCREMENTAL", "1"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2"),
];
/// How many lines of a failed build are shown.
const SHOWN_LINES: usize = 30;
/// How often a program with a bug is looked after.
const TICK: Duration = Duration::from_millis(5);

/// Makes programs with planted bugs.
pub(super) struct Nursery {
    root: PathBuf,
    /// The version of the compiler and what it is told besides the profile.
    toolchain: String,
}

/// A file of the sources: its path below the root, and what is in it.
type Source = (PathBuf, Vec<u8>);

impl Nursery {
    /// Finds the repository and the compiler.
    pub(super) fn open() -> Result<Self, UserError> {
        let corpus = FuzzCrate::locate()?.corpus();
        let corpus = corpus.canonicalize().map_err(|e| UserError(format!("{}: {e}", corpus.display())))?;
        let root = corpus.parent().ok_or_else(|| UserError("the repository was not found".to_owned()))?;
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let output = rustc.arg("-vV").current_dir(root).output();
        let output = output.map_err(|e| UserError(format!("the compiler could not be started: {e}")))?;
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        let toolchain = format!("{}{flags}", String::from_utf8_lossy(&output.stdout));
        Ok(Self { root: root.to_path_buf(), toolchain })
    }

    /// The folder that has the sources and the patches.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A folder or file below `target/bugs`.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.root.join("target/bugs").join(name)
    }

    /// The program with this bug; it is built unless there is one that was made of the same sources.
    pub(super) fn program(&self, bug: &Bug) -> Result<PathBuf, String> {
        let sources = self.sources(&bug.patched(&self.root)?)?;
        let key = self.key(&sources);
        let programs = self.place("programs");
        let (program, note) = (programs.join(&bug.name), programs.join(format!("{}.key", bug.name)));
        if program.is_file() && fs::read_to_string(&note).is_ok_and(|noted| noted == key) {
            return Ok(program);
        }
        write_tree(&self.place("src"), &sources)?;
        let built = self.build()?;
        // The note is written last: a program that was copied by half is not believed.
        make_folder(&programs)?;
        fs::copy(&built, &program).map_err(|e| failed(&program, &e))?;
        fs::write(&note, key).map_err(|e| failed(&note, &e))?;
        Ok(program)
    }

    /// What the program with this bug was made of when [`program`](Self::program) gave it.
    pub(super) fn noted_key(&self, bug: &Bug) -> Result<String, String> {
        let note = self.place("programs").join(format!("{}.key", bug.name));
        fs::read_to_string(&note).map_err(|e| failed(&note, &e))
    }

    /// Runs a program of ours at the root and reads its answer, which is JSON. A bug may have it run for ever: it is given
    /// that much time.
    pub(super) fn ask<T: serde::de::DeserializeOwned>(
        &self,
        command: &mut Command,
        patience: Duration,
    ) -> Result<T, String> {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let number = ASKED.fetch_add(1, Ordering::Relaxed);
        let answer = self.place(&format!("answer-{}-{number}.json", std::process::id()));
        let file = fs::File::create(&answer).map_err(|e| failed(&answer, &e))?;
        let child = command.arg("--json").stdout(file).stderr(Stdio::null()).current_dir(&self.root).spawn();
        let mut child = child.map_err(|e| format!("the program with the bug could not be started: {e}"))?;
        let start = Instant::now();
        let ended = apart::wait(&mut child, TICK, || start.elapsed() > patience).map_err(|e| e.0)?;
        let status =
            ended.ok_or_else(|| format!("the program with the bug did not end in {} s", patience.as_secs()))?;
        let text = fs::read(&answer).and_then(|text| fs::remove_file(&answer).map(|()| text));
        serde_json::from_slice(&text.map_err(|e| failed(&answer, &e))?)
            .map_err(|e| format!("the program with the bug ended with {status} and no answer: {e}"))
    }

    /// All files that cargo needs to see, with the patch in them, in the order of their paths.
    fn sources(&self, patched: &[(PathBuf, String)]) -> Result<Vec<Source>, String> {
        let mut sources = Vec::new();
        for name in SOURCES {
            read_tree(&self.root, Path::new(name), &mut sources)?;
        }
        for (path, text) in patched {
            let source = sources.iter_mut().find(|(name, _)| name == path);
            let (_, bytes) = source.ok_or_else(|| format!("{} is not part of the program", path.display()))?;
            *bytes = text.clone().into_bytes();
        }
        sources.sort();
        Ok(sources)
    }

    /// What decides whether a program is still the one that would be built.
    fn key(&self, sources: &[Source]) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.toolchain, PROFILE).hash(&mut hasher);
        for source in sources.iter().filter(|(path, _)| !WITHOUT_EFFECT.iter().any(|name| path.starts_with(name))) {
            source.hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }

    fn build(&self) -> Result<PathBuf, String> {
        let target = self.place("target");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--release", "--package", "kmem-harness", "--bin", "hammer", "--target-dir"]);
        cargo.arg(&target).envs(PROFILE).current_dir(self.place("src"));
        let output = cargo.output().map_err(|e| format!("cargo could not be started: {e}"))?;
        if output.status.success() {
            return Ok(target.join("release/hammer"));
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().take(SHOWN_LINES).collect();
        Err(format!("does not compile:\n{}", lines.join("\n")))
    }
}

/// Reads a file, or all files of a folder but for tests, which no program contains.
fn read_tree(root: &Path, name: &Path, sources: &mut Vec<Source>) -> Result<(), String> {
    let path = root.join(name);
    if !path.is_dir() {
        let bytes = fs::read(&path).map_err(|e| failed(&path, &e))?;
        sources.push((name.to_path_buf(), bytes));
        return Ok(());
    }
    for entry in fs::read_dir(&path).map_err(|e| failed(&path, &e))? {
        let entry = entry.map_err(|e| failed(&path, &e))?.file_name();
        if !is_test(&entry.to_string_lossy()) {
            read_tree(root, &name.join(entry), sources)?;
        }
    }
    Ok(())
}

fn is_test(name: &str) -> bool {
    name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// Makes the folder hold these files and no others. Only files that differ are written, so that the compiler does not
/// start from nothing.
fn write_tree(copy: &Path, sources: &[Source]) -> Result<(), String> {
    make_folder(copy)?;
    let mut there = Vec::new();
    read_tree(copy, Path::new(""), &mut there)?;
    for (name, _) in there.iter().filter(|(name, _)| sources.iter().all(|(wanted, _)| wanted != name)) {
        fs::remove_file(copy.join(name)).map_err(|e| failed(&copy.join(name), &e))?;
    }
    for source in sources.iter().filter(|source| !there.contains(source)) {
        let path = copy.join(&source.0);
        path.parent().map_or(Ok(()), make_folder)?;
        fs::write(&path, &source.1).map_err(|e| failed(&path, &e))?;
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nursery(name: &str) -> Nursery {
        let root = std::env::temp_dir().join(format!("hammer-nursery-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for name in ["core/src/slab/tests", "harness/src/cli", "preload", "proptests"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["Cargo.toml", "Cargo.lock", "core/src/lib.rs", "core/src/slab/tests/a.rs", "harness/src/bugs.rs"] {
            fs::write(root.join(name), name).unwrap();
        }
        Nursery { root, toolchain: "1".to_owned() }
    }

    fn key(nursery: &Nursery, patched: &[(PathBuf, String)]) -> String {
        nursery.key(&nursery.sources(patched).unwrap())
    }

    #[test]
    fn the_key_changes_with_what_the_program_is_made_of() {
        let mut nursery = nursery("key");
        let before = key(&nursery, &[]);
        let patch = [(PathBuf::from("core/src/lib.rs"), "other".to_owned())];
        assert_ne!(key(&nursery, &patch), before);
        for without_effect in ["core/src/slab/tests/a.rs", "harness/src/bugs.rs"] {
            fs::write(nursery.root.join(without_effect), "other").unwrap();
            assert_eq!(key(&nursery, &[]), before, "{without_effect}");
        }
        fs::write(nursery.root.join("core/src/lib.rs"), "other").unwrap();
        assert_eq!(key(&nursery, &[]), key(&nursery, &patch));
        let changed = key(&nursery, &[]);
        nursery.toolchain = "2".to_owned();
        assert_ne!(key(&nursery, &[]), changed);
        fs::remove_dir_all(&nursery.root).unwrap();
    }

    #[test]
    fn a_patch_of_a_file_outside_of_the_program_is_refused() {
        let nursery = nursery("outside");
        let patch = [(PathBuf::from("core/src/slab/tests/a.rs"), "other".to_owned())];
        assert!(nursery.sources(&patch).unwrap_err().contains("not part of the program"));
        fs::remove_dir_all(&nursery.root).unwrap();
    }

    #[test]
    fn the_copy_holds_the_sources_and_nothing_else() {
        let nursery = nursery("copy");
        let (sources, copy) = (nursery.sources(&[]).unwrap(), nursery.place("src"));
        write_tree(&copy, &sources).unwrap();
        let written = fs::metadata(copy.join("core/src/lib.rs")).unwrap().modified().unwrap();
        fs::write(copy.join("core/src/gone.rs"), "").unwrap();
        write_tree(&copy, &sources).unwrap();
        let mut there = Vec::new();
        read_tree(&copy, Path::new(""), &mut there).unwrap();
        there.sort();
        assert_eq!(there, sources);
        assert_eq!(fs::metadata(copy.join("core/src/lib.rs")).unwrap().modified().unwrap(), written);
        fs::remove_dir_all(&nursery.root).unwrap();
    }
}
