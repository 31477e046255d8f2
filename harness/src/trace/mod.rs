//! The one language: what every engine produces, the corpus stores, the runner executes and the shrinker reduces.
//!
//! A [`Trace`] is a value with two total encodings: compact bytes of fixed-width records for coverage-guided engines
//! ([`Trace::from_bytes`]: every byte string is a trace) and text for people ([`Trace::from_text`]: one operation a
//! line). Neither needs the generator that made the trace, so a stored trace outlives every change of the generators.

mod bytes;
mod cache_flags;
mod choice;
mod flags;
mod geometry;
mod gfp;
pub mod interesting;
mod number;
mod op;
mod quote;
mod role;
mod swarm;
mod text;

pub use bytes::{HEADER_BYTES, MAGIC, RECORD_BYTES};
pub use cache_flags::{CacheFlags, UnknownCacheFlag};
pub use choice::{BurstTier, Misuse};
pub use geometry::{GeometrySpec, MAX_FRAMES, MAX_TRACE_CPUS, MAX_VMALLOC_PAGES, MIN_FRAMES};
pub use gfp::{Gfp, UnknownGfp};
pub use number::Number;
pub use op::{Op, OpKind};
pub use role::Role;
pub use swarm::{OpGroup, Swarm, UnknownGroup};
pub use text::{LoadError, MAX_FILE_BYTES, TextError, TextErrorKind, leading_comment};

use kmem::FaultPoint;
use serde::de::{Deserializer, Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::marker::PhantomData;

/// The version of the language that this crate writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// The most operations in a trace.
pub const MAX_OPS: usize = 100_000;
/// The most faults planned before the first operation.
pub const MAX_FAULTS: usize = 64;

/// A program for an allocator and the machine that it runs on.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    /// The version of the language: [`VERSION`].
    #[serde(deserialize_with = "known_version")]
    pub version: u32,
    /// The machine.
    #[serde(default, deserialize_with = "geometry_in_range")]
    pub geometry: GeometrySpec,
    /// The groups of operations that generators and mutators may use; the runner does not look at it.
    #[serde(default)]
    pub swarm: Swarm,
    /// Failures planned before the first operation.
    #[serde(default, deserialize_with = "few_faults")]
    pub faults: Vec<FaultSpec>,
    /// The operations, in order.
    #[serde(deserialize_with = "few_ops")]
    pub ops: Vec<Op>,
}

/// One planned failure: the `nth` question about `point` (0 is the first) is answered with "fail", once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// The place.
    #[serde(with = "choice::FaultPointName")]
    pub point: FaultPoint,
    /// Which question.
    pub nth: u32,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Trace {
    /// Makes a trace of these operations on the default machine, without planned failures.
    pub fn new(ops: Vec<Op>) -> Self {
        Self { version: VERSION, geometry: GeometrySpec::default(), swarm: Swarm::ALL, faults: Vec::new(), ops }
    }

    /// Moves what is out of range to the nearest valid value and cuts what is too long.
    pub fn normalize(&mut self) {
        self.version = VERSION;
        self.geometry = self.geometry.normalized();
        self.faults.truncate(MAX_FAULTS);
        self.ops.truncate(MAX_OPS);
    }
}

/// What the parser's errors say that they expected; the text codec knows them again by these.
const EXPECTED_VERSION: &str = "version 1";
const EXPECTED_OPS: &str = "at most 100000 operations";
const EXPECTED_FAULTS: &str = "at most 64 planned failures";

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    if version == VERSION {
        return Ok(version);
    }
    Err(D::Error::invalid_value(Unexpected::Other(&version.to_string()), &EXPECTED_VERSION))
}

fn geometry_in_range<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GeometrySpec, D::Error> {
    let spec = GeometrySpec::deserialize(deserializer)?;
    match spec.out_of_range() {
        None => Ok(spec),
        Some((field, found, nearest)) => Err(D::Error::custom(format_args!(
            "geometry {field}: {found} is out of range; the nearest valid value is {nearest}"
        ))),
    }
}

fn few_ops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Op>, D::Error> {
    deserializer.deserialize_seq(AtMost { limit: MAX_OPS, expected: EXPECTED_OPS, of: PhantomData })
}

fn few_faults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FaultSpec>, D::Error> {
    deserializer.deserialize_seq(AtMost { limit: MAX_FAULTS, expected: EXPECTED_FAULTS, of: PhantomData })
}

/// Reads a list and stops at a limit, so that a hostile file cannot fill memory.
struct AtMost<T> {
    limit: usize,
    expected: &'static str,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for AtMost<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            if list.len() == self.limit {
                return Err(A::Error::invalid_length(list.len() + 1, &self.expected));
            }
            list.push(item);
        }
        Ok(list)
    }
}

const _: () = assert!(VERSION == 1 && MAX_OPS == 100_000 && MAX_FAULTS == 64, "the EXPECTED_ sentences name them");
