//! The text encoding: RON with one operation a line, and flag names that stand without quotes.
//!
//! ```text
//! // What the scenario shows.
//! Trace(
//!     version: 1,
//!     ops: [
//!         Kmalloc(size: 64, gfp: KERNEL|ZERO),
//!         Kfree(pick: 0),
//!     ],
//! )
//! ```
//!
//! Geometry, swarm and faults may be left out. The comment at the top describes the scenario; [`leading_comment`] reads
//! it and [`Trace::to_commented_text`] writes it, so that a tool that rewrites a file keeps it.

use super::bytes::MAGIC;
use super::quote::Quoted;
use super::{MAX_FAULTS, MAX_OPS, Trace, VERSION};
use ron::ser::PrettyConfig;
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest file that [`Trace::load`] reads: 64 MiB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Some editors put it at the start of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is wrong with a text.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TextErrorKind {
    /// Nothing but white space and comments.
    Empty,
    /// The text ends in the middle; this was expected next.
    Truncated(String),
    /// An operation, field or fault point that does not exist.
    UnknownName {
        /// The name in the text.
        found: String,
        /// The known name that is most like it.
        meant: Option<&'static str>,
        /// All names that may stand here.
        expected: &'static [&'static str],
    },
    /// A version of the language other than [`VERSION`].
    Version(String),
    /// More than [`MAX_OPS`] operations.
    TooManyOps,
    /// More than [`MAX_FAULTS`] planned failures.
    TooManyFaults,
    /// Anything else; the sentence says what was expected.
    Syntax(String),
}

/// Why a text is no trace, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: TextErrorKind,
}

/// Why a file is no trace.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file does not exist.
    Missing(PathBuf),
    /// The path names a folder.
    IsFolder(PathBuf),
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// The file has more bytes than [`MAX_FILE_BYTES`]; it was not read.
    TooLarge(PathBuf, u64),
    /// The file has no bytes, or no operation list.
    Empty(PathBuf),
    /// The file is neither text nor a trace in bytes.
    NotText {
        /// The file.
        path: PathBuf,
        /// The line of the first byte that is no text.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// The text is no trace.
    Text(PathBuf, TextError),
}

impl super::Op {
    /// Writes the operation as its line in the text of a trace.
    pub fn to_text(&self) -> String {
        one_line(self)
    }
}

impl Trace {
    /// Reads a trace from text.
    ///
    /// # Errors
    ///
    /// [`TextError`] with the place and what was expected there.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        if is_blank(text) {
            return Err(TextError { line: 1, column: 1, kind: TextErrorKind::Empty });
        }
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let quoted = Quoted::new(text);
        ron::from_str(&quoted.text).map_err(|error| located(text, &quoted, error))
    }

    /// Writes the trace as text.
    pub fn to_text(&self) -> String {
        self.to_commented_text("")
    }

    /// Writes the trace as text below a comment that describes it.
    pub fn to_commented_text(&self, comment: &str) -> String {
        let mut text = String::with_capacity(512 + self.ops.len() * 48);
        for line in comment.lines() {
            let separator = if line.is_empty() { "" } else { " " };
            text.extend(["//", separator, line.trim_end(), "\n"]);
        }
        text.extend(["Trace(\n    version: ", &self.version.to_string(), ",\n"]);
        text.extend(["    geometry: ", &one_line(&self.geometry), ",\n"]);
        text.extend(["    swarm: ", &one_line(&self.swarm), ",\n"]);
        text.extend(["    faults: ", &one_line(&self.faults), ",\n    ops: [\n"]);
        for op in &self.ops {
            text.extend(["        ", &one_line(op), ",\n"]);
        }
        text.push_str("    ],\n)\n");
        text
    }

    /// Reads a trace from a file: bytes if the name ends in `.bin` or the magic stands at the start, else text.
    ///
    /// # Errors
    ///
    /// [`LoadError`], which names the file and, for a text, the place.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let bytes = read_limited(path)?;
        if bytes.is_empty() {
            return Err(LoadError::Empty(path.to_owned()));
        }
        if bytes.starts_with(&MAGIC) || path.extension().is_some_and(|e| e == "bin") {
            return Ok(Self::from_bytes(&bytes));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let (line, column) = place_of(bytes.get(..error.valid_up_to()).unwrap_or_default());
            LoadError::NotText { path: path.to_owned(), line, column }
        })?;
        Self::from_text(text).map_err(|error| match error.kind {
            TextErrorKind::Empty => LoadError::Empty(path.to_owned()),
            _ => LoadError::Text(path.to_owned(), error),
        })
    }
}

