//! `hammer`: finds out whether an allocator keeps its contract.

fn main() -> std::process::ExitCode {
    kmem_harness::cli::main_with(&[])
}
