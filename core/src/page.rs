//! The frame table: a descriptor of 32 bytes and one dense kind byte for each physical frame.
//!
//! Each field belongs to the layer that owns the frame, under that layer's lock; the fields are atomics so that a
//! reader in another layer sees a whole value, not to order anything. The kind byte is what `kfree` and `kvfree` look
//! at first: one load says which layer owns the frame, and for a slab also which cache.
//!
//! Blocks of a power of two are whole in their first frame, so that handing one out, splitting it and merging it cost the same
//! for each order: the first frame's byte says what the block is, and each other frame's is [`TAIL`]. A block lies at a multiple
//! of its size, so the way back from a tail is a look at one frame for each order. The frames of a slab have the cache's byte
//! each and know how far away the first is, for `kfree` asks them all the time.
//!
//! | kind | owner | the descriptor holds |
//! |---|---|---|
//! | `Absent` | nobody: outside every zone | nothing |
//! | `Free` | buddy | in the block's first frame: order, migrate type of its list, links |
//! | `Pcp` | per-CPU pages | in the block's first frame: order, migrate type, links |
//! | `Pages`, `PagesTail` | the caller of `alloc_pages` | first frame: order |
//! | `LargeKmalloc`, `LargeTail` | the caller of `kmalloc` | the same |
//! | `Slab(cache)` | slab | first frame: counts, links; every frame: distance to it |
//! | `Vmalloc` | vmalloc | number of its page, and whether it may move; the page table knows the rest |
//! | `Leaked` | nobody any more | nothing |
//! | `PagesShared` | the caller of `alloc_pages` and others | as `Pages`, and the number of extra references |
//! | `Guard` | nobody: between blocks that could run over | in the first frame: order |
//! | `Bad` | nobody, for good | nothing |
//! | `PageTable` | paging | number of entries in use |
//! | `Deferred` | a zone's stack of late frees | first frame: order, link |
//!
//! ```text
//! I10.1  kind(f) == Absent  <=>  f is in no zone
//! I10.2  f heads a block of order k  =>  f mod 2^k == 0 and frames f .. f + 2^k are in the zone of f
//! I10.3  byte(f) == TAIL  <=>  f is in a block, but no slab, that another frame heads
//! I10.4  head_distance(f) != 0  =>  f is in a slab, and its first frame is so many frames before f
//! ```

mod block;
mod direct;
mod list;
mod shown;

pub(crate) use direct::DirectMap;
pub(crate) use list::{PageList, PageStack};

use crate::addr::Pfn;
use crate::error::{BlockKind, CacheId};
use crate::geometry::Geometry;
use crate::order::Order;
use crate::raw::{Carver, MetaSlice};
use crate::sync::{
    AtomicU8, AtomicU16, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};

/// Who owns a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameKind {
    /// In no zone.
    Absent,
    /// In a free block of the buddy.
    Free,
    /// In a free block on a per-CPU list.
    Pcp,
    /// First frame of a block given by `alloc_pages`.
    Pages,
    /// Another frame of such a block.
    PagesTail,
    /// First frame of a large `kmalloc`.
    LargeKmalloc,
    /// Another frame of such a block.
    LargeTail,
    /// First frame of a large `kmalloc` that was freed and waits for a grace period.
    LargePending,
    /// Behind a vmalloc area.
    Vmalloc,
    /// A page table.
    PageTable,
    /// Of a slab with live objects whose cache was destroyed; never used again.
    Leaked,
    /// In a block that was freed when nobody could take the zone's lock, and that will be free when somebody does.
    Deferred,
    /// First frame of a block given by `alloc_pages` with extra references, or that is mapped.
    PagesShared,
    /// Set aside next to a used block, to be nobody's while that lives.
    Guard,
    /// Something was wrong with its block; never handed out again.
    Bad,
    /// Part of a slab of this cache.
    Slab(CacheId),
}

