//! Live blocks.

use kmem::{CacheId, GfpFlags, PAGE_SIZE, VmFlags};

/// Which layer serves a block; decides who may free it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Tier {
    /// `alloc_pages` and `alloc_pages_bulk`.
    Pages,
    /// `alloc_pages_exact`.
    PagesExact,
    /// `alloc_contig_range` and `alloc_contig_pages`.
    Contig,
    /// A `kmalloc` class.
    Kmalloc,
    /// `kmalloc` above the largest class.
    LargeKmalloc,
    /// `kmem_cache_alloc`.
    Cache,
    /// `vmalloc`, or `kvmalloc` that fell back to it.
    Vmalloc,
    /// `vmap`: an alias of frames that belong to others.
    Vmap,
    /// `vm_map_ram`: an alias of frames that belong to others, for a short time.
    MapRam,
}

impl Tier {
    /// How many tiers there are.
    pub const COUNT: usize = Self::MapRam as usize + 1;
    /// All tiers, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Pages,
        Self::PagesExact,
        Self::Contig,
        Self::Kmalloc,
        Self::LargeKmalloc,
        Self::Cache,
        Self::Vmalloc,
        Self::Vmap,
        Self::MapRam,
    ];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pages => "Pages",
            Self::PagesExact => "PagesExact",
            Self::Contig => "Contig",
            Self::Kmalloc => "Kmalloc",
            Self::LargeKmalloc => "LargeKmalloc",
            Self::Cache => "Cache",
            Self::Vmalloc => "Vmalloc",
            Self::Vmap => "Vmap",
            Self::MapRam => "MapRam",
        }
    }

    /// Tells whether blocks of this tier are reached through the page table.
    pub const fn is_virtual(self) -> bool {
        matches!(self, Self::Vmalloc | Self::Vmap | Self::MapRam)
    }
}

/// A set of tiers: what an operation may pick from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tiers(u16);

impl Tiers {
    /// Blocks for `free_pages`.
    pub const PAGES: Self = Self(1 << Tier::Pages as u8);
    /// Blocks for `free_pages_exact`.
    pub const PAGES_EXACT: Self = Self(1 << Tier::PagesExact as u8);
    /// Blocks for `free_contig_range`.
    pub const CONTIG: Self = Self(1 << Tier::Contig as u8);
    /// Blocks of whole pages of which single ones may be referenced or freed by mistake, and whose owners are listed one by
    /// one; a run of frames is asked about as a run.
    pub const COUNTED_PAGES: Self = Self(Self::PAGES.0 | Self::PAGES_EXACT.0);
    /// Blocks of whole pages, which `vmap` can map a second time.
    pub const PAGE_BLOCKS: Self = Self(Self::PAGES.0 | Self::PAGES_EXACT.0 | Self::CONTIG.0);
    /// Blocks for `kfree`, `krealloc` and `ksize`.
    pub const KMALLOC: Self = Self(1 << Tier::Kmalloc as u8 | 1 << Tier::LargeKmalloc as u8);
    /// Blocks for `kmem_cache_free`.
    pub const CACHE: Self = Self(1 << Tier::Cache as u8);
    /// Blocks for `kfree_rcu`, and for `kmem_cache_free_bulk` without a cache.
    pub const OBJECTS: Self = Self(Self::KMALLOC.0 | Self::CACHE.0);
    /// Objects of caches, the `kmalloc` classes included.
    pub const IN_SLABS: Self = Self(1 << Tier::Kmalloc as u8 | Self::CACHE.0);
    /// Blocks for `vfree`, `vrealloc` and `vmalloc_to_page`.
    pub const VMALLOC: Self = Self(1 << Tier::Vmalloc as u8);
    /// Blocks for `vunmap`.
    pub const VMAP: Self = Self(1 << Tier::Vmap as u8);
    /// Blocks for `vm_unmap_ram`.
    pub const MAP_RAM: Self = Self(1 << Tier::MapRam as u8);
    /// Blocks that show frames of others.
    pub const SHOWING: Self = Self(Self::VMAP.0 | Self::MAP_RAM.0);
    /// Blocks for `kvfree` and `kvrealloc`.
    pub const KVMALLOC: Self = Self(Self::KMALLOC.0 | Self::VMALLOC.0);
    /// Blocks for `kvfree_rcu_mightsleep`.
    pub const KVMALLOC_OR_CACHE: Self = Self(Self::KVMALLOC.0 | Self::CACHE.0);
    /// Blocks that are reached through the page table.
    pub const VIRTUAL: Self = Self(Self::VMALLOC.0 | Self::SHOWING.0);
    /// Areas for `vfree`; a guard page follows, unless the caller wanted none.
    pub const GUARDED: Self = Self(Self::VMALLOC.0 | Self::VMAP.0);
    /// Blocks that own their memory, so that their contents can be demanded.
    pub const OWNING: Self = Self(Self::ALL.0 & !Self::SHOWING.0);
    /// All blocks.
    pub const ALL: Self = Self((1 << Tier::COUNT) - 1);

