//! Property tests of `kmem` under `cargo test`; they are in `tests/`. Here is what they share.

use kmem_harness::engines::{Executor, Finding, MAX_OPS};
use kmem_harness::generate::Target;
use kmem_harness::report::failure::Case;
use kmem_harness::run::RunOptions;
use kmem_harness::subjects::SubjectKind;
use kmem_harness::trace::Trace;
use std::cell::RefCell;
use std::path::Path;

/// The longest trace of a property test.
pub const OPS: usize = MAX_OPS;

thread_local! {
    static EXECUTOR: RefCell<Executor> = RefCell::new(Executor::new(SubjectKind::KMEM, RunOptions::AGAIN));
}

/// Executes a trace with every oracle asked.
///
/// # Errors
///
/// What the oracle said about the trace after shrinking, and where the folder of the failure is.
pub fn judge(target: Target, trace: &Trace) -> Result<(), String> {
    let report = EXECUTOR.with_borrow_mut(|executor| executor.execute(target, trace));
    let Some(violation) = report.violation else { return Ok(()) };
    let finding = Finding::new(trace.clone(), violation);
    let case = Case::minimise(finding, target, SubjectKind::KMEM, "cargo test".to_owned());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hammer-out");
    let place = case.write(&folder).map_or_else(|e| format!("not written: {e}"), |path| path.display().to_string());
    Err(format!("{}: {}\n{}\n{place}", case.violation.oracle, case.violation.message, case.trace.to_text()))
}
