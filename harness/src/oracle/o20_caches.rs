//! O20: are caches made, shared, listed and destroyed as the contract says?
//!
//! Contract: 2.5, 2.12, I17 and I22. A cache is refused exactly for a reason of 2.5, for want of a number, or by an injected
//! fault. Caches that are alike share slabs: `slabinfo` lists exactly the roots, each with its number of aliases and the
//! size of the largest object. Destroying the last cache of a root gives everything back or reports exactly the live
//! objects; those and their frames are never used again. Exact.

use super::{Context, Oracle, OracleId, Step, Violation, pattern};
use crate::model::{SheafModel, Why, caches};
use crate::subject::{Call, Reply, WhiteBox};
use kmem::{CacheError, CacheId, CacheInfo, Destroyed, Event, FrameKind, PAGE_SIZE};

/// Numbers of caches that are set aside for `kmalloc`: three sets of classes.
const KMALLOC_NUMBERS: usize = 3 * crate::model::classes::CLASSES.len();

/// See the module.
pub(super) struct Caches;

impl Oracle for Caches {
    fn id(&self) -> OracleId {
        OracleId::O20Caches
    }

    fn before_call(&self, cx: &mut Context<'_>, _: &Call) -> Result<(), Violation> {
        cx.model.notes.names_taken = names_taken(cx);
        Ok(())
    }

    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step.filter(|_| cx.model.is_tight()) else { return Ok(()) };
        let verdict = match (&step.call, &step.reply) {
            (Call::CacheCreate { spec }, Reply::CacheRefused(error)) => judge_refusal(cx, step, spec, error),
            (Call::CacheCreate { spec }, Reply::Cache(id)) => judge_creation(cx, spec, *id),
            (Call::CacheDestroy { cache }, Reply::Destroyed { what, named }) => {
                judge_destruction(cx, *cache, what, named)
            }
            (Call::CacheDestroy { cache } | Call::CacheShrink { cache }, Reply::CacheRefused(error)) => {
                judge_unusable(cx, *cache, error)
            }
            (_, Reply::Block { addr, usable }) => judge_block(cx, *addr, *usable),
            _ => Ok(()),
        };
        verdict.map_err(|message| cx.violation(OracleId::O20Caches, &[], message))
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let listed = match cx.subject.white_box() {
            Some(inside) => check_listing(cx, inside).and_then(|()| check_leaked(cx, inside)),
            None => Ok(()),
        };
        listed.and_then(|()| check_contents(cx)).map_err(|message| cx.violation(OracleId::O20Caches, &[], message))
    }
}

fn judge_refusal(cx: &Context<'_>, step: &Step, spec: &caches::CacheSpec, error: &CacheError) -> Result<(), String> {
    let justified = match error {
        CacheError::Injected(_) => step.fault_struck,
        CacheError::TooMany(max) => *max == cx.model.geometry().max_caches && free_numbers(cx) == 0,
        error => caches::refuses(cx.model.geometry(), &cx.model.effective(spec), error),
    };
    if justified { Ok(()) } else { Err(format!("{spec:?} was refused with \"{error}\"")) }
}

/// A cache of nobody's is the allocator's own, or does not exist.
fn judge_unusable(cx: &Context<'_>, cache: CacheId, error: &CacheError) -> Result<(), String> {
    if *error == CacheError::Busy(cache.get()) {
        let promised = promised(cx, cache);
        return if promised {
            Ok(())
        } else {
            Err(format!("{cache:?} is called busy, but nobody was promised objects"))
        };
    }
    let listed = cx.subject.white_box().is_some_and(|inside| inside.slabinfo().iter().any(|info| info.id == cache));
    let justified = cx.model.cache(cache).is_none()
        && match error {
            CacheError::BuiltIn => listed && cx.model.roots().iter().all(|root| root.id != cache),
            CacheError::Unknown(n) => *n == cache.get() && (!listed || cx.model.roots().iter().any(|r| r.id == cache)),
            _ => false,
        };
    if justified { Ok(()) } else { Err(format!("{cache:?} was refused with \"{error}\"")) }
}

/// Tells whether a cache has slabs for itself, and a prefilled sheaf has objects of them.
fn promised(cx: &Context<'_>, cache: CacheId) -> bool {
    let root = cx.model.root_of(cache);
    let users = cx.model.caches().iter().filter(|other| other.root == root).count();
    let holds = |sheaf: &SheafModel| sheaf.left > 0 && cx.model.root_of(sheaf.cache) == root;
    users == 1 && cx.model.sheaves().iter().any(holds)
}

fn judge_creation(cx: &Context<'_>, spec: &caches::CacheSpec, id: CacheId) -> Result<(), String> {
    if caches::is_impossible(cx.model.geometry(), &cx.model.effective(spec)) {
        return Err(format!("{spec:?} makes no sense, but was granted"));
    }
    // Slabs keep the name of the cache that had them made, even if it is gone. A name of a cache's own occurs once.
    let (caches, roots) = (cx.model.caches().iter(), cx.model.roots().iter());
    let mut names = caches.map(|cache| cache.spec.name).chain(roots.map(|root| root.spec.name));
    let expected = u64::from(spec.name != caches::CacheNaming::Own && names.any(|name| name == spec.name));
    let told = names_taken(cx) - cx.model.notes.names_taken;
    if told != expected {
        return Err(format!("{spec:?} was told of {told} times for its name, not {expected}"));
    }
    let taken = cx.model.cache(id).is_some() || cx.model.roots().iter().any(|root| root.id == id);
    if taken { Err(format!("{id:?} exists already")) } else { Ok(()) }
}

