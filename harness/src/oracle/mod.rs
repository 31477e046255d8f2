//! The questions. One file each; each reports under its own id.

use crate::model::Model;
use crate::model::areas::AreaWish;
use crate::subject::{Call, ObjectsCall, Reply, Subject};
use std::fmt;

mod access;
mod contig;
#[cfg(test)]
pub(crate) mod fake;
mod moves;
mod o01_overlap;
mod o02_alignment;
mod o03_bounds;
mod o04_content;
mod o05_zero;
mod o06_realloc;
mod o07_conservation;
mod o08_audit;
mod o09_objects;
mod o09_refusal;
mod o10_tier;
mod o11_atomic;
mod o12_quiescence;
mod o15_translation;
mod o16_misuse;
mod o17_areas;
mod o17_statistics;
mod o18_warnings;
mod o19_pages;
mod o20_caches;
mod o21_debug_bytes;
mod o22_grace;
mod o23_areas;
mod o24_nested;
mod pattern;
mod policy;
mod ram;
mod scene;
mod window;

pub use access::{BadAccess, judge_access, judge_read};
pub use moves::{on_lent, on_move};
pub use o04_content::{read_alias, read_block, write_block};
pub use o15_translation::touch_guard;
pub use o19_pages::write_free;
pub use pattern::{CONSTRUCTED, constructed_byte};

/// What the rules say about a contiguous attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contiguous {
    /// It has to succeed.
    Must,
    /// It may succeed: what matters cannot be seen from outside.
    May,
    /// It cannot succeed without reclaim that it may not do.
    Cannot,
}

/// A free pointer that a program led nowhere, until the next validation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BrokenLink {
    /// That of a live object.
    Live,
    /// That of a free object.
    Free,
    /// It is as it was, but so many findings about the count of free objects are to come.
    Repaired(usize),
}

/// What oracles keep between two questions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    /// Oracles that are not heard in this run.
    pub(crate) muted: Muted,
    /// The clock of the machine's readers before the call.
    pub(crate) time: u64,
    /// What `kvmalloc`'s contiguous attempt found in the state before the call; `None` if there is none.
    pub(crate) contiguous: Option<Contiguous>,
    /// The state before the call, for calls about which it cannot be told from the state after it.
    pub(crate) before: Option<scene::Snapshot>,
    /// What a call for objects found, if its refusal or its node is judged by that.
    pub(crate) objects: Option<scene::Snapshot>,
    /// Whether the memory node that the caller prefers had something before the call; `None` if it names none.
    pub(crate) near: Option<bool>,
    /// Whether the call is a `kmalloc_nolock`.
    pub(crate) nolock: bool,
    /// How many findings debug caches had told of before the call.
    pub(crate) findings: u64,
    /// How often somebody had been told before the call that a cache has the name of another one.
    pub(crate) names_taken: u64,
    /// The free pointer that was broken since the last validation.
    pub(crate) link: Option<BrokenLink>,
    /// How many slabs had been set aside before the call.
    pub(crate) aside: u64,
    /// How many slabs had been given up for after a grace period before the call.
    pub(crate) put_off: u64,
    /// Pages of areas that waited for readers before the call.
    pub(crate) pending_pages: u64,
    /// Where the next audit goes on with its sample of contents.
    pub(crate) sample: usize,
    /// Warnings that come once only and came.
    pub(crate) warned: u32,
    /// How often addresses were short before the call.
    pub(crate) reclaimed_va: u64,
    /// The window and the blocks for huge entries before the call, if it may make an area.
    pub(crate) area: Option<o23_areas::Before>,
    /// Credit of the calls for areas since the last one that was judged by where its area is.
    pub(crate) unjudged_areas: usize,
    /// The free that was done by the last step, if it was one.
    pub(crate) freed: Option<Call>,
    /// Blocks lent to the host by the calls before this one, as long as these did nothing else.
    pub(crate) lent: Vec<(u64, u8)>,
    /// Pages of areas, by address, that went to other frames during the call that is being judged.
    pub(crate) moved_pages: Vec<u64>,
    /// Where the areas were whose freeing was put off and which were freed during the call: their pages may have moved before.
    pub(crate) drained: Vec<(u64, u64)>,
    /// The frames of these areas: who owns a block of pages hears only after the call that nobody shows it any more.
    pub(crate) no_longer_shown: Vec<u32>,
    /// Pages that lost their last reference to these while another mapping showed them: frame and order, as of a freed block.
    pub(crate) late_bad: Vec<(u32, u8)>,
    /// Blocks and pages of areas that moved, and pages that were lent, during the call that is being judged.
    pub(crate) moved: usize,
    /// Whether the call that is being judged does nothing but compact.
    pub(crate) compacting: bool,
    pub(crate) lent_pages: usize,
    /// Whether the marks of the zones were compared with the contract already.
    pub(crate) watermarks_checked: bool,
    /// How often the TLB had been flushed before the call.
    pub(crate) flushed: u64,
    /// How often each reason of refusal had come up before the call.
    pub(crate) refusals: [u64; policy::REFUSALS.len()],
    /// How often types had to mix, and reclaim had run, before the call.
    pub(crate) mixing: [u64; 2],
    /// How often the HIGHATOMIC reserve had grown and served before the call.
    pub(crate) urgent: [u64; 2],
    /// How often compaction had gone this way or that before the call.
    pub(crate) compactions: [u64; 5],
    /// The order for which compaction of the only zone failed the last time that there was any.
    pub(crate) compaction_failed: Option<u8>,
}

