//! The simulated machine: frames, CPUs, an MMU with a TLB that remembers, a fault plan, event counters.
//!
//! ```text
//!  oracle reads/writes             subject (Kmem<SimPlatform>)
//!        │ virtual address               │ physical address
//!        ▼                               ▼
//!  direct map ──────────────────►  PhysMem  ◄── page tables, objects
//!  vmalloc window ► TLB ► walk ────────┘
//! ```
//!
//! The processor's side (left) finds its way through the tables that the allocator wrote (right) by code of its own,
//! so that a wrong table entry or a forgotten flush shows as a wrong byte.

mod direct;
mod faults;
mod givers;
mod mmu;
mod owners;
mod platform;
mod readers;
mod speculation;
mod tlb;

pub use direct::DirectAliases;
pub use faults::FaultPlan;
pub use givers::{Evicted, Givers};
pub use mmu::LeafRun;
pub use owners::Owners;
pub use platform::SimPlatform;
pub use readers::Readers;
pub use speculation::{Remembered, RememberedTable};

use crate::subject::AccessFault;
use kmem::{
    Event, FaultSite, Geometry, Order, PAGE_SIZE, Pfn, PhysAddr, PhysMem, Shortage, SlabBug, VirtAddr, Vpn, Warning,
};
use speculation::Speculation;
use std::cell::{Cell, RefCell};
use tlb::Tlb;

/// What memory holds before anybody writes it: not zero, so that a missing zeroing shows.
pub(crate) const JUNK: u8 = 0xa5;
/// What a block that moved leaves behind.
const LEFT_BEHIND: u8 = 0x6b;
/// Pages in a row that belong to one vmap node (section 4.1).
const PAGES_OF_NODE: u64 = 16;
/// Pages that a processor fills in at once at most, on its own account.
const MOST_SPECULATED: usize = 4096;

/// Whether the machine executes the flushes that it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlbFlushes {
    /// As a correct kernel's would.
    #[default]
    Obeyed,
    /// Every flush is lost.
    Lost,
    /// Each flush is done when the next one is asked for: what it was for is reused before.
    Late,
    /// The last page of each flush is left out.
    OnePageShort,
    /// Pages of the last vmap node are left out, where there are several.
    WithoutOneNode,
    /// Translations go, but the processors keep the tables above them.
    KeepTables,
}

/// What one call of the subject asked of other layers and of the machine.
#[derive(Clone, Debug, Default)]
pub struct Nested {
    /// Each question about a fault point: which memory was wanted there, with which flags.
    pub sites: Vec<FaultSite>,
    /// Each request to give memory back.
    pub shortages: Vec<Shortage>,
}

impl Nested {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sites.clear();
        self.shortages.clear();
    }
}

/// Frames, CPUs and an MMU.
///
/// ```text
/// M1  a frame whose dirty flag is clear holds nothing that was written through the processor since the last recycle
/// M2  tlbs.len() == geometry.cpus;  cpu < geometry.cpus
/// ```
pub struct SimMachine {
    memory: PhysMem,
    /// What memory holds before anybody writes it.
    junk: u8,
    direct_map: u64,
    direct_bytes: u64,
    vmalloc_start: u64,
    vmalloc_end: u64,
    cpu: Cell<u16>,
    root: Cell<Option<Pfn>>,
    tlbs: Vec<Tlb>,
    dirty: Vec<Cell<bool>>,
    aliases: DirectAliases,
    flushes: TlbFlushes,
    /// The flush that is still to be done, if they are late.
    owed: Cell<Option<(u64, u64)>>,
    speculation: RefCell<Speculation>,
    /// How many flushes were asked for.
    flushed: Cell<u64>,
    faults: FaultPlan,
    owners: Owners,
    givers: Givers,
    /// How many more free blocks the host takes.
    lendable: Cell<u32>,
    lent: RefCell<Vec<(u64, u8)>>,
    events: [Cell<u64>; Event::COUNT],
    warnings: RefCell<Vec<Warning>>,
    /// For what memory reclaim was asked since the last look.
    shortages: RefCell<Vec<Shortage>>,
    slab_bugs: RefCell<Vec<SlabBug>>,
    readers: Readers,
}

