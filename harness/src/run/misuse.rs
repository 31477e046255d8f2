//! Mistakes of a caller, made on purpose: wrong frees and reallocations of what is live, and calls on caches that nobody
//! made. They are made only of a subject that promises to notice all of them.

use super::resolve::free_call;
use super::session::{Session, Verdict};
use crate::model::{Block, Tier, Tiers, Why};
use crate::subject::{Call, Near, ObjectsCall, WindowCall};
use crate::trace::Misuse;
use kmem::{CacheId, GfpFlags, Hardening, PAGE_SIZE};

/// An address that no allocator gives: in the lower half, not null and not the address of size 0.
const NOWHERE: u64 = 0x2000;
/// How many right addresses there are in a bulk with a wrong one.
const OTHERS: usize = 4;

impl Session {
    /// Makes a mistake with the picked block, or none if the mistake has no meaning for it.
    pub(super) fn misuse(&mut self, pick: u16, how: Misuse) -> Verdict {
        if !self.model.is_tight() || self.model.geometry().hardening == Hardening::Off {
            return Ok(());
        }
        if how == Misuse::Again {
            return self.free_twice(pick);
        }
        let block = self.model.pick(Tiers::ALL, usize::from(pick));
        let wrong = match how {
            Misuse::Nowhere => Some(nowhere(pick)),
            Misuse::BuiltInCache => Some(Call::CacheDestroy { cache: CacheId::new(0) }),
            Misuse::UnknownCache => Some(Call::CacheShrink { cache: CacheId::new(u16::MAX) }),
            Misuse::Again => None,
            Misuse::Inside => block.and_then(|block| inside(block, free_call)),
            Misuse::ReallocInside => block.and_then(|block| inside(block, realloc)),
            Misuse::OtherCall => block.and_then(|block| other_call(block, pick)),
            Misuse::OtherCache => block.and_then(|block| self.other_cache(block)),
            Misuse::OtherOrder => block.and_then(|block| other_order(block, pick)),
            Misuse::TwiceInBulk => self.bulk_with(usize::from(pick), |addr, _| addr),
            Misuse::InsideInBulk => self.bulk_with(usize::from(pick), |addr, size| addr + size as u64 / 2),
            Misuse::BusyCache => self.busy_cache(usize::from(pick)),
            Misuse::OfGoneCache => self.of_gone_cache(usize::from(pick)),
            Misuse::OtherCacheInBulk => self.bulk_of_other_cache(usize::from(pick)),
        };
        wrong.map_or(Ok(()), |call| self.call(call).map(drop))
    }

    /// Unmaps pages from somewhere in a mapping, or behind it, that are not a mapping.
    pub(super) fn unmap_ram_wrong(&mut self, pick: u16, count: usize, page: u32) -> Verdict {
        if !self.model.is_tight() || self.model.geometry().hardening == Hardening::Off {
            return Ok(());
        }
        let Some(block) = self.model.pick(Tiers::MAP_RAM, usize::from(pick)) else { return Ok(()) };
        let pages = block.requested / PAGE_SIZE;
        let addr = block.addr + (page as usize % (2 * pages) * PAGE_SIZE) as u64;
        let is_right = |there: &Block| there.tier == Tier::MapRam && there.requested / PAGE_SIZE == count;
        if self.block(addr).is_some_and(is_right) {
            return Ok(());
        }
        self.call(Call::Window(WindowCall::VmUnmapRam { addr, count })).map(drop)
    }

    /// Frees a block by its own call, and again.
    fn free_twice(&mut self, pick: u16) -> Verdict {
        let Some(block) = self.model.pick(Tiers::ALL, usize::from(pick)) else { return Ok(()) };
        let (addr, call) = (block.addr, free_call(block));
        self.free(addr, call.clone())?;
        if self.block(addr).is_some() {
            return Ok(());
        }
        self.call(call).map(drop)
    }

    fn other_cache(&self, block: &Block) -> Option<Call> {
        let own = (block.tier == Tier::Cache).then_some(block.cache).flatten();
        let slab = matches!(block.tier, Tier::Cache | Tier::Kmalloc);
        let other = self.model.caches().iter().find(|cache| slab && Some(cache.id) != own)?;
        Some(Call::CacheFree { cache: other.id, addr: block.addr })
    }
}

impl Session {
    /// A bulk of objects with a wrong address at the end, made of the first object's address and size.
    fn bulk_with(&self, pick: usize, wrong: impl FnOnce(u64, usize) -> u64) -> Option<Call> {
        let blocks = 0..OTHERS.min(self.model.count(Tiers::OBJECTS));
        let blocks =
            blocks.filter_map(|n| self.model.pick(Tiers::OBJECTS, pick + n)).filter(|block| self.is_sound(block));
        let mut blocks: Vec<(u64, Option<CacheId>)> = blocks.map(|block| (block.addr, block.cache)).collect();
        let first = self.model.pick(Tiers::OBJECTS, pick).filter(|block| self.is_sound(block))?;
        let addr = wrong(first.addr, first.usable.min(first.requested));
        blocks.push((addr, first.cache));
        Some(Call::Objects(ObjectsCall::FreeBulk { cache: None, blocks }))
    }

