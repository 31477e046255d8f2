//! What the model knows about debug caches beyond their live objects: which objects are free, and which guarded bytes a
//! program has changed.

use super::caches::CacheSpec;
use super::classes::{self, CLASSES, get_order};
use super::debug::{Checks, Damage, DebugLayout, Kept, Zone};
use super::{Block, Model, RcuCall, Tier, freed_address, old_address};
use crate::oracle::Step;
use crate::subject::{Call, ObjectsCall, Reply, Subject, WhiteBox};
use kmem::{Event, FrameKind, FreeError, Hardening};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// How many freed objects are remembered, but for those that are damaged.
const FREED_OBJECTS: usize = 32;

/// An object that was freed and that nobody has since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreedObject {
    pub(crate) addr: u64,
    pub(crate) layout: DebugLayout,
    /// Whose slab it is in.
    slab: FrameKind,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debugged {
    /// The latest last.
    freed: Vec<FreedObject>,
    /// Guarded bytes that do not have their value.
    pub(crate) damage: Damage,
    /// Guarded bytes that were changed and may have been painted anew since, where nobody could see it.
    unsure: Damage,
    /// Damaged objects that wait for readers, with how many findings their free will tell.
    waiting: BTreeMap<u64, u64>,
    /// Damaged objects that wait for readers and at which nobody looks when they are freed.
    asleep: BTreeSet<u64>,
    /// Whether some of the findings of late frees may have been told already.
    told_unseen: bool,
    /// Neighbourhoods in which objects wait for readers, or did since all of them were awaited.
    unread: BTreeSet<u64>,
    /// How often each event had happened after the last step that may have taken objects from sight.
    seen: Seen,
}

/// log2 of the bytes within which a slab lies as a whole: eight pages.
const NEIGHBOURHOOD: u32 = 15;

/// How many slabs had come, gone, and been set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    made: u64,
    released: u64,
    aside: u64,
}

impl Seen {
    fn now(inside: &dyn WhiteBox) -> Self {
        let count = |event| inside.event_count(event);
        Self {
            made: count(Event::SlabNew),
            released: count(Event::SlabRelease) + count(Event::SlabPutOff),
            aside: count(Event::SlabSetAside),
        }
    }
}

/// How many slabs have been set aside.
pub(crate) fn set_aside(inside: &dyn WhiteBox) -> u64 {
    Seen::now(inside).aside
}

impl Debugged {
    /// Tells whether slabs have been set aside: their frames may be lost.
    pub(crate) fn has_set_aside(&self) -> bool {
        self.seen.aside > 0
    }

    /// The damaged parts of free objects whose caches look at them before they hand them out, at most.
    pub(crate) fn damage_at_alloc(&self) -> usize {
        let looks = |object: &&FreedObject| object.layout.checks().consistency;
        let sure: usize = self.freed.iter().filter(looks).map(|object| self.damage.zones(object.addr).len()).sum();
        sure + self.unsure.parts().len()
    }

    /// How many damaged parts a look at all objects finds: at least, and at most.
    pub(crate) fn damage_of_all(&self) -> (usize, usize) {
        let sure: BTreeSet<(u64, Zone)> = self.damage.parts();
        let least = sure.iter().filter(|(object, _)| !self.may_be_passed_over(*object)).count();
        (least, sure.union(&self.unsure.parts()).count())
    }

    /// An object that waits for readers is looked at by nobody. A free one of a slab that was set aside is on no list, and so
    /// looks like one that waits for readers, as long as one of its slab does. Nobody looks at it then. Which slab that was
    /// cannot be told.
    pub(crate) fn may_be_passed_over(&self, object: u64) -> bool {
        let is_aside = || self.seen.aside > 0 && self.unread.contains(&(object >> NEIGHBOURHOOD));
        self.asleep.contains(&object) || is_aside()
    }

    /// All objects have been looked at, and repaired but for those that were passed over.
    fn validated(&mut self) {
        let objects = self.damage.objects().into_iter().chain(self.unsure.objects());
        let passed: Vec<u64> = objects.filter(|&object| self.may_be_passed_over(object)).collect();
        let (mut damage, mut kept) = (std::mem::take(&mut self.damage), Damage::default());
        passed.iter().for_each(|&object| damage.move_to(object, &mut kept));
        passed.iter().for_each(|&object| self.unsure.move_to(object, &mut kept));
        self.unsure = kept;
    }

