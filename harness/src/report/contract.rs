//! Coverage of the contract as a table: each family with its rarest thing, then what was never reached.

use super::table::{grouped, table};
use crate::run::{ContractCoverage, OUT_OF_REACH};
use std::fmt;

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
        if never.is_empty() {
            writeln!(f, "never reached: nothing")?;
        } else {
            writeln!(f, "never reached ({}): {}", never.len(), never.join("; "))?;
        }
        for (family, name, why) in OUT_OF_REACH {
            writeln!(f, "out of reach: {family}: {name}, {why}")?;
        }
        Ok(())
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
        assert!(text.contains("never reached (") && !text.contains(&format!(": {first:?};")), "{text}");
    }
}
