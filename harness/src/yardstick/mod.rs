//! The yardstick: our harness, our harness without one of its parts, and the designs of others, on the same wrong allocators.
//!
//! A [`Contestant`] is somebody who makes traces and somebody who judges them. Two comparisons are never mixed: the same judges
//! with other makers, and the same maker with other judges. What a whole design is worth is a third one.

pub mod designs;
mod engine;
pub mod kills;
pub mod reach;
pub mod survival;

use crate::engines::source::{Fresh, Guide, Mutation, Parts};
use crate::generate::Recipe;
use crate::oracle::{Muted, OracleId};
use crate::run::Judges;
use designs::{DESIGNS, Design};
pub use engine::Contest;

/// Who makes traces.
#[derive(Clone, Copy)]
pub enum Maker {
    /// Our engine, or what is left of it.
    Parts(Parts),
    /// Lists of our operations as a derived `Arbitrary` makes them.
    Derived,
    /// Somebody else's.
    Design(&'static Design),
}

/// A maker or a judge, by its name.
#[derive(Clone, Copy)]
pub struct Named<T> {
    /// The name.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// The thing.
    pub what: T,
}

/// Ours.
const OURS: &str = "ours";
/// All of our oracles.
const ALL: &str = "all";

const fn parts(name: &'static str, about: &'static str, parts: Parts) -> Named<Maker> {
    Named { name, about, what: Maker::Parts(parts) }
}

/// Our engine, and what is left of it without one of its parts.
const ABLATIONS: [Named<Maker>; 9] = {
    let whole = Parts::WHOLE;
    let no_swarm = Fresh::Generated(Recipe { swarm: false, macros: true });
    let no_macros = Fresh::Generated(Recipe { swarm: true, macros: false });
    let bytewise = Mutation::Bytewise;
    [
        parts(OURS, "our generator, structure-aware mutation, a pool of what reached new events", whole),
        parts(
            "state-feedback",
            "the pool also keeps what reached a new state of memory",
            Parts { guide: Guide::States, ..whole },
        ),
        parts("no-feedback", "every trace is made anew", Parts { guide: Guide::Nothing, ..whole }),
        parts(
            "no-swarm",
            "all groups of operations in each trace, with their usual weights",
            Parts { fresh: no_swarm, ..whole },
        ),
        parts("no-macros", "neither macro operations nor scenes", Parts { fresh: no_macros, ..whole }),
        parts("byte-mutation", "the pool is mutated as bytes", Parts { mutation: bytewise, ..whole }),
        parts(
            "no-generator",
            "traces decoded from random bytes, mutated as operations",
            Parts { fresh: Fresh::Decoded, ..whole },
        ),
        parts(
            "bytes-only",
            "traces decoded from random bytes, mutated as bytes",
            Parts { fresh: Fresh::Decoded, mutation: bytewise, ..whole },
        ),
        Named {
            name: "derived-arbitrary",
            about: "what a derived Arbitrary makes of our operations",
            what: Maker::Derived,
        },
    ]
};

/// All who make traces: ours first, then ours with something missing, then the others.
pub fn makers() -> impl Iterator<Item = Named<Maker>> {
    let others = DESIGNS.iter().map(|d| Named { name: d.name, about: d.draws, what: Maker::Design(d) });
    ABLATIONS.into_iter().chain(others)
}

/// Oracles that need the reference model: all but those about intervals, contents and crashes.
const OF_THE_MODEL: [OracleId; 16] = [
    OracleId::O7Conservation,
    OracleId::O9RefusalJustified,
    OracleId::O10RightTier,
    OracleId::O11FailureAtomic,
    OracleId::O12Quiescence,
    OracleId::O15Translation,
    OracleId::O16Misuse,
    OracleId::O17Statistics,
    OracleId::O18Warnings,
    OracleId::O19Pages,
    OracleId::O20Caches,
    OracleId::O21DebugBytes,
    OracleId::O22GracePeriods,
    OracleId::O23Areas,
    OracleId::O24Nested,
    OracleId::Codec,
];

/// Our oracles without those that need the model.
const NO_MODEL: Judges = {
    let (mut muted, mut i) = (Muted::NOBODY, 0);
    while i < OF_THE_MODEL.len() {
        muted = muted.with(OF_THE_MODEL[i]);
        i += 1;
    }
    Judges::Oracles { muted, audits: true }
};

/// All who judge: ours first, then ours with something missing, then the others.
pub fn judges() -> impl Iterator<Item = Named<Judges>> {
    let no_audit = Judges::Oracles { muted: Muted::NOBODY.with(OracleId::O8Audit), audits: false };
    let ours = [
        Named { name: ALL, about: "all of our oracles", what: Judges::ALL },
        Named {
            name: "no-model",
            about: "intervals, alignment, contents, the allocator's own audit; no model",
            what: NO_MODEL,
        },
        Named { name: "no-audit", about: "answers only: nobody looks at everything now and then", what: no_audit },
    ];
    let others = DESIGNS.iter().map(|d| Named { name: d.name, about: d.checks, what: Judges::Stranger(d.asks) });
    ours.into_iter().chain(others)
}

/// Who makes traces, and who judges them.
#[derive(Clone, Copy)]
pub struct Contestant {
    /// Who makes traces.
    pub maker: Named<Maker>,
    /// Who judges them.
    pub judge: Named<Judges>,
}

impl Contestant {
    /// Reads a name: `MAKER+JUDGE`, or one of them alone. A maker alone is judged by all of our oracles, unless it is a design,
    /// which brings its own judge; a judge alone is given our traces.
    ///
    /// # Errors
    ///
    /// Which names there are.
    pub fn by_name(name: &str) -> Result<Self, String> {
        let maker = |name: &str| makers().find(|maker| maker.name == name);
        let judge = |name: &str| judges().find(|judge| judge.name == name);
        let pair = match name.split_once('+') {
            Some((first, second)) => maker(first).zip(judge(second)),
            None => match (maker(name), judge(name)) {
                (Some(maker), None) => Some(maker).zip(judge(ALL)),
                (None, Some(judge)) => maker(OURS).zip(Some(judge)),
                (maker, judge) => maker.zip(judge),
            },
        };
        pair.map(|(maker, judge)| Self { maker, judge }).ok_or_else(|| {
            let makers: Vec<_> = makers().map(|maker| maker.name).collect();
            let judges: Vec<_> = judges().map(|judge| judge.name).collect();
            format!(
                "there is no contestant `{name}`; MAKER+JUDGE or one of them alone, of the makers {} and the judges {}",
                makers.join(", "),
                judges.join(", ")
            )
        })
    }

