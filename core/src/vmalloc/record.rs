//! How areas are kept: each in a slab object of 128 bytes, with its place in the window's tree and its
//! link in a chain of live areas.
//!
//! ```text
//! word  0           1        2     3      4      5      6
//!       height:gap  max_gap  left  right  start  span   next
//!       place in the window's tree:       fixed while   chain of live areas of
//!       lock `space`                      in the tree   its vmap node: its lock
//! word  7                  8                  9               10                          11   12..15
//!       state:flags:pages  align:leaf:mapped  requested/next  free:dirty:unflushed pages  CPU  unused
//!       the area itself: the node's lock, or whoever alone may touch an area in its state
//! ```
//!
//! Nobody writes a word of which another lock is the master: when the neighbours of an area are rebalanced in the tree,
//! its state and its link stay untouched.

use super::area::{Link, Node, State};
use super::flags::VmFlags;
use super::ram::Usage;
use super::tree::{Spot, Store};
use crate::addr::PhysAddr;
use crate::order::Order;
use crate::raw::PhysMem;

/// Bytes of a record: two cache lines.
pub(super) const RECORD_BYTES: usize = 128;

// First words of the parts.
const WINDOW: u64 = 0;
const FIXED: u64 = 4;
const LIVE: u64 = 6;
const AREA: u64 = 7;
const USAGE: u64 = 10;

const LOW_56: u64 = (1 << 56) - 1;
/// A half of the address space has 2^35 pages.
const LOW_40: u64 = (1 << 40) - 1;

/// Records in slab objects.
#[derive(Clone, Copy)]
pub(super) struct Records<'b> {
    pub(super) mem: &'b PhysMem,
}

impl<'b> Records<'b> {
    /// Reads an area; a link that leads nowhere reads as one of no pages.
    pub(super) fn load(self, at: Link) -> Node {
        let start = self.start(at);
        let [state, mapped, word] = words(self.mem, at, AREA).unwrap_or_default();
        Node {
            start,
            pages: state & LOW_40,
            mapped: mapped & LOW_40,
            flags: VmFlags::from_bits_truncate((state >> 40) as u16),
            leaf: Order::new((mapped >> 48) as u8).unwrap_or(Order::ZERO),
            align: (mapped >> 56) as u8,
            state: State::decode((state >> 56) as u8, word),
        }
    }

    /// Writes what may change of an area while it is in a tree.
    pub(super) fn store(self, at: Link, node: &Node) {
        let (state, word) = node.state.encode();
        let state = u64::from(state) << 56 | u64::from(node.flags.bits()) << 40 | node.pages & LOW_40;
        let mapped = u64::from(node.align) << 56 | u64::from(node.leaf.get()) << 48 | node.mapped & LOW_40;
        set_words(self.mem, at, AREA, [state, mapped, word]);
    }

    /// How a block's pages are used.
    pub(super) fn usage(self, at: Link) -> Usage {
        Usage::from_words(words(self.mem, at, USAGE).unwrap_or_default())
    }

    /// Writes how a block's pages are used.
    pub(super) fn set_usage(self, at: Link, usage: &Usage) {
        set_words(self.mem, at, USAGE, usage.to_words());
    }

    /// Writes all of an area that is in no tree yet.
    pub(super) fn create(self, at: Link, node: &Node) {
        set_words(self.mem, at, FIXED, [node.start, node.span()]);
        self.store(at, node);
    }

    /// Where an area starts; needs no lock as long as the area stays.
    pub(super) fn start(self, at: Link) -> u64 {
        let [start] = words(self.mem, at, FIXED).unwrap_or_default();
        start
    }