/// Names an oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "the module of each oracle explains it")]
pub enum OracleId {
    O1Overlap,
    O2Alignment,
    O3Bounds,
    O4Content,
    O5Zero,
    O6Realloc,
    O7Conservation,
    O8Audit,
    O9RefusalJustified,
    O10RightTier,
    O11FailureAtomic,
    O12Quiescence,
    /// Asked by [`crate::run`]: it takes a second run.
    O13Determinism,
    /// Asked by [`crate::run`]: it takes a second run.
    O14Metamorphic,
    O15Translation,
    O16Misuse,
    O17Statistics,
    O18Warnings,
    O19Pages,
    O20Caches,
    O21DebugBytes,
    O22GracePeriods,
    O23Areas,
    O24Nested,
    /// Not a question of ours: the subject panicked.
    Panic,
    /// Not a question of ours: the process in which the subject ran died or did not come back.
    Crash,
    /// Not a question about a subject: the two encodings of a trace disagree.
    Codec,
    /// Not a question of ours: what the re-expressed harness of somebody else objects to.
    Stranger,
}

impl OracleId {
    /// Tells whether it takes a second run to ask.
    pub const fn needs_a_second_run(self) -> bool {
        matches!(self, Self::O13Determinism | Self::O14Metamorphic)
    }
}

/// Oracles whose objections nobody hears: what a harness without them would not see.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Muted(u64);

impl Muted {
    /// Every oracle is heard.
    pub const NOBODY: Self = Self(0);

    /// Mutes one more.
    #[must_use]
    pub const fn with(self, oracle: OracleId) -> Self {
        Self(self.0 | 1 << oracle as u32)
    }

    /// Lets an objection through, unless it is of an oracle that is muted.
    ///
    /// # Errors
    ///
    /// The objection.
    pub(crate) fn hear(self, verdict: Result<(), Violation>) -> Result<(), Violation> {
        verdict.or_else(|violation| if self.0 >> violation.oracle as u32 & 1 == 1 { Ok(()) } else { Err(violation) })
    }
}

/// An answer that the contract does not allow.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Violation {
    /// Who found it.
    pub oracle: OracleId,
    /// What was wrong, with the numbers.
    pub message: String,
    /// Handles of the blocks concerned.
    pub blocks: Vec<u64>,
    /// Index of the operation in the trace.
    pub op: usize,
}

/// One call and its answer, as the oracles see it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Index of the operation in the trace; macro operations make several steps with one index.
    pub op: usize,
    /// The call.
    pub call: Call,
    /// The answer.
    pub reply: Reply,
    /// Whether an injected fault struck during the call.
    pub fault_struck: bool,
}

