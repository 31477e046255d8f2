//! `hammer fuzz`: coverage-guided fuzzing of one target, with a corpus that grows from run to run.

use super::pool::{self, Limit, Planned};
use super::run::{conclude, fresh_seed};
use super::ui::Ui;
use super::{UserError, Verdict, corpus};
use crate::engines::libfuzzer::{FuzzCrate, Keep, LibFuzzer};
use crate::generate::Target;
use crate::report::closing::Summary;
use crate::subjects::SubjectKind;
use clap::Args;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(super) struct FuzzArgs {
    /// What to aim at: trace, kvmalloc, pages, slab, vmalloc or codec.
    #[arg(value_parser = target)]
    target: Target,
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: u64,
    /// Where random numbers start; taken from the clock, and shown, if it is not said.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

fn target(name: &str) -> Result<Target, String> {
    let known = || format!("there is no target `{name}`; there are: {}", Target::ALL.map(Target::name).join(", "));
    Target::by_name(name).ok_or_else(known)
}

pub(super) fn run(args: &FuzzArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let fuzz_crate = FuzzCrate::locate()?;
    let entries = corpus::read(&[fuzz_crate.corpus()])?;
    let seeds: Vec<_> = entries.into_iter().filter_map(|entry| entry.trace.ok()).collect();
    ui.phase("building the fuzz target");
    let programs = fuzz_crate.build(Some(args.target), &ui.live)?;
    let engine = LibFuzzer::new(fuzz_crate, programs, Keep::Corpus);
    let limit = Limit::Time(Duration::from_secs(args.seconds));
    let plan = [Planned { engine: &engine, subject: SubjectKind::KMEM, target: args.target, limit }];
    ui.phase("fuzzing");
    let start = Instant::now();
    let done = ui.with_progress(Duration::from_secs(args.seconds), || pool::run_all(&plan, 1, seed, &seeds, ui));
    conclude(done, SubjectKind::KMEM, Summary { seed: Some(seed), ..Summary::default() }, start.elapsed(), ui)
}
