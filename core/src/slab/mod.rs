//! The slab allocator: caches of equal objects, and `kmalloc` on top of them.
//!
//! ```text
//!  kmalloc(size) -> class -> cache          kfree(addr) -> frame -> kind byte -> cache
//!            |                                              |
//!            v      pop                                     v      push
//!   +------------------- CPU, per cache: main sheaf, spare ---------------------+   no lock
//!   +------------------- cache: barn of full and empty sheaves -----------------+   cache lock
//!   +------------------- cache: partial slabs, full slabs ----------------------+   cache lock
//!   +------------------- page allocator: frames of a slab ----------------------+   zone lock
//! ```
//!
//! Nothing of the allocator is kept inside objects: occupancy and liveness are bitmaps elsewhere, links are in frame
//! descriptors. A user that writes to a freed object cannot damage the allocator.
//!
//! | object | liveness bit | occupancy bit | where |
//! |---|---|---|---|
//! | live | set | set | a user has it |
//! | cached | clear | set | in exactly one sheaf |
//! | free | clear | clear | in its slab |
//!
//! **Locks.** A CPU's sheaves, then the cache's lock, then the page allocator's. The locks of the sheaf pool and its
//! buffers are taken last and held for a copy. Whoever waits for the sheaves of another CPU holds no lock, since their
//! owner may want the cache's. Constructors run without a lock. Every call is one attempt, and a failed one leaves
//! everything as it was; waiting, reclaim and retry are the caller's business.
//!
//! Errors of a free name the misuse (`FreeError`) and change nothing, also while the object lies in a sheaf.

mod alloc;
mod args;
mod barn;
mod bulk;
mod cache;
mod check;
mod check_shape;
mod classes;
mod debug;
mod flush;
mod free;
mod grow;
mod leak;
mod live;
mod merge;
mod node;
mod nolock;
mod occupancy;
mod order;
mod place;
mod pocket;
mod prefill;
mod rcu;
mod realloc;
mod reclaim;
mod refill;
mod shape;
mod sheaf;
#[cfg(feature = "std")]
mod stop;
#[cfg(test)]
mod tests;

pub(crate) use alloc::Missed;
pub use args::{CacheArgs, Ctor, CtorObject, SlabFlags};
pub use leak::{Destroyed, LeakedObject};
pub use prefill::PrefilledSheaf;
pub(crate) use rcu::{PutOff, RCU_HEAD_BYTES};

use crate::addr::{PAGE_SIZE, Pfn};
use crate::buddy::PageAllocator;
use crate::error::CacheId;
use crate::geometry::{CACHES, Geometry, ZoneKind};
use crate::gfp::GfpFlags;
use crate::hardening::Hardening;
use crate::inspect::CacheName;
use crate::numa::{MAX_NODES, NodeId};
use crate::platform::{CpuId, Platform};
use crate::raw::{Carver, MetaSlice, PerCpu};
use crate::statistics::PathCounts;
use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed, SpinLock};
use classes::{KmallocType, NR_CLASSES};
use debug::{Layout, Quarantine, Sites, Wish};
use live::{LiveBytes, LiveMap, LiveMode};
use merge::Numbers;
use node::{Identity, Node, Slabs};
use nolock::Deferred;
use occupancy::Occupancy;
use order::SlabOrders;
use prefill::Reserved;
use rcu::{Rcu, RcuParts};
use shape::{Reciprocal, Role, Shape, ShapeRecord, UserWindow};
use sheaf::{CpuCell, SheafPool};

/// The kmalloc sets, and one for the descriptors of vmalloc.
const BUILTIN_CACHES: usize = KmallocType::ALL.len() * NR_CLASSES + 1;

const _: () = assert!(BUILTIN_CACHES < *CACHES.start() as usize, "a geometry leaves numbers for caches of users");

/// The slices of the metadata region that the slab layer uses.
pub(crate) struct SlabParts {
    shapes: MetaSlice<ShapeRecord>,
    cells: MetaSlice<CpuCell>,
    nodes: MetaSlice<SpinLock<Node>>,
    occupancy: Occupancy,
    live: LiveBytes,
    pool: SheafPool,
    sites: Sites,
    quarantine: Quarantine,
    reserved: Reserved,
    slow: MetaSlice<SlowCounts>,
    deferred: Deferred,
    rcu: RcuParts,
}

/// How many allocations and frees of a cache came to the slow paths, where they are counted.
#[derive(Default)]
struct SlowCounts {
    allocs: AtomicU32,
    frees: AtomicU32,
}