/// A part of a trace on one line; its only strings are names of flags and groups, which stand without quotes.
fn one_line(part: &impl Serialize) -> String {
    let config = PrettyConfig::new().depth_limit(0).new_line("\n");
    let mut line = ron::ser::to_string_pretty(part, config).unwrap_or_default();
    line.retain(|c| c != '"');
    line
}

/// Returns the comment at the top of a text without its slashes; empty if there is none.
pub fn leading_comment(text: &str) -> String {
    let lines = text.trim_start_matches(BYTE_ORDER_MARK).lines();
    let comment = lines.map(str::trim).take_while(|line| line.starts_with("//"));
    let stripped: Vec<&str> = comment.map(|line| line.trim_start_matches('/').trim()).collect();
    stripped.join("\n")
}

fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with("//"))
}

/// Reads a whole file unless it is too large, which is looked at before reading and again while reading.
fn read_limited(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing(path.to_owned()),
        _ => LoadError::Io(path.to_owned(), error),
    };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if metadata.is_dir() {
        return Err(LoadError::IsFolder(path.to_owned()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge(path.to_owned(), metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::TooLarge(path.to_owned(), bytes.len() as u64));
    }
    Ok(bytes)
}

/// The line and column after these bytes.
fn place_of(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let last = before.rsplit(|&b| b == b'\n').next().unwrap_or_default();
    (line, String::from_utf8_lossy(last).chars().count() + 1)
}

/// Translates the parser's error into ours, with the place in the text that the user wrote.
fn located(text: &str, quoted: &Quoted, error: ron::error::SpannedError) -> TextError {
    let at = error.span.start;
    let column = quoted.original_column(at.line, at.col);
    let (end_line, end_column) = place_of(text.trim_end().as_bytes());
    let at_end = (error.span.end.line, quoted.original_column(error.span.end.line, error.span.end.col))
        >= (end_line, end_column);
    let half_a_word = error.code == ron::Error::ExpectedBoolean && ends_in_half_a_boolean(text.trim_end());
    if error.code == ron::Error::Eof
        || half_a_word
        || at_end && !needs_no_more(&error.code, text.trim_end().ends_with(')'))
    {
        let kind = TextErrorKind::Truncated(sentence(&error.code));
        return TextError { line: end_line, column: end_column, kind };
    }
    TextError { line: at.line, column, kind: kind_of(error.code) }
}

/// The parser points at the beginning of a cut `true` or `false`, not at the cut.
fn ends_in_half_a_boolean(text: &str) -> bool {
    let word = text.rsplit(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    !word.is_empty() && (["true", "false"].into_iter().any(|whole| whole != word && whole.starts_with(word)))
}

/// Errors that more text at the end would not mend.
fn needs_no_more(error: &ron::Error, closed: bool) -> bool {
    use ron::Error as E;
    match error {
        E::ExpectedDifferentStructName { .. } | E::MissingStructField { .. } | E::TrailingCharacters => true,
        // A flag, a group or the machine is wrong; before the closing bracket it may be half a name.
        E::Message(_) => closed,
        _ => false,
    }
}

fn kind_of(error: ron::Error) -> TextErrorKind {
    match error {
        ron::Error::NoSuchEnumVariant { expected, found, .. }
        | ron::Error::NoSuchStructField { expected, found, .. } => {
            TextErrorKind::UnknownName { meant: most_like(&found, expected), found: clipped(&found), expected }
        }
        ron::Error::InvalidValueForType { expected, found } if expected == super::EXPECTED_VERSION => {
            TextErrorKind::Version(found)
        }
        ron::Error::ExpectedDifferentLength { expected, .. } if expected == super::EXPECTED_OPS => {
            TextErrorKind::TooManyOps
        }
        ron::Error::ExpectedDifferentLength { expected, .. } if expected == super::EXPECTED_FAULTS => {
            TextErrorKind::TooManyFaults
        }
        other => TextErrorKind::Syntax(sentence(&other)),
    }
}

/// What the parser missed, in our words where its own are unclear.
fn sentence(error: &ron::Error) -> String {
    match error {
        ron::Error::MissingStructField { field, outer } => {
            let whole = outer.as_deref().unwrap_or("this");
            format!("the field `{field}` of `{}` is missing", clipped(whole))
        }
        ron::Error::IntegerOutOfBounds => "the number does not fit this field; expected a smaller one".to_owned(),
        ron::Error::TrailingCharacters => "expected nothing after the end of the trace".to_owned(),
        ron::Error::NoSuchEnumVariant { found, .. } | ron::Error::NoSuchStructField { found, .. } => {
            format!("`{}` is only the beginning of a name", clipped(found))
        }
        other => clipped(&lower_first(&other.to_string())),
    }
}

/// At most 300 characters: a hostile file must not fill the terminal.
fn clipped(text: &str) -> String {
    text.chars().take(300).collect()
}

fn lower_first(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// The name with the smallest edit distance, if that is less than half of the name.
fn most_like(found: &str, names: &'static [&'static str]) -> Option<&'static str> {
    if found.len() > 64 {
        return None;
    }
    let best = names.iter().map(|name| (edit_distance(found, name), *name)).min()?;
    (best.0 * 2 < found.chars().count().max(2)).then_some(best.1)
}

/// How many insertions, deletions and replacements turn one name into the other, ignoring case.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase(), b.to_lowercase());
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

impl fmt::Display for TextErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the text is empty; expected `Trace(version: 1, ops: [..])`"),
            Self::Truncated(expected) => write!(f, "the text ends in the middle of the trace: {expected}"),
            Self::UnknownName { found, meant: Some(meant), .. } => {
                write!(f, "`{found}` is unknown; did you mean `{meant}`?")
            }
            Self::UnknownName { found, expected, .. } => {
                write!(f, "`{found}` is unknown; expected one of {}", expected.join(", "))
            }
            Self::Version(found) => write!(f, "version {found} is unknown; expected version {VERSION}"),
            Self::TooManyOps => write!(f, "too many operations; expected at most {MAX_OPS}"),
            Self::TooManyFaults => write!(f, "too many planned failures; expected at most {MAX_FAULTS}"),
            Self::Syntax(sentence) => f.write_str(sentence),
        }
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.kind)
    }
}

impl std::error::Error for TextError {}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path().display())?;
        match self {
            Self::Missing(_) => f.write_str(": no such file"),
            Self::IsFolder(_) => f.write_str(": is a folder; expected a trace (.ron or .bin)"),
            Self::Io(_, error) => write!(f, ": cannot be read: {error}"),
            Self::TooLarge(_, bytes) => {
                write!(f, ": {bytes} bytes; a trace file has at most {MAX_FILE_BYTES}")
            }
            Self::Empty(_) => f.write_str(":1:1: the file is empty; expected `Trace(version: 1, ops: [..])`"),
            Self::NotText { line, column, .. } => write!(
                f,
                ":{line}:{column}: this byte is no UTF-8 text; expected a trace in text, or in bytes under a name that ends in .bin"
            ),
            Self::Text(_, error) => {
                f.write_char(':')?;
                error.fmt(f)
            }
        }
    }
}

impl LoadError {
    /// Returns the file that was to be loaded.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing(path)
            | Self::IsFolder(path)
            | Self::Io(path, _)
            | Self::TooLarge(path, _)
            | Self::Empty(path)
            | Self::NotText { path, .. }
            | Self::Text(path, _) => path,
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            Self::Text(_, error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