/// What an oracle may look at.
pub struct Context<'a> {
    /// The model: before the step in [`Oracle::before_update`], after it in [`Oracle::after_update`].
    pub model: &'a mut Model,
    /// The system under test; for reading and writing memory and looking inside, not for calls.
    pub subject: &'a mut dyn Subject,
    /// The step; `None` in audits and at the end.
    pub step: Option<&'a Step>,
    /// Index of the operation.
    pub op: usize,
}

impl Context<'_> {
    /// Makes a violation that concerns these blocks.
    pub(crate) fn violation(&self, oracle: OracleId, blocks: &[u64], message: String) -> Violation {
        Violation { oracle, message, blocks: blocks.to_vec(), op: self.op }
    }

    /// Drops the objection of an oracle that is muted in this run.
    #[cold]
    fn heard(&self, objection: Violation) -> Result<(), Violation> {
        self.model.notes.muted.hear(Err(objection))
    }
}

/// A question asked of every step.
pub trait Oracle: Sync {
    /// Its name.
    fn id(&self) -> OracleId;

    /// Looks at the state before the call is made; `cx.step` is `None`.
    ///
    /// # Errors
    ///
    /// The violation found.
    fn before_call(&self, cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
        let _ = (cx, call);
        Ok(())
    }

    /// Looks at the answer while the model still shows the state before the call.
    ///
    /// # Errors
    ///
    /// The violation found.
    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let _ = cx;
        Ok(())
    }

    /// Looks at the state after the model has followed the call.
    ///
    /// # Errors
    ///
    /// The violation found.
    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let _ = cx;
        Ok(())
    }

    /// Looks at everything; called every so many operations and at the end.
    ///
    /// # Errors
    ///
    /// The violation found.
    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let _ = cx;
        Ok(())
    }

    /// Looks at the state after everything was freed and reclaimed.
    ///
    /// # Errors
    ///
    /// The violation found.
    fn at_end(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let _ = cx;
        Ok(())
    }
}

impl fmt::Display for OracleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Bytes of address space of a fresh area, its guard not counted: by what was asked for, and by what its first entry maps.
fn area_bytes(cx: &Context<'_>, call: &Call, addr: u64) -> Option<usize> {
    let wish = AreaWish::of(cx.model.geometry(), call)?;
    (wish.as_mapped(cx.subject.leaf_order(addr)).pages as usize).checked_mul(kmem::PAGE_SIZE)
}

/// All oracles, in the order in which they are asked.
pub fn all() -> &'static [&'static dyn Oracle] {
    ALL
}

const ALL: &[&dyn Oracle] = &[
    &o01_overlap::Overlap,
    &o02_alignment::Alignment,
    &o03_bounds::Bounds,
    &o04_content::Content,
    &o05_zero::Zero,
    &o06_realloc::Realloc,
    &o07_conservation::Conservation,
    &o08_audit::Audit,
    &o09_refusal::RefusalJustified,
    &o10_tier::RightTier,
    &o11_atomic::FailureAtomic,
    &o12_quiescence::Quiescence,
    &o15_translation::Translation,
    &o16_misuse::MisuseNamed,
    &o17_statistics::Statistics,
    &o18_warnings::Warnings,
    &o19_pages::Pages,
    &o20_caches::Caches,
    &o21_debug_bytes::DebugBytes,
    &o22_grace::GracePeriods,
    &o23_areas::Areas,
    &o24_nested::Nested,
];

