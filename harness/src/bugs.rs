//! Planted bugs: patches that each bring one known mistake into the allocator, with the trace that shows it.
//!
//! A file `<id>-<name>.patch` begins with a header of `key: value` lines, ends it with a line `---`, and goes on with a
//! unified diff against the repository's root:
//!
//! | key | value |
//! |---|---|
//! | `ancestor` | the real bug or the rule of the contract that it comes from |
//! | `invariant` | which invariant it breaks, `I1` to `I22` |
//! | `broken` | what is wrong, in one sentence |
//! | `witness` | a trace in text, from the next line on: passes without the patch and fails with it |
//!
//! A *control* is a patch that changes nothing wrong and must raise no alarm: its `invariant` is `none` and it has no witness.

use crate::trace::Trace;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A patch that was read.
#[derive(Clone, Debug)]
pub struct Bug {
    /// The file's name without `.patch`: the id, and after the first `-` a name.
    pub name: String,
    /// Where it comes from.
    pub ancestor: String,
    /// The invariant that it breaks; `None` for a control.
    pub invariant: Option<u8>,
    /// What is wrong.
    pub broken: String,
    /// The trace that shows it; none for a control.
    pub witness: Option<Trace>,
    /// The changes, file by file, in the order of the diff.
    changes: Vec<Change>,
}

/// What a patch does to one file.
#[derive(Clone, Debug)]
struct Change {
    /// Relative to the repository's root.
    path: PathBuf,
    /// The part of the diff that is about the file.
    diff: String,
}

/// Why a patch cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BugError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, where, and what was expected.
    pub message: String,
}

impl fmt::Display for BugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}

impl std::error::Error for BugError {}

impl Bug {
    /// Reads a patch.
    ///
    /// # Errors
    ///
    /// What is missing or does not parse.
    pub fn load(path: &Path) -> Result<Self, BugError> {
        let error = |message: String| BugError { path: path.to_path_buf(), message };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(error)
    }

    /// Reads the text of a patch with this name.
    ///
    /// # Errors
    ///
    /// What is missing or does not parse.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let (header, diff) = text.split_once("\n---\n").ok_or("no line `---` between the header and the diff")?;
        let (keys, witness) = match header.split_once("\nwitness:\n") {
            Some((keys, witness)) => (keys, Some(witness)),
            None => (header, None),
        };
        let lines = keys.lines().filter(|line| !line.is_empty());
        let pair = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        let mut keys = lines
            .map(|line| pair(line).ok_or_else(|| format!("`{line}` is not `key: value`")))
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        let mut take = |key: &str| keys.remove(key).ok_or_else(|| format!("the header has no `{key}`"));
        let (ancestor, invariant, broken) = (take("ancestor")?, take("invariant")?, take("broken")?);
        if let Some(unknown) = keys.keys().next() {
            return Err(format!("`{unknown}` is no key; there are ancestor, invariant, broken, witness"));
        }
        let invariant = parse_invariant(&invariant)?;
        let witness =
            witness.map(|text| Trace::from_text(text).map_err(|e| format!("the witness: {e}"))).transpose()?;
        if invariant.is_some() != witness.is_some() {
            return Err(
                "a bug has an invariant and a witness, a control has `invariant: none` and no witness".to_owned()
            );
        }
        let changes = split_diff(diff)?;
        Ok(Self { name: name.to_owned(), ancestor, invariant, broken, witness, changes })
    }

    /// What stands before the first `-` of the name.
    pub fn id(&self) -> &str {
        self.name.split('-').next().unwrap_or_default()
    }

    /// Tells whether nothing is wrong with it.
    pub fn is_control(&self) -> bool {
        self.witness.is_none()
    }

    /// The files below `root` as they are with the patch; nothing is written.
    ///
    /// # Errors
    ///
    /// Which file cannot be read, or where the patch does not fit.
    pub fn patched(&self, root: &Path) -> Result<Vec<(PathBuf, String)>, String> {
        self.changes.iter().map(|change| Ok((change.path.clone(), change.apply(root)?))).collect()
    }
}

