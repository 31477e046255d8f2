//! Runs a libFuzzer program under a budget and reads what it tells.

use super::build::{FuzzCrate, Programs};
use super::parse::{Line, parse};
use crate::engines::exec::{Executor, Finding, Outcome};
use crate::engines::{Engine, Job, Live, target};
use crate::oracle::{OracleId, Violation};
use crate::trace::Trace;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// An execution that takes longer counts as a hang.
const HANG_SECONDS: u32 = 30;
/// What the program may take beyond its time: reading the corpus, finishing the last execution.
const GRACE: Duration = Duration::from_secs(20);
/// How many of the last lines explain a failure.
const SHOWN_LINES: usize = 25;

/// Where libFuzzer's corpus lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In `fuzz/corpus/TARGET`, growing from run to run.
    Corpus,
    /// In a folder that starts empty: the run depends on the seeds and the random seed only.
    Nothing,
}

/// The coverage-guided engine.
pub struct LibFuzzer {
    crate_: FuzzCrate,
    programs: Programs,
    keep: Keep,
}

impl LibFuzzer {
    /// Takes programs that [`FuzzCrate::build`] gave.
    pub fn new(crate_: FuzzCrate, programs: Programs, keep: Keep) -> Self {
        Self { crate_, programs, keep }
    }

    fn command(&self, job: &Job<'_>) -> Result<Command, String> {
        let corpus = self.corpus(job)?;
        let seeds = write_seeds(&self.crate_.scratch_dir().join("seeds").join(job.target.name()), job.seeds)?;
        let artifacts = made(self.crate_.artifact_dir(job.target))?;
        let mut command = Command::new(self.programs.path(job.target));
        command.arg(corpus).arg(seeds).arg(format!("-artifact_prefix={}/", artifacts.display()));
        command.arg(format!("-max_len={}", target::max_len(job.max_ops)));
        command.arg(format!("-seed={}", (job.seed as u32).max(1)));
        command.arg(format!("-timeout={HANG_SECONDS}"));
        command.args(["-print_final_stats=1", "-reload=0", "-len_control=20", "-rss_limit_mb=4096"]);
        limit(&mut command, job);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(command)
    }

    fn corpus(&self, job: &Job<'_>) -> Result<PathBuf, String> {
        if self.keep == Keep::Corpus {
            return made(self.crate_.corpus_dir(job.target));
        }
        let dir = self.crate_.scratch_dir().join("corpus").join(job.target.name());
        emptied(dir)
    }
}

impl Engine for LibFuzzer {
    fn name(&self) -> &'static str {
        "libfuzzer"
    }

    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String> {
        let mut command = self.command(job)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|e| format!("{program} could not be started: {e}"))?;
        let mut session = Session::new(job, live, self.programs.path(job.target));
        let status = session.follow(child)?;
        session.conclude(status)
    }
}

/// Gives the limits of the budget to the program.
fn limit(command: &mut Command, job: &Job<'_>) {
    let left = job.budget.left();
    if left < Duration::from_secs(1 << 30) {
        command.arg(format!("-max_total_time={}", left.as_secs().max(1)));
    }
    if let Some(cases) = job.budget.case_limit() {
        command.arg(format!("-runs={cases}"));
    }
}

/// One run of one program.
struct Session<'a> {
    job: &'a Job<'a>,
    live: &'a Live,
    outcome: Outcome,
    program: PathBuf,
    artifact: Option<PathBuf>,
    last_lines: Vec<String>,
    /// What the program said when it panicked.
    panic: Vec<String>,
}

impl<'a> Session<'a> {
    fn new(job: &'a Job<'a>, live: &'a Live, program: PathBuf) -> Self {
        let outcome = Outcome::default();
        Self { job, live, outcome, program, artifact: None, last_lines: Vec::new(), panic: Vec::new() }
    }

