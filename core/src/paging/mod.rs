//! x86-64 four-level page tables, kept in frames of the page allocator.
//!
//! ```text
//! virtual address   63..48 sign   47..39     38..30     29..21     20..12     11..0
//!                                 level 0    level 1    level 2    level 3    offset
//!                                 (root) ──► table ───► table ───► table ───► page
//!                                                           └────► 512 pages in a row (a huge entry)
//! ```
//!
//! A page goes through its entry in four steps; the room above decides when:
//!
//! | step | entry | tables | frames |
//! |---|---|---|---|
//! | [`PageTables::map`] | present | missing ones are made | reachable |
//! | [`PageTables::unmap`] | unmapped: not present, still names its frame | stay | a TLB may still reach them |
//! | [`PageTables::take`] | empty | empty ones are cut off | wait in a [`Detached`] |
//! | [`TlbFlush::flush`], then [`Detached::release`] | | freed | freed |
//!
//! Empty tables are cut off *before* the flush and freed after it, like pages: processors cache the upper levels too.
//!
//! Lock order: the lock here is below that of the vmalloc window and above those of slab and page allocator. It is held
//! for one last-level table at a time, so for at most 512 entries, however large the range is.
//!
//! A table's frame descriptor holds what the auditor compares with the table's words:
//!
//! ```text
//! I17.1  inuse(t) == number of entries of t that are not empty;  inuse(t) > 0 unless t is the root
//! I17.2  entry i of t names table u  <=>  private(u) == t and objects(u) == i      (so no table has two parents)
//! I17.3  nr_tables == number of tables reached from the root, the root included
//! I17.4  every table's kind is PageTable
//! I17.8  a huge entry stands in a table of level 2 and names a frame whose number is a multiple of 512
//! ```

mod check;
mod entry;
mod flush;
mod host;
mod huge;
mod range;
mod runs;
#[cfg(test)]
mod tests;

pub(crate) use entry::Pte;
pub(crate) use flush::{Detached, Flushed, TlbFlush, free_list};
pub(crate) use huge::HUGE_ORDER;
pub(crate) use range::VpnRange;

use crate::addr::{PAGE_SIZE, Pfn, PhysAddr, Vpn};
use crate::base::Base;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::page::FrameKind;
use crate::platform::Platform;
use crate::raw::PhysMem;
use crate::sync::SpinLock;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Levels, the root's included.
const LEVELS: usize = 4;
/// The level whose entries name pages.
const LEAF: usize = LEVELS - 1;
/// The level whose entries may map as many pages as a table of the last level could.
const HUGE: usize = LEAF - 1;

/// The page tables of the vmalloc window. The root stays for as long as the allocator does.
pub(crate) struct PageTables {
    root: Pfn,
    /// How many tables exist, the root included. The lock also protects every word of every table.
    nr_tables: SpinLock<u64>,
}

/// A range could not be mapped to its end.
#[derive(Debug)]
pub(crate) struct MapError {
    /// Why.
    pub(crate) error: AllocError,
    /// How many pages from the start on are mapped, and have to be taken back.
    pub(crate) mapped: u64,
}

/// The tables on the way to a page, from the root down to the last that exists.
struct Path {
    tables: [Pfn; LEVELS],
    found: usize,
}

impl Path {
    fn leaf(&self) -> Option<Pfn> {
        (self.found == LEVELS).then_some(self.tables[LEAF])
    }

    /// The entry that maps the page among others, if the path ends at one.
    fn huge(&self, mem: &PhysMem, page: Vpn) -> Option<Pte> {
        let ends_here = self.found == HUGE + 1;
        ends_here.then(|| load(mem, self.tables[HUGE], index(page, HUGE))).filter(|entry| entry.is_huge())
    }

    /// What the page's own entry is, or would be if it were not mapped among others.
    fn entry(&self, mem: &PhysMem, page: Vpn) -> Pte {
        match self.leaf() {
            Some(leaf) => load(mem, leaf, index(page, LEAF)),
            None => self.huge(mem, page).map_or(Pte::EMPTY, |entry| entry.part(index(page, LEAF))),
        }
    }
}

/// Which entry of a table of this level is on the way to the page.
const fn index(page: Vpn, level: usize) -> u64 {
    (page.as_u64() >> (9 * (LEAF - level))) % ENTRIES
}

const fn entry_addr(table: Pfn, index: u64) -> PhysAddr {
    PhysAddr::new(table.addr().as_u64() + 8 * index)
}

