//! The operations: every public call of every tier, what a program does with its memory, and macro operations.
//!
//! One table (at the end of the file, `operations!`) names each operation, its swarm group and its numbers. The byte
//! codec, the generator, the mutators and the shrinker all work from that table through [`Op::each_number`] and
//! [`Op::from_numbers`], so that a new operation is one line.

use super::cache_flags::CacheFlags;
use super::choice::{BurstTier, FaultPointName, Misuse};
use super::gfp::Gfp;
use super::number::Number;
use super::role::Role;
use super::swarm::OpGroup;
use kmem::FaultPoint;
use serde::{Deserialize, Serialize};

/// Defines [`Op`], [`OpKind`] and the walks over their numbers from one table:
/// `Name in Group { field: type as Role, .. }`.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident in $group:ident $({
        $($(#[$attr:meta])* $field:ident : $ty:ty as $role:ident),*
    })?;)*) => {
        /// One operation; in text one line, such as `Kmalloc(size: 64, gfp: KERNEL)`.
        ///
        /// Blocks are named by picks (see [`Role::Pick`]), so every list of operations is a valid program and taking
        /// one away never breaks the rest. [`Role`] says what the fields mean.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs, reason = "`Role` says what each field means")]
        pub enum Op {
            $($(#[$doc])* $name $({ $($(#[$attr])* $field: $ty),* })?,)*
        }

        /// The name of an operation, without its numbers.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "`Op` documents the operations")]
        pub enum OpKind {
            $($name,)*
        }

        impl OpKind {
            /// All kinds, in the order of their numbers.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// Returns the name, as it is written in text.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// Returns the swarm group that switches this kind on or off.
            pub const fn group(self) -> OpGroup {
                match self {
                    $(Self::$name => OpGroup::$group,)*
                }
            }

            /// Returns the roles of its numbers, in the order in which they are written.
            pub const fn roles(self) -> &'static [Role] {
                match self {
                    $(Self::$name => &[$($(Role::$role),*)?],)*
                }
            }
        }

        impl Op {
            /// Returns the kind.
            pub const fn kind(&self) -> OpKind {
                match self {
                    $(Self::$name { .. } => OpKind::$name,)*
                }
            }

            /// Calls `visit` with each number.
            #[allow(unused_variables, unused_mut, reason = "some operations have no numbers")]
            pub fn each_number(&self, mut visit: impl FnMut(Role, u64)) {
                match *self {
                    $(Self::$name { $($($field),*)? } => { $($(visit(Role::$role, $field.to_number());)*)? })*
                }
            }

            /// Makes an operation of a kind; `number` is asked for each of its numbers, in order.
            #[allow(unused_variables, unused_mut, reason = "some operations have no numbers")]
            pub fn from_numbers(kind: OpKind, mut number: impl FnMut(Role) -> u64) -> Self {
                match kind {
                    $(OpKind::$name => Self::$name { $($($field: Number::from_number(number(Role::$role))),*)? },)*
                }
            }
        }
    };
}

