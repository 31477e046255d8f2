//! Builds the fuzz crate with coverage counters.

use crate::engines::Live;
use crate::generate::Target;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What cargo-fuzz passes, less the sanitizer (which needs nightly): edge counters in place, the table of program
/// counters, and comparisons traced, so that libFuzzer learns operands.
const RUSTFLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Ccodegen-units=1",
];

/// What separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\u{1f}";

/// How many lines of a failed build are shown.
const SHOWN_LINES: usize = 30;

/// The folder of the cargo-fuzz crate.
#[derive(Clone, Debug)]
pub struct FuzzCrate {
    root: PathBuf,
}

impl FuzzCrate {
    /// Finds it: in the current folder or above, or where this program was built.
    ///
    /// # Errors
    ///
    /// Says where it was looked for.
    pub fn locate() -> Result<Self, String> {
        let here = std::env::current_dir().unwrap_or_default();
        let built = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.ancestors().chain(built.ancestors()).map(|dir| dir.join("fuzz"));
        root.into_iter().find(|dir| dir.join("fuzz_targets").is_dir()).map(|root| Self { root }).ok_or_else(|| {
            format!("the fuzz crate was found neither above {} nor above {}", here.display(), built.display())
        })
    }

    /// The project's traces, beside the crate; a name relative to the current folder if it is below that.
    pub fn corpus(&self) -> PathBuf {
        let corpus = self.root.parent().unwrap_or(&self.root).join("corpus");
        let here = std::env::current_dir().unwrap_or_default();
        corpus.strip_prefix(&here).map(Path::to_path_buf).unwrap_or(corpus)
    }

    /// Where libFuzzer keeps what it found interesting, between runs.
    pub fn corpus_dir(&self, target: Target) -> PathBuf {
        self.root.join("corpus").join(target.name())
    }

    /// Where libFuzzer writes inputs that failed.
    pub fn artifact_dir(&self, target: Target) -> PathBuf {
        self.root.join("artifacts").join(target.name())
    }

    /// A folder for files that need not outlive a run.
    pub fn scratch_dir(&self) -> PathBuf {
        self.target_dir().join("scratch")
    }

    /// Our own target folder: the flags differ from cargo-fuzz's, and sharing one would rebuild at each change.
    fn target_dir(&self) -> PathBuf {
        self.root.join("target").join("hammer")
    }

    /// Builds one target, or all of them.
    ///
    /// # Errors
    ///
    /// The end of what cargo printed, or why cargo could not be started.
    pub fn build(&self, only: Option<Target>, live: &Live) -> Result<Programs, String> {
        let host = host_triple()?;
        let mut command = self.cargo(&host);
        match only {
            Some(target) => command.args(["--bin", target.name()]),
            None => command.arg("--bins"),
        };
        let child = command.spawn().map_err(|e| format!("cargo could not be started: {e}"))?;
        finish(child, live)?;
        Ok(Programs { dir: self.target_dir().join(host).join("release") })
    }

    fn cargo(&self, host: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // A target triple keeps the coverage flags away from build scripts.
        command.args(["build", "--release", "--target", host, "--manifest-path"]).arg(self.root.join("Cargo.toml"));
        command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join(FLAG_SEPARATOR));
        command.env("CARGO_TARGET_DIR", self.target_dir()).env("CARGO_INCREMENTAL", "0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// The programs that a build gave.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// The program of a target.
    pub fn path(&self, target: Target) -> PathBuf {
        self.dir.join(target.name())
    }
}

fn host_triple() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().map_err(|e| format!("rustc could not be started: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// Waits for cargo; ends it when the user asked to stop.
fn finish(mut child: Child, live: &Live) -> Result<(), String> {
    let pipe = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A broken pipe only shortens the message.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if live.is_stopped() => {
                let _ = child.kill();
            }
            Ok(None) => {}
            Err(e) => return Err(format!("waiting for cargo failed: {e}")),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = reader.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(format!("the fuzz crate does not build ({status}):\n{}", tail(&text))) }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
