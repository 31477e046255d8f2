//! `hammer bench peers`: the program in `peers/` that measures the allocator beside other people's.

use super::ui::Ui;
use super::{UserError, Verdict};
use crate::engines::libfuzzer::FuzzCrate;
use std::process::Command;

/// Builds the program, and runs it with this terminal. Its tables are its own: nothing of them is in `--json`.
pub(super) fn run(ui: &Ui) -> Result<Verdict, UserError> {
    let corpus = FuzzCrate::locate()?.corpus();
    let manifest = corpus.with_file_name("peers").join("Cargo.toml");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--release", "--locked", "--bin", "bench", "--manifest-path"]).arg(&manifest);
    ui.phase("building other people's allocators");
    let status = cargo.status().map_err(|e| UserError(format!("cargo could not be started: {e}")))?;
    if status.success() {
        Ok(Verdict::Fine)
    } else {
        Err(UserError(format!("{}: the benchmark ended with {status}", manifest.display())))
    }
}
