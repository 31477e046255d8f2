//! What memory a request finds: as it is, or as it is once everything that can be given back is.
//!
//! The questions `serves_*` answer *must the subject serve this?* and `may_serve_*` *can it, by the rules?* They rely only on the contract (sections 1 to 4) and on
//! `kmem`'s own policy, which is:
//!
//! * a request without `DIRECT_RECLAIM` may use free objects in slabs, in this CPU's sheaves and in the barn, and any free
//!   block of the buddy that passes the watermark, whatever its migrate type;
//! * before a request with it is refused, lazily freed areas are purged, all sheaves flushed, empty slabs released and all
//!   per-CPU pages drained: what stands in its way then are *pinned* frames only.
//!
//! Where a fact cannot be seen from outside, the answer leans to "need not, but may", by exactly this much:
//!
//! * pages on per-CPU lists do not oblige a request without reclaim: the watermark is tested first (3.5), on buddy pages;
//! * of objects in sheaves those that could all sit on other CPUs do not oblige;
//! * a slab frame counts as pinned if an object lives in the aligned block of its cache's preferred order around it;
//! * the slabs of area descriptors and all page tables that exist count as pinned;
//! * an area asked for with zone or mobility flags must fit under every reading of them, as 4.5 does not say what the
//!   descriptor and the page tables inherit.

use crate::model::areas::{AreaWish, Span, Window};
use crate::model::classes::{class_of, get_order, slab_order};
use crate::model::zones::{
    Class, ZoneRules, ZoneState, bad_mobility, fallback_order, large_page_flags, slab_page_flags,
};
use crate::model::{Block, Model, RamBlock, Tier, Tiers};
use crate::subject::WhiteBox;
use kmem::{
    AreaKind, CacheId, CacheInfo, FrameKind, Geometry, GfpFlags, NR_PAGE_ORDERS, NodeId, PAGE_SIZE, VmallocEntry,
    ZoneKind, ZoneSpec,
};

/// The largest order of which every CPU keeps a list, but for that of pageblocks (section 3.4).
const LARGEST_PCP_ORDER: u8 = 3;
/// Full sheaves that a barn holds (section 2.10).
const BARN_SHEAVES: u64 = 10;
/// Name of the cache that holds the descriptors of areas.
const DESCRIPTORS: &str = "vmap_area";

/// Zones and caches at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    zones: Vec<ZoneState>,
    /// Pages on the per-CPU lists of each zone, all CPUs together.
    pcp: Vec<u64>,
    caches: Vec<CacheInfo>,
    window: Window,
    /// Whether nothing is left that reclaim could give back.
    reclaimed: bool,
    /// Whether a free object in a slab may be damaged, so that its slab serves nobody.
    doubtful: bool,
}

/// Whether an area must be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AreaVerdict {
    /// There is a gap for the pages and the guard.
    pub(crate) has_gap: bool,
    /// There is memory for everything that the area needs before and, if there is a gap, after the address is chosen.
    pub(crate) has_memory: bool,
}

impl Snapshot {
    /// The moment as it is, for questions about blocks, and with `objects` about objects; not about areas.
    pub(crate) fn of_blocks(model: &Model, inside: &dyn WhiteBox, objects: bool) -> Self {
        let listed = inside.buddyinfo();
        let zones = listed.zones().iter().map(ZoneState::of).collect();
        let pcp = listed.zones().iter().map(|info| info.pcp_pages).collect();
        let caches = if objects { inside.slabinfo() } else { Vec::new() };
        Self {
            zones,
            pcp,
            caches,
            window: Window::new(model.geometry(), Vec::new()),
            reclaimed: false,
            doubtful: is_doubtful(model),
        }
    }

    /// The moment as it is.
    pub(crate) fn as_is(model: &Model, inside: &dyn WhiteBox) -> Self {
        let window = Areas::as_is(model, inside).window(model.geometry(), WITHOUT_POOLS);
        Self { window, ..Self::of_blocks(model, inside, true) }
    }

