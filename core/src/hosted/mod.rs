//! The hosted platform: the allocator on real memory of a Linux process.
//!
//! ```text
//! the machine          the process
//! physical memory      a memory file, mapped once: the direct map
//! the MMU              further mappings of the same file's pages, in a window of reserved addresses
//! an unmapped page     PROT_NONE
//! a CPU                a thread, by a number that it leases (`cpus`)
//! the heavy fence      membarrier
//! a TLB flush          unmapping what waited for it, ranges that touch together (`window`)
//! lending free pages   the file's pages are dropped
//! ```
//!
//! [`Hosted`] is one allocator; [`Kmalloc`], [`Vmalloc`] and [`KVmalloc`] put collections into it. [`KmemAlloc`] serves a
//! whole program, as its `#[global_allocator]`.
//!
//! | room | what lives there |
//! |---|---|
//! | `sys` | the host's calls: `unsafe` |
//! | `cpus` | numbers for threads, and stopping them all |
//! | `front` | what a thread's fast paths read: `unsafe` |
//! | `window` | mappings as an MMU, their limit |
//! | `platform` | the port |
//! | `nofault` | accesses that tell of a fault |
//! | `fork` | a copy of the memory for a fork's child |
//! | `kept` | freed areas that keep their mapping for the next request |
//! | `heap` | `malloc` on two allocators: one of private memory, one with areas |
//! | `global`, `collections` | `GlobalAlloc`, `Allocator`: `unsafe` traits |

#[allow(unsafe_code, reason = "`Allocator` is unsafe to implement")]
mod collections;
mod cpus;
mod fork;
#[allow(unsafe_code, reason = "words of a thread, written down in assembly")]
mod front;
#[allow(unsafe_code, reason = "`GlobalAlloc` is unsafe to implement")]
mod global;
mod heap;
mod kept;
#[allow(unsafe_code, reason = "a write to any address is unsafe to ask for")]
mod nofault;
mod platform;
#[allow(unsafe_code, reason = "the host's calls")]
mod sys;
#[cfg(test)]
mod tests;
mod window;

pub use collections::{KVmalloc, Kmalloc, Vmalloc};
pub use global::KmemAlloc;
pub use nofault::NoFault;
pub use platform::HostPlatform;
pub use window::HostCounts;

use crate::addr::{PAGE_SIZE, PageCount, VirtAddr};
use crate::geometry::{Geometry, GeometryError, MinFree};
use crate::hardening::Hardening;
use crate::kmem::Kmem;
use crate::sync::{AtomicBool, Ordering};
use core::fmt;
use core::ops::Deref;
use cpus::Inside;
use kept::Kept;
use platform::Behind;
use sys::{Placed, Region};

/// Memory that an allocator starts with, in pages; more comes when it is used up.
const BOOT_PAGES: u64 = (32 << 20) / PAGE_SIZE as u64;
/// Full sheaves of each size that a thread keeps for itself: about a thousand small objects.
const POCKET: u8 = 16;
/// Pages that only urgent requests get. No interrupt has to be served here.
const RESERVE_PAGES: u32 = 16;

/// Why there is no allocator on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HostError {
    /// So many addresses in a row are not to be had.
    Addresses {
        /// Bytes asked for.
        bytes: usize,
    },
    /// No memory file of this size, or no memory for the books.
    Memory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// More pages than an allocator can name.
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
    },
    /// As many allocators of areas live as a fork can copy.
    TooMany,
    /// What is wrong with the machine.
    Geometry(GeometryError),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Addresses { bytes } => write!(f, "the host has no {bytes} addresses in a row; ask for less"),
            Self::Memory { bytes } => write!(f, "the host gives no memory file of {bytes} bytes; ask for less"),
            Self::TooLarge { bytes } => write!(f, "{bytes} bytes are more than 2^31 pages; ask for less"),
            Self::TooMany => write!(f, "{} allocators live; drop one first", fork::MOST_ALLOCATORS),
            Self::Geometry(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for HostError {}

impl From<GeometryError> for HostError {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}

/// What a [`Hosted`] shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostConfig {
    /// The most bytes of memory; what is not used costs addresses only.
    pub memory: usize,
    /// Bytes of addresses for areas.
    pub window: usize,
    /// How far frees are checked.
    pub hardening: Hardening,
    /// Whether large areas get entries of 2 MiB: fewer steps, but such an area is copied when it grows, not remapped.
    pub huge: bool,
}

impl HostConfig {
    /// So many bytes of memory, four times as many addresses for areas, checks of frees on.
    pub const fn new(memory: usize) -> Self {
        Self { memory, window: memory.saturating_mul(4), hardening: Hardening::Checked, huge: false }
    }

    fn frames(&self) -> Result<u32, HostError> {
        const BLOCK: usize = PAGE_SIZE << crate::MAX_PAGE_ORDER;
        let too_large = HostError::TooLarge { bytes: self.memory };
        let bytes = self.memory.max(BLOCK).checked_next_multiple_of(BLOCK).ok_or(too_large)?;
        // A frame's number plus one, and a bit to spare, fit a word of the window's books.
        u32::try_from(bytes / PAGE_SIZE).ok().filter(|frames| *frames < 1 << 31).ok_or(too_large)
    }

