//! Recounts the blocks of `vm_map_ram`. The numbers are those of the equations in the text of `ram`.

use super::area::{Link, Node, State};
use super::ram::Usage;
use super::{Vmalloc, records};
use crate::buddy::PageAllocator;
use crate::error::{Invariant, Violation};
use crate::paging::Pte;
use crate::platform::Platform;

/// What is found on the way through the entries of a block.
#[derive(Default)]
struct Walk {
    /// Pages that live runs have taken.
    taken: u64,
    /// Pages so far of the run that the walk is in.
    run: u64,
}

impl Walk {
    fn end_run(&mut self) {
        self.taken += if self.run > 0 { self.run.next_power_of_two() } else { 0 };
        self.run = 0;
    }

    fn see(&mut self, node: &Node, usage: &Usage, page: u64, entry: Pte) -> Result<(), Violation> {
        let offset = page - node.start;
        if offset >= node.pages - usage.free.min(node.pages) {
            let what = "a page of a block that nobody has taken has an entry (R2)";
            Violation::check_eq(Invariant::I16GuardPage, what, page, 0, entry.to_word())?;
        }
        if !entry.is_present() {
            self.end_run();
            let is_noted = (usage.unflushed.0..usage.unflushed.1).contains(&offset);
            let what = "a page of a block was unmapped, and nobody will flush it (R3)";
            return Violation::check_eq(
                Invariant::I15FlushBeforeReuse,
                what,
                page,
                1,
                u64::from(entry.is_empty() || is_noted),
            );
        }
        if entry.is_first() {
            self.end_run();
        }
        let what = "a mapped page of a block is in no mapping (R1)";
        Violation::check_eq(Invariant::I17Statistics, what, page, 1, u64::from(entry.is_first() || self.run > 0))?;
        self.run += 1;
        Ok(())
    }
}

impl Vmalloc {
    /// Checks a block, or a mapping of its own that is lazy (R1..R4, I15.1).
    pub(super) fn check_ram<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        at: Link,
        node: &Node,
    ) -> Result<(), Violation> {
        let usage = records(&pages.base).usage(at);
        let (mut walk, mut result, mut present) = (Walk::default(), Ok(()), 0);
        self.tables.visit(pages, node.whole_range(), |page, entry| {
            present += u64::from(entry.is_present());
            if result.is_ok() && node.state.is_live() {
                result = walk.see(node, &usage, page.as_u64(), entry);
            }
        });
        result?;
        walk.end_run();
        if !node.state.is_live() {
            let what = "mapped pages of a lazy area (I15.1)";
            return Violation::check_eq(Invariant::I15FlushBeforeReuse, what, node.start, 0, present);
        }
        let what = "pages of a block, by what they are used for (R1)";
        let found = usage.free + usage.dirty + walk.taken;
        Violation::check_eq(Invariant::I17Statistics, what, node.start, node.pages, found)?;
        let what = "how often a block is on the queue of its CPU (R4)";
        Violation::check_eq(Invariant::I21CacheCounts, what, node.start, 1, self.times_queued(&pages.base, at, &usage))
    }

    /// How many entries an area has; of what `vm_map_ram` made, those that are not empty.
    pub(super) fn nr_entries<P: Platform>(&self, pages: &PageAllocator<P>, node: &Node) -> u64 {
        if !is_ram(node) {
            return node.mapped;
        }
        let mut found = 0;
        self.tables.visit(pages, node.whole_range(), |_, entry| found += u64::from(!entry.is_empty()));
        found
    }
}

/// Tells whether not every page of the area needs an entry.
pub(super) fn is_ram(node: &Node) -> bool {
    let state = matches!(node.state, State::Block { .. } | State::Lazy { .. });
    state && node.flags.contains(super::VmFlags::MAP_RAM)
}