    /// The moment after an imagined reclaim: every frame that is not pinned is free. For requests that may `insist` the
    /// HIGHATOMIC reserve is given back as well.
    pub(crate) fn reclaimed(model: &Model, inside: &dyn WhiteBox, insist: bool) -> Self {
        let caches = inside.slabinfo();
        let pins = Pins { model, inside, caches: &caches };
        let class = |pfn| match inside.pageblock_type(pfn).and_then(Class::of)? {
            Class::HighAtomic if insist => Some(Class::Ordinary),
            class => Some(class),
        };
        let free_class = |pfn| if pins.is_pinned(pfn) { None } else { class(pfn) };
        let zone = |zone: &ZoneSpec| coalesced(zone, model.geometry(), free_class);
        let zones: Vec<ZoneState> = model.geometry().zones().iter().map(zone).collect();
        let window = Window::new(model.geometry(), live_spans(model, |block| !block.is_idle()).collect());
        Self { pcp: vec![0; zones.len()], zones, caches, window, reclaimed: true, doubtful: is_doubtful(model) }
    }

    /// Must a page block of this order be served?
    pub(crate) fn serves_pages(&self, model: &Model, order: u8, gfp: GfpFlags) -> bool {
        self.serves_pages_on(model, order, gfp, None)
    }

    /// Must a page block of this order be served to a request made for a node, or for that of the CPU?
    pub(crate) fn serves_pages_on(&self, model: &Model, order: u8, gfp: GfpFlags, node: Option<NodeId>) -> bool {
        // Flags that contradict each other are no block's.
        if bad_mobility(gfp) {
            return false;
        }
        let rules = ZoneRules::new(model.geometry(), gfp, node.unwrap_or(model.node_here()));
        self.zones.iter().enumerate().any(|(index, state)| rules.admits(index, order, state))
    }

    /// The first node, in the order in which the request falls back, that serves it in the first attempt; `None` if none
    /// does.
    pub(crate) fn polite_node(&self, model: &Model, order: u8, gfp: GfpFlags, node: NodeId) -> Option<NodeId> {
        let rules = ZoneRules::new(model.geometry(), gfp, node);
        let admits = |wanted: &NodeId| {
            let of_node = |&(index, _): &(usize, &ZoneState)| rules.node(index) == Some(*wanted);
            self.zones
                .iter()
                .enumerate()
                .filter(of_node)
                .any(|(index, state)| rules.admits_politely(index, order, state))
        };
        fallback_order(model.geometry(), node).into_iter().find(admits)
    }

    /// The zone, by its number, that a bulk of so many pages comes from: the highest of the nearest node that has them to
    /// spare.
    pub(crate) fn bulk_source(&self, model: &Model, gfp: GfpFlags, pages: u64) -> Option<usize> {
        let geometry = model.geometry();
        let rules = ZoneRules::new(geometry, gfp, model.node_here());
        let is_on = |index: usize, node: NodeId| rules.node(index) == Some(node);
        let nodes = fallback_order(geometry, model.node_here());
        let near = nodes.into_iter().find(|&node| rules.eligible().any(|index| is_on(index, node)))?;
        let mut zones: Vec<usize> = rules.eligible().filter(|&index| is_on(index, near)).collect();
        zones.sort_by_key(|&index| geometry.zones().get(index).map(|zone| std::cmp::Reverse(zone.kind)));
        let has_them =
            |index: usize| self.zones.get(index).is_some_and(|state| rules.has_for_bulk(index, pages, state));
        zones.into_iter().find(|&index| has_them(index))
    }

    /// Can a page block of this order come from a free block above the watermark, or from a per-CPU list?
    pub(crate) fn may_serve_pages(&self, model: &Model, order: u8, gfp: GfpFlags) -> bool {
        self.may_serve_pages_on(model, order, gfp, None)
    }

    /// The same for a request made for a node.
    pub(crate) fn may_serve_pages_on(&self, model: &Model, order: u8, gfp: GfpFlags, node: Option<NodeId>) -> bool {
        let is_listed = order <= LARGEST_PCP_ORDER || order == model.geometry().pageblock_order.get();
        let parked = |index: usize| is_listed && self.pcp.get(index).is_some_and(|&pages| pages >= 1 << order);
        let rules = ZoneRules::new(model.geometry(), gfp, node.unwrap_or(model.node_here()));
        // How much of the reserve these flags open can be read in two ways.
        let is_open = gfp.contains(GfpFlags::HIGH | GfpFlags::NOMEMALLOC) || bad_mobility(gfp);
        let admits = |(index, state): (usize, &ZoneState)| rules.may_admit(index, order, state);
        is_open || self.zones.iter().enumerate().any(admits) || rules.eligible().any(parked)
    }

