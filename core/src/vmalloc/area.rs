//! The record of one area, as it is kept in a 64-byte slab object.

use super::flags::VmFlags;
use crate::addr::{PhysAddr, VirtAddr, Vpn};
use crate::inspect::{AreaKind, VmallocEntry};
use crate::order::Order;
use crate::paging::VpnRange;
use crate::raw::PhysMem;
use crate::{PAGE_SIZE, PageCount};

/// Bytes of a record: one cache line.
pub(super) const RECORD_BYTES: usize = 64;

/// How many pages that are never mapped follow an area, so that running off its end faults.
pub(super) const fn guard_pages(flags: VmFlags) -> u64 {
    if flags.contains(VmFlags::NO_GUARD) { 0 } else { 1 }
}

/// Where a record is: the physical address of its object, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link(u64);

impl Link {
    pub(super) const NIL: Self = Self(u64::MAX);

    pub(super) const fn new(object: PhysAddr) -> Self {
        Self(object.as_u64())
    }

    pub(super) const fn addr(self) -> PhysAddr {
        PhysAddr::new(self.0)
    }

    pub(super) const fn as_u64(self) -> u64 {
        self.0
    }

    pub(super) fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

/// What an area is, with the data that only this state has.
///
/// ```text
/// Reserved ──► Vmalloc ──► Lazy ──► (gone)
///    │   │        └──► Pending ──►│
///    │   └───► Vmap ───────────►┘
///    └─► (gone)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Has its addresses, and the caller does not know them yet.
    Reserved,
    /// Owns the frames behind its pages.
    Vmalloc {
        /// Bytes that the caller asked for last.
        requested: usize,
    },
    /// As `Vmalloc`, but freed; it stays as it is until a grace period has passed.
    Pending {
        /// Bytes that the caller asked for last.
        requested: usize,
        /// The batch with which it waits, 0 or 1.
        batch: u8,
    },
    /// Maps frames of somebody else.
    Vmap,
    /// Freed; its addresses and frames wait for the flush.
    Lazy {
        /// The area that was freed before it.
        next: Link,
        /// Whether it was [`Self::Vmalloc`].
        owned: bool,
    },
}

impl State {
    /// The state as a number, and the word that only this state has.
    const fn encode(self) -> (u8, u64) {
        match self {
            Self::Reserved => (1, 0),
            Self::Vmalloc { requested } => (2, requested as u64),
            Self::Vmap => (3, 0),
            Self::Lazy { next, owned: true } => (4, next.0),
            Self::Lazy { next, owned: false } => (5, next.0),
            Self::Pending { requested, batch: 0 } => (6, requested as u64),
            Self::Pending { requested, .. } => (7, requested as u64),
        }
    }

    /// A number that means nothing reads as `Reserved`, which nobody can free; the auditor reports it.
    const fn decode(kind: u8, word: u64) -> Self {
        match kind {
            2 => Self::Vmalloc { requested: word as usize },
            3 => Self::Vmap,
            4 => Self::Lazy { next: Link(word), owned: true },
            5 => Self::Lazy { next: Link(word), owned: false },
            6 => Self::Pending { requested: word as usize, batch: 0 },
            7 => Self::Pending { requested: word as usize, batch: 1 },
            _ => Self::Reserved,
        }
    }

    /// Tells whether the frames behind the area's pages are the area's own.
    pub(super) const fn owns_frames(self) -> bool {
        matches!(self, Self::Vmalloc { .. } | Self::Pending { .. } | Self::Lazy { owned: true, .. })
    }

    /// Tells whether the processor can use the area's pages.
    pub(super) const fn is_live(self) -> bool {
        matches!(self, Self::Vmalloc { .. } | Self::Pending { .. } | Self::Vmap)
    }
}

/// An area, and its place in the tree of areas.
///
/// ```text
/// word  0             1                  2                 3                4     5      6    7
///       height:start  state:flags:pages  align:leaf:mapped requested/next   left  right  gap  max_gap
///       (8:56 bits)   (8:16:40 bits)     (8:8:40 bits)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node {
    /// Number of the first page.
    pub(super) start: u64,
    /// Pages of address space, without the guard.
    pub(super) pages: u64,
    /// Pages from the start on that have a frame.
    pub(super) mapped: u64,
    pub(super) flags: VmFlags,
    /// log2 of the pages that one page-table entry of the area maps.
    pub(super) leaf: Order,
    /// log2 of the alignment that was asked for, in bytes.
    pub(super) align: u8,
    pub(super) state: State,
    pub(super) left: Link,
    pub(super) right: Link,
    /// Levels of the subtree; 0 only in what is no record.
    pub(super) height: u8,
    /// Free pages between the end of the area before, or the start of the window, and this one.
    pub(super) gap: u64,
    /// The largest `gap` in the subtree.
    pub(super) max_gap: u64,
}

const LOW_56: u64 = (1 << 56) - 1;
/// A half of the address space has 2^35 pages.
const LOW_40: u64 = (1 << 40) - 1;

impl Node {
    /// What a link that leads nowhere reads as.
    const BROKEN: Self = Self::reserved(0, 0, VmFlags::empty()).with_height(0);

