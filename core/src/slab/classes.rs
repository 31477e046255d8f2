//! The size classes of `kmalloc`: which object size serves a request.
//!
//! Pure functions. Powers of two from 8 to 8192, and 96 and 192 between them; larger requests go to the page
//! allocator. Source: `include/linux/slab.h` and `mm/slab_common.c` of Linux 7.2.

use super::{SlabFlags, live};
use crate::gfp::GfpFlags;
use crate::raw::Below;

/// How many classes there are.
pub(super) const NR_CLASSES: usize = 13;
/// The largest request that a class serves.
pub(super) const KMALLOC_MAX_CACHE_SIZE: usize = 8192;

/// The first class whose objects do not share a 64-byte line.
pub(super) const FIRST_LINE_CLASS: usize = 3;

/// Object sizes, ascending; the position is the class number.
const CLASS_SIZES: [u16; NR_CLASSES] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

/// The number of a class.
pub(super) type Class = Below<NR_CLASSES>;

/// A class, and its objects' mark in the liveness map, or 0 if the class has none.
#[derive(Clone, Copy)]
pub(super) struct Served {
    pub(super) class: Class,
    pub(super) mark: u8,
}

/// What serves request `n`, at `(n - 1) / 8`: one load, whatever the size.
static TABLE: [Served; KMALLOC_MAX_CACHE_SIZE / 8] = table();

const fn table() -> [Served; KMALLOC_MAX_CACHE_SIZE / 8] {
    let mut table = [served(0); KMALLOC_MAX_CACHE_SIZE / 8];
    let mut at = 0;
    let mut i = 0;
    while i < table.len() {
        if (i + 1) * 8 > CLASS_SIZES[at] as usize {
            at += 1;
        }
        table[i] = served(at);
        i += 1;
    }
    table
}

/// Names a class while the table is made.
const fn class(number: usize) -> Class {
    match Class::new(number) {
        Some(class) => class,
        None => panic!("the largest class holds the largest request"),
    }
}

const fn served(number: usize) -> Served {
    let class = class(number);
    Served { class, mark: if starts_lines(CLASS_SIZES[number] as usize) { live::class_mark(class) } else { 0 } }
}

/// Whether each object of this size starts a line of 64 bytes.
const fn starts_lines(size: usize) -> bool {
    size.is_multiple_of(64)
}

/// Returns what serves `size` bytes; `None` for zero and above [`KMALLOC_MAX_CACHE_SIZE`].
#[inline(always)]
pub(super) fn served_by(size: usize) -> Option<&'static Served> {
    // Zero wraps to the largest number.
    TABLE.get(size.wrapping_sub(1) / 8)
}

/// Returns the class whose objects hold `size` bytes; `None` for zero and above [`KMALLOC_MAX_CACHE_SIZE`].
#[inline(always)]
pub(super) fn class_of(size: usize) -> Option<Class> {
    served_by(size).map(|served| served.class)
}

/// The class of objects `stride` bytes apart, if it has a mark of its own in the liveness map.
pub(super) fn marked(stride: usize) -> Option<Class> {
    sizes().position(|size| size == stride && starts_lines(size)).and_then(Class::new)
}

/// Iterates over the object sizes, smallest first.
pub(super) fn sizes() -> impl Iterator<Item = usize> {
    CLASS_SIZES.iter().map(|&size| usize::from(size))
}

/// Returns the bytes of an object of the class that serves `size`; `None` where [`class_of`] gives none.
pub(super) fn class_size(size: usize) -> Option<usize> {
    class_of(size).and_then(|class| CLASS_SIZES.get(class.get())).map(|&bytes| usize::from(bytes))
}

/// Which set of classes serves a request: each set draws its slabs from other pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum KmallocType {
    /// Unmovable pages of any zone.
    Normal,
    /// Pages of reclaimable pageblocks.
    Reclaimable,
    /// Pages of the DMA zone.
    Dma,
}

impl KmallocType {
    pub(super) const ALL: [Self; 3] = [Self::Normal, Self::Reclaimable, Self::Dma];
    /// The flags that lead away from [`Self::Normal`].
    pub(super) const SPECIAL: GfpFlags = GfpFlags::DMA.union(GfpFlags::RECLAIMABLE);

    /// The first match decides: DMA, then reclaimable, then normal.
    pub(super) const fn of(gfp: GfpFlags) -> Self {
        if gfp.contains(GfpFlags::DMA) {
            Self::Dma
        } else if gfp.contains(GfpFlags::RECLAIMABLE) {
            Self::Reclaimable
        } else {
            Self::Normal
        }
    }

    /// What a cache of this set would be created with.
    pub(super) const fn flags(self) -> SlabFlags {
        match self {
            Self::Normal => SlabFlags::KMALLOC,
            Self::Reclaimable => SlabFlags::KMALLOC.union(SlabFlags::RECLAIM_ACCOUNT),
            Self::Dma => SlabFlags::KMALLOC.union(SlabFlags::CACHE_DMA),
        }
    }

    /// The number of this set's first cache; the class number is added.
    pub(super) const fn first_cache(self) -> usize {
        self as usize * NR_CLASSES
    }

    /// Linux's name of a cache of this set.
    pub(super) fn cache_name(self, class: usize) -> &'static str {
        NAMES.get(class).map_or("kmalloc", |names| names[self as usize])
    }
}

macro_rules! names {
    ($($size:literal)*) => {
        [$([concat!("kmalloc-", $size), concat!("kmalloc-rcl-", $size), concat!("dma-kmalloc-", $size)]),*]
    };
}
/// For each class the names in the order of [`KmallocType::ALL`].
const NAMES: [[&str; 3]; NR_CLASSES] = names!("8" "16" "32" "64" "96" "128" "192" "256" "512" "1k" "2k" "4k" "8k");

const _: () = assert!(CLASS_SIZES[FIRST_LINE_CLASS] == 64);
const _: () = assert!(CLASS_SIZES[NR_CLASSES - 1] as usize == KMALLOC_MAX_CACHE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_the_smallest_class_that_holds_it() {
        for size in 1..=KMALLOC_MAX_CACHE_SIZE {
            let expected = sizes().position(|class| class >= size);
            assert_eq!(class_of(size).map(Class::get), expected, "{size} bytes");
        }
    }

    #[test]
    fn zero_and_large_requests_have_no_class() {
        for size in [0, 8193, 4 << 20, usize::MAX] {
            assert_eq!(class_of(size), None, "{size} bytes");
        }
    }

    #[test]
    fn class_boundaries_are_those_of_linux() {
        let rows = [(1, 8), (8, 8), (9, 16), (33, 64), (64, 64), (65, 96), (96, 96), (97, 128), (128, 128)];
        let more = [(129, 192), (192, 192), (193, 256), (256, 256), (257, 512), (4097, 8192), (8192, 8192)];
        for (size, class) in rows.into_iter().chain(more) {
            assert_eq!(class_size(size), Some(class), "{size} bytes");
        }
    }

    #[test]
    fn dma_wins_over_reclaimable() {
        assert_eq!(KmallocType::of(GfpFlags::KERNEL), KmallocType::Normal);
        assert_eq!(KmallocType::of(GfpFlags::KERNEL | GfpFlags::RECLAIMABLE), KmallocType::Reclaimable);
        assert_eq!(KmallocType::of(GfpFlags::RECLAIMABLE | GfpFlags::DMA), KmallocType::Dma);
        assert_eq!(KmallocType::Dma.cache_name(3), "dma-kmalloc-64");
        assert_eq!(KmallocType::Reclaimable.cache_name(9), "kmalloc-rcl-1k");
    }
}
