//! Runs a program under valgrind and collects the logs of all its processes.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// A tool that replaces malloc is needed (`none` does not); memcheck without its checks is the one that is always there.
const ARGUMENTS: [&str; 6] = [
    "--tool=memcheck",
    "--undef-value-errors=no",
    "--leak-check=no",
    "--trace-malloc=yes",
    "--trace-children=yes",
    "--quiet",
];

/// Runs a command to its end and returns all logs, one after the other.
///
/// # Errors
///
/// Says what could not be started or read. A command that fails by itself is not an error: its heap was recorded.
pub fn record(command: &[OsString]) -> Result<String, String> {
    let dir = super::scratch()?;
    let log_file = format!("--log-file={}/%p.log", dir.display());
    let status = Command::new("valgrind").args(ARGUMENTS).arg(log_file).args(command).status();
    let text = status.map_err(|e| format!("valgrind could not be started: {e}")).and_then(|_| read_all(&dir));
    // Only our own folder of logs; one that stays behind does no harm.
    let _ = std::fs::remove_dir_all(&dir);
    text
}

fn read_all(dir: &Path) -> Result<String, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{} cannot be read: {e}", dir.display()))?;
    let mut text = String::new();
    for entry in entries.flatten() {
        let bytes =
            std::fs::read(entry.path()).map_err(|e| format!("{} cannot be read: {e}", entry.path().display()))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
        text.push('\n');
    }
    Ok(text)
}
