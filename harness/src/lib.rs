//! `hammer`: traces, subjects, a reference model and oracles for memory allocators.
#![forbid(unsafe_code)]
pub mod generate;
pub mod mutate;
#[cfg(feature = "engines")]
pub mod shrink;
pub mod trace;
