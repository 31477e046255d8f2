//! What can go wrong, by kind: a bad request, exhaustion, misuse, and a broken invariant.

use crate::addr::{PageCount, Pfn, VirtAddr};
use crate::fault::FaultPoint;
use crate::order::Order;
use core::fmt;

/// Why an allocation was refused. The allocator's state is as before the call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum AllocError {
    /// `n * size`, or size plus guard page, does not fit a `usize`.
    Overflow,
    /// The call does not accept size 0.
    ZeroSize,
    /// More bytes than this call ever gives.
    TooLarge {
        /// Bytes asked for.
        requested: usize,
        /// The most bytes that the call gives.
        limit: usize,
    },
    /// An order above the geometry's largest.
    OrderTooLarge {
        /// The largest order.
        max: Order,
    },
    /// An alignment that is not a power of two, or that the call cannot promise.
    BadAlign(usize),
    /// A combination of flags that has no meaning, such as two zones.
    BadFlags,
    /// The address is not the start of a block of the kind that the call works on.
    BadAddress(VirtAddr),
    /// No zone that the flags allow has a free block of this order above its watermark.
    NoPages {
        /// The order asked for.
        order: Order,
    },
    /// No gap of this many pages, guard page included, in the vmalloc window.
    NoVirtualSpace {
        /// Pages asked for.
        pages: PageCount,
    },
    /// The host would not map so many pages: its limit on mappings is near, or it cannot show these frames elsewhere.
    HostRefused {
        /// Pages that were to be mapped.
        pages: PageCount,
    },
    /// The platform's fault plan made this point fail.
    Injected(FaultPoint),
    /// No object is left in the prefilled sheaf.
    SheafEmpty,
    /// What would have served is in use, and the call may not wait for it.
    WouldBlock,
    /// Not a run of frames of one zone, or one that the flags do not fit.
    BadRange {
        /// The first frame.
        start: Pfn,
        /// How many frames.
        pages: PageCount,
    },
    /// This frame is in the way and cannot be moved.
    Busy {
        /// The first frame of the block in the way, or of a pageblock that somebody else is emptying.
        frame: Pfn,
    },
}

impl AllocError {
    /// Tells whether the request was proper and memory or address space ran out (an injected fault counts).
    pub const fn is_exhaustion(&self) -> bool {
        matches!(
            self,
            Self::NoPages { .. } | Self::NoVirtualSpace { .. } | Self::HostRefused { .. } | Self::Injected(_)
        )
    }
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Overflow => f.write_str("the size overflows; check the element count"),
            Self::ZeroSize => f.write_str("size 0 is not accepted here; ask for at least one byte"),
            Self::TooLarge { requested, limit } => {
                write!(f, "{requested} bytes asked for; this call gives at most {limit}")
            }
            Self::OrderTooLarge { max } => write!(f, "the order is above the largest, {max}; use vmalloc"),
            Self::BadAlign(align) => write!(f, "alignment {align} is no power of two or cannot be promised here"),
            Self::BadFlags => f.write_str("the flags contradict each other"),
            Self::BadAddress(addr) => write!(f, "{addr} is not the start of a block of this kind"),
            Self::NoPages { order } => write!(f, "no free block of order {order} above the watermark"),
            Self::NoVirtualSpace { pages } => write!(f, "no gap of {pages} pages in the vmalloc window"),
            Self::HostRefused { pages } => {
                write!(f, "the host maps no {pages} pages more; free some areas, or raise its limit on mappings")
            }
            Self::Injected(point) => write!(f, "the fault plan failed {point:?}"),
            Self::WouldBlock => f.write_str("what would have served is in use; try again where waiting is allowed"),
            Self::SheafEmpty => f.write_str("no object is left in the prefilled sheaf; refill it"),
            Self::BadRange { start, pages } => {
                write!(f, "{pages} frames from {start} on are not a range of one zone that fits the flags")
            }
            Self::Busy { frame } => write!(f, "frame {frame} is in the way and cannot be moved; free or unpin it"),
        }
    }
}

impl core::error::Error for AllocError {}

