//! The auditor: recounts everything from the slabs and the sheaves.
//!
//! Call it while no other CPU is inside the allocator.
//!
//! ```text
//! I12.1  a slab is on the full list, or set aside, if and only if all of its objects are out
//! I12.2  inuse == number of the slab's occupancy bits <= objects, and no bit stands beyond the last object
//! I12.3  inuse, objects and pages of the node == sums over its slabs
//! I12.4  each frame of a slab has the cache's kind and the distance to the slab's first frame
//! I12.5  slab frames of the page allocator == sum of the nodes' pages
//! I12.6  a slab is on the lists of the memory node that its frames belong to
//! I12.7  to I12.9: see `check_shape`
//! I8     the lists' lengths, back links and last slabs are right
//! I21.1  count <= capacity for each sheaf; a spare is empty or full; a barn has full sheaves on one shelf and empty
//!        ones on the other
//! I21.2  each object in a sheaf starts an object of a slab of this cache; its occupancy bit is set, its liveness clear
//! I21.3  objects in sheaves + reserved, deferred, live and lost objects == sum of inuse over the nodes
//! I21.5  objects that wait for readers, by slab, of a debug cache == those of the cache
//! I21.8  an object in quarantine is out of its slab and not live, unless the slab was set aside; there are no more of
//!        them than the nodes count as lost
//! I21.4  buffers free + buffers in use == buffers of the pool
//! I21.6  the chain of free buffers has as many as are counted;   I21.7  each of them is empty
//! ```

use super::SlabLayer;
use super::live::LiveMode;
use super::node::{LIST_ASIDE, LIST_FULL, LIST_PARTIAL, Node, Slabs};
use super::sheaf::{Sheaf, SheafId};
use crate::addr::{Pfn, PhysAddr};
use crate::buddy::{OwnerClass, PageAllocator};
use crate::error::{Invariant, Violation};
use crate::page::FrameKind;
use crate::platform::{CpuId, Platform};

/// What the slabs of a cache add up to.
#[derive(Default)]
struct Sums {
    inuse: u64,
    objects: u64,
    pages: u64,
    live: u64,
    waiting: u64,
}

/// What the sheaves of a cache add up to.
#[derive(Default)]
struct Cached {
    objects: u64,
    buffers: u64,
}

/// Which counts a sheaf may have where it is.
#[derive(Clone, Copy)]
enum Fill {
    Any,
    Empty,
    Full,
    EmptyOrFull,
}

impl SlabLayer {
    /// Checks all caches.
    ///
    /// # Errors
    ///
    /// The first invariant found broken.
    pub(crate) fn check_invariants<P: Platform>(&self, pages: &PageAllocator<P>) -> Result<(), Violation> {
        let mut buffers = 0;
        self.check_aliases()?;
        self.check_vacancies()?;
        for id in self.caches() {
            buffers += self.check_cache(pages, id)?;
        }
        buffers += self.rcu_buffers();
        let owned = pages.owned(OwnerClass::Slab);
        Violation::check_eq(Invariant::I12SlabCounts, "pages of all slabs", 0, owned, self.nr_pages())?;
        self.pool.check_free()?;
        let (all, free) = (u64::from(self.pool.len()), u64::from(self.pool.free_count()));
        Violation::check_eq(Invariant::I21CacheCounts, "sheaf buffers free and in use", 0, all, free + buffers)
    }

    /// Checks one cache; returns how many buffers it has.
    fn check_cache<P: Platform>(&self, pages: &PageAllocator<P>, id: usize) -> Result<u64, Violation> {
        let Some(slabs) = self.slabs(pages, id) else { return Ok(0) };
        self.check_shape(&pages.base.geometry, id, &slabs.shape)?;
        let mut cached = Cached::default();
        for cpu in (0..pages.base.geometry.cpus).map(CpuId::new) {
            self.check_cpu(pages, cpu, id, &slabs, &mut cached)?;
        }
        let (mut sums, mut lost) = (Sums::default(), 0);
        for (number, node) in self.nodes_of(id).enumerate() {
            let node = node.lock();
            for sheaf in node.barn.full.iter() {
                self.check_buffer(&slabs, sheaf, Fill::Full, &mut cached)?;
            }
            for sheaf in node.barn.empty.iter() {
                self.check_buffer(&slabs, sheaf, Fill::Empty, &mut cached)?;
            }
            let of_node = self.check_slabs(pages, id, &slabs, number, &node)?;
            sums.inuse += of_node.inuse;
            sums.live += of_node.live;
            sums.waiting += of_node.waiting;
            lost += node.lost;
        }
        if slabs.shape.is_debug() {
            self.check_quarantine(id, &slabs, lost)?;
            let (what, pending) = ("objects that wait for readers, of debug cache", self.rcu.pending(id));
            Violation::check_eq(Invariant::I21CacheCounts, what, id as u64, pending, sums.waiting)?;
        }
        if slabs.shape.live != LiveMode::Off {
            let what = "objects in sheaves, reserved, deferred, pending, live and lost of cache";
            let reserved = if slabs.shape.is_debug() { 0 } else { self.nr_reserved(id) };
            let waiting = self.nr_deferred(pages, id) + self.rcu.pending(id);
            let found = cached.objects + reserved + waiting + sums.live + lost;
            Violation::check_eq(Invariant::I21CacheCounts, what, id as u64, sums.inuse, found)?;
        }
        Ok(cached.buffers)
    }

