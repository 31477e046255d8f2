//! The only `unsafe` code of the library: frame bytes, metadata slices, per-CPU cells.
//!
//! Everything above is `deny(unsafe_code)` and reaches memory through the safe faces of this room.

mod backing;
mod maps;
mod memory;
mod percpu;
mod region;
mod smp;
mod stack;

pub(crate) use maps::{FrameMaps, GRANULE, GRANULES_PER_FRAME};
pub use memory::PhysMem;
pub(crate) use percpu::{Below, LocalStack, PerCpu, PerCpuCell, PerCpuStack, RemoteStack, Stacked};
pub use region::MetaRegion;
pub(crate) use region::{Carver, MetaSlice};
pub use smp::SmpPlatform;
pub(crate) use stack::Stack;