impl SimMachine {
    /// Builds a machine of this shape, every byte of memory junk.
    pub fn new(geometry: &Geometry) -> Self {
        Self::with_junk(geometry, JUNK)
    }

    /// The same with other junk.
    pub(crate) fn with_junk(geometry: &Geometry, junk: u8) -> Self {
        let frames = geometry.frames();
        let mut machine = Self {
            memory: PhysMem::heap(frames, junk),
            junk,
            direct_map: 0,
            direct_bytes: 0,
            vmalloc_start: 0,
            vmalloc_end: 0,
            cpu: Cell::new(0),
            root: Cell::new(None),
            tlbs: Vec::new(),
            dirty: vec![Cell::new(false); frames as usize],
            aliases: DirectAliases::default(),
            flushes: TlbFlushes::Obeyed,
            owed: Cell::new(None),
            speculation: RefCell::default(),
            flushed: Cell::new(0),
            faults: FaultPlan::default(),
            givers: Givers::default(),
            owners: Owners::default(),
            lendable: Cell::new(0),
            lent: RefCell::default(),
            readers: Readers::default(),
            events: [const { Cell::new(0) }; Event::COUNT],
            warnings: RefCell::default(),
            shortages: RefCell::default(),
            slab_bugs: RefCell::default(),
        };
        machine.reshape(geometry);
        machine
    }

    /// Makes a machine that was used before as good as new; memory is kept if it has the size that is needed.
    pub fn recycle(mut self, geometry: &Geometry) -> Self {
        if self.memory.frames() != u64::from(geometry.frames()) {
            return Self::with_junk(geometry, self.junk);
        }
        self.restore_junk();
        self.tlbs.iter().for_each(Tlb::clear);
        self.speculation.take();
        self.owed.set(None);
        self.aliases.reset();
        self.flushed.set(0);
        self.faults.reset();
        self.readers.reset();
        self.owners.reset();
        self.givers.reset();
        self.lent.take();
        self.events.iter().for_each(|n| n.set(0));
        self.warnings.borrow_mut().clear();
        self.shortages.borrow_mut().clear();
        self.slab_bugs.borrow_mut().clear();
        self.root.set(None);
        self.cpu.set(0);
        self.flushes = TlbFlushes::Obeyed;
        self.reshape(geometry);
        self
    }

    fn reshape(&mut self, geometry: &Geometry) {
        self.direct_map = geometry.direct_map.as_u64();
        self.direct_bytes = u64::from(geometry.frames()) * PAGE_SIZE as u64;
        self.vmalloc_start = geometry.vmalloc_start.as_u64();
        self.vmalloc_end = geometry.vmalloc_end().as_u64();
        self.tlbs.resize_with(usize::from(geometry.cpus), Tlb::default);
    }

    /// Fills the frames that were used with junk again, without touching the others: refilling all of memory would
    /// cost more than a short trace. Frames that only the allocator itself wrote (page tables, zeroed or constructed
    /// memory) are recognised by their first and middle words.
    fn restore_junk(&self) {
        for (n, dirty) in self.dirty.iter().enumerate() {
            let frame = PhysAddr::new((n * PAGE_SIZE) as u64);
            let middle = PhysAddr::new((n * PAGE_SIZE + PAGE_SIZE / 2) as u64);
            let is_junk = |at| self.memory.read_u64(at) == Some(u64::from_ne_bytes([self.junk; 8]));
            if dirty.replace(false) || !is_junk(frame) || !is_junk(middle) {
                let filled = self.memory.fill(frame, PAGE_SIZE, self.junk);
                debug_assert!(filled, "the frame is inside memory");
            }
        }
    }

