//! Recounts the window. The numbers are those of the equations in the module's text and in that of `nodes`.

use super::area::{Link, Node, State};
use super::check_ram::is_ram;
use super::flags::VmFlags;
use super::tree::Spot;
use super::{Vmalloc, records};
use crate::base::Base;
use crate::buddy::{OwnerClass, PageAllocator};
use crate::error::{Invariant, Violation};
use crate::page::FrameKind;
use crate::paging::{Pte, is_own};
use crate::platform::Platform;

/// Sums over all areas of the window's tree.
#[derive(Default)]
pub(super) struct Totals {
    mapped: u64,
    owned: u64,
    shown: u64,
    pub(super) live: u64,
    pub(super) pooled: u64,
    pub(super) lazy: LazyTotals,
}

/// Sums over lazy areas; found once in the tree and once on the lists.
#[derive(Default, PartialEq, Eq)]
pub(super) struct LazyTotals {
    pub(super) areas: u64,
    pub(super) span: u64,
    pub(super) frames: u64,
}

impl LazyTotals {
    pub(super) fn add(&mut self, node: &Node, owned: u64) {
        self.areas += 1;
        self.span += node.span();
        self.frames += owned;
    }
}

impl Totals {
    fn add(&mut self, node: &Node, entries: u64, owned: u64) {
        self.mapped += entries;
        self.owned += owned;
        self.live += u64::from(node.state.is_live());
        match node.state {
            State::Lazy { .. } => self.lazy.add(node, owned),
            State::Pooled { .. } => self.pooled += 1,
            _ => {}
        }
    }
}

impl Vmalloc {
    /// Checks the trees, every area against its page-table entries, lists and pools of the vmap nodes, and the sums. No
    /// call may be under way.
    ///
    /// # Errors
    ///
    /// The first broken invariant.
    pub(crate) fn check_invariants<P: Platform>(&self, pages: &PageAllocator<P>) -> Result<(), Violation> {
        let space = self.space.lock();
        let records = records(&pages.base);
        let mut totals = Totals::default();
        space.tree.check(&records.window(), |at, spot| {
            let node = records.load(at);
            totals.add(&node, self.nr_entries(pages, &node), self.owned_frames(pages, &node));
            totals.shown += self.shown_frames(pages, &node);
            self.check_state(&pages.base, at, spot, &node)?;
            if is_ram(&node) { self.check_ram(pages, at, &node) } else { self.check_pages(pages, &node) }
        })?;
        self.check_nodes(pages, &totals)?;
        self.check_tables(pages, &totals)
    }

    /// How many frames of others the area shows.
    fn shown_frames<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> u64 {
        let shows = match node.state {
            State::Vmap | State::Block { .. } | State::Deferred { owned: false, .. } => true,
            State::Vmalloc { .. } | State::Pending { .. } | State::Deferred { .. } => {
                node.flags.contains(VmFlags::MAP_PUT_PAGES)
            }
            State::Reserved | State::Lazy { .. } | State::Pooled { .. } => false,
        };
        let mut shown = 0;
        if shows {
            self.tables.visit(pages, node.whole_range(), |_, entry| shown += u64::from(entry.is_present()));
        }
        shown
    }

    /// How many frames are the area's own: all of its pages, or those of which it had the last reference.
    pub(super) fn owned_frames<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> u64 {
        if !node.state.owns_frames() || !node.flags.contains(VmFlags::MAP_PUT_PAGES) {
            return if node.state.owns_frames() { node.mapped } else { 0 };
        }
        let mut owned = 0;
        self.tables.visit(pages, node.mapped_range(), |page, entry| {
            owned += u64::from(entry.frame().is_some_and(|frame| is_own(&pages.base, page, frame)));
        });
        owned
    }

    /// Checks an area's record and what its vmap node knows of it (I17.6, I16.1, I16.3, I21.6, I15.1, I15.2).
    fn check_state<P>(&self, base: &Base<P>, at: Link, spot: &Spot, node: &Node) -> Result<(), Violation> {
        if node.state == State::Reserved {
            let what = "an area that no call is making (I17.6)";
            return Err(Violation::new(Invariant::I17Statistics, what, node.start, 0, 1));
        }
        if node.pages == 0 || node.mapped > node.pages {
            let what = "mapped pages of an area, of which there is at least one (I16.1)";
            return Err(Violation::new(Invariant::I16GuardPage, what, node.start, node.pages, node.mapped));
        }
        let what = "pages of address space of an area, guard included (I16.3)";
        Violation::check_eq(Invariant::I16GuardPage, what, node.start, node.span(), spot.span)?;
        let of = self.nodes.of(node.start).lock();
        let found = self.nodes.live.find(&of, records(base), node.start);
        if node.state.is_live() && found != Some(at) {
            let what = "a live area is not in a chain of its vmap node (I21.6)";
            let found = found.unwrap_or(Link::NIL);
            return Err(Violation::new(Invariant::I21CacheCounts, what, node.start, at.as_u64(), found.as_u64()));
        }
        if matches!(node.state, State::Lazy { .. }) && !of.lazy.will_flush(node.mapped_range()) {
            let what = "a lazy area is not covered by the deferred flush (I15.1)";
            return Err(Violation::new(Invariant::I15FlushBeforeReuse, what, node.start, 1, 0));
        }
        let unflushed = if matches!(node.state, State::Pooled { .. }) { node.mapped } else { 0 };
        let what = "mapped pages of a pooled area (I15.2)";
        Violation::check_eq(Invariant::I15FlushBeforeReuse, what, node.start, 0, unflushed)
    }