    /// Can `kmalloc` have an object or a block of this size?
    pub(crate) fn may_serve_kmalloc(&self, model: &Model, size: usize, gfp: GfpFlags) -> bool {
        let Some(class) = class_of(size) else {
            return size == 0 || self.may_serve_pages(model, get_order(size), large_page_flags(gfp));
        };
        let (gfp, stride) = (class_flags(model, gfp), model.class_stride(class));
        let mut of_class = self.caches.iter().filter(|c| c.object_size == class);
        let geometry = model.geometry();
        let preferred = slab_order(stride, geometry.cpus, geometry.max_order.get());
        let mut orders = [Some(get_order(stride)), preferred].into_iter().flatten();
        of_class.any(|c| c.free_in_slabs + c.in_sheaves > 0)
            || orders.any(|order| self.may_serve_pages(model, order, slab_page_flags(gfp)))
    }

    /// Must `kmalloc` serve this size?
    pub(crate) fn serves_kmalloc(&self, model: &Model, size: usize, gfp: GfpFlags) -> bool {
        let Some(class) = class_of(size) else {
            return size == 0 || self.serves_pages(model, get_order(size), large_page_flags(gfp));
        };
        let gfp = class_flags(model, gfp);
        let at_hand = self.kmalloc_cache(class, gfp).is_some_and(|cache| self.has_object(model, cache));
        at_hand || self.serves_pages(model, get_order(model.class_stride(class)), slab_page_flags(gfp))
    }

    /// Must `kmem_cache_alloc` serve an object of this cache, whose objects are `stride` bytes apart?
    pub(crate) fn serves_object(&self, model: &Model, id: CacheId, stride: usize, gfp: GfpFlags) -> bool {
        let at_hand = self.slabs_of(model, id).is_some_and(|cache| self.has_object(model, cache));
        at_hand || self.serves_pages(model, get_order(stride), cache_page_flags(model, id, gfp))
    }

    /// The slabs in which a cache's objects are.
    fn slabs_of(&self, model: &Model, id: CacheId) -> Option<&CacheInfo> {
        let root = model.root_of(id);
        self.caches.iter().find(|cache| cache.id == root)
    }

    /// Must `kmem_cache_alloc_bulk` serve this many objects of this cache?
    pub(crate) fn serves_objects(
        &self,
        model: &Model,
        id: CacheId,
        stride: usize,
        gfp: GfpFlags,
        count: usize,
    ) -> bool {
        if count <= 1 {
            return self.serves_object(model, id, stride, gfp);
        }
        let flags = cache_page_flags(model, id, gfp);
        let cache = self.slabs_of(model, id);
        // A debug cache keeps its objects farther apart.
        let stride = cache.map_or(stride, |cache| cache.size);
        let order = get_order(stride);
        let of_slab = ((PAGE_SIZE << order) / stride) as u64;
        let slabs = if order == 0 {
            self.single_pages(model, flags, None)
        } else {
            u64::from(self.serves_pages(model, order, flags))
        };
        // Reclaim makes pages of empty slabs, so that their objects would be counted twice.
        let cache = cache.filter(|_| !self.reclaimed);
        let at_hand = cache.map_or(0, |cache| self.objects_at_hand(model, cache));
        at_hand + slabs * of_slab >= count as u64
    }

    /// Must an object of this cache be served from a memory node?
    pub(crate) fn serves_object_on(&self, model: &Model, id: CacheId, stride: usize, gfp: GfpFlags, node: u8) -> bool {
        let (cache, gfp) = (self.slabs_of(model, id), gfp | GfpFlags::THISNODE);
        let order = get_order(cache.map_or(stride, |cache| cache.size));
        self.has_object_on(cache, node)
            || self.serves_pages_on(
                model,
                order,
                cache_page_flags(model, id, gfp) | GfpFlags::THISNODE,
                NodeId::new(node),
            )
    }