/// Why a free was rejected: a misuse was detected, and nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FreeError {
    /// Not an address that this allocator ever gives.
    Foreign(VirtAddr),
    /// The block is already free.
    DoubleFree(VirtAddr),
    /// Inside a block, not its start.
    Interior {
        /// The address given.
        addr: VirtAddr,
        /// Where the block starts.
        start: VirtAddr,
    },
    /// The block belongs to another family of calls.
    WrongKind {
        /// The address given.
        addr: VirtAddr,
        /// What the call frees.
        expected: BlockKind,
        /// What the address is.
        found: BlockKind,
    },
    /// The object belongs to another cache.
    WrongCache {
        /// The address given.
        addr: VirtAddr,
        /// The cache that owns it.
        owner: CacheId,
    },
    /// Bytes around the object that are not its owner's were overwritten. They were repaired and the object is still live:
    /// it can be freed again.
    Corrupted(VirtAddr),
    /// The object's cache was destroyed while the object was live.
    Leaked(VirtAddr),
    /// There is no room for a head at this place in the block.
    BadRcuHead {
        /// The address given.
        addr: VirtAddr,
        /// Where the head was to be.
        offset: usize,
    },
    /// The block has another order or size.
    WrongOrder {
        /// The order that the block has.
        found: Order,
    },
    /// The mapping has another number of pages.
    WrongCount {
        /// The address given.
        addr: VirtAddr,
        /// The number given.
        count: usize,
        /// How many pages are mapped there as one.
        found: usize,
    },
    /// What would take the block is in use, the call may not wait for it, and no more frees can be put off.
    WouldBlock(VirtAddr),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Foreign(addr) => write!(f, "{addr} was never handed out by this allocator"),
            Self::DoubleFree(addr) => write!(f, "{addr} is already free"),
            Self::Interior { addr, start } => write!(f, "{addr} is inside a block; free its start, {start}"),
            Self::WrongKind { addr, expected, found } => {
                write!(f, "{addr} is {found}, this call frees {expected}")
            }
            Self::WrongCache { addr, owner } => write!(f, "{addr} belongs to cache {}", owner.get()),
            Self::Corrupted(addr) => {
                write!(f, "bytes around {addr} were overwritten; see the report, then free it again")
            }
            Self::BadRcuHead { addr, offset } => {
                write!(f, "no aligned 16 bytes at {offset} of {addr}; place the head in the block's first page")
            }
            Self::Leaked(addr) => write!(f, "the cache of {addr} was destroyed before; free objects first"),
            Self::WouldBlock(addr) => write!(f, "what takes {addr} is in use; free it where waiting is allowed"),
            Self::WrongCount { addr, count, found } => {
                write!(
                    f,
                    "{addr} is a mapping of {found} pages, not {count}; unmap it with the number it was made with"
                )
            }
            Self::WrongOrder { found } => write!(f, "the block has order {found}; free it with that"),
        }
    }
}

impl core::error::Error for FreeError {}

/// Why pages of an area cannot be given to a user's address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RemapError {
    /// Not the start of a live area.
    NotAnArea(VirtAddr),
    /// The area was not asked for with `VmFlags::USERMAP`.
    NotForUsers(VirtAddr),
    /// No bytes, or some beyond the area's end, or a sum that overflows.
    OutOfBounds {
        /// The first page that was asked for.
        offset: u64,
        /// How many bytes were asked for.
        size: usize,
        /// How many pages the area has.
        pages: u64,
    },
}

impl fmt::Display for RemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAnArea(addr) => write!(f, "{addr} is not the start of a vmalloc area"),
            Self::NotForUsers(addr) => write!(f, "the area at {addr} is not for users; ask for it with USERMAP"),
            Self::OutOfBounds { offset, size, pages } => {
                write!(f, "{size} bytes from page {offset} on are not within an area of {pages} pages")
            }
        }
    }
}

impl core::error::Error for RemapError {}

/// The families of blocks, by which call frees them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockKind {
    /// From `alloc_pages`: freed by `free_pages`.
    Pages,
    /// An object of a cache: freed by `kfree` or `kmem_cache_free`.
    Slab,
    /// A large `kmalloc`: freed by `kfree`.
    LargeKmalloc,
    /// From `vmalloc`: freed by `vfree`.
    Vmalloc,
    /// From `vmap`: freed by `vunmap` or `vfree`.
    Vmap,
    /// The allocator's own frame, or no block at all.
    Internal,
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pages => "a page block",
            Self::Slab => "a slab object",
            Self::LargeKmalloc => "a large kmalloc block",
            Self::Vmalloc => "a vmalloc area",
            Self::Vmap => "a vmap area",
            Self::Internal => "the allocator's own memory",
        })
    }
}

/// Names a cache of one [`Kmem`](crate::Kmem); valid until the cache is destroyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CacheId(u16);

impl CacheId {
    /// Names a cache by its number; calls with a number that no cache has are refused.
    pub const fn new(n: u16) -> Self {
        Self(n)
    }