    /// Checks the entries of an area's pages, the guard's included (I15.1, I16.1, I16.4, I1.2).
    fn check_pages<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> Result<(), Violation> {
        self.check_leaves(pages, node)?;
        let mut result = Ok(());
        self.tables.visit(pages, node.whole_range(), |page, entry| {
            if result.is_ok() {
                result = check_page(&pages.base, node, page.as_u64(), entry);
            }
        });
        result
    }

    /// Checks that all entries of an area are of the size that its record says (I16.4).
    fn check_leaves<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> Result<(), Violation> {
        let leaf = node.leaf.pages();
        let what = "pages of an area that one entry does not map as a whole (I16.4)";
        let odd = node.start % leaf + node.pages % leaf + node.mapped % leaf;
        Violation::check_eq(Invariant::I16GuardPage, what, node.start, 0, odd)?;
        let what = "log2 of the pages that an entry of an area maps (I16.4)";
        let expected = u64::from(node.leaf.get());
        for run in node.mapped_range().by_table() {
            let found = self.tables.leaf_order(pages, run.start()).map_or(expected, |found| found.get().into());
            Violation::check_eq(Invariant::I16GuardPage, what, run.start().as_u64(), expected, found)?;
        }
        Ok(())
    }

    /// Checks the page tables, and the sums over areas against theirs and the page allocator's (I16.2, I7.1).
    fn check_tables<P: Platform>(&self, pages: &PageAllocator<P>, totals: &Totals) -> Result<(), Violation> {
        let what = "mappings that frames count, against the pages of areas that show them (I17.8)";
        Violation::check_eq(Invariant::I17Statistics, what, 0, totals.shown, pages.base.frames.all_mappings())?;
        let tables = self.tables.check_invariants(pages)?;
        let what = "entries in the page tables, against the pages of all areas (I16.2)";
        Violation::check_eq(Invariant::I16GuardPage, what, 0, totals.mapped, tables.pages)?;
        let what = "frames of vmalloc, against the pages of owning areas (I7.1)";
        let owned = pages.owned(OwnerClass::Vmalloc);
        Violation::check_eq(Invariant::I7Conservation, what, 0, totals.owned, owned)?;
        let what = "frames of page tables, against the tables reached (I7.1)";
        Violation::check_eq(Invariant::I7Conservation, what, 0, tables.tables, pages.owned(OwnerClass::PageTable))
    }
}

/// Checks the entry of one page of an area.
fn check_page<P>(base: &Base<P>, node: &Node, page: u64, entry: Pte) -> Result<(), Violation> {
    if page - node.start >= node.mapped {
        let what = "a guard page, or a page given back, has an entry (I16.1)";
        return Violation::check_eq(Invariant::I16GuardPage, what, page, 0, entry.to_word());
    }
    if matches!(node.state, State::Lazy { .. }) && entry.is_present() {
        let what = "a page of a lazy area is still mapped (I15.1)";
        return Err(Violation::new(Invariant::I15FlushBeforeReuse, what, page, 0, entry.to_word()));
    }
    if entry.is_empty() || (node.state.is_live() && !entry.is_present()) {
        let what = "a page of a live area is not mapped (I16.1)";
        return Err(Violation::new(Invariant::I16GuardPage, what, page, 1, entry.to_word()));
    }
    let all_own = node.state.owns_frames() && !node.flags.contains(VmFlags::MAP_PUT_PAGES);
    if all_own { check_frame(base, page, entry) } else { Ok(()) }
}

/// Checks the frame behind a page of an owning area (I1.2).
fn check_frame<P>(base: &Base<P>, page: u64, entry: Pte) -> Result<(), Violation> {
    let frame = entry.frame().filter(|frame| frame.as_u32() < base.frames.frames());
    let kind = frame.map_or(FrameKind::Absent, |frame| base.frames.kind(frame));
    let what = "kind of the frame behind a page (I1.2)";
    let (expected, found) = (FrameKind::Vmalloc.to_byte(), kind.to_byte());
    Violation::check_eq(Invariant::I1NoOverlap, what, page, expected.into(), found.into())?;
    let what = "page that the frame behind a page remembers (I1.2)";
    let remembered = frame.map_or(0, |frame| base.frames.private(frame));
    Violation::check_eq(Invariant::I1NoOverlap, what, page, u64::from(page as u32), remembered.into())
}
