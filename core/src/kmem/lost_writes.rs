//! Every write matters: each word of the allocator's state that a call changed is given its old value back, alone, and the
//! audit has to object.
//!
//! A lost write is the smallest damage that leaves every field with a value that it may have: it is what a missing line does,
//! and what a racing CPU does. Words of a list's dead end or of a stack above its top may be lost; a word of which no lost
//! write is ever named is one that nobody watches. Those are counted by type in [`UNWATCHED`], each with the reason.

use super::*;
use crate::addr::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use crate::error::CacheId;
use crate::geometry::{Geometry, ZoneKind};
use crate::gfp::GfpFlags;
use crate::hardening::Hardening;
use crate::order::Order;
use crate::page::FrameKind;
use crate::raw::MetaRegion;
use crate::slab::{CacheArgs, SlabFlags};
use crate::testing::{self, TestPlatform};
use std::collections::BTreeMap;
use std::vec::Vec;

const WORD: usize = size_of::<u64>();
/// How many calls each machine serves.
const CALLS: usize = 600;
/// Name of what frames hold, beside the types of the region.
const IN_FRAMES: &str = "frames";

/// Of which types nobody watches how many half words, at most, and why that is right. A type that is not here is watched as
/// a whole.
const UNWATCHED: [(&str, usize, &str); 11] = [
    ("pcp::HotPages", 2, "how often the fast paths served is for statistics"),
    (
        "pcp::PerCpuPages",
        6,
        "how many pages the lists keep is a guess, and how often the slow paths served is for statistics",
    ),
    ("zone::Zone", 4, "where compaction stands, and what it puts off, are hints"),
    ("slab::SlowCounts", 2, "for statistics"),
    ("sheaf::CpuCell", 2, "how often the fast paths served is for statistics"),
    ("shape::ShapeRecord", 1, "whether a cache may be merged with later ones is its creator's wish"),
    ("sheaf::Buffer", 4, "words of locks; the objects above the last, of a buffer that few calls use"),
    ("Option<kmem::slab::sheaf::SheafId>>", 1, "words of locks"),
    ("quarantine::Ring", 66, "who is in quarantine is a guess to everybody; an object that is forgotten stays lost"),
    ("SpinLock<kmem::slab::node::Node>", 3, "the name of a cache is its creator's wish"),
    ("ram::Queue>", 1, "words of locks"),
];

/// A machine whose every word can be read and written, and somebody who uses it.
struct Subject {
    kmem: Kmem<TestPlatform>,
    bytes: usize,
    random: u64,
    caches: Vec<CacheId>,
    objects: Vec<(CacheId, VirtAddr)>,
    blocks: Vec<VirtAddr>,
    pages: Vec<(Pfn, Order)>,
    runs: Vec<(VirtAddr, Pfn)>,
}

/// Words by address: those of the region from 0 on, and those of the frames that hold state of the allocator.
struct State {
    region: Vec<u64>,
    frames: BTreeMap<u64, u64>,
}

