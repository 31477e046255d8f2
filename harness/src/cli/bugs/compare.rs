//! `hammer bugs --compare`: the same planted bugs for all contestants of the yardstick.
//!
//! Every contestant hunts every bug from every seed on one thread, until it objects, or its operations are spent, or the time
//! is. The clock is the operations that the allocator was asked for. Three tables come of it, each with rows of its own: the
//! same judges and other makers, the same maker and other judges, and whole designs.

use super::BugsArgs;
use crate::bugs::Bug;
use crate::cli::hunt::Hunt;
use crate::cli::nursery::Nursery;
use crate::cli::ui::Ui;
use crate::cli::yardstick::{conditions, write_section};
use crate::cli::{UserError, Verdict};
use crate::generate::rng;
use crate::report::table::{grouped, markdown};
use crate::trace::{GeometrySpec, Op, OpKind, Role};
use crate::yardstick::Contestant;
use crate::yardstick::survival::{Curve, Estimate, Trial, bootstrap, wilson};
use kmem::GfpFlags;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// How many bootstrap samples an interval is taken from.
const RESAMPLES: usize = 10_000;
/// Where their random numbers start.
const BOOTSTRAP_SEED: u64 = 1;

/// One hunt.
#[derive(Clone, Serialize)]
struct Run {
    bug: String,
    contestant: String,
    seed: u64,
    ops: u64,
    seconds: f64,
    /// Who objected, if anybody did.
    oracle: Option<String>,
}

/// All hunts of a comparison.
struct Field {
    runs: Vec<Run>,
    /// Bugs whose programs could not be made.
    left_out: Vec<String>,
    seeds: u64,
    /// The most operations of a hunt.
    horizon: f64,
}

pub(super) fn run(bugs: &[Bug], nursery: &Nursery, args: &BugsArgs, ui: &Ui) -> Result<Verdict, UserError> {
    let bugs = bugs.iter().filter(|bug| args.only.is_some() || is_for_all(bug));
    let contestants = all_contestants();
    let mut field = Field { runs: Vec::new(), seeds: args.seeds, horizon: args.ops as f64, left_out: Vec::new() };
    for bug in bugs.take_while(|_| !ui.live.is_stopped()) {
        ui.phase(&bug.name);
        match nursery.program(bug) {
            Ok(program) => field.runs.extend(hunts(bug, &program, &contestants, nursery, args)?),
            // The others can be compared all the same.
            Err(message) => {
                ui.tell(format!("{}: {message}", bug.name));
                field.left_out.push(bug.name.clone());
            }
        }
        let csv = nursery.place("compare.csv");
        fs::write(&csv, field.csv()).map_err(|e| UserError(format!("{}: {e}", csv.display())))?;
    }
    let text = field.document(args);
    if let Some(doc) = &args.markdown {
        write_section(doc, "bugs", &text)?;
    }
    ui.result(&serde_json::json!({ "ok": true, "runs": field.runs }), text);
    Ok(Verdict::Fine)
}

/// Everybody once.
fn all_contestants() -> Vec<Contestant> {
    let all = [Contestant::by_maker(), Contestant::by_judge(), Contestant::whole()].into_iter().flatten();
    let by_name: BTreeMap<String, Contestant> = all.map(|contestant| (contestant.name(), contestant)).collect();
    by_name.into_values().collect()
}

/// Bugs that a caller of `malloc`, `free` and `realloc` on an ordinary machine can meet, as far as the witness tells: it asks for
/// memory of one of the tiers that `kvmalloc` asks, with ordinary flags, and needs neither a fault nor a check.
fn is_for_all(bug: &Bug) -> bool {
    let Some(trace) = &bug.witness else { return false };
    let (machine, usual) = (trace.geometry, GeometrySpec::default());
    let is_usual = machine
        == GeometrySpec {
            frames: machine.frames,
            dma_frames: machine.dma_frames,
            vmalloc_pages: machine.vmalloc_pages,
            cpus: machine.cpus,
            min_free: machine.min_free,
            huge: machine.huge,
            ..usual
        };
    is_usual && trace.faults.is_empty() && !trace.ops.is_empty() && trace.ops.iter().all(is_plain)
}

