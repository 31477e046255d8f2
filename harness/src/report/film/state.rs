//! Memory at one moment, as the subject shows it and as the model has it.

use crate::machine::LeafRun;
use crate::model::{Block, Model, Tier, Tiers};
use crate::report::owners::{code_of, frame_code, window as owners};
use crate::subject::{Subject, WhiteBox};
use crate::trace::Gfp;
use kmem::{AreaKind, GfpFlags, PAGE_SIZE, VmallocEntry};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// Entries by number: of a page of the window, of a block, of a cache.
pub(in crate::report) type Map<T> = BTreeMap<u64, T>;

/// Pages of the window that are alike: how many, and the number of their owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::report) struct Area(pub(in crate::report) u64, pub(in crate::report) i64);

/// Mapped pages: how many, the first frame, log2 of the pages of an entry, whether writing is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::report) struct Leaf(
    pub(in crate::report) u64,
    pub(in crate::report) u32,
    pub(in crate::report) u8,
    pub(in crate::report) bool,
);

/// A cache: name, objects in use, slabs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::report) struct CacheRecord(
    pub(in crate::report) String,
    pub(in crate::report) u64,
    pub(in crate::report) u64,
);

/// What the model knows of a live block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::report) struct BlockRecord {
    pub(in crate::report) tier: Tier,
    pub(in crate::report) addr: u64,
    pub(in crate::report) requested: usize,
    pub(in crate::report) usable: usize,
    pub(in crate::report) gfp: GfpFlags,
    /// Runs of frames: first, and how many.
    pub(in crate::report) frames: Vec<(u32, u32)>,
    /// Pages of the window: first, and how many; none for blocks of the direct map.
    pub(in crate::report) pages: (u64, u64),
}

impl Default for BlockRecord {
    fn default() -> Self {
        let (tier, gfp) = (Tier::Pages, GfpFlags::empty());
        Self { tier, addr: 0, requested: 0, usable: 0, gfp, frames: Vec::new(), pages: (0, 0) }
    }
}

impl Serialize for BlockRecord {
    /// As a list. The address is text: it has more bits than a number of a script keeps.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { tier, addr, requested, usable, gfp, frames, pages } = self;
        let gfp = Gfp::new(*gfp).to_string();
        (tier.name(), format!("{addr:#x}"), requested, usable, gfp, frames, pages).serialize(serializer)
    }
}

/// What the subject does not show, or the model does not know.
pub(in crate::report) const UNKNOWN: i64 = -1;

/// What is counted, in pages where nothing else is said; each is a pair in [`State::counts`]: the model's number, the
/// subject's.
pub(in crate::report) const COUNTS: [&str; 18] = [
    "live blocks",
    "bytes asked for by them",
    "blocks that wait for readers or are leaked",
    "live areas",
    "pages of page blocks",
    "pages of large kmalloc",
    "pages behind live areas",
    "bad pages",
    "frames in use that are listed as free",
    "free pages",
    "pages on per-CPU lists",
    "pages of slabs",
    "pages behind areas not yet flushed",
    "page tables",
    "leaked pages",
    "guard pages beside blocks",
    "sum of all owners",
    "old translations that some CPU may still use",
];

/// The first so many of them the model knows of every subject.
pub(in crate::report) const COUNTS_OF_MODEL: usize = 4;

/// Memory at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::report) struct State {
    /// The owner of each frame; see [`code_of`].
    pub(in crate::report) frames: Vec<i64>,
    /// The migrate type of each pageblock, from 1; 0: of no zone.
    pub(in crate::report) pageblocks: Vec<i64>,
    /// Free blocks, zone by zone, by order.
    pub(in crate::report) free: Vec<i64>,
    /// See [`COUNTS`].
    pub(in crate::report) counts: Vec<i64>,
    /// The window, by first page; pages are counted from its start.
    pub(in crate::report) window: Map<Area>,
    /// What the page tables map, by first page.
    pub(in crate::report) leaves: Map<Leaf>,
    /// Live blocks by handle.
    pub(in crate::report) blocks: Map<BlockRecord>,
    /// Caches by number.
    pub(in crate::report) caches: Map<CacheRecord>,
}

impl State {
    /// A state of so many frames, pageblocks and lists of free blocks in which nothing is known.
    pub(in crate::report) fn blank(frames: usize, pageblocks: usize, lists: usize) -> Self {
        let counts = vec![0; COUNTS.len() * 2];
        Self {
            frames: vec![0; frames],
            pageblocks: vec![0; pageblocks],
            free: vec![0; lists],
            counts,
            ..Self::default()
        }
    }

