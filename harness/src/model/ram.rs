//! The blocks from which mappings of `vm_map_ram` are cut, page by page, by section 4.6.

use super::{Model, Span};
use crate::subject::{Call, Reply, Subject, WindowCall};
use kmem::{AreaKind, Event, Geometry, PAGE_SIZE};

/// The most pages of a mapping that comes from a block (BITS_PER_LONG).
const MOST_PAGES: usize = 64;
/// Pages under one table of the last level.
const TABLE_PAGES: usize = 512;

/// What has become of a page of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RamPage {
    /// Nobody has had it.
    Free,
    /// A mapping shows a frame there.
    Shown(u32),
    /// A mapping has taken it to have a power of two, and shows nothing there.
    Slack,
    /// Its mapping is gone; a processor may remember it.
    Unflushed,
    /// Its mapping is gone, and forgotten everywhere.
    Flushed,
}

/// One block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RamBlock {
    /// Its first page, as a virtual page number.
    pub start: u64,
    /// The CPU whose mappings come from it.
    pub cpu: u16,
    /// All of its pages.
    pub pages: Vec<RamPage>,
}

impl RamBlock {
    fn new(start: u64, cpu: u16, pages: usize) -> Self {
        Self { start, cpu, pages: vec![RamPage::Free; pages] }
    }

    fn count(&self, is: impl Fn(RamPage) -> bool) -> usize {
        self.pages.iter().filter(|&&page| is(page)).count()
    }

    /// Pages that nobody has had.
    pub fn free(&self) -> usize {
        self.count(|page| page == RamPage::Free)
    }

    /// The page from which the next mapping is cut.
    pub fn next(&self) -> u64 {
        self.start + (self.pages.len() - self.free()) as u64
    }

    /// Whether nobody has a mapping of it.
    pub fn is_idle(&self) -> bool {
        self.count(|page| matches!(page, RamPage::Shown(_) | RamPage::Slack)) == 0
    }

    /// Whether a purge takes it: nobody has a mapping of it, and it is forced, or less than a quarter is left.
    pub fn is_purged(&self, forced: bool) -> bool {
        self.is_idle() && (forced || self.free() < self.pages.len() / 4)
    }

    /// The frames that it shows.
    pub fn shown(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().filter_map(|page| if let RamPage::Shown(frame) = page { Some(*frame) } else { None })
    }

    fn slots(&mut self, page: u64, count: usize) -> &mut [RamPage] {
        let first = page.saturating_sub(self.start) as usize;
        self.pages.get_mut(first..first + count.next_power_of_two()).unwrap_or_default()
    }

    fn holds(&self, page: u64) -> bool {
        (self.start..self.start + self.pages.len() as u64).contains(&page)
    }

    /// Its pages in the window: a part for each page table, with entries or without.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        self.pages.chunks(TABLE_PAGES).enumerate().map(|(n, pages)| {
            let has_entry = |page: &RamPage| matches!(page, RamPage::Shown(_) | RamPage::Unflushed);
            let mapped = u64::from(pages.iter().any(has_entry));
            Span { start: self.start + (n * TABLE_PAGES) as u64, pages: pages.len() as u64, guard: 0, mapped }
        })
    }
}

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct RamBlocks {
    blocks: Vec<RamBlock>,
    /// How many blocks a purge had taken, and how many purges there had been.
    seen: (u64, u64),
    /// Those that are gone since the last call, although they were not used up.
    purged: Vec<RamBlock>,
}

/// Pages of a block: a share of the window for each CPU, within bounds that leave room for others.
pub fn ram_block_pages(geometry: &Geometry) -> usize {
    let window = geometry.vmalloc_pages.get();
    let cpus = u64::from(geometry.cpus).next_power_of_two();
    let pages = (window / cpus / 16).max(2 * MOST_PAGES as u64).min(1024).min(window / 4).max(1);
    1 << pages.ilog2()
}

impl Model {
    /// Whether a mapping of so many pages comes from a block; larger ones are areas of their own.
    pub fn is_run(&self, pages: usize) -> bool {
        pages <= MOST_PAGES && pages.next_power_of_two() <= ram_block_pages(&self.geometry)
    }

    /// The blocks that there are.
    pub fn ram_blocks(&self) -> &[RamBlock] {
        &self.ram.blocks
    }

    /// The block that has a page.
    pub fn ram_block(&self, page: u64) -> Option<&RamBlock> {
        self.ram.blocks.iter().find(|block| block.holds(page))
    }

    /// The blocks that a purge took during the last call.
    pub fn purged_ram_blocks(&self) -> &[RamBlock] {
        &self.ram.purged
    }

    /// The blocks of the calling CPU with room for a mapping of so many pages.
    pub fn ram_blocks_with_room(&self, pages: usize) -> impl Iterator<Item = &RamBlock> {
        let has_room = move |block: &&RamBlock| block.cpu == self.cpu && block.free() >= pages.next_power_of_two();
        self.ram.blocks.iter().filter(has_room)
    }

