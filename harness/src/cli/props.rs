//! `hammer props`: the property-based engines, for a number of cases.

use super::pool::{self, Limit};
use super::run::{conclude, fresh_seed};
use super::ui::Ui;
use super::{UserError, Verdict};
use clap::Args;
use kmem_harness::engines::{Engine, bolero::Bolero, props::Props, state_machine::StateMachine};
use kmem_harness::report::closing::Summary;
use std::time::Instant;

#[derive(Args)]
pub(super) struct PropsArgs {
    /// How many cases each engine runs on each target.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    cases: u64,
    /// Where random numbers start; the same seed gives the same cases.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

pub(super) fn run(args: &PropsArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let engines: [&dyn Engine; 3] = [&Props, &StateMachine, &Bolero];
    let plan = pool::plan(&engines, Limit::Cases(args.cases));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    ui.phase("property engines");
    let start = Instant::now();
    let done = pool::run_all(&plan, workers, seed, &[], ui);
    conclude(done, Summary { seed: Some(seed), ..Summary::default() }, start.elapsed(), ui)
}
