//! The port, on a Linux process.

use super::sys::{self, Region};
use super::window::{HostCounts, Window};
use super::{HostError, cpus};
use crate::PAGE_SHIFT;
use crate::addr::{Pfn, Vpn};
use crate::order::Order;
use crate::platform::{CpuId, Platform};
use crate::raw::PhysMem;

/// What is behind the direct map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// Pages of this process alone: a fork's child has its own at once. They can be seen at one address only, so that there
    /// are no areas.
    Private,
    /// A memory file, whose pages areas show a second time.
    File,
}

/// A process as a machine: threads are CPUs, a memory file is physical memory, and the host's mappings are the MMU.
///
/// Made by [`Hosted`](super::Hosted); its methods are for the allocator.
pub struct HostPlatform {
    memory: PhysMem,
    direct: Region,
    /// The addresses of areas; reserved for as long as the platform lives.
    addresses: Region,
    window: Option<Window>,
}

impl HostPlatform {
    /// Takes addresses and memory from the host.
    ///
    /// # Errors
    ///
    /// What the host would not give.
    pub(super) fn new(frames: u32, window_pages: u64, behind: Behind) -> Result<Self, HostError> {
        /// Blocks of every order are aligned to their size in addresses too.
        const ALIGN: usize = crate::PAGE_SIZE << crate::MAX_PAGE_ORDER;
        let len = (frames as usize) << PAGE_SHIFT;
        let direct = Region::reserved(len, ALIGN).ok_or(HostError::Addresses { bytes: len })?;
        let window_len = (window_pages as usize) << PAGE_SHIFT;
        let addresses = Region::reserved(window_len, ALIGN).ok_or(HostError::Addresses { bytes: window_len })?;
        let backed = match behind {
            Behind::Private => direct.back_privately(len),
            Behind::File => sys::MemoryFile::new(len).is_some_and(|file| direct.back_by(&file)),
        };
        if !backed {
            return Err(HostError::Memory { bytes: len });
        }
        let window = match behind {
            Behind::Private => None,
            Behind::File => {
                let window = Window::new(direct.start(), frames.into(), addresses.start(), window_pages);
                Some(window.ok_or(HostError::Memory { bytes: window_len >> PAGE_SHIFT })?)
            }
        };
        let memory = sys::window_onto(&direct, frames);
        Ok(Self { memory, direct, addresses, window })
    }

    /// Where frame 0 is.
    pub(super) fn direct_start(&self) -> usize {
        self.direct.start()
    }

    /// Where the first area can be.
    pub(super) fn areas_start(&self) -> usize {
        self.addresses.start()
    }

    /// What the host did for areas; all zeros where there are none.
    pub(super) fn counts(&self) -> HostCounts {
        self.window.as_ref().map(Window::counts).unwrap_or_default()
    }

    pub(super) fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    pub(super) fn direct(&self) -> &Region {
        &self.direct
    }

    /// In a fork's child: puts a copy of the memory in the place of what the parent goes on with.
    pub(super) fn adopt(&self, copy: &sys::MemoryFile) -> bool {
        self.direct.back_by(copy) && self.window.as_ref().is_none_or(Window::show_again)
    }

    /// In a fork's child without a copy: nothing may touch the parent's memory.
    pub(super) fn disown(&self) {
        let direct = sys::hide(self.direct.start(), self.direct.len());
        let areas = sys::hide(self.addresses.start(), self.addresses.len());
        if !(direct && areas) {
            sys::die(b"kmem: a fork's child cannot let go of its parent's memory\n");
        }
    }

    fn address_of(&self, first: Pfn) -> usize {
        self.direct.start().saturating_add(first.index() << PAGE_SHIFT)
    }
}

impl Platform for HostPlatform {
    const WALKS_TABLES: bool = false;

    #[inline(always)]
    fn memory(&self) -> &PhysMem {
        &self.memory
    }

    #[inline(always)]
    fn cpu(&self) -> CpuId {
        CpuId::new(cpus::here())
    }

    fn flush_tlb(&self, _start: Vpn, _pages: u64) {
        // The host makes all processors forget what it unmaps.
        self.window.iter().for_each(Window::flush);
    }

    fn map_pages(&self, start: Vpn, first: Pfn, pages: u64) -> bool {
        self.window.as_ref().is_some_and(|window| window.map(start, first, pages))
    }

    fn unmap_pages(&self, start: Vpn, pages: u64) {
        self.window.iter().for_each(|window| window.unmap(start, pages));
    }

    fn heavy_fence(&self) {
        cpus::heavy_fence();
    }

    fn relax(&self) {
        sys::yield_now();
    }

    fn report_free(&self, first: Pfn, order: Order) -> bool {
        let (at, len) = (self.address_of(first), order.bytes());
        if self.window.is_some() { sys::drop_shared(at, len) } else { sys::drop_private(at, len) }
    }
}

impl core::fmt::Debug for HostPlatform {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("HostPlatform")
            .field("memory", &self.memory)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
