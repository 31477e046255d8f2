//! The reference model: the stupidest structures that know what a correct allocator must do.
//!
//! It follows the subject's answers and never predicts an address. It shares no code with the allocator: size classes,
//! orders, zones and watermarks are derived again, from the contract, in the rooms below.

pub mod areas;
mod block;
pub mod caches;
pub mod classes;
pub mod damage;
pub mod debug;
pub(crate) mod debugged;
mod frames;
mod limbo;
mod live;
mod moving;
mod ram;
mod rcu;
mod refs;
mod window;
pub mod zones;

pub use block::{Block, Tier, Tiers};
pub use caches::{CacheModel, RootModel};
pub use limbo::{Ghost, Why};
pub use ram::{RamBlock, RamPage, ram_block_pages};
pub use rcu::RcuCall;

use crate::oracle::Step;
use crate::subject::{Call, ObjectsCall, Reply, Strength, Subject, WindowCall};
use areas::Span;
use caches::Caches;
use classes::{KMALLOC_MAX_CACHE, get_order};
use debugged::Debugged;
use frames::FrameMap;
use kmem::{CacheId, Geometry, GfpFlags, MemInfo, PAGE_SIZE};
use limbo::Limbo;
use live::LiveSet;

/// A sheaf that was filled beforehand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SheafModel {
    /// Its name for calls.
    pub number: u32,
    /// Whose objects it holds.
    pub cache: CacheId,
    /// How many are left.
    pub left: usize,
}

/// What the model expects the owner counters to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpectedUse {
    /// Pages given by `alloc_pages` and its relatives.
    pub pages: u64,
    /// Pages behind large `kmalloc` blocks.
    pub large_kmalloc: u64,
    /// Pages behind live vmalloc areas.
    pub vmalloc: u64,
    /// Pages that went out of circulation for good.
    pub bad: u64,
}

/// What is live, and what that implies.
pub struct Model {
    geometry: Geometry,
    strength: Strength,
    live: LiveSet,
    frames: FrameMap,
    caches: Caches,
    limbo: Limbo,
    guards: rcu::Guards,
    sheaves: Vec<SheafModel>,
    expected: ExpectedUse,
    /// Guarded objects that were freed, and guarded bytes that were changed.
    pub(crate) debugged: Debugged,
    next_handle: u64,
    cpu: u16,
    /// Frames behind areas that the program has pinned, once for each pin.
    pinned_frames: Vec<u32>,
    /// Handles of the page blocks whose owners let the machine free them.
    evictable: std::collections::BTreeSet<u64>,
    ram: ram::RamBlocks,
    /// Page counters after the last step; what a failed call must not change.
    pub(crate) last_use: Option<MemInfo>,
    /// What was written to free pages.
    pub damage: damage::Damage,
    /// Notes that an oracle keeps between two of its questions.
    pub(crate) notes: crate::oracle::Notes,
}

impl Model {
    /// Makes the model of a subject on which nothing was allocated yet.
    pub fn new(geometry: &Geometry, strength: Strength) -> Self {
        Self {
            geometry: geometry.clone(),
            strength,
            live: LiveSet::default(),
            frames: FrameMap::new(geometry.frames(), geometry.direct_map.as_u64()),
            caches: Caches::default(),
            guards: rcu::Guards::default(),
            limbo: Limbo::new(FrameMap::new(geometry.frames(), geometry.direct_map.as_u64())),
            sheaves: Vec::new(),
            expected: ExpectedUse::default(),
            debugged: Debugged::default(),
            next_handle: 0,
            cpu: 0,
            pinned_frames: Vec::new(),
            evictable: std::collections::BTreeSet::new(),
            ram: ram::RamBlocks::default(),
            last_use: None,
            damage: damage::Damage::default(),
            notes: crate::oracle::Notes::default(),
        }
    }

    /// The machine's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What may be demanded of the subject.
    pub fn strength(&self) -> Strength {
        self.strength
    }

    /// Tells whether the whole contract may be demanded.
    pub fn is_tight(&self) -> bool {
        self.strength == Strength::Tight
    }

