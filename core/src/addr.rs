//! Addresses, frame numbers and page counts.
//!
//! A number that could be confused with another is its own type with a private field; arithmetic between them is
//! checked and returns `None` instead of wrapping. Operators that have no meaning (adding two addresses, say) do
//! not exist.

use core::fmt;

/// Bytes in a page, and the base-two logarithm of that.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// A byte address in physical memory; the platform's first frame has address 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

/// A byte address as the processor sees it: in the direct map, in the vmalloc window, or neither.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct VirtAddr(u64);

/// A physical frame number: [`PhysAddr`] divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u32);

/// A virtual page number: [`VirtAddr`] divided by the page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Vpn(u64);

/// A number of pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PageCount(u64);

impl PhysAddr {
    /// Makes a physical address from a byte offset into physical memory.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// Returns the address as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the frame that holds this byte, or `None` beyond 2^32 frames.
    pub const fn pfn(self) -> Option<Pfn> {
        let n = self.0 >> PAGE_SHIFT;
        if n <= u32::MAX as u64 { Some(Pfn(n as u32)) } else { None }
    }

    /// Returns the offset of this byte in its page.
    pub const fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// Adds a number of bytes; `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(a) => Some(Self(a)),
            None => None,
        }
    }

    /// Returns the address `bytes` further on, or the last one there is.
    pub(crate) const fn saturating_add(self, bytes: usize) -> Self {
        Self(self.0.saturating_add(bytes as u64))
    }

    /// Tells whether the address is a multiple of `align`, a power of two.
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align.wrapping_sub(1)) == 0
    }
}

impl VirtAddr {
    /// The null address: what C callers pass for "nothing".
    pub const NULL: Self = Self(0);
    /// What a zero-sized allocation returns: address 16, never dereferenced, accepted by every free.
    /// Source: `include/linux/slab.h` of Linux 7.2.
    pub const ZERO_SIZE: Self = Self(16);

    /// Makes a virtual address from a number.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// Returns the address as a number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Tells whether the address is null or the zero-size address, which every free ignores.
    pub const fn is_zero_or_null(self) -> bool {
        self.0 <= Self::ZERO_SIZE.0
    }

    /// Returns the page that holds this byte.
    pub const fn vpn(self) -> Vpn {
        Vpn(self.0 >> PAGE_SHIFT)
    }

    /// Returns the offset of this byte in its page.
    pub const fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE as u64 - 1)) as usize
    }

    /// Adds a number of bytes; `None` on overflow.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(a) => Some(Self(a)),
            None => None,
        }
    }

    /// Returns the distance in bytes from `base` up to `self`; `None` if `self` is below it.
    pub const fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }

    /// Tells whether the address is a multiple of `align`, a power of two.
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align.wrapping_sub(1)) == 0
    }
}

impl Pfn {
    /// Makes a frame number.
    pub const fn new(n: u32) -> Self {
        Self(n)
    }

    /// Returns the number as it is stored in links and table entries.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    /// Returns the number as an index into per-frame arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the address of the frame's first byte.
    pub const fn addr(self) -> PhysAddr {
        PhysAddr((self.0 as u64) << PAGE_SHIFT)
    }

    /// Adds a number of frames; `None` beyond 2^32.
    pub const fn checked_add(self, frames: u64) -> Option<Self> {
        match (self.0 as u64).checked_add(frames) {
            Some(n) if n <= u32::MAX as u64 => Some(Self(n as u32)),
            _ => None,
        }
    }

    /// Returns the number of frames from `base` up to `self`; `None` if `self` is below it.
    pub const fn offset_from(self, base: Self) -> Option<u64> {
        match self.0.checked_sub(base.0) {
            Some(n) => Some(n as u64),
            None => None,
        }
    }
}

impl Vpn {
    /// Makes a virtual page number; only the low 52 bits can name an address.
    pub const fn new(n: u64) -> Self {
        Self(n & (u64::MAX >> PAGE_SHIFT))
    }

    /// Returns the number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the address of the page's first byte.
    pub const fn addr(self) -> VirtAddr {
        VirtAddr(self.0 << PAGE_SHIFT)
    }

    /// Adds a number of pages; `None` past the end of the address space.
    pub const fn checked_add(self, pages: u64) -> Option<Self> {
        match self.0.checked_add(pages) {
            Some(n) if n <= (u64::MAX >> PAGE_SHIFT) => Some(Self(n)),
            _ => None,
        }
    }

    /// Returns the number of pages from `base` up to `self`; `None` if `self` is below it.
    pub const fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }
}

impl PageCount {
    /// No pages.
    pub const ZERO: Self = Self(0);

    /// Makes a page count.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the smallest number of pages that holds `bytes`.
    pub const fn from_bytes_up(bytes: usize) -> Self {
        Self((bytes as u64).div_ceil(PAGE_SIZE as u64))
    }

    /// Returns the number of bytes; `None` if it does not fit a `usize`.
    pub const fn bytes(self) -> Option<usize> {
        match self.0.checked_mul(PAGE_SIZE as u64) {
            Some(b) if b <= usize::MAX as u64 => Some(b as usize),
            _ => None,
        }
    }

    /// Adds; `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// Subtracts; `None` below zero.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
}

macro_rules! debug_as_hex {
    ($($t:ident),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($t), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}
debug_as_hex!(PhysAddr, VirtAddr, Pfn, Vpn);

impl fmt::Debug for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageCount({})", self.0)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

const _: () = assert!(size_of::<usize>() == 8, "kmem supports 64-bit targets");
const _: () = assert!(size_of::<Option<PhysAddr>>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_at_the_ends_is_refused_not_wrapped() {
        assert_eq!(PhysAddr::new(u64::MAX).checked_add(1), None);
        assert_eq!(Pfn::new(u32::MAX).checked_add(1), None);
        assert_eq!(Vpn::new(u64::MAX >> PAGE_SHIFT).checked_add(1), None);
        assert_eq!(PhysAddr::new((1 << 44) - 1).pfn(), Some(Pfn::new(u32::MAX)));
        assert_eq!(PhysAddr::new(1 << 44).pfn(), None);
        assert_eq!(PageCount::new(1 << 52).bytes(), None);
    }

    #[test]
    fn pages_cover_their_bytes() {
        for (bytes, pages) in [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (usize::MAX, 1 << 52)] {
            assert_eq!(PageCount::from_bytes_up(bytes), PageCount::new(pages), "{bytes} bytes");
        }
    }
}
