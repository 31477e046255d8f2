//! Real programs as traces: what a program asked of its heap becomes kvmalloc calls.
//!
//! The program runs on `kmem-preload`, which writes down what it asks ([`preload`], read by [`stream`]), or under valgrind, which
//! writes a log ([`valgrind`], read by [`log`]). [`convert`] turns either into a trace by executing it, so that each free picks
//! the block that stands for the one that the program freed.

pub mod convert;
pub mod log;
pub mod preload;
pub mod stream;
pub mod valgrind;

use std::path::PathBuf;

/// A new folder of this process for what is recorded.
fn scratch() -> Result<PathBuf, String> {
    let dir = std::env::temp_dir().join(format!("hammer-record-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{} cannot be made: {e}", dir.display()))?;
    Ok(dir)
}
