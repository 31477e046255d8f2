//! `hammer`: finds out whether an allocator keeps its contract.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