operations! {
    /// `alloc_pages`.
    AllocPages in Pages { order: u8 as Order, gfp: Gfp as Gfp };
    /// `free_pages`.
    FreePages in Pages { pick: u16 as Pick };
    /// `alloc_pages_exact`.
    AllocPagesExact in PagesExact { size: u64 as Size, gfp: Gfp as Gfp };
    /// `alloc_pages_bulk`.
    AllocPagesBulk in PagesBulk { count: u8 as Count, gfp: Gfp as Gfp };
    /// `kmalloc`, with `ZERO` `kzalloc`.
    Kmalloc in Kmalloc { size: u64 as Size, gfp: Gfp as Gfp };
    /// `kmalloc_array`, with `ZERO` `kcalloc`.
    KmallocArray in KmallocArray { n: u64 as N, size: u64 as Size, gfp: Gfp as Gfp };
    /// `krealloc`.
    Krealloc in Krealloc { pick: u16 as Pick, size: u64 as Size, gfp: Gfp as Gfp };
    /// `kfree`.
    Kfree in Kmalloc { pick: u16 as Pick };
    /// `kfree_sensitive`.
    KfreeSensitive in Sensitive { pick: u16 as Pick };
    /// `ksize`.
    Ksize in Query { pick: u16 as Pick };
    /// `kmalloc_size_roundup`.
    KmallocSizeRoundup in Query { size: u64 as Size };
    /// `kmem_cache_create`.
    CacheCreate in Cache { size: u32 as Size, align: u16 as Align, hwcache: bool as Flag, ctor: bool as Flag2 };
    /// `kmem_cache_alloc`.
    CacheAlloc in Cache { cache: u16 as Cache, gfp: Gfp as Gfp };
    /// `kmem_cache_free`.
    CacheFree in Cache { pick: u16 as Pick };
    /// `kmem_cache_shrink`.
    CacheShrink in CacheShrink { cache: u16 as Cache };
    /// `kmem_cache_destroy`.
    CacheDestroy in CacheDestroy { cache: u16 as Cache };
    /// `vmalloc`, with `ZERO` `vzalloc`.
    Vmalloc in Vmalloc { size: u64 as Size, gfp: Gfp as Gfp };
    /// `vfree`.
    Vfree in Vmalloc { pick: u16 as Pick };
    /// `vrealloc`.
    Vrealloc in Vrealloc { pick: u16 as Pick, size: u64 as Size, gfp: Gfp as Gfp };
    /// `vmap` of the first `count` pages of live page blocks, from the picked one on.
    Vmap in Vmap { pick: u16 as Pick, count: u8 as Count };
    /// `vunmap`.
    Vunmap in Vmap { pick: u16 as Pick };
    /// `vmalloc_to_page`.
    VmallocToPage in Query { pick: u16 as Pick, page: u32 as Page };
    /// `kvmalloc`, with `ZERO` `kvzalloc`.
    Kvmalloc in Kvmalloc { size: u64 as Size, gfp: Gfp as Gfp };
    /// `kvmalloc_array`, with `ZERO` `kvcalloc`.
    KvmallocArray in KvmallocArray { n: u64 as N, size: u64 as Size, gfp: Gfp as Gfp };
    /// `kvrealloc`.
    Kvrealloc in Kvrealloc { pick: u16 as Pick, size: u64 as Size, gfp: Gfp as Gfp };
    /// `kvfree`.
    Kvfree in Kvmalloc { pick: u16 as Pick };
    /// `kvfree_sensitive`.
    KvfreeSensitive in Sensitive { pick: u16 as Pick };
    /// Frees any live block by the call of its own tier.
    Free in Free { pick: u16 as Pick };
    /// Rewrites a live block with contents of a new generation.
    Write in Access { pick: u16 as Pick };
    /// Checks the contents of a live block.
    Read in Access { pick: u16 as Pick };
    /// Reads the page after a vmalloc area, which must fault.
    TouchGuard in Access { pick: u16 as Pick };
    /// Further calls come from this CPU.
    SetCpu in Cpu { cpu: u16 as Cpu };
    /// Every further call comes from the CPU this many further than the one before it; 0 ends that.
    Interleave in Cpu { cpu: u16 as Cpu };
    /// Drains the per-CPU pages of all CPUs.
    DrainPages in Maintain;
    /// `vm_unmap_aliases`.
    Purge in Maintain;
    /// Gives back everything that can be given back.
    Reclaim in Maintain;
    /// A full audit by every oracle.
    Audit in Audit;
    /// A fault point fails once.
    FailNth in Fault { #[serde(with = "FaultPointName")] point: FaultPoint as Point, nth: u16 as Nth };
    /// A caller's mistake with the picked block, of a subject that promises to notice; it has to be named and harmless.
    Wrong in Misuse { pick: u16 as Pick, how: Misuse as Tier };
    // References, damage to pages, and filters of faults.
    /// `get_page` of a page block: of its first page, or of its last if it is compound.
    GetPage in PageRefs { pick: u16 as Pick };
    /// `put_page`, likewise.
    PutPage in PageRefs { pick: u16 as Pick };
    /// Frees a page block without a look at who maps it.
    FreeMapped in Misuse { pick: u16 as Pick };
    /// `vmap` of the first free frame from the picked one on, where pages are checked.
    VmapFree in Misuse { pick: u16 as Pick };
    /// Flips a bit, or two, of the first free page from the picked one on, at `size` modulo the page.
    WriteFree in Misuse { pick: u16 as Pick, size: u64 as Size, twice: bool as Flag };
    /// `fail_page_alloc`: every `step`-th block of at least `order` fails, `count` times, unless its flags are among `gfp`.
    FailPages in Fault { order: u8 as Order, gfp: Gfp as Gfp, step: u8 as Step, count: u8 as Count };
    /// `failslab`: every `step`-th object fails, `count` times, unless its flags are among `gfp`; of one cache if `one`.
    FailSlabs in Fault { gfp: Gfp as Gfp, step: u8 as Step, count: u8 as Count, cache: u16 as Cache, one: bool as Flag2 };

    /// Allocates `count` blocks of one size.
    Burst in Burst { count: u16 as Count, tier: BurstTier as Tier, size: u64 as Size, gfp: Gfp as Gfp };
    /// Frees every `step`-th live block, from the `phase`-th on, in the order of allocation.
    FreeEvery in Fragment { step: u8 as Step, phase: u8 as Phase };
    /// Allocates blocks of `size` by `kvmalloc`, or frees the oldest blocks, until `percent` of memory is in use.
    Steer in Fragment { percent: u8 as Percent, size: u64 as Size };
    /// Takes page blocks of `order` until all but `spare` are taken or one is refused, then frees every second.
    Checkerboard in Fragment { order: u8 as Order, spare: u16 as Spare };

    // Caches.
    /// `kmem_cache_create` with everything that can be said; may share slabs with a similar cache.
    CacheCreateWith in Cache {
        size: u32 as Size,
        align: u16 as Align,
        flags: CacheFlags as CacheFlags,
        ctor: bool as Flag2,
        useroffset: u32 as Offset,
        usersize: u16 as Length,
        freeptr: u8 as FreePointer,
        sheaf: u16 as Capacity
    };

    /// `kmem_cache_create` by one of a few names, some of which are no names; may share slabs with a similar cache.
    NamedCache in Cache { size: u32 as Size, name: u8 as Tier };

    // Moving pages.
    /// `split_page`.
    SplitPage in Contig { pick: u16 as Pick };
    /// `alloc_contig_range`; as a block of an aligned power of two if `block` is set.
    AllocContigRange in Contig { frame: u32 as Frame, count: u16 as Count, block: bool as Flag, gfp: Gfp as Gfp };
    /// `alloc_contig_pages`.
    AllocContigPages in Contig { count: u16 as Count, gfp: Gfp as Gfp };
    /// `free_contig_range` of a whole range.
    FreeContigRange in Contig { pick: u16 as Pick };
    /// `compact_memory`.
    CompactMemory in Moving;
    /// Pins a page block: nobody may move it until it is unpinned or freed.
    Pin in Moving { pick: u16 as Pick };
    /// Takes one pin of a pinned page block back.
    Unpin in Moving { pick: u16 as Pick };
    /// Fills memory with movable pages and frees every `step`-th of them.
    MovableBoard in Fragment { step: u8 as Step, phase: u8 as Phase };
    /// `alloc_pages_nolock`.
    AllocPagesNolock in Nolock { order: u8 as Order };
    /// `free_pages_nolock`.
    FreePagesNolock in Nolock { pick: u16 as Pick };
    /// `report_free_pages` to a host that takes `count` blocks.
    ReportFree in Moving { count: u8 as Count };
    // Several objects at once, or promised, or of a memory node.
    /// `kmalloc_node`.
    KmallocNode in SlabNode { size: u64 as Size, gfp: Gfp as Gfp, node: u8 as Node };
    /// `kmem_cache_alloc_node`.
    CacheAllocNode in SlabNode { cache: u16 as Cache, gfp: Gfp as Gfp, node: u8 as Node };
    /// `kmem_cache_alloc_bulk`.
    CacheAllocBulk in SlabBulk { cache: u16 as Cache, count: u8 as Count, gfp: Gfp as Gfp };
    /// `kmem_cache_free_bulk` of up to `count` live objects from the picked one on: of its cache, or of all caches and
    /// `kmalloc` blocks too.
    CacheFreeBulk in SlabBulk { pick: u16 as Pick, count: u8 as Count, mixed: bool as Flag };
    /// `kmem_cache_prefill_sheaf`.
    PrefillSheaf in Sheaf { cache: u16 as Cache, count: u8 as Count, gfp: Gfp as Gfp };
    /// `kmem_cache_alloc_from_sheaf`; the pick names a sheaf.
    AllocFromSheaf in Sheaf { pick: u16 as Pick, gfp: Gfp as Gfp };
    /// `kmem_cache_refill_sheaf`; the pick names a sheaf.
    RefillSheaf in Sheaf { pick: u16 as Pick, count: u8 as Count, gfp: Gfp as Gfp };
    /// `kmem_cache_return_sheaf`; the pick names a sheaf.
    ReturnSheaf in Sheaf { pick: u16 as Pick };
    /// `kmalloc_nolock`; flags that have no meaning there are to be refused.
    KmallocNolock in Nolock { size: u64 as Size, gfp: Gfp as Gfp };
    /// `kfree_nolock`.
    KfreeNolock in Nolock { pick: u16 as Pick };

    // Nodes and page allocator policy.
    /// `alloc_pages_node`.
    AllocPagesNode in Pages { order: u8 as Order, gfp: Gfp as Gfp, node: u8 as Node };
    /// The owner of a page block lets the machine free it when memory runs short.
    Evictable in Maintain { pick: u16 as Pick };
    /// When memory runs short, the machine claims `count` times to have given something back.
    ClaimProgress in Maintain { count: u8 as Count };

    // Debug caches.
    /// `kmem_cache_create` with debug flags: F 1, Z 2, P 4, U 8, T 16.
    DebugCache in Debug { size: u32 as Size, align: u16 as Align, checks: u8 as Checks, ctor: bool as Flag2 };
    /// `kmem_cache_validate` of every cache.
    Validate in Debug;
    /// Changes one byte that a debug cache guards at a live object: the byte number `at`, modulo those that are guarded.
    Overflow in Debug { pick: u16 as Pick, at: u32 as Page };
    /// Changes one guarded byte of an object that was freed lately and that nobody has since.
    WriteFreed in Debug { pick: u16 as Pick, at: u32 as Page };

    /// Leads the free pointer of an object of a debug cache nowhere, of a live or a free one, and repairs it: all caches are
    /// validated before, between and after.
    BreakLink in Debug { pick: u16 as Pick, freed: bool as Flag };

    // Frees that wait for readers.
    /// `kfree_rcu` with a head near the offset.
    KfreeRcu in Rcu { pick: u16 as Pick, head: u16 as Offset };
    /// `kvfree_rcu` with a head near the offset.
    KvfreeRcu in Rcu { pick: u16 as Pick, head: u16 as Offset };
    /// `kvfree_rcu_mightsleep`.
    KvfreeRcuMightsleep in Rcu { pick: u16 as Pick };
    /// `kfree_rcu_monitor`.
    KfreeRcuMonitor in Rcu;
    /// `kvfree_rcu_barrier`.
    KvfreeRcuBarrier in Rcu;
    /// A reader enters a section.
    RcuReadLock in Rcu;
    /// A reader leaves its section.
    RcuReadUnlock in Rcu { nth: u16 as Nth };
    /// The grace periods that no reader holds up end.
    RcuGracePeriod in Rcu;
    /// Gives up every `step`-th live object: by `kfree_rcu`, or without a head if the caller may sleep.
    RcuFreeEvery in Rcu { step: u8 as Step, sleep: bool as Flag2 };

    // Areas with a say about place and pages.
    /// `__vmalloc_node_range`: anywhere if `length` is 0, else in a range that begins `at` pages into the window, modulo its
    /// size, and is longer than the area without its guard by `length` - 1 pages. The alignment is 2^`align` bytes.
    VmallocRange in VmallocRange {
        size: u64 as Size,
        align: u8 as Shift,
        at: u32 as Offset,
        length: u16 as Length,
        gfp: Gfp as Gfp,
        node: u8 as Node,
        unguarded: bool as Flag,
        huge: bool as Flag2
    };
    /// `kvmalloc_node_align`.
    KvmallocNode in VmallocRange { size: u64 as Size, align: u8 as Shift, gfp: Gfp as Gfp, node: u8 as Node };

    // Areas that grow and move.
    /// Fills memory with movable areas of a page each and frees every `step`-th of them.
    AreaBoard in Fragment { step: u8 as Step, phase: u8 as Phase };
    /// `pin_vmalloc_page`: until it is unpinned, resized or freed, the page stays in its frame.
    PinArea in Vmalloc { pick: u16 as Pick, page: u32 as Page };
    /// `unpin_vmalloc_page`; the pick names an area.
    UnpinArea in Vmalloc { pick: u16 as Pick };
    /// `vrealloc_node_align`.
    VreallocNear in Vrealloc { pick: u16 as Pick, size: u64 as Size, align: u8 as Shift, gfp: Gfp as Gfp, node: u8 as Node };

    // The vmalloc window.
    /// `vmalloc_node_range`: for users, with permissions to reset, or both, by the step modulo 3.
    VmallocWith in AreaFlags { size: u64 as Size, gfp: Gfp as Gfp, step: u8 as Step };
    /// `vmap` of `count` single pages from the picked one on; the step says with which properties, and whether the area
    /// gets references of its own.
    VmapWith in AreaFlags { pick: u16 as Pick, count: u8 as Count, step: u8 as Step, gfp: Gfp as Gfp };
    /// The program makes the pages of an area read-only, which is to be reset when it is freed.
    Protect in AreaFlags { pick: u16 as Pick };
    /// `vread` around the picked area, or far away.
    Vread in AreaReach { pick: u16 as Pick, page: u32 as Page, size: u64 as Size };
    /// `remap_vmalloc_range` of a part of the picked area, or of something near.
    RemapVmalloc in AreaReach { pick: u16 as Pick, page: u32 as Page, size: u64 as Size };
    /// `vfree_atomic` of an area, or `kvfree_atomic`; with `again`, twice.
    VfreeAtomic in VfreeAtomic { pick: u16 as Pick, kv: bool as Flag, again: bool as Flag2 };
    /// `drain_deferred_vfree`.
    DrainDeferred in VfreeAtomic;

    // Mappings that come and go.
    /// `vm_map_ram` of `count` pages of live page blocks, from the picked one on; where these are fewer, some are shown again.
    VmMapRam in VmapRam { pick: u16 as Pick, count: u8 as Count, gfp: Gfp as Gfp };
    /// `vm_unmap_ram`.
    VmUnmapRam in VmapRam { pick: u16 as Pick };
    /// Maps `count` pages again and again, more than a block has, and unmaps all but every `step`-th of them, from the
    /// `phase`-th on; with a step of 0 all.
    RamChurn in VmapRam { pick: u16 as Pick, count: u8 as Count, step: u8 as Step, phase: u8 as Phase };
    /// `vm_unmap_ram` of `count` pages from page number `page` of the picked mapping on, modulo twice its length: a mistake, of a
    /// subject that promises to notice. What would be right is left out.
    UnmapRamWrong in Misuse { pick: u16 as Pick, count: u8 as Count, page: u32 as Offset };
}

impl Op {
    /// Returns the number with this role; `None` if the operation has none.
    pub fn number(&self, role: Role) -> Option<u64> {
        let mut found = None;
        self.each_number(|r, n| {
            if r == role {
                found = Some(n);
            }
        });
        found
    }

    /// Returns the operation with one number replaced; one without that role stays as it is.
    #[must_use]
    pub fn with_number(&self, role: Role, number: u64) -> Self {
        Self::from_numbers(self.kind(), |r| if r == role { number } else { self.number(r).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_its_kind_and_its_numbers() {
        for kind in OpKind::ALL {
            let op = Op::from_numbers(kind, |role| role as u64 + 1);
            assert_eq!(op.kind(), kind);
            assert_eq!(Op::from_numbers(kind, |role| op.number(role).unwrap()), op);
        }
    }

    #[test]
    fn no_operation_has_two_numbers_of_one_role() {
        for kind in OpKind::ALL {
            let roles = kind.roles();
            assert!(roles.iter().enumerate().all(|(i, r)| !roles[i + 1..].contains(r)), "{}", kind.name());
        }
    }

    #[test]
    fn replacing_a_number_changes_that_number_only() {
        let op = Op::Krealloc { pick: 7, size: 64, gfp: Gfp::KERNEL };
        assert_eq!(op.with_number(Role::Size, 65), Op::Krealloc { pick: 7, size: 65, gfp: Gfp::KERNEL });
        assert_eq!(op.with_number(Role::Order, 3), op);
        assert_eq!(op.with_number(Role::Pick, u64::MAX), Op::Krealloc { pick: u16::MAX, size: 64, gfp: Gfp::KERNEL });
    }
}