    /// Reads lines until the program ends; ends it itself when asked to stop or when it overruns.
    fn follow(&mut self, mut child: Child) -> Result<ExitStatus, String> {
        let Some(stderr) = child.stderr.take() else { return Err("the program has no error stream".to_owned()) };
        let lines = lines_of(stderr);
        let overrun = Instant::now().checked_add(self.job.budget.left().saturating_add(GRACE));
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.read(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.live.is_stopped() || overrun.is_some_and(|end| Instant::now() > end) {
                // The child may be gone already.
                let _ = child.kill();
            }
        }
        child.wait().map_err(|e| format!("waiting for the program failed: {e}"))
    }

    fn read(&mut self, line: String) {
        match parse(&line) {
            Line::Edges(edges) => {
                self.outcome.edges = self.outcome.edges.max(Some(edges));
                self.live.set_edges(self.job.target, edges);
            }
            Line::Counters { executions, ops, depth, coverage } => {
                self.count(executions, ops);
                self.outcome.depth = depth;
                self.outcome.coverage = coverage;
            }
            Line::Executions(executions) => self.count(executions, self.outcome.ops),
            Line::Artifact(path) => self.artifact = Some(path),
            Line::Other => {}
        }
        // The message of a panic is the line after the place.
        if line.contains("panicked at") || self.panic.len() == 1 {
            self.panic.push(line.clone());
        }
        if self.last_lines.len() == SHOWN_LINES {
            self.last_lines.remove(0);
        }
        self.last_lines.push(line);
    }

    fn count(&mut self, executions: u64, ops: u64) {
        self.live.add(executions.saturating_sub(self.outcome.executions), ops.saturating_sub(self.outcome.ops));
        self.outcome.executions = self.outcome.executions.max(executions);
        self.outcome.ops = self.outcome.ops.max(ops);
    }

    fn conclude(mut self, status: ExitStatus) -> Result<Outcome, String> {
        if let Some(path) = self.artifact.take() {
            self.outcome.finding = Some(self.finding(&path)?);
            self.live.add_violation();
            return Ok(self.outcome);
        }
        if status.success() || self.live.is_stopped() {
            return Ok(self.outcome);
        }
        Err(format!("the program ended with {status} and no input to show:\n{}", self.last_lines.join("\n")))
    }

    /// Replays a failing input in this process, to learn which oracle speaks.
    fn finding(&self, artifact: &Path) -> Result<Finding, String> {
        let bytes = std::fs::read(artifact).map_err(|e| format!("{} cannot be read: {e}", artifact.display()))?;
        let trace = target::decode(self.job.target, &bytes);
        let replayed = Executor::default().execute(self.job.target, &trace).violation;
        let program = replayed.is_none().then(|| self.program.clone());
        let violation = replayed.unwrap_or_else(|| self.only_in_the_child(artifact));
        Ok(Finding { trace, violation, program })
    }

    /// The program was built with every assertion on: what this build tolerates may have stopped it.
    fn only_in_the_child(&self, artifact: &Path) -> Violation {
        let summary = self.last_lines.iter().filter(|line| line.starts_with("SUMMARY"));
        let said: Vec<&str> = self.panic.iter().chain(summary).map(String::as_str).collect();
        let message = format!("only in the checked build: {} (input {})", said.join("; "), artifact.display());
        Violation { oracle: OracleId::Panic, message, blocks: Vec::new(), op: 0 }
    }
}

fn lines_of(stderr: ChildStderr) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stderr);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if send.send(line).is_err() {
                break;
            }
            bytes.clear();
        }
    });
    receive
}

fn write_seeds(dir: &Path, seeds: &[Trace]) -> Result<PathBuf, String> {
    let dir = emptied(dir.to_path_buf())?;
    for (n, trace) in seeds.iter().enumerate() {
        let path = dir.join(format!("{n:04}"));
        std::fs::write(&path, trace.to_bytes()).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    }
    Ok(dir)
}

fn made(dir: PathBuf) -> Result<PathBuf, String> {
    std::fs::create_dir_all(&dir).map_err(|e| format!("{} cannot be made: {e}", dir.display()))?;
    Ok(dir)
}

/// Makes a folder of our own scratch area anew.
fn emptied(dir: PathBuf) -> Result<PathBuf, String> {
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{} cannot be emptied: {e}", dir.display())),
        _ => made(dir),
    }
}
