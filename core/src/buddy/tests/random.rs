//! Random calls on small machines, with a full recount every 100 calls.

use super::{free_blocks, shaped};
use crate::addr::{PAGE_SIZE, Pfn};
use crate::buddy::{OwnerClass, PageAllocator};
use crate::error::{AllocError, CacheId};
use crate::geometry::{Geometry, MinFree, ZoneKind};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Event;
use crate::testing::{Rng, TestPlatform, page_allocator};
use std::vec::Vec;

const ZONE_FLAGS: [GfpFlags; 4] = [GfpFlags::empty(), GfpFlags::DMA, GfpFlags::DMA32, GfpFlags::HIGHMEM];
const TYPE_FLAGS: [GfpFlags; 3] = [GfpFlags::empty(), GfpFlags::MOVABLE, GfpFlags::RECLAIMABLE];
const RIGHTS: [GfpFlags; 5] =
    [GfpFlags::KERNEL, GfpFlags::ATOMIC, GfpFlags::NOWAIT, GfpFlags::MEMALLOC, GfpFlags::THISNODE];

/// What the driver must have caused to be worth its time.
const EVENTS: [Event; 8] = [
    Event::PcpHit,
    Event::PcpRefill,
    Event::PcpDrain,
    Event::Split,
    Event::Merge,
    Event::PageblockClaimed,
    Event::MigrateSteal,
    Event::ZoneFallback,
];

const INTERNAL: [FrameKind; 4] =
    [FrameKind::LargeKmalloc, FrameKind::Vmalloc, FrameKind::PageTable, FrameKind::Slab(CacheId::new(7))];

/// A block that the driver holds, by the call that frees it.
#[derive(Clone, Copy)]
enum Held {
    Block(Pfn, Order),
    Exact(Pfn, usize),
    Internal(Pfn, Order),
}

struct Driver {
    pages: PageAllocator<TestPlatform>,
    rng: Rng,
    held: Vec<Held>,
    owner: Vec<bool>,
    held_pages: u64,
}

impl Driver {
    fn new(geometry: &Geometry, seed: u64) -> Self {
        let owner = std::vec![false; geometry.frames() as usize];
        Self { pages: page_allocator(geometry), rng: Rng::new(seed), held: Vec::new(), owner, held_pages: 0 }
    }

    fn gfp(&mut self) -> GfpFlags {
        ZONE_FLAGS[self.rng.below(4)] | TYPE_FLAGS[self.rng.below(3)] | RIGHTS[self.rng.below(5)]
    }

    /// Notes that frames are ours now: each must have been nobody's.
    fn mark(&mut self, first: Pfn, pages: u64, ours: bool) {
        for pfn in first.index()..first.index() + pages as usize {
            assert_ne!(self.owner[pfn], ours, "frame {pfn} handed out twice or freed twice");
            self.owner[pfn] = ours;
        }
        self.held_pages = if ours { self.held_pages + pages } else { self.held_pages - pages };
    }

    fn alloc(&mut self) {
        let gfp = self.gfp();
        if self.rng.below(8) == 0 {
            let size = 1 + self.rng.below(6 * PAGE_SIZE);
            if let Ok(first) = self.pages.alloc_pages_exact(size, gfp) {
                self.mark(first, size.div_ceil(PAGE_SIZE) as u64, true);
                self.held.push(Held::Exact(first, size));
            }
            return;
        }
        let order = Order::new([0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 10][self.rng.below(12)]).unwrap();
        let internal = self.rng.below(4) == 0;
        let kind = if internal { INTERNAL[self.rng.below(INTERNAL.len())] } else { FrameKind::Pages };
        match self.pages.alloc_block(order, gfp, kind) {
            Ok(first) => {
                assert!(order.is_aligned(first));
                self.mark(first, order.pages(), true);
                if kind == FrameKind::LargeKmalloc {
                    self.pages.keep_pages(first, order, order.pages());
                }
                self.held.push(if internal { Held::Internal(first, order) } else { Held::Block(first, order) });
            }
            Err(AllocError::OrderTooLarge { max }) => assert!(order > max),
            Err(error) => assert_eq!(error, AllocError::NoPages { order }),
        }
    }

