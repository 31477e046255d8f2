//! Which groups of operations a trace may use.
//!
//! Leaving whole groups out lets the others do more: a trace without frees fills memory, one without small sizes
//! fragments it. The swarm is part of the trace so that mutators keep to it.

use super::flags::written_as_text;
use std::fmt;
use std::str::FromStr;

macro_rules! groups {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A group of operations that a swarm switches on or off together.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum OpGroup {
            $($(#[$doc])* $name,)*
        }

        impl OpGroup {
            /// All groups.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// Returns the name, as it is written in text.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

groups! {
    /// `alloc_pages`, `free_pages`.
    Pages,
    /// `alloc_pages_exact`.
    PagesExact,
    /// `alloc_pages_bulk`.
    PagesBulk,
    /// `kmalloc`, `kfree`.
    Kmalloc,
    /// `kmalloc_array`.
    KmallocArray,
    /// `krealloc`.
    Krealloc,
    /// Caches: create, alloc, free.
    Cache,
    /// `kmem_cache_shrink`.
    CacheShrink,
    /// `kmem_cache_destroy`.
    CacheDestroy,
    /// `vmalloc`, `vfree`.
    Vmalloc,
    /// `vrealloc`.
    Vrealloc,
    /// `vmap`, `vunmap`.
    Vmap,
    /// `kvmalloc`, `kvfree`.
    Kvmalloc,
    /// `kvmalloc_array`.
    KvmallocArray,
    /// `kvrealloc`.
    Kvrealloc,
    /// The frees that wipe first.
    Sensitive,
    /// Frees by whatever call fits.
    Free,
    /// Questions that change nothing.
    Query,
    /// Reads and writes of blocks.
    Access,
    /// Changes of CPU.
    Cpu,
    /// Drain, purge, reclaim.
    Maintain,
    /// Audits in the middle.
    Audit,
    /// Injected failures.
    Fault,
    /// Many blocks at once.
    Burst,
    /// Macro operations that fragment memory.
    Fragment,
    /// Mistakes of the caller.
    Misuse,
    /// Runs of frames, and blocks that become single pages.
    Contig,
    /// Compaction, pins against it, and free blocks lent to the host.
    Moving,
    /// Pages without waiting for a lock.
    Nolock,
    /// Objects of a memory node.
    SlabNode,
    /// Many objects in one call.
    SlabBulk,
    /// Sheaves that are filled beforehand.
    Sheaf,
    /// `get_page`, `put_page`.
    PageRefs,
    /// Debug caches, and writes to the bytes that they guard.
    Debug,
    /// Frees that wait for readers.
    Rcu,
    /// Areas and `kvmalloc` with a say about alignment, range, node, guard and huge mappings.
    VmallocRange,
    /// Areas with properties: for users, with permissions to reset, with references to pages.
    AreaFlags,
    /// What others see of areas: reads of any place, frames for users.
    AreaReach,
    /// Frees of areas by callers who may not wait.
    VfreeAtomic,
    /// Mappings that come and go, and the blocks that they are cut from.
    VmapRam,
}

/// A set of [`OpGroup`]s; in text their names joined by `|`, or `ALL`, or `NONE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Swarm(u64);

impl Swarm {
    /// Every group.
    pub const ALL: Self = Self(u64::MAX >> (64 - OpGroup::ALL.len()));
    /// No group.
    pub const NONE: Self = Self(0);

    /// Makes a set from bits; unknown bits are dropped.
    pub const fn from_bits_truncate(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Returns the bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Tells whether the group is in the set.
    pub const fn contains(self, group: OpGroup) -> bool {
        self.0 >> group as u32 & 1 == 1
    }

    /// Returns the set with the group.
    #[must_use]
    pub const fn with(self, group: OpGroup) -> Self {
        Self(self.0 | 1 << group as u32)
    }

    /// Returns the set without the group.
    #[must_use]
    pub const fn without(self, group: OpGroup) -> Self {
        Self(self.0 & !(1 << group as u32))
    }

    /// Iterates over the groups in the set.
    pub fn groups(self) -> impl Iterator<Item = OpGroup> {
        OpGroup::ALL.into_iter().filter(move |&group| self.contains(group))
    }
}

written_as_text!(Swarm, "groups of operations joined by `|`, such as Pages|Kmalloc, or ALL");

impl Default for Swarm {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("ALL"),
            Self::NONE => f.write_str("NONE"),
            some => {
                let names: Vec<&str> = some.groups().map(OpGroup::name).collect();
                f.write_str(&names.join("|"))
            }
        }
    }
}

/// A name that is no group of operations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownGroup(String);

impl fmt::Display for UnknownGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = OpGroup::ALL.into_iter().map(OpGroup::name).collect();
        write!(f, "`{}` is no group of operations; expected ALL, NONE, or some of {}", self.0, names.join("|"))
    }
}

impl std::error::Error for UnknownGroup {}

impl FromStr for Swarm {
    type Err = UnknownGroup;

    fn from_str(text: &str) -> Result<Self, UnknownGroup> {
        text.split('|').map(str::trim).try_fold(Self::NONE, |set, name| match name {
            "ALL" => Ok(Self::ALL),
            "NONE" => Ok(set),
            name => OpGroup::ALL
                .into_iter()
                .find(|group| group.name() == name)
                .map(|group| set.with(group))
                .ok_or_else(|| UnknownGroup(name.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_written_and_read_back() {
        for i in 0..20_000u64 {
            let swarm = Swarm::from_bits_truncate(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            assert_eq!(swarm.to_string().parse::<Swarm>().unwrap(), swarm);
        }
        assert_eq!("ALL".parse::<Swarm>().unwrap(), Swarm::ALL);
        assert_eq!("NONE".parse::<Swarm>().unwrap(), Swarm::NONE);
    }

    #[test]
    fn a_misspelt_group_is_named() {
        assert!("Pages|Kmaloc".parse::<Swarm>().unwrap_err().to_string().contains("`Kmaloc`"));
    }
}