impl SlabParts {
    pub(crate) fn carve(geometry: &Geometry, carver: &mut Carver<'_>) -> Self {
        let caches = usize::from(geometry.max_caches);
        let frames = geometry.frames() as usize;
        Self {
            shapes: carver.carve(caches, |_| ShapeRecord::vacant()),
            cells: carver.carve(caches * usize::from(geometry.cpus), |_| CpuCell::vacant()),
            nodes: carver.carve(caches * nr_nodes(geometry), |_| SpinLock::new(Node::VACANT)),
            occupancy: Occupancy::carve(frames, carver),
            live: LiveBytes::carve(frames, geometry.hardening != Hardening::Off, carver),
            pool: SheafPool::carve(pool_buffers(geometry), carver),
            sites: Sites::carve(usize::from(geometry.track_sites), carver),
            quarantine: Quarantine::carve(geometry, carver),
            reserved: carver.carve(caches, |_| AtomicU64::new(0)),
            slow: carver.carve(caches, |_| SlowCounts::default()),
            deferred: Deferred::carve(usize::from(geometry.cpus), carver),
            rcu: RcuParts::carve(caches, usize::from(geometry.cpus), carver),
        }
    }
}

/// How many sheaf buffers the machine gets: enough for the hot caches of every CPU, and little of a small machine.
fn pool_buffers(geometry: &Geometry) -> usize {
    (geometry.frames() as usize / 16).clamp(16, 128 + 32 * usize::from(geometry.cpus))
}

/// All caches of a machine. See the module's page.
pub(crate) struct SlabLayer {
    shapes: MetaSlice<ShapeRecord>,
    /// For each CPU a cell for each number of a cache.
    cells: PerCpu<CpuCell, NR_CLASSES>,
    /// What memory node `n` has of cache `c`: at `n * caches + c`. Node 0's part also names the cache.
    nodes: MetaSlice<SpinLock<Node>>,
    /// How many memory nodes there are.
    node_count: usize,
    occupancy: Occupancy,
    live: LiveMap,
    pool: SheafPool,
    /// Objects of each cache in prefilled sheaves.
    reserved: Reserved,
    slow: MetaSlice<SlowCounts>,
    /// Frees that wait.
    deferred: Deferred,
    /// For each node the nearest one that has memory.
    nearest_memory: [usize; MAX_NODES],
    sites: Sites,
    numbers: SpinLock<Numbers>,
    rcu: Rcu,
    quarantine: Quarantine,
    /// The largest request that `kmalloc` serves.
    kmalloc_max: usize,
    /// Whether DMA requests have caches of their own.
    has_dma: bool,
}

impl SlabLayer {
    /// Makes the layer; the kmalloc caches exist from here on, and no frame is taken yet.
    pub(crate) fn new<P: Platform>(pages: &PageAllocator<P>, parts: SlabParts) -> Self {
        let geometry = &pages.base.geometry;
        let SlabParts { shapes, cells, nodes, occupancy, live, .. } = parts;
        let SlabParts { pool, sites, quarantine, reserved, slow, deferred, rcu, .. } = parts;
        let layer = Self {
            shapes,
            cells: PerCpu::new(cells, geometry.cpus),
            nodes,
            node_count: nr_nodes(geometry),
            occupancy,
            live: LiveMap::new(&pages.base.frames, live),
            pool,
            reserved,
            slow,
            deferred,
            rcu: Rcu::new(rcu),
            nearest_memory: nearest_memory(geometry),
            sites,
            numbers: SpinLock::new(Numbers::new()),
            quarantine,
            kmalloc_max: PAGE_SIZE << geometry.max_order.get(),
            has_dma: geometry.zones().iter().any(|zone| zone.kind == ZoneKind::Dma),
        };
        for set in KmallocType::ALL {
            if set != KmallocType::Dma || layer.has_dma {
                layer.install_kmalloc_set(geometry, set);
            }
        }
        layer
    }

