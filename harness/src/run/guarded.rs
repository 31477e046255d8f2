//! Writes where a program must not write, but only to bytes that a debug cache guards: nobody else is hurt.

use super::session::{Session, Verdict};
use crate::model::Tiers;
use crate::model::debug::Zone;
use kmem::Hardening;
use std::ops::Range;

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
