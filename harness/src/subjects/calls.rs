//! The calls of traces on a `Kmem`, whatever the machine under it; what is for one machine only is in its subject.

use super::objects::Sheaves;
use crate::model::caches::CacheSpec;
use crate::oracle::CONSTRUCTED;
use crate::subject::{AreaCall, Call, Near, Reply, WindowCall};
use kmem::{
    AllocError, CacheArgs, CacheError, CacheId, CtorObject, FreeError, GfpFlags, Kmem, Order, PAGE_SIZE, PageCount,
    Pfn, Platform, VirtAddr, VmFlags, VmallocArgs, Vpn,
};

/// What a buffer holds before it is read into.
const UNREAD: u8 = 0x5a;

/// What a subject keeps between its calls.
#[derive(Default)]
pub(crate) struct Kept {
    caches_made: u32,
    slots: Vec<Option<Pfn>>,
    sheaves: Sheaves,
}

impl Kept {
    /// Makes a call that needs nothing but the allocator; `None` if it needs more.
    pub(crate) fn call<P: Platform>(&mut self, kmem: &Kmem<P>, call: &Call) -> Option<Reply> {
        if let Call::Objects(call) = call {
            return Some(self.sheaves.call(kmem, call));
        }
        let mut calls = Calls { kmem, kept: self };
        calls
            .slab_call(call)
            .or_else(|| calls.pages_call(call))
            .or_else(|| calls.references_call(call))
            .or_else(|| calls.kvmalloc_call(call))
            .or_else(|| calls.vmalloc_call(call))
            .or_else(|| calls.cache_call(call))
            .or_else(|| calls.runs_call(call))
            .or_else(|| calls.window_call(call))
    }
}

/// A call being made.
struct Calls<'c, P: Platform> {
    kmem: &'c Kmem<P>,
    kept: &'c mut Kept,
}