    /// The CPU from which calls come.
    pub fn cpu(&self) -> u16 {
        self.cpu
    }

    /// The node of the CPU from which calls come.
    pub fn node_here(&self) -> kmem::NodeId {
        self.geometry.node_of_cpu(kmem::CpuId::new(self.cpu))
    }

    /// The owner of a page block lets the machine free it when memory runs short; `false` if he had before.
    pub fn let_go(&mut self, pick: usize) -> bool {
        let handle = self.pick(Tiers::PAGES, pick).map(|block| block.handle);
        handle.is_some_and(|handle| self.evictable.insert(handle))
    }

    /// Address and order of the blocks that the machine may free during a call, in the order of allocation: not those that
    /// are pinned or mapped elsewhere, and none while the call is about page blocks itself.
    pub fn evictable(&self, call: &Call) -> Vec<(u64, u8)> {
        if self.evictable.is_empty() || !matches!(request(call), Some((size, _)) if size > 0) || is_about_frames(call) {
            return Vec::new();
        }
        let mapped = |block: &Block| {
            let frames = self.direct_frames(block.addr, block.usable);
            self.blocks(Tiers::SHOWING).any(|area| area.frames.iter().any(|frame| frames.contains(frame)))
        };
        let free = |block: &&Block| {
            self.evictable.contains(&block.handle)
                && block.pins == 0
                && block.refs == 0
                && block.held == 0
                && !mapped(block)
        };
        self.blocks(Tiers::PAGES).filter(free).map(|block| (block.addr, block.order)).collect()
    }

    /// Follows a block that the machine has freed.
    pub fn evict(&mut self, addr: u64) {
        self.remove(addr);
    }

    /// How many blocks of these tiers are live.
    pub fn count(&self, tiers: Tiers) -> usize {
        self.live.count(tiers)
    }

    /// The handle of the next block that is new.
    pub fn newest(&self) -> u64 {
        self.next_handle
    }

    /// How many blocks are live.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Tells whether nothing is live.
    pub fn is_empty(&self) -> bool {
        self.live.len() == 0
    }

    /// The live block number `n`, modulo their count, among these tiers; `None` if there is none.
    pub fn pick(&self, tiers: Tiers, n: usize) -> Option<&Block> {
        self.live.pick(tiers, n)
    }

    /// The cache number `n`, modulo their count; `None` if there is none.
    pub fn pick_cache(&self, n: usize) -> Option<&CacheModel> {
        let caches = self.caches.all();
        caches.get(n.checked_rem(caches.len())?)
    }

    /// The live block that starts at `addr`.
    pub fn block(&self, addr: u64) -> Option<&Block> {
        self.live.get(addr)
    }

    /// All live blocks of these tiers, in an order that depends on the trace only.
    pub fn blocks(&self, tiers: Tiers) -> impl Iterator<Item = &Block> {
        self.live.iter(tiers)
    }

    /// A live block that shares a byte with `[start, end)`, other than the one that starts at `except`.
    pub fn overlapping(&self, start: u64, end: u64, except: Option<u64>) -> Option<&Block> {
        self.live.overlapping(start, end, except)
    }

    /// The caches that were made and not destroyed.
    pub fn caches(&self) -> &[CacheModel] {
        self.caches.all()
    }

    /// The prefilled sheaf with this number.
    pub fn sheaf(&self, number: u32) -> Option<&SheafModel> {
        self.sheaves.iter().find(|sheaf| sheaf.number == number)
    }

    /// The prefilled sheaves that were not returned.
    pub fn sheaves(&self) -> &[SheafModel] {
        &self.sheaves
    }

    /// The memory node of a frame.
    pub fn node_of(&self, frame: u32) -> Option<u8> {
        let holds = |zone: &&kmem::ZoneSpec| {
            frame.checked_sub(zone.start.as_u32()).is_some_and(|distance| u64::from(distance) < zone.frames.get())
        };
        self.geometry.zones().iter().find(holds).map(|zone| zone.node.get())
    }