    /// Tells whether `tier` is in the set.
    pub const fn contains(self, tier: Tier) -> bool {
        self.0 & 1 << tier as u8 != 0
    }
}

/// One live block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its number, never reused in a run; kept when a reallocation moves it.
    pub handle: u64,
    /// Who serves it.
    pub tier: Tier,
    /// First byte, as the processor sees it.
    pub addr: u64,
    /// Bytes that the caller asked for last.
    pub requested: usize,
    /// Bytes that the subject says the caller may use.
    pub usable: usize,
    /// Grows with every rewrite of the contents; with the handle it keys the pattern.
    pub generation: u32,
    /// Flags of the last call that gave or resized it.
    pub gfp: GfpFlags,
    /// The cache, for [`Tier::Cache`].
    pub cache: Option<CacheId>,
    /// Order of the page block, for [`Tier::Pages`] and [`Tier::LargeKmalloc`].
    pub order: u8,
    /// Whether every call of the block's life had `ZERO`: then bytes gained in place must read zero.
    pub zero_chain: bool,
    /// Bytes that a debug cache takes for the user's, if it keeps that: the rest of the object is guarded.
    pub asked: Option<usize>,
    /// Whether the pattern was written: false only between the allocation and the first write.
    pub written: bool,
    /// Pages of address space without the guard, for virtual tiers of tight subjects; a shrink keeps them.
    pub area_pages: usize,
    /// Whether a page that is never mapped follows the area.
    pub guarded: bool,
    /// log2 of the pages that each page-table entry of the area maps.
    pub leaf: u8,
    /// Whether its pages may go to other frames, for [`Tier::Vmalloc`]: it was allocated as movable.
    pub movable: bool,
    /// How often the program has pinned it, for [`Tier::Pages`].
    pub pins: u32,
    /// The frames behind the pages that are mapped, for virtual tiers.
    pub frames: Vec<u32>,
    /// References besides the owner's, to a page block: to the whole of it, or to its first page.
    pub refs: u32,
    /// Whether its owner has freed it, so that only holders of references are left.
    pub disowned: bool,
    /// How many of its references, the owner's included, areas have that drop them when they are freed.
    pub held: u32,
    /// What was said about the area, for virtual tiers.
    pub vm_flags: VmFlags,
}

impl Block {
    /// Bytes that nobody else may have: of an area the whole address range, its guard not counted.
    pub fn span(&self) -> usize {
        if self.area_pages > 0 { self.area_pages * PAGE_SIZE } else { self.usable }
    }

    /// The address after the last byte that nobody else may have.
    pub fn end(&self) -> u64 {
        self.addr.saturating_add(self.span() as u64)
    }

    /// Says in a few words which block it is.
    pub fn describe(&self) -> String {
        let Self { handle, tier, addr, requested, usable, .. } = self;
        format!("block {handle} ({tier:?}, {addr:#x}, {requested} bytes asked for, {usable} usable)")
    }

    /// Pages that the block keeps from everybody else, tails that were given back not counted.
    pub fn pages(&self) -> u64 {
        match self.tier {
            Tier::Pages => 1 << self.order,
            Tier::LargeKmalloc => self.usable.div_ceil(PAGE_SIZE) as u64,
            Tier::PagesExact | Tier::Contig => self.requested.div_ceil(PAGE_SIZE) as u64,
            Tier::Vmalloc => self.frames.len() as u64,
            Tier::Kmalloc | Tier::Cache | Tier::Vmap | Tier::MapRam => 0,
        }
    }

    /// Address of the guard page, for areas of a subject whose pages can be told.
    pub fn guard(&self) -> Option<u64> {
        (self.area_pages > 0 && self.guarded).then(|| self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_partition_the_tiers_by_who_frees_them() {
        let families = [
            Tiers::PAGES,
            Tiers::PAGES_EXACT,
            Tiers::CONTIG,
            Tiers::KMALLOC,
            Tiers::CACHE,
            Tiers::VMALLOC,
            Tiers::VMAP,
            Tiers::MAP_RAM,
        ];
        for tier in Tier::ALL {
            assert_eq!(families.iter().filter(|f| f.contains(tier)).count(), 1, "{tier:?}");
            assert!(Tiers::ALL.contains(tier));
            assert_eq!(Tiers::VIRTUAL.contains(tier), tier.is_virtual());
        }
        assert!(!Tiers::OWNING.contains(Tier::Vmap) && !Tiers::OWNING.contains(Tier::MapRam));
    }
}
