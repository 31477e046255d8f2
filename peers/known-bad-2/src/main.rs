//! `hammer` with another old release whose bug is known; it has to be caught (`ci/peers.sh`).

use kmem_harness::adapt::region;
use std::process::ExitCode;

#[path = "../../src/linked_list.rs"]
mod linked_list;

fn main() -> ExitCode {
    kmem_harness::cli::main_with(&[region::<linked_list::Peer>("linked_list_allocator@0.10.3")])
}