    /// Must `kmalloc` serve this size from a memory node?
    pub(crate) fn serves_kmalloc_on(&self, model: &Model, size: usize, gfp: GfpFlags, node: u8) -> bool {
        let gfp = gfp | GfpFlags::THISNODE;
        let Some(class) = class_of(size) else {
            return size == 0
                || self.serves_pages_on(
                    model,
                    get_order(size),
                    large_page_flags(gfp) | GfpFlags::THISNODE,
                    NodeId::new(node),
                );
        };
        let gfp = class_flags(model, gfp);
        let cache = self.kmalloc_cache(class, gfp);
        self.has_object_on(cache, node)
            || self.serves_pages_on(
                model,
                get_order(model.class_stride(class)),
                slab_page_flags(gfp) | GfpFlags::THISNODE,
                NodeId::new(node),
            )
    }

    /// Must `kmalloc` serve this size, if a node may be named? That it prefers a node obliges only what that node has.
    pub(crate) fn serves_kmalloc_near(&self, model: &Model, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> bool {
        match node {
            Some(node) => self.serves_kmalloc_on(model, size, gfp, node.get()),
            None => self.serves_kmalloc(model, size, gfp),
        }
    }

    /// Is a free object of the ordinary class that serves this size in a slab?
    pub(crate) fn has_class_object(&self, size: usize) -> bool {
        let cache = class_of(size).and_then(|class| self.kmalloc_cache(class, GfpFlags::empty()));
        cache.is_some_and(|cache| cache.free_in_slabs > 0)
    }

    fn has_object_on(&self, cache: Option<&CacheInfo>, node: u8) -> bool {
        let free = cache.and_then(|cache| cache.free_by_node.get(usize::from(node)));
        !self.reclaimed && !self.doubtful && free.is_some_and(|&free| free > 0)
    }

    /// The cache of a `kmalloc` class for these flags.
    fn kmalloc_cache(&self, class: usize, gfp: GfpFlags) -> Option<&CacheInfo> {
        let prefix = match gfp {
            _ if gfp.contains(GfpFlags::DMA) => "dma-kmalloc-",
            _ if gfp.contains(GfpFlags::RECLAIMABLE) => "kmalloc-rcl-",
            _ => "kmalloc-",
        };
        self.caches.iter().find(|c| c.object_size == class && is_of_type(c.name.as_str(), prefix))
    }

    /// Must such an area be served, mapped by single pages, with frames of its `own` or with somebody else's?
    pub(crate) fn serves_area(&self, model: &Model, wish: &AreaWish, own: bool) -> AreaVerdict {
        let descriptors = self.caches.iter().find(|c| c.name.as_str() == DESCRIPTORS);
        let descriptor = u64::from(!descriptors.is_some_and(|cache| self.has_object(model, cache)));
        let (tables, gfp) = (self.window.tables_needed(wish), wish.gfp);
        let own = if own { wish.pages } else { 0 };
        let needed = match tables {
            Some(tables) => descriptor + own + tables + stranded(model, gfp),
            None => descriptor,
        };
        AreaVerdict { has_gap: tables.is_some(), has_memory: self.single_pages(model, gfp, wish.node) >= needed }
    }

    /// Must a mapping of few pages be served? It comes from a block of this CPU with room, or from a new one, which needs a
    /// record and a place; a block with room may be purged before the last attempt.
    pub(crate) fn serves_run(&self, model: &Model, pages: usize, gfp: GfpFlags) -> AreaVerdict {
        let fresh = self.serves_area(model, &AreaWish::ram_block(model.geometry(), gfp), false);
        let with_room = model.ram_blocks_with_room(pages);
        let tables = with_room.map(|block| self.window.new_tables(block.next(), pages as u64)).max();
        let has_tables = self.single_pages(model, gfp, None) >= tables.unwrap_or(0) + stranded(model, gfp);
        AreaVerdict {
            has_gap: tables.is_some() || fresh.has_gap,
            has_memory: fresh.has_gap && fresh.has_memory && has_tables,
        }
    }

    /// Must an area be served that grows to what is wished for? One of huge entries is copied to a new area. One without a
    /// guard gets one if it goes elsewhere, as any new area.
    pub(crate) fn serves_growth(&self, model: &Model, block: &Block, wish: &AreaWish) -> AreaVerdict {
        let (start, mapped) = (block.addr / PAGE_SIZE as u64, block.frames.len() as u64);
        let guard = u64::from(block.guarded);
        if block.leaf > 0 || !self.window.can_grow(start, wish.pages + guard) {
            return self.serves_area(model, wish, true);
        }
        let own = wish.pages.saturating_sub(mapped);
        let needed = own + self.window.new_tables(start + mapped, own) + stranded(model, wish.gfp);
        AreaVerdict { has_gap: true, has_memory: self.single_pages(model, wish.gfp, None) >= needed }
    }

    /// How many single pages a sequence of requests must get, whatever it makes of zone flags.
    fn single_pages(&self, model: &Model, gfp: GfpFlags, node: Option<NodeId>) -> u64 {
        let readings = [gfp, gfp | GfpFlags::HIGHMEM, slab_page_flags(gfp).difference(GfpFlags::DMA)];
        let has_zone_flags = gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32 | GfpFlags::HIGHMEM | GfpFlags::MOVABLE);
        let readings = if has_zone_flags { &readings[..] } else { &readings[..1] };
        let node = node.unwrap_or(model.node_here());
        let rule = |&flags: &GfpFlags| ZoneRules::new(model.geometry(), flags, node);
        let rules: Vec<ZoneRules> = readings.iter().map(rule).collect();
        let of_zone = |(index, state): (usize, &ZoneState)| {
            rules.iter().map(|rules| rules.single_pages(index, state, self.reclaimed)).min().unwrap_or(0)
        };
        self.zones.iter().enumerate().map(of_zone).sum()
    }

