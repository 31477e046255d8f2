//! What happened in a run, as counters that runs of all engines add up to.
//!
//! One counter for each thing that the contract speaks of: a flag in a tier, a reason of refusal, an event inside, an
//! operation of the language. [`rows`] names them; [`super::ContractCoverage`] tells what they come to.

use super::contract::Trait;
use crate::model::{Tier, request};
use crate::oracle::Step;
use crate::subject::{Call, Reply};
use crate::trace::OpKind;
use kmem::{AllocError, CacheError, Event, FreeError, Geometry, GfpFlags};
use std::sync::LazyLock;

/// What a counter counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// A few words that related counters share.
    pub family: String,
    /// The thing itself.
    pub name: String,
}

/// All counters, in the order of [`Coverage`]'s numbers.
pub fn rows() -> &'static [Row] {
    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| SECTIONS.iter().flat_map(|section| section.rows()).collect());
    &ROWS
}

/// A run of counters that one kind of thing is counted by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Events,
    Tiers,
    Refusals,
    Rejections,
    CacheRefusals,
    Flags,
    Operations,
    Machines,
}

const SECTIONS: [Section; 8] = [
    Section::Events,
    Section::Tiers,
    Section::Refusals,
    Section::Rejections,
    Section::CacheRefusals,
    Section::Flags,
    Section::Operations,
    Section::Machines,
];

impl Section {
    fn rows(self) -> Vec<Row> {
        let named = |family: &str, names: &[&str]| -> Vec<Row> {
            names.iter().map(|name| Row { family: family.to_owned(), name: (*name).to_owned() }).collect()
        };
        match self {
            Self::Events => {
                let row = |event: &Event| Row { family: event.family().to_owned(), name: format!("{event:?}") };
                Event::ALL.iter().map(row).collect()
            }
            Self::Tiers => named("tiers", &Tier::ALL.map(Tier::name)),
            Self::Refusals => named("refusals", AllocError::KINDS),
            Self::Rejections => named("rejected frees", FreeError::KINDS),
            Self::CacheRefusals => named("cache refusals", CacheError::KINDS),
            Self::Flags => {
                let of =
                    |tier: &&str| named(&format!("flags of {tier}"), &traits().map(|t| t.name).collect::<Vec<_>>());
                CALLS.iter().flat_map(of).collect()
            }
            Self::Operations => named("operations", &OpKind::ALL.map(OpKind::name)),
            Self::Machines => named("machines", &super::contract::MACHINES.map(|(name, _)| name)),
        }
    }

    /// The number of the section's first counter.
    fn start(self) -> usize {
        static STARTS: LazyLock<[usize; SECTIONS.len()]> = LazyLock::new(|| {
            let mut next = 0;
            SECTIONS.map(|section| {
                let start = next;
                next += section.rows().len();
                start
            })
        });
        STARTS[self as usize]
    }
}

/// The tiers that take allocation flags.
const CALLS: [&str; 4] = ["pages", "slab", "vmalloc", "kvmalloc"];

/// Every flag by itself, and the combinations that the contract names.
fn traits() -> impl Iterator<Item = Trait> {
    let single = |(name, flag): (&'static str, GfpFlags)| Trait { name, all: flag, none: GfpFlags::empty() };
    GfpFlags::all().iter_names().map(single).chain(super::contract::COMBINATIONS)
}

/// Which of [`CALLS`] a call asks; `None` if it asks for no memory.
fn asked_tier(call: &Call) -> Option<usize> {
    request_flags(call)?;
    Some(match call {
        Call::AllocPages { .. }
        | Call::AllocPagesNode { .. }
        | Call::AllocPagesExact { .. }
        | Call::AllocPagesBulk { .. }
        | Call::AllocPagesNolock { .. }
        | Call::AllocContigRange { .. }
        | Call::AllocContigPages { .. } => 0,
        Call::Vmalloc { .. } | Call::VmallocRange(_) | Call::Vrealloc { .. } | Call::Vmap { .. } | Call::Window(_) => 2,
        Call::Kvmalloc { .. } | Call::KvmallocNode { .. } | Call::KvmallocArray { .. } | Call::Kvrealloc { .. } => 3,
        _ => 1,
    })
}

/// The flags that a call passes; those of a product that overflows count too.
fn request_flags(call: &Call) -> Option<GfpFlags> {
    match call {
        Call::KmallocArray { gfp, .. } | Call::KvmallocArray { gfp, .. } | Call::AllocPages { gfp, .. } => Some(*gfp),
        Call::AllocPagesNode { gfp, .. } => Some(*gfp),
        call => request(call).map(|(_, gfp)| gfp),
    }
}

/// Counters of one run, or of many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: vec![0; rows().len()] }
    }
}

impl Coverage {
    /// Starts a run on a machine of this shape.
    pub(super) fn on(geometry: &Geometry) -> Self {
        let mut coverage = Self::default();
        for (i, (_, applies)) in super::contract::MACHINES.iter().enumerate() {
            if applies(geometry) {
                coverage.add(Section::Machines, i, 1);
            }
        }
        coverage
    }

    fn add(&mut self, section: Section, index: usize, n: u64) {
        if let Some(count) = self.counts.get_mut(section.start() + index) {
            *count += n;
        }
    }