    /// Returns the number, an index into `slabinfo`.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why a cache could not be created, shrunk or destroyed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CacheError {
    /// The name is empty or longer than [`CACHE_NAME_MAX`](crate::CACHE_NAME_MAX) bytes.
    BadName,
    /// Objects of this size fit no slab.
    BadSize(usize),
    /// Not a power of two, or above the page size.
    BadAlign(usize),
    /// Flags that contradict each other, or that are not for users.
    BadFlags,
    /// A free pointer that lies outside the object or is not aligned, or a cache that has no use for its place.
    BadFreePointer(usize),
    /// The geometry's `max_caches` caches exist already.
    TooMany(u16),
    /// No such cache.
    Unknown(u16),
    /// A kmalloc class or one of the allocator's own caches cannot be destroyed.
    BuiltIn,
    /// A CPU is inside a call on the cache, or a prefilled sheaf has objects of it; destroy it after that.
    Busy(u16),
    /// The platform's fault plan made the creation fail.
    Injected(FaultPoint),
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadName => f.write_str("the cache name is empty or too long"),
            Self::BadSize(n) => write!(f, "objects of {n} bytes fit no slab; use alloc_pages or vmalloc"),
            Self::BadAlign(n) => write!(f, "alignment {n} is no power of two up to the page size"),
            Self::BadFlags => f.write_str("the cache flags contradict each other"),
            Self::BadFreePointer(n) => {
                write!(f, "free pointer offset {n} needs a constructor or TYPESAFE_BY_RCU, 8-byte alignment, and room")
            }
            Self::TooMany(n) => write!(f, "{n} caches exist; raise max_caches in the geometry"),
            Self::Unknown(n) => write!(f, "there is no cache {n}"),
            Self::BuiltIn => f.write_str("the allocator's own caches cannot be destroyed"),
            Self::Busy(n) => write!(
                f,
                "a CPU is inside a call on cache {n}, or a prefilled sheaf has its objects; try again after that"
            ),
            Self::Injected(point) => write!(f, "the fault plan failed {point:?}"),
        }
    }
}

impl core::error::Error for CacheError {}

/// The invariants, numbered as in the contract; each layer's auditor names the number that it found broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "each name is its own sentence; ARCHITECTURE.md lists them")]
pub enum Invariant {
    I1NoOverlap = 1,
    I2UsableSize,
    I3Alignment,
    I4ContentKept,
    I5Zeroed,
    I6FreeExact,
    I7Conservation,
    I8ListCounts,
    I9Coalesced,
    I10InsideZone,
    I11MigrateList,
    I12SlabCounts,
    I13FailureAtomic,
    I14FlagsHonoured,
    I15FlushBeforeReuse,
    I16GuardPage,
    I17Statistics,
    I18NoWrap,
    I19Constructed,
    I20DebugBytes,
    I21CacheCounts,
    I22DestroyLast,
}

impl Invariant {
    /// Returns the number, 1 to 22.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A broken invariant, found by `check_invariants` or `audit`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Violation {
    /// Which invariant.
    pub invariant: Invariant,
    /// What was compared, in words.
    pub what: &'static str,
    /// Where: a frame, page, cache or CPU number, as `what` says.
    pub at: u64,
    /// The value that the invariant demands.
    pub expected: u64,
    /// The value found.
    pub found: u64,
}

impl Violation {
    pub(crate) const fn new(invariant: Invariant, what: &'static str, at: u64, expected: u64, found: u64) -> Self {
        Self { invariant, what, at, expected, found }
    }

    /// `Err` unless the two values are equal.
    pub(crate) fn check_eq(
        invariant: Invariant,
        what: &'static str,
        at: u64,
        expected: u64,
        found: u64,
    ) -> Result<(), Self> {
        if expected == found { Ok(()) } else { Err(Self::new(invariant, what, at, expected, found)) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, what, at, expected, found } = self;
        write!(f, "I{} {invariant:?}: {what} at {at:#x}: expected {expected:#x}, found {found:#x}", invariant.number())
    }
}

impl core::error::Error for Violation {}

/// Gives an error enum the list of its variants and the number of each, for whoever counts refusals by reason.
macro_rules! kinds {
    ($error:ident: $($variant:ident)*) => {
        impl $error {
            /// The names of all variants, in the order of [`Self::kind`].
            pub const KINDS: &'static [&'static str] = &[$(stringify!($variant)),*];

            /// Returns which variant it is, as an index into [`Self::KINDS`].
            pub const fn kind(&self) -> usize {
                enum Number { $($variant),* }
                match self {
                    $(Self::$variant { .. } => Number::$variant as usize,)*
                }
            }
        }
    };
}

kinds! { AllocError:
    Overflow ZeroSize TooLarge OrderTooLarge BadAlign BadFlags BadAddress NoPages NoVirtualSpace Injected
    BadRange Busy SheafEmpty WouldBlock HostRefused
}
kinds! { FreeError:
    Foreign DoubleFree Interior WrongKind WrongCache Corrupted Leaked BadRcuHead WrongOrder WouldBlock WrongCount
}
kinds! { CacheError:
    BadName BadSize BadAlign BadFlags BadFreePointer TooMany Unknown BuiltIn Busy Injected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_the_index_of_its_name() {
        let errors = [AllocError::Overflow, AllocError::BadAlign(3), AllocError::NoPages { order: Order::ZERO }];
        for error in errors {
            assert!(format!("{error:?}").starts_with(AllocError::KINDS[error.kind()]), "{error:?}");
        }
        assert_eq!(CacheError::KINDS[CacheError::Unknown(1).kind()], "Unknown");
    }
}