    /// The cache with this name for calls.
    pub fn cache(&self, id: CacheId) -> Option<&CacheModel> {
        self.caches.get(id)
    }

    /// The slabs that caches use, with what is known of them.
    pub fn roots(&self) -> &[RootModel] {
        self.caches.roots()
    }

    /// The cache in whose slabs the objects of a cache are.
    pub fn root_of(&self, id: CacheId) -> CacheId {
        self.cache(id).map_or(id, |cache| cache.root)
    }

    /// Tells whether memory that was given up still belongs to somebody.
    pub fn has_ghosts(&self) -> bool {
        !self.limbo.is_empty()
    }

    /// Memory that was given up and still belongs to somebody.
    pub fn ghosts(&self) -> impl Iterator<Item = &Ghost> {
        self.limbo.iter()
    }

    /// Such memory that starts at `addr`.
    pub fn ghost_at(&self, addr: u64) -> Option<&Ghost> {
        self.limbo.get(addr)
    }

    /// Such memory with a byte in `[start, end)`.
    pub fn ghost_overlapping(&self, start: u64, end: u64) -> Option<&Ghost> {
        self.limbo.overlapping(start, end)
    }

    /// Such memory in a frame that somebody wants for himself.
    pub fn ghost_on_frame(&self, frame: u32) -> Option<&Ghost> {
        self.limbo.on_frame(frame)
    }

    /// What the owner counters must say.
    pub fn expected_use(&self) -> ExpectedUse {
        self.expected
    }

    /// The handle of the vmalloc block that owns a frame.
    pub fn vmalloc_owner(&self, frame: u32) -> Option<u64> {
        self.frames.vmalloc_owner(frame)
    }

    /// Tells whether a live block of the direct map touches a frame.
    pub fn used_directly(&self, frame: u32) -> bool {
        self.frames.used_directly(frame)
    }

    /// Tells whether an address lies in the vmalloc window.
    pub fn in_vmalloc_window(&self, addr: u64) -> bool {
        self.geometry.is_vmalloc_addr(kmem::VirtAddr::new(addr))
    }

    /// Tells whether `[addr, addr + bytes)` lies in the direct map.
    pub fn in_direct_map(&self, addr: u64, bytes: usize) -> bool {
        !self.frames.direct_range(addr, bytes).is_empty()
    }

    /// The frames under a range of the direct map; empty outside of it.
    pub fn direct_frames(&self, addr: u64, bytes: usize) -> std::ops::Range<u32> {
        self.frames.direct_range(addr, bytes)
    }

    /// Notes that the contents of a block were written anew and returns the block with its new generation.
    pub fn rewritten(&mut self, addr: u64) -> Option<&Block> {
        let block = self.live.get_mut(addr)?;
        block.generation += 1;
        block.written = true;
        Some(block)
    }

    /// Follows a step.
    pub fn update(&mut self, step: &Step, subject: &dyn Subject) {
        self.follow_damage(step, subject);
        self.update_blocks(step, subject);
    }

    /// Follows a step, or a single call for which it stood, but for what was warned of: that is a matter of the whole step.
    pub(crate) fn update_blocks(&mut self, step: &Step, subject: &dyn Subject) {
        self.follow_debugged(step, subject);
        self.settle(subject);
        if self.follow_references(&step.call, &step.reply) {
            return;
        }
        match (&step.call, &step.reply) {
            (Call::SetCpu { cpu }, Reply::Done) => self.cpu = *cpu,
            (Call::SplitPage { addr, order }, Reply::Done) => self.split(*addr, *order),
            (Call::Pin { addr }, Reply::Done) => self.pin(*addr, 1),
            (Call::Unpin { addr }, Reply::Done) => self.pin(*addr, -1),
            (call @ (Call::PinArea { .. } | Call::UnpinArea { .. }), reply) => self.pin_frame(call, reply),
            (Call::CacheCreate { .. } | Call::CacheDestroy { .. }, _) => self.follow_cache(step),
            (Call::Rcu(call), reply) => self.follow_rcu(call, reply),
            (Call::Objects(call), reply) => self.follow_objects(call, reply),
            (Call::Window(call @ WindowCall::VfreeAtomic { .. }), reply) => self.follow_window(call, reply),
            (_, Reply::Block { addr, usable }) => self.follow_block(&step.call, *addr, *usable, subject),
            (Call::AllocPagesBulk { gfp, .. }, Reply::Pages(pages)) => {
                for &addr in pages {
                    self.insert(self.new_block(Tier::Pages, addr, PAGE_SIZE, PAGE_SIZE, *gfp));
                }
            }
            (call, Reply::Done) => {
                if let Some(block) = freed_address(call).and_then(|addr| self.remove(addr)) {
                    self.guard(&block, self.notes.time + 1);
                    self.let_go_of_pages(call, &block);
                }
            }
            _ => {}
        }
    }

