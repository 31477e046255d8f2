//! From operations to calls: picks are resolved among the live blocks of the tiers that the operation works on.

use super::session::{Session, Verdict};
use super::window::free_mapping;
use crate::model::caches::{CacheNaming, CacheSpec};
use crate::model::debug::Checks;
use crate::model::{Block, RcuCall, Tier, Tiers, freed_address, old_address};
use crate::oracle::{self, Violation};
use crate::subject::{AreaCall, Call, Near, WindowCall};
use crate::trace::Op;
use kmem::{GfpFlags, NodeId, PAGE_SIZE};

/// Bytes of the head that a free which waits for readers needs.
const RCU_HEAD_BYTES: usize = 16;

/// The call that frees a block in its own tier.
pub(super) fn free_call(block: &Block) -> Call {
    let addr = block.addr;
    match (block.tier, block.cache) {
        (Tier::Pages, _) => Call::FreePages { addr, order: block.order },
        (Tier::PagesExact, _) => Call::FreePagesExact { addr, size: block.requested },
        (Tier::Contig, _) => Call::FreeContigRange { addr, pages: block.requested / PAGE_SIZE },
        (Tier::Vmalloc, _) => Call::Vfree { addr },
        (Tier::Vmap, _) => free_mapping(block),
        (Tier::MapRam, _) => Call::Window(WindowCall::VmUnmapRam { addr, count: block.requested / PAGE_SIZE }),
        (Tier::Cache, Some(cache)) => Call::CacheFree { cache, addr },
        (Tier::Cache, None) | (Tier::Kmalloc | Tier::LargeKmalloc, _) => Call::Kfree { addr },
    }
}

/// The alignment that a number of [`Role::Shift`](crate::trace::Role::Shift) means.
fn alignment(shift: u8) -> usize {
    if shift <= 40 { 1 << shift } else { 3 << 12 }
}

/// The page by which a reference to a block is taken: any page of a compound one will do.
fn page_of(block: &Block) -> u64 {
    let last = if block.is_unit() { block.usable.saturating_sub(PAGE_SIZE) as u64 } else { 0 };
    block.addr + last
}

