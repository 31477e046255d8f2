//! The only `unsafe` code of the library: frame bytes, metadata slices, per-CPU cells.
//!
//! Everything above is `deny(unsafe_code)` and reaches memory through the safe faces of this room.

mod backing;
mod memory;
mod percpu;
mod region;
mod smp;

pub use memory::PhysMem;
pub(crate) use percpu::{LocalGuard, PerCpuCell, RemoteGuard};
pub use region::MetaRegion;
pub(crate) use region::{Carver, MetaSlice};
pub use smp::SmpPlatform;
