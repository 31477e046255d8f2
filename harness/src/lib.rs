//! `hammer`: traces, subjects, a reference model and oracles for memory allocators.
#![deny(unsafe_code)]
pub mod adapt;
#[cfg(feature = "cli")]
pub mod bugs;
#[cfg(feature = "cli")]
pub mod cli;
pub mod engines;
pub mod generate;
pub mod machine;
pub mod model;
pub mod mutate;
pub mod oracle;
pub mod record;
#[cfg(feature = "engines")]
pub mod report;
pub mod run;
pub mod shrink;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub mod stress;
pub mod subject;
pub mod subjects;
pub mod suites;
pub mod trace;
pub mod yardstick;
