//! What the paths of a cache need to know about it: one record of 64 bytes per cache.

use super::live::LiveMode;
use super::order::{self, SlabOrders};
use super::{CacheArgs, SlabFlags};
use crate::gfp::GfpFlags;
use crate::order::Order;
use crate::sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Whose cache it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Role {
    /// No cache has this number.
    Vacant,
    /// A size class of `kmalloc`.
    Kmalloc,
    /// Created by a user.
    User,
    /// Created by a layer above for its own descriptors; users neither free into it nor destroy it.
    Internal,
    /// Created by a user, on the slabs of another cache.
    Alias,
    /// Destroyed by its user; aliases still use its slabs, or it is being taken down.
    Orphan,
}

impl Role {
    const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Kmalloc,
            2 => Self::User,
            3 => Self::Internal,
            4 => Self::Alias,
            5 => Self::Orphan,
            _ => Self::Vacant,
        }
    }
}

/// Division by a fixed stride as a multiplication.
///
/// Exact for offsets and strides up to 2^22, the size of the largest slab: the multiplier exceeds 2^44 / stride by
/// less than 1, so the product exceeds the quotient by less than 2^22 / 2^44 * 2^22 / stride = 1 / stride.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Reciprocal(u64);

impl Reciprocal {
    const SHIFT: u32 = 44;

    pub(super) const fn new(stride: usize) -> Self {
        Self((1u64 << Self::SHIFT).div_ceil(if stride == 0 { 1 } else { stride as u64 }))
    }

    /// Returns `offset / stride`.
    pub(super) const fn divide(self, offset: u64) -> u64 {
        offset.wrapping_mul(self.0) >> Self::SHIFT
    }
}

/// A cache's fixed properties.
///
/// ```text
/// stride mod align == 0;   object_size <= stride <= bytes of min_order <= bytes of order
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Whose cache it is.
    pub(super) role: Role,
    /// Bytes that a user asked for.
    pub(super) object_size: usize,
    /// Bytes from one object to the next.
    pub(super) stride: usize,
    /// Alignment of every object.
    pub(super) align: usize,
    /// How to divide by the stride.
    pub(super) reciprocal: Reciprocal,
    /// Slab sizes.
    pub(super) orders: SlabOrders,
    /// Objects in a sheaf; 0 for a cache without sheaves.
    pub(super) capacity: u16,
    /// How liveness is kept.
    pub(super) live: LiveMode,
    /// Flags added to each request for frames.
    pub(super) alloc_gfp: GfpFlags,
    /// What the cache was created with.
    pub(super) flags: SlabFlags,
    /// The bytes of an object that may be copied to and from user space.
    pub(super) user: UserWindow,
    /// Where the free pointer lies in a free object, if its creator said so.
    pub(super) freeptr_offset: Option<u32>,
    /// Bytes before each object that are not the object's: the left red zone of a debug cache.
    pub(super) left: u32,
    /// Whether objects are constructed.
    pub(super) has_ctor: bool,
    /// Whether similar caches may use the slabs.
    pub(super) mergeable: bool,
}

/// A part of each object. Empty: no byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct UserWindow {
    /// First byte.
    pub(super) offset: u32,
    /// Number of bytes.
    pub(super) size: u32,
}

impl Shape {
    /// Returns how many partial slabs the cache keeps.
    pub(super) const fn min_partial(&self) -> u32 {
        order::min_partial(self.stride)
    }

    /// Returns how many objects a slab of this order holds.
    pub(super) const fn objects_in(&self, order: Order) -> u32 {
        (order.bytes() / self.stride) as u32
    }
}

impl UserWindow {
    /// The window that a creator asked for; none if it does not fit the object.
    pub(super) fn of(args: &CacheArgs) -> Self {
        let fits = args.useroffset.checked_add(args.usersize).is_some_and(|end| end <= args.size);
        if fits && args.usersize > 0 {
            Self { offset: args.useroffset as u32, size: args.usersize as u32 }
        } else {
            Self::default()
        }
    }
}

/// The place of a [`Shape`], written when a cache is made and read by every path.
///
/// The fields are relaxed atomics: whoever hands the cache's number to another CPU orders the two.
#[repr(C, align(64))]
pub(super) struct ShapeRecord {
    reciprocal: AtomicU64,
    object_size: AtomicU32,
    stride: AtomicU32,
    alloc_gfp: AtomicU32,
    capacity: AtomicU16,
    live: AtomicU8,
    role: AtomicU8,
    order: AtomicU8,
    min_order: AtomicU8,
    align_shift: AtomicU8,
    has_ctor: AtomicU8,
    left: AtomicU32,
    flags: AtomicU32,
    user_offset: AtomicU32,
    user_size: AtomicU32,
    /// One more than the offset; 0 for none.
    freeptr: AtomicU32,
    mergeable: AtomicBool,
    /// Of an alias: the number of the cache whose slabs it uses.
    root: AtomicU8,
}

const _: () = assert!(size_of::<ShapeRecord>() == 64);

impl ShapeRecord {
    pub(super) const fn vacant() -> Self {
        Self {
            reciprocal: AtomicU64::new(0),
            object_size: AtomicU32::new(0),
            stride: AtomicU32::new(1),
            alloc_gfp: AtomicU32::new(0),
            capacity: AtomicU16::new(0),
            live: AtomicU8::new(LiveMode::Off.to_byte()),
            role: AtomicU8::new(Role::Vacant as u8),
            order: AtomicU8::new(0),
            min_order: AtomicU8::new(0),
            align_shift: AtomicU8::new(0),
            has_ctor: AtomicU8::new(0),
            left: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            user_offset: AtomicU32::new(0),
            user_size: AtomicU32::new(0),
            freeptr: AtomicU32::new(0),
            mergeable: AtomicBool::new(false),
            root: AtomicU8::new(0),
        }
    }

