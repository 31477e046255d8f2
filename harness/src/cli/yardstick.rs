//! `hammer yardstick`: our harness beside the designs of others, on wrong allocators and on the right one.

use super::ui::Ui;
use super::{UserError, Verdict};
use crate::report::table::{grouped, markdown};
use crate::subjects::DEGENERATES;
use crate::yardstick::kills::{Attempt, kills};
use crate::yardstick::reach::{Reach, reach};
use crate::yardstick::{Contestant, makers};
use clap::Args;
use comfy_table::Table;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// After how many operations it is looked how far a maker came: this many, ten times as many, and all.
const FIRST_LOOK: u64 = 10_000;

#[derive(Args)]
pub(super) struct YardstickArgs {
    /// Operations for each contestant on each wrong allocator, from each seed.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    ops: u64,
    /// From how many seeds.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Operations for each maker of traces on the right allocator; 0: how far they come is not measured.
    #[arg(long, value_name = "N", default_value_t = 300_000)]
    reach: u64,
    /// Only contestants whose maker's name begins like this.
    #[arg(long, value_name = "NAME", conflicts_with = "markdown")]
    only: Option<String>,
    /// Writes the tables into this document, in the place of those that are there.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl YardstickArgs {
    fn wanted(&self, mut contestants: Vec<Contestant>) -> Vec<Contestant> {
        contestants.retain(|who| self.only.as_ref().is_none_or(|only| who.maker.name.starts_with(only.as_str())));
        contestants
    }
}

pub(super) fn run(args: &YardstickArgs, ui: &Ui) -> Result<Verdict, UserError> {
    ui.phase("wrong allocators");
    let contestants = args.wanted(Contestant::whole());
    let attempts = kills(&contestants, args.seeds, args.ops, &ui.live);
    let first = format!(
        "{}\n\n{}",
        conditions(&format!(
            "{} seeds (1 to {}), at most {} operations each",
            args.seeds,
            args.seeds,
            grouped(args.ops)
        )),
        kill_table(&contestants, &attempts)
    );
    let reached = far(args, ui);
    let second = format!(
        "{}\n\n{}",
        conditions(&format!("seed 1, at most {} operations each", grouped(args.reach))),
        reach_table(&reached)
    );
    if let Some(doc) = &args.markdown {
        write_section(doc, "degenerates", &first)?;
        if args.reach > 0 {
            write_section(doc, "reach", &second)?;
        }
    }
    let value = serde_json::json!({ "ok": true, "kills": attempts, "reach": reached });
    ui.result(&value, format!("{first}\n\n{second}"));
    Ok(Verdict::Fine)
}

fn far(args: &YardstickArgs, ui: &Ui) -> Vec<Vec<Reach>> {
    let looks = [FIRST_LOOK, FIRST_LOOK * 10, args.reach];
    let mut looks: Vec<u64> = looks.into_iter().filter(|&ops| ops <= args.reach && ops > 0).collect();
    looks.dedup();
    let maker = |contestant: &Contestant| {
        ui.phase(&format!("how far {} comes", contestant.maker.name));
        looks.iter().map(|&ops| reach(contestant, 1, ops, &ui.live)).collect()
    };
    let all = if looks.is_empty() { Vec::new() } else { args.wanted(Contestant::by_maker()) };
    all.iter().take_while(|_| !ui.live.is_stopped()).map(maker).collect()
}

/// When and with what a table was made.
pub(super) fn conditions(words: &str) -> String {
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let commit = if commit.is_empty() { "unknown".to_owned() } else { commit };
    format!("Commit {commit}, {words}.")
}

