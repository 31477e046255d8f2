//! `vm_map_ram`: mappings of few pages that come and go, without a record for each.
//!
//! A block is an area of up to 1024 pages from which its CPU cuts runs, one after the other. A run that is unmapped is
//! dirty, and nothing else happens to it: its addresses come back when the whole block does. So neither mapping nor
//! unmapping looks for addresses, and one flush serves all runs of a block. Source of the contract: section 4.6.
//!
//! ```text
//!   start                                                start + pages
//!   │ live │ dirty │ live+slack │ dirty │       free       │      a run of n pages takes the next 2^order >= n
//!   └── taken from left to right ──────►└── not yet taken ──┘
//!
//! Block: live on the queue of its CPU ──► all dirty, or purged ──► Lazy ──► FLUSHED ──► addresses reused
//! ```
//!
//! The first page of each run is marked in its page-table entry: that is how the number of pages of a run is known when it
//! is unmapped, and why a wrong number is a typed error and not somebody else's mapping gone.
//!
//! Lock order: purging > space > a queue > a vmap node > page tables; so the lock of the whole window is never taken under a
//! queue's.
//!
//! ```text
//! R1  free + dirty + sum over live runs of 2^ceil(log2(pages of the run)) == pages of the block
//! R2  the entries of the last `free` pages are empty
//! R3  an entry that is unmapped and not yet empty is in `unflushed`
//! R4  a block that is live is on the queue of its CPU, once
//! ```

use super::alloc::{Place, effort};
use super::area::{Link, Node, State};
use super::flags::VmFlags;
use super::{Vmalloc, records};
use crate::addr::{PageCount, Pfn, VirtAddr, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::{AllocError, FreeError};
use crate::geometry::Geometry;
use crate::gfp::GfpFlags;
use crate::paging::{Detached, Pte, TlbFlush, VpnRange};
use crate::platform::{CpuId, Event, Platform};
use crate::raw::{Carver, MetaSlice};
use crate::slab::SlabLayer;
use crate::sync::SpinLock;
use crate::warn::Warning;

/// The most pages of a mapping that comes from a block; larger ones are areas of their own.
const MOST_PAGES: u64 = 64;
/// Blocks are no smaller, unless the window is too small for that, and no larger.
const BLOCK_PAGES: (u64, u64) = (2 * MOST_PAGES, 1024);
/// No block takes more than this share of the window.
const SHARE: u64 = 4;

/// How many pages a block has: a power of two.
fn block_pages(window: u64, cpus: u16) -> u64 {
    let share = window / u64::from(cpus).next_power_of_two() / 16;
    let pages = share.clamp(BLOCK_PAGES.0, BLOCK_PAGES.1).min(window / SHARE).max(1);
    1 << pages.ilog2()
}

/// How a block's pages are used, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Usage {
    /// Not yet taken.
    pub(super) free: u64,
    /// Taken, and unmapped again.
    pub(super) dirty: u64,
    /// Which of them the processors may still remember: from the first up to, but without, the second.
    pub(super) unflushed: (u64, u64),
    /// Whose queue the block is on.
    pub(super) cpu: CpuId,
}

impl Usage {
    const NOTHING_UNFLUSHED: (u64, u64) = (u16::MAX as u64, 0);

    const fn new(pages: u64, cpu: CpuId) -> Self {
        Self { free: pages, dirty: 0, unflushed: Self::NOTHING_UNFLUSHED, cpu }
    }

    /// As two words of the record; no block has more than 2^16 - 1 pages.
    pub(super) const fn to_words(self) -> [u64; 2] {
        let (from, to) = self.unflushed;
        [self.free << 48 | self.dirty << 32 | from << 16 | to, self.cpu.get() as u64]
    }

    pub(super) const fn from_words([pages, cpu]: [u64; 2]) -> Self {
        const LOW: u64 = u16::MAX as u64;
        let unflushed = (pages >> 16 & LOW, pages & LOW);
        Self { free: pages >> 48, dirty: pages >> 32 & LOW, unflushed, cpu: CpuId::new(cpu as u16) }
    }