impl Change {
    fn apply(&self, root: &Path) -> Result<String, String> {
        let file = self.path.display();
        let before = std::fs::read_to_string(root.join(&self.path)).map_err(|e| format!("{file}: {e}"))?;
        let patch = diffy::Patch::from_str(&self.diff).map_err(|e| format!("the diff of {file}: {e}"))?;
        let after = diffy::apply(&before, &patch).map_err(|e| format!("no longer applies to {file}: {e}"))?;
        if after == before { Err(format!("changes nothing in {file}")) } else { Ok(after) }
    }
}

fn parse_invariant(text: &str) -> Result<Option<u8>, String> {
    if text == "none" {
        return Ok(None);
    }
    let number = text.strip_prefix('I').and_then(|digits| digits.parse().ok());
    match number.filter(|number| (1..=22).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("`{text}` is no invariant; use I1 to I22, or none for a control")),
    }
}

/// Cuts a diff where the next file begins.
fn split_diff(diff: &str) -> Result<Vec<Change>, String> {
    const FILE: &str = "--- a/";
    let mut changes: Vec<Change> = Vec::new();
    for line in diff.split_inclusive('\n') {
        if let Some(path) = line.strip_prefix(FILE) {
            changes.push(Change { path: PathBuf::from(path.trim_end()), diff: String::new() });
        }
        if let Some(change) = changes.last_mut() {
            change.diff.push_str(line);
        }
    }
    match changes.iter().find(|change| change.path.is_absolute() || change.path.starts_with("..")) {
        Some(outside) => Err(format!("{} is outside of the repository", outside.path.display())),
        None if changes.is_empty() => Err(format!("the diff has no line that begins with `{FILE}`")),
        None => Ok(changes),
    }
}

/// Reads all patches of a folder, in the order of their names.
///
/// # Errors
///
/// The folder cannot be read.
pub fn read_dir(dir: &Path) -> std::io::Result<Vec<Result<Bug, BugError>>> {
    let entries = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut paths: Vec<_> =
        entries.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "patch")).collect();
    paths.sort();
    Ok(paths.iter().map(|path| Bug::load(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "--- a/f.txt\n+++ b/f.txt\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n";

    fn bug(header: &str) -> Result<Bug, String> {
        Bug::parse("X1-two", &format!("{header}\n---\n{DIFF}"))
    }

    fn complete() -> String {
        let witness = Trace::new(Vec::new()).to_text();
        format!("ancestor: a contract\ninvariant: I7\nbroken: a thing.\n\nwitness:\n{}", witness.trim_end())
    }

    #[test]
    fn a_patch_is_applied_in_memory() {
        let dir = std::env::temp_dir().join(format!("hammer-bugs-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("f.txt"), "zero\none\ntwo\nthree\n").unwrap();
        let bug = bug(&complete()).unwrap();
        assert_eq!((bug.id(), bug.invariant, bug.is_control()), ("X1", Some(7), false));
        let expected = (PathBuf::from("f.txt"), "zero\none\n2\nthree\n".to_owned());
        assert_eq!(bug.patched(&dir), Ok(vec![expected]));
        std::fs::write(dir.join("f.txt"), "one\n2\nthree\n").unwrap();
        assert!(bug.patched(&dir).unwrap_err().contains("no longer applies to f.txt"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_header_is_said() {
        let without = |key: &str| {
            let text: Vec<_> = complete().lines().filter(|line| !line.starts_with(key)).map(str::to_owned).collect();
            bug(&text.join("\n")).unwrap_err()
        };
        assert!(without("ancestor").contains("`ancestor`"));
        assert!(without("broken").contains("`broken`"));
        let strange = bug(&complete().replace("I7", "I23")).unwrap_err();
        assert!(strange.contains("I23"), "{strange}");
        let control = "ancestor: none\ninvariant: none\nbroken: nothing.";
        assert!(bug(control).unwrap().is_control());
        assert!(bug(&control.replace("invariant: none", "invariant: I1")).unwrap_err().contains("witness"));
        assert!(bug(&format!("{control}\ncolour: red")).unwrap_err().contains("`colour`"));
        assert!(Bug::parse("X", DIFF).unwrap_err().contains("`---`"));
        assert!(Bug::parse("X", &format!("{control}\n---\n--- a/../x\n")).unwrap_err().contains("outside"));
    }
}