/// A table outside memory reads as empty; the auditor reports it.
fn load(mem: &PhysMem, table: Pfn, index: u64) -> Pte {
    Pte::from_word(mem.read_u64(entry_addr(table, index)).unwrap_or(0))
}

fn store(mem: &PhysMem, table: Pfn, index: u64, entry: Pte) {
    let inside = mem.write_u64(entry_addr(table, index), entry.to_word());
    debug_assert!(inside, "table {table} is outside memory");
}

impl PageTables {
    /// Makes an empty root and tells the platform where it is.
    ///
    /// # Errors
    ///
    /// That of the page allocator, if it has no frame.
    pub(crate) fn new<P: Platform>(pages: &PageAllocator<P>) -> Result<Self, AllocError> {
        let root = pages.alloc_block(Order::ZERO, GfpFlags::KERNEL | GfpFlags::ZERO, FrameKind::PageTable)?;
        pages.base.frames.set_inuse(root, 0);
        pages.base.platform.set_page_table(root);
        Ok(Self { root, nr_tables: SpinLock::new(1) })
    }

    /// How many tables exist, the root included.
    pub(crate) fn nr_tables(&self) -> u64 {
        *self.nr_tables.lock()
    }

    /// Maps the pages of `range` to the frames that `next` names one after the other; missing tables are made.
    ///
    /// A page for which `next` has no frame, or that is mapped already, stays as it is.
    ///
    /// # Errors
    ///
    /// A [`MapError`] if a table's frame was refused. No empty table stays behind, and `next` was asked for the
    /// mapped pages only.
    pub(crate) fn map<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        gfp: GfpFlags,
        mut next: impl FnMut() -> Option<Pfn>,
    ) -> Result<(), MapError> {
        self.map_entries(pages, range, gfp, || next().map(Pte::page))
    }

    /// The same with the entries themselves.
    #[inline(always)]
    fn map_entries<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        gfp: GfpFlags,
        mut next: impl FnMut() -> Option<Pte>,
    ) -> Result<(), MapError> {
        self.map_pieces(pages, range, gfp, LEVELS, |path, piece| {
            map_piece(&pages.base, path.tables[LEAF], piece, &mut next);
        })
    }

    /// Has each piece of `range` mapped by `map`, in tables down to this many levels; missing ones are made.
    #[inline(always)]
    fn map_pieces<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        gfp: GfpFlags,
        levels: usize,
        mut map: impl FnMut(&Path, VpnRange),
    ) -> Result<(), MapError> {
        let mut mapped = 0;
        for piece in range.by_table() {
            let mut nr_tables = self.nr_tables.lock();
            let path = self
                .tables_or_make(pages, piece.start(), levels, gfp, &mut nr_tables)
                .map_err(|error| MapError { error, mapped })?;
            map(&path, piece);
            mapped += piece.pages();
        }
        self.tell_mapped(pages, range)
    }

    /// Takes the translations of `range` away; each entry still names its frame until [`Self::take`].
    pub(crate) fn unmap<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange) -> TlbFlush {
        let mem = &pages.base.mem;
        for piece in range.by_table() {
            let _lock = self.nr_tables.lock();
            let path = self.path(mem, piece.start());
            match path.leaf() {
                Some(leaf) => unmap_piece(mem, leaf, piece),
                None => huge::unmap_piece(mem, &path, piece),
            }
        }
        TlbFlush::of(range)
    }

    /// Empties the entries of `range`, mapped or unmapped, and cuts off tables that become empty. Tables, and with
    /// `owned` also the frames behind the pages, wait in `gone` for the flush.
    pub(crate) fn take<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        range: VpnRange,
        owned: bool,
        gone: &mut Detached,
    ) {
        for piece in range.by_table() {
            let mut nr_tables = self.nr_tables.lock();
            let path = self.path(&pages.base.mem, piece.start());
            match path.leaf() {
                Some(leaf) => take_piece(&pages.base, leaf, piece, owned, gone),
                None => huge::take_piece(&pages.base, &path, piece, owned, gone),
            }
            *nr_tables -= self.cut_empty(&pages.base, &path, piece.start(), gone);
        }
        host::tell_unmapped(&pages.base, range);
        gone.add_range(range);
    }

    /// The frame behind a page that is mapped now.
    pub(crate) fn translate<P: Platform>(&self, pages: &PageAllocator<P>, page: Vpn) -> Option<Pfn> {
        let _lock = self.nr_tables.lock();
        self.translate_held(&pages.base.mem, page)
    }

    /// Copies bytes of a page, from the one at `offset` on; `false` if it is not mapped. The lock keeps the frame from
    /// being taken away meanwhile.
    pub(crate) fn read_page<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        page: Vpn,
        offset: usize,
        into: &mut [u8],
    ) -> bool {
        let mem = &pages.base.mem;
        let _lock = self.nr_tables.lock();
        let start = self.translate_held(mem, page).and_then(|frame| frame.addr().checked_add(offset as u64));
        start.is_some_and(|start| mem.read(start, into))
    }

    fn translate_held(&self, mem: &PhysMem, page: Vpn) -> Option<Pfn> {
        let entry = self.path(mem, page).entry(mem, page);
        if entry.is_present() { entry.frame() } else { None }
    }

    /// Puts the frame `to` behind a page that `from` is behind now, with the same contents, if `from` may move.
    ///
    /// Unmapped, flushed, copied, mapped: no processor can write the page while it is copied, so no write is lost. All of it
    /// is under the lock, for which a processor waits that faults meanwhile. Where processors do not read the tables, nobody
    /// could have such an access wait: pages stay.
    pub(crate) fn replace<P: Platform>(&self, pages: &PageAllocator<P>, page: Vpn, from: Pfn, to: Pfn) -> bool {
        if !P::WALKS_TABLES {
            return false;
        }
        let base = &pages.base;
        let _lock = self.nr_tables.lock();
        let Some(leaf) = self.path(&base.mem, page).leaf() else { return false };
        let at = index(page, LEAF);
        let entry = load(&base.mem, leaf, at);
        if !entry.is_present() || entry.frame() != Some(from) || !base.frames.may_move(from) {
            return false;
        }
        store(&base.mem, leaf, at, entry.unmapped());
        let _flushed = TlbFlush::of(VpnRange::new(page, 1)).flush(&base.platform);
        let copied = base.mem.copy(from.addr(), to.addr(), PAGE_SIZE);
        debug_assert!(copied, "a frame is outside memory");
        base.frames.set_private(to, page.as_u64() as u32);
        base.frames.set_movable(to, true);
        base.frames.set_movable(from, false);
        store(&base.mem, leaf, at, Pte::page(to));
        base.platform.page_moved(page, from, to);
        true
    }

    /// Says of the frames behind the mapped pages of `range` whether they may move.
    pub(crate) fn set_movable<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange, movable: bool) {
        let base = &pages.base;
        for piece in range.by_table() {
            let _lock = self.nr_tables.lock();
            // Huge entries have no table of single ones below them: they stay where they are.
            let Some(leaf) = self.path(&base.mem, piece.start()).leaf() else { continue };
            for frame in piece.iter().filter_map(|page| load(&base.mem, leaf, index(page, LEAF)).frame()) {
                base.frames.set_movable(frame, movable);
            }
        }
    }

    /// Lets `body` translate pages while their frames stay where they are.
    pub(crate) fn hold<P: Platform, R>(
        &self,
        pages: &PageAllocator<P>,
        body: impl FnOnce(&dyn Fn(Vpn) -> Option<Pfn>) -> R,
    ) -> R {
        let _lock = self.nr_tables.lock();
        body(&|page| self.translate_held(&pages.base.mem, page))
    }

    /// Shows the entry of each page of `range`; pages without a table have an empty one.
    pub(crate) fn visit<P: Platform>(&self, pages: &PageAllocator<P>, range: VpnRange, mut see: impl FnMut(Vpn, Pte)) {
        let mem = &pages.base.mem;
        for piece in range.by_table() {
            let _lock = self.nr_tables.lock();
            let path = self.path(mem, piece.start());
            for page in piece.iter() {
                see(page, path.entry(mem, page));
            }
        }
    }

    /// Walks down to the page as far as there are tables.
    fn path(&self, mem: &PhysMem, page: Vpn) -> Path {
        let mut path = Path { tables: [self.root; LEVELS], found: 1 };
        while path.found < LEVELS {
            let entry = load(mem, path.tables[path.found - 1], index(page, path.found - 1));
            let Some(table) = entry.frame().filter(|_| !entry.is_huge()) else { break };
            path.tables[path.found] = table;
            path.found += 1;
        }
        path
    }

    /// The tables on the way to a page, down to the one that is number `levels` from the root.
    #[inline]
    fn tables_or_make<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        page: Vpn,
        levels: usize,
        gfp: GfpFlags,
        nr_tables: &mut u64,
    ) -> Result<Path, AllocError> {
        let path = self.path(&pages.base.mem, page);
        if path.found >= levels { Ok(path) } else { make_tables(pages, path, page, levels, gfp, nr_tables) }
    }

    /// Cuts the tables of `path` off that are empty, from the last level up; tells how many.
    fn cut_empty<P>(&self, base: &Base<P>, path: &Path, page: Vpn, gone: &mut Detached) -> u64 {
        let mut cut = 0;
        for level in (1..path.found).rev() {
            let (table, parent) = (path.tables[level], path.tables[level - 1]);
            if base.frames.inuse(table) > 0 {
                break;
            }
            store(&base.mem, parent, index(page, level - 1), Pte::EMPTY);
            add_inuse(base, parent, -1);
            gone.add_table(&base.frames, table);
            cut += 1;
        }
        cut
    }
}