/// A row for each allocator, a column for each contestant: the median of the operations until it was caught.
fn kill_table(contestants: &[Contestant], attempts: &[Attempt]) -> Table {
    let names = contestants.iter().map(|who| format!(">{}", who.maker.name));
    let mut table = headed(std::iter::once("wrong allocator".to_owned()).chain(names));
    let (mut caught, mut alarms) = (vec![0; contestants.len()], vec![0; contestants.len()]);
    for row in attempts.chunks(contestants.len().max(1)) {
        let Some(first) = row.first() else { continue };
        let is_right = !DEGENERATES.iter().any(|degenerate| degenerate.kind.name() == first.subject);
        let counts = if is_right { &mut alarms } else { &mut caught };
        counts.iter_mut().zip(row).for_each(|(count, attempt)| *count += usize::from(attempt.kills > 0));
        let name = if is_right { format!("{} (right)", first.subject) } else { first.subject.to_owned() };
        table.add_row(std::iter::once(name).chain(row.iter().map(kill_cell)));
    }
    for (name, counts) in [(format!("caught of {}", DEGENERATES.len()), caught), ("false alarms".to_owned(), alarms)] {
        table.add_row(std::iter::once(name).chain(counts.iter().map(ToString::to_string)));
    }
    table
}

fn headed(headings: impl Iterator<Item = String>) -> Table {
    let headings: Vec<String> = headings.collect();
    markdown(&headings.iter().map(String::as_str).collect::<Vec<_>>())
}

fn kill_cell(attempt: &Attempt) -> String {
    let Some(median) = attempt.ops.get(attempt.ops.len() / 2) else { return "–".to_owned() };
    let share =
        if attempt.kills < attempt.seeds { format!(" ({}/{})", attempt.kills, attempt.seeds) } else { String::new() };
    format!("{}{share}", grouped(*median))
}

/// A row for each maker: what it reached after so many operations.
fn reach_table(reached: &[Vec<Reach>]) -> Table {
    let looks = reached.first().map_or(&[][..], Vec::as_slice);
    let at = |what: &str| -> Vec<String> {
        looks.iter().map(|look| format!(">{what}, {}", grouped(look.ops / 1000 * 1000))).collect()
    };
    let names = ["traces made by".to_owned(), "which is".to_owned()].into_iter();
    let names = names.chain(at("of the contract")).chain(at("states")).chain([">operations a trace".to_owned()]);
    let mut table = headed(names.chain(["ended by".to_owned()]));
    for row in reached {
        let name = row.first().map_or("", |look| look.maker);
        let Some(maker) = makers().find(|maker| maker.name == name) else { continue };
        let mut cells = vec![maker.name.to_owned(), maker.about.to_owned()];
        cells.extend(row.iter().map(|look| format!("{} of {}", look.counters, look.of)));
        cells.extend(row.iter().map(|look| grouped(look.states as u64)));
        let last = row.last();
        cells.push(last.map_or(String::new(), |look| format!("{:.1}", look.ops as f64 / look.traces.max(1) as f64)));
        cells.push(last.and_then(|look| look.violation.clone()).unwrap_or_default());
        table.add_row(cells);
    }
    table
}

/// Replaces a section of a document between `<!-- begin NAME -->` and `<!-- end NAME -->`; it has to be there.
pub(super) fn write_section(doc: &Path, name: &str, text: &str) -> Result<(), UserError> {
    let failed = |e: std::io::Error| UserError(format!("{}: {e}", doc.display()));
    let before = fs::read_to_string(doc).map_err(failed)?;
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let place = before.find(&begin).zip(before.find(&end)).filter(|(begin, end)| begin < end);
    let Some((start, stop)) = place else {
        return Err(UserError(format!("{} has no place between {} and {end}", doc.display(), begin.trim_end())));
    };
    let after = format!("{}{begin}\n{}\n\n{}", &before[..start], text.trim(), &before[stop..]);
    fs::write(doc, after).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let doc = std::env::temp_dir().join(format!("hammer-yardstick-{}.md", std::process::id()));
        fs::write(&doc, "# T\n<!-- begin a -->\nold\n<!-- end a -->\ntail\n").unwrap();
        write_section(&doc, "a", "new").unwrap();
        write_section(&doc, "a", "newer").unwrap();
        let text = fs::read_to_string(&doc).unwrap();
        assert_eq!(text, "# T\n<!-- begin a -->\n\nnewer\n\n<!-- end a -->\ntail\n");
        assert!(write_section(&doc, "b", "x").is_err());
        fs::remove_file(&doc).unwrap();
    }
}
