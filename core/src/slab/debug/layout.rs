//! Where the bytes of a debug cache's slot are. Pure functions.
//!
//! ```text
//!  | left red zone | object | right red zone | free pointer | tracks | size word | pad word | padding |
//!  ^ slot          ^ object                  ^ inuse                             ^ info_end           ^ end
//! ```
//!
//! All offsets count from the object; only the red zone before it is at negative ones. The slots of a slab follow each other
//! without gaps. Source: `calculate_sizes` in `mm/slub.c` of Linux 7.2, as section 2.7 of the behaviour page describes it.

use super::super::SlabFlags;
use super::track::TRACK_BYTES;

/// A machine word: the free pointer, the size word, the least red zone.
pub(super) const WORD: usize = 8;

/// What decides the layout of a slot.
#[derive(Clone, Copy, Debug)]
pub(in crate::slab) struct Wish {
    /// Bytes of the object.
    pub(in crate::slab) object_size: usize,
    /// Alignment of the object, a power of two of at least a word.
    pub(in crate::slab) align: usize,
    /// What is checked.
    pub(in crate::slab) flags: SlabFlags,
    /// Whether a constructor writes the objects.
    pub(in crate::slab) has_ctor: bool,
    /// Where in the object the free pointer may be although its bytes matter.
    pub(in crate::slab) freeptr_offset: Option<usize>,
    /// Whether requests are smaller than the objects: a size class of `kmalloc`.
    pub(in crate::slab) is_kmalloc: bool,
}

/// The parts of a slot.
///
/// ```text
/// L1  object_size <= inuse <= info_end <= end;   stride == left + end;   left and stride are multiples of the alignment
/// L2  the free pointer is inside the object only if nothing of a free object is checked or kept there
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::slab) struct Layout {
    /// Bytes of the red zone before the object.
    pub(in crate::slab) left: usize,
    /// Bytes of the object.
    pub(super) object_size: usize,
    /// End of the red zone, or of the padding, after the object.
    pub(super) inuse: usize,
    /// Where the free pointer is.
    pub(super) free_pointer: usize,
    /// Where the records of who allocated and who freed are.
    pub(super) tracks: Option<usize>,
    /// Where the requested size is.
    pub(super) size_word: Option<usize>,
    /// Where the padding begins.
    pub(super) info_end: usize,
    /// Where the slot ends.
    pub(super) end: usize,
}

impl Layout {
    /// Lays a slot out; `None` if it is larger than any memory.
    pub(in crate::slab) fn new(wish: &Wish) -> Option<Self> {
        let &Wish { object_size, align, flags, .. } = wish;
        let red_zone = flags.contains(SlabFlags::RED_ZONE);
        let is_tracked = flags.contains(SlabFlags::STORE_USER);
        let mut end = object_size.checked_next_multiple_of(WORD)?;
        if red_zone && end == object_size {
            end = end.checked_add(WORD)?;
        }
        let inuse = end;
        let mut take = |bytes: usize| {
            let at = end;
            end = end.checked_add(bytes)?;
            Some(at)
        };
        let free_pointer = match inner_free_pointer(wish) {
            Some(at) => at,
            None => take(WORD)?,
        };
        let tracks = if is_tracked { Some(take(2 * TRACK_BYTES)?) } else { None };
        let size_word = if is_tracked && wish.is_kmalloc { Some(take(WORD)?) } else { None };
        let info_end = end;
        let left = if red_zone { WORD.max(align) } else { 0 };
        let pad_word = if red_zone { WORD } else { 0 };
        let stride = end.max(WORD).checked_add(pad_word)?.checked_add(left)?.checked_next_multiple_of(align)?;
        Some(Self { left, object_size, inuse, free_pointer, tracks, size_word, info_end, end: stride - left })
    }

    /// Bytes from one object to the next.
    pub(in crate::slab) const fn stride(&self) -> usize {
        self.left + self.end
    }

    /// Tells whether something behind the object is kept.
    pub(super) const fn has_metadata(&self) -> bool {
        self.info_end > self.inuse
    }

    /// Tells whether the free pointer can be checked while a user has the object.
    pub(super) const fn free_pointer_outside(&self) -> bool {
        self.free_pointer >= self.inuse
    }
}