impl<P: Platform> Calls<'_, P> {
    fn block(&self, answer: Result<VirtAddr, AllocError>) -> Reply {
        block(self.kmem, answer)
    }

    fn page_block(&self, answer: Result<Pfn, AllocError>, usable: usize) -> Reply {
        match answer {
            Ok(first) => Reply::Block { addr: self.kmem.page_address(first).as_u64(), usable },
            Err(error) => Reply::Refused(error),
        }
    }

    fn alloc_pages(&self, order: u8, alloc: impl FnOnce(Order) -> Result<Pfn, AllocError>) -> Reply {
        match Order::new(order) {
            Some(order) => self.page_block(alloc(order), order.bytes()),
            None => Reply::Refused(AllocError::OrderTooLarge { max: self.kmem.geometry().max_order }),
        }
    }

    fn alloc_pages_exact(&self, size: usize, gfp: GfpFlags) -> Reply {
        let usable = size.checked_next_multiple_of(kmem::PAGE_SIZE).unwrap_or(0);
        self.page_block(self.kmem.alloc_pages_exact(size, gfp), usable)
    }

    fn alloc_pages_bulk(&mut self, count: usize, gfp: GfpFlags) -> Reply {
        self.kept.slots.clear();
        self.kept.slots.resize(count, None);
        self.kmem.alloc_pages_bulk(gfp, &mut self.kept.slots);
        let addresses = self.kept.slots.iter().flatten().map(|&frame| self.kmem.page_address(frame).as_u64());
        Reply::Pages(addresses.collect())
    }

    fn free_pages(&self, addr: u64, free: impl FnOnce(Pfn) -> Result<(), FreeError>) -> Reply {
        let addr = VirtAddr::new(addr);
        done(self.kmem.virt_to_pfn(addr).map_or(Err(FreeError::Foreign(addr)), free))
    }

    fn cache_create(&mut self, spec: &CacheSpec) -> Reply {
        let &CacheSpec { name, size, align, flags, ctor, useroffset, usersize, freeptr_offset, sheaf_capacity } = spec;
        let ctor = ctor.then_some(construct as kmem::Ctor);
        let args = CacheArgs { size, align, flags, ctor, useroffset, usersize, freeptr_offset, sheaf_capacity };
        let name = name.text(u64::from(self.kept.caches_made));
        self.kept.caches_made += 1;
        match self.kmem.kmem_cache_create(&name, &args) {
            Ok(cache) => Reply::Cache(cache),
            Err(error) => Reply::CacheRefused(error),
        }
    }

    fn validate(&self) -> usize {
        let mut caches = Vec::new();
        self.kmem.slabinfo(|cache| caches.push(cache.id));
        let found = |&cache: &CacheId| self.kmem.kmem_cache_validate(cache).map_or(0, |found| found as usize);
        caches.iter().map(found).sum()
    }

    fn pages_call(&mut self, call: &Call) -> Option<Reply> {
        Some(match *call {
            Call::AllocPages { order, gfp } => self.alloc_pages(order, |order| self.kmem.alloc_pages(order, gfp)),
            Call::AllocPagesNode { order, gfp, node } => {
                self.alloc_pages(order, |order| self.kmem.alloc_pages_node(order, gfp, node))
            }
            Call::AllocPagesExact { size, gfp } => self.alloc_pages_exact(size, gfp),
            Call::AllocPagesBulk { count, gfp } => self.alloc_pages_bulk(count, gfp),
            Call::FreePages { addr, order } => match Order::new(order) {
                Some(order) => self.free_pages(addr, |first| self.kmem.free_pages(first, order)),
                None => Reply::Unsupported,
            },
            Call::FreePagesExact { addr, size } => {
                self.free_pages(addr, |first| self.kmem.free_pages_exact(first, size))
            }
            _ => return None,
        })
    }

    fn references_call(&self, call: &Call) -> Option<Reply> {
        let count = |addr: u64, act: &dyn Fn(Pfn) -> Result<u32, FreeError>| {
            let addr = VirtAddr::new(addr);
            match self.kmem.virt_to_pfn(addr).map_or(Err(FreeError::Foreign(addr)), act) {
                Ok(left) => Reply::Size(left as usize),
                Err(error) => Reply::Rejected(error),
            }
        };
        Some(match *call {
            Call::GetPage { addr } => count(addr, &|page| self.kmem.get_page(page)),
            Call::PutPage { addr } => count(addr, &|page| self.kmem.put_page(page)),
            _ => return None,
        })
    }

    fn slab_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = self.kmem;
        Some(match *call {
            Call::Kmalloc { size, gfp } => self.block(kmem.kmalloc(size, gfp)),
            Call::Kfree { addr } => done(kmem.kfree(VirtAddr::new(addr))),
            Call::KmallocArray { n, size, gfp } => self.block(kmem.kmalloc_array(n, size, gfp)),
            Call::Krealloc { addr, size, gfp } => self.block(kmem.krealloc(VirtAddr::new(addr), size, gfp)),
            Call::KfreeSensitive { addr } => done(kmem.kfree_sensitive(VirtAddr::new(addr))),
            Call::Ksize { addr } => match kmem.ksize(VirtAddr::new(addr)) {
                Ok(bytes) => Reply::Size(bytes),
                Err(error) => Reply::Rejected(error),
            },
            Call::KmallocSizeRoundup { size } => Reply::Size(kmem.kmalloc_size_roundup(size)),
            _ => return None,
        })
    }

    fn cache_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = self.kmem;
        Some(match *call {
            Call::CacheAlloc { cache, gfp } => self.block(kmem.kmem_cache_alloc(cache, gfp)),
            Call::CacheFree { cache, addr } => done(kmem.kmem_cache_free(cache, VirtAddr::new(addr))),
            Call::CacheCreate { spec } => self.cache_create(&spec),
            Call::Validate => Reply::Size(self.validate()),
            Call::CacheShrink { cache } => shrunk(kmem.kmem_cache_shrink(cache)),
            Call::CacheDestroy { cache } => destroyed(kmem, cache),
            _ => return None,
        })
    }

    fn vmalloc_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = self.kmem;
        Some(match call {
            &Call::Vmalloc { size, gfp } => self.block(kmem.vmalloc(size, gfp)),
            Call::VmallocRange(call) => self.block(kmem.vmalloc_node_range(&area_args(call))),
            &Call::Vfree { addr } => done(kmem.vfree(VirtAddr::new(addr))),
            &Call::Vrealloc { addr, size, gfp, near: Near::ANY } => {
                self.block(kmem.vrealloc(VirtAddr::new(addr), size, gfp))
            }
            &Call::Vrealloc { addr, size, gfp, near } => {
                self.block(kmem.vrealloc_node_align(VirtAddr::new(addr), size, near.align, gfp, near.node))
            }
            &Call::Vunmap { addr } => done(kmem.vunmap(VirtAddr::new(addr))),
            &Call::VmallocToPage { addr } => Reply::Frame(kmem.vmalloc_to_page(VirtAddr::new(addr)).map(Pfn::as_u32)),
            _ => return None,
        })
    }

    fn kvmalloc_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = self.kmem;
        Some(match *call {
            Call::Kvmalloc { size, gfp } => self.block(kmem.kvmalloc(size, gfp)),
            Call::KvmallocNode { size, align, gfp, node } => {
                self.block(kmem.kvmalloc_node_align(size, align, gfp, node))
            }
            Call::KvmallocArray { n, size, gfp } => self.block(kmem.kvmalloc_array(n, size, gfp)),
            Call::Kvrealloc { addr, size, gfp } => self.block(kmem.kvrealloc(VirtAddr::new(addr), size, gfp)),
            Call::Kvfree { addr } => done(kmem.kvfree(VirtAddr::new(addr))),
            Call::KvfreeSensitive { addr, len } => done(kmem.kvfree_sensitive(VirtAddr::new(addr), len)),
            _ => return None,
        })
    }

    fn runs_call(&mut self, call: &Call) -> Option<Reply> {
        let kmem = self.kmem;
        Some(match *call {
            Call::SplitPage { addr, order } => self.split_page(addr, order),
            Call::AllocContigRange { start, pages, gfp } => {
                let (first, count) = (Pfn::new(start), PageCount::new(pages as u64));
                let answer = kmem.alloc_contig_range(first, count, gfp);
                self.page_block(answer.map(|()| first), pages.saturating_mul(PAGE_SIZE))
            }
            Call::AllocContigPages { pages, gfp } => {
                let answer = kmem.alloc_contig_pages(PageCount::new(pages as u64), gfp, None);
                self.page_block(answer, pages.saturating_mul(PAGE_SIZE))
            }
            Call::FreeContigRange { addr, pages } => {
                let count = PageCount::new(pages as u64);
                self.free_pages(addr, |first| kmem.free_contig_range(first, count))
            }
            Call::CompactMemory => Reply::Size(kmem.compact_memory() as usize),
            Call::AllocPagesNolock { order } => match Order::new(order) {
                Some(order) => self.page_block(kmem.alloc_pages_nolock(order, None), order.bytes()),
                None => Reply::Refused(AllocError::OrderTooLarge { max: kmem.geometry().max_order }),
            },
            Call::FreePagesNolock { addr, order } => match Order::new(order) {
                Some(order) => self.free_pages(addr, |first| kmem.free_pages_nolock(first, order)),
                None => Reply::Unsupported,
            },
            Call::PinArea { addr } => Reply::Frame(kmem.pin_vmalloc_page(VirtAddr::new(addr)).map(Pfn::as_u32)),
            Call::UnpinArea { frame } => done(kmem.unpin_vmalloc_page(Pfn::new(frame))),
            _ => return None,
        })
    }

    fn split_page(&self, addr: u64, order: u8) -> Reply {
        let Some(order) = Order::new(order) else { return Reply::Unsupported };
        self.free_pages(addr, |first| self.kmem.split_page(first, order))
    }

    fn window_call(&mut self, call: &Call) -> Option<Reply> {
        let Call::Window(call) = call else { return None };
        let kmem = self.kmem;
        Some(match *call {
            WindowCall::Vmalloc { size, gfp, flags } => {
                self.block(kmem.vmalloc_node_range(&VmallocArgs { flags, ..VmallocArgs::new(size, gfp) }))
            }
            WindowCall::VmUnmapRam { addr, count } => done(kmem.vm_unmap_ram(VirtAddr::new(addr), count)),
            WindowCall::Vread { addr, len } => self.vread(VirtAddr::new(addr), len),
            WindowCall::Remap { addr, offset, size } => {
                let mut frames = Vec::new();
                let see = |frame: Pfn| frames.push(frame.as_u32());
                let answer = kmem.remap_vmalloc_range(VirtAddr::new(addr), offset, size, see);
                Reply::Frames(answer.map(|()| frames))
            }
            WindowCall::VfreeAtomic { addr, kv } => {
                let addr = VirtAddr::new(addr);
                done(if kv { kmem.kvfree_atomic(addr) } else { kmem.vfree_atomic(addr) })
            }
            WindowCall::DrainDeferred => Reply::Size(kmem.drain_deferred_vfree() as usize),
            WindowCall::Vmap { .. } | WindowCall::VmMapRam { .. } | WindowCall::Protect { .. } => return None,
        })
    }

    fn vread(&self, addr: VirtAddr, len: usize) -> Reply {
        let mut bytes = vec![UNREAD; len];
        let filled = self.kmem.vread(addr, &mut bytes);
        bytes.truncate(filled);
        Reply::Bytes(bytes)
    }
}