    /// Its place in the tree of all areas.
    pub(super) const fn window(self) -> WindowLinks<'b> {
        WindowLinks(self.mem)
    }

    /// Where a live area starts, and the next one of its chain. A link that leads nowhere reads as the chain's end.
    pub(super) fn live_link(self, at: Link) -> (u64, Link) {
        let Some([start, _, next]) = words(self.mem, at, FIXED) else { return (u64::MAX, Link::NIL) };
        (start, Link::from_word(next))
    }

    /// Puts `next` behind a live area in its chain.
    pub(super) fn set_live_next(self, at: Link, next: Link) {
        set_words(self.mem, at, LIVE, [next.as_u64()]);
    }
}

/// The records as nodes of the window's tree.
pub(super) struct WindowLinks<'b>(&'b PhysMem);

impl Store for WindowLinks<'_> {
    fn load(&self, at: Link) -> Spot {
        let Some([height_gap, max_gap, left, right, start, span]) = words(self.0, at, WINDOW) else {
            return Spot::BROKEN;
        };
        Spot::from_words([start, span], [height_gap, max_gap, left, right])
    }

    fn store(&self, at: Link, spot: &Spot) {
        set_words(self.0, at, WINDOW, spot.links());
    }
}

impl Spot {
    fn from_words([start, span]: [u64; 2], [height_gap, max_gap, left, right]: [u64; 4]) -> Self {
        let (left, right) = (Link::from_word(left), Link::from_word(right));
        Self { start, span, left, right, height: (height_gap >> 56) as u8, gap: height_gap & LOW_56, max_gap }
    }

    fn links(&self) -> [u64; 4] {
        [u64::from(self.height) << 56 | self.gap & LOW_56, self.max_gap, self.left.as_u64(), self.right.as_u64()]
    }
}

const fn word_addr(at: Link, first: u64) -> PhysAddr {
    PhysAddr::new(at.as_u64().saturating_add(8 * first))
}

/// Words of a record from `first` on; `None` outside memory.
#[inline(always)]
fn words<const N: usize>(mem: &PhysMem, at: Link, first: u64) -> Option<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    if !mem.read(word_addr(at, first), bytes.as_flattened_mut()) {
        return None;
    }
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes) {
        *word = u64::from_le_bytes(bytes);
    }
    Some(words)
}

#[inline(always)]
fn set_words<const N: usize>(mem: &PhysMem, at: Link, first: u64, words: [u64; N]) {
    let mut bytes = [[0; 8]; N];
    for (bytes, word) in bytes.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    let inside = mem.write(word_addr(at, first), bytes.as_flattened());
    debug_assert!(inside, "record {at:?} is outside memory");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_record_and_so_do_place_and_link() {
        let states = [
            State::Reserved,
            State::Vmalloc { requested: 4097 },
            State::Vmap,
            State::Block { next: Link::from_word(192) },
            State::Pending { requested: 9, batch: 0 },
            State::Pending { requested: 9, batch: 1 },
            State::Deferred { next: Link::NIL, owned: true },
            State::Deferred { next: Link::NIL, owned: false },
            State::Lazy { next: Link::NIL, owned: true },
            State::Lazy { next: Link::from_word(64), owned: false },
            State::Pooled { next: Link::from_word(128) },
        ];
        let mem = PhysMem::heap(1, 0x5a);
        let (records, at) = (Records { mem: &mem }, Link::from_word(256));
        let new = Node::reserved(0xf_ffc9_0000_0000, 3, VmFlags::NO_GUARD);
        records.create(at, &new);
        let place = |gap| Spot { height: 5, gap, max_gap: gap + 1, ..Spot::new(new.start, new.span()) };
        records.window().store(at, &place(7));
        records.set_live_next(at, Link::from_word(384));
        for state in states {
            let node = Node { state, mapped: 3, leaf: Order::MAX, align: 21, ..new };
            records.store(at, &node);
            assert_eq!(records.load(at), node);
        }
        assert_eq!(records.window().load(at), place(7));
        assert_eq!(records.live_link(at), (new.start, Link::from_word(384)));
        assert_eq!(records.window().load(Link::NIL), Spot::BROKEN);
    }
}