    /// What memory holds before anybody writes it.
    pub(crate) fn junk(&self) -> u8 {
        self.junk
    }

    /// Chooses what becomes of TLB flushes from now on.
    pub fn set_flushes(&mut self, flushes: TlbFlushes) {
        self.flushes = flushes;
    }

    /// Physical memory.
    pub fn memory(&self) -> &PhysMem {
        &self.memory
    }

    /// The readers that others wait for.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// The plan of failures.
    pub fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// The owners of the blocks that may be moved.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// What the machine can give back when memory runs short.
    pub fn givers(&self) -> &Givers {
        &self.givers
    }

    /// Gives memory back; returns how many pages, or how many it claims.
    fn reclaim(&self, shortage: &Shortage) -> u64 {
        self.shortages.borrow_mut().push(*shortage);
        let (pages, evicted) = self.givers.give(self.owners.moves());
        if let Some(first) = evicted {
            self.owners.remove(first);
        }
        pages
    }

    /// Makes the host take so many free blocks, and no more.
    pub fn open_to_lending(&self, blocks: u32) {
        self.lendable.set(blocks);
    }

    /// The blocks lent since the last call, by address and log2 of the pages.
    pub fn take_lent(&self) -> Vec<(u64, u8)> {
        self.lent.take()
    }

    /// Lends a free block to the host, who drops its contents.
    fn report_free(&self, first: Pfn, order: Order) -> bool {
        let left = self.lendable.get();
        self.lendable.set(left.saturating_sub(1));
        if left > 0 {
            self.mark_dirty(first.addr(), order.bytes());
            let filled = self.memory.fill(first.addr(), order.bytes(), LEFT_BEHIND);
            debug_assert!(filled, "the block is in memory");
            self.lent.borrow_mut().push((self.direct_map + first.addr().as_u64(), order.get()));
        }
        left > 0
    }

    /// Moves a block on behalf of its owner, if he lets it go, and leaves junk behind.
    fn migrate(&self, from: Pfn, to: Pfn, order: Order) -> bool {
        let moved = self.owners.migrate(&self.memory, from, to, order);
        if moved {
            self.givers.moved(from, to);
            self.mark_dirty(from.addr(), order.bytes());
            self.mark_dirty(to.addr(), order.bytes());
            let filled = self.memory.fill(from.addr(), order.bytes(), LEFT_BEHIND);
            debug_assert!(filled, "the block is in memory");
        }
        moved
    }

    /// Follows a page of an area to another frame, and leaves junk behind, which a stale entry would show.
    fn page_moved(&self, page: Vpn, from: Pfn, to: Pfn) {
        self.owners.page_moved(page.addr().as_u64(), from, to);
        self.mark_dirty(from.addr(), PAGE_SIZE);
        self.mark_dirty(to.addr(), PAGE_SIZE);
        let filled = self.memory.fill(from.addr(), PAGE_SIZE, LEFT_BEHIND);
        debug_assert!(filled, "the frame is in memory");
    }

    /// How often something happened.
    pub fn event_count(&self, event: Event) -> u64 {
        self.events[event.index()].get()
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        let n = &self.events[event.index()];
        n.set(n.get() + 1);
    }

    fn hear_slab_bug(&self, bug: &SlabBug) {
        self.slab_bugs.borrow_mut().push(*bug);
    }

    /// How many reports and repairs debug caches have told of.
    pub fn slab_findings(&self) -> u64 {
        self.slab_bugs.borrow().len() as u64
    }

    /// What debug caches have told of.
    pub fn slab_bugs(&self) -> Vec<SlabBug> {
        self.slab_bugs.borrow().clone()
    }

