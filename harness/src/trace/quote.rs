//! Puts quotes around the names after `gfp:`, `flags:` and `swarm:`, which RON wants and people do not.

use std::ops::Range;

/// The fields whose values are names joined by `|`.
const NAMED: [&str; 3] = ["gfp", "flags", "swarm"];

/// A text with the quotes added, and where they are.
pub(super) struct Quoted {
    /// The text for the parser.
    pub(super) text: String,
    /// Line and column (both from 1, in the quoted text) of each added quote, in order.
    added: Vec<(usize, usize)>,
}

impl Quoted {
    /// Adds the quotes; text that has them already, and comments, stay as they are.
    pub(super) fn new(text: &str) -> Self {
        let mut quoted = Self { text: String::with_capacity(text.len() + text.len() / 8), added: Vec::new() };
        for (index, line) in text.split_inclusive('\n').enumerate() {
            quoted.push_line(index + 1, line);
        }
        quoted
    }

    /// The column in the original text of a column in the quoted one.
    pub(super) fn original_column(&self, line: usize, column: usize) -> usize {
        let first = self.added.partition_point(|&place| place < (line, 0));
        let before = self.added.iter().skip(first).take_while(|&&place| place < (line, column)).count();
        column.saturating_sub(before).max(1)
    }

    /// Copies one line; every byte is looked at a fixed number of times, whatever the line looks like.
    fn push_line(&mut self, number: usize, line: &str) {
        let code = line.find("//").and_then(|at| line.get(..at)).unwrap_or(line);
        let (mut done, mut column) = (0, 1);
        for (colon, _) in code.match_indices(':') {
            let Some(names) = names_after(code, colon) else { continue };
            for end in [names.start, names.end] {
                let piece = line.get(done..end).unwrap_or_default();
                column += piece.chars().count();
                self.text.push_str(piece);
                self.text.push('"');
                self.added.push((number, column));
                column += 1;
                done = end;
            }
        }
        self.text.push_str(line.get(done..).unwrap_or_default());
    }
}

/// Where the bare names stand that follow a colon; `None` if none of [`NAMED`] precedes it or no name follows.
fn names_after(code: &str, colon: usize) -> Option<Range<usize>> {
    let before = code.get(..colon)?.trim_end();
    let stem = NAMED.iter().find_map(|field| before.strip_suffix(field))?;
    if stem.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let value = code.get(colon + 1..)?.trim_start();
    let start = code.len() - value.len();
    let len = value.find(|c: char| !is_name_char(c)).unwrap_or(value.len());
    let names = value.get(..len)?.trim_end();
    (!names.is_empty()).then_some(start..start + names.len())
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '|' | ' ' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_names_get_quotes_and_everything_else_stays() {
        let quote = |text| Quoted::new(text).text;
        assert_eq!(quote("A(gfp: KERNEL|ZERO, n: 1)"), "A(gfp: \"KERNEL|ZERO\", n: 1)");
        assert_eq!(quote("A(gfp:\"KERNEL\")"), "A(gfp:\"KERNEL\")");
        assert_eq!(quote("// gfp: KERNEL\nA(gfp: NONE )"), "// gfp: KERNEL\nA(gfp: \"NONE\" )");
        assert_eq!(quote("A(gfp: X),A(gfp: Y | Z), // gfp: W"), "A(gfp: \"X\"),A(gfp: \"Y | Z\"), // gfp: W");
        assert_eq!(quote("swarm: ALL,"), "swarm: \"ALL\",");
        assert_eq!(quote("gfp: ,"), "gfp: ,");
        assert_eq!(quote("gfp"), "gfp");
        assert_eq!(quote("A(xgfp: K, gfp :K)"), "A(xgfp: K, gfp :\"K\")");
    }

    #[test]
    fn a_long_line_takes_linear_time() {
        let line = "A(gfp: KERNEL|ZERO, size: 1),".repeat(200_000);
        let start = std::time::Instant::now();
        assert_eq!(Quoted::new(&line).added.len(), 400_000);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    #[test]
    fn columns_are_those_of_the_text_that_was_written() {
        let quoted = Quoted::new("x\nA(gfp: X), B(gfp: Y), C");
        let column = quoted.text.lines().nth(1).unwrap().find('C').unwrap() + 1;
        assert_eq!(quoted.original_column(2, column), "A(gfp: X), B(gfp: Y), C".find('C').unwrap() + 1);
        assert_eq!(quoted.original_column(1, 1), 1);
    }
}
