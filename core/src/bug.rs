//! What the checks of a debug cache tell: which bytes were damaged, who had the object, what was done about it.

use crate::addr::{Pfn, VirtAddr};
use crate::error::CacheId;
use crate::inspect::CacheName;
use core::fmt;
use core::panic::Location;

/// A part of a slot whose bytes are checked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DebugZone {
    /// Before the object.
    LeftRedZone,
    /// After the object.
    RightRedZone,
    /// Between the size that was asked for and the end of the object.
    KmallocRedZone,
    /// All bytes of a free object but the last.
    Poison,
    /// The last byte of a free object.
    EndPoison,
    /// Between the object and its free pointer, in a cache without red zones.
    AlignmentPadding,
    /// Between what is kept about the object and the next slot.
    ObjectPadding,
    /// After the last slot of a slab.
    SlabPadding,
}

impl DebugZone {
    /// Returns the name as reports print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftRedZone => "Left Redzone",
            Self::RightRedZone => "Right Redzone",
            Self::KmallocRedZone => "kmalloc Redzone",
            Self::Poison => "Poison",
            Self::EndPoison => "End Poison",
            Self::AlignmentPadding => "Alignment padding",
            Self::ObjectPadding => "Object padding",
            Self::SlabPadding => "Slab padding",
        }
    }
}

/// Who allocated or freed an object last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Track {
    /// The call, if the geometry has room for its place ([`Geometry::track_sites`](crate::Geometry::track_sites)).
    pub site: Option<&'static Location<'static>>,
    /// The CPU that made it.
    pub cpu: u16,
    /// How many records were written before: tells which of two calls was later.
    pub sequence: u64,
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.site {
            Some(site) => write!(f, "{site}")?,
            None => f.write_str("unknown place")?,
        }
        write!(f, " seq={} cpu={}", self.sequence, self.cpu)
    }
}

/// What was found or done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlabFinding {
    /// Bytes that nobody may write were written.
    Overwritten {
        /// Which bytes.
        zone: DebugZone,
        /// The first wrong byte.
        from: VirtAddr,
        /// The address after the last wrong byte.
        to: VirtAddr,
        /// The first wrong byte's value.
        found: u8,
        /// The value that it should have.
        expected: u8,
    },
    /// The free pointer of an object leads out of its slab.
    FreePointer,
    /// The free list of the slab is broken after the object.
    FreeChain,
    /// The free list of the slab does not end.
    FreeCycle,
    /// The slab counts other objects than its free list leaves.
    ObjectCount {
        /// Objects in use by the counter.
        counter: u32,
        /// Objects in use by the list.
        counted: u32,
    },
    /// A free of an object that is on the free list.
    AlreadyFree,
    /// Repair: bytes were given their value back.
    Restored {
        /// Which bytes.
        zone: DebugZone,
        /// The first.
        from: VirtAddr,
        /// The address after the last.
        to: VirtAddr,
        /// Their value.
        value: u8,
    },
    /// Repair: the free list of the slab was emptied; its objects are lost.
    ListCleared,
    /// Repair: the counter was set to what the list leaves.
    CountAdjusted(u32),
    /// Repair: the slab is set aside; its free objects are never handed out.
    SetAside,
    /// Repair: the object was not freed; the caller still has it.
    NotFreed,
}

impl SlabFinding {
    /// Tells whether it is something done about a damage, not the damage.
    pub const fn is_repair(&self) -> bool {
        matches!(
            self,
            Self::Restored { .. } | Self::ListCleared | Self::CountAdjusted(_) | Self::SetAside | Self::NotFreed
        )
    }
}

impl fmt::Display for SlabFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Overwritten { zone, from, to, found, expected } => {
                write!(f, "{} overwritten, {from}-{to}: {found:#04x} instead of {expected:#04x}", zone.name())
            }
            Self::FreePointer => f.write_str("Freepointer corrupt"),
            Self::FreeChain => f.write_str("Freechain corrupt"),
            Self::FreeCycle => f.write_str("Freelist cycle"),
            Self::ObjectCount { counter, counted } => {
                write!(f, "Wrong object count: the counter says {counter}, the free list {counted}")
            }
            Self::AlreadyFree => f.write_str("Object already free"),
            Self::Restored { zone, from, to, value } => {
                write!(f, "Restoring {} {from}-{to}={value:#04x}", zone.name())
            }
            Self::ListCleared => f.write_str("Freelist cleared"),
            Self::CountAdjusted(count) => write!(f, "Object count adjusted to {count}"),
            Self::SetAside => f.write_str("Slab set aside"),
            Self::NotFreed => f.write_str("Object not freed"),
        }
    }
}

/// One line of a report about a cache, with what is known about the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabBug {
    /// The cache.
    pub cache: CacheId,
    /// Its name.
    pub name: CacheName,
    /// The slab's first frame.
    pub slab: Pfn,
    /// The object, if one is concerned.
    pub object: Option<VirtAddr>,
    /// What was found or done.
    pub finding: SlabFinding,
    /// Who allocated the object last, in a cache with `STORE_USER`.
    pub allocated: Option<Track>,
    /// Who freed it last.
    pub freed: Option<Track>,
}

impl fmt::Display for SlabBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.finding.is_repair() { "FIX" } else { "BUG" };
        write!(f, "{kind} {}: {}", self.name.as_str(), self.finding)?;
        if self.finding.is_repair() {
            return Ok(());
        }
        if let Some(object) = self.object {
            write!(f, "\n  object {object} in slab {}", self.slab)?;
        }
        if let Some(track) = self.allocated {
            write!(f, "\n  allocated at {track}")?;
        }
        if let Some(track) = self.freed {
            write!(f, "\n  freed at {track}")?;
        }
        Ok(())
    }
}
