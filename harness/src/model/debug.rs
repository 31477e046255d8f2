//! Debug caches, derived again from section 2.7 of the contract: where the guarded bytes of an object are, and what damage
//! to them must be told.

use kmem::SlabFlags;
use std::collections::BTreeSet;
use std::ops::Range;

/// What a debug cache checks; the bits are those of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checks {
    /// At each allocation and free.
    pub consistency: bool,
    /// Bytes around objects.
    pub red_zone: bool,
    /// Bytes of free objects and padding.
    pub poison: bool,
    /// Who had the object, and of classes how many bytes were asked for.
    pub store_user: bool,
    /// Allocations and frees are told.
    pub trace: bool,
}

impl Checks {
    /// Reads the bits of a trace: F, Z, P, U, T from the lowest on.
    pub fn from_bits(bits: u8) -> Self {
        let bit = |n: u8| bits >> n & 1 == 1;
        Self { consistency: bit(0), red_zone: bit(1), poison: bit(2), store_user: bit(3), trace: bit(4) }
    }

    const FLAGS: [SlabFlags; 5] = [
        SlabFlags::CONSISTENCY_CHECKS,
        SlabFlags::RED_ZONE,
        SlabFlags::POISON,
        SlabFlags::STORE_USER,
        SlabFlags::TRACE,
    ];

    /// Reads the debug flags of a cache.
    pub fn of(flags: SlabFlags) -> Self {
        let bit = |n: usize| u8::from(flags.contains(Self::FLAGS[n])) << n;
        Self::from_bits((0..5).fold(0, |bits, n| bits | bit(n)))
    }

    /// Returns the debug flags of a cache.
    pub fn to_flags(self) -> SlabFlags {
        let Self { consistency, red_zone, poison, store_user, trace } = self;
        let chosen = [consistency, red_zone, poison, store_user, trace];
        let flags = Self::FLAGS.into_iter().zip(chosen).filter(|&(_, on)| on);
        flags.fold(SlabFlags::empty(), |all, (flag, _)| all | flag)
    }

    /// Tells whether anything is checked or told.
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// A part of a slot whose damage makes one report and one repair.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Zone {
    /// Before the object.
    Left,
    /// Behind the object.
    Right,
    /// Without red zones, what aligns what is kept behind the object.
    Gap,
    /// Behind the bytes that were asked for.
    Spare,
    /// A free object.
    Body,
    /// Its last byte.
    Last,
    /// Behind everything that is kept.
    Padding,
}

/// Bytes of one record of who had an object.
const TRACK: usize = 16;
const WORD: usize = 8;

/// What of an object must outlive its free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// What a constructor wrote, and the free pointer has no place in it.
    Constructed,
    /// What a constructor wrote, but for a place that the creator named.
    ConstructedAround,
}

/// Where the parts of a slot are, from the object's first byte on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugLayout {
    checks: Checks,
    object_size: usize,
    /// The red zone before the object.
    left: usize,
    /// End of the red zone behind it.
    inuse: usize,
    padding: (usize, usize),
    /// Whether free objects are filled.
    fills: bool,
    /// Whether the size of a request is kept.
    keeps_size: bool,
    /// Whether something is kept behind the object.
    keeps_any: bool,
    /// Where the free pointer is, if it is behind the object.
    link: Option<usize>,
}

impl DebugLayout {
    /// Lays out an object of a cache; `kept` tells whether its free pointer may not overwrite it, `class` whether it is one of
    /// `kmalloc`'s.
    pub fn new(object_size: usize, align: usize, checks: Checks, kept: Kept, class: bool) -> Self {
        let up = |n: usize, to: usize| n.div_ceil(to) * to;
        let mut inuse = up(object_size, WORD);
        if checks.red_zone && inuse == object_size {
            inuse += WORD;
        }
        let keeps_size = checks.store_user && class;
        let pointer_outside = checks.poison
            || kept == Kept::Constructed
            || object_size == 0
            || (checks.red_zone && (object_size < WORD || keeps_size));
        let mut end = inuse;
        end += if pointer_outside { WORD } else { 0 };
        end += if checks.store_user { 2 * TRACK } else { 0 };
        end += if keeps_size { WORD } else { 0 };
        let left = if checks.red_zone { align.max(WORD) } else { 0 };
        let pad = if checks.red_zone { WORD } else { 0 };
        let stride = up(end.max(WORD) + pad + left, align);
        Self {
            checks,
            object_size,
            left,
            inuse,
            padding: (end, stride - left),
            fills: checks.poison && kept == Kept::Nothing,
            keeps_size,
            keeps_any: end > inuse,
            link: pointer_outside.then_some(inuse),
        }
    }

