//! Calls of the slab allocator that give or take several objects, or promise them, or name a memory node.
//!
//! Each stands for single calls: what is demanded of `kmalloc`, `kmem_cache_alloc` and their frees is demanded of each of
//! its objects too, and more is asked of the call as a whole.

use super::{Call, Reply};
use kmem::{CacheId, GfpFlags};

/// The most objects that a prefilled sheaf of the harness holds.
pub const SHEAF_ROOM: usize = 64;

/// One such call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are the arguments of the call that the variant names")]
pub enum ObjectsCall {
    /// `kmalloc_node`.
    KmallocNode { size: usize, gfp: GfpFlags, node: u8 },
    /// `kmem_cache_alloc_node`.
    CacheAllocNode { cache: CacheId, gfp: GfpFlags, node: u8 },
    /// `kmem_cache_alloc_bulk`.
    AllocBulk { cache: CacheId, gfp: GfpFlags, count: usize },
    /// `kmem_cache_free_bulk`; each address with the cache of its object, if it has one that a trace made.
    FreeBulk { cache: Option<CacheId>, blocks: Vec<(u64, Option<CacheId>)> },
    /// `kmem_cache_prefill_sheaf`: answers [`Reply::Sheaf`].
    PrefillSheaf { cache: CacheId, gfp: GfpFlags, count: usize },
    /// `kmem_cache_alloc_from_sheaf` of the sheaf with this number, which belongs to this cache.
    AllocFromSheaf { sheaf: u32, cache: CacheId, gfp: GfpFlags },
    /// `kmem_cache_refill_sheaf`.
    RefillSheaf { sheaf: u32, cache: CacheId, gfp: GfpFlags, count: usize },
    /// `kmem_cache_return_sheaf`.
    ReturnSheaf { sheaf: u32, cache: CacheId },
    /// `kmalloc_nolock`.
    KmallocNolock { size: usize, gfp: GfpFlags },
    /// `kfree_nolock`, with the cache of the object, if it has one that a trace made.
    KfreeNolock { addr: u64, cache: Option<CacheId> },
}

impl ObjectsCall {
    /// The call that would have given one of the objects; `None` if the call gives none.
    pub fn single_allocation(&self) -> Option<Call> {
        Some(match *self {
            Self::KmallocNode { size, gfp, .. } | Self::KmallocNolock { size, gfp } => Call::Kmalloc { size, gfp },
            Self::CacheAllocNode { cache, gfp, .. }
            | Self::AllocBulk { cache, gfp, .. }
            | Self::AllocFromSheaf { cache, gfp, .. } => Call::CacheAlloc { cache, gfp },
            Self::PrefillSheaf { cache, gfp, .. } | Self::RefillSheaf { cache, gfp, .. } => {
                Call::CacheAlloc { cache, gfp: gfp.difference(GfpFlags::ZERO) }
            }
            Self::FreeBulk { .. } | Self::ReturnSheaf { .. } | Self::KfreeNolock { .. } => return None,
        })
    }

    /// The flags of a request for memory; `None` if it asks for none.
    pub fn gfp(&self) -> Option<GfpFlags> {
        match *self {
            Self::KmallocNode { gfp, .. }
            | Self::CacheAllocNode { gfp, .. }
            | Self::AllocBulk { gfp, .. }
            | Self::PrefillSheaf { gfp, .. }
            | Self::RefillSheaf { gfp, .. } => Some(gfp),
            // Nobody is warned where nothing may wait.
            Self::KmallocNolock { gfp, .. } => Some(gfp | GfpFlags::NOWARN),
            Self::AllocFromSheaf { .. } | Self::FreeBulk { .. } => None,
            Self::ReturnSheaf { .. } | Self::KfreeNolock { .. } => None,
        }
    }

    /// The node that the caller names.
    pub fn node(&self) -> Option<u8> {
        match *self {
            Self::KmallocNode { node, .. } | Self::CacheAllocNode { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The frees of single objects for which the call stands.
    pub fn single_frees(&self) -> Vec<Call> {
        let blocks = match self {
            Self::FreeBulk { cache, blocks } => blocks.iter().map(|&(addr, own)| (addr, cache.or(own))).collect(),
            &Self::KfreeNolock { addr, cache } => vec![(addr, cache)],
            _ => Vec::new(),
        };
        let free = |&(addr, cache): &(u64, Option<CacheId>)| match cache {
            Some(cache) => Call::CacheFree { cache, addr },
            None => Call::Kfree { addr },
        };
        blocks.iter().map(free).collect()
    }

    /// The single calls for which a granted call stood, with their answers.
    pub fn parts(&self, reply: &Reply) -> Vec<(Call, Reply)> {
        match (reply, self.single_allocation()) {
            (Reply::Objects(objects), Some(call)) => {
                let part = |&(addr, usable): &(u64, usize)| (call.clone(), Reply::Block { addr, usable });
                objects.iter().map(part).collect()
            }
            (Reply::Done, None) => self.single_frees().into_iter().map(|call| (call, Reply::Done)).collect(),
            _ => Vec::new(),
        }
    }
}

impl std::fmt::Display for ObjectsCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KmallocNode { size, gfp, node } => write!(f, "kmalloc_node({size}, {gfp:?}, {node})"),
            Self::CacheAllocNode { cache, gfp, node } => {
                write!(f, "kmem_cache_alloc_node({cache:?}, {gfp:?}, {node})")
            }
            Self::AllocBulk { cache, gfp, count } => write!(f, "kmem_cache_alloc_bulk({cache:?}, {gfp:?}, {count})"),
            Self::FreeBulk { cache, blocks } => write!(f, "kmem_cache_free_bulk({cache:?}, {} blocks)", blocks.len()),
            Self::PrefillSheaf { cache, gfp, count } => {
                write!(f, "kmem_cache_prefill_sheaf({cache:?}, {gfp:?}, {count})")
            }
            Self::AllocFromSheaf { sheaf, gfp, .. } => write!(f, "kmem_cache_alloc_from_sheaf({sheaf}, {gfp:?})"),
            Self::RefillSheaf { sheaf, gfp, count, .. } => {
                write!(f, "kmem_cache_refill_sheaf({sheaf}, {gfp:?}, {count})")
            }
            Self::KmallocNolock { size, gfp } => write!(f, "kmalloc_nolock({size}, {gfp:?})"),
            Self::KfreeNolock { addr, .. } => write!(f, "kfree_nolock({addr:#x})"),
            Self::ReturnSheaf { sheaf, .. } => write!(f, "kmem_cache_return_sheaf({sheaf})"),
        }
    }
}