    fn take(&mut self, node: &Node, pages: u64) -> Option<u64> {
        let offset = node.pages.checked_sub(self.free)?;
        self.free = self.free.checked_sub(pages)?;
        Some(node.start + offset)
    }

    /// A run was unmapped that showed so many pages: all that it had taken is dirty now.
    fn soil(&mut self, offset: u64, pages: u64) {
        self.dirty += pages.next_power_of_two();
        self.unflushed = (self.unflushed.0.min(offset), self.unflushed.1.max(offset + pages));
    }

    /// Whether nobody has a run of the block, but it is not used up either: then a purge takes it, if it is forced or
    /// less than a quarter is left.
    const fn is_purged(&self, pages: u64, forced: bool) -> bool {
        let idle = self.free + self.dirty == pages && self.dirty != pages;
        idle && (forced || self.free < pages / 4)
    }
}

/// The blocks of each CPU.
pub(super) struct RamBlocks {
    queues: MetaSlice<SpinLock<Queue>>,
    block_pages: u64,
}

/// A CPU's blocks, linked through their records; the youngest is the first.
#[derive(Clone, Copy)]
struct Queue {
    head: Link,
}

impl RamBlocks {
    pub(super) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let queues = carver.carve(usize::from(geometry.cpus), |_| SpinLock::new(Queue { head: Link::NIL }));
        Self { queues, block_pages: block_pages(geometry.vmalloc_pages.get(), geometry.cpus) }
    }

    /// Whether a mapping of so many pages is a run of a block.
    fn has_run_of(&self, pages: u64) -> bool {
        pages <= MOST_PAGES && pages.next_power_of_two() <= self.block_pages
    }

    fn of(&self, cpu: CpuId) -> &SpinLock<Queue> {
        &self.queues[cpu.index()]
    }

    #[cfg(test)]
    pub(super) const fn block_pages(&self) -> u64 {
        self.block_pages
    }
}

