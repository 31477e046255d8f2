//! Size classes, orders and strides, derived again from sections 2.1, 2.2, 2.4 and 2.9 of the contract.

use kmem::PAGE_SIZE;

/// The `kmalloc` classes in bytes.
pub const CLASSES: [usize; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
/// The largest class; above it `kmalloc` asks the page allocator.
pub const KMALLOC_MAX_CACHE: usize = 8192;
/// The most bytes that `kvmalloc` and its relatives ever give (`INT_MAX`).
pub const KVMALLOC_MAX: usize = i32::MAX as usize;
/// The line that `SLAB_HWCACHE_ALIGN` aligns to.
const CACHE_LINE: usize = 64;
/// The most objects in a slab.
const MAX_OBJECTS: usize = 32767;
/// The largest order that a slab prefers.
const SLAB_MAX_ORDER: u8 = 3;

/// The smallest order whose block holds `bytes`; above every real order for sizes that fit none.
pub fn get_order(bytes: usize) -> u8 {
    (0..52).find(|&order| PAGE_SIZE << order >= bytes).unwrap_or(52)
}

/// The class that serves a request of 1 to [`KMALLOC_MAX_CACHE`] bytes.
pub fn class_of(size: usize) -> Option<usize> {
    CLASSES.into_iter().find(|&class| size > 0 && size <= class)
}

/// The most bytes that `kmalloc` gives.
pub fn kmalloc_max(max_order: u8) -> usize {
    PAGE_SIZE << max_order
}

/// The bytes that a fresh `kmalloc` block of `size` bytes has: its class, or whole pages of its order.
pub fn kmalloc_usable(size: usize) -> usize {
    class_of(size).unwrap_or_else(|| PAGE_SIZE << get_order(size))
}

/// The same on a machine that, if it is `trimmed`, keeps no more pages of a large block than were asked for.
pub fn usable_on(trimmed: bool, size: usize) -> usize {
    let large = trimmed && size > KMALLOC_MAX_CACHE;
    if large { size.next_multiple_of(PAGE_SIZE) } else { kmalloc_usable(size) }
}

/// What `kmalloc_size_roundup` answers.
pub fn size_roundup(size: usize, max_order: u8, trimmed: bool) -> usize {
    if size == 0 || size > kmalloc_max(max_order) { size } else { usable_on(trimmed, size) }
}

/// The alignment of a `kmalloc` block of this class or of these pages: the largest power of two that divides its size.
/// It covers the promise for the requested size: a power of two is its own class, and the largest power of two that
/// divides another request divides its class or is smaller than the class's own.
pub fn kmalloc_align(usable: usize) -> usize {
    (usable & usable.wrapping_neg()).max(8)
}

/// The alignment of a cache's objects (section 2.2).
pub fn cache_align(size: usize, requested: usize, hwcache: bool) -> usize {
    let mut line = if hwcache { CACHE_LINE } else { 0 };
    while line > 8 && size <= line / 2 {
        line /= 2;
    }
    line.max(requested).max(8).next_multiple_of(8)
}

/// The distance between a cache's objects.
pub fn cache_stride(size: usize, align: usize) -> usize {
    size.max(8).next_multiple_of(8).checked_next_multiple_of(align).unwrap_or(usize::MAX)
}

/// The order that a slab of objects of this stride has when memory is plentiful (section 2.9); `None` if no slab holds
/// one object.
pub fn slab_order(stride: usize, cpus: u16, max_order: u8) -> Option<u8> {
    let largest = SLAB_MAX_ORDER.min(max_order);
    let fls_cpus = (u16::BITS - cpus.leading_zeros()) as usize;
    let fits = ((PAGE_SIZE << largest) / stride).max(1);
    let min_objects = (4 * (fls_cpus + 1)).min(fits);
    let mut lowest = get_order(min_objects * stride);
    if (PAGE_SIZE << lowest) / stride > MAX_OBJECTS {
        lowest = get_order(stride * MAX_OBJECTS) - 1;
    }
    let wastes_at_most = |order: u8, fraction: usize| {
        let slab = PAGE_SIZE << order;
        slab >= stride && slab % stride <= slab / fraction
    };
    let preferred = [16, 8, 4, 2].into_iter().find_map(|f| (lowest..=largest).find(|&o| wastes_at_most(o, f)));
    preferred.or_else(|| Some(get_order(stride)).filter(|&o| o <= max_order))
}

/// How many objects a sheaf of a cache with this stride holds (section 2.10, the effective numbers).
pub fn sheaf_capacity(stride: usize) -> u64 {
    match stride {
        4096.. => 4,
        1024.. => 12,
        256.. => 28,
        _ => 60,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_the_boundaries_of_the_contract() {
        let golden =
            [(1, 8), (8, 8), (9, 16), (64, 64), (65, 96), (96, 96), (97, 128), (129, 192), (192, 192), (193, 256)];
        for (size, class) in golden.into_iter().chain([(4097, 8192), (8192, 8192), (8193, 16384), (4 << 20, 4 << 20)]) {
            assert_eq!(kmalloc_usable(size), class, "{size}");
        }
        assert_eq!((size_roundup(0, 10, false), size_roundup((4 << 20) + 1, 10, true)), (0, (4 << 20) + 1));
        assert_eq!([8192, 8193, 16384, 16385].map(|size| usable_on(true, size)), [8192, 12288, 16384, 20480]);
    }

    #[test]
    fn alignments_are_those_of_section_2_2() {
        assert_eq!((kmalloc_align(96), kmalloc_align(192), kmalloc_align(8192)), (32, 64, 8192));
        for (size, align, hwcache, expected) in
            [(24, 0, true, 32), (33, 0, true, 64), (12, 0, true, 16), (8, 0, true, 8), (20, 4, false, 8)]
        {
            assert_eq!(cache_align(size, align, hwcache), expected, "{size}");
        }
    }

    /// `(stride, cpus, order)` of the tables in section 2.9.
    #[test]
    fn slab_orders_are_the_golden_ones() {
        let four =
            [(24, 0), (200, 0), (328, 1), (576, 2), (1088, 3), (12288, 3), (40000, 4), (8, 0), (512, 1), (1024, 2)];
        let sixteen = [(192, 1), (256, 1), (200, 1), (704, 3), (1024, 3), (8192, 3), (64, 0)];
        let sixty_four = [(328, 2), (576, 3), (232, 1), (512, 2)];
        let cases =
            [(4, &four[..]), (16, &sixteen[..]), (64, &sixty_four[..]), (1, &[(1024, 1), (4096, 3), (256, 0)][..])];
        for (cpus, rows) in cases {
            for &(stride, order) in rows {
                assert_eq!(slab_order(stride, cpus, 10), Some(order), "{stride} bytes, {cpus} CPUs");
            }
        }
        assert_eq!(slab_order(8192, 4, 0), None);
    }
}
