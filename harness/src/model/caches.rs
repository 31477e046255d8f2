//! Caches: which of them exist, which share slabs, and what a request to make one must be answered.
//!
//! Derived again from sections 2.2, 2.5 and 2.12 of the contract. Two caches share slabs if objects of both are the same
//! distance apart and come from the same pages, unless one of them is special; then it does not matter which came first.

use super::classes;
use super::debug::{Checks, DebugLayout, Kept};
use kmem::{CacheError, CacheId, Geometry, PAGE_SIZE, SlabFlags, SlabMerge, ZoneKind};

/// What a cache is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum CacheNaming {
    /// By a name that no other cache of the trace has.
    #[default]
    Own,
    /// By one of a few names that several caches may have.
    Common(u8),
    /// By a name as long as a name may be.
    Longest,
    /// By a name that is one byte too long.
    TooLong,
    /// Not at all.
    Empty,
}

impl CacheNaming {
    /// Returns the naming that a number stands for: mostly one that several caches have.
    pub const fn of(number: u64) -> Self {
        match number % 8 {
            0 => Self::Empty,
            1 => Self::TooLong,
            2 => Self::Longest,
            n => Self::Common(n as u8 - 3),
        }
    }

    /// Returns the name; `unique` is a number that makes it one of its own.
    pub fn text(self, unique: u64) -> String {
        match self {
            Self::Own => format!("test-{unique}"),
            Self::Common(n) => format!("test-common-{n}"),
            Self::Longest => format!("test-{}", "n".repeat(kmem::CACHE_NAME_MAX - 5)),
            Self::TooLong => format!("test-{}", "n".repeat(kmem::CACHE_NAME_MAX - 4)),
            Self::Empty => String::new(),
        }
    }
}

/// What a cache is asked to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of `kmem::CacheArgs`, and the name")]
pub struct CacheSpec {
    pub name: CacheNaming,
    pub size: usize,
    pub align: usize,
    pub flags: SlabFlags,
    pub ctor: bool,
    pub useroffset: usize,
    pub usersize: usize,
    pub freeptr_offset: Option<usize>,
    pub sheaf_capacity: u16,
}

impl CacheSpec {
    /// Objects of `size` bytes, aligned, that share their slabs with nobody.
    pub fn own(size: usize, align: usize, hwcache: bool, ctor: bool) -> Self {
        let line = if hwcache { SlabFlags::HWCACHE_ALIGN } else { SlabFlags::empty() };
        Self { size, align, flags: line | SlabFlags::NO_MERGE, ctor, ..Self::default() }
    }

    /// Tells whether objects have more around them than their alignment needs.
    pub fn is_debugged(&self) -> bool {
        self.flags.intersects(SlabFlags::DEBUG)
    }

    /// The alignment that the user may rely on.
    pub fn object_align(&self) -> usize {
        classes::cache_align(self.size, self.align, self.flags.contains(SlabFlags::HWCACHE_ALIGN))
    }

    /// How objects are guarded; `None` if they are not.
    pub fn debug_layout(&self) -> Option<DebugLayout> {
        let kept = match self.freeptr_offset {
            // Readers may still look at a freed object.
            _ if !self.ctor && !self.flags.contains(SlabFlags::TYPESAFE_BY_RCU) => Kept::Nothing,
            Some(_) => Kept::ConstructedAround,
            None => Kept::Constructed,
        };
        let layout = || DebugLayout::new(self.size, self.object_align(), Checks::of(self.flags), kept, false);
        self.is_debugged().then(layout)
    }

    /// Bytes from one object to the next.
    pub fn stride(&self) -> usize {
        let plain = || classes::cache_stride(self.size, self.object_align());
        self.debug_layout().map_or_else(plain, |layout| layout.stride())
    }

    /// The bytes of an object that may be copied to user space; a window that does not fit is none.
    pub fn user_window(&self) -> std::ops::Range<usize> {
        match self.useroffset.checked_add(self.usersize) {
            Some(end) if end <= self.size && self.usersize > 0 => self.useroffset..end,
            _ => 0..0,
        }
    }

    /// The highest zone from which its slabs come: a machine without the zone that it names has nothing that is too high.
    pub fn highest_zone(&self, geometry: &Geometry) -> ZoneKind {
        let low = [(SlabFlags::CACHE_DMA, ZoneKind::Dma), (SlabFlags::CACHE_DMA32, ZoneKind::Dma32)];
        let named = low.into_iter().find(|&(flag, _)| self.flags.contains(flag)).map(|(_, kind)| kind);
        let exists = |kind: &ZoneKind| geometry.zones().iter().any(|zone| zone.kind == *kind);
        named.filter(exists).unwrap_or(ZoneKind::Normal)
    }

