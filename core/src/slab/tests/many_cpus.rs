//! Sixteen CPUs: an object is in one place only, wherever it was given, freed and drained.

use super::{CacheArgs, Machine};
use crate::addr::VirtAddr;
use crate::error::CacheId;
use crate::gfp::GfpFlags;
use crate::slab::PrefilledSheaf;
use crate::testing::{self, Rng};
use std::collections::BTreeSet;
use std::vec::Vec;

const CPUS: usize = 16;

struct Run {
    m: Machine,
    cache: CacheId,
    rng: Rng,
    live: Vec<VirtAddr>,
    known: BTreeSet<VirtAddr>,
    sheaves: Vec<PrefilledSheaf<32>>,
}

impl Run {
    fn gives(&mut self, object: VirtAddr) {
        assert!(self.known.insert(object), "{object} was given twice");
        self.live.push(object);
    }

    fn takes(&mut self, count: usize) -> Vec<VirtAddr> {
        let pick = |run: &mut Self| run.live.swap_remove(run.rng.below(run.live.len()));
        let taken: Vec<_> = (0..count.min(self.live.len())).map(|_| pick(self)).collect();
        taken.iter().for_each(|object| assert!(self.known.remove(object)));
        taken
    }

    fn step(&mut self) {
        self.m.run_on(self.rng.below(CPUS) as u16);
        let count = self.rng.below(40);
        match self.rng.below(12) {
            0..3 => self.m.objects(self.cache, count / 4).into_iter().for_each(|object| self.gives(object)),
            3..6 => {
                let objects = self.takes(count / 4);
                self.m.free_all(self.cache, objects);
            }
            6 => {
                let mut objects = std::vec![VirtAddr::NULL; count + 1];
                self.m.slab.cache_alloc_bulk(&self.m.pages, self.cache, GfpFlags::KERNEL, &mut objects).unwrap();
                objects.into_iter().for_each(|object| self.gives(object));
            }
            7 => {
                let objects = self.takes(count);
                self.m.slab.free_bulk(&self.m.pages, Some(self.cache), &objects).unwrap();
            }
            8 if self.sheaves.len() < 8 => {
                let filled = self.m.slab.prefill_sheaf(&self.m.pages, self.cache, GfpFlags::KERNEL, 1 + count % 32);
                self.sheaves.push(filled.unwrap());
            }
            8 | 9 => self.empty_a_sheaf(),
            10 => self.takes(1).into_iter().for_each(|object| self.m.slab.kfree_nolock(&self.m.pages, object).unwrap()),
            _ => drop(self.m.reclaim()),
        }
    }

    fn empty_a_sheaf(&mut self) {
        let Some(mut sheaf) = self.sheaves.pop() else { return };
        for _ in 0..self.rng.below(sheaf.len() + 1) {
            let object = self.m.slab.alloc_from_sheaf(&self.m.pages, &mut sheaf, GfpFlags::ATOMIC).unwrap();
            self.gives(object);
        }
        self.m.slab.return_sheaf(&self.m.pages, sheaf);
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_given_twice() {
    for size in [16, 1024, 4096] {
        let mut geometry = testing::flat(8192);
        geometry.cpus = CPUS as u16;
        let m = Machine::new(&geometry);
        let before = m.use_of_pages();
        let cache = m.cache(&CacheArgs::new(size));
        let (live, known, sheaves) = (Vec::new(), BTreeSet::new(), Vec::new());
        let mut run = Run { m, cache, rng: Rng::new(size as u64), live, known, sheaves };
        for step in 0..3000 {
            run.step();
            if step % 64 == 0 {
                run.m.check();
                assert_eq!(run.m.info(cache).active_objs, run.live.len() as u64);
            }
        }
        let objects = run.takes(usize::MAX);
        run.m.free_all(cache, objects);
        while !run.sheaves.is_empty() {
            run.empty_a_sheaf();
        }
        let objects = run.takes(usize::MAX);
        run.m.free_all(cache, objects);
        run.m.reclaim();
        run.m.check();
        assert_eq!(run.m.use_of_pages(), before, "{size} bytes");
    }
}