    /// Makes the size classes of one set; a class that fits no block of this machine stays vacant.
    fn install_kmalloc_set(&self, geometry: &Geometry, set: KmallocType) {
        let alloc_gfp = match set {
            KmallocType::Normal => GfpFlags::empty(),
            KmallocType::Reclaimable => GfpFlags::RECLAIMABLE,
            KmallocType::Dma => GfpFlags::DMA,
        };
        for (class, size) in classes::sizes().enumerate() {
            // The lowest set bit of the size is what every multiple of it is aligned to.
            let align = size & size.wrapping_neg();
            let args = CacheArgs { align, flags: set.flags(), usersize: size, ..CacheArgs::new(size) };
            let checked = CacheArgs { flags: args.flags | debug::flags(geometry), ..args };
            // Where no block holds an object with everything around it, the class does without.
            let shape = shape(geometry, Role::Kmalloc, &checked, align, alloc_gfp)
                .or_else(|| shape(geometry, Role::Kmalloc, &args, align, alloc_gfp));
            let name = CacheName::new(set.cache_name(class));
            if let (Some(shape), Some(name)) = (shape, name) {
                self.install(set.first_cache() + class, &shape, Identity { name, ctor: None });
            }
        }
    }

    /// Gives a vacant number to a cache; `false` if it is taken.
    fn install(&self, id: usize, shape: &Shape, identity: Identity) -> bool {
        let (Some(record), Some(node)) = (self.shapes.get(id), self.nodes.get(id)) else { return false };
        let mut node = node.lock();
        if node.identity.is_some() {
            return false;
        }
        node.identity = Some(identity);
        record.store(shape);
        let [line, shared] = self.capacities(shape);
        self.set_capacities(id, line, shared);
        true
    }

    /// How many objects of a cache the fast paths may put into the main sheaf: of those that have a byte of the liveness map
    /// for themselves, and of those that share one.
    fn capacities(&self, shape: &Shape) -> [u32; 2] {
        // With several memory nodes each free has to ask which one the object belongs to: none is fast.
        let capacity = if self.nr_nodes() > 1 { 0 } else { u32::from(shape.capacity) };
        match shape.live {
            LiveMode::Bits => [0, capacity],
            LiveMode::Bytes | LiveMode::Class(_) | LiveMode::Off => [capacity, 0],
        }
    }

    /// Tells every CPU how many objects of a cache its fast paths may put into the main sheaf.
    fn set_capacities(&self, id: usize, line: u32, shared: u32) {
        let of_all_cpus = self.cells.iter().skip(id).step_by(self.nr_caches().max(1));
        of_all_cpus.for_each(|cell| cell.set_capacities(line, shared));
    }

    /// How many numbers for caches there are.
    fn nr_caches(&self) -> usize {
        self.shapes.len()
    }

    /// What a memory node has of a cache; `None` if there is no such cache number or node.
    fn node(&self, id: usize, node: usize) -> Option<&SpinLock<Node>> {
        self.nodes.get(node * self.nr_caches() + id).filter(|_| id < self.nr_caches())
    }

    /// What each memory node has of a cache, in the order of the nodes' numbers.
    fn nodes_of(&self, id: usize) -> impl Iterator<Item = &SpinLock<Node>> + Clone {
        (0..self.nr_nodes()).filter_map(move |node| self.node(id, node))
    }

    /// The memory node of the CPU that runs this call: the nearest one, if its own has no memory.
    fn node_here<P: Platform>(&self, pages: &PageAllocator<P>) -> usize {
        self.nearest_memory[pages.base.node_here().index()]
    }

    /// How many memory nodes there are.
    fn nr_nodes(&self) -> usize {
        self.node_count
    }

    /// The numbers of all caches that have slabs of their own.
    fn caches(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nr_caches()).filter(|&id| !matches!(self.role(id), Role::Vacant | Role::Alias))
    }

    fn role(&self, id: usize) -> Role {
        self.shapes.get(id).map_or(Role::Vacant, ShapeRecord::role)
    }

    /// What names a cache; `None` if no cache has the number.
    fn identity(&self, id: usize) -> Option<Identity> {
        self.node(id, 0)?.lock().identity
    }

    /// Names a vacant number, or takes the name of one away; `false` if there is nothing to name.
    fn set_identity(&self, id: usize, identity: Option<Identity>) -> bool {
        let Some(node) = self.node(id, 0) else { return false };
        let mut node = node.lock();
        let free = identity.is_none() || node.identity.is_none();
        if free {
            node.identity = identity;
        }
        free
    }

    fn shape(&self, id: usize) -> Option<Shape> {
        self.shapes.get(id)?.load()
    }

    /// A cache's slabs, as its node works on them; `None` if no cache has the number.
    fn slabs<'l, P>(&'l self, pages: &'l PageAllocator<P>, id: usize) -> Option<Slabs<'l>> {
        let shape = self.shape(id)?;
        Some(Slabs { id, frames: &pages.base.frames, occupancy: &self.occupancy, shape })
    }

    /// How often the paths of a cache were used; those of an alias are those of the cache whose slabs it uses.
    pub(crate) fn statistics(&self, cache: CacheId) -> PathCounts {
        let id = self.root(cache.index());
        let cpus = (0..crate::geometry::MAX_CPUS).map(CpuId::new).take(self.cells.cpus());
        let fast = cpus.filter_map(|cpu| self.cell(cpu, id)).map(|cell| {
            let (allocs, frees) = cell.hits();
            PathCounts { alloc_fastpath: allocs.into(), free_fastpath: frees.into(), ..PathCounts::default() }
        });
        let slow = self.slow.get(id).map_or_else(PathCounts::default, |slow| PathCounts {
            alloc_slowpath: slow.allocs.load(Relaxed).into(),
            free_slowpath: slow.frees.load(Relaxed).into(),
            ..PathCounts::default()
        });
        fast.fold(slow, PathCounts::plus)
    }

    /// The sheaves of a cache on a CPU.
    #[inline(always)]
    fn cell(&self, cpu: CpuId, id: usize) -> Option<&CpuCell> {
        self.cells.get(cpu, id)
    }
}