    /// How many pages the zones of a node must give to the pages of an area while they stay above their low marks, however
    /// much these are boosted meanwhile.
    pub(crate) fn polite_pages(&self, model: &Model, gfp: GfpFlags, node: NodeId) -> u64 {
        let rules = ZoneRules::new(model.geometry(), area_page_flags(gfp), node);
        let of_node = self.zones.iter().enumerate().filter(|&(index, _)| rules.node(index) == Some(node));
        of_node.map(|(index, state)| rules.polite_pages(index, state)).sum()
    }

    /// How many blocks of an order the zones of a node must give so.
    pub(crate) fn polite_runs(&self, model: &Model, gfp: GfpFlags, node: NodeId, order: u8) -> u64 {
        let rules = ZoneRules::new(model.geometry(), area_page_flags(gfp), node);
        let of_node = self.zones.iter().enumerate().filter(|&(index, _)| rules.node(index) == Some(node));
        of_node
            .map(|(index, state)| {
                let blocks: u64 = (usize::from(order)..NR_PAGE_ORDERS)
                    .map(|larger| {
                        u64::from(state.blocks[Class::Ordinary as usize][larger]) << (larger - usize::from(order))
                    })
                    .sum();
                blocks.min(rules.polite_pages(index, state) >> order)
            })
            .sum()
    }

    /// Is there a free object that this CPU reaches without a new slab?
    fn has_object(&self, model: &Model, cache: &CacheInfo) -> bool {
        self.objects_at_hand(model, cache) > 0
    }

    /// Free objects that this CPU certainly reaches without a new slab: those in slabs, and of those in sheaves what two
    /// sheaves of each other CPU and the barns of other nodes cannot hold.
    fn objects_at_hand(&self, model: &Model, cache: &CacheInfo) -> u64 {
        let others = u64::from(model.geometry().cpus - 1) * 2;
        let barns = (model.geometry().nodes().count() as u64).saturating_sub(1) * BARN_SHEAVES;
        let elsewhere = if self.reclaimed { 0 } else { (others + barns) * u64::from(cache.sheaf_capacity) };
        let in_slabs = if self.doubtful { 0 } else { cache.free_in_slabs };
        in_slabs + cache.in_sheaves.saturating_sub(elsewhere)
    }
}

/// The flags with which an area asks for its pages (section 4.5): high memory too, unless a zone is named.
fn area_page_flags(gfp: GfpFlags) -> GfpFlags {
    let gfp = gfp.difference(GfpFlags::COMP | GfpFlags::RECLAIMABLE | GfpFlags::WRITE);
    if gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) { gfp } else { gfp | GfpFlags::HIGHMEM }
}

