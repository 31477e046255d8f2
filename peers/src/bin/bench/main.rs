//! The allocator beside other people's, every one in the same run: `cargo run --release --bin bench`.
//!
//! Rounds are interleaved: each serves every allocator once with the same work, so that what else the machine does meets
//! all of them. Nanoseconds are the median of the rounds and, in brackets, the least; instructions are counted by callgrind,
//! which has to be installed for that.

mod objects;
mod pages;
mod report;
mod subjects;

use clap::Parser;
use report::Table;
use std::path::PathBuf;
use std::process::ExitCode;
use subjects::{Subject, object_subjects, page_subjects};

/// What is asked for.
#[derive(Parser)]
#[command(name = "bench", about = "The allocator beside other people's, in one run")]
struct Args {
    /// How often each allocator does each work.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only works whose name has this in it.
    #[arg(long, value_name = "W")]
    work: Option<String>,
    /// Only allocators whose name has this in it.
    #[arg(long, value_name = "S")]
    subject: Option<String>,
    /// Writes the tables to this file, too, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Does one work with one allocator so many times, and says nothing: what runs below callgrind.
    #[arg(long, value_name = "N", hide = true)]
    repeat: Option<u64>,
}

impl Args {
    fn wants(&self, subject: &dyn Subject) -> bool {
        self.subject.as_ref().is_none_or(|part| subject.name().contains(part.as_str()))
    }

    fn wants_work(&self, work: &str) -> bool {
        self.work.as_ref().is_none_or(|part| work.contains(part.as_str()))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let groups = [("Objects", object_subjects()), ("Pages", page_subjects())];
    if let Some(times) = args.repeat {
        return repeat(&args, &groups, times);
    }
    let mut text = String::new();
    for (title, subjects) in &groups {
        let subjects: Vec<&dyn Subject> =
            subjects.iter().map(|subject| &**subject).filter(|s| args.wants(*s)).collect();
        let works: Vec<&str> = subjects.first().map_or(&[][..], |subject| subject.works()).to_vec();
        let works: Vec<&str> = works.into_iter().filter(|work| args.wants_work(work)).collect();
        if works.is_empty() {
            continue;
        }
        let times = Table::measure(&subjects, &works, args.rounds);
        let counts = Table::count(&subjects, &works);
        for table in [Some(times), counts].into_iter().flatten() {
            println!("{title}: {}\n{}\n", table.what(), table.text());
            text += &format!("## {title}: {}\n\n{}\n\n", table.what(), table.markdown());
        }
    }
    match args.markdown.map(|file| (std::fs::write(&file, report::document(&text, args.rounds)), file)) {
        Some((Err(error), file)) => {
            eprintln!("{}: {error}", file.display());
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Does one work so many times.
fn repeat(args: &Args, groups: &[(&str, Vec<Box<dyn Subject>>)], times: u64) -> ExitCode {
    let (Some(name), Some(work)) = (&args.subject, &args.work) else {
        eprintln!("--repeat needs --subject and --work");
        return ExitCode::FAILURE;
    };
    for subject in groups.iter().flat_map(|(_, subjects)| subjects).filter(|subject| subject.name() == name) {
        if let Some(number) = subject.works().iter().position(|known| known == work) {
            // Below callgrind there are fewer addresses: what is refused there is no measure of what is served here.
            return match subject.repeat(number, times) {
                0 => ExitCode::SUCCESS,
                refused => {
                    eprintln!("{refused} requests were refused");
                    ExitCode::FAILURE
                }
            };
        }
    }
    eprintln!("no allocator is called {name}, or it does not know the work {work}");
    ExitCode::FAILURE
}