    fn hear(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    /// Moves the warnings heard since the last time to the end of a list.
    pub fn take_warnings(&self, into: &mut Vec<Warning>) {
        into.append(&mut self.warnings.borrow_mut());
    }

    /// The CPU that executes.
    #[inline(always)]
    pub fn cpu(&self) -> u16 {
        self.cpu.get()
    }

    /// Goes on executing on another CPU; a number that does not exist wraps around.
    pub fn set_cpu(&self, cpu: u16) {
        self.cpu.set(cpu % (self.tlbs.len() as u16).max(1));
    }

    fn flush_tlb(&self, start: Vpn, pages: u64) {
        let (start, end) = (start.as_u64(), start.as_u64().saturating_add(pages));
        self.flushed.set(self.flushed.get() + 1);
        match self.flushes {
            TlbFlushes::Obeyed | TlbFlushes::KeepTables => self.forget(start, end),
            TlbFlushes::Lost => {}
            TlbFlushes::OnePageShort => self.forget(start, end - 1),
            TlbFlushes::Late => {
                if let Some((start, end)) = self.owed.replace(Some((start, end))) {
                    self.forget(start, end);
                }
            }
            TlbFlushes::WithoutOneNode => {
                let nodes = self.tlbs.len() as u64;
                let is_lost = |page: u64| nodes > 1 && (page / PAGES_OF_NODE) % nodes == nodes - 1;
                // A flush that covers the direct map too is long; only the window has nodes.
                let window = VirtAddr::new(self.vmalloc_start).vpn().as_u64();
                let in_window = start.max(window)..end.min(VirtAddr::new(self.vmalloc_end).vpn().as_u64());
                in_window.filter(|&page| !is_lost(page)).for_each(|page| self.forget(page, page + 1));
                self.forget(start, window.clamp(start, end));
            }
        }
    }

    /// How many flushes were asked for.
    pub fn flushed(&self) -> u64 {
        self.flushed.get()
    }

    /// What single frames' addresses in the direct map allow.
    pub fn aliases(&self) -> &DirectAliases {
        &self.aliases
    }

    fn set_direct_map_default(&self, frame: Pfn) {
        self.aliases.restore(frame, !self.givers.is_behind_area(frame));
    }

    /// The program makes frames read-only by their addresses in the direct map, and looks at them there.
    pub fn protect(&self, frames: impl Iterator<Item = u32>) {
        for frame in frames {
            self.aliases.protect(frame);
            self.aliases.allows(self.cpu(), frame, false);
        }
    }

    /// Makes every processor forget the pages `start..end`.
    fn forget(&self, start: u64, end: u64) {
        self.tlbs.iter().for_each(|tlb| tlb.flush(Vpn::new(start), end - start));
        let first = VirtAddr::new(self.direct_map).vpn().as_u64();
        self.aliases.flush(|frame| (start..end).contains(&(first + u64::from(frame))));
        let (Some(root), Some(allocator)) = (self.root.get(), self.givers.allocator()) else { return };
        let keep_tables = self.flushes == TlbFlushes::KeepTables;
        let kind = |pfn| allocator.frame_kind(pfn);
        self.speculation.borrow_mut().flush(&self.memory, root, start..end, keep_tables, kind);
    }

    /// Lets every processor fill its TLB with what the tables say of so many pages from an address on.
    pub fn speculate(&self, addr: u64, pages: usize) {
        let (Some(root), Some(allocator)) = (self.root.get(), self.givers.allocator()) else { return };
        let first = addr / PAGE_SIZE as u64;
        let kind = |pfn| allocator.frame_kind(pfn);
        self.speculation.borrow_mut().fill(&self.memory, root, first..first + pages as u64, kind);
    }

    /// Lets every processor fill its TLB with everything that it can find in the window.
    fn speculate_everywhere(&self) {
        let pages = (self.vmalloc_end - self.vmalloc_start) as usize / PAGE_SIZE;
        self.speculate(self.vmalloc_start, pages.min(MOST_SPECULATED));
    }

    /// All physical addresses to which some processor may still take an address.
    pub fn remembered(&self, addr: u64) -> Vec<u64> {
        let speculation = self.speculation.borrow();
        speculation.frames(addr / PAGE_SIZE as u64).map(|pfn| Pfn::new(pfn).addr().as_u64()).collect()
    }

    /// Every translation that some processor may still use, and that the tables do not have any more.
    pub fn stale(&self) -> Vec<Remembered> {
        let current = |entry: &Remembered| {
            let walked = self.translate(entry.vpn * PAGE_SIZE as u64);
            walked == Some(Pfn::new(entry.pfn).addr().as_u64())
        };
        self.speculation.borrow().pages().filter(|entry| !current(entry)).collect()
    }

    /// Every table that some processor's walk may still go through.
    pub fn remembered_tables(&self) -> Vec<RememberedTable> {
        self.speculation.borrow().tables().collect()
    }

    /// What a flush found to have been reused before it, since the last question.
    pub fn take_early_reuse(&self) -> Option<String> {
        self.speculation.borrow_mut().take_early()
    }

    fn in_vmalloc_window(&self, addr: u64) -> bool {
        (self.vmalloc_start..self.vmalloc_end).contains(&addr)
    }

    #[inline]
    fn direct(&self, addr: u64) -> Option<PhysAddr> {
        let offset = addr.wrapping_sub(self.direct_map);
        (offset < self.direct_bytes).then(|| PhysAddr::new(offset))
    }

    /// Translates by a walk of the tables, leaving TLB and tables as they are.
    pub fn translate(&self, addr: u64) -> Option<u64> {
        if let Some(phys) = self.direct(addr) {
            return Some(phys.as_u64());
        }
        let virt = VirtAddr::new(addr);
        let found = mmu::walk(&self.memory, self.root.get()?, virt.vpn())?;
        Some(found.pfn.addr().as_u64() + virt.page_offset() as u64)
    }

    /// log2 of the pages that the entry maps which a walk for `addr` ends at; 0 if it leads nowhere.
    pub fn leaf_order(&self, addr: u64) -> u8 {
        let found = self.root.get().and_then(|root| mmu::walk(&self.memory, root, VirtAddr::new(addr).vpn()));
        found.map_or(0, |found| found.leaf_order)
    }

    /// What the tables map of the vmalloc window, by a walk of its own.
    pub fn leaf_runs(&self) -> Vec<LeafRun> {
        let pages = self.vmalloc_start / PAGE_SIZE as u64..self.vmalloc_end / PAGE_SIZE as u64;
        self.root.get().map_or(Vec::new(), |root| mmu::leaf_runs(&self.memory, root, pages))
    }

    /// From now on the machine notes what its hooks are asked.
    pub fn record_nested(&self) {
        self.faults.record();
    }

    /// Moves what was noted since the last time to the end of a list.
    pub fn take_nested(&self, into: &mut Nested) {
        self.faults.take_record(&mut into.sites);
        into.shortages.append(&mut self.shortages.borrow_mut());
    }

    /// What the current CPU's TLB holds for `addr`, right or wrong.
    pub fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        let virt = VirtAddr::new(addr);
        let (pfn, _) = self.tlb()?.lookup(virt.vpn())?;
        Some(pfn.addr().as_u64() + virt.page_offset() as u64)
    }

