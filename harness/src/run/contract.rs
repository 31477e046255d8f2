//! How much of the contract the runs reached: what is named, how often, and what never.

use super::coverage::{Coverage, rows};
use kmem::{Geometry, GfpFlags, Hardening, MinFree, ZoneKind};
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

/// Flags that a request has, and flags that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trait {
    pub(super) name: &'static str,
    pub(super) all: GfpFlags,
    pub(super) none: GfpFlags,
}

impl Trait {
    const fn new(name: &'static str, all: GfpFlags, none: GfpFlags) -> Self {
        Self { name, all, none }
    }

    pub(super) fn holds(self, gfp: GfpFlags) -> bool {
        gfp.contains(self.all) && !gfp.intersects(self.none)
    }
}

/// The combinations that the contract names, and those whose parts contradict each other.
pub(super) const COMBINATIONS: [Trait; 16] = {
    use GfpFlags as G;
    const NONE: GfpFlags = GfpFlags::empty();
    [
        Trait::new("KERNEL", G::KERNEL, NONE),
        Trait::new("NOFS", G::NOFS, G::FS),
        Trait::new("NOIO", G::NOIO, G::IO),
        Trait::new("ATOMIC", G::ATOMIC, G::DIRECT_RECLAIM),
        Trait::new("NOWAIT", G::KSWAPD_RECLAIM, G::DIRECT_RECLAIM.union(G::HIGH)),
        Trait::new("no reclaim at all", NONE, G::RECLAIM),
        Trait::new("USER", G::USER, NONE),
        Trait::new("HIGHUSER_MOVABLE", G::HIGHUSER_MOVABLE, NONE),
        Trait::new("KERNEL|HIGH", G::KERNEL.union(G::HIGH), NONE),
        Trait::new("KERNEL|NORETRY", G::KERNEL.union(G::NORETRY), NONE),
        Trait::new("KERNEL|RETRY_MAYFAIL", G::KERNEL.union(G::RETRY_MAYFAIL), NONE),
        Trait::new("KERNEL|NOFAIL", G::KERNEL.union(G::NOFAIL), NONE),
        Trait::new("NOFAIL that may not wait", G::NOFAIL, G::DIRECT_RECLAIM),
        Trait::new("MEMALLOC|NOMEMALLOC", G::MEMALLOC.union(G::NOMEMALLOC), NONE),
        Trait::new("DMA|DMA32", G::DMA.union(G::DMA32), NONE),
        Trait::new("MOVABLE|RECLAIMABLE", G::MOVABLE.union(G::RECLAIMABLE), NONE),
    ]
};

