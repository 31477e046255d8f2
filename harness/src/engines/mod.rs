//! The engines: each makes traces in its own way, and all hand them to the same executor.
//!
//! | engine | makes traces by |
//! |---|---|
//! | [`random`] | our generator and mutators, keeping what reaches new internal events |
//! | [`props`] | proptest: a seed for our generator, then rounds of our mutators |
//! | [`state_machine`] | proptest-state-machine: each operation chosen for the state before it |
//! | [`bolero`] | bolero's byte driver through the total decoder |
//! | [`libfuzzer`] | coverage feedback, in a process of its own |
//!
//! None of them shrinks: the failing trace goes to [`crate::shrink`], which keeps the oracle.

#[cfg(feature = "engines")]
pub mod bolero;
mod codec;
#[cfg(feature = "engines")]
mod draw;
mod exec;
pub mod libfuzzer;
pub mod live;
#[cfg(feature = "engines")]
pub mod props;
pub mod random;
pub mod source;
#[cfg(feature = "engines")]
pub mod state_machine;
pub mod target;

pub(crate) use exec::Judge;
pub use exec::{Executor, Finding, Outcome};
pub use live::{Budget, Live};

use crate::generate::Target;
use crate::subjects::SubjectKind;
use crate::trace::Trace;

/// What an engine is asked to do.
pub struct Job<'a> {
    /// What to execute traces on.
    pub subject: SubjectKind,
    /// What to aim at.
    pub target: Target,
    /// Where the engine's random numbers start.
    pub seed: u64,
    /// When to stop.
    pub budget: Budget,
    /// Traces to start from.
    pub seeds: &'a [Trace],
    /// The longest trace to make, in operations.
    pub max_ops: usize,
}

/// A way of making traces.
pub trait Engine: Sync {
    /// What it is called in reports.
    fn name(&self) -> &'static str;

    /// Runs until the budget is spent, the first violation, or a stop.
    ///
    /// # Errors
    ///
    /// Says why the engine could not do its work at all; a violation is not an error but a [`Finding`].
    fn run(&self, job: &Job<'_>, live: &Live) -> Result<Outcome, String>;
}

/// How long a generated trace is unless somebody asks otherwise.
pub const MAX_OPS: usize = 256;

/// The engines that run inside this process, in the order of the closing table.
#[cfg(feature = "engines")]
pub fn in_process() -> [&'static dyn Engine; 4] {
    [&random::Random, &props::Props, &state_machine::StateMachine, &bolero::Bolero]
}
