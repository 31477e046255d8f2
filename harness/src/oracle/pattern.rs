//! What the harness writes into blocks: bytes that depend on the block, its generation and the offset.
//!
//! A constant fill would hide a swapped page or a shifted copy; here every eight bytes are different. Blocks of at most
//! [`FULL`] bytes are filled whole. Of larger ones the first and last [`EDGE`] bytes are written, and one word in each
//! page at an offset that depends on the block: that is where copies, splits and mappings go wrong.

use crate::model::Block;
use crate::subject::{AccessFault, Subject};
use kmem::PAGE_SIZE;
use std::fmt;
use std::ops::Range;

/// Blocks up to this size are filled whole.
const FULL: usize = 256;
/// Bytes written at both ends of larger blocks.
const EDGE: usize = 64;

/// Byte `offset` of a constructed object: what the constructor of test caches writes.
pub const fn constructed_byte(offset: usize) -> u8 {
    0xc5 ^ (offset as u8).wrapping_mul(29)
}

/// After how many bytes a table that memory is compared with starts over.
pub(crate) const PERIOD: usize = 256;
/// What zeroed memory holds.
pub(crate) const ZEROED: [u8; PERIOD] = [0; PERIOD];
/// What a constructed object holds: [`constructed_byte`] of each offset.
pub const CONSTRUCTED: [u8; PERIOD] = {
    let mut table = [0; PERIOD];
    let mut offset = 0;
    while offset < PERIOD {
        table[offset] = constructed_byte(offset);
        offset += 1;
    }
    table
};

/// What was found instead of the pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// Another byte.
    Byte { offset: usize, expected: u8, found: u8 },
    /// No byte: the access faulted.
    Fault(AccessFault),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte { offset, expected, found } => {
                write!(f, "byte {offset} is {found:#04x}, {expected:#04x} was written")
            }
            Self::Fault(fault) => write!(f, "the access faults: {fault:?}"),
        }
    }
}

/// Writes the pattern of a block.
pub(crate) fn write(subject: &mut dyn Subject, block: &Block) -> Result<(), Damage> {
    let key = key(block);
    let mut buffer = [0; FULL];
    for spot in spots(key, block.requested) {
        let bytes = &mut buffer[..spot.len()];
        fill(key, spot.start, bytes);
        subject.write(block.addr + spot.start as u64, bytes).map_err(Damage::Fault)?;
    }
    Ok(())
}

/// Compares the bytes at `addr` with the pattern of a block, but for those of a hole.
pub(crate) fn verify_but(
    subject: &mut dyn Subject,
    addr: u64,
    block: &Block,
    hole: Range<usize>,
) -> Result<(), Damage> {
    let key = key(block);
    let (mut found, mut expected) = ([0; FULL], [0; FULL]);
    for spot in spots(key, block.requested) {
        let (found, expected) = (&mut found[..spot.len()], &mut expected[..spot.len()]);
        subject.read(addr + spot.start as u64, found).map_err(Damage::Fault)?;
        fill(key, spot.start, expected);
        for at in spot.clone().filter(|at| hole.contains(at)) {
            found[at - spot.start] = expected[at - spot.start];
        }
        compare(spot.start, expected, found)?;
    }
    Ok(())
}

/// Compares the first `limit` bytes at `addr` with the pattern of a block.
pub(crate) fn verify(subject: &mut dyn Subject, addr: u64, block: &Block, limit: usize) -> Result<(), Damage> {
    let key = key(block);
    let (mut found, mut expected) = ([0; FULL], [0; FULL]);
    for spot in spots(key, block.requested) {
        let spot = spot.start..spot.end.min(limit);
        if spot.is_empty() {
            continue;
        }
        let (found, expected) = (&mut found[..spot.len()], &mut expected[..spot.len()]);
        subject.read(addr + spot.start as u64, found).map_err(Damage::Fault)?;
        fill(key, spot.start, expected);
        compare(spot.start, expected, found)?;
    }
    Ok(())
}