/// The first kind byte that means a single page of `alloc_pages` which knows the array that it returns to; the array's
/// number is added. See [`FrameTable::set_home`].
const HOME_BASE: u8 = 16;
/// How many arrays have a kind byte.
pub(crate) const HOMES: usize = (SLAB_BASE - HOME_BASE) as usize;
/// The first kind byte that means a slab; the cache's number is added.
const SLAB_BASE: u8 = 32;
/// The kind byte of each frame but the first of a block: what it is says the first.
pub(crate) const TAIL: u8 = 4;

impl FrameKind {
    /// Returns the kind as it is kept in the dense map.
    #[inline]
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Absent => 0,
            Self::Free => 1,
            Self::Pcp => 2,
            Self::Pages => 3,
            Self::PagesTail | Self::LargeTail => TAIL,
            Self::LargeKmalloc => 5,
            Self::Vmalloc => 7,
            Self::PageTable => 8,
            Self::Leaked => 12,
            Self::Deferred => 13,
            Self::LargePending => 14,
            Self::PagesShared => 9,
            Self::Guard => 10,
            Self::Bad => 11,
            Self::Slab(cache) => SLAB_BASE + cache.get() as u8,
        }
    }

    /// The inverse of [`Self::to_byte`] for frames that head a block or are part of a slab; unused bytes read as `Absent`.
    #[inline]
    pub(crate) const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Free,
            2 => Self::Pcp,
            3 => Self::Pages,
            TAIL => Self::PagesTail,
            5 => Self::LargeKmalloc,
            7 => Self::Vmalloc,
            8 => Self::PageTable,
            12 => Self::Leaked,
            13 => Self::Deferred,
            9 => Self::PagesShared,
            10 => Self::Guard,
            11 => Self::Bad,
            HOME_BASE..SLAB_BASE => Self::Pages,
            14 => Self::LargePending,
            SLAB_BASE.. => Self::Slab(CacheId::new((byte - SLAB_BASE) as u16)),
            _ => Self::Absent,
        }
    }

    /// The number of the array to which a single page with this kind byte returns; beyond all of them for other frames.
    #[inline(always)]
    pub(crate) const fn home_number(byte: u8) -> usize {
        (byte as usize).wrapping_sub(HOME_BASE as usize)
    }

    /// The number of the cache that a kind byte names; beyond the number of every cache if it names none.
    #[inline(always)]
    pub(crate) const fn cache_number(byte: u8) -> usize {
        (byte as usize).wrapping_sub(SLAB_BASE as usize)
    }

    /// Whether each frame of a block of the kind with this byte has the byte, and knows how far away the first is.
    #[inline(always)]
    pub(crate) const fn is_everywhere(byte: u8) -> bool {
        byte >= SLAB_BASE || byte == Self::Leaked.to_byte()
    }

    /// The kind of the frames after the first of a block with this kind.
    pub(crate) const fn tail(self) -> Self {
        match self {
            Self::Pages | Self::PagesShared => Self::PagesTail,
            Self::LargeKmalloc | Self::LargePending => Self::LargeTail,
            other => other,
        }
    }

    /// Which family of calls frees memory in such a frame.
    pub const fn block_kind(self) -> BlockKind {
        match self {
            Self::Pages | Self::PagesTail | Self::PagesShared => BlockKind::Pages,
            Self::LargeKmalloc | Self::LargePending | Self::LargeTail => BlockKind::LargeKmalloc,
            Self::Slab(_) | Self::Leaked => BlockKind::Slab,
            Self::Vmalloc => BlockKind::Vmalloc,
            Self::Absent | Self::Free | Self::Pcp | Self::PageTable | Self::Deferred | Self::Guard | Self::Bad => {
                BlockKind::Internal
            }
        }
    }
}

/// In the descriptor of a frame behind a vmalloc area: its contents may move.
const MAY_MOVE: u8 = 1;

/// No frame: the end of a list.
const NIL: u32 = u32::MAX;