    fn follow_cache(&mut self, step: &Step) {
        match (&step.call, &step.reply) {
            (Call::CacheCreate { spec }, Reply::Cache(id)) => {
                self.caches.add(self.geometry.slab_merge, *id, self.effective(spec))
            }
            (Call::CacheDestroy { cache }, Reply::Destroyed { .. }) => self.forget_cache(*cache),
            _ => {}
        }
    }

    /// The objects of a cache that is gone belong to another one in the same slabs, or to nobody any more.
    fn forget_cache(&mut self, cache: CacheId) {
        let heir = self.caches.remove(cache);
        let orphans = self.live.iter(Tiers::CACHE).filter(|block| block.cache == Some(cache)).map(|block| block.addr);
        for addr in orphans.collect::<Vec<u64>>() {
            match heir {
                Some(_) => {
                    if let Some(block) = self.live.get_mut(addr) {
                        block.cache = heir;
                    }
                }
                None => {
                    if let Some(block) = self.remove(addr) {
                        self.limbo.add(block, Why::Leaked);
                    }
                }
            }
        }
    }

    /// Follows what a call did to prefilled sheaves; the objects that it gave or took are followed one by one.
    fn follow_objects(&mut self, call: &ObjectsCall, reply: &Reply) {
        let sheaf = |number: u32| move |sheaf: &&mut SheafModel| sheaf.number == number;
        match (call, reply) {
            (&ObjectsCall::PrefillSheaf { cache, count, .. }, &Reply::Sheaf(number)) => {
                self.sheaves.push(SheafModel { number, cache, left: count });
            }
            (&ObjectsCall::AllocFromSheaf { sheaf: number, .. }, Reply::Objects(objects)) => {
                if let Some(sheaf) = self.sheaves.iter_mut().find(sheaf(number)) {
                    sheaf.left = sheaf.left.saturating_sub(objects.len());
                }
            }
            (&ObjectsCall::RefillSheaf { sheaf: number, .. }, &Reply::Size(left)) => {
                if let Some(sheaf) = self.sheaves.iter_mut().find(sheaf(number)) {
                    sheaf.left = left;
                }
            }
            (&ObjectsCall::ReturnSheaf { sheaf: number, .. }, Reply::Done) => {
                self.sheaves.retain(|sheaf| sheaf.number != number);
            }
            _ => {}
        }
    }

