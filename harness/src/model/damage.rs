//! What a trace did on purpose to memory that is nobody's, and to pages that somebody still shows.

use std::collections::BTreeMap;

/// The byte that free pages are filled with (section 2.7).
pub const PAGE_POISON: u8 = 0xaa;

/// Bytes written to free pages: frame, then offset, then how the byte differs from poison.
#[derive(Debug, Default)]
pub struct Damage {
    frames: BTreeMap<u32, BTreeMap<u16, u8>>,
}

/// What a look at a damaged page must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A single bit of a single byte.
    Bit(u16, u8),
    /// Everything between the first and the last byte that differ.
    Bytes(u16, u16),
}

impl Damage {
    /// Notes that the bits `xor` of a byte were flipped.
    pub fn flip(&mut self, frame: u32, offset: u16, xor: u8) {
        let bytes = self.frames.entry(frame).or_default();
        *bytes.entry(offset).or_default() ^= xor;
        bytes.retain(|_, xor| *xor != 0);
        if bytes.is_empty() {
            self.frames.remove(&frame);
        }
    }

    /// What is wrong with a frame, if anything is.
    pub fn finding(&self, frame: u32) -> Option<Finding> {
        let bytes = self.frames.get(&frame)?;
        let (first, last) = (bytes.keys().next()?, bytes.keys().next_back()?);
        let bits: u32 = bytes.values().map(|xor| xor.count_ones()).sum();
        Some(match bits {
            1 => Finding::Bit(*first, bytes.values().next()?.trailing_zeros() as u8),
            _ => Finding::Bytes(*first, *last),
        })
    }

    /// Forgets a frame: somebody has it now.
    pub fn forget(&mut self, frame: u32) {
        self.frames.remove(&frame);
    }

    /// The first damaged frame of a range.
    pub fn first_in(&self, range: std::ops::Range<u32>) -> Option<u32> {
        self.frames.range(range).next().map(|(frame, _)| *frame)
    }

    /// The damaged frames.
    pub fn frames(&self) -> impl Iterator<Item = u32> {
        self.frames.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_told_from_more_and_flipping_back_heals() {
        let mut damage = Damage::default();
        damage.flip(3, 100, 0x20);
        assert_eq!(damage.finding(3), Some(Finding::Bit(100, 5)));
        damage.flip(3, 7, 1);
        assert_eq!(damage.finding(3), Some(Finding::Bytes(7, 100)));
        damage.flip(3, 100, 0x20);
        assert_eq!(damage.finding(3), Some(Finding::Bit(7, 0)));
        damage.flip(3, 7, 1);
        assert_eq!((damage.finding(3), damage.first_in(0..9)), (None, None));
    }
}