impl Vmalloc {
    /// Maps frames of the caller side by side, for a short time: they stay the caller's. Up to 64 pages are a run of one of
    /// the CPU's blocks; more are an area of their own. Neither is followed by a guard.
    ///
    /// # Errors
    ///
    /// `ZeroSize` for no frame, after a warning; `TooLarge` for more than memory has; `BadAddress` for a frame outside memory;
    /// what else can refuse a record, addresses or a page table. A refused call changes nothing.
    pub(crate) fn vm_map_ram<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        frames: &[Pfn],
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        if frames.is_empty() {
            pages.base.warn(gfp, Warning::VmMapRamZero);
        }
        let count = super::alloc::checked_frames(&pages.base, frames)?;
        if self.ram.has_run_of(count.get()) {
            self.map_run(pages, slab, frames, gfp)
        } else {
            self.map_side_by_side(pages, slab, frames, VmFlags::NO_GUARD | VmFlags::MAP_RAM, gfp)
        }
    }

    fn map_run<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        frames: &[Pfn],
        gfp: GfpFlags,
    ) -> Result<VirtAddr, AllocError> {
        let span = (frames.len() as u64).next_power_of_two();
        let cpu = pages.base.cpu();
        let (at, start) = match self.take_run(&pages.base, cpu, span) {
            Some(run) => run,
            None => self.new_block(pages, slab, cpu, span, gfp)?,
        };
        let range = VpnRange::new(Vpn::new(start), frames.len() as u64);
        let mut rest = frames.iter().copied();
        if let Err(refused) = self.tables.map_run(pages, range, effort(gfp), || rest.next()) {
            let error = self.give_up(pages, range, false, refused);
            self.give_run_back(pages, slab, (at, start), (cpu, span));
            return Err(error);
        }
        frames.iter().for_each(|&frame| pages.map_page(frame));
        pages.base.event(Event::VmapRunTaken);
        Ok(range.start().addr())
    }

    /// Cuts a run from the first of the CPU's blocks that has so many pages left.
    fn take_run<P>(&self, base: &Base<P>, cpu: CpuId, span: u64) -> Option<(Link, u64)> {
        let queue = self.ram.of(cpu).lock();
        let mut at = queue.head;
        while !at.is_nil() {
            let (next, start) = self.edit_block(base, at, |node, usage| (below(node), usage.take(node, span)));
            if let Some(start) = start {
                return Some((at, start));
            }
            at = next;
        }
        None
    }

    /// A new block, and its first run.
    #[cold]
    #[inline(never)]
    fn new_block<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        cpu: CpuId,
        span: u64,
        gfp: GfpFlags,
    ) -> Result<(Link, u64), AllocError> {
        let count = self.ram.block_pages;
        let mut place = Place::anywhere(PageCount::new(count), VmFlags::NO_GUARD | VmFlags::MAP_RAM);
        place.want.align = count;
        let area = self.reserve(pages, slab, place, gfp)?;
        let usage = Usage { free: count - span, ..Usage::new(count, cpu) };
        records(&pages.base).set_usage(area.at, &usage);
        let mut queue = self.ram.of(cpu).lock();
        self.publish(&pages.base, area.at, |node| node.state = State::Block { next: queue.head });
        queue.head = area.at;
        pages.base.event(Event::VmapBlockMade);
        Ok((area.at, area.range.start().as_u64()))
    }

    /// Undoes a run of which nothing is mapped. If others have taken pages behind it, its pages are dirty; a block of which
    /// nothing else is taken, or nothing is left, goes as a whole. All of it is under the queue's lock: without a run of its
    /// own, this call has nothing else that keeps the block.
    #[cold]
    #[inline(never)]
    fn give_run_back<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        (at, start): (Link, u64),
        (cpu, span): (CpuId, u64),
    ) {
        let mut queue = self.ram.of(cpu).lock();
        let (block, usage) = self.edit_block(&pages.base, at, |node, usage| {
            let is_last = node.end() - usage.free == start + span;
            let pages = if is_last { &mut usage.free } else { &mut usage.dirty };
            *pages += span;
            (*node, *usage)
        });
        let (unused, used_up) = (usage.free == block.pages, usage.dirty == block.pages);
        if unused || used_up {
            self.unlink(&pages.base, &mut queue, at);
            let node = self.make_lazy(&pages.base, at);
            drop(queue);
            if unused { self.forget(pages, slab, at, node.start) } else { self.put_off_block(pages, slab, at, &node) }
        }
    }

    /// Unmaps what [`Self::vm_map_ram`] mapped at `addr`, with the same number of pages.
    ///
    /// # Errors
    ///
    /// What is wrong with address or number; nothing is changed then.
    pub(crate) fn vm_unmap_ram<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        slab: &SlabLayer,
        addr: VirtAddr,
        count: usize,
    ) -> Result<(), FreeError> {
        let is_page = addr.page_offset() == 0 && pages.base.geometry.is_vmalloc_addr(addr);
        if !is_page || count == 0 {
            return Err(FreeError::Foreign(addr));
        }
        if !self.ram.has_run_of(count as u64) {
            let (at, node) = self.retire_own_area(&pages.base, addr, count)?;
            self.free_retired(pages, slab, (at, node, true));
            return Ok(());
        }
        if let Some((at, cpu)) = self.unmap_run(pages, addr, count as u64)? {
            self.retire_block(pages, slab, at, cpu);
        }
        Ok(())
    }

    /// Unmaps a run; returns its block and the block's CPU if all of the block is dirty now.
    fn unmap_run<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        count: u64,
    ) -> Result<Option<(Link, CpuId)>, FreeError> {
        let (page, records) = (addr.vpn().as_u64(), records(&pages.base));
        let start = page - page % self.ram.block_pages;
        let of = self.nodes.of(start).lock();
        let at = self.nodes.live.find(&of, records, start).ok_or(FreeError::Foreign(addr))?;
        let node = records.load(at);
        let State::Block { .. } = node.state else { return Err(FreeError::Foreign(addr)) };
        let run = VpnRange::new(addr.vpn(), count);
        self.check_run(pages, &node, run)?;
        self.tables.visit(pages, run, |_, entry| entry.frame().into_iter().for_each(|frame| pages.unmap_page(frame)));
        // What has to be flushed is noted in pages of the block.
        let _unflushed = self.tables.unmap(pages, run);
        let mut usage = records.usage(at);
        usage.soil(page - start, count);
        records.set_usage(at, &usage);
        Ok((usage.dirty == node.pages).then_some((at, usage.cpu)))
    }

    /// Checks that a range of a block is one run, neither more nor less. One entry beyond the range tells.
    fn check_run<P: Platform>(&self, pages: &PageAllocator<P>, block: &Node, run: VpnRange) -> Result<(), FreeError> {
        let (page, count) = (run.start().as_u64(), run.pages());
        let left = block.end() - page;
        let found = self.tables.run_at(pages, run.start(), left.min(count + 1));
        if found == count { Ok(()) } else { Err(self.no_run(pages, block, run)) }
    }

    /// What is wrong with a range of which the first page begins no run, or one of another number of pages.
    #[cold]
    #[inline(never)]
    fn no_run<P: Platform>(&self, pages: &PageAllocator<P>, block: &Node, run: VpnRange) -> FreeError {
        let (addr, page) = (run.start().addr(), run.start().as_u64());
        let found = self.tables.run_at(pages, run.start(), MOST_PAGES.min(block.end() - page));
        if found > 0 {
            return FreeError::WrongCount { addr, count: run.pages() as usize, found: found as usize };
        }
        let (mut start, mut here) = (None, Pte::EMPTY);
        self.tables.visit(pages, VpnRange::new(Vpn::new(block.start), page - block.start + 1), |page, entry| {
            start = if entry.is_first() { Some(page.addr()) } else { start.filter(|_| entry.is_present()) };
            here = entry;
        });
        match start {
            Some(start) if here.is_present() => FreeError::Interior { addr, start },
            _ if here.is_empty() => FreeError::Foreign(addr),
            _ => FreeError::DoubleFree(addr),
        }
    }

    /// Makes an area that is a mapping of its own Lazy.
    fn retire_own_area<P: Platform>(
        &self,
        base: &Base<P>,
        addr: VirtAddr,
        count: usize,
    ) -> Result<(Link, Node), FreeError> {
        let (page, records) = (addr.vpn().as_u64(), records(base));
        let mut of = self.nodes.of(page).lock();
        let found = self.nodes.live.find(&of, records, page).map(|at| (at, records.load(at)));
        let is_own = |(_, node): &(Link, Node)| node.state == State::Vmap && node.flags.contains(VmFlags::MAP_RAM);
        let Some((at, mut node)) = found.filter(is_own) else {
            drop(of);
            base.warn(GfpFlags::empty(), Warning::VmUnmapRamOfNothing { addr });
            return Err(FreeError::Foreign(addr));
        };
        if node.pages != count as u64 {
            return Err(FreeError::WrongCount { addr, count, found: node.pages as usize });
        }
        node.state = State::Lazy { next: Link::NIL, owned: false };
        records.store(at, &node);
        self.nodes.live.remove(&mut of, records, page);
        Ok((at, node))
    }

    /// A block all of whose pages are dirty waits for the flush, as every freed area does.
    #[cold]
    #[inline(never)]
    fn retire_block<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, at: Link, cpu: CpuId) {
        let mut queue = self.ram.of(cpu).lock();
        self.unlink(&pages.base, &mut queue, at);
        let node = self.make_lazy(&pages.base, at);
        drop(queue);
        self.put_off_block(pages, slab, at, &node);
    }

    /// Has a block that is Lazy wait for the flush of all of it.
    fn put_off_block<P: Platform>(&self, pages: &PageAllocator<P>, slab: &SlabLayer, at: Link, node: &Node) {
        let waiting = self.defer(&pages.base, at, TlbFlush::of(node.mapped_range()), 0);
        pages.base.event(Event::VmapBlockDirty);
        if waiting > self.lazy_max {
            self.purge_unless_under_way(pages, slab);
        }
    }

    fn make_lazy<P>(&self, base: &Base<P>, at: Link) -> Node {
        let records = records(base);
        let mut of = self.nodes.of(records.start(at)).lock();
        let old = records.load(at);
        let node = Node { mapped: old.pages, state: State::Lazy { next: Link::NIL, owned: false }, ..old };
        records.store(at, &node);
        self.nodes.live.remove(&mut of, records, node.start);
        node
    }

    fn unlink<P>(&self, base: &Base<P>, queue: &mut Queue, gone: Link) {
        let after = self.edit_block(base, gone, |node, _| below(node));
        if queue.head == gone {
            queue.head = after;
            return;
        }
        let mut at = queue.head;
        while !at.is_nil() {
            let next = self.edit_block(base, at, |node, _| {
                let next = below(node);
                if next == gone {
                    node.state = State::Block { next: after };
                }
                next
            });
            at = if next == gone { Link::NIL } else { next };
        }
    }

    /// The purge's part: idle blocks become Lazy, so that the flush that follows serves them too; of the others, what is
    /// unmapped is taken out of the tables for that flush.
    pub(super) fn purge_blocks<P: Platform>(&self, pages: &PageAllocator<P>, forced: bool, gone: &mut Detached) {
        for queue in self.ram.queues.iter() {
            let mut queue = queue.lock();
            let mut at = queue.head;
            while !at.is_nil() {
                let mut purged = false;
                let next = self.edit_block(&pages.base, at, |node, usage| {
                    purged = usage.is_purged(node.pages, forced);
                    if !purged {
                        self.take_dirty(pages, node, usage, gone);
                    }
                    below(node)
                });
                if purged {
                    self.unlink(&pages.base, &mut queue, at);
                    let node = self.make_lazy(&pages.base, at);
                    self.defer(&pages.base, at, TlbFlush::of(node.mapped_range()), 0);
                    pages.base.event(Event::VmapBlockPurged);
                }
                at = next;
            }
        }
    }

    /// Empties the entries of a block that are unmapped.
    fn take_dirty<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node, usage: &mut Usage, gone: &mut Detached) {
        let (from, to) = usage.unflushed;
        if from < to {
            self.tables.take_unmapped(pages, VpnRange::new(Vpn::new(node.start + from), to - from), gone);
            usage.unflushed = Usage::NOTHING_UNFLUSHED;
        }
    }

    /// Lets `act` look at a block and change it, under its node's lock. It is on a queue, and that keeps it.
    fn edit_block<P, T>(&self, base: &Base<P>, at: Link, act: impl FnOnce(&mut Node, &mut Usage) -> T) -> T {
        let records = records(base);
        let _of = self.nodes.of(records.start(at)).lock();
        let (mut node, mut usage) = (records.load(at), records.usage(at));
        let answer = act(&mut node, &mut usage);
        records.store(at, &node);
        records.set_usage(at, &usage);
        answer
    }
}

impl Vmalloc {
    /// How often a block is on the queue of its CPU. A queue has no more blocks than the window: a cycle ends the count.
    pub(super) fn times_queued<P>(&self, base: &Base<P>, block: Link, usage: &Usage) -> u64 {
        let Some(queue) = self.ram.queues.get(usage.cpu.index()) else { return 0 };
        let (queue, records) = (queue.lock(), records(base));
        let (mut at, mut found) = (queue.head, 0);
        for _ in 0..base.geometry.vmalloc_pages.get() / self.ram.block_pages {
            if at.is_nil() || found > 1 {
                break;
            }
            found += u64::from(at == block);
            at = below(&records.load(at));
        }
        found
    }
}

/// The block below a block on its queue.
const fn below(node: &Node) -> Link {
    if let State::Block { next } = node.state { next } else { Link::NIL }
}
