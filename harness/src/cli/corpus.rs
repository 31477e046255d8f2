//! Finds and reads traces.

use super::UserError;
use crate::engines::libfuzzer::FuzzCrate;
use crate::trace::Trace;
use std::path::{Path, PathBuf};

/// A file and what it holds.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    /// The trace, or why there is none: file, line, column, and what was expected.
    pub(super) trace: Result<Trace, String>,
}

/// Reads these files, and all traces in these folders and below; the project's corpus if none is named.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Entry>, UserError> {
    let paths = if paths.is_empty() { vec![FuzzCrate::locate()?.corpus()] } else { paths.to_vec() };
    Ok(paths.iter().flat_map(|path| read_path(path)).collect())
}

fn read_path(path: &Path) -> Vec<Entry> {
    if !path.is_dir() {
        return vec![read_file(path.to_path_buf())];
    }
    let mut files = Vec::new();
    collect(path, &mut files);
    files.sort();
    if files.is_empty() {
        let message = format!("{}: the folder has no traces (files named *.ron or *.bin)", path.display());
        return vec![Entry { path: path.to_path_buf(), trace: Err(message) }];
    }
    files.into_iter().map(read_file).collect()
}

fn read_file(path: PathBuf) -> Entry {
    let trace = Trace::load(&path).map_err(|error| error.to_string());
    Entry { path, trace }
}

/// Adds the traces of a folder and of those below it; a folder that cannot be read has none.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "ron" || extension == "bin") {
            files.push(path);
        }
    }
}