/// A frame's descriptor; all zeros while the frame is absent.
#[repr(C)]
pub(crate) struct Page {
    next: AtomicU32,
    prev: AtomicU32,
    /// Slab: distance in frames to the first frame; 0 in that and in all that is no slab.
    head_distance: AtomicU32,
    /// For the layer that owns the frame.
    private: AtomicU32,
    /// Slab: objects not in the slab, be they live or in a sheaf. Page table: entries in use.
    inuse: AtomicU16,
    /// Slab: objects that fit.
    objects: AtomicU16,
    order: AtomicU8,
    migrate: AtomicU8,
    zone: AtomicU8,
    /// Slab: which list the slab is on. Block of several pages: whether it is compound. Vmalloc: whether it may move.
    list: AtomicU8,
    /// How many mappings show the frame.
    mappings: AtomicU32,
    /// Slab of a debug cache: objects that wait for readers.
    waiting: AtomicU32,
}

const _: () = assert!(size_of::<Page>() == 32);
const _: () = assert!(FrameKind::Absent.to_byte() == 0, "descriptors and kinds are carved as zeros");

macro_rules! field {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $get(&self, pfn: Pfn) -> $t {
            self.page(pfn).$field.load(Relaxed)
        }
        #[inline]
        pub(crate) fn $set(&self, pfn: Pfn, value: $t) {
            self.page(pfn).$field.store(value, Relaxed);
        }
    )*};
}

/// One frame's descriptor and kind byte, for the fast paths.
#[derive(Clone, Copy)]
pub(crate) struct FrameRef<'f> {
    kind: &'f AtomicU8,
    page: &'f Page,
}

impl FrameRef<'_> {
    /// Tells whether the frame has this kind and heads a block of this order.
    #[inline(always)]
    pub(crate) fn heads(self, kind: FrameKind, order: Order) -> bool {
        FrameKind::from_byte(self.kind.load(Relaxed)) == kind && self.page.order.load(Relaxed) == order.get()
    }
}

/// A slab's descriptor, for several accesses.
#[derive(Clone, Copy)]
pub(crate) struct SlabRef<'f>(&'f Page);

impl SlabRef<'_> {
    /// Counts one object less out of the slab; returns how many are left out.
    #[inline(always)]
    pub(crate) fn take_back(self) -> u16 {
        let inuse = self.0.inuse.load(Relaxed).saturating_sub(1);
        self.0.inuse.store(inuse, Relaxed);
        inuse
    }

    /// Which list the slab is on.
    #[inline(always)]
    pub(crate) fn list(self) -> u8 {
        self.0.list.load(Relaxed)
    }
}

/// One frame's kind byte, for the fast paths.
#[derive(Clone, Copy)]
pub(crate) struct KindRef<'f>(&'f AtomicU8);

impl KindRef<'_> {
    /// The number of the array to which the page returns; beyond all of them if it is no single page that knows one.
    #[inline(always)]
    pub(crate) fn home(self) -> usize {
        FrameKind::home_number(self.0.load(Relaxed))
    }

    /// Marks the page with the number of its array, which is below [`HOMES`].
    #[inline(always)]
    pub(crate) fn set_home(self, array: usize) {
        self.0.store(HOME_BASE.wrapping_add(array as u8), Relaxed);
    }

    /// Sets the kind.
    #[inline(always)]
    pub(crate) fn set(self, kind: FrameKind) {
        self.0.store(kind.to_byte(), Relaxed);
    }
}

/// Descriptors and kind bytes of all frames.
pub(crate) struct FrameTable {
    pages: MetaSlice<Page>,
    kinds: MetaSlice<AtomicU8>,
}