/// The answer to a call for a block of any kind but pages.
pub(super) fn block<P: Platform>(kmem: &Kmem<P>, answer: Result<VirtAddr, AllocError>) -> Reply {
    match answer {
        Ok(addr) => Reply::Block { addr: addr.as_u64(), usable: kmem.kvsize(addr).unwrap_or(0) },
        Err(error) => Reply::Refused(error),
    }
}

/// The constructor of test caches: what the oracles expect to find in an object that was handed out.
fn construct(object: &mut CtorObject<'_>) {
    for offset in (0..object.len()).step_by(CONSTRUCTED.len()) {
        let bytes = &CONSTRUCTED[..CONSTRUCTED.len().min(object.len() - offset)];
        let written = object.write(offset, bytes);
        debug_assert!(written, "the offset is inside the object");
    }
}

fn area_args(call: &AreaCall) -> VmallocArgs {
    let &AreaCall { size, align, within, gfp, node, guard, huge } = call;
    let mut flags = VmFlags::empty();
    flags.set(VmFlags::NO_GUARD, !guard);
    flags.set(VmFlags::ALLOW_HUGE_VMAP, huge);
    let anywhere = VmallocArgs::new(size, gfp);
    let range = within.map_or(anywhere.range, |(first, end)| (Vpn::new(first).addr(), Vpn::new(end).addr()));
    VmallocArgs { align, range, flags, node, ..anywhere }
}

pub(super) fn done(answer: Result<(), FreeError>) -> Reply {
    match answer {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Rejected(error),
    }
}

/// As in Linux: 0 if no slab is left, else 1.
fn shrunk(answer: Result<bool, CacheError>) -> Reply {
    match answer {
        Ok(all_released) => Reply::Size(usize::from(!all_released)),
        Err(error) => Reply::CacheRefused(error),
    }
}

fn destroyed<P: Platform>(kmem: &Kmem<P>, cache: CacheId) -> Reply {
    let mut named = Vec::new();
    match kmem.kmem_cache_destroy_with(cache, |object| named.push(object.addr.as_u64())) {
        Ok(what) => Reply::Destroyed { what, named },
        Err(error) => Reply::CacheRefused(error),
    }
}
