//! One binary for all tests that need the whole system: properties, corpus replay, scenarios.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bolero;
mod bugs;
mod coverage;
mod fault_sweep;
mod kasan;
mod kvmalloc_table;
mod moving;
mod properties;
mod replay;
mod report_page;
mod slub_kunit;
mod story;
mod test_vmalloc;