    /// Follows a call that answered with a block: an allocation, or a reallocation in place, moved, or to nothing.
    fn follow_block(&mut self, call: &Call, addr: u64, usable: usize, subject: &dyn Subject) {
        let old = old_address(call).and_then(|old| self.remove(old));
        // Null and the zero-size address stand for no block.
        if addr <= kmem::VirtAddr::ZERO_SIZE.as_u64() {
            return;
        }
        let Some((requested, gfp)) = self.promised(call) else { return };
        let mut block = match &old {
            Some(old) if old.addr == addr => {
                // An area that grows in place takes over the addresses behind it, and never gives any back.
                let grown = if old.area_pages > 0 { requested.div_ceil(PAGE_SIZE) } else { 0 };
                Block { requested, usable, gfp, area_pages: old.area_pages.max(grown), ..old.clone() }
            }
            _ => self.new_block(self.tier_of(call, addr, requested), addr, requested, usable, gfp),
        };
        if let Some(old) = &old {
            block.handle = old.handle;
            block.generation = old.generation;
            block.written = old.written;
            block.zero_chain = old.zero_chain && gfp.wants_zero();
            if old.tier == Tier::Vmalloc {
                block.movable = old.movable;
                // An area that goes elsewhere with its frames stays what it is; a copy is a plain area.
                let copied = old.addr != addr && (old.leaf > 0 || is_elsewhere(self, call, old));
                block.vm_flags = if copied { kmem::VmFlags::empty() } else { old.vm_flags };
            }
        }
        if let Call::CacheAlloc { cache, .. } = call {
            block.cache = Some(*cache);
        }
        if let Call::Window(call) = call {
            block.vm_flags = call.flags();
            // Users, or changed permissions, are bound to the frames that there are.
            let bound = kmem::VmFlags::USERMAP | kmem::VmFlags::FLUSH_RESET_PERMS;
            block.movable &= !block.vm_flags.intersects(bound);
        }
        block.asked = self.debug_layout(&block).filter(|layout| layout.keeps_size()).map(|_| block.requested);
        if block.tier.is_virtual() {
            if old.as_ref().is_none_or(|old| old.addr != addr) {
                self.shape_area(&mut block, call, subject);
            }
            map_frames(&mut block, old.as_ref(), subject);
        }
        self.take_over(&block);
        self.follow_ram(call, addr);
        self.insert(block);
    }

    /// How large a fresh area is, and what follows it: what its request wishes for, given what its first entry maps.
    fn shape_area(&self, block: &mut Block, call: &Call, subject: &dyn Subject) {
        let Some(wish) = areas::AreaWish::of(&self.geometry, call).filter(|_| self.is_tight()) else { return };
        block.leaf = subject.leaf_order(block.addr);
        block.area_pages = wish.as_mapped(block.leaf).pages as usize;
        block.guarded = wish.guard > 0;
    }

    /// Bytes that the caller of an allocation may rely on, and its flags.
    pub fn promised(&self, call: &Call) -> Option<(usize, GfpFlags)> {
        let (requested, gfp) = request(call)?;
        match call {
            Call::CacheAlloc { cache, .. } => Some((self.cache(*cache)?.object_size, gfp)),
            _ => Some((requested, gfp)),
        }
    }

    fn new_block(&self, tier: Tier, addr: u64, requested: usize, usable: usize, gfp: GfpFlags) -> Block {
        let order = match tier {
            Tier::Pages | Tier::LargeKmalloc => get_order(requested),
            _ => 0,
        };
        let area_pages = if tier.is_virtual() && self.is_tight() { requested.div_ceil(PAGE_SIZE) } else { 0 };
        Block {
            handle: self.next_handle,
            tier,
            addr,
            requested,
            usable,
            generation: 0,
            gfp,
            cache: None,
            order,
            zero_chain: gfp.wants_zero(),
            asked: None,
            written: false,
            area_pages,
            guarded: tier.is_virtual(),
            leaf: 0,
            movable: tier == Tier::Vmalloc && gfp.contains(GfpFlags::MOVABLE),
            pins: 0,
            frames: Vec::new(),
            refs: 0,
            disowned: false,
            held: 0,
            vm_flags: kmem::VmFlags::empty(),
        }
    }

    /// Which tier serves a new block: by the call, and for `kvmalloc` by the window that the address lies in.
    fn tier_of(&self, call: &Call, addr: u64, requested: usize) -> Tier {
        match call {
            Call::AllocPages { .. } | Call::AllocPagesNode { .. } | Call::AllocPagesNolock { .. } => Tier::Pages,
            Call::AllocPagesExact { .. } => Tier::PagesExact,
            Call::AllocContigRange { .. } | Call::AllocContigPages { .. } => Tier::Contig,
            Call::CacheAlloc { .. } => Tier::Cache,
            Call::Vmalloc { .. } | Call::VmallocRange(_) | Call::Vrealloc { .. } => Tier::Vmalloc,
            Call::Vmap { .. } | Call::Window(WindowCall::Vmap { .. }) => Tier::Vmap,
            Call::Window(WindowCall::VmMapRam { .. }) => Tier::MapRam,
            Call::Window(WindowCall::Vmalloc { .. }) => Tier::Vmalloc,
            _ if self.in_vmalloc_window(addr) => Tier::Vmalloc,
            _ if requested > KMALLOC_MAX_CACHE => Tier::LargeKmalloc,
            _ => Tier::Kmalloc,
        }
    }