/// The flags with which a cache asks for the pages of a slab: the zone is the cache's, whatever the caller's flags say.
fn cache_page_flags(model: &Model, id: CacheId, gfp: GfpFlags) -> GfpFlags {
    let flags = slab_page_flags(gfp).difference(GfpFlags::DMA);
    match model.cache(id).map(|cache| cache.spec.highest_zone(model.geometry())) {
        Some(ZoneKind::Dma) => flags | GfpFlags::DMA,
        Some(ZoneKind::Dma32) => flags | GfpFlags::DMA32,
        _ => flags,
    }
}

fn is_doubtful(model: &Model) -> bool {
    model.debugged.damage_at_alloc() > 0
}

/// Pages that a refill of the per-CPU lists for one migrate type may keep from requests of another: an area's own pages
/// follow the caller's mobility, its descriptor and tables are unmovable.
fn stranded(model: &Model, gfp: GfpFlags) -> u64 {
    let largest = model.geometry().zones().iter().map(|z| z.frames.get()).max().unwrap_or(0);
    // Batch of section 3.4, doubled up to five times.
    let refill = (largest >> 12).clamp(1, 64) << 5;
    if gfp.intersects(GfpFlags::MOVABLE | GfpFlags::RECLAIMABLE) { refill } else { 0 }
}

/// The flags as the caches of the kmalloc classes see them: without a DMA zone there are no caches for it, and the ordinary
/// ones serve, from ordinary zones.
fn class_flags(model: &Model, gfp: GfpFlags) -> GfpFlags {
    let has_dma = model.geometry().zones().iter().any(|zone| zone.kind == ZoneKind::Dma);
    if has_dma { gfp } else { gfp.difference(GfpFlags::DMA) }
}

/// Whether a cache's name is that of the `kmalloc` type with this prefix: a size follows at once.
fn is_of_type(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The areas besides the live ones that stand in the way of others: ranges in pools do not.
pub(crate) const WITHOUT_POOLS: &[AreaKind] = &[AreaKind::Lazy, AreaKind::Pending, AreaKind::Deferred];

/// All areas of the window at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Areas {
    live: Vec<Span>,
    /// Blocks of `vm_map_ram`, with whether a purge takes them, and whether a forced one does.
    blocks: Vec<([bool; 2], Span)>,
    /// What the subject lists besides.
    others: Vec<(AreaKind, Span)>,
}

impl Areas {
    /// The moment as it is.
    pub(crate) fn as_is(model: &Model, inside: &dyn WhiteBox) -> Self {
        let listed = inside.vmallocinfo();
        let others = listed.iter().filter(|entry| !entry.kind.is_live()).map(|entry| (entry.kind, span_of(entry)));
        let blocks = model.ram_blocks().iter().flat_map(|block| {
            let purged = [block.is_purged(false), block.is_purged(true)];
            block.spans().map(move |span| (purged, span))
        });
        Self { live: area_spans(model).collect(), blocks: blocks.collect(), others: others.collect() }
    }

    /// The window with the live areas and those others that are of these kinds; its pools are known in any case.
    pub(crate) fn window(&self, geometry: &Geometry, kinds: &[AreaKind]) -> Window {
        self.window_with(geometry, kinds, |_| true)
    }

    /// The same after a purge of blocks of `vm_map_ram`, which may be forced.
    pub(crate) fn purged_window(&self, geometry: &Geometry, kinds: &[AreaKind], forced: bool) -> Window {
        self.window_with(geometry, kinds, |purged| !purged[usize::from(forced)])
    }

    fn window_with(&self, geometry: &Geometry, kinds: &[AreaKind], stays: impl Fn([bool; 2]) -> bool) -> Window {
        let blocks = self.blocks.iter().filter(|(purged, _)| stays(*purged)).map(|(_, span)| *span);
        let stay = self.live.iter().copied().chain(blocks).chain(self.of(kinds));
        Window::new(geometry, stay.collect()).with_pools(self.of(&[AreaKind::Pooled]).collect())
    }

    fn of<'a>(&'a self, kinds: &'a [AreaKind]) -> impl Iterator<Item = Span> + 'a {
        self.others.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, span)| *span)
    }
}

/// Where an area is, as the subject shows it.
pub(crate) fn span_of(entry: &VmallocEntry) -> Span {
    Span {
        start: entry.start.vpn().as_u64(),
        pages: entry.pages.get(),
        guard: entry.guard.get(),
        mapped: entry.mapped.get(),
    }
}

