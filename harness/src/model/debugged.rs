//! What the model knows about debug caches beyond their live objects: which objects are free, and which guarded bytes a
//! program has changed.

use super::caches::CacheSpec;
use super::classes::{self, CLASSES, get_order};
use super::debug::{Checks, Damage, DebugLayout, Kept, Zone};
use super::{Block, Model, Tier, freed_address, old_address};
use crate::oracle::Step;
use crate::subject::{Call, Reply, Subject, WhiteBox};
use kmem::{Event, FreeError, Hardening};
use std::ops::Range;

/// How many freed objects are remembered.
const FREED_OBJECTS: usize = 32;

/// An object that was freed and that nobody has since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreedObject {
    pub(crate) addr: u64,
    pub(crate) layout: DebugLayout,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debugged {
    /// The latest last.
    freed: Vec<FreedObject>,
    /// Guarded bytes that do not have their value.
    pub(crate) damage: Damage,
    /// How many slabs had been released after the last step.
    released: u64,
    /// How many slabs had been set aside after the last step.
    aside: u64,
}

/// How many slabs have been set aside.
pub(crate) fn set_aside(inside: &dyn WhiteBox) -> u64 {
    inside.event_count(Event::SlabSetAside)
}

impl Debugged {
    /// Tells whether slabs have been set aside: their frames may be lost.
    pub(crate) fn has_set_aside(&self) -> bool {
        self.aside > 0
    }

    /// The damaged parts of free objects whose caches look at them before they hand them out.
    pub(crate) fn damage_at_alloc(&self) -> usize {
        let looks = |object: &&FreedObject| object.layout.checks().consistency;
        self.freed.iter().filter(looks).map(|object| self.damage.zones(object.addr).len()).sum()
    }

    /// The freed object number `n`, modulo their count.
    pub(crate) fn pick_freed(&self, n: usize) -> Option<FreedObject> {
        self.freed.get(n.checked_rem(self.freed.len())?).copied()
    }

    fn remember(&mut self, addr: u64, layout: DebugLayout) {
        if self.freed.len() == FREED_OBJECTS {
            self.forget(0);
        }
        self.freed.push(FreedObject { addr, layout });
    }

    /// Forgets a freed object; what was damaged there can no longer be told.
    fn forget(&mut self, index: usize) {
        let object = self.freed.remove(index);
        debug_assert!(!self.damage.is_damaged(object.addr), "the damage is forgotten with the object");
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

    /// The damaged parts of a live block, if its cache looks at them when it is freed.
    pub(crate) fn damage_at_free(&self, addr: u64) -> usize {
        let looks = |layout: DebugLayout| layout.checks().consistency;
        let checked = self.block(addr).and_then(|block| self.debug_layout(block)).is_some_and(looks);
        if checked { self.debugged.damage.zones(addr).len() } else { 0 }
    }

    /// Follows what a step means for guarded bytes. Called before the blocks are followed.
    pub(super) fn follow_debugged(&mut self, step: &Step, subject: &dyn Subject) {
        let damage = &mut self.debugged.damage;
        match (&step.call, &step.reply) {
            (Call::Validate, Reply::Size(_)) => {
                damage.repair_all();
            }
            (_, Reply::Rejected(FreeError::Corrupted(addr))) => damage.clear(addr.as_u64()),
            (Call::Ksize { addr }, Reply::Size(usable)) => self.raise(*addr, *usable),
            (call, Reply::Done) => {
                if let Some(addr) = freed_address(call) {
                    self.freed_object(addr);
                }
            }
            (call, Reply::Block { addr, .. }) => {
                match old_address(call) {
                    Some(old) if old == *addr => damage.clear_zone(old, Zone::Spare),
                    Some(old) => self.freed_object(old),
                    None => {}
                }
                self.taken(*addr);
            }
            (_, Reply::Pages(pages)) => pages.iter().for_each(|&addr| self.taken(addr)),
            _ => {}
        }
        self.notice_released_slabs(subject);
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
    fn freed_object(&mut self, addr: u64) {
        self.debugged.damage.clear(addr);
        if let Some(layout) = self.block(addr).and_then(|block| self.debug_layout(block)) {
            self.debugged.remember(addr, layout);
        }
    }

    /// An object that is handed out is painted anew.
    fn taken(&mut self, addr: u64) {
        if let Some(index) = self.debugged.freed.iter().position(|object| object.addr == addr) {
            self.debugged.damage.clear(addr);
            self.debugged.forget(index);
        }
    }

    /// Freed objects may have gone with a slab that was released.
    fn notice_released_slabs(&mut self, subject: &dyn Subject) {
        let Some(inside) = subject.white_box() else { return };
        let released = inside.event_count(Event::SlabRelease);
        let aside = set_aside(inside);
        let was_released = released != std::mem::replace(&mut self.debugged.released, released);
        // A damaged object was met: it is repaired and never comes back, like those around it.
        let was_set_aside = aside != std::mem::replace(&mut self.debugged.aside, aside);
        if was_released || was_set_aside {
            for object in std::mem::take(&mut self.debugged.freed) {
                self.debugged.damage.clear(object.addr);
            }
        }
    }
}
