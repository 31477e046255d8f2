//! The folder of a failure: everything needed to see it, replay it and keep it as a test.

use super::page;
use super::story::Story;
use crate::engines::{Executor, Finding};
use crate::generate::Target;
use crate::oracle::{OracleId, Violation};
use crate::run::RunOptions;
use crate::shrink::shrink;
use crate::subjects::SubjectKind;
use crate::trace::Trace;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How many executions shrinking may take.
const SHRINK_BUDGET: usize = 20_000;
/// How long shrinking may take; what is small enough by then is good enough.
const SHRINK_TIME: Duration = Duration::from_secs(10);

/// A violation with a trace as small as the shrinker could make it.
pub struct Case {
    /// The trace.
    pub trace: Trace,
    /// What the oracle says about it.
    pub violation: Violation,
    /// How many operations the trace had when it was found.
    pub found_ops: usize,
    /// Executions that shrinking took.
    pub executions: usize,
    /// On what it fails.
    pub subject: SubjectKind,
    /// Who found it, for the reader.
    pub origin: String,
}

impl Case {
    /// Shrinks a finding; the oracle stays the same.
    pub fn minimise(finding: Finding, target: Target, subject: SubjectKind, origin: String) -> Self {
        let oracle = finding.violation.oracle;
        // What a single run shows needs no second one, which would take as long again.
        let found = Executor::new(subject, RunOptions::default()).execute(target, &finding.trace).killer();
        let options = if found == Some(oracle) { RunOptions::default() } else { RunOptions::AGAIN };
        let mut executor = Executor::new(subject, options);
        let mut objection = |trace: &Trace| match &finding.program {
            Some(program) => fails_in(program, trace).then(|| finding.violation.clone()),
            None => executor.execute(target, trace).violation.filter(|violation| violation.oracle == oracle),
        };
        Self::minimise_by(finding.clone(), subject, origin, SHRINK_TIME, &mut objection)
    }

    /// Shrinks a finding for so long, asking `objection` what the same oracle says about smaller traces.
    pub fn minimise_by(
        finding: Finding,
        subject: SubjectKind,
        origin: String,
        time: Duration,
        mut objection: impl FnMut(&Trace) -> Option<Violation>,
    ) -> Self {
        let (start, found_ops) = (Instant::now(), finding.trace.ops.len());
        let shrunk = shrink(finding.trace, SHRINK_BUDGET, |trace| start.elapsed() < time && objection(trace).is_some());
        let violation = objection(&shrunk.trace).unwrap_or_else(|| finding.violation.clone());
        Self { trace: shrunk.trace, violation, found_ops, executions: shrunk.executions, subject, origin }
    }

