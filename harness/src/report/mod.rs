//! What people get to see: the folder of a failure, the story of a trace, the closing table.

pub mod closing;
mod contract;
pub mod failure;
mod film;
pub mod heap_map;
mod owners;
pub mod page;
pub mod story;
pub mod table;
