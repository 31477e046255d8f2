//! Long random runs: contents, liveness, conservation, invariants.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::{CacheId, FreeError};
use crate::fault::FaultPoint;
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::testing::{self, Rng};
use std::vec::Vec;

struct Block {
    addr: VirtAddr,
    len: usize,
    fill: u8,
    cache: Option<CacheId>,
}

/// What a run has alive; every block is filled with a value of its own.
struct Run {
    m: Machine,
    rng: Rng,
    caches: Vec<(CacheId, usize)>,
    live: Vec<Block>,
}

impl Run {
    fn new(geometry: &Geometry, seed: u64) -> Self {
        let m = Machine::new(geometry);
        let caches = [40, 200, 1000, 5000].map(|size| (m.cache(&CacheArgs::new(size)), size)).to_vec();
        Self { m, rng: Rng::new(seed), caches, live: Vec::new() }
    }

    fn size(&mut self) -> usize {
        let magnitude = self.rng.below(15);
        1 + self.rng.below(1 << magnitude)
    }

    fn keep(&mut self, addr: VirtAddr, len: usize, cache: Option<CacheId>) {
        let fill = self.rng.next() as u8;
        self.m.fill(addr, len, fill);
        self.live.push(Block { addr, len, fill, cache });
    }

    fn alloc(&mut self) {
        if self.rng.below(3) == 0 {
            let (cache, len) = self.caches[self.rng.below(self.caches.len())];
            if let Ok(addr) = self.m.alloc(cache, GfpFlags::KERNEL) {
                self.keep(addr, len, Some(cache));
            }
        } else {
            let len = self.size();
            if let Ok(addr) = self.m.try_kmalloc(len) {
                self.keep(addr, len, None);
            }
        }
    }

    fn verify(&self, block: &Block, len: usize, addr: VirtAddr) {
        assert!(self.m.bytes(addr, len).iter().all(|&byte| byte == block.fill), "contents of {}", block.addr);
    }

    fn free(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len());
        let block = self.live.swap_remove(at);
        self.verify(&block, block.len, block.addr);
        match block.cache {
            Some(cache) => self.m.slab.cache_free(&self.m.pages, cache, block.addr).unwrap(),
            None => self.m.kfree(block.addr).unwrap(),
        }
        assert_eq!(self.m.kfree(block.addr), Err(FreeError::DoubleFree(block.addr)));
    }

    fn realloc(&mut self) {
        let Some(at) = (0..self.live.len()).find(|&at| self.live[at].cache.is_none()) else { return };
        let block = self.live.swap_remove(at);
        let len = self.size();
        match self.m.slab.krealloc(&self.m.pages, block.addr, len, GfpFlags::KERNEL) {
            Ok(addr) => {
                self.verify(&block, block.len.min(len), addr);
                self.keep(addr, len, None);
            }
            Err(_) => {
                self.verify(&block, block.len, block.addr);
                self.live.push(block);
            }
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..48 => self.alloc(),
            48..88 => self.free(),
            88..92 => self.realloc(),
            92..97 => {
                let cpus = usize::from(self.m.pages.base.geometry.cpus);
                let cpu = self.rng.below(cpus) as u16;
                self.m.run_on(cpu);
            }
            97 => {
                let nth = self.rng.below(4) as u32;
                self.m.pages.base.platform.fail(FaultPoint::NewSlab, nth);
            }
            98 => {
                let (cache, _) = self.caches[self.rng.below(self.caches.len())];
                self.m.slab.cache_shrink(&self.m.pages, cache).unwrap();
            }
            _ => {
                self.m.reclaim();
            }
        }
    }

    fn finish(mut self, before: &[u64]) {
        while !self.live.is_empty() {
            self.free();
        }
        self.m.check();
        self.m.reclaim();
        assert_eq!(self.m.slab.nr_pages(), 0);
        assert_eq!(self.m.use_of_pages(), before);
        self.m.check();
    }
}

fn run(frames: u32, cpus: u16, seed: u64, steps: usize) {
    let mut geometry = testing::flat(frames);
    geometry.cpus = cpus;
    let mut run = Run::new(&geometry, seed);
    let before = run.m.use_of_pages();
    for n in 0..steps {
        run.step();
        if n % 64 == 0 {
            run.m.check();
        }
    }
    run.finish(&before);
}

#[test]
fn a_roomy_machine_with_four_cpus() {
    (0..4).for_each(|seed| run(4096, 4, seed, 20_000));
}

#[test]
fn a_machine_that_is_always_full() {
    (0..8).for_each(|seed| run(96, 2, seed, 10_000));
}
