//! Real programs as traces: what a program asked of its heap becomes kvmalloc calls.
//!
//! valgrind writes down each call ([`valgrind`]), [`log`] reads what it wrote, and [`convert`] turns it into a trace by
//! executing it, so that each free picks the block that stands for the one that the program freed.

pub mod convert;
pub mod log;
pub mod valgrind;