    /// Looks at subject and model; the lists keep their lengths.
    pub(in crate::report) fn read(&self, model: &Model, subject: &dyn Subject) -> Self {
        let mut state = Self::blank(self.frames.len(), self.pageblocks.len(), self.free.len());
        let start = model.geometry().vmalloc_start.vpn().as_u64();
        state.blocks = model.blocks(Tiers::ALL).map(|block| (block.handle, record(model, block, start))).collect();
        let leaves = subject.leaf_runs();
        let leaf = |run: &LeafRun| (run.vpn - start, Leaf(run.pages, run.pfn, run.order, run.writable));
        state.leaves = leaves.iter().map(leaf).collect();
        match subject.white_box() {
            Some(inside) => state.read_inside(inside, start),
            None => state.draw_blocks(),
        }
        state.counts = counts(&state, model, subject);
        state
    }

    fn read_inside(&mut self, inside: &dyn WhiteBox, start: u64) {
        for (pfn, code) in (0..).zip(&mut self.frames) {
            *code = code_of(inside.frame_kind(pfn));
        }
        let order = inside.geometry().pageblock_order.get();
        for (n, code) in (0_u32..).zip(&mut self.pageblocks) {
            *code = inside.pageblock_type(n << order).map_or(0, |migrate| migrate as i64 + 1);
        }
        let zones = inside.buddyinfo();
        let listed = zones.zones().iter().flat_map(|zone| zone.free);
        self.free.iter_mut().zip(listed).for_each(|(slot, blocks)| *slot = i64::from(blocks));
        self.window = window(&inside.vmallocinfo(), start, &self.leaves);
        let cache = |info: kmem::CacheInfo| {
            (u64::from(info.id.get()), CacheRecord(info.name.as_str().to_owned(), info.active_objs, info.nr_slabs))
        };
        self.caches = inside.slabinfo().into_iter().map(cache).collect();
    }

    /// Draws what the model knows where the subject shows nothing.
    fn draw_blocks(&mut self) {
        self.frames.fill(frame_code('.'));
        for block in self.blocks.values() {
            let (head, tail) = match block.tier {
                Tier::Kmalloc | Tier::Cache => ('S', 'S'),
                Tier::LargeKmalloc => ('L', 'l'),
                Tier::Vmalloc | Tier::Vmap | Tier::MapRam => ('V', 'V'),
                Tier::Pages | Tier::PagesExact | Tier::Contig => ('P', 'p'),
            };
            for (i, frame) in block.frames.iter().flat_map(|&(first, n)| first..first.saturating_add(n)).enumerate() {
                if let Some(code) = self.frames.get_mut(frame as usize) {
                    *code = frame_code(if i == 0 { head } else { tail });
                }
            }
        }
    }

    /// Frames of live blocks that the subject lists as free.
    fn free_in_use(&self) -> i64 {
        let free = ['.', ','].map(frame_code);
        let is_free = |frame: u32| self.frames.get(frame as usize).is_some_and(|code| free.contains(code));
        let owning = self.blocks.values().filter(|block| Tiers::OWNING.contains(block.tier));
        let frames = owning.flat_map(|block| &block.frames).flat_map(|&(first, n)| first..first.saturating_add(n));
        frames.filter(|&frame| is_free(frame)).collect::<std::collections::BTreeSet<_>>().len() as i64
    }
}

fn record(model: &Model, block: &Block, start: u64) -> BlockRecord {
    let &Block { tier, addr, requested, usable, gfp, .. } = block;
    let (frames, pages) = if tier.is_virtual() {
        let first = (addr / PAGE_SIZE as u64).saturating_sub(start);
        (frame_runs(block.frames.iter().copied()), (first, block.span().div_ceil(PAGE_SIZE) as u64))
    } else {
        (frame_runs(model.direct_frames(addr, usable)), (0, 0))
    };
    BlockRecord { tier, addr, requested, usable, gfp, frames, pages }
}

/// Joins frames that follow each other.
fn frame_runs(frames: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for frame in frames {
        match runs.last_mut() {
            Some((first, n)) if *first + *n == frame => *n += 1,
            _ => runs.push((frame, 1)),
        }
    }
    runs
}