    /// I21.8 for one cache.
    fn check_quarantine(&self, id: usize, slabs: &Slabs<'_>, lost: u64) -> Result<(), Violation> {
        let (mut waiting, mut wrong) = (0, None);
        self.quarantine.each(|object| {
            let frame = object.pfn().unwrap_or_default();
            if slabs.frames.slab_cache(frame.index()) != Some(id) {
                return;
            }
            let (head, index) = slabs.locate(object);
            if slabs.frames.list(head) != LIST_ASIDE {
                waiting += 1;
                let is_live = self.live.is_live(slabs.shape.live, object);
                wrong = wrong.or((!slabs.occupancy.is_taken(head, index) || is_live).then_some(object.as_u64()));
            }
        });
        let what = "an object in quarantine is free, or live (I21.8)";
        if let Some(object) = wrong {
            return Err(Violation::new(Invariant::I21CacheCounts, what, object, 1, 0));
        }
        let (what, found) = ("objects in quarantine, of which no more are lost (I21.8)", lost.max(waiting));
        Violation::check_eq(Invariant::I21CacheCounts, what, id as u64, lost, found)
    }

    fn check_cpu<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cpu: CpuId,
        id: usize,
        slabs: &Slabs<'_>,
        cached: &mut Cached,
    ) -> Result<(), Violation> {
        let checked = self.with_sheaves(pages, cpu, id, |sheaves| {
            self.check_sheaf(slabs, &sheaves.main, Fill::Any)?;
            cached.objects += u64::from(sheaves.main.len());
            let (spare, pocket) = (sheaves.spare.first.as_ref(), &sheaves.spare.pocket);
            spare.map_or(Ok(()), |spare| self.check_buffer(slabs, spare, Fill::EmptyOrFull, cached))?;
            let mut length = 0;
            self.pool.each_chained(pocket, |buffer| {
                length += 1;
                self.check_buffer(slabs, buffer, Fill::Full, cached)
            })?;
            let (most, known) = (u64::from(pages.base.geometry.pocket), u64::from(self.pool.depth(pocket)));
            let what = "sheaves in a pocket, as its first one knows (P2)";
            Violation::check_eq(Invariant::I21CacheCounts, what, id as u64, length.min(most), known)
        });
        let what = "sheaves that nobody gave back, of CPU";
        checked.unwrap_or(Err(Violation::new(Invariant::I21CacheCounts, what, u64::from(cpu.get()), 0, 1)))
    }

    fn check_buffer(
        &self,
        slabs: &Slabs<'_>,
        buffer: &SheafId,
        fill: Fill,
        cached: &mut Cached,
    ) -> Result<(), Violation> {
        cached.buffers += 1;
        cached.objects += self.buffered(buffer);
        self.pool.with(buffer, |sheaf| self.check_sheaf(slabs, sheaf, fill)).unwrap_or(Ok(()))
    }

    /// I21.1 and I21.2 for one sheaf.
    fn check_sheaf(&self, slabs: &Slabs<'_>, sheaf: &Sheaf, fill: Fill) -> Result<(), Violation> {
        let (count, capacity) = (sheaf.len(), u32::from(slabs.shape.capacity));
        let allowed = match fill {
            Fill::Any => count <= capacity,
            Fill::Empty => count == 0,
            Fill::Full => count == capacity,
            Fill::EmptyOrFull => count == 0 || count == capacity,
        };
        if !allowed {
            let (what, count) = ("objects in a sheaf of capacity", u64::from(count));
            return Err(Violation::new(Invariant::I21CacheCounts, what, u64::from(capacity), 0, count));
        }
        sheaf.objects().iter().try_for_each(|&object| self.check_cached_object(slabs, object))
    }

    fn check_cached_object(&self, slabs: &Slabs<'_>, object: PhysAddr) -> Result<(), Violation> {
        let fault = |what, found| Err(Violation::new(Invariant::I21CacheCounts, what, object.as_u64(), 0, found));
        let (head, index) = slabs.locate(object);
        if slabs.object(head, index) != object || index >= slabs.objects(head) {
            return fault("a cached object starts no object", u64::from(index));
        }
        if !slabs.occupancy.is_taken(head, index) {
            return fault("a cached object is free in its slab too", u64::from(index));
        }
        if slabs.shape.live != LiveMode::Off && self.live.is_live(slabs.shape.live, object) {
            return fault("a cached object is marked live", u64::from(index));
        }
        Ok(())
    }

    /// I8 and I12 for one cache.
    fn check_slabs<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        id: usize,
        slabs: &Slabs<'_>,
        number: usize,
        node: &Node,
    ) -> Result<Sums, Violation> {
        let mut sums = Sums::default();
        for (list, name) in [(&node.partial, LIST_PARTIAL), (&node.full, LIST_FULL), (&node.aside, LIST_ASIDE)] {
            list.check_links(slabs.frames, Invariant::I8ListCounts)?;
            for head in list.iter(slabs.frames) {
                let at = super::node_of(pages, head) as u64;
                Violation::check_eq(
                    Invariant::I12SlabCounts,
                    "node of the slab",
                    u64::from(head.as_u32()),
                    number as u64,
                    at,
                )?;
                self.check_slab(id, slabs, head, name, &mut sums)?;
            }
        }
        let equal =
            |what, expected, found| Violation::check_eq(Invariant::I12SlabCounts, what, id as u64, expected, found);
        equal("objects out of the slabs of cache", sums.inuse, node.inuse)?;
        equal("objects of the slabs of cache", sums.objects, node.objects)?;
        equal("pages of the slabs of cache", sums.pages, node.pages)?;
        Ok(sums)
    }

    /// Live objects of a slab. Small objects are counted by the frame, large ones one by one: whichever looks at less.
    fn count_live(&self, slabs: &Slabs<'_>, head: Pfn) -> u64 {
        let frames = 0..slabs.frames.order(head).pages() as u32;
        let frame = |distance| Pfn::new(head.as_u32() + distance);
        let live = |&index: &u32| self.live.is_live(slabs.shape.live, slabs.object(head, index));
        match slabs.shape.live {
            LiveMode::Off => 0,
            LiveMode::Bytes | LiveMode::Class(_) => (0..slabs.objects(head)).filter(live).count() as u64,
            LiveMode::Bits => frames.map(|distance| u64::from(self.live.count_bits(frame(distance)))).sum(),
        }
    }

    fn check_slab(&self, id: usize, slabs: &Slabs<'_>, head: Pfn, list: u8, sums: &mut Sums) -> Result<(), Violation> {
        let equal = |what, expected: u32, found: u32| {
            let (at, expected, found) = (u64::from(head.as_u32()), u64::from(expected), u64::from(found));
            Violation::check_eq(Invariant::I12SlabCounts, what, at, expected, found)
        };
        let (objects, inuse, order) = (slabs.objects(head), slabs.inuse(head), slabs.frames.order(head));
        let (taken, beyond) = slabs.occupancy.count(head, objects);
        equal("objects that fit the slab", slabs.shape.objects_in(order), objects)?;
        equal("objects out of the slab, by bitmap", taken, inuse)?;
        equal("bits beyond the slab's last object", 0, beyond)?;
        equal("list of the slab", u32::from(list), u32::from(slabs.frames.list(head)))?;
        equal(
            "slab is full and not on the partial list",
            u32::from(inuse == objects),
            u32::from(list != LIST_PARTIAL),
        )?;
        for distance in 0..order.pages() as u32 {
            let frame = Pfn::new(head.as_u32() + distance);
            let kind = FrameKind::Slab(super::cache_id(id)).to_byte();
            equal("kind of a slab's frame", u32::from(kind), u32::from(slabs.frames.kind_byte(frame)))?;
            equal("distance to the slab's first frame", distance, slabs.frames.head_distance(frame))?;
        }
        sums.live += self.count_live(slabs, head);
        sums.waiting += u64::from(slabs.frames.waiting(head));
        sums.inuse += u64::from(inuse);
        sums.objects += u64::from(objects);
        sums.pages += order.pages();
        Ok(())
    }
}