    fn insert(&mut self, block: Block) {
        if block.handle == self.next_handle {
            self.next_handle += 1;
        }
        self.frames.add(&block);
        self.account(&block, u64::wrapping_add);
        self.live.insert(block);
    }

    fn remove(&mut self, addr: u64) -> Option<Block> {
        let block = self.live.remove(addr)?;
        self.evictable.remove(&block.handle);
        self.frames.remove(&block);
        self.account(&block, u64::wrapping_sub);
        Some(block)
    }

    fn account(&mut self, block: &Block, apply: fn(u64, u64) -> u64) {
        let counter = match block.tier {
            Tier::Pages | Tier::PagesExact | Tier::Contig => &mut self.expected.pages,
            Tier::LargeKmalloc => &mut self.expected.large_kmalloc,
            Tier::Vmalloc => &mut self.expected.vmalloc,
            Tier::Kmalloc | Tier::Cache | Tier::Vmap | Tier::MapRam => {
                if let Some(cache) = block.cache.and_then(|id| self.caches.get_mut(id)) {
                    cache.live = apply(cache.live as u64, 1) as usize;
                }
                return;
            }
        };
        *counter = apply(*counter, block.pages());
    }
}

/// Learns the frames behind a fresh area, or drops those that a `vrealloc` in place gave back.
fn map_frames(block: &mut Block, old: Option<&Block>, subject: &dyn Subject) {
    match old.filter(|old| old.addr == block.addr) {
        Some(old) if block.requested <= old.frames.len() * PAGE_SIZE => {
            block.frames.truncate(kept_pages(old, block.requested, block.gfp));
        }
        Some(old) => {
            let wanted = block.requested.div_ceil(PAGE_SIZE);
            block.frames.extend(frames_behind(subject, block.addr, old.frames.len()..wanted));
        }
        None => block.frames = frames_behind(subject, block.addr, 0..block.area_pages).collect(),
    }
}

/// The frames behind pages of an area, up to the first that is not mapped.
fn frames_behind(subject: &dyn Subject, addr: u64, pages: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
    let page = move |i: usize| subject.translate(addr + (i * PAGE_SIZE) as u64);
    pages.map_while(page).map(|physical| (physical / PAGE_SIZE as u64) as u32)
}

/// Pages that stay mapped after `vrealloc` in place: a size below the last one returns whole tail pages, unless the flags
/// lack IO or FS, the area has huge entries, or others may have the pages mapped or have changed their permissions
/// (section 1.4).
pub fn kept_pages(old: &Block, size: usize, gfp: GfpFlags) -> usize {
    let keeps = old.leaf > 0 || old.vm_flags.intersects(kmem::VmFlags::USERMAP | kmem::VmFlags::FLUSH_RESET_PERMS);
    let returns = size <= old.requested && gfp.contains(GfpFlags::IO | GfpFlags::FS) && !keeps;
    if returns { size.div_ceil(PAGE_SIZE).min(old.frames.len()) } else { old.frames.len() }
}

/// Tells whether a `vrealloc` insists on a node other than that of the area's first page.
pub fn is_elsewhere(model: &Model, call: &Call, old: &Block) -> bool {
    let (Call::Vrealloc { gfp, near, .. }, Some(&first)) = (call, old.frames.first()) else { return false };
    let wanted = near.node.filter(|_| gfp.contains(GfpFlags::THISNODE));
    wanted.is_some_and(|node| model.node_of(first) != Some(node.get()))
}

/// Tells whether a call works on frames that the caller names.
fn is_about_frames(call: &Call) -> bool {
    matches!(
        call,
        Call::Vmap { .. }
            | Call::AllocContigRange { .. }
            | Call::AllocContigPages { .. }
            | Call::Window(WindowCall::Vmap { .. } | WindowCall::VmMapRam { .. })
    )
}