    /// The name that [`Self::by_name`] reads.
    pub fn name(&self) -> String {
        format!("{}+{}", self.maker.name, self.judge.name)
    }

    /// The same judges, other makers: what a way of making traces is worth.
    pub fn by_maker() -> Vec<Self> {
        let ours = Named { name: ALL, about: "all of our oracles", what: Judges::ALL };
        makers().map(|maker| Self { maker, judge: ours }).collect()
    }

    /// The same maker, other judges: what a question is worth.
    pub fn by_judge() -> Vec<Self> {
        judges().map(|judge| Self { maker: ABLATIONS[0], judge }).collect()
    }

    /// Whole designs: ours, and those of others with their own questions.
    pub fn whole() -> Vec<Self> {
        let names = DESIGNS.iter().map(|design| design.name);
        std::iter::once(OURS).chain(names).filter_map(|name| Self::by_name(name).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_read_back_and_differ() {
        let all: Vec<Contestant> =
            [Contestant::by_maker(), Contestant::by_judge(), Contestant::whole()].into_iter().flatten().collect();
        for contestant in &all {
            assert_eq!(Contestant::by_name(&contestant.name()).unwrap().name(), contestant.name());
        }
        assert_eq!(Contestant::by_maker().iter().map(Contestant::name).collect::<HashSet<_>>().len(), 19);
        assert_eq!(Contestant::by_judge().iter().map(Contestant::name).collect::<HashSet<_>>().len(), 13);
    }

    #[test]
    fn a_name_alone_says_what_is_special() {
        let name = |alone| Contestant::by_name(alone).map(|c| c.name()).unwrap();
        assert_eq!(name("ours"), "ours+all");
        assert_eq!(name("no-swarm"), "no-swarm+all");
        assert_eq!(name("no-model"), "ours+no-model");
        assert_eq!(name("rlsf"), "rlsf+rlsf");
        assert_eq!(name("rlsf+all"), "rlsf+all");
        assert!(Contestant::by_name("nobody").err().unwrap().contains("no-swarm"));
    }
}