/// Where in the object the free pointer is; `None` if it must be outside. In the middle it is out of reach of small
/// overflows from both sides.
fn inner_free_pointer(wish: &Wish) -> Option<usize> {
    let &Wish { object_size, flags, has_ctor, is_kmalloc, freeptr_offset, .. } = wish;
    let is_kept = flags.contains(SlabFlags::TYPESAFE_BY_RCU) || has_ctor;
    let tracks_size = flags.contains(SlabFlags::STORE_USER) && is_kmalloc;
    let in_the_way = flags.contains(SlabFlags::RED_ZONE) && (object_size < WORD || tracks_size);
    match freeptr_offset {
        _ if flags.contains(SlabFlags::POISON) || in_the_way || object_size == 0 => None,
        Some(offset) if is_kept => Some(offset),
        None if is_kept => None,
        _ => Some(object_size / 2 / WORD * WORD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(object_size: usize, align: usize, flags: SlabFlags) -> Layout {
        let wish = Wish { object_size, align, flags, has_ctor: false, freeptr_offset: None, is_kmalloc: false };
        Layout::new(&wish).unwrap()
    }

    const RED_ZONE: SlabFlags = SlabFlags::RED_ZONE;
    const POISON: SlabFlags = SlabFlags::POISON;

    #[test]
    fn an_aligned_object_gets_a_word_of_red_zone_and_an_unaligned_one_its_rest() {
        let aligned = layout(64, 8, RED_ZONE);
        assert_eq!((aligned.left, aligned.inuse, aligned.free_pointer), (8, 72, 32));
        assert_eq!((aligned.info_end, aligned.end, aligned.stride()), (72, 80, 88));
        let odd = layout(61, 8, RED_ZONE);
        assert_eq!((odd.inuse, odd.free_pointer, odd.stride()), (64, 24, 80));
        assert_eq!(layout(64, 64, RED_ZONE).left, 64, "the object stays aligned");
    }

    #[test]
    fn the_free_pointer_leaves_the_object_when_its_bytes_matter() {
        assert_eq!(layout(64, 8, POISON).free_pointer, 64);
        assert!(layout(64, 8, POISON).free_pointer_outside());
        assert_eq!(layout(64, 8, SlabFlags::CONSISTENCY_CHECKS).free_pointer, 32);
        assert_eq!(layout(4, 8, RED_ZONE).free_pointer, 8);
        assert!(layout(0, 8, SlabFlags::STORE_USER).free_pointer_outside(), "there is no object to be in");
        assert_eq!(layout(4, 8, SlabFlags::CONSISTENCY_CHECKS).free_pointer, 0);
        let wish = |has_ctor, flags, freeptr_offset, is_kmalloc| {
            Layout::new(&Wish { object_size: 64, align: 8, flags, has_ctor, freeptr_offset, is_kmalloc }).unwrap()
        };
        let none = SlabFlags::CONSISTENCY_CHECKS;
        assert_eq!(wish(true, none, None, false).free_pointer, 64);
        assert_eq!(wish(true, none, Some(16), false).free_pointer, 16);
        assert_eq!(wish(false, SlabFlags::TYPESAFE_BY_RCU, None, false).free_pointer, 64);
        assert_eq!(wish(false, SlabFlags::TYPESAFE_BY_RCU, Some(8), false).free_pointer, 8);
        assert_eq!(wish(true, POISON, Some(16), false).free_pointer, 64, "poison wins");
        assert_eq!(wish(false, RED_ZONE | SlabFlags::STORE_USER, None, true).free_pointer, 72);
        assert_eq!(wish(false, RED_ZONE | SlabFlags::STORE_USER, None, false).free_pointer, 32);
    }

    #[test]
    fn tracks_and_size_follow_the_free_pointer() {
        let flags = POISON | RED_ZONE | SlabFlags::STORE_USER;
        let wish = Wish { object_size: 32, align: 32, flags, has_ctor: false, freeptr_offset: None, is_kmalloc: true };
        let layout = Layout::new(&wish).unwrap();
        assert_eq!((layout.left, layout.inuse, layout.free_pointer), (32, 40, 40));
        assert_eq!((layout.tracks, layout.size_word), (Some(48), Some(80)));
        assert_eq!((layout.info_end, layout.end, layout.stride()), (88, 96, 128));
    }

    #[test]
    fn a_slot_without_checks_is_the_object() {
        for size in [0, 1, 8, 24, 4096] {
            assert_eq!(layout(size, 8, SlabFlags::empty()).stride(), size.max(8).next_multiple_of(8));
        }
        let wish = |object_size| Wish {
            object_size,
            align: 8,
            flags: RED_ZONE,
            has_ctor: false,
            freeptr_offset: None,
            is_kmalloc: false,
        };
        assert_eq!(Layout::new(&wish(usize::MAX)), None);
        assert_eq!(Layout::new(&wish(usize::MAX - 16)), None);
    }
}