/// The memory node that a frame of a slab belongs to.
fn node_of<P: Platform>(pages: &PageAllocator<P>, frame: Pfn) -> usize {
    pages.node_of(frame).map_or(0, NodeId::index)
}

/// How many memory nodes the zones name, from 0 to the largest number.
fn nr_nodes(geometry: &Geometry) -> usize {
    geometry.nodes().map(NodeId::index).max().unwrap_or(0) + 1
}

/// For each node the nearest one that has memory.
fn nearest_memory(geometry: &Geometry) -> [usize; MAX_NODES] {
    let nearest = |node: usize| {
        let from = NodeId::all().nth(node).unwrap_or_default();
        let has_memory = |to: &NodeId| geometry.nodes().any(|node| node == *to);
        geometry.distances.nearest_first(from).into_iter().find(has_memory).unwrap_or_default()
    };
    core::array::from_fn(|node| nearest(node).index())
}

/// Lays a cache out, whose arguments were checked; `None` if no block of the machine holds an object.
fn shape(geometry: &Geometry, role: Role, args: &CacheArgs, align: usize, alloc_gfp: GfpFlags) -> Option<Shape> {
    let size = args.size;
    let wish = Wish {
        object_size: size,
        align,
        flags: args.flags,
        has_ctor: args.ctor.is_some(),
        freeptr_offset: args.freeptr_offset,
        is_kmalloc: args.flags.contains(SlabFlags::KMALLOC),
    };
    let is_debug = args.flags.intersects(SlabFlags::DEBUG);
    let layout = if is_debug { Some(Layout::new(&wish)?) } else { None };
    let stride = layout.map_or_else(|| order::plain_stride(size, align), |layout| Some(layout.stride()))?;
    let orders: SlabOrders = order::slab_orders(stride, geometry.cpus, geometry.max_order)?;
    let without_sheaves = role == Role::Internal || args.flags.intersects(SlabFlags::NOLEAKTRACE | SlabFlags::DEBUG);
    Some(Shape {
        role,
        object_size: size,
        stride,
        align,
        reciprocal: Reciprocal::new(stride),
        orders,
        capacity: if without_sheaves { 0 } else { order::sheaf_capacity(stride, args.sheaf_capacity) },
        live: live_mode(geometry, role, args.flags, stride),
        alloc_gfp,
        flags: args.flags,
        user: UserWindow::of(args),
        freeptr_offset: args.freeptr_offset.map(|offset| offset as u32),
        left: layout.map_or(0, |layout| layout.left as u32),
        has_ctor: args.ctor.is_some(),
        mergeable: role == Role::User && merge::may_merge(args),
    })
}

/// How a cache keeps which of its objects are live.
fn live_mode(geometry: &Geometry, role: Role, flags: SlabFlags, stride: usize) -> LiveMode {
    let is_debug = flags.intersects(SlabFlags::DEBUG);
    let special = SlabFlags::DEBUG | SlabFlags::RECLAIM_ACCOUNT | SlabFlags::CACHE_DMA;
    let marked = classes::marked(stride).filter(|_| role == Role::Kmalloc && !flags.intersects(special));
    match geometry.hardening {
        Hardening::Off if !is_debug => LiveMode::Off,
        _ => marked.map_or_else(|| LiveMode::for_stride(stride), LiveMode::Class),
    }
}

/// The number as users see it.
fn cache_id(id: usize) -> CacheId {
    CacheId::new(id as u16)
}