    /// What makes caches share slabs; `None` for one that never does.
    fn merge_key(&self) -> Option<(usize, SlabFlags)> {
        const NEVER: SlabFlags = SlabFlags::NO_MERGE
            .union(SlabFlags::TYPESAFE_BY_RCU)
            .union(SlabFlags::NOLEAKTRACE)
            .union(SlabFlags::FAILSLAB)
            .union(SlabFlags::CONSISTENCY_CHECKS)
            .union(SlabFlags::RED_ZONE)
            .union(SlabFlags::POISON)
            .union(SlabFlags::STORE_USER)
            .union(SlabFlags::TRACE);
        const SAME: SlabFlags = SlabFlags::RECLAIM_ACCOUNT
            .union(SlabFlags::CACHE_DMA)
            .union(SlabFlags::CACHE_DMA32)
            .union(SlabFlags::ACCOUNT);
        let alone = self.ctor || self.usersize > 0 || self.sheaf_capacity > 0 || self.flags.intersects(NEVER);
        (!alone).then(|| (self.stride(), self.flags & SAME))
    }
}

/// A cache that a trace made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheModel {
    /// Its name for calls.
    pub id: CacheId,
    /// The cache in whose slabs its objects are: itself, or one that was made before.
    pub root: CacheId,
    /// What it was asked to be.
    pub spec: CacheSpec,
    /// Bytes that the user asked for per object.
    pub object_size: usize,
    /// Alignment that the user may rely on.
    pub align: usize,
    /// Bytes from one object to the next.
    pub stride: usize,
    /// Whether objects are constructed.
    pub ctor: bool,
    /// Objects that are live.
    pub live: usize,
}

/// Slabs that one or more caches use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootModel {
    /// Its number; the cache of that number may be gone.
    pub id: CacheId,
    /// What the cache that made it was asked to be.
    pub spec: CacheSpec,
    /// Size of the largest object that one of its caches has had.
    pub object_size: usize,
}

/// All caches.
#[derive(Debug, Default)]
pub(super) struct Caches {
    caches: Vec<CacheModel>,
    roots: Vec<RootModel>,
}

impl Caches {
    pub(super) fn all(&self) -> &[CacheModel] {
        &self.caches
    }

    pub(super) fn roots(&self) -> &[RootModel] {
        &self.roots
    }

    pub(super) fn get(&self, id: CacheId) -> Option<&CacheModel> {
        self.caches.iter().find(|cache| cache.id == id)
    }

    pub(super) fn get_mut(&mut self, id: CacheId) -> Option<&mut CacheModel> {
        self.caches.iter_mut().find(|cache| cache.id == id)
    }

    /// The caches in the slabs of this one.
    pub(super) fn users(&self, root: CacheId) -> impl Iterator<Item = &CacheModel> {
        self.caches.iter().filter(move |cache| cache.root == root)
    }

    /// The root that a cache of this kind shares; `None` if it gets slabs of its own.
    pub(super) fn root_for(&self, merge: SlabMerge, spec: &CacheSpec) -> Option<CacheId> {
        let key = spec.merge_key().filter(|_| merge == SlabMerge::Similar)?;
        self.roots.iter().find(|root| root.spec.merge_key() == Some(key)).map(|root| root.id)
    }

    pub(super) fn add(&mut self, merge: SlabMerge, id: CacheId, spec: CacheSpec) {
        let root = self.root_for(merge, &spec);
        match self.roots.iter_mut().find(|known| Some(known.id) == root) {
            Some(known) => known.object_size = known.object_size.max(spec.size),
            None => self.roots.push(RootModel { id, spec, object_size: spec.size }),
        }
        let (align, stride) = (spec.object_align(), spec.stride());
        let root = root.unwrap_or(id);
        let (object_size, ctor) = (spec.size, spec.ctor);
        self.caches.push(CacheModel { id, root, spec, object_size, align, stride, ctor, live: 0 });
    }

    /// Forgets a cache; returns another one in the same slabs, or `None` if it was the last.
    pub(super) fn remove(&mut self, id: CacheId) -> Option<CacheId> {
        let at = self.caches.iter().position(|cache| cache.id == id)?;
        let gone = self.caches.remove(at);
        let heir = self.users(gone.root).next().map(|cache| cache.id);
        match heir.and_then(|heir| self.get_mut(heir)) {
            Some(heir) => heir.live += gone.live,
            None => self.roots.retain(|root| root.id != gone.root),
        }
        heir
    }
}

