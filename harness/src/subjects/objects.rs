//! The calls of [`ObjectsCall`] on `kmem`.

use crate::subject::{ObjectsCall, Reply, SHEAF_ROOM};
use kmem::{AllocError, CacheId, FreeError, GfpFlags, Kmem, NodeId, Platform, PrefilledSheaf, VirtAddr};

/// Prefilled sheaves by number, and a place for the objects of bulk calls.
#[derive(Default)]
pub(super) struct Sheaves {
    held: Vec<(u32, Box<PrefilledSheaf<SHEAF_ROOM>>)>,
    next: u32,
    objects: Vec<VirtAddr>,
}

impl Sheaves {
    /// Makes a call.
    pub(super) fn call<P: Platform>(&mut self, kmem: &Kmem<P>, call: &ObjectsCall) -> Reply {
        match *call {
            ObjectsCall::KmallocNode { size, gfp, node } => one(kmem, kmem.kmalloc_node(size, gfp, NodeId::new(node))),
            ObjectsCall::CacheAllocNode { cache, gfp, node } => {
                one(kmem, kmem.kmem_cache_alloc_node(cache, gfp, NodeId::new(node)))
            }
            ObjectsCall::KmallocNolock { size, gfp } => one(kmem, kmem.kmalloc_nolock(size, gfp, None)),
            ObjectsCall::KfreeNolock { addr, .. } => done(kmem.kfree_nolock(VirtAddr::new(addr))),
            ObjectsCall::AllocBulk { cache, gfp, count } => self.alloc_bulk(kmem, cache, gfp, count),
            ObjectsCall::FreeBulk { cache, ref blocks } => {
                self.objects.clear();
                self.objects.extend(blocks.iter().map(|&(addr, _)| VirtAddr::new(addr)));
                done(kmem.kmem_cache_free_bulk(cache, &self.objects))
            }
            ObjectsCall::PrefillSheaf { cache, gfp, count } => self.prefill(kmem, cache, gfp, count),
            ObjectsCall::AllocFromSheaf { sheaf, gfp, .. } => match self.held(sheaf) {
                Some(held) => one(kmem, kmem.kmem_cache_alloc_from_sheaf(held, gfp)),
                None => Reply::Unsupported,
            },
            ObjectsCall::RefillSheaf { sheaf, gfp, count, .. } => match self.held(sheaf) {
                Some(held) => match kmem.kmem_cache_refill_sheaf(held, gfp, count) {
                    Ok(()) => Reply::Size(held.len()),
                    Err(error) => Reply::Refused(error),
                },
                None => Reply::Unsupported,
            },
            ObjectsCall::ReturnSheaf { sheaf, .. } => match self.held.iter().position(|(number, _)| *number == sheaf) {
                Some(place) => {
                    let (_, held) = self.held.swap_remove(place);
                    kmem.kmem_cache_return_sheaf(*held);
                    Reply::Done
                }
                None => Reply::Unsupported,
            },
        }
    }

    fn held(&mut self, sheaf: u32) -> Option<&mut PrefilledSheaf<SHEAF_ROOM>> {
        self.held.iter_mut().find(|(number, _)| *number == sheaf).map(|(_, held)| &mut **held)
    }

    fn alloc_bulk<P: Platform>(&mut self, kmem: &Kmem<P>, cache: CacheId, gfp: GfpFlags, count: usize) -> Reply {
        self.objects.clear();
        self.objects.resize(count, VirtAddr::NULL);
        match kmem.kmem_cache_alloc_bulk(cache, gfp, &mut self.objects) {
            Ok(()) => {
                let object = |&addr: &VirtAddr| (addr.as_u64(), kmem.kvsize(addr).unwrap_or(0));
                Reply::Objects(self.objects.iter().map(object).collect())
            }
            Err(error) => Reply::Refused(error),
        }
    }

    fn prefill<P: Platform>(&mut self, kmem: &Kmem<P>, cache: CacheId, gfp: GfpFlags, count: usize) -> Reply {
        match kmem.kmem_cache_prefill_sheaf(cache, gfp, count) {
            Ok(sheaf) => {
                let number = self.next;
                self.next += 1;
                self.held.push((number, Box::new(sheaf)));
                Reply::Sheaf(number)
            }
            Err(error) => Reply::Refused(error),
        }
    }
}

fn done(answer: Result<(), FreeError>) -> Reply {
    match answer {
        Ok(()) => Reply::Done,
        Err(misuse) => Reply::Rejected(misuse),
    }
}

fn one<P: Platform>(kmem: &Kmem<P>, answer: Result<VirtAddr, AllocError>) -> Reply {
    match answer {
        Ok(addr) => Reply::Objects(vec![(addr.as_u64(), kmem.kvsize(addr).unwrap_or(0))]),
        Err(error) => Reply::Refused(error),
    }
}