    /// An object waits for readers from now on. If its cache looks at it when it is freed, its damage is told then; else
    /// it is painted then, but for what only aligns.
    fn put_off(&mut self, object: u64, layout: DebugLayout) {
        self.unread.insert(object >> NEIGHBOURHOOD);
        let parts = self.damage.zones(object).len() as u64;
        if !layout.checks().consistency {
            self.painted(object);
            // Also where the damage is in doubt: whoever looks while it waits must not take it for repaired.
            if self.damage.is_damaged(object) || self.unsure.is_damaged(object) {
                self.asleep.insert(object);
            }
            return self.damage.move_to(object, &mut self.unsure);
        }
        if parts > 0 {
            self.waiting.insert(object, 2 * parts + 1);
        }
        self.repaired(object);
    }

    /// The most findings that frees of objects which waited for readers can tell.
    pub(crate) fn most_told_late(&self) -> u64 {
        self.waiting.values().sum()
    }

    /// Follows findings told by such frees: they are those of some of the objects, each of which tells all of its own. `false`
    /// if no choice of them tells as much.
    pub(crate) fn told_late(&mut self, told: u64) -> bool {
        let Some(chosen) = choose(&self.waiting, told) else { return false };
        self.waiting.retain(|object, _| !chosen.contains(object));
        true
    }

    /// Among findings about slabs that were set aside some of such frees may have been; which ones cannot be told.
    pub(crate) fn may_have_told_late(&mut self) {
        self.told_unseen = true;
    }

    /// Nothing waits for readers any more. Returns a damaged object of which nothing was told.
    pub(crate) fn all_awaited(&mut self) -> Option<u64> {
        self.unread.clear();
        self.asleep.clear();
        let in_doubt = std::mem::take(&mut self.told_unseen);
        std::mem::take(&mut self.waiting).into_keys().next().filter(|_| !in_doubt)
    }

    /// Notes that a byte of an object's part is to be changed; `false` if it is, or may be, changed already.
    pub(crate) fn change(&mut self, object: u64, zone: Zone, byte: u64) -> bool {
        !self.unsure.has(object, zone, byte) && self.damage.add(object, zone, byte)
    }

    /// The freed object number `n`, modulo their count.
    pub(crate) fn pick_freed(&self, n: usize) -> Option<FreedObject> {
        self.freed.get(n.checked_rem(self.freed.len())?).copied()
    }

    /// An object has been painted anew.
    fn painted(&mut self, addr: u64) {
        self.damage.clear_painted(addr);
        self.unsure.clear_painted(addr);
    }

    /// All of an object's slot has been repaired, or is no longer one.
    fn repaired(&mut self, addr: u64) {
        self.damage.clear(addr);
        self.unsure.clear(addr);
    }

    fn remember(&mut self, object: FreedObject) {
        self.freed.retain(|known| known.addr != object.addr);
        self.freed.push(object);
        // One that is damaged stays: it may yet be met.
        let is_sound = |object: &FreedObject| !self.damage.is_damaged(object.addr);
        if self.freed.len() > FREED_OBJECTS
            && let Some(oldest) = self.freed.iter().position(is_sound)
        {
            self.freed.remove(oldest);
        }
    }

    /// What became of free objects cannot be told any more.
    fn lose_sight(&mut self) {
        for object in std::mem::take(&mut self.freed) {
            self.damage.move_to(object.addr, &mut self.unsure);
        }
    }
}

impl Model {
    /// How the object of a block is guarded, if it is one of a debug cache.
    pub(crate) fn debug_layout(&self, block: &Block) -> Option<DebugLayout> {
        match (block.tier, block.cache) {
            (Tier::Cache, Some(cache)) => self.cache(cache)?.spec.debug_layout().filter(|_| self.is_tight()),
            // An object of a class has the size of the class, however it is guarded.
            (Tier::Kmalloc, _) => self.class_layout(block.usable),
            _ => None,
        }
    }