/// Makes all tables that the path lacks, and only then links them: a refusal leaves nothing to undo but frames that no
/// processor has seen.
#[cold]
#[inline(never)]
fn make_tables<P: Platform>(
    pages: &PageAllocator<P>,
    mut path: Path,
    page: Vpn,
    levels: usize,
    gfp: GfpFlags,
    nr_tables: &mut u64,
) -> Result<Path, AllocError> {
    let first_new = path.found;
    while path.found < levels {
        match alloc_table(pages, gfp) {
            Ok(table) => path.tables[path.found] = table,
            Err(error) => {
                for table in &path.tables[first_new..path.found] {
                    pages.free_block(*table, Order::ZERO);
                }
                return Err(error);
            }
        }
        path.found += 1;
    }
    for level in first_new..levels {
        link_table(&pages.base, path.tables[level], path.tables[level - 1], index(page, level - 1));
        *nr_tables += 1;
    }
    Ok(path)
}

fn alloc_table<P: Platform>(pages: &PageAllocator<P>, gfp: GfpFlags) -> Result<Pfn, AllocError> {
    let gfp = gfp | GfpFlags::ZERO;
    if pages.base.fault(FaultSite::new(FaultPoint::PageTable, gfp)) {
        return Err(AllocError::Injected(FaultPoint::PageTable));
    }
    pages.alloc_block(Order::ZERO, gfp, FrameKind::PageTable)
}