impl Session {
    /// Executes one operation; one whose pick finds nothing has no effect.
    pub(super) fn execute(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Burst { .. }
            | Op::FreeEvery { .. }
            | Op::RcuFreeEvery { .. }
            | Op::Steer { .. }
            | Op::Checkerboard { .. }
            | Op::MovableBoard { .. }
            | Op::AreaBoard { .. }
            | Op::RamChurn { .. } => self.execute_macro(op),
            Op::Free { pick } => self.free_picked(Tiers::ALL, pick, free_call),
            Op::FreePages { pick } => self.free_picked(Tiers::PAGE_BLOCKS, pick, free_call),
            Op::FreeContigRange { pick } => self.free_picked(Tiers::CONTIG, pick, free_call),
            Op::FreePagesNolock { pick } => self.free_picked(Tiers::PAGES, pick, |block| match block.refs {
                0 => Call::FreePagesNolock { addr: block.addr, order: block.order },
                _ => free_call(block),
            }),
            Op::Write { pick } => {
                self.with_pick(Tiers::OWNING, pick, |s, addr| s.access(|cx| oracle::write_block(cx, addr)))
            }
            Op::Read { pick } => {
                self.with_pick(Tiers::OWNING, pick, |s, addr| s.access(|cx| oracle::read_block(cx, addr)))
            }
            Op::TouchGuard { pick } => {
                self.with_pick(Tiers::GUARDED, pick, |s, addr| s.access(|cx| oracle::touch_guard(cx, addr)))
            }
            Op::Vmap { pick, count } => self.vmap(usize::from(pick), usize::from(count)),
            Op::VmMapRam { pick, count, gfp } => {
                self.vm_map_ram(usize::from(pick), usize::from(count), gfp.to_flags()).map(drop)
            }
            Op::UnmapRamWrong { pick, count, page } => self.unmap_ram_wrong(pick, usize::from(count), page),
            Op::VmUnmapRam { pick } => self.free_picked(Tiers::MAP_RAM, pick, free_call),
            Op::VfreeAtomic { pick, kv, again } => self.vfree_atomic(usize::from(pick), kv, again),
            Op::VmapWith { pick, count, step, gfp } => {
                self.vmap_with(usize::from(pick), usize::from(count), step, gfp.to_flags())
            }
            Op::CacheDestroy { cache } => self.destroy_cache(cache),
            Op::Audit => self.look(),
            Op::FreeMapped { pick } => self.free_mapped(pick),
            Op::VmapFree { pick } => self.vmap_free(u32::from(pick)),
            Op::WriteFree { pick, size, twice } => {
                self.access(|cx| oracle::write_free(cx, u32::from(pick), size, twice))
            }
            Op::Evictable { pick } => {
                if self.model.let_go(usize::from(pick)) {
                    self.did_something();
                }
                Ok(())
            }
            Op::Wrong { pick, how } => self.misuse(pick, how),
            Op::Overflow { pick, at } => self.overflow(usize::from(pick), u64::from(at)),
            Op::WriteFreed { pick, at } => self.write_freed(usize::from(pick), u64::from(at)),
            Op::BreakLink { pick, freed } => self.break_link(usize::from(pick), freed),
            Op::Interleave { cpu } => {
                self.interleave(cpu);
                Ok(())
            }
            _ => match self.resolve(op) {
                Some(call) => self.call_alone(call),
                None => Ok(()),
            },
        }
    }

    /// Makes a call; the user of an area takes his pins of its pages back before he frees or resizes it.
    fn call_alone(&mut self, call: Call) -> Verdict {
        let waits = if let Call::Rcu(call) = &call { call.block().map(|(addr, _)| addr) } else { None };
        let area = freed_address(&call).or(old_address(&call)).or(waits);
        match area.filter(|&addr| self.block(addr).is_some_and(|block| block.tier == Tier::Vmalloc)) {
            Some(addr) => self.free(addr, call),
            None => self.call(call).map(drop),
        }
    }

    fn with_pick(&mut self, tiers: Tiers, pick: u16, act: impl FnOnce(&mut Self, u64) -> Verdict) -> Verdict {
        match self.picked(tiers, pick).map(|block| block.addr) {
            Some(addr) => act(self, addr),
            None => Ok(()),
        }
    }

    fn picked(&self, tiers: Tiers, pick: u16) -> Option<&Block> {
        self.model.pick(tiers, usize::from(pick))
    }

    fn free_picked(&mut self, tiers: Tiers, pick: u16, free: impl Fn(&Block) -> Call) -> Verdict {
        let Some(block) = self.picked(tiers, pick) else { return Ok(()) };
        let (addr, call) = (block.addr, free(block));
        self.free(addr, call)
    }

    /// Frees a block; a caller removes his own mappings and pins of its pages before. A page that only areas have
    /// references to is not the caller's to free.
    pub(super) fn free(&mut self, addr: u64, call: Call) -> Verdict {
        if self.block(addr).is_some_and(|block| block.tier == Tier::Pages && block.own_references() == 0) {
            return Ok(());
        }
        if !self.drop_pins(addr)? {
            return Ok(());
        }
        while let Some(alias) = self.alias_of(addr) {
            self.free_at(alias)?;
            if self.block(alias).is_some() {
                return Ok(());
            }
        }
        self.call(call).map(drop)
    }

    /// Takes all pins of a block's pages back; `false` if one stays.
    pub(super) fn drop_pins(&mut self, addr: u64) -> Result<bool, Violation> {
        while let Some(frame) = self.block(addr).and_then(|block| self.model.pinned_frame(block)) {
            if !self.call(Call::UnpinArea { frame })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Frees a page block as it is, which is a mistake if somebody maps it.
    fn free_mapped(&mut self, pick: u16) -> Verdict {
        let page = self.picked(Tiers::COUNTED_PAGES, pick).filter(|block| block.own_references() > 0);
        match page.map(free_call).filter(|_| self.model.is_tight()) {
            Some(call) => self.call(call).map(drop),
            None => Ok(()),
        }
    }

    /// Maps a frame that is free. Without a check of pages nobody would notice, and two would have it.
    fn vmap_free(&mut self, page: u32) -> Verdict {
        if !self.model.checks(kmem::PageDebug::CHECK) {
            return Ok(());
        }
        match self.free_frame(page) {
            Some(frame) => self.call(Call::Vmap { pfns: vec![frame] }).map(drop),
            None => Ok(()),
        }
    }

    /// Address of a `vmap` area that shows a page of the block.
    fn alias_of(&self, addr: u64) -> Option<u64> {
        if self.model.count(Tiers::SHOWING) == 0 {
            return None;
        }
        let block = self.block(addr)?;
        if block.puts_pages() {
            return self.alias_of_dropped(block);
        }
        let block = Some(block).filter(|block| Tiers::PAGE_BLOCKS.contains(block.tier))?;
        let frames = self.model.direct_frames(block.addr, block.usable);
        let shows = |area: &&Block| area.frames.iter().any(|frame| frames.contains(frame));
        self.model.blocks(Tiers::SHOWING).find(shows).map(|area| area.addr)
    }

    /// Frees every block, each in its own tier.
    pub(super) fn free_all(&mut self) -> Verdict {
        for tiers in [Tiers::SHOWING, Tiers::ALL] {
            let mut held = self.references(tiers) + 1;
            // A block with extra references is freed once for each.
            while (1..held).contains(&self.references(tiers)) {
                held = self.references(tiers);
                let mut blocks: Vec<(u64, Call)> = self.model.blocks(tiers).map(|b| (b.addr, free_call(b))).collect();
                if self.backwards {
                    blocks.reverse();
                }
                blocks.into_iter().try_for_each(|(addr, call)| self.free(addr, call))?;
            }
        }
        Ok(())
    }

    /// How many references there are to all blocks together.
    fn references(&self, tiers: Tiers) -> u64 {
        self.model.blocks(tiers).map(|block| 1 + u64::from(block.refs)).sum()
    }

    /// Frees the blocks that `wanted` chooses by their position.
    pub(super) fn free_where(&mut self, wanted: impl Fn(usize) -> bool) -> Verdict {
        let blocks = self.model.blocks(Tiers::ALL).enumerate().filter(|&(n, _)| wanted(n));
        let addresses: Vec<u64> = blocks.map(|(_, block)| block.addr).collect();
        addresses.into_iter().try_for_each(|addr| self.free_at(addr))
    }

    /// Frees the block at an address, if it is still live.
    pub(super) fn free_at(&mut self, addr: u64) -> Verdict {
        match self.block(addr).map(free_call) {
            Some(call) => self.free(addr, call),
            None => Ok(()),
        }
    }

    /// Maps the frames of live page blocks once more, from the picked block on.
    fn vmap(&mut self, pick: usize, count: usize) -> Verdict {
        let pfns: Vec<u32> = self.frames_to_map(pick).take(count).collect();
        if pfns.is_empty() && count > 0 {
            return Ok(());
        }
        self.call(Call::Vmap { pfns }).map(drop)
    }

    /// The call that a plain operation stands for; `None` if it works on something that does not exist.
    fn resolve(&self, op: &Op) -> Option<Call> {
        self.resolve_objects(op)
            .or_else(|| self.resolve_allocation(op))
            .or_else(|| self.resolve_on_block(op))
            .or_else(|| self.resolve_on_machine(op))
            .or_else(|| self.resolve_rcu(op))
            .or_else(|| self.resolve_window(op))
    }

    fn resolve_allocation(&self, op: &Op) -> Option<Call> {
        Some(match *op {
            Op::AllocPages { order, gfp } => Call::AllocPages { order, gfp: gfp.to_flags() },
            Op::AllocPagesNode { order, gfp, node } => {
                let node = kmem::NodeId::new(node % (kmem::MAX_NODES as u8 + 1));
                Call::AllocPagesNode { order, gfp: gfp.to_flags(), node }
            }
            Op::AllocPagesExact { size, gfp } => Call::AllocPagesExact { size: size as usize, gfp: gfp.to_flags() },
            Op::AllocPagesBulk { count, gfp } => {
                Call::AllocPagesBulk { count: usize::from(count), gfp: gfp.to_flags() }
            }
            Op::Kmalloc { size, gfp } => Call::Kmalloc { size: size as usize, gfp: gfp.to_flags() },
            Op::KmallocArray { n, size, gfp } => {
                Call::KmallocArray { n: n as usize, size: size as usize, gfp: gfp.to_flags() }
            }
            Op::CacheAlloc { cache, gfp } => {
                let cache = self.model.pick_cache(usize::from(cache))?.id;
                Call::CacheAlloc { cache, gfp: gfp.to_flags() }
            }
            Op::AllocContigRange { frame, count, block, gfp } => self.contig_range(frame, count, block, gfp.to_flags()),
            Op::AllocPagesNolock { order } => Call::AllocPagesNolock { order },
            Op::AllocContigPages { count, gfp } => {
                Call::AllocContigPages { pages: usize::from(count), gfp: gfp.to_flags() }
            }
            Op::Vmalloc { size, gfp } => Call::Vmalloc { size: size as usize, gfp: gfp.to_flags() },
            Op::VmallocRange { .. } => Call::VmallocRange(self.area_call(op)?),
            Op::KvmallocNode { size, align, gfp, node } => Call::KvmallocNode {
                size: size as usize,
                align: alignment(align),
                gfp: gfp.to_flags(),
                node: kmem::NodeId::new(node % (kmem::MAX_NODES as u8 + 1)),
            },
            Op::Kvmalloc { size, gfp } => Call::Kvmalloc { size: size as usize, gfp: gfp.to_flags() },
            Op::KvmallocArray { n, size, gfp } => {
                Call::KvmallocArray { n: n as usize, size: size as usize, gfp: gfp.to_flags() }
            }
            _ => return None,
        })
    }

    /// A request for an area anywhere, or in a part of the window; the part may end beyond it.
    fn area_call(&self, op: &Op) -> Option<AreaCall> {
        let Op::VmallocRange { size, align, at, length, gfp, node, unguarded, huge } = *op else { return None };
        let (geometry, guard) = (self.model.geometry(), !unguarded);
        let first = geometry.vmalloc_start.vpn().as_u64() + u64::from(at) % geometry.vmalloc_pages.get().max(1);
        let pages = size.div_ceil(PAGE_SIZE as u64);
        let within =
            |spare: u16| (first, first.saturating_add(pages).saturating_add(u64::from(spare)).min((1 << 52) - 1));
        Some(AreaCall {
            size: size as usize,
            align: alignment(align),
            within: length.checked_sub(1).map(within),
            gfp: gfp.to_flags(),
            node: kmem::NodeId::new(node % (kmem::MAX_NODES as u8 + 1)),
            guard,
            huge,
        })
    }

    /// A range of frames somewhere in memory, or a little beyond its end.
    fn contig_range(&self, frame: u32, count: u16, block: bool, gfp: GfpFlags) -> Call {
        let start = frame % self.model.geometry().frames().saturating_add(8).max(1);
        let pages = u32::from(count);
        if !block {
            return Call::AllocContigRange { start, pages: pages as usize, gfp };
        }
        let pages = pages.next_power_of_two();
        Call::AllocContigRange { start: start & !(pages - 1), pages: pages as usize, gfp: gfp | GfpFlags::COMP }
    }

    fn resolve_on_block(&self, op: &Op) -> Option<Call> {
        let addr = |tiers, pick| self.picked(tiers, pick).map(|block| block.addr);
        Some(match *op {
            Op::GetPage { pick } => Call::GetPage { addr: page_of(self.picked(Tiers::COUNTED_PAGES, pick)?) },
            Op::PutPage { pick } => {
                // Dropping the owner's reference to one of many pages is what `free_pages` is for.
                let block = self.picked(Tiers::COUNTED_PAGES, pick);
                let block = block.filter(|block| block.tier == Tier::Pages || block.refs > 0)?;
                let block = Some(block).filter(|block| block.own_references() > 0)?;
                Call::PutPage { addr: page_of(block) }
            }
            Op::Kfree { pick } => Call::Kfree { addr: addr(Tiers::KMALLOC, pick)? },
            Op::KfreeSensitive { pick } => Call::KfreeSensitive { addr: addr(Tiers::KMALLOC, pick)? },
            Op::Ksize { pick } => Call::Ksize { addr: addr(Tiers::KMALLOC, pick)? },
            Op::Krealloc { pick, size, gfp } => {
                Call::Krealloc { addr: addr(Tiers::KMALLOC, pick)?, size: size as usize, gfp: gfp.to_flags() }
            }
            Op::CacheFree { pick } => free_call(self.picked(Tiers::CACHE, pick)?),
            Op::Vfree { pick } => Call::Vfree { addr: addr(Tiers::VMALLOC, pick)? },
            Op::Vunmap { pick } => Call::Vunmap { addr: addr(Tiers::VMAP, pick)? },
            Op::Vrealloc { pick, size, gfp } => {
                let (addr, size, gfp) = (addr(Tiers::VMALLOC, pick)?, size as usize, gfp.to_flags());
                Call::Vrealloc { addr, size, gfp, near: Near::ANY }
            }
            Op::VreallocNear { pick, size, align, gfp, node } => {
                let near = Near { align: alignment(align), node: NodeId::new(node % (kmem::MAX_NODES as u8 + 1)) };
                let (addr, size, gfp) = (addr(Tiers::VMALLOC, pick)?, size as usize, gfp.to_flags());
                Call::Vrealloc { addr, size, gfp, near }
            }
            Op::VmallocToPage { pick, page } => {
                let area = self.picked(Tiers::VIRTUAL, pick)?;
                let page = u64::from(page) % (area.area_pages as u64).max(1);
                Call::VmallocToPage { addr: area.addr + page * PAGE_SIZE as u64 }
            }
            Op::PinArea { pick, page } => {
                let area = self.picked(Tiers::VMALLOC, pick)?;
                let page = page as usize % area.frames.len().max(1);
                Call::PinArea { addr: area.addr + (page * PAGE_SIZE) as u64 }
            }
            Op::UnpinArea { pick } => {
                Call::UnpinArea { frame: self.model.pinned_frame(self.picked(Tiers::VMALLOC, pick)?)? }
            }
            Op::SplitPage { pick } => {
                let block = self.picked(Tiers::PAGES, pick).filter(|block| block.refs == 0 && block.held == 0)?;
                Call::SplitPage { addr: block.addr, order: block.order }
            }
            Op::Pin { pick } => Call::Pin { addr: addr(Tiers::PAGES, pick)? },
            Op::Unpin { pick } => {
                let pinned: Vec<u64> = self.model.blocks(Tiers::PAGES).filter(|b| b.pins > 0).map(|b| b.addr).collect();
                Call::Unpin { addr: *pinned.get(usize::from(pick).checked_rem(pinned.len())?)? }
            }
            Op::Kvfree { pick } => Call::Kvfree { addr: addr(Tiers::KVMALLOC, pick)? },
            Op::KvfreeSensitive { pick } => {
                let block = self.picked(Tiers::KVMALLOC, pick)?;
                Call::KvfreeSensitive { addr: block.addr, len: block.requested }
            }
            Op::Kvrealloc { pick, size, gfp } => {
                Call::Kvrealloc { addr: addr(Tiers::KVMALLOC, pick)?, size: size as usize, gfp: gfp.to_flags() }
            }
            _ => return None,
        })
    }

    /// A free that waits for readers; each sixteenth head has no place. What a constructor wrote has no room for a head. A damaged object would be told of at
    /// some later call, when its wait is over.
    fn resolve_rcu(&self, op: &Op) -> Option<Call> {
        Some(Call::Rcu(match *op {
            Op::KfreeRcu { pick, head } => {
                let (addr, head) = self.with_head(self.picked(Tiers::OBJECTS, pick)?, head)?;
                RcuCall::Kfree { addr, head }
            }
            Op::KvfreeRcu { pick, head } => {
                let (addr, head) = self.with_head(self.picked(Tiers::KVMALLOC, pick)?, head)?;
                RcuCall::Kvfree { addr, head }
            }
            Op::KvfreeRcuMightsleep { pick } => {
                RcuCall::KvfreeMightsleep { addr: self.picked(Tiers::KVMALLOC_OR_CACHE, pick)?.addr }
            }
            Op::KfreeRcuMonitor => RcuCall::Monitor,
            Op::KvfreeRcuBarrier => RcuCall::Barrier,
            Op::RcuReadLock => RcuCall::ReadLock,
            Op::RcuReadUnlock { nth } => RcuCall::ReadUnlock { n: usize::from(nth) },
            Op::RcuGracePeriod => RcuCall::GracePeriod,
            _ => return None,
        }))
    }

    /// A block and the place of a head in it; `None` if it has no room for one, or its bytes are to stay as they are.
    fn with_head(&self, block: &Block, head: u16) -> Option<(u64, usize)> {
        let constructed = block.cache.and_then(|id| self.model.cache(id)).is_some_and(|cache| cache.ctor);
        if block.requested < RCU_HEAD_BYTES || constructed {
            return None;
        }
        let room = block.requested.min(PAGE_SIZE) - (RCU_HEAD_BYTES - 1);
        let (offset, is_wrong) = (usize::from(head) % room, head % 16 == 15);
        Some((block.addr, if is_wrong { offset | 1 } else { offset & !7 }))
    }

    /// Gives up the objects that `wanted` chooses by their position.
    pub(super) fn rcu_free_where(&mut self, sleep: bool, wanted: impl Fn(usize) -> bool) -> Verdict {
        let call = |block: &Block| match sleep {
            true => Some(RcuCall::KvfreeMightsleep { addr: block.addr }),
            false => self.with_head(block, 0).map(|(addr, head)| RcuCall::Kfree { addr, head }),
        };
        let objects = self.model.blocks(Tiers::OBJECTS).enumerate().filter(|&(n, _)| wanted(n));
        let calls: Vec<RcuCall> = objects.filter_map(|(_, block)| call(block)).collect();
        calls.into_iter().try_for_each(|call| self.call(Call::Rcu(call)).map(drop))
    }

    fn resolve_on_machine(&self, op: &Op) -> Option<Call> {
        let cache = |n: u16| self.model.pick_cache(usize::from(n)).map(|cache| cache.id);
        Some(match *op {
            Op::FailPages { order, gfp, step, count } => Call::FailPages {
                min_order: order,
                ignored: gfp.to_flags(),
                interval: u32::from(step),
                times: u32::from(count),
            },
            Op::FailSlabs { gfp, step, count, cache: n, one } => Call::FailSlabs {
                cache: if one { Some(cache(n)?) } else { None },
                ignored: gfp.to_flags(),
                interval: u32::from(step),
                times: u32::from(count),
            },
            Op::KmallocSizeRoundup { size } => Call::KmallocSizeRoundup { size: size as usize },
            Op::CacheCreate { size, align, hwcache, ctor } => {
                Call::CacheCreate { spec: CacheSpec::own(size as usize, usize::from(align), hwcache, ctor) }
            }
            Op::CacheCreateWith { size, align, flags, ctor, useroffset, usersize, freeptr, sheaf } => {
                let spec = CacheSpec {
                    name: CacheNaming::Own,
                    size: size as usize,
                    align: usize::from(align),
                    flags: flags.to_flags(),
                    ctor,
                    useroffset: useroffset as usize,
                    usersize: usize::from(usersize),
                    freeptr_offset: freeptr.checked_sub(1).map(|halves| usize::from(halves) * 4),
                    sheaf_capacity: sheaf,
                };
                Call::CacheCreate { spec }
            }
            Op::DebugCache { size, align, checks, ctor } => {
                let spec = CacheSpec::own(size as usize, usize::from(align), false, ctor);
                Call::CacheCreate {
                    spec: CacheSpec { flags: spec.flags | Checks::from_bits(checks).to_flags(), ..spec },
                }
            }
            Op::NamedCache { size, name } => {
                let spec =
                    CacheSpec { size: size as usize, name: CacheNaming::of(u64::from(name)), ..CacheSpec::default() };
                Call::CacheCreate { spec }
            }
            Op::Validate => Call::Validate,
            Op::CacheShrink { cache: n } => Call::CacheShrink { cache: cache(n)? },
            Op::SetCpu { cpu } => Call::SetCpu { cpu: cpu % self.model.geometry().cpus.max(1) },
            Op::DrainPages => Call::DrainPages,
            Op::CompactMemory => Call::CompactMemory,
            Op::ReportFree { count } => Call::ReportFree { blocks: u32::from(count) },
            Op::Purge => Call::Purge,
            Op::Reclaim => Call::Reclaim,
            Op::ClaimProgress { count } => Call::ClaimProgress { times: u32::from(count) % 32 },
            Op::FailNth { point, nth } => Call::FailNth { point, nth: u32::from(nth) },
            _ => return None,
        })
    }
}