    fn free_at(&mut self, index: usize) {
        match self.held.swap_remove(index) {
            Held::Block(first, order) => {
                self.mark(first, order.pages(), false);
                self.pages.free_pages(first, order).unwrap();
            }
            Held::Exact(first, size) => {
                self.mark(first, size.div_ceil(PAGE_SIZE) as u64, false);
                self.pages.free_pages_exact(first, size).unwrap();
            }
            Held::Internal(first, order) => {
                self.mark(first, order.pages(), false);
                self.pages.free_block(first, order);
            }
        }
    }

    fn step(&mut self, fill: usize) {
        match self.rng.below(100) {
            0 => drop(self.pages.drain_all_pages()),
            1..8 => self.pages.base.platform.cpu.set(self.rng.below(3) as u16),
            n if n < 8 + fill => self.alloc(),
            _ if !self.held.is_empty() => {
                let index = self.rng.below(self.held.len());
                self.free_at(index);
            }
            _ => {}
        }
    }

    fn run(&mut self, steps: usize) {
        let mut fill = 46;
        for step in 0..steps {
            if step % 1000 == 0 {
                fill = [20, 46, 60, 80][self.rng.below(4)];
            }
            self.step(fill);
            if step % 100 == 0 {
                self.pages.check_invariants().unwrap();
                let owners = OwnerClass::ALL.into_iter().filter(|c| !matches!(c, OwnerClass::Free | OwnerClass::Pcp));
                assert_eq!(owners.map(|class| self.pages.owned(class)).sum::<u64>(), self.held_pages);
            }
        }
        while !self.held.is_empty() {
            self.free_at(0);
        }
        self.pages.drain_all_pages();
        self.pages.check_invariants().unwrap();
    }
}

/// Zones, largest order, pageblock order.
type Shape = (&'static [(ZoneKind, u32, u32)], u8, u8);

fn machines() -> Vec<Geometry> {
    use ZoneKind::{Dma, Dma32, Movable, Normal};
    let mut machines = Vec::new();
    let shapes: [Shape; 9] = [
        (&[(Normal, 0, 16)], 0, 0),
        (&[(Normal, 0, 64)], 3, 2),
        (&[(Normal, 5, 91)], 4, 4),
        (&[(Normal, 0, 300)], 10, 9),
        (&[(Dma, 0, 37), (Normal, 37, 163)], 5, 3),
        (&[(Dma, 3, 29), (Normal, 41, 100)], 6, 2),
        (&[(Dma, 0, 16), (Dma32, 16, 33), (Normal, 64, 128)], 7, 4),
        (&[(Dma, 1, 30), (Normal, 31, 99), (Movable, 150, 150)], 8, 5),
        (&[(Normal, 7, 130), (Movable, 137, 163)], 10, 6),
    ];
    for (zones, max, pageblock) in shapes {
        for (cpus, min_free) in [(1, 0), (3, 12)] {
            let mut geometry = shaped(zones, max, pageblock);
            geometry.cpus = cpus;
            geometry.min_free = MinFree::Pages(min_free);
            machines.push(geometry);
        }
    }
    machines
}

#[test]
fn any_sequence_of_calls_keeps_the_invariants_and_ends_in_the_initial_state() {
    let mut seen = [0; EVENTS.len()];
    for (seed, geometry) in machines().iter().enumerate() {
        let mut driver = Driver::new(geometry, seed as u64 + 1);
        driver.pages.check_invariants().unwrap();
        let initial = free_blocks(&driver.pages);
        driver.run(100_000);
        assert_eq!(free_blocks(&driver.pages), initial, "machine {seed}");
        assert_eq!(driver.pages.owned(OwnerClass::Free), geometry.managed().get());
        for (count, event) in seen.iter_mut().zip(EVENTS) {
            *count += driver.pages.base.platform.count(event);
        }
    }
    assert!(seen.iter().all(|&count| count > 1000), "not every path was walked: {seen:?}");
}
