//! Runs a program on `kmem-preload`, which writes its heap down, and collects the recordings of all its processes.

use super::log::Event;
use super::stream;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library's file name.
const LIBRARY: &str = "libkmem_preload.so";

/// The library beside this program, where cargo builds both.
pub fn library_beside() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    Some(here.parent()?.join(LIBRARY)).filter(|library| library.is_file())
}

/// Runs a command to its end and returns the events of the process that has the most, and how many threads that had.
///
/// # Errors
///
/// Says what could not be started or read. A command that fails by itself is not an error: its heap was recorded.
pub fn record(library: &Path, command: &[OsString]) -> Result<(Vec<Event>, u64), String> {
    let Some((program, arguments)) = command.split_first() else { return Err("no command".to_owned()) };
    let dir = super::scratch()?;
    let library = library.canonicalize().map_err(|e| format!("{} cannot be used: {e}", library.display()))?;
    let status = Command::new(program).args(arguments).env("LD_PRELOAD", library).env("KMEM_RECORD", &dir).status();
    let events =
        status.map_err(|e| format!("{} could not be started: {e}", program.display())).and_then(|_| busiest(&dir));
    // Only our own folder of recordings; one that stays behind does no harm.
    let _ = std::fs::remove_dir_all(&dir);
    events
}

fn busiest(dir: &Path) -> Result<(Vec<Event>, u64), String> {
    let unreadable = |e: std::io::Error| format!("{} cannot be read: {e}", dir.display());
    let mut most = (Vec::new(), 0);
    for entry in std::fs::read_dir(dir).map_err(unreadable)?.flatten() {
        let bytes = std::fs::read(entry.path()).map_err(unreadable)?;
        if let Some(recording) = stream::events(&bytes).filter(|(events, _)| events.len() > most.0.len()) {
            most = recording;
        }
    }
    Ok(most)
}