fn is_plain(op: &Op) -> bool {
    use OpKind as K;
    let front =
        [K::Kvmalloc, K::Kvfree, K::Kvrealloc, K::Kmalloc, K::Kfree, K::Krealloc, K::Vmalloc, K::Vfree, K::Free];
    let gfp = op.number(Role::Gfp).map(|bits| GfpFlags::from_bits_truncate(bits as u32) - GfpFlags::ZERO);
    front.contains(&op.kind()) && gfp.is_none_or(|gfp| gfp == GfpFlags::KERNEL || gfp.is_empty())
}

/// All contestants hunt one bug from all seeds, on as many threads as there are processors.
fn hunts(
    bug: &Bug,
    program: &Path,
    contestants: &[Contestant],
    nursery: &Nursery,
    args: &BugsArgs,
) -> Result<Vec<Run>, UserError> {
    let jobs = contestants.iter().flat_map(|who| (1..=args.seeds).map(move |seed| (who.name(), seed)));
    let queue = Mutex::new(jobs.collect::<Vec<_>>().into_iter());
    let done = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                // The lock is given back before the hunt begins.
                let next = || queue.lock().ok().and_then(|mut queue| queue.next());
                while let Some((contestant, seed)) = next() {
                    let run = hunt(bug, program, contestant, seed, nursery, args);
                    if let Ok(mut done) = done.lock() {
                        done.push(run);
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_default();
    let mut runs = done.into_iter().collect::<Result<Vec<Run>, String>>().map_err(UserError)?;
    runs.sort_by(|a, b| (&a.contestant, a.seed).cmp(&(&b.contestant, b.seed)));
    Ok(runs)
}

fn hunt(
    bug: &Bug,
    program: &Path,
    contestant: String,
    seed: u64,
    nursery: &Nursery,
    args: &BugsArgs,
) -> Result<Run, String> {
    let mut command = Command::new(program);
    command.args(["hunt", "--as-found", "--ablate", &contestant, "--seed", &seed.to_string()]);
    command.args(["--ops", &args.ops.to_string(), "--seconds", &args.seconds.to_string()]);
    command.arg("--out").arg(nursery.place("hammer-out").join("compare"));
    let hunt: Hunt = nursery
        .ask(&mut command, Duration::from_secs(2 * args.seconds + 60))
        .map_err(|e| format!("{} against {}: {e}", contestant, bug.name))?;
    let oracle = hunt.found.map(|prey| prey.oracle);
    Ok(Run { bug: bug.name.clone(), contestant, seed, ops: hunt.ops, seconds: hunt.seconds, oracle })
}

impl Field {
    /// The bugs that were hunted, in the order in which they were.
    fn bugs(&self) -> Vec<&str> {
        self.runs.chunk_by(|a, b| a.bug == b.bug).filter_map(|runs| Some(runs.first()?.bug.as_str())).collect()
    }

    /// All hunts, one a line.
    fn csv(&self) -> String {
        let line = |run: &Run| {
            let Run { bug, contestant, seed, ops, seconds, oracle } = run;
            format!("{bug},{contestant},{seed},{ops},{seconds:.4},{}\n", oracle.as_deref().unwrap_or_default())
        };
        let lines: String = self.runs.iter().map(line).collect();
        format!("bug,contestant,seed,ops,seconds,oracle\n{lines}")
    }

    /// A contestant's hunts of a bug, in the order of the seeds.
    fn trials(&self, contestant: &Contestant, bug: &str) -> Vec<Trial> {
        let name = contestant.name();
        let runs = self.runs.iter().filter(|run| run.contestant == name && run.bug == bug);
        runs.map(|run| Trial { time: run.ops as f64, detected: run.oracle.is_some() }).collect()
    }

    /// Tells whether a contestant's maker reaches a bug: it was found with its traces, by all of our oracles or by its own judge,
    /// from one seed at least. What it never reaches is no loss of its own.
    fn reaches(&self, contestant: &Contestant, bug: &str) -> bool {
        let found =
            |name: String| self.runs.iter().any(|run| run.contestant == name && run.bug == bug && run.oracle.is_some());
        found(format!("{}+all", contestant.maker.name)) || found(contestant.name())
    }

    /// The hunts of both on the bugs that both can reach, bug by bug and seed by seed.
    fn pairs(&self, ours: &Contestant, other: &Contestant) -> Vec<Vec<(Trial, Trial)>> {
        let bugs = self.bugs().into_iter();
        let both = bugs.filter(|bug| self.reaches(ours, bug) && self.reaches(other, bug));
        both.map(|bug| self.trials(ours, bug).into_iter().zip(self.trials(other, bug)).collect()).collect()
    }

    fn document(&self, args: &BugsArgs) -> String {
        let bugs = self.bugs();
        let words = format!(
            "{} bugs, seeds 1 to {}, at most {} operations or {} seconds a hunt, {RESAMPLES} bootstrap samples from seed \
             {BOOTSTRAP_SEED}",
            bugs.len(),
            self.seeds,
            grouped(args.ops),
            args.seconds
        );
        let mut text = format!("{} The bugs: {}.\n", conditions(&words), bugs.join(", "));
        if !self.left_out.is_empty() {
            let _ = writeln!(
                text,
                "Left out, since the patch does not apply or does not build: {}.",
                self.left_out.join(", ")
            );
        }
        let tables = [
            ("Same judges (all of our oracles), other makers", Contestant::by_maker()),
            ("Same maker (our engine), other judges", Contestant::by_judge()),
            ("Whole designs: the maker with its own judges", Contestant::whole()),
        ];
        for (title, contestants) in tables {
            let _ = write!(text, "\n### {title}\n\n{}\n", self.summary(&contestants));
            let _ = write!(text, "\n{}\n\n{}\n", PER_BUG, self.per_bug(&contestants));
            let _ = write!(text, "\n{}\n", self.losses(&contestants));
        }
        let _ = write!(text, "\n{}\n", self.best_design());
        text
    }

    /// One row for each contestant, over all bugs that it and ours can reach.
    fn summary(&self, contestants: &[Contestant]) -> comfy_table::Table {
        let mut table = markdown(&[
            "contestant",
            ">bugs in reach",
            ">hunts that found it",
            ">median operations",
            ">restricted mean",
            ">restricted medians, to ours",
        ]);
        let Some(ours) = contestants.first() else { return table };
        for who in contestants {
            let pairs = self.pairs(ours, who);
            let theirs: Vec<Vec<Trial>> = pairs.iter().map(|bug| bug.iter().map(|pair| pair.1).collect()).collect();
            let all = theirs.concat();
            let found = all.iter().filter(|trial| trial.detected).count();
            let part = wilson(found, all.len());
            let estimate = |statistic: &dyn Fn(&[Vec<Trial>]) -> f64| {
                bootstrap(&theirs, RESAMPLES, &mut rng(BOOTSTRAP_SEED), statistic)
            };
            let median = estimate(&|bugs| Curve::of(&bugs.concat()).median());
            let mean = estimate(&|bugs| Curve::of(&bugs.concat()).restricted_mean(self.horizon));
            table.add_row([
                if who.judge.name == ours.judge.name { who.maker.name } else { who.judge.name }.to_owned(),
                pairs.len().to_string(),
                format!("{found} of {} ({:.0} to {:.0} %)", all.len(), part.low * 100.0, part.high * 100.0),
                number(median),
                number(mean),
                ratio(self.times_longer(&pairs)),
            ]);
        }
        table
    }

    /// How many times as long the other one takes, as a ratio of restricted medians of all hunts.
    fn times_longer(&self, pairs: &[Vec<(Trial, Trial)>]) -> Estimate {
        let median = |trials: Vec<Trial>| Curve::of(&trials).median().min(self.horizon);
        bootstrap(pairs, RESAMPLES, &mut rng(BOOTSTRAP_SEED), |bugs| {
            let (ours, theirs) = bugs.concat().into_iter().unzip();
            median(theirs) / median(ours)
        })
    }

    /// One row for each bug: the median of each contestant.
    fn per_bug(&self, contestants: &[Contestant]) -> comfy_table::Table {
        let by_maker = contestants.windows(2).all(|two| two[0].judge.name == two[1].judge.name);
        let name = |who: &Contestant| if by_maker { who.maker.name } else { who.judge.name };
        let names: Vec<String> =
            std::iter::once("bug".to_owned()).chain(contestants.iter().map(|who| format!(">{}", name(who)))).collect();
        let mut table = markdown(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for bug in self.bugs() {
            let cells = contestants.iter().map(|who| self.cell(who, bug));
            table.add_row(std::iter::once(bug.to_owned()).chain(cells));
        }
        table
    }

    fn cell(&self, who: &Contestant, bug: &str) -> String {
        if !self.reaches(who, bug) {
            return "n/a".to_owned();
        }
        let trials = self.trials(who, bug);
        let found = trials.iter().filter(|trial| trial.detected).count();
        let median = Curve::of(&trials).median();
        match (found, median.is_finite()) {
            (0, _) => "–".to_owned(),
            (_, true) => grouped(median as u64),
            (_, false) => format!("({found}/{})", trials.len()),
        }
    }

    /// The bugs that somebody found in fewer operations than ours, all of them.
    fn losses(&self, contestants: &[Contestant]) -> String {
        let Some((ours, others)) = contestants.split_first() else { return String::new() };
        let median = |who: &Contestant, bug: &str| Curve::of(&self.trials(who, bug)).median();
        let lost = others.iter().filter_map(|who| {
            let lost = self.bugs().into_iter().filter(|bug| median(who, bug) < median(ours, bug));
            let bugs: Vec<&str> = lost.filter_map(|bug| bug.split('-').next()).collect();
            let name = if who.judge.name == ours.judge.name { who.maker.name } else { who.judge.name };
            (!bugs.is_empty()).then(|| format!("{name}: {} ({})", bugs.len(), bugs.join(" ")))
        });
        let lost: Vec<String> = lost.collect();
        if lost.is_empty() {
            return "Lost to nobody: no bug has a smaller median with another contestant.".to_owned();
        }
        format!("Bugs with a smaller median than ours has: {}.", lost.join("; "))
    }

    /// Ours against the best design of somebody else, on the bugs that both can reach. The best is who needs the fewest operations
    /// for all bugs: one that reaches two easy bugs and no other is not the best.
    fn best_design(&self) -> String {
        let whole = Contestant::whole();
        let Some((ours, others)) = whole.split_first() else { return String::new() };
        let mean = |who: &Contestant| {
            let all = self.bugs().into_iter().flat_map(|bug| self.trials(who, bug)).collect::<Vec<_>>();
            Curve::of(&all).restricted_mean(self.horizon)
        };
        let best = others.iter().min_by(|a, b| mean(a).total_cmp(&mean(b)));
        let Some(best) = best else { return String::new() };
        let pairs = self.pairs(ours, best);
        format!(
            "**Ours against the best design of somebody else** ({}, by restricted mean over all bugs), on the {} bugs that both can \
             reach: it takes {} times as many operations (restricted medians).",
            best.maker.name,
            pairs.len(),
            ratio(self.times_longer(&pairs))
        )
    }
}

/// What the cells of the tables by bug mean.
const PER_BUG: &str = "Median operations until the bug was found; `–`: from no seed, `(2/5)`: from fewer than half of the seeds, \
                       `n/a`: not found with its traces by our oracles either.";

fn number(estimate: Estimate) -> String {
    let one = |value: f64| if value.is_finite() { grouped(value as u64) } else { "not reached".to_owned() };
    format!("{} ({} to {})", one(estimate.value), one(estimate.low), one(estimate.high))
}

fn ratio(estimate: Estimate) -> String {
    format!("{:.1} ({:.1} to {:.1})", estimate.value, estimate.low, estimate.high)
}