// Those of them that have a question in each phase. An oracle that is missing here would never be asked; the degenerate
// subjects show that each is.
const BEFORE_CALL: &[&dyn Oracle] = &[
    &o22_grace::GracePeriods,
    &o04_content::Content,
    &o09_refusal::RefusalJustified,
    &o10_tier::RightTier,
    &o11_atomic::FailureAtomic,
    &o15_translation::Translation,
    &o20_caches::Caches,
    &o21_debug_bytes::DebugBytes,
    &o23_areas::Areas,
];
// Translation comes first: what the others read through a stale entry would be somebody else's memory.
const BEFORE_UPDATE: &[&dyn Oracle] = &[
    &o15_translation::Translation,
    &o01_overlap::Overlap,
    &o02_alignment::Alignment,
    &o03_bounds::Bounds,
    &o04_content::Content,
    &o05_zero::Zero,
    &o06_realloc::Realloc,
    &o09_refusal::RefusalJustified,
    &o10_tier::RightTier,
    &o16_misuse::MisuseNamed,
    &o18_warnings::Warnings,
    &o19_pages::Pages,
    &o20_caches::Caches,
    &o21_debug_bytes::DebugBytes,
    &o22_grace::GracePeriods,
    &o23_areas::Areas,
    &o24_nested::Nested,
];
const AFTER_UPDATE: &[&dyn Oracle] = &[
    &o04_content::Content,
    &o11_atomic::FailureAtomic,
    &o07_conservation::Conservation,
    &o15_translation::Translation,
    &o19_pages::Pages,
];
const AUDIT: &[&dyn Oracle] = &[
    &o03_bounds::Bounds,
    &o04_content::Content,
    &o07_conservation::Conservation,
    &o08_audit::Audit,
    &o09_refusal::RefusalJustified,
    &o15_translation::Translation,
    &o19_pages::Pages,
    &o20_caches::Caches,
    &o17_statistics::Statistics,
    &o22_grace::GracePeriods,
];
const AT_END: &[&dyn Oracle] = &[&o22_grace::GracePeriods, &o08_audit::Audit, &o12_quiescence::Quiescence];

/// Asks [`Oracle::before_call`] of every oracle that has such a question; to be called before each call, with
/// `cx.step` as `None`.
///
/// # Errors
///
/// The first violation found.
pub fn before_call(cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
    (cx.model.notes.moved, cx.model.notes.lent_pages) = (0, 0);
    cx.model.notes.nolock = matches!(call, Call::Objects(ObjectsCall::KmallocNolock { .. }));
    cx.model.notes.moved_pages.clear();
    if !matches!(call, Call::ReportFree { .. }) {
        cx.model.notes.lent.clear();
    }
    BEFORE_CALL.iter().try_for_each(|oracle| oracle.before_call(cx, call).or_else(|objection| cx.heard(objection)))
}

/// Asks [`Oracle::before_update`] of every oracle that has such a question; to be called after each call, before
/// [`Model::update`].
///
/// # Errors
///
/// The first violation found.
pub fn before_update(cx: &mut Context<'_>) -> Result<(), Violation> {
    BEFORE_UPDATE.iter().try_for_each(|oracle| oracle.before_update(cx).or_else(|objection| cx.heard(objection)))
}

/// Asks the same about a single call for which the call that was made stood. Warnings, damaged pages among them, and what debug
/// caches told are a matter of the whole call.
///
/// # Errors
///
/// The first violation found.
pub fn before_update_of_part(cx: &mut Context<'_>) -> Result<(), Violation> {
    let of_whole = [OracleId::O18Warnings, OracleId::O19Pages, OracleId::O21DebugBytes, OracleId::O24Nested];
    let of_parts = BEFORE_UPDATE.iter().filter(|oracle| !of_whole.contains(&oracle.id()));
    of_parts.into_iter().try_for_each(|oracle| oracle.before_update(cx).or_else(|objection| cx.heard(objection)))
}

/// Asks [`Oracle::after_update`] of every oracle that has such a question; to be called after [`Model::update`].
///
/// # Errors
///
/// The first violation found.
pub fn after_update(cx: &mut Context<'_>) -> Result<(), Violation> {
    AFTER_UPDATE.iter().try_for_each(|oracle| oracle.after_update(cx).or_else(|objection| cx.heard(objection)))
}

/// Asks [`Oracle::audit`] of every oracle that has such a question.
///
/// # Errors
///
/// The first violation found.
pub fn audit(cx: &mut Context<'_>) -> Result<(), Violation> {
    AUDIT.iter().try_for_each(|oracle| oracle.audit(cx).or_else(|objection| cx.heard(objection)))
}

/// Asks [`Oracle::at_end`] of every oracle that has such a question; to be called when everything was freed and
/// reclaimed.
///
/// # Errors
///
/// The first violation found.
pub fn at_end(cx: &mut Context<'_>) -> Result<(), Violation> {
    AT_END.iter().try_for_each(|oracle| oracle.at_end(cx).or_else(|objection| cx.heard(objection)))
}