    /// Follows what a call has done to blocks, before it is judged: a mapping that was unmapped, and purges on its way.
    pub fn settle_ram(&mut self, call: &Call, reply: &Reply, subject: &dyn Subject) {
        self.ram.purged.clear();
        if let (&Call::Window(WindowCall::VmUnmapRam { addr, count }), Reply::Done) = (call, reply) {
            self.soil(addr / PAGE_SIZE as u64, count);
        }
        let Some(inside) = subject.white_box() else { return };
        let seen = [Event::VmapBlockPurged, Event::Purge].map(|event| inside.event_count(event));
        let (purged, flushed) = (seen[0] != self.ram.seen.0, seen[1] != self.ram.seen.1);
        self.ram.seen = (seen[0], seen[1]);
        if purged {
            // A mapping at the start of a block is the first of a new one, where an old one was.
            let fresh = match (call, reply) {
                (Call::Window(WindowCall::VmMapRam { .. }), Reply::Block { addr, .. }) => Some(addr / PAGE_SIZE as u64),
                _ => None,
            };
            let listed = inside.vmallocinfo();
            let is_listed =
                |start| listed.iter().any(|entry| entry.kind == AreaKind::Ram && entry.start.vpn().as_u64() == start);
            let is_there = |block: &RamBlock| fresh != Some(block.start) && is_listed(block.start);
            let (there, gone) = std::mem::take(&mut self.ram.blocks).into_iter().partition(is_there);
            (self.ram.blocks, self.ram.purged) = (there, gone);
        }
        if flushed {
            let pages = self.ram.blocks.iter_mut().flat_map(|block| &mut block.pages);
            pages.filter(|page| **page == RamPage::Unflushed).for_each(|page| *page = RamPage::Flushed);
        }
    }

    /// The pages of a mapping are dirty; a block of which all are is nobody's.
    fn soil(&mut self, page: u64, count: usize) {
        if !self.is_run(count) {
            return;
        }
        let Some(at) = self.ram.blocks.iter().position(|block| block.holds(page)) else { return };
        let block = &mut self.ram.blocks[at];
        for (n, slot) in block.slots(page, count).iter_mut().enumerate() {
            *slot = if n < count { RamPage::Unflushed } else { RamPage::Flushed };
        }
        let is_dirty = |page| matches!(page, RamPage::Unflushed | RamPage::Flushed);
        if block.count(is_dirty) == block.pages.len() {
            self.ram.blocks.remove(at);
        }
    }

    /// Follows a mapping that was made: from a block, or from a new one.
    pub(super) fn follow_ram(&mut self, call: &Call, addr: u64) {
        let Call::Window(WindowCall::VmMapRam { pfns, .. }) = call else { return };
        if !self.is_run(pfns.len()) || !self.is_tight() {
            return;
        }
        let page = addr / PAGE_SIZE as u64;
        if self.ram_block(page).is_none() {
            self.ram.blocks.push(RamBlock::new(page, self.cpu, ram_block_pages(&self.geometry)));
        }
        let Some(block) = self.ram.blocks.iter_mut().find(|block| block.holds(page)) else { return };
        for (n, slot) in block.slots(page, pfns.len()).iter_mut().enumerate() {
            *slot = pfns.get(n).map_or(RamPage::Slack, |&frame| RamPage::Shown(frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::PageCount;

    #[test]
    fn the_size_of_a_block_follows_the_formula() {
        let mut geometry = Geometry::flat(64);
        for (window, cpus, pages) in [
            // A window of 128 GiB: the values of section 4.6.
            (1 << 25, 64, 1024),
            (1 << 25, 512, 1024),
            (1 << 25, 8192, 256),
            (4096, 1, 256),
            (4096, 3, 128),
            (160, 1, 32),
            (3, 1, 1),
        ] {
            (geometry.vmalloc_pages, geometry.cpus) = (PageCount::new(window), cpus);
            assert_eq!(ram_block_pages(&geometry), pages, "{window} pages, {cpus} CPUs");
        }
    }

    #[test]
    fn a_block_is_free_pages_then_mappings_then_dirt() {
        let mut block = RamBlock::new(64, 0, 8);
        block.slots(64, 3).fill(RamPage::Slack);
        assert_eq!((block.free(), block.next(), block.is_idle()), (4, 68, false));
        block.slots(64, 3).fill(RamPage::Unflushed);
        assert!(block.is_idle() && block.is_purged(true) && !block.is_purged(false));
        block.slots(68, 4).fill(RamPage::Flushed);
        assert!(block.is_purged(false), "nothing is left");
        assert_eq!(block.spans().map(|span| span.mapped).collect::<Vec<_>>(), [1]);
    }
}