    fn geometry(&self, frames: u32, platform: &HostPlatform, window_pages: u64) -> Geometry {
        let mut geometry = Geometry::flat(frames);
        geometry.cpus = cpus::count();
        geometry.boot_pages = PageCount::new(BOOT_PAGES);
        geometry.min_free = MinFree::Pages(RESERVE_PAGES);
        geometry.max_caches = 48;
        geometry.direct_map = VirtAddr::new(platform.direct_start() as u64);
        geometry.vmalloc_start = VirtAddr::new(platform.areas_start() as u64);
        geometry.vmalloc_pages = PageCount::new(window_pages);
        geometry.vmap_allow_huge = self.huge;
        geometry.hardening = self.hardening;
        geometry.trim_large = true;
        geometry.pocket = POCKET;
        geometry
    }
}

/// An allocator on real memory of this process, for any number of threads.
///
/// # Examples
///
/// ```
/// use kmem::GfpFlags;
/// use kmem::hosted::{HostConfig, Hosted};
///
/// let hosted = Hosted::new(&HostConfig::new(64 << 20))?;
/// let area = hosted.enter().vmalloc(1 << 20, GfpFlags::KERNEL)?;
/// hosted.enter().vfree(area)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Hosted {
    inner: Placed<Inner>,
}

/// What stays at its address: a fork finds it there.
struct Inner {
    kmem: Kmem<HostPlatform>,
    /// The allocator's books; dropped after it.
    _metadata: Region,
    /// Freed areas of a [`heap`] that keep their mapping.
    kept: Kept,
    /// Set in a fork's child that has no copy of the memory.
    dead: AtomicBool,
}

impl Hosted {
    /// Makes an allocator of areas and all else: its memory is a memory file.
    ///
    /// # Errors
    ///
    /// What the host would not give.
    pub fn new(config: &HostConfig) -> Result<Self, HostError> {
        let this = Self::behind(config, Behind::File)?;
        if !fork::watch(&this.inner) {
            return Err(HostError::TooMany);
        }
        Ok(this)
    }

    /// One of private memory, without areas.
    fn private(config: &HostConfig) -> Result<Self, HostError> {
        Self::behind(&HostConfig { window: PAGE_SIZE, ..*config }, Behind::Private)
    }

    fn behind(config: &HostConfig, behind: Behind) -> Result<Self, HostError> {
        // Building it takes a CPU as well.
        let _inside = cpus::enter();
        let frames = config.frames()?;
        let window_pages = (config.window / PAGE_SIZE).max(1) as u64;
        if window_pages >= 1 << 32 {
            return Err(HostError::TooLarge { bytes: config.window });
        }
        let platform = HostPlatform::new(frames, window_pages, behind)?;
        let geometry = config.geometry(frames, &platform, window_pages);
        let bytes = Kmem::<HostPlatform>::metadata_bytes(&geometry)?;
        let metadata = Region::zeroed(bytes).ok_or(HostError::Memory { bytes })?;
        let kmem = Kmem::new(platform, &geometry, sys::metadata_in(&metadata))?;
        let inner = Inner { kmem, _metadata: metadata, kept: Kept::new(), dead: AtomicBool::new(false) };
        let inner = Placed::new(inner).ok_or(HostError::Memory { bytes: size_of::<Inner>() })?;
        Ok(Self { inner })
    }

    /// Makes the current thread a CPU of the machine for as long as the guard lives; calls of the allocator go through it.
    ///
    /// It is cheap, and may be done again within. Keep it short: a thread that forks waits for all guards of others.
    #[inline(always)]
    pub fn enter(&self) -> Entered<'_> {
        self.inner.enter()
    }

    /// What the host did for this allocator's areas so far.
    pub fn host_counts(&self) -> HostCounts {
        self.inner.host_counts()
    }

    /// Sets how many mappings of the host the areas may take; requests beyond are refused. Half of what the host allows a
    /// process by default: past its limit every other mapping fails too.
    pub fn set_mapping_limit(&self, limit: usize) {
        self.inner.kmem.platform().window().iter().for_each(|window| window.set_limit(limit));
    }

    /// Gives memory back to the host: what nobody holds is collected, and large free blocks are dropped; returns how many
    /// pages were. What is small, or was dropped before, stays.
    pub fn trim(&self) -> u64 {
        let kmem = self.enter();
        kmem.reclaim();
        kmem.report_free_pages()
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        // No fork is under way while this thread is inside.
        let _inside = cpus::enter();
        fork::forget(&self.inner);
    }
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosted").field("platform", self.inner.kmem.platform()).finish_non_exhaustive()
    }
}

impl Inner {
    #[inline(always)]
    fn enter(&self) -> Entered<'_> {
        // The lease comes first, and is given back last.
        Entered { _cpu: cpus::enter(), kmem: &self.kmem }
    }

    fn host_counts(&self) -> HostCounts {
        let (kept_bytes, reused) = self.kept.counts();
        HostCounts { kept_bytes, reused, ..self.kmem.platform().counts() }
    }

    /// Frees all areas that are kept; returns whether there were any. The caller is inside.
    fn free_kept(&self) -> bool {
        let freed = core::iter::from_fn(|| self.kept.pop()).map(|area| self.free_area(area));
        freed.count() > 0
    }

    /// Frees an area that was kept.
    fn free_area(&self, area: VirtAddr) {
        let freed = self.kmem.vfree(area);
        debug_assert_eq!(freed, Ok(()), "an area was kept that is none");
    }

    /// Whether this is a fork's child that could not get a copy of the memory.
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// The current thread as a CPU, and the allocator.
pub struct Entered<'h> {
    kmem: &'h Kmem<HostPlatform>,
    _cpu: Inside,
}

impl Deref for Entered<'_> {
    type Target = Kmem<HostPlatform>;

    #[inline(always)]
    fn deref(&self) -> &Kmem<HostPlatform> {
        self.kmem
    }
}

impl fmt::Debug for Entered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kmem.fmt(f)
    }
}