/// The block that a free works on.
pub fn freed_address(call: &Call) -> Option<u64> {
    match call {
        Call::FreePages { addr, .. }
        | Call::FreePagesExact { addr, .. }
        | Call::FreeContigRange { addr, .. }
        | Call::FreePagesNolock { addr, .. }
        | Call::Kfree { addr }
        | Call::KfreeSensitive { addr }
        | Call::CacheFree { addr, .. }
        | Call::Vfree { addr }
        | Call::Vunmap { addr }
        | Call::Kvfree { addr }
        | Call::KvfreeSensitive { addr, .. }
        | Call::Window(WindowCall::VmUnmapRam { addr, .. }) => Some(*addr),
        Call::Krealloc { addr, size: 0, .. }
        | Call::Vrealloc { addr, size: 0, .. }
        | Call::Kvrealloc { addr, size: 0, .. } => Some(*addr),
        _ => None,
    }
}

/// The block that a reallocation works on; `None` for null, zero-size and every other call.
pub fn old_address(call: &Call) -> Option<u64> {
    match call {
        Call::Krealloc { addr, .. } | Call::Vrealloc { addr, .. } | Call::Kvrealloc { addr, .. } => {
            (*addr > kmem::VirtAddr::ZERO_SIZE.as_u64()).then_some(*addr)
        }
        _ => None,
    }
}

/// Bytes and flags of a request; `None` for calls that ask for nothing and for products that overflow.
pub fn request(call: &Call) -> Option<(usize, GfpFlags)> {
    match call {
        Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. } => {
            Some((PAGE_SIZE.checked_shl(u32::from(*order))?, *gfp))
        }
        Call::AllocPagesNolock { order } => Some((PAGE_SIZE.checked_shl(u32::from(*order))?, moving::NOLOCK)),
        Call::AllocPagesBulk { gfp, .. } => Some((PAGE_SIZE, *gfp)),
        Call::AllocContigRange { pages, gfp, .. } | Call::AllocContigPages { pages, gfp } => {
            Some((pages.checked_mul(PAGE_SIZE)?, *gfp))
        }
        Call::AllocPagesExact { size, gfp }
        | Call::Kmalloc { size, gfp }
        | Call::Krealloc { size, gfp, .. }
        | Call::Vmalloc { size, gfp }
        | Call::Vrealloc { size, gfp, .. }
        | Call::Kvmalloc { size, gfp }
        | Call::KvmallocNode { size, gfp, .. }
        | Call::VmallocRange(crate::subject::AreaCall { size, gfp, .. })
        | Call::Kvrealloc { size, gfp, .. } => Some((*size, *gfp)),
        Call::KmallocArray { n, size, gfp } | Call::KvmallocArray { n, size, gfp } => {
            Some((n.checked_mul(*size)?, *gfp))
        }
        Call::CacheAlloc { gfp, .. } => Some((0, *gfp)),
        Call::Vmap { pfns } => Some((pfns.len() * PAGE_SIZE, GfpFlags::KERNEL)),
        Call::Objects(call) => Some((0, call.gfp()?)),
        Call::Window(call) => call.request(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A block of a tier at an address, for tests.
    pub(crate) fn block(tier: Tier, addr: u64, bytes: usize) -> Block {
        Block {
            handle: addr,
            tier,
            addr,
            requested: bytes,
            usable: bytes,
            generation: 0,
            gfp: GfpFlags::KERNEL,
            cache: None,
            order: get_order(bytes),
            zero_chain: false,
            asked: None,
            written: false,
            area_pages: if tier.is_virtual() { bytes.div_ceil(PAGE_SIZE) } else { 0 },
            guarded: tier.is_virtual(),
            leaf: 0,
            movable: false,
            pins: 0,
            frames: Vec::new(),
            refs: 0,
            disowned: false,
            held: 0,
            vm_flags: kmem::VmFlags::empty(),
        }
    }
}
