//! `hammer props`: the property-based engines, for a number of cases.

use super::pool::{self, Limit};
use super::run::{conclude, fresh_seed};
use super::ui::Ui;
use super::{UserError, Verdict};
use super::{apart, replay};
use crate::engines::{Engine, bolero::Bolero, props::Props, state_machine::StateMachine};
use crate::report::closing::Summary;
use clap::Args;
use std::time::Instant;

#[derive(Args)]
pub(super) struct PropsArgs {
    /// How many cases each engine runs on each target.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    cases: u64,
    /// Where random numbers start; the same seed gives the same cases.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// What to test.
    #[arg(long, default_value = "kmem")]
    subject: String,
}

pub(super) fn run(args: &PropsArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let subject = replay::subject(&args.subject)?;
    if let Some(verdict) = apart::run(subject, ui)? {
        return Ok(verdict);
    }
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let engines: [&dyn Engine; 3] = [&Props, &StateMachine, &Bolero];
    let plan = pool::plan(&engines, subject, Limit::Cases(args.cases));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    ui.phase("property engines");
    let start = Instant::now();
    let done = pool::run_all(&plan, workers, seed, &[], ui);
    conclude(done, subject, Summary { seed: Some(seed), ..Summary::default() }, start.elapsed(), ui)
}