    /// A new area, not yet in a tree.
    pub(super) const fn reserved(start: u64, pages: u64, flags: VmFlags) -> Self {
        let (leaf, align, state) = (Order::ZERO, 0, State::Reserved);
        let (left, right, height, gap, max_gap) = (Link::NIL, Link::NIL, 1, 0, 0);
        Self { start, pages, mapped: 0, flags, leaf, align, state, left, right, height, gap, max_gap }
    }

    const fn with_height(mut self, height: u8) -> Self {
        self.height = height;
        self
    }

    /// The number after that of the guard page, if there is one.
    pub(super) const fn end(&self) -> u64 {
        self.start.saturating_add(self.span())
    }

    /// Pages of address space, guard included.
    pub(super) const fn span(&self) -> u64 {
        self.pages.saturating_add(guard_pages(self.flags))
    }

    /// The pages that have a frame.
    pub(super) const fn mapped_range(&self) -> VpnRange {
        VpnRange::new(Vpn::new(self.start), self.mapped)
    }

    /// All pages, with those that lost their frame, and the guard.
    pub(super) const fn whole_range(&self) -> VpnRange {
        VpnRange::new(Vpn::new(self.start), self.span())
    }

    /// The first address.
    pub(super) const fn addr(&self) -> VirtAddr {
        Vpn::new(self.start).addr()
    }

    /// Bytes that the caller may use by right; for an area that is nobody's, none.
    pub(super) const fn requested(&self) -> usize {
        match self.state {
            State::Vmalloc { requested } => requested,
            State::Vmap => (self.mapped as usize).saturating_mul(PAGE_SIZE),
            State::Reserved | State::Pending { .. } | State::Lazy { .. } => 0,
        }
    }

    /// What `vmallocinfo` shows; nothing while the area is being made.
    pub(super) const fn entry(&self) -> Option<VmallocEntry> {
        let kind = match self.state {
            State::Reserved => return None,
            State::Vmalloc { .. } => AreaKind::Vmalloc,
            State::Pending { .. } => AreaKind::Pending,
            State::Vmap => AreaKind::Vmap,
            State::Lazy { .. } => AreaKind::Lazy,
        };
        let (pages, mapped) = (PageCount::new(self.pages), PageCount::new(self.mapped));
        Some(VmallocEntry { start: self.addr(), pages, mapped, requested: self.requested(), kind })
    }

    fn to_words(self) -> [u64; 8] {
        let (state, word) = self.state.encode();
        [
            u64::from(self.height) << 56 | self.start & LOW_56,
            u64::from(state) << 56 | u64::from(self.flags.bits()) << 40 | self.pages & LOW_40,
            u64::from(self.align) << 56 | u64::from(self.leaf.get()) << 48 | self.mapped & LOW_40,
            word,
            self.left.0,
            self.right.0,
            self.gap,
            self.max_gap,
        ]
    }

    fn from_words(words: [u64; 8]) -> Self {
        let [height_start, state_pages, leaf_mapped, word, left, right, gap, max_gap] = words;
        Self {
            start: height_start & LOW_56,
            pages: state_pages & LOW_40,
            mapped: leaf_mapped & LOW_40,
            flags: VmFlags::from_bits_truncate((state_pages >> 40) as u16),
            leaf: Order::new((leaf_mapped >> 48) as u8).unwrap_or(Order::ZERO),
            align: (leaf_mapped >> 56) as u8,
            state: State::decode((state_pages >> 56) as u8, word),
            left: Link(left),
            right: Link(right),
            height: (height_start >> 56) as u8,
            gap,
            max_gap,
        }
    }
}

/// Where records are kept.
pub(super) trait Store {
    /// Reads a record; a link that leads nowhere reads as a record of height 0.
    fn load(&self, at: Link) -> Node;
    /// Writes a record.
    fn store(&self, at: Link, node: &Node);
}

/// Records in slab objects.
pub(super) struct Records<'b> {
    pub(super) mem: &'b PhysMem,
}

impl Store for Records<'_> {
    fn load(&self, at: Link) -> Node {
        let mut bytes = [0; RECORD_BYTES];
        if !self.mem.read(at.addr(), &mut bytes) {
            return Node::BROKEN;
        }
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Node::from_words(words)
    }

    fn store(&self, at: Link, node: &Node) {
        let mut bytes = [0; RECORD_BYTES];
        for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(node.to_words()) {
            *bytes = word.to_le_bytes();
        }
        let inside = self.mem.write(at.addr(), &bytes);
        debug_assert!(inside, "record {at:?} is outside memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_its_record() {
        let states = [
            State::Reserved,
            State::Vmalloc { requested: 4097 },
            State::Vmap,
            State::Lazy { next: Link::NIL, owned: true },
            State::Lazy { next: Link(64), owned: false },
        ];
        for state in states {
            let new = Node::reserved(0xf_ffc9_0000_0000, 3, VmFlags::NO_GUARD);
            let node = Node { state, mapped: 3, leaf: Order::MAX, align: 21, gap: 7, max_gap: 9, height: 5, ..new };
            assert_eq!(Node::from_words(node.to_words()), node);
        }
    }
}
