//! libFuzzer on stable Rust, without cargo-fuzz.
//!
//! The `fuzz` crate is built with the compiler's own coverage pass ([`build`]); its programs run as children of this
//! process ([`drive`]), whose lines on the error stream tell how they get on ([`parse`]). The same crate works under
//! `cargo fuzz run TARGET`.

mod build;
mod drive;
mod parse;

pub use build::{FuzzCrate, Programs};
pub use drive::{Keep, LibFuzzer};
pub(in crate::engines) use parse::COUNTERS;
