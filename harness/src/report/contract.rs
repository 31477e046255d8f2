//! Coverage of the contract as a table: each family with its rarest thing, then what was never reached.

use super::table::{grouped, table};
use crate::run::{ContractCoverage, OUT_OF_REACH};
use std::fmt;

/// How many names of one family are listed.
const MOST_NAMES: usize = 16;

impl fmt::Display for ContractCoverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = table(&["coverage of the contract", ">reached", ">of", ">times", "rarest"]);
        for family in self.families() {
            let rarest = family.counts.iter().filter(|(_, n)| *n > 0).min_by_key(|(_, n)| *n);
            let rarest = rarest.map_or(String::new(), |(name, n)| format!("{name} {}", grouped(*n)));
            let [reached, of] = [family.reached(), family.counts.len()].map(|n| n.to_string());
            rows.add_row([family.name.to_owned(), reached, of, grouped(family.total()), rarest]);
        }
        writeln!(f, "{rows}")?;
        let never = self.never_reached();
        match never.iter().map(|(_, names)| names.len()).sum::<usize>() {
            0 => writeln!(f, "never reached: nothing")?,
            count => {
                let families: Vec<String> = never.iter().map(|(family, names)| missing(family, names)).collect();
                writeln!(f, "never reached ({count}): {}", families.join("; "))?;
            }
        }
        let mut reasons: Vec<&str> = OUT_OF_REACH.iter().map(|(.., why)| *why).collect();
        reasons.dedup();
        for reason in reasons {
            let names = OUT_OF_REACH.iter().filter(|(.., why)| *why == reason).map(|(_, name, _)| *name);
            writeln!(f, "out of reach, for {reason}: {}", names.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

/// What a family lacks: by name, or by number if that is too much to read.
fn missing(family: &str, names: &[&str]) -> String {
    match names.len() {
        0..=MOST_NAMES => format!("{family}: {}", names.join(", ")),
        many => format!("{family}: {many} of them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Coverage;

    #[test]
    fn the_table_names_the_rarest_and_what_was_never_reached() {
        let mut contract = ContractCoverage::default();
        contract.add(&Coverage::from_line("0:5000,1:7"));
        let text = contract.to_string();
        let (first, second) = (kmem::Event::ALL[0], kmem::Event::ALL[1]);
        assert!(text.contains("5,007") && text.contains(&format!("{second:?} 7")), "{text}");
        assert!(text.contains("never reached (") && !text.contains(&format!("{first:?},")), "{text}");
    }
}