/// What can be special about a machine.
type Special = (&'static str, fn(&Geometry) -> bool);

fn has_zone(geometry: &Geometry, kind: ZoneKind) -> bool {
    geometry.zones().iter().any(|zone| zone.kind == kind)
}

fn nodes(geometry: &Geometry) -> usize {
    let mut nodes: Vec<_> = geometry.zones().iter().map(|zone| zone.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.len()
}

/// The kinds of machine that change what happens.
pub(super) const MACHINES: [Special; 20] = [
    ("one CPU", |g| g.cpus == 1),
    ("16 CPUs or more", |g| g.cpus >= 16),
    ("one node", |g| nodes(g) == 1),
    ("two nodes", |g| nodes(g) == 2),
    ("three nodes or more", |g| nodes(g) >= 3),
    ("DMA zone", |g| has_zone(g, ZoneKind::Dma)),
    ("DMA32 zone", |g| has_zone(g, ZoneKind::Dma32)),
    ("Movable zone", |g| has_zone(g, ZoneKind::Movable)),
    ("pageblock of the largest order", |g| g.pageblock_order == g.max_order),
    ("pageblock of one page", |g| g.pageblock_order.get() == 0),
    ("watermarks by the formula", |g| g.min_free == MinFree::Auto),
    ("tiny vmalloc window", |g| g.vmalloc_pages.get() <= 160),
    ("hardening off", |g| g.hardening == Hardening::Off),
    ("hardening checked", |g| g.hardening == Hardening::Checked),
    ("hardening paranoid", |g| g.hardening == Hardening::Paranoid),
    ("debugged kmalloc", |g| !g.slub_debug.is_empty()),
    ("huge mappings possible", |g| g.vmap_allow_huge && g.max_order.get() >= 9 && g.managed().get() >= 1024),
    ("huge mappings switched off", |g| !g.vmap_allow_huge),
    ("trimmed large blocks", |g| g.trim_large),
    ("sheaves in pockets", |g| g.pocket > 0),
];

/// Things that have a counter and cannot be reached by a trace: family, name, reason.
pub(crate) const OUT_OF_REACH: &[(&str, &str, &str)] = &[
    ("refusals", "WouldBlock", ONE_AT_A_TIME),
    ("refusals", "HostRefused", NO_HOST),
    ("rejected frees", "WouldBlock", ONE_AT_A_TIME),
    ("reclaim and refusal", "NolockContended", ONE_AT_A_TIME),
    ("reclaim and refusal", "FreeDeferred", ONE_AT_A_TIME),
    ("slab steps", "NolockSheafInUse", ONE_AT_A_TIME),
    ("slab steps", "NolockSlabInUse", ONE_AT_A_TIME),
    ("slab steps", "NolockNextClass", ONE_AT_A_TIME),
    ("slab steps", "NolockDeferred", ONE_AT_A_TIME),
    ("slab steps", "NolockDrained", ONE_AT_A_TIME),
    ("slab steps", "NolockFreeRefused", ONE_AT_A_TIME),
    ("frees that wait for readers", "RcuChainLost", NO_WRITE_TO_FREED),
    ("reclaim and refusal", "VmallocPagePinned", SEEN_BEFORE),
    ("kvmalloc and vmalloc", "VfreeNoted", ONE_AT_A_TIME),
    ("warnings", "WarnVfreeOfNothing", ONE_AT_A_TIME),
];
/// Why no page of an area refuses to move.
const SEEN_BEFORE: &str =
    "that a page may not move is seen before it is asked; only another CPU's pin in between is refused";
/// Why no chain of waiting objects is cut off.
const NO_WRITE_TO_FREED: &str =
    "a trace writes to no block that it gave up, but for bytes that a debug cache guards; a test of the core does";
/// Why no host refuses.
const NO_HOST: &str =
    "the simulated processors read the page tables themselves; tests of the hosted platform reach a host's limit";
/// Why nothing is found in use.
const ONE_AT_A_TIME: &str = "a trace makes one call at a time; the core's own tests hold the lock";

fn out_of_reach(family: &str, name: &str) -> Option<&'static str> {
    OUT_OF_REACH.iter().find(|(f, n, _)| *f == family && *n == name).map(|(_, _, why)| *why)
}

/// What the runs of a command came to.
#[derive(Clone, Debug, Default)]
pub struct ContractCoverage {
    coverage: Coverage,
}

/// One family of counters.
#[derive(Clone, Debug)]
pub struct Family {
    /// What its counters share.
    pub name: &'static str,
    /// Name and number of each.
    pub counts: Vec<(&'static str, u64)>,
}

impl Family {
    /// How many of its things were reached.
    pub fn reached(&self) -> usize {
        self.counts.iter().filter(|(_, n)| *n > 0).count()
    }

    /// How often all of them were, together.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, n)| n).sum()
    }
}

impl ContractCoverage {
    /// Adds the counters of a run.
    pub fn add(&mut self, coverage: &Coverage) {
        self.coverage.merge(coverage);
    }

    /// Tells whether nothing was counted at all.
    pub fn is_empty(&self) -> bool {
        self.coverage.counts().iter().all(|n| *n == 0)
    }

    /// Things that were never reached though a trace can reach them, by family.
    pub fn never_reached(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let names = |family: &Family| {
            let never = family.counts.iter().filter(|(_, n)| *n == 0).map(|(name, _)| *name);
            never.filter(|name| out_of_reach(family.name, name).is_none()).collect::<Vec<_>>()
        };
        let families = self.families().into_iter().map(|family| (family.name, names(&family)));
        families.filter(|(_, names)| !names.is_empty()).collect()
    }

    fn counted(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let rows = rows().iter().zip(self.coverage.counts());
        rows.map(|(row, n)| (row.family.as_str(), row.name.as_str(), *n))
    }

    /// The counters by family.
    pub fn families(&self) -> Vec<Family> {
        let mut families: Vec<Family> = Vec::new();
        for (name, thing, n) in self.counted() {
            match families.iter_mut().find(|family| family.name == name) {
                Some(family) => family.counts.push((thing, n)),
                None => families.push(Family { name, counts: vec![(thing, n)] }),
            }
        }
        families
    }
}

impl Serialize for ContractCoverage {
    /// An object: how many things have a counter, how many were reached, the counters by family, and which were never
    /// reached, those that no trace can reach with the reason.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Counts<'a>(&'a [(&'static str, u64)]);
        impl Serialize for Counts<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().copied())
            }
        }
        struct Families(Vec<Family>);
        impl Serialize for Families {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(Some(self.0.len()))?;
                for family in &self.0 {
                    map.serialize_entry(family.name, &Counts(&family.counts))?;
                }
                map.end()
            }
        }
        let reasons: Vec<String> = OUT_OF_REACH.iter().map(|(f, n, why)| format!("{f}: {n} ({why})")).collect();
        let mut object = serializer.serialize_struct("ContractCoverage", 5)?;
        object.serialize_field("things", &rows().len())?;
        object.serialize_field("reached", &self.counted().filter(|(_, _, n)| *n > 0).count())?;
        object.serialize_field("counts", &Families(self.families()))?;
        let never =
            self.never_reached().into_iter().flat_map(|(family, names)| names.into_iter().map(move |n| (family, n)));
        let never: Vec<String> = never.map(|(family, name)| format!("{family}: {name}")).collect();
        object.serialize_field("never_reached", &never)?;
        object.serialize_field("out_of_reach", &reasons)?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tier;

    #[test]
    fn what_was_never_reached_is_named_and_what_was_is_not() {
        let mut coverage = Coverage::default();
        coverage.block(Tier::Vmalloc);
        let mut contract = ContractCoverage::default();
        assert!(contract.is_empty());
        contract.add(&coverage);
        let never = contract.never_reached();
        let tiers = never.iter().find(|(family, _)| *family == "tiers").map(|(_, names)| names).unwrap();
        assert!(tiers.contains(&"Vmap") && !tiers.contains(&"Vmalloc"), "{never:?}");
    }

    #[test]
    fn machines_read_the_counters_by_family_and_name() {
        let mut contract = ContractCoverage::default();
        let mut coverage = Coverage::default();
        coverage.block(Tier::Cache);
        contract.add(&coverage);
        let json = serde_json::to_value(&contract).unwrap();
        assert_eq!(json["counts"]["tiers"]["Cache"], 1);
        assert_eq!(json["reached"], 1);
        assert_eq!(json["never_reached"].as_array().unwrap().len() + 1, rows().len() - OUT_OF_REACH.len());
    }

    #[test]
    fn every_exception_names_a_counter() {
        for (family, name, _) in OUT_OF_REACH {
            assert!(rows().iter().any(|row| row.family == *family && row.name == *name), "{family}: {name}");
        }
    }

    #[test]
    fn a_combination_is_told_from_its_parts() {
        let holding = |gfp: GfpFlags| COMBINATIONS.iter().filter(|t| t.holds(gfp)).map(|t| t.name).collect::<Vec<_>>();
        assert_eq!(holding(GfpFlags::KERNEL), ["KERNEL"]);
        assert_eq!(holding(GfpFlags::NOIO), ["NOIO"]);
        assert_eq!(holding(GfpFlags::ATOMIC | GfpFlags::NOFAIL), ["ATOMIC", "NOFAIL that may not wait"]);
        assert_eq!(holding(GfpFlags::empty()), ["no reclaim at all"]);
    }
}
