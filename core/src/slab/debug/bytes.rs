//! Looking for bytes that changed, and giving them their value back.

use super::Inspector;
use crate::addr::{Pfn, PhysAddr};
use crate::bug::{DebugZone, SlabFinding};
use crate::platform::Platform;
use crate::raw::PhysMem;

/// How many bytes are looked at at once.
const CHUNK: usize = 64;

/// Bytes that do not have their value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Damage {
    /// Distance of the first wrong byte.
    first: usize,
    /// Distance of the byte after the last wrong one.
    end: usize,
    /// The first wrong byte.
    found: u8,
}

/// Compares `len` bytes with a value; `None` if all have it.
pub(super) fn damage(mem: &PhysMem, from: PhysAddr, len: usize, value: u8) -> Option<Damage> {
    let mut found: Option<Damage> = None;
    for at in (0..len).step_by(CHUNK) {
        let mut chunk = [value; CHUNK];
        let bytes = chunk.get_mut(..(len - at).min(CHUNK)).unwrap_or_default();
        let was_read = mem.read(from.saturating_add(at), bytes);
        debug_assert!(was_read, "a slab lies outside memory");
        let wrong = |&byte: &u8| byte != value;
        let (Some(first), Some(last)) = (bytes.iter().position(wrong), bytes.iter().rposition(wrong)) else { continue };
        let byte = bytes.get(first).copied().unwrap_or(value);
        let begin = found.map_or(Damage { first: at + first, end: 0, found: byte }, |damage| damage);
        found = Some(Damage { end: at + last + 1, ..begin });
    }
    found
}

impl<P: Platform> Inspector<'_, P> {
    /// Sets bytes to a value.
    pub(super) fn paint(&self, from: PhysAddr, len: usize, value: u8) {
        let painted = self.pages.base.mem.fill(from, len, value);
        debug_assert!(painted, "a slab lies outside memory");
    }

    /// Checks that `len` bytes have a value. If not, tells which have not, gives them the value back, and returns `false`.
    pub(super) fn intact(
        &self,
        head: Pfn,
        object: Option<PhysAddr>,
        zone: DebugZone,
        (from, len): (PhysAddr, usize),
        value: u8,
    ) -> bool {
        let base = &self.pages.base;
        let Some(damage) = damage(&base.mem, from, len, value) else { return true };
        let (first, end) = (from.saturating_add(damage.first), from.saturating_add(damage.end));
        let (from, to) = (base.virt(first), base.virt(end));
        self.tell(head, object, SlabFinding::Overwritten { zone, from, to, found: damage.found, expected: value });
        self.paint(first, damage.end - damage.first, value);
        self.tell(head, object, SlabFinding::Restored { zone, from, to, value });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_wrong_byte_are_found_across_chunks() {
        let mem = PhysMem::heap(1, 0x5a);
        let from = PhysAddr::new(100);
        assert_eq!(damage(&mem, from, 300, 0x5a), None);
        for (first, last) in [(0, 0), (63, 64), (0, 299), (128, 191), (299, 299)] {
            assert!(mem.write(from.saturating_add(first), &[1]) && mem.write(from.saturating_add(last), &[2]));
            let found = if first == last { 2 } else { 1 };
            assert_eq!(damage(&mem, from, 300, 0x5a), Some(Damage { first, end: last + 1, found }));
            assert!(mem.fill(from, 300, 0x5a));
        }
        assert!(mem.write(from.saturating_add(300), &[1]));
        assert_eq!(damage(&mem, from, 300, 0x5a), None, "the byte after the range is not looked at");
        assert_eq!(damage(&mem, from, 0, 0x5a), None);
    }
}
