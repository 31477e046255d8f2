//! Writes where a program must not write, but only to bytes that a debug cache guards: nobody else is hurt.

use super::session::{Session, Verdict};
use crate::model::Tiers;
use crate::model::debug::{DebugLayout, Zone};
use crate::oracle::{BrokenLink, Violation};
use crate::subject::Call;
use kmem::Hardening;
use std::ops::Range;

/// A bit of an address that leads out of every slab.
const ELSEWHERE: u64 = 1 << 62;
/// A bit of an address that leads between two objects, mostly of the same slab.
const BESIDE: u64 = 1 << 2;

impl Session {
    /// Changes a guarded byte around a live object.
    pub(super) fn overflow(&mut self, pick: usize, at: u64) -> Verdict {
        let blocks = Tiers::IN_SLABS;
        let Some(block) = self.model.pick(blocks, pick) else { return Ok(()) };
        let (addr, parts) = (block.addr, self.model.guarded(block));
        self.change(addr, &parts, at)
    }

    /// Changes a guarded byte of an object that is free. Not on a machine with a quarantine, where nobody knows when the
    /// object leaves it and is looked at.
    pub(super) fn write_freed(&mut self, pick: usize, at: u64) -> Verdict {
        let Some(object) = self.model.debugged.pick_freed(pick) else { return Ok(()) };
        if self.model.geometry().hardening == Hardening::Paranoid {
            return Ok(());
        }
        self.change(object.addr, &object.layout.guarded_free(), at)
    }

    /// Leads the free pointer of an object nowhere, has all caches validated, and repairs it, as the kernel's own test of
    /// that does. Not where validation may pass the object over: on a machine with a quarantine, where it may be on no list, and
    /// in a slab that was set aside; nor on one that does not know which objects are live: there what was cut off stays lost.
    pub(super) fn break_link(&mut self, pick: usize, freed: bool) -> Verdict {
        let object = match freed {
            true => self.model.debugged.pick_freed(pick).map(|object| (object.addr, object.layout)),
            false => self.live_debugged(pick),
        };
        let Some(link) = object.and_then(|(addr, layout)| Some(addr + layout.link()? as u64)) else { return Ok(()) };
        let is_seen = object.is_some_and(|(addr, _)| !self.model.debugged.may_be_passed_over(addr));
        if self.model.geometry().hardening != Hardening::Checked || !is_seen {
            return Ok(());
        }
        // What else is damaged is told of before.
        self.call(Call::Validate)?;
        let wrong = if pick.is_multiple_of(2) { ELSEWHERE } else { BESIDE };
        let before = self.replace_link(link, |word| word ^ wrong)?;
        self.model.notes.link = Some(if freed { BrokenLink::Free } else { BrokenLink::Live });
        self.call(Call::Validate)?;
        if freed {
            self.replace_link(link, |_| before)?;
            self.call(Call::Validate)?;
        }
        self.call(Call::Validate).map(drop)
    }

    /// A live object of a debug cache.
    fn live_debugged(&self, pick: usize) -> Option<(u64, DebugLayout)> {
        let block = self.model.pick(Tiers::IN_SLABS, pick)?;
        Some((block.addr, self.model.debug_layout(block)?))
    }

    /// Changes a free pointer; returns what it was.
    fn replace_link(&mut self, at: u64, new: impl FnOnce(u64) -> u64) -> Result<u64, Violation> {
        let mut word = [0; 8];
        self.access(|cx| {
            let read = cx.subject.read(at, &mut word);
            let written = read.and_then(|()| cx.subject.write(at, &new(u64::from_le_bytes(word)).to_le_bytes()));
            debug_assert!(written.is_ok(), "free pointers are in the direct map");
            Ok(())
        })?;
        Ok(u64::from_le_bytes(word))
    }

    fn change(&mut self, object: u64, parts: &[(Zone, Range<i64>)], at: u64) -> Verdict {
        let total: u64 = parts.iter().map(|(_, part)| (part.end - part.start) as u64).sum();
        let Some(mut nth) = at.checked_rem(total) else { return Ok(()) };
        for (zone, part) in parts {
            let length = (part.end - part.start) as u64;
            if nth < length {
                return self.flip(object, *zone, object.wrapping_add_signed(part.start + nth as i64));
            }
            nth -= length;
        }
        Ok(())
    }

    /// Flips the bits of a byte, unless that was done already, or nobody knows.
    fn flip(&mut self, object: u64, zone: Zone, byte: u64) -> Verdict {
        if !self.model.debugged.change(object, zone, byte) {
            return Ok(());
        }
        self.access(|cx| {
            let mut value = [0];
            let read = cx.subject.read(byte, &mut value);
            let written = read.and_then(|()| cx.subject.write(byte, &[!value[0]]));
            debug_assert!(written.is_ok(), "guarded bytes are in the direct map");
            Ok(())
        })
    }
}
