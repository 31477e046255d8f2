//! Subjects that are wrong on purpose, each in one way, and the oracle that is meant to notice.

mod believes_callers;
mod byte_short;
mod dirty_zero;
mod flushes;
mod hoards;
mod ignores_alignment;
mod leaks_on_failure;
mod minds_being_watched;
mod overlap;
mod realloc_loses_a_byte;
mod refuses;
mod same_block;
mod unrepeatable;
mod wrong_tier;

use super::{Flaw, Guest, Loose, Spare, SubjectKind, Twist, Twisted};
use crate::generate::Target;
use crate::oracle::OracleId;
use crate::subject::Call;
use kmem::{Geometry, GeometryError};

/// A wrong subject and who must notice.
#[derive(Clone, Copy, Debug)]
pub struct Degenerate {
    /// The subject.
    pub kind: SubjectKind,
    /// The oracle that is meant for its mistake.
    pub intended: OracleId,
    /// The kind of trace in which the mistake has consequences.
    pub target: Target,
}

/// A flaw of the loose allocator, as a subject.
const fn flawed<F: Flaw + Default + 'static>(name: &'static str, intended: OracleId, target: Target) -> Degenerate {
    Degenerate { kind: SubjectKind::new(name, build_flawed::<F>), intended, target }
}

fn build_flawed<F: Flaw + Default + 'static>(
    _: &'static str,
    g: &Geometry,
    spare: Spare,
) -> Result<Box<dyn Guest>, GeometryError> {
    g.validate()?;
    Ok(Box::new(Loose::new(g, spare, F::default())))
}

/// A twist of `kmem`, as a subject.
const fn twisted<T: Twist + Default + 'static>(name: &'static str, intended: OracleId, target: Target) -> Degenerate {
    Degenerate { kind: SubjectKind::new(name, |_, g, spare| Twisted::build(g, spare, T::default())), intended, target }
}

/// All of them.
pub const DEGENERATES: [Degenerate; 20] = [
    flawed::<same_block::SameBlock>("same-block", OracleId::O1Overlap, Target::Trace),
    flawed::<overlap::Overlap>("overlap-8-every-7th", OracleId::O1Overlap, Target::Trace),
    flawed::<ignores_alignment::IgnoresAlignment>("ignores-alignment", OracleId::O2Alignment, Target::Trace),
    twisted::<refuses::AlwaysRefuses>("always-refuses", OracleId::O9RefusalJustified, Target::Trace),
    twisted::<hoards::NeverReuses>("never-reuses", OracleId::O9RefusalJustified, Target::Pages),
    flawed::<dirty_zero::DirtyZero>("dirty-zero", OracleId::O5Zero, Target::Trace),
    flawed::<realloc_loses_a_byte::ReallocLosesAByte>("realloc-loses-a-byte", OracleId::O6Realloc, Target::Trace),
    flawed::<byte_short::ByteShort>("byte-short", OracleId::O3Bounds, Target::Trace),
    twisted::<hoards::NeverCoalesces>("never-coalesces", OracleId::O12Quiescence, Target::Pages),
    flawed::<unrepeatable::Unrepeatable>("unrepeatable", OracleId::O13Determinism, Target::Trace),
    flawed::<minds_being_watched::MindsBeingWatched>("minds-being-watched", OracleId::O14Metamorphic, Target::Trace),
    twisted::<flushes::Flushing<0>>("forgets-tlb-flush", OracleId::O15Translation, Target::Vmalloc),
    twisted::<flushes::Flushing<1>>("flushes-after-reuse", OracleId::O15Translation, Target::Vmalloc),
    twisted::<flushes::Flushing<2>>("flushes-a-page-too-few", OracleId::O15Translation, Target::Vmalloc),
    twisted::<flushes::Flushing<3>>("forgets-a-node's-range", OracleId::O15Translation, Target::Vmalloc),
    twisted::<flushes::Flushing<4>>("keeps-walking-freed-tables", OracleId::O15Translation, Target::Vmalloc),
    twisted::<refuses::RefusesAlthoughItFits>("refuses-although-it-fits", OracleId::O9RefusalJustified, Target::Trace),
    twisted::<wrong_tier::WrongTier>("wrong-tier", OracleId::O10RightTier, Target::Kvmalloc),
    twisted::<believes_callers::BelievesCallers>("believes-callers", OracleId::O16Misuse, Target::Trace),
    twisted::<leaks_on_failure::LeaksOnFailure>("leaks-on-failure", OracleId::O11FailureAtomic, Target::Trace),
];

/// Tells whether a call asks for memory.
fn allocates(call: &Call) -> bool {
    matches!(
        call,
        Call::AllocPages { .. }
            | Call::AllocPagesNode { .. }
            | Call::AllocPagesExact { .. }
            | Call::Kmalloc { .. }
            | Call::KmallocArray { .. }
            | Call::CacheAlloc { .. }
            | Call::Vmalloc { .. }
            | Call::Kvmalloc { .. }
            | Call::KvmallocArray { .. }
    )
}
