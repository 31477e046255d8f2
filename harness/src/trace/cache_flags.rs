//! Flags of a cache as a value of the trace language.

use super::flags::flags_of_the_library;
use kmem::SlabFlags;
use std::fmt;
use std::str::FromStr;

flags_of_the_library! {
    /// Cache flags: only bits that `kmem` knows; in text their names joined by `|`, or `NONE`.
    CacheFlags of SlabFlags, "cache flags joined by `|`, such as HWCACHE_ALIGN|ACCOUNT, or NONE"
}

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
    /// Returns flags that callers use; for one `n` in 64, any flags at all.
    pub fn useful(n: u64) -> Self {
        match n % 64 {
            63 => Self::from_bits_truncate((n >> 6) as u32),
            _ => Self::new(USUAL[(n >> 6) as usize % USUAL.len()]),
        }
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