/// Tells whether an error is a right answer to a request to make a cache, whatever else exists.
pub fn refuses(geometry: &Geometry, spec: &CacheSpec, error: &CacheError) -> bool {
    match *error {
        CacheError::BadName => bad_name(spec),
        CacheError::BadAlign(align) => align == spec.align && bad_align(spec),
        CacheError::BadFlags => bad_flags(spec),
        CacheError::BadFreePointer(offset) => spec.freeptr_offset == Some(offset) && bad_free_pointer(spec),
        CacheError::BadSize(size) => size == spec.size && bad_size(geometry, spec),
        _ => false,
    }
}

/// Tells whether a cache like this cannot be made.
pub fn is_impossible(geometry: &Geometry, spec: &CacheSpec) -> bool {
    bad_name(spec) || bad_align(spec) || bad_flags(spec) || bad_free_pointer(spec) || bad_size(geometry, spec)
}

fn bad_name(spec: &CacheSpec) -> bool {
    matches!(spec.name, CacheNaming::Empty | CacheNaming::TooLong)
}

fn bad_align(spec: &CacheSpec) -> bool {
    spec.align != 0 && (!spec.align.is_power_of_two() || spec.align > PAGE_SIZE)
}

fn bad_flags(spec: &CacheSpec) -> bool {
    /// What no user of the library may ask for.
    const REFUSED: SlabFlags = SlabFlags::KMALLOC;
    spec.flags.intersects(REFUSED) || spec.flags.contains(SlabFlags::CACHE_DMA | SlabFlags::CACHE_DMA32)
}

fn bad_free_pointer(spec: &CacheSpec) -> bool {
    let useful = spec.ctor || spec.flags.contains(SlabFlags::TYPESAFE_BY_RCU);
    spec.freeptr_offset.is_some_and(|offset| !useful || offset >= spec.size || offset % 8 != 0)
}

fn bad_size(geometry: &Geometry, spec: &CacheSpec) -> bool {
    let spec = CacheSpec { align: if bad_align(spec) { 0 } else { spec.align }, ..*spec };
    spec.stride() > PAGE_SIZE << geometry.max_order.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(size: usize, flags: SlabFlags) -> CacheSpec {
        CacheSpec { size, flags, ..CacheSpec::default() }
    }

    #[test]
    fn caches_of_one_stride_and_source_share_slabs() {
        let mut caches = Caches::default();
        let ids: Vec<CacheId> = (40..46).map(CacheId::new).collect();
        let none = SlabFlags::empty();
        let specs = [
            spec(60, none),
            spec(64, none),
            spec(64, SlabFlags::NO_MERGE),
            spec(64, SlabFlags::ACCOUNT),
            CacheSpec { ctor: true, ..spec(64, none) },
            CacheSpec { align: 64, ..spec(40, none) },
        ];
        for (id, spec) in ids.iter().zip(specs) {
            caches.add(SlabMerge::Similar, *id, spec);
        }
        let roots: Vec<CacheId> = caches.all().iter().map(|cache| cache.root).collect();
        assert_eq!(roots, [ids[0], ids[0], ids[2], ids[3], ids[4], ids[0]]);
        assert_eq!(caches.roots()[0].object_size, 64);
        assert_eq!(caches.remove(ids[0]), Some(ids[1]));
        assert_eq!(caches.remove(ids[2]), None);
        assert_eq!(caches.roots().len(), 3);
    }

    #[test]
    fn a_window_that_leaves_the_object_is_none() {
        let window = |useroffset, usersize| CacheSpec { useroffset, usersize, ..spec(64, SlabFlags::empty()) };
        assert_eq!(window(8, 56).user_window(), 8..64);
        assert_eq!(window(8, 57).user_window(), 0..0);
        assert_eq!(window(usize::MAX, 2).user_window(), 0..0);
    }

    #[test]
    fn requests_that_make_no_sense_have_one_answer() {
        let geometry = Geometry::flat(1024);
        let refuses = |spec: CacheSpec, error| refuses(&geometry, &spec, &error);
        assert!(refuses(CacheSpec { align: 12, ..spec(8, SlabFlags::empty()) }, CacheError::BadAlign(12)));
        assert!(refuses(spec(8, SlabFlags::KMALLOC), CacheError::BadFlags));
        assert!(refuses(spec((4 << 20) + 1, SlabFlags::empty()), CacheError::BadSize((4 << 20) + 1)));
        let pointer = CacheSpec { freeptr_offset: Some(8), ..spec(64, SlabFlags::empty()) };
        assert!(refuses(pointer, CacheError::BadFreePointer(8)));
        assert!(!refuses(CacheSpec { ctor: true, ..pointer }, CacheError::BadFreePointer(8)));
        assert!(!is_impossible(&geometry, &CacheSpec { ctor: true, ..pointer }));
    }
}