    pub(super) fn store(&self, shape: &Shape) {
        self.reciprocal.store(shape.reciprocal.0, Relaxed);
        self.object_size.store(shape.object_size as u32, Relaxed);
        self.stride.store(shape.stride as u32, Relaxed);
        self.alloc_gfp.store(shape.alloc_gfp.bits(), Relaxed);
        self.capacity.store(shape.capacity, Relaxed);
        self.live.store(shape.live.to_byte(), Relaxed);
        self.order.store(shape.orders.preferred.get(), Relaxed);
        self.min_order.store(shape.orders.min.get(), Relaxed);
        self.align_shift.store(shape.align.trailing_zeros() as u8, Relaxed);
        self.has_ctor.store(u8::from(shape.has_ctor), Relaxed);
        self.left.store(shape.left, Relaxed);
        self.flags.store(shape.flags.bits(), Relaxed);
        self.user_offset.store(shape.user.offset, Relaxed);
        self.user_size.store(shape.user.size, Relaxed);
        self.freeptr.store(shape.freeptr_offset.map_or(0, |offset| offset.saturating_add(1)), Relaxed);
        self.mergeable.store(shape.mergeable, Relaxed);
        self.set_role(shape.role);
    }

    pub(super) fn set_role(&self, role: Role) {
        self.role.store(role as u8, Relaxed);
    }

    /// Makes the number that of an alias.
    pub(super) fn make_alias(&self, root: usize) {
        self.root.store(root as u8, Relaxed);
        self.set_role(Role::Alias);
    }

    /// The number of the cache whose slabs an alias uses; `None` for any other role.
    pub(super) fn root(&self) -> Option<usize> {
        (self.role() == Role::Alias).then(|| usize::from(self.root.load(Relaxed)))
    }

    /// Makes sure that objects have at least this size: an alias may ask for a few bytes more than its root.
    pub(super) fn grow_object(&self, size: usize) {
        self.object_size.fetch_max(size as u32, Relaxed);
    }

    /// Reads all fields; `None` if no cache has the number.
    pub(super) fn load(&self) -> Option<Shape> {
        let order = |field: &AtomicU8| Order::new(field.load(Relaxed)).unwrap_or(Order::ZERO);
        let role = self.role();
        (role != Role::Vacant).then(|| Shape {
            role,
            object_size: self.object_size(),
            stride: self.stride.load(Relaxed).max(1) as usize,
            align: 1 << (self.align_shift.load(Relaxed) & 31),
            reciprocal: Reciprocal(self.reciprocal.load(Relaxed)),
            orders: SlabOrders { preferred: order(&self.order), min: order(&self.min_order) },
            capacity: self.capacity.load(Relaxed),
            live: self.live(),
            alloc_gfp: GfpFlags::from_bits_retain(self.alloc_gfp.load(Relaxed)),
            flags: self.flags(),
            user: UserWindow { offset: self.user_offset.load(Relaxed), size: self.user_size.load(Relaxed) },
            freeptr_offset: self.freeptr.load(Relaxed).checked_sub(1),
            left: self.left.load(Relaxed),
            has_ctor: self.has_ctor.load(Relaxed) != 0,
            mergeable: self.mergeable.load(Relaxed),
        })
    }

    #[inline(always)]
    pub(super) fn live(&self) -> LiveMode {
        LiveMode::from_byte(self.live.load(Relaxed))
    }

    pub(super) fn flags(&self) -> SlabFlags {
        SlabFlags::from_bits_retain(self.flags.load(Relaxed))
    }

    pub(super) fn role(&self) -> Role {
        Role::from_byte(self.role.load(Relaxed))
    }

    pub(super) fn object_size(&self) -> usize {
        self.object_size.load(Relaxed) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reciprocal_divides_exactly_around_every_multiple() {
        let largest = 4u64 << 20;
        for stride in (8..2048).step_by(8).chain([4096, 8192, 12288, 40000, 65544, 1 << 20, 4 << 20]) {
            let by = Reciprocal::new(stride);
            let stride = stride as u64;
            for multiple in (0..=largest).step_by(stride as usize) {
                for offset in [multiple.saturating_sub(1), multiple, multiple + 1] {
                    assert_eq!(by.divide(offset), offset / stride, "{offset} / {stride}");
                }
            }
        }
    }

    #[test]
    fn a_record_gives_back_what_was_stored_until_it_is_vacated() {
        let record = ShapeRecord::vacant();
        assert!(record.load().is_none());
        let orders = order::slab_orders(96, 1, Order::MAX).unwrap();
        let shape = Shape {
            role: Role::User,
            object_size: 90,
            stride: 96,
            align: 32,
            reciprocal: Reciprocal::new(96),
            orders,
            capacity: 60,
            live: LiveMode::Bytes,
            alloc_gfp: GfpFlags::DMA,
            flags: SlabFlags::CACHE_DMA | SlabFlags::NO_MERGE,
            user: UserWindow { offset: 8, size: 24 },
            freeptr_offset: Some(0),
            left: 32,
            has_ctor: true,
            mergeable: true,
        };
        record.store(&shape);
        let loaded = record.load().unwrap();
        assert_eq!((loaded.object_size, loaded.stride, loaded.align), (90, 96, 32));
        assert_eq!((loaded.orders, loaded.capacity, loaded.alloc_gfp), (orders, 60, GfpFlags::DMA));
        assert_eq!((loaded.flags, loaded.user, loaded.freeptr_offset), (shape.flags, shape.user, Some(0)));
        record.set_role(Role::Vacant);
        assert!(record.load().is_none());
    }
}
