//! The window onto physical memory.

use super::backing::Backing;
use crate::addr::{PAGE_SHIFT, PhysAddr};
use core::fmt;
use core::ptr::NonNull;

/// Physical memory, as bytes that can be copied in and out by physical address.
///
/// No reference into the memory is ever made; every access is bounds checked, and one that leaves the window returns
/// `false` or `None` and does nothing. A clone is another handle on the same memory. Handles stay on one thread;
/// a shared [`Kmem`](crate::Kmem) carries its handle under the contract of [`SmpPlatform`](crate::SmpPlatform).
#[derive(Clone)]
pub struct PhysMem {
    backing: Backing,
}

impl PhysMem {
    /// Makes a window over memory that the caller owns.
    ///
    /// # Safety
    ///
    /// `base` is page aligned and valid for reads and writes of `frames` pages for as long as a handle exists, and no
    /// Rust reference to those bytes is live while the allocator or a handle touches them.
    pub unsafe fn from_raw_parts(base: NonNull<u8>, frames: u32) -> Self {
        // SAFETY: passed on to the caller.
        let backing = unsafe { Backing::from_raw_parts(base, (frames as usize) << PAGE_SHIFT) };
        Self { backing }
    }

    /// Allocates `frames` frames from the host's heap, every byte set to `fill`.
    #[cfg(any(test, feature = "std"))]
    pub fn heap(frames: u32, fill: u8) -> Self {
        Self { backing: Backing::heap((frames as usize) << PAGE_SHIFT, fill) }
    }

    /// How many frames the window has.
    pub fn frames(&self) -> u64 {
        (self.backing.len() >> PAGE_SHIFT) as u64
    }

    /// The pointer behind `addr`, if `len` bytes from there on are inside the window.
    #[inline]
    fn ptr(&self, addr: PhysAddr, len: usize) -> Option<NonNull<u8>> {
        let at = usize::try_from(addr.as_u64()).ok()?;
        if at > self.backing.len() || len > self.backing.len() - at {
            return None;
        }
        // SAFETY: `at <= len of the window`, so the result is inside the same object or one past its end.
        Some(unsafe { self.backing.base().add(at) })
    }

    /// The pointer that a user of the direct map dereferences for `addr`; `None` outside the window.
    pub fn as_ptr(&self, addr: PhysAddr) -> Option<NonNull<u8>> {
        self.ptr(addr, 1)
    }

    /// Copies bytes out of memory.
    #[inline]
    #[must_use]
    pub fn read(&self, addr: PhysAddr, into: &mut [u8]) -> bool {
        let Some(from) = self.ptr(addr, into.len()) else { return false };
        // SAFETY: `from` is valid for `into.len()` bytes, and no reference overlaps the window.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies bytes into memory.
    #[inline]
    #[must_use]
    pub fn write(&self, addr: PhysAddr, from: &[u8]) -> bool {
        let Some(into) = self.ptr(addr, from.len()) else { return false };
        // SAFETY: `into` is valid for `from.len()` bytes, and no reference overlaps the window.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) };
        true
    }

    /// Reads a little-endian word at an address that is a multiple of 8.
    #[inline]
    pub fn read_u64(&self, addr: PhysAddr) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// Writes a little-endian word at an address that is a multiple of 8.
    #[inline]
    #[must_use]
    pub fn write_u64(&self, addr: PhysAddr, value: u64) -> bool {
        self.write(addr, &value.to_le_bytes())
    }

    /// Sets `len` bytes to `value`.
    #[inline]
    #[must_use]
    pub fn fill(&self, addr: PhysAddr, len: usize, value: u8) -> bool {
        let Some(at) = self.ptr(addr, len) else { return false };
        // SAFETY: `at` is valid for `len` bytes.
        unsafe { at.as_ptr().write_bytes(value, len) };
        true
    }

    /// Copies `len` bytes from one place to another; the two may overlap.
    #[inline]
    #[must_use]
    pub fn copy(&self, from: PhysAddr, to: PhysAddr, len: usize) -> bool {
        let (Some(from), Some(to)) = (self.ptr(from, len), self.ptr(to, len)) else { return false };
        // SAFETY: both are valid for `len` bytes; `copy` allows overlap.
        unsafe { core::ptr::copy(from.as_ptr(), to.as_ptr(), len) };
        true
    }

    /// Sets `len` bytes to zero in a way that the compiler keeps although nobody reads them again.
    #[must_use]
    pub fn wipe(&self, addr: PhysAddr, len: usize) -> bool {
        let done = self.fill(addr, len, 0);
        // The address escapes to an opaque call, so the stores above cannot be dropped.
        core::hint::black_box(self.ptr(addr, len));
        done
    }
}

impl fmt::Debug for PhysMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysMem").field("frames", &self.frames()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_beyond_the_window_do_nothing() {
        let mem = PhysMem::heap(1, 0x5a);
        assert!(!mem.write(PhysAddr::new(4095), &[1, 2]));
        assert!(!mem.write(PhysAddr::new(u64::MAX), &[1]));
        assert!(!mem.fill(PhysAddr::new(1), usize::MAX, 0));
        assert_eq!(mem.read_u64(PhysAddr::new(4092)), None);
        assert_eq!(mem.read_u64(PhysAddr::new(4088)), Some(0x5a5a_5a5a_5a5a_5a5a));
    }
}