impl FrameTable {
    pub(crate) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let frames = geometry.frames() as usize;
        // An absent frame's descriptor says nothing, and its kind is byte 0.
        let (pages, kinds) = (carver.carve_zeroed(frames), carver.carve_zeroed(frames));
        Self { pages, kinds }
    }

    /// The kind bytes, for a map that is looked into together with them.
    pub(crate) fn share_kinds(&self) -> MetaSlice<AtomicU8> {
        self.kinds.share()
    }

    /// How many frames have a descriptor.
    pub(crate) fn frames(&self) -> u32 {
        self.kinds.len() as u32
    }

    /// Frame numbers that come from the allocator itself are inside the table; a corrupted one reads frame 0's
    /// descriptor, which the auditor then reports, instead of bringing the system down.
    #[inline]
    fn page(&self, pfn: Pfn) -> &Page {
        debug_assert!(pfn.index() < self.pages.len(), "frame {pfn} has no descriptor");
        self.pages.get(pfn.index()).unwrap_or(&self.pages[0])
    }

    field! {
        /// log2 of the size of the block that the frame heads.
        order_raw, set_order_raw, order: u8;
        /// Migrate type of the free list on which the block is.
        migrate, set_migrate, migrate: u8;
        /// Index of the frame's zone.
        zone, set_zone, zone: u8;
        /// Slab: which list the slab is on.
        list, set_list, list: u8;
        /// Slab: objects not in the slab. Page table: entries in use.
        inuse, set_inuse, inuse: u16;
        /// Slab: objects that fit.
        objects, set_objects, objects: u16;
        /// For the layer that owns the frame.
        private, set_private, private: u32;
        /// Slab: distance in frames to the first frame.
        head_distance, set_head_distance, head_distance: u32;
    }

    /// How many objects of a debug cache's slab wait for readers.
    pub(crate) fn waiting(&self, pfn: Pfn) -> u32 {
        self.page(pfn).waiting.load(Acquire)
    }

    /// Begins to count for a new slab.
    pub(crate) fn clear_waiting(&self, pfn: Pfn) {
        self.page(pfn).waiting.store(0, Relaxed);
    }

    /// Counts one more of them. It may be done without the lock of the slab.
    pub(crate) fn add_waiting(&self, pfn: Pfn) {
        self.page(pfn).waiting.fetch_add(1, Release);
    }

    /// Counts one of them less.
    pub(crate) fn sub_waiting(&self, pfn: Pfn) {
        self.page(pfn).waiting.fetch_sub(1, Release);
    }

    /// Looks a frame up once for several accesses; `None` beyond the table.
    #[inline(always)]
    pub(crate) fn frame(&self, pfn: Pfn) -> Option<FrameRef<'_>> {
        Some(FrameRef { kind: self.kinds.get(pfn.index())?, page: self.pages.get(pfn.index())? })
    }

    /// Returns the order of the block that `pfn` heads.
    pub(crate) fn order(&self, pfn: Pfn) -> Order {
        Order::new(self.order_raw(pfn)).unwrap_or(Order::MAX)
    }

    pub(crate) fn set_order(&self, pfn: Pfn, order: Order) {
        self.set_order_raw(pfn, order.get());
    }

    /// Returns what a frame is; `Absent` beyond the table.
    #[inline]
    pub(crate) fn kind(&self, pfn: Pfn) -> FrameKind {
        match self.kind_byte(pfn) {
            TAIL => FrameKind::from_byte(self.kind_byte(self.head_of(pfn))).tail(),
            byte => FrameKind::from_byte(byte),
        }
    }

    /// Tells whether a frame heads a block of this kind, or is part of a slab of it.
    #[inline]
    pub(crate) fn is_head(&self, pfn: Pfn, kind: FrameKind) -> bool {
        self.kind_byte(pfn) == kind.to_byte()
    }

    #[inline]
    pub(crate) fn kind_byte(&self, pfn: Pfn) -> u8 {
        self.kinds.get(pfn.index()).map_or(0, |b| b.load(Relaxed))
    }

    /// The number of the cache whose slab the frame at this index belongs to; `None` for any other kind.
    #[inline(always)]
    pub(crate) fn slab_cache(&self, index: usize) -> Option<usize> {
        let byte = self.kinds.get(index)?.load(Relaxed);
        byte.checked_sub(SLAB_BASE).map(usize::from)
    }

    /// The descriptor of a slab's first frame.
    #[inline(always)]
    pub(crate) fn slab(&self, head: Pfn) -> SlabRef<'_> {
        SlabRef(self.page(head))
    }

    /// The kind byte of a frame; `None` beyond the table.
    #[inline(always)]
    pub(crate) fn kind_ref(&self, pfn: Pfn) -> Option<KindRef<'_>> {
        self.kinds.get(pfn.index()).map(KindRef)
    }

    /// Marks a single page of `alloc_pages` with the number of the array to which it returns, so that a free needs to know
    /// neither its zone nor the type of its pageblock. Arrays without a kind byte of their own are not noted.
    #[inline(always)]
    pub(crate) fn set_home(&self, pfn: Pfn, array: usize) {
        if let Some(kind) = self.kind_ref(pfn)
            && array < HOMES
        {
            kind.set_home(array);
        }
    }

    /// Forgets the array of a page, because the type of its pageblock changes.
    pub(crate) fn forget_home(&self, pfn: Pfn) {
        if FrameKind::home_number(self.kind_byte(pfn)) < HOMES {
            self.set_kind(pfn, FrameKind::Pages);
        }
    }

    /// Sets the kind of one frame.
    #[inline]
    pub(crate) fn set_kind(&self, pfn: Pfn, kind: FrameKind) {
        if let Some(byte) = self.kinds.get(pfn.index()) {
            byte.store(kind.to_byte(), Relaxed);
        }
    }

    /// The kind byte and the zone number of each frame of a run, for the auditor; a run beyond the table is cut.
    pub(crate) fn run(&self, first: Pfn, frames: u64) -> impl Iterator<Item = (u8, u8)> + '_ {
        let span = first.index()..first.index().saturating_add(frames as usize).min(self.kinds.len());
        let kinds = self.kinds.get(span.clone()).unwrap_or_default();
        let pages = self.pages.get(span).unwrap_or_default();
        kinds.iter().zip(pages).map(|(kind, page)| (kind.load(Relaxed), page.zone.load(Relaxed)))
    }

    fn link(&self, at: Option<Pfn>) -> u32 {
        at.map_or(NIL, Pfn::as_u32)
    }

    /// The frame after `pfn` on its list.
    #[inline]
    pub(crate) fn next(&self, pfn: Pfn) -> Option<Pfn> {
        decode(self.page(pfn).next.load(Relaxed))
    }

    /// The frame before `pfn` on its list.
    #[inline]
    pub(crate) fn prev(&self, pfn: Pfn) -> Option<Pfn> {
        decode(self.page(pfn).prev.load(Relaxed))
    }

    /// Sets both links at once, as they are kept.
    #[inline]
    fn set_links(&self, pfn: Pfn, prev: u32, next: u32) {
        let page = self.page(pfn);
        page.prev.store(prev, Relaxed);
        page.next.store(next, Relaxed);
    }

    /// Returns both links, as they are kept, and clears them.
    #[inline]
    fn take_links(&self, pfn: Pfn) -> (u32, u32) {
        let page = self.page(pfn);
        let links = (page.prev.load(Relaxed), page.next.load(Relaxed));
        page.prev.store(NIL, Relaxed);
        page.next.store(NIL, Relaxed);
        links
    }

    fn set_next(&self, pfn: Pfn, next: Option<Pfn>) {
        self.page(pfn).next.store(self.link(next), Relaxed);
    }

    fn set_prev(&self, pfn: Pfn, prev: Option<Pfn>) {
        self.page(pfn).prev.store(self.link(prev), Relaxed);
    }
}

#[inline]
const fn decode(raw: u32) -> Option<Pfn> {
    if raw == NIL { None } else { Some(Pfn::new(raw)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::MetaRegion;

    pub(super) fn table() -> FrameTable {
        let geometry = Geometry::flat(16);
        let mut region = MetaRegion::heap(64 << 10);
        FrameTable::carve(&geometry, &mut region.carver().unwrap())
    }

    #[test]
    fn kind_bytes_round_trip() {
        for byte in 0..=u8::MAX {
            let kind = FrameKind::from_byte(byte);
            let home = FrameKind::home_number(byte) < HOMES;
            assert!(kind == FrameKind::Absent || kind.to_byte() == byte || (home && kind == FrameKind::Pages));
        }
    }
}
