//! The window on a test machine.

mod access;
mod alloc;
mod check;
mod deferred;
mod flags;
mod huge;
mod lazy;
mod migrate;
mod nodes;
mod place;
mod ram;
mod random;
mod read;
mod realloc;

use super::*;
use crate::buddy::{Mover, OwnerClass, PageParts};
use crate::error::{Invariant, Violation};
use crate::fault::FaultPoint;
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::inspect::AreaKind;
use crate::order::Order;
use crate::paging::{Pte, VpnRange};
use crate::platform::Event;
use crate::slab::SlabParts;
use crate::testing::{JUNK, Rng, TestPlatform, base, carve, flat};
use crate::{PAGE_SIZE, PhysAddr, Vpn};
use std::vec;
use std::vec::Vec;

const KERNEL: GfpFlags = GfpFlags::KERNEL;
const ZERO: GfpFlags = GfpFlags::KERNEL.union(GfpFlags::ZERO);

struct Machine {
    pages: PageAllocator<TestPlatform>,
    slab: SlabLayer,
    window: Vmalloc,
}

/// Frames by owner, after everything that is only cached has been given back.
#[derive(PartialEq, Eq, Debug)]
struct Ownership {
    free: u64,
    slab: u64,
    vmalloc: u64,
    tables: u64,
}

impl Machine {
    fn new(frames: u32) -> Self {
        Self::with(&flat(frames))
    }

    /// A machine whose window has so many pages.
    fn windowed(frames: u32, window: u64) -> Self {
        let mut geometry = flat(frames);
        geometry.vmalloc_pages = PageCount::new(window);
        Self::with(&geometry)
    }

    fn with(geometry: &Geometry) -> Self {
        let pages = PageAllocator::new(base(geometry), carve(geometry, PageParts::carve));
        let slab = SlabLayer::new(&pages, carve(geometry, SlabParts::carve));
        let window = Vmalloc::new(&pages, &slab, carve(geometry, VmallocParts::carve)).unwrap();
        Self { pages, slab, window }
    }

    fn vmalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.window.vmalloc(&self.pages, &self.slab, &VmallocArgs::new(size, gfp))
    }

    fn vmalloc_with(&self, size: usize, flags: VmFlags) -> Result<VirtAddr, AllocError> {
        let args = VmallocArgs { flags, ..VmallocArgs::new(size, KERNEL) };
        self.window.vmalloc(&self.pages, &self.slab, &args)
    }

    fn vmap_with(&self, frames: &[Pfn], flags: VmFlags) -> Result<VirtAddr, AllocError> {
        self.window.vmap(&self.pages, &self.slab, frames, flags, KERNEL)
    }

    fn vmap(&self, frames: &[Pfn]) -> Result<VirtAddr, AllocError> {
        self.window.vmap(&self.pages, &self.slab, frames, VmFlags::empty(), KERNEL)
    }

    fn vfree(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.window.vfree(&self.pages, &self.slab, addr)
    }

    fn vunmap(&self, addr: VirtAddr) -> Result<(), FreeError> {
        self.window.vunmap(&self.pages, &self.slab, addr)
    }

    fn vrealloc(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.window.vrealloc(&self.pages, &self.slab, addr, &VmallocArgs::new(size, gfp))
    }

    fn purge(&self) -> u64 {
        self.window.purge(&self.pages, &self.slab, true)
    }

    fn check(&self) -> Result<(), Violation> {
        self.window.check_invariants(&self.pages)
    }

    fn platform(&self) -> &TestPlatform {
        &self.pages.base.platform
    }

    /// A frame as `alloc_pages` gives it.
    fn frame(&self) -> Pfn {
        self.pages.alloc_block(Order::ZERO, KERNEL, FrameKind::Pages).unwrap()
    }

    fn ownership(&self) -> Ownership {
        self.slab.reclaim(&self.pages);
        let owned = |class| self.pages.owned(class);
        Ownership {
            free: owned(OwnerClass::Free) + owned(OwnerClass::Pcp),
            slab: owned(OwnerClass::Slab),
            vmalloc: owned(OwnerClass::Vmalloc),
            tables: owned(OwnerClass::PageTable),
        }
    }

    /// The frame of each page of a block; `None` where the processor would fault.
    fn frames_behind(&self, addr: VirtAddr, pages: u64) -> Vec<Option<Pfn>> {
        (0..pages).map(|n| self.window.vmalloc_to_page(&self.pages, page(addr, n))).collect()
    }

    fn write(&self, addr: VirtAddr, offset: usize, byte: u8) {
        let phys = self.window.phys_behind(&self.pages, at(addr, offset)).unwrap();
        assert!(self.pages.base.mem.write(phys, &[byte]));
    }

    fn read(&self, addr: VirtAddr, offset: usize) -> u8 {
        let phys = self.window.phys_behind(&self.pages, at(addr, offset)).unwrap();
        let mut byte = [0];
        assert!(self.pages.base.mem.read(phys, &mut byte));
        byte[0]
    }

    fn entries(&self) -> Vec<VmallocEntry> {
        let mut entries = Vec::new();
        self.window.for_each_area(&self.pages, |entry| entries.push(entry));
        entries
    }

    fn start(&self) -> VirtAddr {
        self.pages.base.geometry.vmalloc_start
    }
}

fn at(addr: VirtAddr, offset: usize) -> VirtAddr {
    addr.checked_add(offset as u64).unwrap()
}

fn page(addr: VirtAddr, n: u64) -> VirtAddr {
    at(addr, n as usize * PAGE_SIZE)
}

/// A block of `size` bytes, each with its own value, as `offset * 7 + 1`.
fn patterned(m: &Machine, size: usize, gfp: GfpFlags) -> VirtAddr {
    let addr = m.vmalloc(size, gfp).unwrap();
    (0..size).for_each(|n| m.write(addr, n, pattern(n)));
    addr
}

const fn pattern(offset: usize) -> u8 {
    (offset as u8).wrapping_mul(7) | 1
}
