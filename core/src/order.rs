//! Power-of-two block sizes.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use core::fmt;

/// The largest order a geometry may use: 2^10 pages, 4 MiB. Source: `MAX_PAGE_ORDER`, `include/linux/mmzone.h`.
pub const MAX_PAGE_ORDER: u8 = 10;
/// How many orders there are.
pub const NR_PAGE_ORDERS: usize = MAX_PAGE_ORDER as usize + 1;
/// Above this order an allocation is costly: it is not retried without limit. Source: `include/linux/mmzone.h`.
pub const PAGE_ALLOC_COSTLY_ORDER: u8 = 3;

/// log2 of a block's size in pages; at most [`MAX_PAGE_ORDER`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// The largest order.
    pub const MAX: Self = Self(MAX_PAGE_ORDER);

    /// Makes an order; `None` above [`MAX_PAGE_ORDER`].
    pub const fn new(order: u8) -> Option<Self> {
        if order <= MAX_PAGE_ORDER { Some(Self(order)) } else { None }
    }

    /// Returns the smallest order whose block holds `bytes` (Linux's `get_order`); `None` above 4 MiB.
    /// Zero bytes need order 0.
    pub const fn for_bytes(bytes: usize) -> Option<Self> {
        if bytes > PAGE_SIZE << MAX_PAGE_ORDER {
            return None;
        }
        let pages = bytes.div_ceil(PAGE_SIZE);
        let order = if pages <= 1 { 0 } else { usize::BITS - (pages - 1).leading_zeros() };
        Some(Self(order as u8))
    }

    /// Returns the smallest order whose block has so many pages; `None` above [`MAX_PAGE_ORDER`].
    pub(crate) const fn for_pages(pages: u64) -> Option<Self> {
        match pages {
            ..=1 => Some(Self::ZERO),
            _ => Self::new((u64::BITS - (pages - 1).leading_zeros()) as u8),
        }
    }

    /// Returns the order as a number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the order as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the block's size in pages.
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    /// Returns the block's size in bytes.
    pub const fn bytes(self) -> usize {
        1 << (self.0 as u32 + PAGE_SHIFT)
    }

    /// Returns the next larger order; `None` past the largest.
    pub const fn up(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// Returns the next smaller order; `None` below zero.
    pub const fn down(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(o) => Some(Self(o)),
            None => None,
        }
    }

    /// Returns the frame at which this block's buddy starts: `pfn XOR 2^order`.
    pub const fn buddy_of(self, pfn: Pfn) -> Pfn {
        Pfn::new(pfn.as_u32() ^ (1 << self.0))
    }

    /// Returns the first frame of the naturally aligned block of this order around `pfn`.
    pub const fn align_down(self, pfn: Pfn) -> Pfn {
        Pfn::new(pfn.as_u32() & !((1 << self.0) - 1))
    }

    /// Tells whether a block of this order may start at `pfn`.
    pub const fn is_aligned(self, pfn: Pfn) -> bool {
        pfn.as_u32() & ((1 << self.0) - 1) == 0
    }

    /// Iterates over all orders from this one up to and including `last`.
    pub fn up_to(self, last: Self) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (self.0..=last.0).map(Self)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Order({})", self.0)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

const _: () = assert!(NR_PAGE_ORDERS == MAX_PAGE_ORDER as usize + 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_bytes_is_the_smallest_order_that_holds_them() {
        for bytes in (0..=4 << 20).step_by(511).chain([1, 4096, 4097, 8192, 8193, 4 << 20]) {
            let order = Order::for_bytes(bytes).unwrap();
            assert!(order.bytes() >= bytes);
            assert!(order.down().is_none_or(|o| o.bytes() < bytes), "{bytes} bytes in {order:?}");
        }
        assert_eq!(Order::for_bytes((4 << 20) + 1), None);
        assert_eq!(Order::for_bytes(usize::MAX), None);
    }

    #[test]
    fn a_buddy_is_the_other_half_of_the_parent() {
        for order in Order::ZERO.up_to(Order::new(9).unwrap()) {
            for n in 0..64u32 {
                let block = Pfn::new(n << order.get());
                let buddy = order.buddy_of(block);
                assert_ne!(block, buddy);
                assert_eq!(order.buddy_of(buddy), block);
                let parent = order.up().unwrap().align_down(block);
                assert_eq!(parent, order.up().unwrap().align_down(buddy));
                assert_eq!(parent.as_u32(), block.as_u32() & buddy.as_u32());
            }
        }
    }
}