    /// How the objects of a class are guarded on this machine.
    pub(crate) fn class_layout(&self, class: usize) -> Option<DebugLayout> {
        let checks = Checks::from_bits(self.geometry.slub_debug.bits() | self.checks_of_all());
        if !self.is_tight() || !checks.any() || !CLASSES.contains(&class) {
            return None;
        }
        let layout = DebugLayout::new(class, classes::kmalloc_align(class), checks, Kept::Nothing, true);
        // A class whose guarded objects fit no block does without.
        (get_order(layout.stride()) <= self.geometry.max_order.get()).then_some(layout)
    }

    /// The class that serves a request which may not wait for a lock. One whose objects are guarded would have to: the next
    /// one is asked then, and only that.
    pub(crate) fn nolock_class(&self, size: usize) -> Option<usize> {
        let largest = classes::kmalloc_max(self.geometry.max_order.get());
        let from = CLASSES.iter().position(|&class| size > 0 && size <= class)?;
        let exists = |class: &&usize| **class <= largest;
        let asked = CLASSES.iter().skip(from).take(2).filter(exists);
        asked.copied().find(|&class| self.class_layout(class).is_none())
    }

    /// What a cache is that was asked to be like this: on some machines every one is checked.
    pub(crate) fn effective(&self, spec: &CacheSpec) -> CacheSpec {
        CacheSpec { flags: spec.flags | Checks::from_bits(self.checks_of_all()).to_flags(), ..*spec }
    }

    /// What every cache checks on this machine, as bits of [`Checks::from_bits`].
    pub(crate) fn checks_of_all(&self) -> u8 {
        if self.geometry.hardening == Hardening::Paranoid { 0b1111 } else { 0 }
    }

    /// The distance between the objects of a class.
    pub(crate) fn class_stride(&self, class: usize) -> usize {
        self.class_layout(class).map_or(class, |layout| layout.stride())
    }

    /// The guarded parts of a live block.
    pub(crate) fn guarded(&self, block: &Block) -> Vec<(Zone, Range<i64>)> {
        let layout = self.debug_layout(block);
        layout.map_or(Vec::new(), |layout| layout.guarded_live(block.asked.unwrap_or(block.usable)))
    }

    /// The damaged parts of a live block, if its cache looks at them when the call frees it.
    pub(crate) fn damage_at_free(&self, call: &Call, addr: u64) -> usize {
        let looks = |layout: DebugLayout| layout.checks().consistency;
        let checked = self.block(addr).and_then(|block| self.debug_layout(block)).is_some_and(looks);
        let mut zones = if checked { self.debugged.damage.zones(addr) } else { BTreeSet::new() };
        if matches!(call, Call::KfreeSensitive { .. }) {
            // It asks how large the block is, and the rest of the object becomes the user's.
            zones.remove(&Zone::Spare);
        }
        zones.len()
    }

    /// Follows what a step means for guarded bytes. Called before the blocks are followed.
    pub(super) fn follow_debugged(&mut self, step: &Step, subject: &dyn Subject) {
        // Slabs that went during the call took their damage along, also where somebody has their frames again.
        self.notice_slabs(subject);
        let debugged = &mut self.debugged;
        match (&step.call, &step.reply) {
            (Call::Validate, Reply::Size(_)) => debugged.validated(),
            (call, Reply::Rejected(FreeError::Corrupted(addr))) => {
                debugged.repaired(addr.as_u64());
                if matches!(call, Call::KfreeSensitive { .. }) {
                    let usable = self.block(addr.as_u64()).map_or(0, |block| block.usable);
                    self.raise(addr.as_u64(), usable);
                }
            }
            (Call::Ksize { addr }, Reply::Size(usable)) => self.raise(*addr, *usable),
            (Call::Objects(call), reply) if takes_unseen(call, reply) => debugged.lose_sight(),
            (call, Reply::Done) => {
                if let Some(addr) = freed_address(call) {
                    self.freed_object(addr, subject);
                }
            }
            (call, Reply::Block { addr, .. }) => match old_address(call) {
                Some(old) if old == *addr => debugged.damage.clear_zone(old, Zone::Spare),
                Some(old) => {
                    self.freed_object(old, subject);
                    self.taken(*addr);
                }
                None => self.taken(*addr),
            },
            (_, Reply::Pages(pages)) => pages.iter().for_each(|&addr| self.taken(addr)),
            _ => {}
        }
    }