    /// A bulk for one cache with objects of it and, at the end, one of a cache that shares no slabs with it.
    fn bulk_of_other_cache(&self, pick: usize) -> Option<Call> {
        let cache = self.model.pick(Tiers::CACHE, pick)?.cache?;
        let objects = (0..self.model.count(Tiers::CACHE)).filter_map(|n| self.model.pick(Tiers::CACHE, pick + n));
        let root = |cache: Option<CacheId>| cache.map(|cache| self.model.root_of(cache));
        let (own, others): (Vec<&Block>, Vec<&Block>) =
            objects.filter(|block| self.is_sound(block)).partition(|block| root(block.cache) == root(Some(cache)));
        let blocks = own.into_iter().take(OTHERS).chain(others.into_iter().take(1));
        let blocks = blocks.map(|block| (block.addr, block.cache)).collect();
        Some(Call::Objects(ObjectsCall::FreeBulk { cache: Some(cache), blocks }))
    }

    /// The destruction of a cache that nobody shares and of which a prefilled sheaf has objects.
    fn busy_cache(&self, pick: usize) -> Option<Call> {
        let alone = |cache: CacheId| {
            let root = self.model.root_of(cache);
            self.model.caches().iter().filter(|other| other.root == root).count() == 1
        };
        let busy: Vec<CacheId> =
            self.model.sheaves().iter().filter(|s| s.left > 0 && alone(s.cache)).map(|s| s.cache).collect();
        let cache = *busy.get(pick.checked_rem(busy.len())?)?;
        Some(Call::CacheDestroy { cache })
    }

    fn of_gone_cache(&self, pick: usize) -> Option<Call> {
        let leaked: Vec<u64> = self.model.ghosts().filter(|g| g.why == Why::Leaked).map(|g| g.block.addr).collect();
        let addr = *leaked.get(pick.checked_rem(leaked.len())?)?;
        Some(Call::Kfree { addr })
    }
}

fn nowhere(pick: u16) -> Call {
    match pick % 6 {
        3 => Call::Window(WindowCall::VmUnmapRam { addr: NOWHERE, count: 1 }),
        4 => Call::Window(WindowCall::VmUnmapRam { addr: NOWHERE, count: 65 }),
        0 => Call::Kfree { addr: NOWHERE },
        1 => Call::Vfree { addr: NOWHERE },
        2 => Call::FreePages { addr: NOWHERE, order: 0 },
        _ => Call::Kvrealloc { addr: NOWHERE, size: 64, gfp: GfpFlags::KERNEL },
    }
}

/// The call with an address in the middle of the block; of blocks of single pages each page has a call of its own.
fn inside(block: &Block, call: impl Fn(&Block) -> Call) -> Option<Call> {
    let middle = match block.tier {
        Tier::PagesExact | Tier::Contig => return None,
        Tier::Pages => (block.usable / 2) & !(PAGE_SIZE - 1),
        Tier::MapRam => (block.requested / 2).next_multiple_of(PAGE_SIZE) % block.requested,
        _ => block.usable.min(block.requested) / 2,
    };
    (middle > 0).then(|| call(&Block { addr: block.addr + middle as u64, ..block.clone() }))
}

fn realloc(block: &Block) -> Call {
    let (addr, size, gfp) = (block.addr, 64, GfpFlags::KERNEL);
    match block.tier {
        Tier::Vmalloc | Tier::Vmap | Tier::MapRam => Call::Vrealloc { addr, size, gfp, near: Near::ANY },
        Tier::Kmalloc | Tier::LargeKmalloc => Call::Krealloc { addr, size, gfp },
        _ => Call::Kvrealloc { addr, size, gfp },
    }
}

fn other_call(block: &Block, pick: u16) -> Option<Call> {
    let addr = block.addr;
    let calls = match block.tier {
        Tier::Pages | Tier::PagesExact | Tier::Contig => [Call::Kfree { addr }, Call::Vunmap { addr }],
        Tier::Kmalloc | Tier::Cache => [Call::Vfree { addr }, Call::FreePages { addr: addr & !0xfff, order: 0 }],
        Tier::LargeKmalloc => [Call::FreePages { addr, order: block.order }, Call::Vfree { addr }],
        Tier::Vmalloc => [Call::Kfree { addr }, Call::Vunmap { addr }],
        Tier::Vmap => [Call::Kfree { addr }, Call::FreePages { addr, order: 0 }],
        Tier::MapRam => [Call::Vfree { addr }, Call::Vunmap { addr }],
    };
    calls.into_iter().nth(usize::from(pick % 2))
}

/// The call with another order, or number of pages.
fn other_order(block: &Block, pick: u16) -> Option<Call> {
    if block.tier == Tier::MapRam {
        let pages = block.requested / PAGE_SIZE;
        let others = [pages - 1, pages + 1, pages.next_power_of_two(), pages * 2, 0, 64, 65, usize::MAX];
        let count = others[usize::from(pick) % others.len()];
        let call = Call::Window(WindowCall::VmUnmapRam { addr: block.addr, count });
        return (count != pages).then_some(call);
    }
    let order = if block.order > 0 { block.order - 1 } else { 1 };
    (block.tier == Tier::Pages).then_some(Call::FreePages { addr: block.addr, order })
}