/// Compares `[addr + range)` with a table that repeats from the start of the range on.
pub(crate) fn verify_bytes(
    subject: &mut dyn Subject,
    addr: u64,
    range: Range<usize>,
    expected: &[u8; PERIOD],
) -> Result<(), Damage> {
    let mut found = [0; PERIOD];
    let mut start = range.start;
    while start < range.end {
        let at = start % PERIOD;
        let found = &mut found[..(PERIOD - at).min(range.end - start)];
        subject.read(addr + start as u64, found).map_err(Damage::Fault)?;
        compare(start, &expected[at..at + found.len()], found)?;
        start += found.len();
    }
    Ok(())
}

fn compare(start: usize, expected: &[u8], found: &[u8]) -> Result<(), Damage> {
    if expected == found {
        return Ok(());
    }
    let differing = expected.iter().zip(found).enumerate().find(|(_, (e, f))| e != f);
    let Some((i, (&expected, &found))) = differing else { return Ok(()) };
    Err(Damage::Byte { offset: start + i, expected, found })
}

/// The ranges of a block of `len` bytes that are written; each starts at a multiple of eight.
fn spots(key: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let full = len <= FULL;
    let head = if full { 0..len } else { 0..EDGE };
    let tail = if full { len..len } else { (len - EDGE) & !7..len };
    let middle = EDGE..tail.start;
    let pages = if full { 0 } else { len.div_ceil(PAGE_SIZE) };
    let words = (0..pages).map(move |page| {
        let start = page * PAGE_SIZE + ((word(key, page as u64) as usize % PAGE_SIZE) & !7);
        start..start + 8
    });
    let words = words.filter(move |w| w.start >= middle.start && w.end <= middle.end);
    std::iter::once(head).chain(words).chain(std::iter::once(tail))
}

fn key(block: &Block) -> u64 {
    word(block.handle, u64::from(block.generation))
}

/// Fills `bytes` with the pattern from `offset`, a multiple of eight, on.
fn fill(key: u64, offset: usize, bytes: &mut [u8]) {
    let first = (offset / 8) as u64;
    let mut chunks = bytes.chunks_exact_mut(8);
    let mut index = first;
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word(key, index).to_le_bytes());
        index += 1;
    }
    let rest = chunks.into_remainder();
    let last = word(key, index).to_le_bytes();
    rest.iter_mut().zip(last).for_each(|(byte, b)| *byte = b);
}

/// Mixes two numbers so that each bit of the result depends on all of theirs.
fn word(key: u64, index: u64) -> u64 {
    let mut x = key ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tier;
    use crate::model::tests::block;
    use crate::oracle::fake::FakeSubject;

    #[test]
    fn a_changed_byte_is_found_where_it_is() {
        let mut subject = FakeSubject::new(64);
        for len in [1, 7, 8, 9, 255, 256] {
            let block = block(Tier::Kmalloc, subject.direct(3), len);
            write(&mut subject, &block).unwrap();
            assert_eq!(verify(&mut subject, block.addr, &block, len), Ok(()));
            for offset in [0, len / 2, len - 1] {
                subject.flip(block.addr + offset as u64);
                let damage = verify(&mut subject, block.addr, &block, len).unwrap_err();
                assert!(matches!(damage, Damage::Byte { offset: o, .. } if o == offset), "{damage}");
                subject.flip(block.addr + offset as u64);
            }
        }
    }

    #[test]
    fn every_page_of_a_large_block_holds_something_and_pages_differ() {
        let mut subject = FakeSubject::new(64);
        let block = block(Tier::Pages, subject.direct(8), 8 * PAGE_SIZE);
        write(&mut subject, &block).unwrap();
        for page in 1..7 {
            let (a, b) = (block.addr + (page * PAGE_SIZE) as u64, block.addr);
            subject.swap_pages(a, b);
            assert!(verify(&mut subject, block.addr, &block, block.requested).is_err(), "page {page}");
            subject.swap_pages(a, b);
        }
        assert_eq!(verify(&mut subject, block.addr, &block, block.requested), Ok(()));
    }

    #[test]
    fn the_pattern_depends_on_handle_and_generation() {
        let mut subject = FakeSubject::new(64);
        let mut block = block(Tier::Kmalloc, subject.direct(3), 8);
        write(&mut subject, &block).unwrap();
        block.generation += 1;
        assert!(verify(&mut subject, block.addr, &block, 8).is_err());
        block.generation -= 1;
        block.handle += 1;
        assert!(verify(&mut subject, block.addr, &block, 8).is_err());
    }
}
