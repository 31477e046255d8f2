//! How large a slab is, how many to keep, how many objects a sheaf holds, how objects are aligned.
//!
//! Pure functions of the object size and the number of CPUs. Source: `calculate_order` and its neighbours in
//! `mm/slub.c` of Linux 7.2, as described in sections 2.2, 2.9 and 2.10 of the behaviour page.

use super::sheaf::SHEAF_MAX;
use crate::order::Order;

/// A preferred slab is never larger than this order.
const SLUB_MAX_ORDER: Order = match Order::new(3) {
    Some(order) => order,
    None => Order::ZERO,
};
/// The most objects in a slab: what fits the 15 bits that Linux keeps for the count.
pub(super) const MAX_OBJS_PER_PAGE: usize = 32767;
/// Bytes in a cache line.
const CACHE_LINE: usize = 64;
/// The least alignment and the least stride of an object.
pub(super) const ARCH_SLAB_MINALIGN: usize = 8;

/// The sizes of a cache's slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SlabOrders {
    /// Tried first.
    pub(super) preferred: Order,
    /// The smallest block that holds an object; used when the preferred one is refused.
    pub(super) min: Order,
}

/// The distance of objects that nothing guards; `None` if it overflows.
pub(super) fn plain_stride(size: usize, align: usize) -> Option<usize> {
    size.max(ARCH_SLAB_MINALIGN).checked_next_multiple_of(align)
}

/// Chooses the slab orders for objects `stride` bytes apart; `None` if no block up to `max_order` holds one.
pub(super) fn slab_orders(stride: usize, cpus: u16, max_order: Order) -> Option<SlabOrders> {
    let min = Order::for_bytes(stride).filter(|&order| order <= max_order)?;
    let roof = SLUB_MAX_ORDER.min(max_order);
    let from = Order::for_bytes(min_objects(stride, cpus, roof) * stride)?;
    let preferred = [16, 8, 4, 2].into_iter().find_map(|fraction| thrifty_order(stride, from, roof, fraction));
    Some(SlabOrders { preferred: preferred.unwrap_or(min), min })
}

/// How many objects a slab should have at least: more CPUs, more objects, but no more than fit the largest slab.
fn min_objects(stride: usize, cpus: u16, roof: Order) -> usize {
    let significant_bits = (u16::BITS - cpus.leading_zeros()) as usize;
    (4 * (significant_bits + 1)).min((roof.bytes() / stride).max(1))
}

/// The smallest order that wastes at most one `fraction`th of the slab.
fn thrifty_order(stride: usize, from: Order, roof: Order, fraction: usize) -> Option<Order> {
    from.up_to(roof).find(|order| order.bytes() % stride <= order.bytes() / fraction)
}

/// How many partial slabs a cache keeps before it releases an empty one.
pub(super) const fn min_partial(stride: usize) -> u32 {
    let half_log = if stride == 0 { 0 } else { stride.ilog2() / 2 };
    if half_log < 5 {
        5
    } else if half_log > 10 {
        10
    } else {
        half_log
    }
}

/// How many objects a sheaf of the cache holds: by the distance of its objects, or more if the user `wanted` more, who
/// cannot have fewer. A sheaf has room for [`SHEAF_MAX`]; beyond that the wish is not met, it only makes things faster.
pub(super) const fn sheaf_capacity(stride: usize, wanted: u16) -> u16 {
    let usual = match stride {
        4096.. => 4,
        1024.. => 12,
        256.. => 28,
        _ => 60,
    };
    if wanted <= usual {
        usual
    } else if wanted as usize > SHEAF_MAX {
        SHEAF_MAX as u16
    } else {
        wanted
    }
}

/// The alignment of a cache's objects; with `hwcache`, small objects share a cache line evenly.
pub(super) const fn object_align(size: usize, align: usize, hwcache: bool) -> usize {
    let mut result = if align > ARCH_SLAB_MINALIGN { align } else { ARCH_SLAB_MINALIGN };
    if hwcache {
        let mut line = CACHE_LINE;
        while line > ARCH_SLAB_MINALIGN && size <= line / 2 {
            line /= 2;
        }
        if line > result {
            result = line;
        }
    }
    result
}

