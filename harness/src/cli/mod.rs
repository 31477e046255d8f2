//! The commands of `hammer`, one file each; [`main_with`] is the whole program, with allocators of your own.

mod apart;
mod bench;
mod bench_moving;
mod bench_peers;
#[cfg(unix)]
mod bench_programs;
mod bench_vmalloc;
mod bugs;
mod corpus;
mod fuzz;
mod hunt;
mod nursery;
mod pool;
mod props;
mod record;
mod replay;
mod run;
mod show;
mod shrink;
mod soak;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod stress;
mod ui;
mod yardstick;

use crate::subjects::{self, SubjectKind};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use ui::Ui;

/// Hammers a memory allocator and checks every answer that it gives.
#[derive(Parser)]
#[command(name = "hammer", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(after_help = "Without a command, `hammer run`.\n\n\
    Exit status: 0 all is well; 1 a violation, the path of its minimal trace on the last line; 2 wrong usage or \
    unreadable input.\n\nExample: hammer --seconds 20 --jobs 2")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArgs,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Args, Clone)]
struct Common {
    /// Print one JSON object instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Where folders of failures go.
    #[arg(long, global = true, value_name = "DIR", default_value = "hammer-out")]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// The main job: replays the corpus, catches the wrong allocators, then runs all engines on all targets.
    #[command(after_help = "Example: hammer run --seconds 20 --jobs 2")]
    Run(run::RunArgs),
    /// Coverage-guided fuzzing of one target; needs neither nightly nor cargo-fuzz.
    #[command(after_help = "Example: hammer fuzz kvmalloc --seconds 60")]
    Fuzz(fuzz::FuzzArgs),
    /// Property tests: proptest, proptest-state-machine and bolero, for a number of cases.
    #[command(after_help = "Example: hammer props --cases 1000 --seed 7")]
    Props(props::PropsArgs),
    /// Replays traces, or folders of them, with every oracle.
    #[command(after_help = "Example: hammer replay corpus/seeds --subject kmem")]
    Replay(replay::ReplayArgs),
    /// Plants known bugs, one after the other, and hunts them.
    #[command(after_help = "Example: hammer bugs --only B24 --seeds 3 --seconds 20")]
    Bugs(bugs::BugsArgs),
    /// Engines at work until the first violation.
    #[command(after_help = "Example: hammer hunt --engine random --seed 7")]
    Hunt(hunt::HuntArgs),
    /// Makes a failing trace as small as it gets, keeping the oracle.
    #[command(after_help = "Example: hammer shrink hammer-out/O1Overlap-1a2b3c4d/trace.ron")]
    Shrink(shrink::ShrinkArgs),
    /// Explains a trace: each call, its answer and why; memory around the call that failed or was refused.
    #[command(after_help = "Example: hammer show corpus/seeds/kvmalloc-survives-fragmentation.ron --html story.html")]
    Show(show::ShowArgs),
    /// Records the heap of a real program as a trace: on `kmem-preload`, or under valgrind.
    #[command(after_help = "Example: hammer record --to corpus/recorded/ls.ron -- ls /")]
    Record(record::RecordArgs),
    /// Runs traces of all kinds on one small machine for a long time.
    #[command(after_help = "Example: hammer soak --ops 100000000 --frames 16 --window 64 --cpus 4 --seed 1")]
    Soak(soak::SoakArgs),
    /// Runs traces on real threads, all on one allocator of the hosted platform.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    #[command(after_help = "Example: hammer stress --threads 4 --seconds 20 --seed 7")]
    Stress(stress::StressArgs),
    /// Measures how fast one core executes and judges operations.
    #[command(after_help = "Example: hammer bench --seconds 10")]
    Bench(bench::BenchArgs),
    /// Runs our harness, and the re-expressed harnesses of others, on wrong allocators and on the right one.
    #[command(after_help = "Example: hammer yardstick --seeds 5 --markdown docs/yardstick.md")]
    Yardstick(yardstick::YardstickArgs),
    /// Judges one trace in this process and answers in one line; what other commands start.
    #[command(after_help = "Example: hammer judge trace.ron --subject loose", hide = true)]
    Judge(apart::JudgeArgs),
}

/// How a command ended, if it could do its work.
enum Verdict {
    /// Nothing to complain about.
    Fine,
    /// A violation; the minimal trace.
    Violation(PathBuf),
    /// A child has said everything; its exit status.
    Told(u8),
    /// Some input could not be read, or some part could not run; it was said which.
    Incomplete,
}

/// Why a command could not do its work, for its user.
#[derive(Debug)]
struct UserError(String);

impl From<String> for UserError {
    fn from(message: String) -> Self {
        Self(message)
    }
}

/// Reads the command line and does what it says; `--subject` knows these subjects besides the built-in ones.
///
/// This is all that the `main` of a program needs that hammers an allocator of its own: see [`adapt`](crate::adapt).
pub fn main_with(subjects: &[SubjectKind]) -> ExitCode {
    subjects::register(subjects);
    let cli = Cli::parse();
    let ui = Ui::new(cli.common);
    let verdict = match cli.command {
        None => run::run(&cli.run, &ui),
        Some(Command::Run(args)) => run::run(&args, &ui),
        Some(Command::Fuzz(args)) => fuzz::run(&args, &ui),
        Some(Command::Props(args)) => props::run(&args, &ui),
        Some(Command::Replay(args)) => replay::run(&args, &ui),
        Some(Command::Bugs(args)) => bugs::run(&args, &ui),
        Some(Command::Hunt(args)) => hunt::run(&args, &ui),
        Some(Command::Shrink(args)) => shrink::run(&args, &ui),
        Some(Command::Show(args)) => show::run(&args, &ui),
        Some(Command::Record(args)) => record::run(&args, &ui),
        Some(Command::Soak(args)) => soak::run(&args, &ui),
        #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
        Some(Command::Stress(args)) => stress::run(&args, &ui),
        Some(Command::Bench(args)) => bench::run(&args, &ui),
        Some(Command::Yardstick(args)) => yardstick::run(&args, &ui),
        Some(Command::Judge(args)) => apart::judge(&args),
    };
    conclude(verdict, &ui)
}

fn conclude(verdict: Result<Verdict, UserError>, ui: &Ui) -> ExitCode {
    match verdict {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Violation(path)) => {
            ui.say(path.display());
            ExitCode::from(1)
        }
        Ok(Verdict::Told(status)) => ExitCode::from(status),
        Ok(Verdict::Incomplete) => ExitCode::from(2),
        Err(UserError(message)) => {
            ui.fail(&message);
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("hammer {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn no_command_means_run() {
        let cli = Cli::try_parse_from(["hammer", "--seconds", "3", "--json"]).unwrap();
        assert!(cli.command.is_none() && cli.common.json);
        assert_eq!(cli.run.seconds, 3);
    }
}