impl Subject {
    fn new(geometry: &Geometry) -> Self {
        let bytes = Kmem::<TestPlatform>::metadata_bytes(geometry).unwrap();
        let kmem = Kmem::new(TestPlatform::new(geometry), geometry, MetaRegion::heap(bytes)).unwrap();
        let (caches, objects, blocks, pages, runs) = Default::default();
        Self { kmem, bytes, random: 0x9e37_79b9_7f4a_7c15, caches, objects, blocks, pages, runs }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % n as u64) as usize
    }

    /// Takes one of the things in use.
    fn any<T>(&mut self, of: impl Fn(&mut Self) -> &mut Vec<T>) -> Option<T> {
        let count = of(self).len();
        (count > 0).then(|| self.below(count)).map(|n| of(self).swap_remove(n))
    }

    /// One call of the public interface. Blocks are not zeroed: what is in them is not the allocator's.
    fn step(&mut self) {
        let flags = [GfpFlags::KERNEL, GfpFlags::KERNEL, GfpFlags::NOWAIT, GfpFlags::KERNEL | GfpFlags::RECLAIMABLE];
        let gfp = flags[self.below(flags.len())];
        match self.below(8) {
            0 => self.allocate(gfp),
            1 => self.allocate_pages(gfp),
            2 | 3 => self.free(),
            4 => self.use_caches(gfp),
            5 => {
                let size = self.below(40_000) + 1;
                self.blocks.extend(self.kmem.vmalloc(size, gfp).ok());
            }
            6 => self.map_run(),
            _ => self.give_back(),
        }
    }

    fn allocate(&mut self, gfp: GfpFlags) {
        let largest = 1 << self.below(16);
        let size = self.below(largest) + 1;
        let block = if self.below(3) == 0 { self.kmem.kvmalloc(size, gfp) } else { self.kmem.kmalloc(size, gfp) };
        self.blocks.extend(block.ok());
    }

    fn allocate_pages(&mut self, gfp: GfpFlags) {
        let order = Order::new(self.below(5) as u8).unwrap();
        let gfp = if self.below(2) == 0 { GfpFlags::HIGHUSER_MOVABLE } else { gfp };
        self.pages.extend(self.kmem.alloc_pages(order, gfp).ok().map(|page| (page, order)));
    }

    fn free(&mut self) {
        match self.below(5) {
            0 | 1 => {
                let block = self.any(|all| &mut all.blocks);
                block.into_iter().for_each(|addr| self.kmem.kvfree(addr).unwrap());
            }
            2 => {
                let block = self.any(|all| &mut all.blocks);
                block.into_iter().for_each(|addr| self.kmem.kvfree_rcu_mightsleep(addr).unwrap());
            }
            3 => {
                let object = self.any(|all| &mut all.objects);
                object.into_iter().for_each(|(cache, addr)| self.kmem.kmem_cache_free(cache, addr).unwrap());
            }
            _ => {
                let block = self.any(|all| &mut all.pages);
                block.into_iter().for_each(|(page, order)| self.kmem.free_pages(page, order).unwrap());
            }
        }
    }

    fn use_caches(&mut self, gfp: GfpFlags) {
        let kind = self.below(12);
        let Some(n) = (!self.caches.is_empty()).then(|| self.below(self.caches.len())) else { return self.create() };
        match kind {
            0 => self.create(),
            1 if self.objects.is_empty() => {
                let cache = self.caches.swap_remove(n);
                self.kmem.kmem_cache_destroy(cache).unwrap();
            }
            _ => {
                let cache = self.caches[n];
                self.objects.extend(self.kmem.kmem_cache_alloc(cache, gfp).ok().map(|addr| (cache, addr)));
            }
        }
    }

    fn create(&mut self) {
        let flags = [SlabFlags::empty(), SlabFlags::HWCACHE_ALIGN, SlabFlags::RECLAIM_ACCOUNT][self.below(3)];
        let args = CacheArgs { flags, ..CacheArgs::new(self.below(700) + 1) };
        self.caches.extend(self.kmem.kmem_cache_create("c", &args).ok());
    }

    fn map_run(&mut self) {
        if self.below(2) == 0 {
            let run = self.any(|all| &mut all.runs);
            return run.into_iter().for_each(|(addr, page)| {
                self.kmem.vm_unmap_ram(addr, 1).unwrap();
                self.kmem.free_pages(page, Order::ZERO).unwrap();
            });
        }
        let Ok(page) = self.kmem.alloc_pages(Order::ZERO, GfpFlags::KERNEL) else { return };
        match self.kmem.vm_map_ram(&[page], GfpFlags::KERNEL) {
            Ok(addr) => self.runs.push((addr, page)),
            Err(_) => self.kmem.free_pages(page, Order::ZERO).unwrap(),
        }
    }

    fn give_back(&mut self) {
        match self.below(6) {
            0 => self.kmem.vm_unmap_aliases(),
            1 => self.kmem.drain_all_pages(),
            2 => self.kmem.kvfree_rcu_barrier(),
            3 => {
                let _freed = self.kmem.reclaim();
            }
            _ => {
                let cpu = self.below(usize::from(self.kmem.geometry().cpus)) as u16;
                self.kmem.platform().cpu.set(cpu);
            }
        }
    }

    fn state(&self) -> State {
        let memory = self.kmem.platform().memory();
        let holds = |frame: &Pfn| match self.kmem.pages.base.frames.kind(*frame) {
            FrameKind::PageTable => true,
            // The records of areas are objects. In objects of others nobody writes; what guards those of debug caches is
            // watched by `kmem_cache_validate`.
            FrameKind::Slab(_) => self.kmem.geometry().hardening != Hardening::Paranoid,
            _ => false,
        };
        let words = (0..self.kmem.geometry().frames()).map(Pfn::new).filter(holds).flat_map(|frame| {
            let start = frame.addr().as_u64();
            (start..start + PAGE_SIZE as u64).step_by(WORD)
        });
        let frames = words.map(|addr| (addr, memory.read_u64(PhysAddr::new(addr)).unwrap())).collect();
        State { region: self.kmem.region.words(self.bytes), frames }
    }

    fn put(&self, n: usize, word: u64) {
        assert!(self.kmem.region.put_word(n, word));
    }

    fn put_in_frame(&self, addr: u64, word: u64) {
        assert!(self.kmem.platform().memory().write_u64(PhysAddr::new(addr), word));
    }

    /// Whether an audit objects now; what it left in words of the region is taken back.
    fn is_named(&self, now: &State) -> bool {
        let named = self.kmem.audit().is_err();
        let left = self.kmem.region.words(self.bytes);
        let changed = left.iter().zip(&now.region).enumerate().filter(|(_, (left, word))| left != word);
        changed.for_each(|(n, (_, &word))| self.put(n, word));
        named
    }
}