    /// Bytes from one object to the next.
    pub fn stride(&self) -> usize {
        self.left + self.padding.1
    }

    /// Bytes that the user may have.
    pub fn usable(&self) -> usize {
        match self.checks {
            Checks { red_zone: true, .. } | Checks { poison: true, .. } => self.object_size,
            _ if self.keeps_any => self.inuse,
            _ => self.stride(),
        }
    }

    /// Whether the size of a request is kept, and the rest of the object is not the user's.
    pub fn keeps_size(&self) -> bool {
        self.keeps_size
    }

    /// Where the free pointer is; `None` if it is in the object, where nobody checks it while a user has it.
    pub fn link(&self) -> Option<usize> {
        self.link
    }

    /// What is checked.
    pub fn checks(&self) -> Checks {
        self.checks
    }

    /// The guarded parts of a live object of which `asked` bytes belong to the user, as offsets from its first byte.
    pub fn guarded_live(&self, asked: usize) -> Vec<(Zone, Range<i64>)> {
        let mut parts = self.around();
        if self.checks.red_zone && self.keeps_size {
            parts.push((Zone::Spare, range(asked, self.object_size)));
        }
        parts.retain(|(_, range)| !range.is_empty());
        parts
    }

    /// The guarded parts of a free object.
    pub fn guarded_free(&self) -> Vec<(Zone, Range<i64>)> {
        let mut parts = self.around();
        if self.fills && self.object_size > 0 {
            parts.push((Zone::Body, range(0, self.object_size - 1)));
            parts.push((Zone::Last, range(self.object_size - 1, self.object_size)));
        }
        parts.retain(|(_, range)| !range.is_empty());
        parts
    }

    fn around(&self) -> Vec<(Zone, Range<i64>)> {
        let mut parts = Vec::new();
        if self.checks.red_zone {
            parts.push((Zone::Left, -(self.left as i64)..0));
        }
        let behind = range(self.object_size, self.inuse);
        if self.checks.red_zone {
            parts.push((Zone::Right, behind));
        } else if self.checks.poison {
            parts.push((Zone::Gap, behind));
        }
        if self.checks.poison {
            parts.push((Zone::Padding, range(self.padding.0, self.padding.1)));
        }
        parts
    }
}

fn range(from: usize, to: usize) -> Range<i64> {
    from as i64..to as i64
}

/// Damage that was done and that nobody has repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    bytes: BTreeSet<(u64, Zone, u64)>,
}

impl Damage {
    /// Notes that a byte of an object's part was changed; `false` if it is changed already.
    pub fn add(&mut self, object: u64, zone: Zone, byte: u64) -> bool {
        self.bytes.insert((object, zone, byte))
    }

    /// Tells whether a byte is changed.
    pub fn has(&self, object: u64, zone: Zone, byte: u64) -> bool {
        self.bytes.contains(&(object, zone, byte))
    }

    /// The damaged parts of an object.
    pub fn zones(&self, object: u64) -> BTreeSet<Zone> {
        self.of(object).map(|&(_, zone, _)| zone).collect()
    }

    /// Forgets the damage to an object: it was repaired, or nobody looks any more.
    pub fn clear(&mut self, object: u64) {
        self.bytes.retain(|&(of, ..)| of != object);
    }