/// The window as runs: what the areas say, and what the tables say about their pages.
fn window(areas: &[VmallocEntry], start: u64, leaves: &Map<Leaf>) -> Map<Area> {
    // Guards belong to an area and have no kind.
    let mut kinds: Map<Option<AreaKind>> = Map::new();
    for area in areas {
        let first = area.start.vpn().as_u64().saturating_sub(start);
        let end = first + area.pages.get();
        kinds.extend((first..end).map(|page| (page, Some(area.kind))));
        kinds.extend((end..end + area.guard.get()).map(|page| (page, None)));
    }
    let mut pages: Map<i64> = kinds.iter().map(|(&page, kind)| (page, kind.map_or(owners::GUARD, bare))).collect();
    for (&first, &Leaf(n, _, order, _)) in leaves {
        let mapped = |page| (page, mapped(kinds.get(&page).copied().flatten(), order));
        pages.extend((first..first + n).map(mapped));
    }
    joined(&pages)
}

/// The owner of an area's page that is not mapped.
fn bare(kind: AreaKind) -> i64 {
    match kind {
        AreaKind::Vmalloc | AreaKind::Vmap | AreaKind::Ram => owners::UNMAPPED,
        AreaKind::Pending | AreaKind::Deferred => owners::WAITS,
        AreaKind::Lazy => owners::LAZY,
        AreaKind::Pooled => owners::POOLED,
    }
}

/// The owner of a page that is mapped by an entry of 2^`order` pages. What was freed for good is not.
fn mapped(kind: Option<AreaKind>, order: u8) -> i64 {
    match kind {
        Some(AreaKind::Vmalloc) if order > 0 => owners::HUGE,
        Some(AreaKind::Vmalloc) => owners::MAPPED,
        Some(AreaKind::Vmap | AreaKind::Ram) => owners::ALIAS,
        Some(AreaKind::Pending | AreaKind::Deferred) => owners::WAITS,
        Some(AreaKind::Lazy | AreaKind::Pooled) | None => owners::STRAY,
    }
}

fn joined(pages: &Map<i64>) -> Map<Area> {
    let mut runs: Map<Area> = Map::new();
    for (&page, &code) in pages {
        match runs.last_entry() {
            Some(mut last) if last.key() + last.get().0 == page && last.get().1 == code => last.get_mut().0 += 1,
            _ => drop(runs.insert(page, Area(1, code))),
        }
    }
    runs
}

fn counts(state: &State, model: &Model, subject: &dyn Subject) -> Vec<i64> {
    let inside = subject.white_box();
    let seen = |number: &dyn Fn(&dyn WhiteBox) -> u64| inside.map_or(UNKNOWN, |inside| number(inside) as i64);
    let used = |number: &dyn Fn(kmem::MemInfo) -> u64| seen(&|inside| number(inside.page_use()));
    let known = |pages: u64| if model.is_tight() { pages as i64 } else { UNKNOWN };
    let expected = model.expected_use();
    let live_areas =
        |inside: &dyn WhiteBox| inside.vmallocinfo().iter().filter(|area| area.kind.is_live()).count() as u64;
    let asked: usize = model.blocks(Tiers::ALL).map(|block| block.requested).sum();
    [
        (model.len() as i64, UNKNOWN),
        (asked as i64, UNKNOWN),
        (model.ghosts().count() as i64, UNKNOWN),
        (model.count(Tiers::VIRTUAL) as i64, seen(&live_areas)),
        (known(expected.pages), used(&|mem| mem.pages)),
        (known(expected.large_kmalloc), used(&|mem| mem.large_kmalloc)),
        (known(expected.vmalloc), used(&|mem| mem.vmalloc)),
        (known(expected.bad), used(&|mem| mem.bad)),
        (known(0), seen(&|_| state.free_in_use() as u64)),
        (UNKNOWN, used(&|mem| mem.free)),
        (UNKNOWN, used(&|mem| mem.pcp)),
        (UNKNOWN, used(&|mem| mem.slab)),
        (UNKNOWN, used(&|mem| mem.vmalloc_lazy)),
        (UNKNOWN, used(&|mem| mem.page_tables)),
        (UNKNOWN, used(&|mem| mem.leaked)),
        (UNKNOWN, used(&|mem| mem.guard)),
        (known(model.geometry().managed().get()), used(&|mem| mem.owned_total())),
        (UNKNOWN, seen(&|_| subject.stale().len() as u64)),
    ]
    .into_iter()
    .flat_map(|(model, subject)| [model, subject])
    .collect()
}
