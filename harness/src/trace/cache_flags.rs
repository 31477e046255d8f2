//! Flags of a cache as a value of the trace language.

use super::op::Number;
use kmem::SlabFlags;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Cache flags: only bits that `kmem` knows; in text their names joined by `|`, or `NONE`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CacheFlags(u32);

/// Flags that callers use, the usual ones several times.
const USUAL: [SlabFlags; 12] = [
    SlabFlags::empty(),
    SlabFlags::empty(),
    SlabFlags::empty(),
    SlabFlags::HWCACHE_ALIGN,
    SlabFlags::HWCACHE_ALIGN.union(SlabFlags::PANIC),
    SlabFlags::RECLAIM_ACCOUNT,
    SlabFlags::RECLAIM_ACCOUNT.union(SlabFlags::ACCOUNT),
    SlabFlags::TYPESAFE_BY_RCU,
    SlabFlags::NO_MERGE,
    SlabFlags::CACHE_DMA,
    SlabFlags::NOLEAKTRACE,
    SlabFlags::FAILSLAB.union(SlabFlags::CACHE_DMA32),
];

impl CacheFlags {
    /// Makes flags from bits; unknown bits are dropped.
    pub const fn from_bits_truncate(bits: u32) -> Self {
        Self(SlabFlags::from_bits_truncate(bits).bits())
    }

    /// Makes flags from those of the library.
    pub const fn new(flags: SlabFlags) -> Self {
        Self(flags.bits())
    }

    /// Returns the bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the flags as the library takes them.
    pub const fn to_flags(self) -> SlabFlags {
        SlabFlags::from_bits_truncate(self.0)
    }

    /// Returns flags that callers use; for one `n` in 64, any flags at all.
    pub fn useful(n: u64) -> Self {
        match n % 64 {
            63 => Self::from_bits_truncate((n >> 6) as u32),
            _ => Self::new(USUAL[(n >> 6) as usize % USUAL.len()]),
        }
    }
}

impl Number for CacheFlags {
    fn to_number(self) -> u64 {
        u64::from(self.0)
    }
    fn from_number(number: u64) -> Self {
        Self::from_bits_truncate(number as u32)
    }
}

/// A name that is no cache flag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownCacheFlag(String);

impl fmt::Display for UnknownCacheFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no cache flag; expected NONE, or names joined by `|`, such as HWCACHE_ALIGN|ACCOUNT", self.0)
    }
}

impl std::error::Error for UnknownCacheFlag {}

/// Groups of flags have names too; a flag has one bit.
fn single(name: &str) -> Option<SlabFlags> {
    SlabFlags::from_name(name).filter(|flag| flag.bits().is_power_of_two())
}

impl FromStr for CacheFlags {
    type Err = UnknownCacheFlag;

    fn from_str(text: &str) -> Result<Self, UnknownCacheFlag> {
        text.split('|').map(str::trim).try_fold(Self::default(), |all, name| match (name, single(name)) {
            ("NONE", _) => Ok(all),
            (_, Some(flag)) => Ok(Self(all.0 | flag.bits())),
            (_, None) => Err(UnknownCacheFlag(name.to_owned())),
        })
    }
}

impl fmt::Display for CacheFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.to_flags().iter_names().filter(|(_, flag)| flag.bits().is_power_of_two());
        match names.next() {
            Some((first, _)) => f.write_str(first)?,
            None => f.write_str("NONE")?,
        }
        names.try_for_each(|(name, _)| write!(f, "|{name}"))
    }
}

impl fmt::Debug for CacheFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CacheFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CacheFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl Visitor<'_> for Names {
            type Value = CacheFlags;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cache flags joined by `|`, such as HWCACHE_ALIGN|ACCOUNT, or NONE")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CacheFlags, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_flags_is_written_and_read_back() {
        for bits in 0..=u32::from(u16::MAX) {
            let flags = CacheFlags::from_bits_truncate(bits);
            assert_eq!(flags.to_string().parse::<CacheFlags>().unwrap(), flags, "{flags}");
        }
    }

    #[test]
    fn a_group_or_a_misspelt_name_is_no_flag() {
        for name in ["DEBUG", "NO_MERGER"] {
            assert!(name.parse::<CacheFlags>().unwrap_err().to_string().contains(name));
        }
    }
}