// No slab of the preferred orders can hold more objects than the count has bits for.
const _: () = assert!(SLUB_MAX_ORDER.bytes() / ARCH_SLAB_MINALIGN <= MAX_OBJS_PER_PAGE);

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(stride: usize, cpus: u16) -> (u8, usize) {
        let order = slab_orders(stride, cpus, Order::MAX).unwrap().preferred;
        (order.get(), order.bytes() / stride)
    }

    #[test]
    fn kmalloc_slabs_have_the_orders_of_linux() {
        let cpus = [1, 4, 16, 64, 256];
        let table: [(usize, [(u8, usize); 5]); 13] = [
            (8, [(0, 512); 5]),
            (16, [(0, 256); 5]),
            (32, [(0, 128); 5]),
            (64, [(0, 64); 5]),
            (96, [(0, 42); 5]),
            (128, [(0, 32), (0, 32), (0, 32), (0, 32), (1, 64)]),
            (192, [(0, 21), (0, 21), (1, 42), (1, 42), (1, 42)]),
            (256, [(0, 16), (0, 16), (1, 32), (1, 32), (2, 64)]),
            (512, [(0, 8), (1, 16), (2, 32), (2, 32), (3, 64)]),
            (1024, [(1, 8), (2, 16), (3, 32), (3, 32), (3, 32)]),
            (2048, [(2, 8), (3, 16), (3, 16), (3, 16), (3, 16)]),
            (4096, [(3, 8); 5]),
            (8192, [(3, 4); 5]),
        ];
        for (stride, row) in table {
            assert_eq!(cpus.map(|n| chosen(stride, n)), row, "{stride} bytes");
        }
    }

    #[test]
    fn odd_sizes_have_the_orders_of_linux() {
        let cpus = [4, 16, 64];
        let same = |order, objects| [(order, objects); 3];
        let table: [(usize, [(u8, usize); 3]); 29] = [
            (24, same(0, 170)),
            (40, same(0, 102)),
            (56, same(0, 73)),
            (72, same(0, 56)),
            (200, [(0, 20), (1, 40), (1, 40)]),
            (232, [(0, 17), (1, 35), (1, 35)]),
            (328, [(1, 24), (1, 24), (2, 49)]),
            (576, [(2, 28), (2, 28), (3, 56)]),
            (640, [(2, 25), (2, 25), (3, 51)]),
            (704, [(2, 23), (3, 46), (3, 46)]),
            (1088, same(3, 30)),
            (1216, same(3, 26)),
            (1344, same(3, 24)),
            (1536, same(3, 21)),
            (2112, same(3, 15)),
            (2688, same(3, 12)),
            (3072, same(3, 10)),
            (3520, same(3, 9)),
            (4200, same(3, 7)),
            (5000, same(3, 6)),
            (6000, same(3, 5)),
            (7000, same(3, 4)),
            (9000, same(3, 3)),
            (12288, same(3, 2)),
            (16000, same(3, 2)),
            (20000, same(3, 1)),
            (32768, same(3, 1)),
            (40000, same(4, 1)),
            (4 << 20, same(10, 1)),
        ];
        for (stride, row) in table {
            assert_eq!(cpus.map(|n| chosen(stride, n)), row, "{stride} bytes");
        }
    }

    #[test]
    fn a_machine_with_small_blocks_gets_small_slabs_or_none() {
        let one = |stride, max| slab_orders(stride, 16, Order::new(max).unwrap());
        let orders = one(1024, 1).unwrap();
        assert_eq!((orders.preferred.get(), orders.min.get()), (1, 0));
        assert_eq!(one(8192, 0), None);
        assert_eq!(one((4 << 20) + 1, 10), None);
    }

    #[test]
    fn cache_alignment_follows_the_line_and_the_request() {
        for (size, align) in [(24, 32), (33, 64), (12, 16), (8, 8), (0, 8), (100, 64)] {
            assert_eq!(object_align(size, 0, true), align, "{size} bytes");
        }
        assert_eq!(object_align(20, 4, false), 8);
        assert_eq!(object_align(20, 256, true), 256);
    }

    #[test]
    fn capacities_and_kept_slabs_change_at_their_boundaries() {
        let capacities = [(8, 60), (255, 60), (256, 28), (1023, 28), (1024, 12), (4095, 12), (4096, 4)];
        for (stride, capacity) in capacities {
            assert_eq!(sheaf_capacity(stride, 0), capacity, "{stride} bytes");
            assert_eq!(sheaf_capacity(stride, capacity - 1), capacity, "nobody gets less");
        }
        assert_eq!((sheaf_capacity(4096, 17), sheaf_capacity(4096, 500)), (17, 60));
        for (stride, kept) in [(8, 5), (2048, 5), (4096, 6), (1 << 20, 10), (4 << 20, 10)] {
            assert_eq!(min_partial(stride), kept, "{stride} bytes");
        }
    }
}