    fn tlb(&self) -> Option<&Tlb> {
        self.tlbs.get(usize::from(self.cpu.get()))
    }

    /// The frame that the processor reaches for a page of the vmalloc window: by its TLB, else by a walk.
    fn reach(&self, virt: VirtAddr, write: bool) -> Result<PhysAddr, AccessFault> {
        let fault = AccessFault::NotMapped(virt.as_u64());
        let (tlb, vpn) = (self.tlb().ok_or(fault)?, virt.vpn());
        let (pfn, writable) = match tlb.lookup(vpn) {
            Some(known) => known,
            None => {
                let root = self.root.get().ok_or(fault)?;
                let found = mmu::walk(&self.memory, root, vpn).ok_or(fault)?;
                mmu::mark_used(&self.memory, found);
                self.speculate(virt.as_u64(), 1);
                tlb.fill(vpn, found.pfn, found.writable);
                (found.pfn, found.writable)
            }
        };
        if write && !writable {
            return Err(fault);
        }
        pfn.addr().checked_add(virt.page_offset() as u64).ok_or(AccessFault::BusError(virt.as_u64()))
    }

    /// Asks whether the frames may be used by their addresses in the direct map.
    #[inline]
    fn check_aliases(&self, addr: u64, phys: PhysAddr, len: usize, write: bool) -> Result<(), AccessFault> {
        // An access to no bytes asks for no frame.
        if self.aliases.are_usual() || len == 0 {
            return Ok(());
        }
        let frame = |byte: u64| (byte / PAGE_SIZE as u64) as u32;
        let mut frames = frame(phys.as_u64())..=frame(phys.as_u64().saturating_add(len as u64 - 1));
        let allowed = frames.all(|frame| self.aliases.allows(self.cpu(), frame, write));
        if allowed { Ok(()) } else { Err(AccessFault::NotMapped(addr)) }
    }