/// Live areas, and the blocks of `vm_map_ram` that `stays` chooses.
fn live_spans(model: &Model, stays: impl Fn(&RamBlock) -> bool) -> impl Iterator<Item = Span> {
    let blocks = model.ram_blocks().iter().filter(move |block| stays(block));
    area_spans(model).chain(blocks.flat_map(RamBlock::spans))
}

/// Live areas that are no block of `vm_map_ram`.
fn area_spans(model: &Model) -> impl Iterator<Item = Span> {
    let is_area = |block: &&Block| block.tier != Tier::MapRam || !model.is_run(block.frames.len());
    model.blocks(Tiers::VIRTUAL).filter(is_area).map(|block| Span {
        start: block.addr / PAGE_SIZE as u64,
        pages: block.area_pages as u64,
        guard: u64::from(block.guarded),
        mapped: block.frames.len() as u64,
    })
}

/// Free blocks of a zone if exactly the frames that have a class are free, and everything is coalesced: blocks of one class
/// only, because that is what pageblocks have.
pub(crate) fn coalesced(zone: &ZoneSpec, geometry: &Geometry, free_class: impl Fn(u32) -> Option<Class>) -> ZoneState {
    let mut state = ZoneState::default();
    let mut run = (0u64, None);
    let (start, end) = (u64::from(zone.start.as_u32()), u64::from(zone.start.as_u32()) + zone.frames.get());
    for frame in start..=end {
        let class = if frame < end { free_class(frame as u32) } else { None };
        if class != run.1 || frame == end {
            if let Some(class) = run.1 {
                add_run(&mut state.blocks[class as usize], run.0, frame, geometry.max_order.get());
            }
            run = (frame, class);
        }
    }
    state
}

/// Adds the largest aligned blocks that make up the free frames `[from, to)`.
fn add_run(blocks: &mut [u32; NR_PAGE_ORDERS], mut from: u64, to: u64, max_order: u8) {
    while from < to {
        let aligned = if from == 0 { u32::from(max_order) } else { from.trailing_zeros() };
        let order = aligned.min((to - from).ilog2()).min(u32::from(max_order));
        blocks[order as usize] += 1;
        from += 1 << order;
    }
}

/// Which frames no reclaim can free.
pub(super) struct Pins<'a> {
    pub(super) model: &'a Model,
    pub(super) inside: &'a dyn WhiteBox,
    pub(super) caches: &'a [CacheInfo],
}

