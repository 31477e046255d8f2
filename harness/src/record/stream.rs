//! Reads what `kmem-preload` wrote down of a process: `preload/src/record.rs` has the format.

use super::log::Event;

/// The first bytes of a recording.
const MAGIC: &[u8] = b"kmh1";

/// The events of a recording, and how many threads it has; an event that is cut off, or makes no sense, ends it. `None` if it is
/// no recording.
pub fn events(bytes: &[u8]) -> Option<(Vec<Event>, u64)> {
    let mut reader = Reader { bytes: bytes.strip_prefix(MAGIC)?, last: 0 };
    let (mut events, mut here, mut threads) = (Vec::new(), 0, 0);
    while let Some((thread, event)) = reader.event() {
        if thread != here {
            events.push(Event::Thread { number: thread });
            here = thread;
        }
        threads = threads.max(thread + 1);
        events.push(event);
    }
    Some((events, threads))
}

struct Reader<'b> {
    bytes: &'b [u8],
    /// The block of the event before, as an address divided by 16.
    last: u64,
}

impl Reader<'_> {
    /// The next event, and the number of its thread.
    fn event(&mut self) -> Option<(u64, Event)> {
        let kind = self.byte()?;
        // Zeros follow the last event.
        if kind == 0 {
            return None;
        }
        let thread = self.number()?;
        let event = match kind {
            1 => {
                let (align, size) = (self.number()?, self.number()?);
                // What C aligns every block to is not what the program asked for.
                let asked = if align <= 4 { 1 } else { 1_u64.checked_shl(align.try_into().ok()?)? };
                Event::Alloc { size: super::log::aligned(size, asked), addr: self.block()? }
            }
            2 => Event::ZeroedArray { n: self.number()?, size: self.number()?, addr: self.block()? },
            3 => Event::Realloc { from: self.block()?, size: self.number()?, addr: self.block()? },
            4 => Event::Free { addr: self.block()? },
            _ => return None,
        };
        Some((thread, event))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    /// A number of 7 bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// A block's address, from the way to it from the one before.
    fn block(&mut self) -> Option<u64> {
        let zigzag = self.number()?;
        let way = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
        self.last = self.last.wrapping_add(way);
        Some(self.last.wrapping_mul(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads: 100 bytes at a multiple of 64 at address 0x20; an array of 3 x 200 zeros at 0x10; the first resized to 300 at 0x40; freed.
    const RECORDING: &[u8] =
        b"kmh1\x01\x00\x06\x64\x04\x02\x01\x03\xc8\x01\x01\x03\x00\x02\xac\x02\x04\x04\x00\x00\x00\x00";

    #[test]
    fn a_recording_is_read_event_by_event() {
        let (events, threads) = events(RECORDING).unwrap();
        let expected = [
            Event::Alloc { addr: 0x20, size: 128 },
            Event::Thread { number: 1 },
            Event::ZeroedArray { addr: 0x10, n: 3, size: 200 },
            Event::Thread { number: 0 },
            Event::Realloc { from: 0x20, addr: 0x40, size: 300 },
            Event::Free { addr: 0x40 },
        ];
        assert_eq!((events.as_slice(), threads), (&expected[..], 2));
    }

    #[test]
    fn what_is_cut_off_ends_with_the_last_whole_event_and_nothing_panics() {
        for len in 0..RECORDING.len() {
            let cut = events(&RECORDING[..len]);
            assert_eq!(cut.is_some(), len >= 4);
        }
        assert_eq!(events(b"kmh2\x01"), None);
        assert_eq!(events(b"kmh1\x09\x00\x04"), Some((Vec::new(), 0)));
        assert_eq!(events(&[b"kmh1\x04".as_slice(), &[0xff; 40]].concat()), Some((Vec::new(), 0)));
    }
}
