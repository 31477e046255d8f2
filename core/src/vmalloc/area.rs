//! What is known of one area. How it is kept in a slab object: `record`.

use super::flags::VmFlags;
use crate::addr::{PhysAddr, VirtAddr, Vpn};
use crate::inspect::{AreaKind, VmallocEntry};
use crate::numa::MAX_NODES;
use crate::order::Order;
use crate::paging::VpnRange;
use crate::{PAGE_SIZE, PageCount};

/// How many pages that are never mapped follow an area, so that running off its end faults.
pub(super) const fn guard_pages(flags: VmFlags) -> u64 {
    if flags.contains(VmFlags::NO_GUARD) { 0 } else { 1 }
}

/// Where a record is: the physical address of its object, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link(u64);

impl Link {
    pub(super) const NIL: Self = Self(u64::MAX);

    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

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
/// Reserved ──► Vmalloc ──────────► Lazy ──► (gone)
///  ▲ │   │        └──► Pending ──►│ │
///  │ │   └───► Vmap ──────────────┘ ▼         (Vmalloc and Vmap may wait as Deferred)
///  │ └─► (gone) ◄──────────────── Pooled
///  └───────────────────────────────┘
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
    /// Has mappings of `vm_map_ram`, each of its own number of pages.
    Block {
        /// The block below it on its CPU's queue.
        next: Link,
    },
    /// As `Vmalloc` or `Vmap`, but freed by a caller that may not wait; it stays as it is until somebody frees it who may.
    Deferred {
        /// The area below it on its CPU's stack.
        next: Link,
        /// Whether it was [`Self::Vmalloc`].
        owned: bool,
    },
    /// Freed; its addresses and frames wait for the flush.
    Lazy {
        /// The area that was freed before it.
        next: Link,
        /// Whether it was [`Self::Vmalloc`].
        owned: bool,
    },
    /// Freed and flushed; its addresses wait for the next area of this size.
    Pooled {
        /// The area below it in its pool.
        next: Link,
    },
}

impl State {
    /// The state as a number, and the word that only this state has.
    pub(super) const fn encode(self) -> (u8, u64) {
        match self {
            Self::Reserved => (1, 0),
            Self::Vmalloc { requested } => (2, requested as u64),
            Self::Vmap => (3, 0),
            Self::Lazy { next, owned: true } => (4, next.0),
            Self::Lazy { next, owned: false } => (5, next.0),
            Self::Pending { requested, batch: 0 } => (6, requested as u64),
            Self::Pending { requested, .. } => (7, requested as u64),
            Self::Pooled { next } => (8, next.0),
            Self::Deferred { next, owned: true } => (9, next.0),
            Self::Deferred { next, owned: false } => (10, next.0),
            Self::Block { next } => (11, next.0),
        }
    }

    /// A number that means nothing reads as `Reserved`, which nobody can free; the auditor reports it.
    pub(super) const fn decode(kind: u8, word: u64) -> Self {
        match kind {
            2 => Self::Vmalloc { requested: word as usize },
            3 => Self::Vmap,
            4 => Self::Lazy { next: Link(word), owned: true },
            5 => Self::Lazy { next: Link(word), owned: false },
            6 => Self::Pending { requested: word as usize, batch: 0 },
            7 => Self::Pending { requested: word as usize, batch: 1 },
            8 => Self::Pooled { next: Link(word) },
            9 => Self::Deferred { next: Link(word), owned: true },
            10 => Self::Deferred { next: Link(word), owned: false },
            11 => Self::Block { next: Link(word) },
            _ => Self::Reserved,
        }
    }

    /// Tells whether the frames behind the area's pages are the area's own.
    pub(super) const fn owns_frames(self) -> bool {
        matches!(
            self,
            Self::Vmalloc { .. }
                | Self::Pending { .. }
                | Self::Lazy { owned: true, .. }
                | Self::Deferred { owned: true, .. }
        )
    }

    /// Tells whether the processor can use the area's pages.
    pub(super) const fn is_live(self) -> bool {
        matches!(
            self,
            Self::Vmalloc { .. } | Self::Pending { .. } | Self::Vmap | Self::Block { .. } | Self::Deferred { .. }
        )
    }
}

/// An area.
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
}

impl Node {
    /// A new area, not yet in a tree.
    pub(super) const fn reserved(start: u64, pages: u64, flags: VmFlags) -> Self {
        Self { start, pages, mapped: 0, flags, leaf: Order::ZERO, align: 0, state: State::Reserved }
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
            State::Reserved
            | State::Pending { .. }
            | State::Block { .. }
            | State::Deferred { .. }
            | State::Lazy { .. }
            | State::Pooled { .. } => 0,
        }
    }

    /// What `vmallocinfo` shows, but for the nodes of its frames; nothing while the area is being made.
    pub(super) const fn entry(&self) -> Option<VmallocEntry> {
        let kind = match self.state {
            State::Reserved => return None,
            State::Vmalloc { .. } => AreaKind::Vmalloc,
            State::Pending { .. } => AreaKind::Pending,
            State::Vmap if self.flags.contains(VmFlags::MAP_RAM) => AreaKind::Ram,
            State::Vmap => AreaKind::Vmap,
            State::Block { .. } => AreaKind::Ram,
            State::Deferred { .. } => AreaKind::Deferred,
            State::Lazy { .. } => AreaKind::Lazy,
            State::Pooled { .. } => AreaKind::Pooled,
        };
        Some(VmallocEntry {
            start: self.addr(),
            pages: PageCount::new(self.pages),
            guard: PageCount::new(guard_pages(self.flags)),
            mapped: PageCount::new(self.mapped),
            requested: self.requested(),
            kind,
            flags: self.flags,
            on_nodes: [0; MAX_NODES],
        })
    }
}