/// How often somebody was told that a cache has the name of another one.
fn names_taken(cx: &Context<'_>) -> u64 {
    cx.subject.white_box().map_or(0, |inside| inside.event_count(Event::CacheNameTaken))
}

/// Numbers that neither the allocator nor a cache of the trace has.
fn free_numbers(cx: &Context<'_>) -> usize {
    let listed = cx.subject.white_box().map(|inside| inside.slabinfo()).unwrap_or_default();
    let known = |info: &&CacheInfo| cx.model.roots().iter().any(|root| root.id == info.id);
    let internal = listed.iter().filter(|info| info.id.index() >= KMALLOC_NUMBERS && !known(info)).count();
    let orphans = cx.model.roots().iter().filter(|root| cx.model.cache(root.id).is_none()).count();
    let used = KMALLOC_NUMBERS + internal + orphans + cx.model.caches().len();
    usize::from(cx.model.geometry().max_caches).saturating_sub(used)
}

fn judge_destruction(cx: &Context<'_>, cache: CacheId, what: &Destroyed, named: &[u64]) -> Result<(), String> {
    let Some(gone) = cx.model.cache(cache) else { return Err(format!("{cache:?} does not exist")) };
    if promised(cx, cache) {
        return Err(format!("{cache:?} was destroyed, but a prefilled sheaf has objects of it"));
    }
    let users = cx.model.caches().iter().filter(|other| other.root == gone.root).count() as u32;
    let mut live: Vec<u64> = match users {
        1 => cx.model.blocks(crate::model::Tiers::CACHE).filter(|b| b.cache == Some(cache)).map(|b| b.addr).collect(),
        _ => Vec::new(),
    };
    live.sort_unstable();
    let mut named = named.to_vec();
    named.sort_unstable();
    if live != named {
        return Err(format!("live are {live:x?}, but the report names {named:x?}"));
    }
    let objects = live.len() as u64;
    let fits = match *what {
        Destroyed::Shared { users: left } => users > 1 && left == users - 1,
        Destroyed::Released => users == 1 && objects == 0,
        Destroyed::Leaked { objects: lost, pages } => users == 1 && objects > 0 && lost == objects && pages > 0,
    };
    if fits { Ok(()) } else { Err(format!("{users} caches use the slabs, {objects} objects are live, but {what:?}")) }
}

/// Nothing is ever put where the objects of a destroyed cache are.
fn judge_block(cx: &Context<'_>, addr: u64, usable: usize) -> Result<(), String> {
    let end = addr.saturating_add(usable as u64);
    match cx.model.ghost_overlapping(addr, end).filter(|ghost| ghost.why == Why::Leaked) {
        Some(ghost) => Err(format!("[{addr:#x}, {end:#x}) overlaps the leaked {}", ghost.block.describe())),
        None => Ok(()),
    }
}

/// Each root is listed with what its caches add up to, and no other cache is.
fn check_listing(cx: &Context<'_>, inside: &dyn WhiteBox) -> Result<(), String> {
    if cx.model.roots().is_empty() {
        return Ok(());
    }
    let listed = inside.slabinfo();
    for root in cx.model.roots() {
        let Some(info) = listed.iter().find(|info| info.id == root.id) else {
            return Err(format!("slabinfo does not list {:?}", root.id));
        };
        let users: Vec<_> = cx.model.caches().iter().filter(|cache| cache.root == root.id).collect();
        let own = usize::from(cx.model.cache(root.id).is_some());
        let aliases = info.aliases as usize + 1;
        let expected = users.len();
        if aliases != expected || own > expected {
            return Err(format!("{info:?} should have {expected} users"));
        }
        if (info.object_size, info.flags) != (root.object_size, root.spec.flags) {
            return Err(format!("{info:?} should have objects of {} bytes, {:?}", root.object_size, root.spec.flags));
        }
    }
    let is_user = |info: &&CacheInfo| info.name.as_str().starts_with("test-");
    match listed.iter().filter(is_user).find(|info| !cx.model.roots().iter().any(|root| root.id == info.id)) {
        Some(stray) => Err(format!("slabinfo lists {stray:?}, which nobody has")),
        None => Ok(()),
    }
}

/// The frames of leaked objects are kept from everybody else, and the counter knows them.
fn check_leaked(cx: &Context<'_>, inside: &dyn WhiteBox) -> Result<(), String> {
    let frames = (0..cx.model.geometry().frames()).filter(|&f| inside.frame_kind(f) == FrameKind::Leaked);
    let counted = inside.page_use().leaked;
    if !cx.model.has_ghosts() && counted == 0 {
        return Ok(());
    }
    let found = frames.count() as u64;
    if found != counted {
        return Err(format!("{counted} pages count as leaked, {found} frames are"));
    }
    let leaked = cx.model.ghosts().filter(|ghost| ghost.why == Why::Leaked);
    for ghost in leaked {
        let mut frames = cx.model.direct_frames(ghost.block.addr, ghost.block.usable);
        if let Some(frame) = frames.find(|&f| inside.frame_kind(f) != FrameKind::Leaked) {
            return Err(format!("frame {frame:#x} under the leaked {} is not", ghost.block.describe()));
        }
    }
    Ok(())
}

/// Whoever still uses a leaked object finds it as it was.
fn check_contents(cx: &mut Context<'_>) -> Result<(), String> {
    let leaked: Vec<_> = cx.model.ghosts().filter(|g| g.why == Why::Leaked && g.block.written).cloned().collect();
    for ghost in leaked {
        let block = &ghost.block;
        pattern::verify(cx.subject, block.addr, block, block.requested.min(PAGE_SIZE))
            .map_err(|damage| format!("the leaked {} lost its contents: {damage}", block.describe()))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "o20_tests.rs"]
mod tests;