    /// The name of the folder: the oracle, and a number that depends on the trace only.
    pub fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.trace.to_bytes().hash(&mut hasher);
        format!("{}-{:08x}", self.violation.oracle, hasher.finish() as u32)
    }

    /// Writes the folder below `out` and returns the path of the minimal trace.
    ///
    /// # Errors
    ///
    /// The folder cannot be written.
    pub fn write(&self, out: &Path) -> io::Result<PathBuf> {
        let dir = out.join(self.name());
        fs::create_dir_all(&dir)?;
        let trace = dir.join("trace.ron");
        fs::write(&trace, self.trace.to_commented_text(&self.sentence()))?;
        fs::write(dir.join("test.rs"), self.test())?;
        fs::write(dir.join("README.md"), self.readme(&trace))?;
        // What ends the process that executes it cannot tell its story.
        if self.violation.oracle != OracleId::Crash {
            let story = Story::of(&self.trace, self.subject);
            fs::write(dir.join("steps.txt"), story.steps())?;
            fs::write(dir.join("heap.txt"), story.memory())?;
            fs::write(dir.join("report.html"), page::html(&self.trace, self.subject, &story, Some(&self.violation))?)?;
        }
        Ok(trace)
    }

    fn sentence(&self) -> String {
        let Violation { oracle, message, op, .. } = &self.violation;
        format!("{oracle} at operation {op}: {message}\nFound by {}.", self.origin)
    }

    fn readme(&self, trace: &Path) -> String {
        let Violation { oracle, message, op, blocks } = &self.violation;
        let subject = self.subject.name();
        format!(
            "# {oracle}\n\n{message}\n\n\
             Operation {op} of {ops}, blocks {blocks:?}, subject `{subject}`. Found by {origin} with {found} operations; \
             shrunk in {executions} executions.\n\n\
             Replay it:\n\n    cargo run --release -- replay {path} --subject {subject}\n\n\
             | file | what |\n|---|---|\n\
             | `trace.ron` | the minimal trace |\n\
             | `test.rs` | the same as a test: put it into `proptests/tests/` |\n\
             | `steps.txt` | each call, its answer, and why |\n\
             | `heap.txt` | memory before and after the call that failed |\n\
             | `report.html` | all of it for a browser, with memory after each operation |\n",
            ops = self.trace.ops.len(),
            origin = self.origin,
            found = self.found_ops,
            executions = self.executions,
            path = trace.display(),
        )
    }

    /// A test that needs this crate and nothing else.
    fn test(&self) -> String {
        let function = self.name().to_lowercase().replace('-', "_");
        let Violation { oracle, message, .. } = &self.violation;
        let message = message.replace('\n', "\n//! ");
        format!(
            "//! {oracle}: {message}\n\n\
             use kmem_harness::run::{{RunOptions, Runner}};\n\
             use kmem_harness::subjects;\n\
             use kmem_harness::trace::Trace;\n\n\
             const TRACE: &str = r#\"\n{text}\"#;\n\n\
             #[test]\n\
             fn {function}() {{\n    \
                 let trace = Trace::from_text(TRACE).expect(\"the trace parses\");\n    \
                 let subject = subjects::by_name(\"{subject}\").expect(\"the subject exists\");\n    \
                 let report = Runner::new().run(&trace, subject, &RunOptions::AGAIN);\n    \
                 assert_eq!(report.violation, None);\n\
             }}\n",
            text = self.trace.to_text(),
            subject = self.subject.name(),
        )
    }
}

/// Tells whether a fuzz target objects to a trace; one that cannot be asked does not.
fn fails_in(program: &Path, trace: &Trace) -> bool {
    let input = std::env::temp_dir().join(format!("hammer-shrink-{}", std::process::id()));
    let ran = fs::write(&input, trace.to_bytes())
        .and_then(|()| Command::new(program).arg(&input).arg("-exact_artifact_path=/dev/null").output());
    // A file that stays behind does no harm.
    let _ = fs::remove_file(&input);
    ran.is_ok_and(|output| !output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Generator;
    use crate::subjects;

    /// A generated trace on which a degenerate subject fails, made small.
    fn case() -> Case {
        let subject = subjects::by_name("same-block").unwrap();
        let mut executor = Executor::new(subject, RunOptions::default());
        let failing = (0..100).find_map(|seed| {
            let trace = Generator::new(seed).trace(Target::Trace, 100);
            let violation = executor.execute(Target::Trace, &trace).violation?;
            (violation.oracle == OracleId::O1Overlap).then(|| Finding::new(trace, violation))
        });
        Case::minimise(failing.unwrap(), Target::Trace, subject, "a test".to_owned())
    }

    #[test]
    fn a_finding_becomes_small_and_keeps_its_oracle() {
        let case = case();
        assert_eq!(case.violation.oracle, OracleId::O1Overlap);
        assert!(case.trace.ops.len() <= 3, "{:?}", case.trace.ops);
    }

    #[test]
    fn the_folder_holds_the_trace_the_test_and_the_story() {
        let out = std::env::temp_dir().join(format!("hammer-failure-{}", std::process::id()));
        let case = case();
        let path = case.write(&out).unwrap();
        assert_eq!(Trace::load(&path).unwrap(), case.trace);
        let dir = path.parent().unwrap();
        assert!(fs::read_to_string(dir.join("test.rs")).unwrap().contains(&case.trace.to_text()));
        for file in ["steps.txt", "heap.txt", "README.md", "report.html"] {
            assert!(!fs::read_to_string(dir.join(file)).unwrap().is_empty(), "{file}");
        }
        fs::remove_dir_all(out).unwrap();
    }
}