fn link_table<P>(base: &Base<P>, table: Pfn, parent: Pfn, index: u64) {
    base.frames.set_inuse(table, 0);
    base.frames.set_private(table, parent.as_u32());
    base.frames.set_objects(table, index as u16);
    store(&base.mem, parent, index, Pte::table(table));
    add_inuse(base, parent, 1);
}

fn add_inuse<P>(base: &Base<P>, table: Pfn, entries: i16) {
    base.frames.set_inuse(table, base.frames.inuse(table).wrapping_add_signed(entries));
}

fn map_piece<P>(base: &Base<P>, leaf: Pfn, piece: VpnRange, next: &mut impl FnMut() -> Option<Pte>) {
    let mut filled = 0;
    for page in piece.iter() {
        let at = index(page, LEAF);
        if !load(&base.mem, leaf, at).is_empty() {
            debug_assert!(false, "{page} is mapped already");
            continue;
        }
        let Some(entry) = next() else { break };
        store(&base.mem, leaf, at, entry);
        filled += 1;
    }
    add_inuse(base, leaf, filled);
}

fn unmap_piece(mem: &PhysMem, leaf: Pfn, piece: VpnRange) {
    for page in piece.iter() {
        let at = index(page, LEAF);
        store(mem, leaf, at, load(mem, leaf, at).unmapped());
    }
}

/// Tells whether the frame behind a page of an owning area is the area's own: it says so itself. Of those that the caller
/// had before, an area takes only what nobody else has a reference to.
pub(crate) fn is_own<P>(base: &Base<P>, page: Vpn, frame: Pfn) -> bool {
    base.frames.kind(frame) == FrameKind::Vmalloc && base.frames.private(frame) == page.as_u64() as u32
}

fn take_piece<P>(base: &Base<P>, leaf: Pfn, piece: VpnRange, owned: bool, gone: &mut Detached) {
    let mut emptied = 0;
    for page in piece.iter() {
        let at = index(page, LEAF);
        let Some(frame) = load(&base.mem, leaf, at).frame() else { continue };
        store(&base.mem, leaf, at, Pte::EMPTY);
        emptied -= 1;
        if owned && is_own(base, page, frame) {
            gone.add_page(&base.frames, frame);
        }
    }
    add_inuse(base, leaf, emptied);
}