/// Half words by type and offset: how often a lost write was named, and how often it was not.
type Watched = BTreeMap<(&'static str, usize), [u32; 2]>;

/// The new value with one half of the old, for each half that differs.
fn halves(old: u64, new: u64) -> impl Iterator<Item = (usize, u64)> {
    let mask = |half: usize| u64::from(u32::MAX) << (32 * half);
    let lost = move |half| (half, new & !mask(half) | old & mask(half));
    (0..2).map(lost).filter(move |&(_, word)| word != new)
}

/// Loses each write of a call, one at a time.
fn lose_each(subject: &Subject, before: &State, now: &State, watched: &mut Watched) {
    for (n, (&old, &new)) in before.region.iter().zip(&now.region).enumerate() {
        for (half, word) in halves(old, new) {
            subject.put(n, word);
            let named = subject.is_named(now);
            subject.put(n, new);
            watched.entry(testing::field_at(n * WORD + half * WORD / 2)).or_default()[usize::from(!named)] += 1;
        }
    }
    for (&addr, &new) in &now.frames {
        let Some(&old) = before.frames.get(&addr).filter(|&&old| old != new) else { continue };
        subject.put_in_frame(addr, old);
        let named = subject.is_named(now);
        subject.put_in_frame(addr, new);
        watched.entry((IN_FRAMES, 0)).or_default()[usize::from(!named)] += 1;
    }
}

/// Uses a machine, and loses each write of each call.
fn lose_writes(geometry: &Geometry, watched: &mut Watched) {
    let mut subject = Subject::new(geometry);
    let mut before = subject.state();
    for _ in 0..CALLS {
        subject.step();
        let after = subject.state();
        subject.kmem.audit().unwrap();
        // What an audit itself writes, as the words of locks, is no loss.
        let now = subject.state();
        let own = after.region.iter().zip(&now.region).enumerate().filter(|(_, (after, now))| after != now);
        own.for_each(|(n, (_, &now))| before.region[n] = now);
        lose_each(&subject, &before, &now, watched);
        subject.kmem.audit().unwrap();
        before = now;
    }
}

fn machines() -> [Geometry; 3] {
    let mut small = testing::flat(256);
    small.cpus = 2;
    let mut zoned = testing::zoned(&[(ZoneKind::Dma, 0, 128), (ZoneKind::Normal, 128, 256)]);
    zoned.cpus = 4;
    let mut paranoid = small.clone();
    paranoid.hardening = Hardening::Paranoid;
    [small, zoned, paranoid]
}

#[test]
fn every_lost_write_of_a_field_that_is_watched_is_named() {
    let mut watched = Watched::new();
    machines().iter().for_each(|geometry| lose_writes(geometry, &mut watched));
    assert!(watched.len() > 200, "the machines were hardly used: {}", watched.len());
    let mut blind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (&(name, offset), [named, _]) in &watched {
        blind.entry(name).or_default().extend((*named == 0).then_some(offset));
    }
    for (name, offsets) in blind {
        let known = UNWATCHED.iter().find(|(part, ..)| name.contains(part));
        let allowed = known.map_or(0, |(_, allowed, _)| *allowed);
        assert!(offsets.len() <= allowed, "nobody notices a lost write of {name} at {offsets:?}: {known:?}");
    }
}