impl Pins<'_> {
    pub(super) fn is_pinned(&self, pfn: u32) -> bool {
        match self.inside.frame_kind(pfn) {
            FrameKind::Free | FrameKind::Pcp | FrameKind::Deferred | FrameKind::LargePending => false,
            FrameKind::Pages
            | FrameKind::PagesTail
            | FrameKind::PagesShared
            | FrameKind::LargeKmalloc
            | FrameKind::LargeTail => self.model.used_directly(pfn),
            FrameKind::Vmalloc => self.model.vmalloc_owner(pfn).is_some(),
            FrameKind::Slab(cache) => self.is_slab_pinned(pfn, cache),
            // A guard is nobody's as long as a neighbour lives; to say which would be to merge here.
            FrameKind::Absent | FrameKind::PageTable | FrameKind::Leaked | FrameKind::Guard | FrameKind::Bad => true,
        }
    }

    fn is_slab_pinned(&self, pfn: u32, id: CacheId) -> bool {
        let Some(cache) = self.caches.iter().find(|c| c.id == id) else { return true };
        // Which slabs the objects of prefilled sheaves are from cannot be seen.
        if cache.name.as_str() == DESCRIPTORS || cache.reserved > 0 {
            return true;
        }
        let first = cache.order.align_down(kmem::Pfn::new(pfn)).as_u32();
        let same = |f: &u32| self.inside.frame_kind(*f) == FrameKind::Slab(id);
        (first..first + cache.order.pages() as u32).filter(same).any(|f| self.model.used_directly(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, step};
    use crate::subject::{Call, Reply};
    use kmem::{PageCount, Pfn};

    #[test]
    fn coalescing_respects_alignment_zone_and_largest_order() {
        let zone = ZoneSpec {
            kind: ZoneKind::Normal,
            node: kmem::NodeId::ZERO,
            start: Pfn::new(3),
            frames: PageCount::new(30),
        };
        let mut geometry = Geometry::flat(64);
        geometry.max_order = kmem::Order::new(3).unwrap();
        let state = coalesced(&zone, &geometry, |f| (f != 20).then_some(Class::Ordinary));
        // 3 | 4-7 | 8-15 | 16-19 | 21 | 22-23 | 24-31 | 32
        assert_eq!((state.pages(Class::Ordinary), state.blocks[0][..5].to_vec()), (29, vec![3, 1, 2, 2, 0]));
        let state = coalesced(&zone, &geometry, |f| Some(if f < 12 { Class::Cma } else { Class::Ordinary }));
        assert_eq!(state.blocks[Class::Cma as usize][..5], [1, 0, 2, 0, 0], "3 | 4-7 | 8-11");
        assert_eq!(state.blocks[Class::Ordinary as usize][..5], [1, 0, 1, 2, 0], "12-15 | 16-23 | 24-31 | 32");
    }

    #[test]
    fn pinned_frames_are_those_with_something_live_on_them() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let cache = subject.add_cache("kmalloc-64", 64, 0, 128);
        subject.kinds[8] = FrameKind::Slab(cache);
        subject.kinds[9] = FrameKind::Slab(cache);
        subject.kinds[10] = FrameKind::Pcp;
        subject.kinds[11] = FrameKind::PageTable;
        subject.kinds[12] = FrameKind::Vmalloc;
        let reply = Reply::Block { addr: subject.direct(9), usable: 64 };
        model.update(&step(Call::Kmalloc { size: 64, gfp: GfpFlags::KERNEL }, reply), &subject);
        let caches = subject.caches.clone();
        let pins = Pins { model: &model, inside: &subject, caches: &caches };
        let pinned: Vec<u32> = (0..64).filter(|&f| pins.is_pinned(f)).collect();
        assert_eq!(pinned, [9, 11], "8 is an empty slab, 10 is cached, 12 is behind a freed area");
    }

    #[test]
    fn an_area_needs_descriptor_pages_and_tables() {
        let mut subject = FakeSubject::new(64);
        let model = subject.model();
        let verdict = |subject: &FakeSubject, pages| {
            let call = Call::Vmalloc { size: pages * PAGE_SIZE, gfp: GfpFlags::KERNEL };
            let wish = AreaWish::of(model.geometry(), &call).unwrap();
            Snapshot::as_is(&model, subject).serves_area(&model, &wish, true)
        };
        // 64 free, 16 kept back: 48 for one descriptor slab, three tables and the pages.
        assert!(verdict(&subject, 44).has_memory && !verdict(&subject, 45).has_memory);
        subject.add_cache("vmap_area", 64, 1, 0);
        assert!(verdict(&subject, 45).has_memory && !verdict(&subject, 46).has_memory);
        assert!(verdict(&subject, 63).has_gap && !verdict(&subject, 64).has_gap);
    }

    #[test]
    fn objects_oblige_only_where_this_cpu_reaches_them() {
        let mut subject = FakeSubject::new(64);
        subject.set_free(&[(0, 16)]);
        let serves = |subject: &FakeSubject, size, gfp| {
            let model = subject.model();
            Snapshot::as_is(&model, subject).serves_kmalloc(&model, size, gfp)
        };
        assert!(!serves(&subject, 60, GfpFlags::NOWAIT) && serves(&subject, 60, GfpFlags::ATOMIC));
        subject.add_cache("kmalloc-64", 64, 0, 120);
        assert!(serves(&subject, 60, GfpFlags::NOWAIT));
        assert!(!serves(&subject, 60, GfpFlags::NOWAIT | GfpFlags::RECLAIMABLE), "another set of caches");
        assert!(!serves(&subject, 90, GfpFlags::NOWAIT), "another class");
        subject.geometry.cpus = 2;
        assert!(!serves(&subject, 60, GfpFlags::NOWAIT), "the other CPU may have them all");
        subject.caches[0].in_sheaves = 121;
        assert!(serves(&subject, 60, GfpFlags::NOWAIT));
    }
}
