//! Stopping a CPU's fast paths, for whoever needs all of memory's books at rest: a fork of the process.
//!
//! ```text
//! close the sheaves of each CPU that shall stop     as a claim does, see `raw/percpu.rs`
//! a heavy fence                                     by the caller, one for all
//! wait until their owners are outside               then nothing is half done
//! open them again
//! ```
//!
//! Meanwhile such a CPU can take the slow paths only. The caller sees to it that none does, before it closes.

use super::SlabLayer;
use super::sheaf::CpuCell;
use crate::platform::{CpuId, Platform};

impl SlabLayer {
    fn cells_of(&self, cpu: CpuId) -> impl Iterator<Item = &CpuCell> {
        (0..self.nr_caches()).filter_map(move |id| self.cell(cpu, id))
    }

    /// From the next heavy fence on no fast path begins on the CPU.
    #[cold]
    pub(crate) fn close_cpu(&self, cpu: CpuId, platform: &impl Platform) {
        self.cells_of(cpu).for_each(|cell| cell.close(platform));
    }

    /// Waits until none is under way.
    #[cold]
    pub(crate) fn wait_for_cpu(&self, cpu: CpuId, platform: &impl Platform) {
        self.cells_of(cpu).for_each(|cell| cell.wait_for_owner(platform));
    }

    /// They may begin again.
    #[cold]
    pub(crate) fn open_cpu(&self, cpu: CpuId) {
        self.cells_of(cpu).for_each(CpuCell::open_again);
    }
}
