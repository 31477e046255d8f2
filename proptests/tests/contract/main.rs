//! One binary for all tests that need the whole system: properties, corpus replay, scenarios.

mod bolero;
mod properties;
mod replay;
mod story;