    /// Counts a step.
    pub(super) fn step(&mut self, step: &Step) {
        match &step.reply {
            Reply::Refused(error) => self.add(Section::Refusals, error.kind(), 1),
            Reply::Rejected(error) => self.add(Section::Rejections, error.kind(), 1),
            Reply::CacheRefused(error) => self.add(Section::CacheRefusals, error.kind(), 1),
            _ => {}
        }
        if let (Some(tier), Some(gfp)) = (asked_tier(&step.call), request_flags(&step.call)) {
            self.flags(tier, gfp);
        }
    }

    fn flags(&mut self, tier: usize, gfp: GfpFlags) {
        static TRAITS: LazyLock<Vec<Trait>> = LazyLock::new(|| traits().collect());
        let first = tier * TRAITS.len();
        for (i, wanted) in TRAITS.iter().enumerate() {
            if wanted.holds(gfp) {
                self.add(Section::Flags, first + i, 1);
            }
        }
    }

    /// Counts a block.
    pub(super) fn block(&mut self, tier: Tier) {
        self.add(Section::Tiers, tier as usize, 1);
    }

    /// Counts an operation that did something.
    pub(super) fn operation(&mut self, kind: OpKind) {
        self.add(Section::Operations, kind as usize, 1);
    }

    /// Counts what happened inside, by [`Event::index`].
    pub(super) fn set_events(&mut self, counts: &[u64]) {
        self.counts.iter_mut().zip(counts).for_each(|(count, n)| *count = *n);
    }

    /// What a guided engine is guided by: events and answers. Which flags were passed follows from the trace alone.
    pub fn answers(&self) -> &[u64] {
        self.counts.get(..Section::Flags.start()).unwrap_or_default()
    }

    /// In how many ways blocks were served.
    pub fn tiers(&self) -> u64 {
        self.reached(Section::Tiers)
    }

    /// For how many reasons requests were refused.
    pub fn refusals(&self) -> u64 {
        self.reached(Section::Refusals)
    }

    fn reached(&self, section: Section) -> u64 {
        let counts = self.counts.iter().skip(section.start()).take(section.rows().len());
        counts.filter(|count| **count > 0).count() as u64
    }

    /// All counters, in the order of [`rows`].
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Adds the counters of another run.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, n)| *count = count.saturating_add(*n));
    }

    /// The counters as text, for a process that reports to another one: `number:count` with commas between them.
    pub fn to_line(&self) -> String {
        let reached = self.counts.iter().enumerate().filter(|&(_, n)| *n > 0);
        reached.map(|(i, n)| format!("{i}:{n}")).collect::<Vec<_>>().join(",")
    }

    /// Reads what [`Self::to_line`] wrote; what is not understood is left out.
    pub fn from_line(line: &str) -> Self {
        let mut coverage = Self::default();
        for (i, n) in line.split(',').filter_map(|item| item.split_once(':')) {
            let count = i.parse::<usize>().ok().and_then(|i| coverage.counts.get_mut(i));
            if let (Some(count), Ok(n)) = (count, n.parse()) {
                *count = n;
            }
        }
        coverage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::{Hardening, Order};
    use std::collections::BTreeSet;

    fn step(call: Call, reply: Reply) -> Step {
        Step { op: 0, call, reply, fault_struck: false }
    }

    fn reached(coverage: &Coverage) -> BTreeSet<String> {
        let counted = rows().iter().zip(coverage.counts()).filter(|(_, n)| **n > 0);
        counted.map(|(row, _)| format!("{}: {}", row.family, row.name)).collect()
    }

    #[test]
    fn every_counter_has_a_name_of_its_own() {
        let names: BTreeSet<(&str, &str)> = rows().iter().map(|row| (&*row.family, &*row.name)).collect();
        assert_eq!(names.len(), rows().len());
        assert_eq!(Coverage::default().counts().len(), rows().len());
    }

    #[test]
    fn a_step_counts_its_flags_in_its_tier_and_its_refusal() {
        let mut coverage = Coverage::default();
        let gfp = GfpFlags::ATOMIC | GfpFlags::ZERO;
        let refused = Reply::Refused(AllocError::NoPages { order: Order::ZERO });
        coverage.step(&step(Call::Vmalloc { size: 1, gfp }, refused));
        let names = reached(&coverage);
        for name in ["refusals: NoPages", "flags of vmalloc: ATOMIC", "flags of vmalloc: ZERO"] {
            assert!(names.contains(name), "{name} in {names:?}");
        }
        assert!(!names.contains("flags of vmalloc: KERNEL") && !names.contains("flags of pages: ATOMIC"), "{names:?}");
    }

    #[test]
    fn a_machine_is_counted_by_what_is_special_about_it() {
        let mut geometry = Geometry::flat(64);
        geometry.hardening = Hardening::Off;
        geometry.cpus = 16;
        let names = reached(&Coverage::on(&geometry));
        assert!(names.contains("machines: 16 CPUs or more") && names.contains("machines: hardening off"), "{names:?}");
        assert!(!names.contains("machines: one CPU"), "{names:?}");
    }

    #[test]
    fn another_process_gives_back_what_it_was_told() {
        let mut coverage = Coverage::default();
        coverage.operation(OpKind::Kfree);
        coverage.block(Tier::Vmap);
        coverage.merge(&coverage.clone());
        assert_eq!(Coverage::from_line(&coverage.to_line()), coverage);
        assert_eq!(Coverage::from_line("x:1,999999:4,3"), Coverage::default());
    }
}