    /// Calls `access` for each piece of a virtual range that is physically contiguous, in order.
    #[inline]
    fn for_each_piece(
        &self,
        addr: u64,
        len: usize,
        write: bool,
        mut access: impl FnMut(PhysAddr, std::ops::Range<usize>) -> bool,
    ) -> Result<(), AccessFault> {
        let bus_error = AccessFault::BusError(addr);
        if let Some(phys) = self.direct(addr) {
            self.check_aliases(addr, phys, len, write)?;
            return if access(phys, 0..len) { Ok(()) } else { Err(bus_error) };
        }
        let mut done = 0;
        while done < len {
            let virt = VirtAddr::new(addr.checked_add(done as u64).ok_or(bus_error)?);
            if !self.in_vmalloc_window(virt.as_u64()) {
                return Err(AccessFault::BusError(virt.as_u64()));
            }
            let piece = (PAGE_SIZE - virt.page_offset()).min(len - done);
            let phys = self.reach(virt, write)?;
            if !access(phys, done..done + piece) {
                return Err(AccessFault::BusError(virt.as_u64()));
            }
            done += piece;
        }
        Ok(())
    }

    /// Reads as the processor does.
    ///
    /// # Errors
    ///
    /// The fault that the processor would raise; `into` may be partly written.
    #[inline]
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        let len = into.len();
        self.for_each_piece(addr, len, false, |phys, range| self.memory.read(phys, &mut into[range]))
    }

    /// Writes as the processor does.
    ///
    /// # Errors
    ///
    /// The fault that the processor would raise; bytes before it are written.
    #[inline]
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        self.for_each_piece(addr, from.len(), true, |phys, range| {
            self.mark_dirty(phys, range.len());
            self.memory.write(phys, &from[range])
        })
    }

    #[inline]
    fn mark_dirty(&self, phys: PhysAddr, len: usize) {
        let first = phys.as_u64() as usize / PAGE_SIZE;
        let last = (phys.as_u64() as usize + len.saturating_sub(1)) / PAGE_SIZE;
        if let Some(frames) = self.dirty.get(first..=last) {
            frames.iter().for_each(|dirty| dirty.set(true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::Platform;
    use std::rc::Rc;

    fn machine() -> (Geometry, Rc<SimMachine>, SimPlatform) {
        let mut geometry = Geometry::flat(8);
        geometry.cpus = 2;
        let machine = Rc::new(SimMachine::new(&geometry));
        let platform = SimPlatform::new(Rc::clone(&machine));
        (geometry, machine, platform)
    }

    /// Maps the first page of the vmalloc window to `frame`, with tables in frames 0 to 3.
    fn map_first_page(geometry: &Geometry, machine: &SimMachine, platform: &SimPlatform, frame: u64) {
        platform.set_page_table(Pfn::new(0));
        assert!(machine.memory().fill(PhysAddr::new(0), 4 * PAGE_SIZE, 0));
        let vpn = geometry.vmalloc_start.vpn().as_u64();
        for (table, shift, target) in [(0, 27, 1), (1, 18, 2), (2, 9, 3), (3, 0, frame)] {
            let at = PhysAddr::new(table * 4096 + (vpn >> shift & 0x1ff) * 8);
            assert!(machine.memory().write_u64(at, target << 12 | 3));
        }
    }

    #[test]
    fn both_windows_reach_the_same_byte() {
        let (geometry, machine, platform) = machine();
        map_first_page(&geometry, &machine, &platform, 5);
        machine.write(geometry.vmalloc_start.as_u64() + 9, b"x").unwrap();
        let mut byte = [0];
        machine.read(geometry.direct_map.as_u64() + 5 * 4096 + 9, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert_eq!(machine.translate(geometry.vmalloc_start.as_u64()), Some(5 * 4096));
    }

    #[test]
    fn a_stale_entry_is_used_by_the_cpu_that_has_it_until_it_is_flushed() {
        let (geometry, machine, platform) = machine();
        let addr = geometry.vmalloc_start.as_u64();
        map_first_page(&geometry, &machine, &platform, 5);
        machine.write(addr, b"old").unwrap();
        map_first_page(&geometry, &machine, &platform, 6);
        assert_eq!(machine.tlb_lookup(addr), Some(5 * 4096));
        machine.set_cpu(1);
        assert_eq!(machine.tlb_lookup(addr), None);
        let mut bytes = [0; 3];
        machine.read(addr, &mut bytes).unwrap();
        assert_eq!(bytes, [JUNK; 3]);
        machine.set_cpu(0);
        machine.read(addr, &mut bytes).unwrap();
        assert_eq!(&bytes, b"old");
        platform.flush_tlb(geometry.vmalloc_start.vpn(), 1);
        machine.read(addr, &mut bytes).unwrap();
        assert_eq!(bytes, [JUNK; 3]);
    }

    #[test]
    fn accesses_outside_both_windows_are_bus_errors_and_unmapped_pages_fault() {
        let (geometry, machine, platform) = machine();
        map_first_page(&geometry, &machine, &platform, 5);
        let start = geometry.vmalloc_start.as_u64();
        let mut two_pages = vec![0; 4097];
        assert_eq!(machine.read(start, &mut two_pages), Err(AccessFault::NotMapped(start + 4096)));
        assert_eq!(machine.read(16, &mut [0]), Err(AccessFault::BusError(16)));
        let last = geometry.direct_map.as_u64() + 8 * 4096 - 1;
        assert_eq!(machine.write(last, b"ab"), Err(AccessFault::BusError(last)));
    }

    #[test]
    fn a_recycled_machine_is_as_good_as_new() {
        let (geometry, machine, platform) = machine();
        map_first_page(&geometry, &machine, &platform, 5);
        machine.write(geometry.vmalloc_start.as_u64() + 100, b"leftover").unwrap();
        platform.event(Event::Split);
        machine.set_cpu(1);
        drop(platform);
        let machine = Rc::into_inner(machine).unwrap().recycle(&geometry);
        let mut all = vec![0; 8 * PAGE_SIZE];
        machine.read(geometry.direct_map.as_u64(), &mut all).unwrap();
        assert!(all.iter().all(|&byte| byte == JUNK));
        assert_eq!(machine.tlb_lookup(geometry.vmalloc_start.as_u64()), None);
        assert_eq!(machine.cpu(), 0);
        assert!(Event::ALL.iter().all(|&event| machine.event_count(event) == 0));
    }
}