    /// Follows an object that is given up until readers have gone. Called before what was told is judged: where nothing can be
    /// noted, the caller waits, and the object is freed in the same call.
    pub(crate) fn put_off_debugged(&mut self, call: &RcuCall) {
        let object = call.block().and_then(|(addr, _)| self.block(addr));
        if let Some((addr, layout)) = object.and_then(|object| Some((object.addr, self.debug_layout(object)?))) {
            self.debugged.put_off(addr, layout);
        }
    }

    /// `ksize` gives the rest of the object to the user.
    fn raise(&mut self, addr: u64, usable: usize) {
        let Some(block) = self.live.get_mut(addr).filter(|block| block.asked.is_some()) else { return };
        block.asked = Some(usable);
        // What is between the two sizes is painted, not zeroed.
        block.zero_chain = false;
        self.debugged.damage.clear_zone(addr, Zone::Spare);
    }

    /// A free paints the object anew.
    fn freed_object(&mut self, addr: u64, subject: &dyn Subject) {
        let layout = self.block(addr).and_then(|block| self.debug_layout(block));
        let slab = self.slab_of(addr, subject);
        match layout {
            // All of it was looked at, or its slab went with it.
            Some(layout) if layout.checks().consistency || slab.is_none() => self.debugged.repaired(addr),
            _ => self.debugged.painted(addr),
        }
        if let (Some(layout), Some(slab)) = (layout, slab) {
            self.debugged.remember(FreedObject { addr, layout, slab });
        }
    }

    /// An object that is handed out is painted anew.
    fn taken(&mut self, addr: u64) {
        self.debugged.painted(addr);
        self.debugged.freed.retain(|object| object.addr != addr);
    }

    /// Whose slab an address of the direct map is in.
    fn slab_of(&self, addr: u64, subject: &dyn Subject) -> Option<FrameKind> {
        let kind = subject.white_box()?.frame_kind(self.direct_frames(addr, 1).start);
        matches!(kind, FrameKind::Slab(_)).then_some(kind)
    }

    /// Damage goes with the slab that it is in. A damaged object that was met is repaired and costs its slab; which one
    /// that was, and whether frames came back as another slab, nobody sees.
    pub(crate) fn notice_slabs(&mut self, subject: &dyn Subject) {
        let Some(inside) = subject.white_box() else { return };
        let now = Seen::now(inside);
        let before = std::mem::replace(&mut self.debugged.seen, now);
        let is_there = |object: &FreedObject| self.slab_of(object.addr, subject) == Some(object.slab);
        let (freed, gone): (Vec<FreedObject>, Vec<FreedObject>) =
            self.debugged.freed.iter().copied().partition(is_there);
        let damaged = self.debugged.damage.objects().into_iter().chain(self.debugged.unsure.objects());
        let leaked: Vec<u64> = damaged.filter(|&addr| self.slab_of(addr, subject).is_none()).collect();
        self.debugged.freed = freed;
        gone.iter().map(|object| object.addr).chain(leaked).for_each(|addr| self.debugged.repaired(addr));
        let renewed = now.released > before.released && now.made > before.made;
        if renewed || now.aside > before.aside {
            self.debugged.lose_sight();
        }
    }
}

/// Objects whose findings together are as many.
fn choose(waiting: &BTreeMap<u64, u64>, told: u64) -> Option<BTreeSet<u64>> {
    let mut reached: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::from([(0, BTreeSet::new())]);
    for (&object, &findings) in waiting {
        for (sum, chosen) in reached.clone() {
            let with = || chosen.iter().copied().chain([object]).collect();
            reached.entry(sum + findings).or_insert_with(with);
        }
        reached.retain(|&sum, _| sum <= told);
    }
    reached.remove(&told)
}

/// Tells whether a call took or gave objects that it does not name.
fn takes_unseen(call: &ObjectsCall, reply: &Reply) -> bool {
    let collects = matches!(
        call,
        ObjectsCall::AllocBulk { .. } | ObjectsCall::PrefillSheaf { .. } | ObjectsCall::RefillSheaf { .. }
    );
    match reply {
        Reply::Refused(_) | Reply::Sheaf(_) | Reply::Size(_) => collects,
        _ => matches!(call, ObjectsCall::ReturnSheaf { .. }),
    }
}