    /// Forgets the damage to what is painted anew whenever an object changes hands. What only aligns is painted once, when
    /// its slab is made.
    pub fn clear_painted(&mut self, object: u64) {
        self.bytes.retain(|&(of, zone, _)| of != object || matches!(zone, Zone::Gap | Zone::Padding));
    }

    /// Forgets the damage to one part of an object.
    pub fn clear_zone(&mut self, object: u64, zone: Zone) {
        self.bytes.retain(|&(of, part, _)| (of, part) != (object, zone));
    }

    /// The damaged parts of all objects.
    pub fn parts(&self) -> BTreeSet<(u64, Zone)> {
        self.bytes.iter().map(|&(object, zone, _)| (object, zone)).collect()
    }

    /// The damaged objects.
    pub fn objects(&self) -> BTreeSet<u64> {
        self.bytes.iter().map(|&(object, ..)| object).collect()
    }

    /// Moves the damage to an object.
    pub fn move_to(&mut self, object: u64, other: &mut Self) {
        other.bytes.extend(self.of(object));
        self.clear(object);
    }

    /// Tells whether an object is damaged.
    pub fn is_damaged(&self, object: u64) -> bool {
        self.of(object).next().is_some()
    }

    fn of(&self, object: u64) -> impl Iterator<Item = &(u64, Zone, u64)> {
        self.bytes.range((object, Zone::Left, 0)..).take_while(move |&&(of, ..)| of == object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(letters: &str) -> Checks {
        let bit = |letter, n| u8::from(letters.contains(letter)) << n;
        Checks::from_bits(bit('F', 0) | bit('Z', 1) | bit('P', 2) | bit('U', 3) | bit('T', 4))
    }

    #[test]
    fn strides_follow_the_order_of_the_contract() {
        // left + object + right + pointer + tracks + size + pad, rounded to the alignment.
        for (size, align, letters, class, stride) in [
            (64, 8, "Z", false, 8 + 64 + 8 + 8),
            (64, 8, "P", false, 64 + 8),
            (61, 8, "Z", false, 8 + 64 + 8),
            (64, 8, "F", false, 64),
            (32, 32, "ZPU", true, 128),
            (64, 64, "ZU", true, 192),
            (8, 8, "T", true, 8),
        ] {
            let layout = DebugLayout::new(size, align, checks(letters), Kept::Nothing, class);
            assert_eq!(layout.stride(), stride, "{size} {letters}");
        }
    }

    #[test]
    fn guarded_parts_do_not_overlap_what_the_user_has() {
        let layout = DebugLayout::new(32, 32, checks("ZPU"), Kept::Nothing, true);
        assert_eq!((layout.usable(), layout.keeps_size()), (32, true));
        let live = layout.guarded_live(18);
        assert_eq!(live[0], (Zone::Left, -32..0));
        assert_eq!(live[1], (Zone::Right, 32..40));
        assert_eq!(live[2], (Zone::Padding, 88..96));
        assert_eq!(live[3], (Zone::Spare, 18..32));
        assert_eq!(layout.guarded_free().len(), 5);
    }

    #[test]
    fn damage_is_counted_by_part_and_forgotten_with_its_object() {
        let mut damage = Damage::default();
        assert!(damage.add(64, Zone::Right, 70) && damage.add(64, Zone::Right, 71) && damage.add(64, Zone::Left, 60));
        assert!(damage.add(128, Zone::Body, 130) && !damage.add(128, Zone::Body, 130));
        assert_eq!(damage.zones(64).len(), 2);
        damage.add(64, Zone::Padding, 80);
        damage.clear_painted(64);
        assert_eq!(damage.zones(64), BTreeSet::from([Zone::Padding]));
        damage.add(64, Zone::Left, 60);
        damage.clear_zone(64, Zone::Left);
        assert_eq!(damage.zones(64).len(), 1);
        damage.clear(64);
        assert!(!damage.is_damaged(64) && damage.is_damaged(128));
        assert_eq!((damage.parts().len(), damage.objects().len()), (1, 1));
        let mut other = Damage::default();
        damage.move_to(128, &mut other);
        assert!(damage.parts().is_empty() && other.has(128, Zone::Body, 130));
    }
}
