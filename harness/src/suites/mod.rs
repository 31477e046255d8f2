//! Tests that the kernel has for its own allocators, as programs that run on a judged or on a bare machine.

mod kernel;
pub mod test_vmalloc;

pub use kernel::{Bare, Kernel, Stop};
