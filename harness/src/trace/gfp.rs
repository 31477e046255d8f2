//! Allocation flags as a value of the trace language.

use super::flags::flags_of_the_library;
use kmem::GfpFlags;
use std::fmt;
use std::str::FromStr;

flags_of_the_library! {
    /// Allocation flags: only bits that `kmem` knows; in text their names joined by `|`, such as `KERNEL|ZERO`.
    Gfp of GfpFlags, "allocation flags joined by `|`, such as KERNEL|ZERO"
}

/// The combinations that are written by one name, largest first so that the text is the shortest.
const COMBINATIONS: [(&str, GfpFlags); 9] = [
    ("HIGHUSER_MOVABLE", GfpFlags::HIGHUSER_MOVABLE),
    ("HIGHUSER", GfpFlags::HIGHUSER),
    ("USER", GfpFlags::USER),
    ("KERNEL", GfpFlags::KERNEL),
    ("NOFS", GfpFlags::NOFS),
    ("NOIO", GfpFlags::NOIO),
    ("ATOMIC", GfpFlags::ATOMIC),
    ("NOWAIT", GfpFlags::NOWAIT),
    ("NONE", GfpFlags::empty()),
];

impl Gfp {
    /// No flags.
    pub const NONE: Self = Self(0);
    /// The usual flags of a caller that may sleep.
    pub const KERNEL: Self = Self(GfpFlags::KERNEL.bits());
    /// Cannot wait; may use the reserve.
    pub const ATOMIC: Self = Self(GfpFlags::ATOMIC.bits());
    /// Cannot wait and may not use the reserve.
    pub const NOWAIT: Self = Self(GfpFlags::NOWAIT.bits());

    /// Returns both sets of flags together.
    #[must_use]
    pub const fn with(self, more: GfpFlags) -> Self {
        Self(self.0 | more.bits())
    }
}

/// The flags that a name means; `None` for a name that is not known.
fn by_name(name: &str) -> Option<GfpFlags> {
    COMBINATIONS.iter().find(|(n, _)| *n == name).map(|(_, f)| *f).or_else(|| GfpFlags::from_name(name))
}

/// A name that is no allocation flag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownGfp(String);

impl fmt::Display for UnknownGfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no allocation flag; expected names joined by `|`, such as KERNEL|ZERO or ATOMIC", self.0)
    }
}

impl std::error::Error for UnknownGfp {}

impl FromStr for Gfp {
    type Err = UnknownGfp;

    fn from_str(text: &str) -> Result<Self, UnknownGfp> {
        text.split('|').map(str::trim).try_fold(Self::NONE, |all, name| {
            by_name(name).map(|flags| all.with(flags)).ok_or_else(|| UnknownGfp(name.to_owned()))
        })
    }
}

impl fmt::Display for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.to_flags();
        let whole = COMBINATIONS.iter().find(|(_, c)| flags.contains(*c));
        let (name, combination) = whole.copied().unwrap_or(("NONE", GfpFlags::empty()));
        let rest = flags.difference(combination);
        if !combination.is_empty() || rest.is_empty() {
            f.write_str(name)?;
        }
        let mut separate = !combination.is_empty();
        for (name, _) in rest.iter_names() {
            write!(f, "{}{name}", if separate { "|" } else { "" })?;
            separate = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_flags_is_written_and_read_back() {
        let all = GfpFlags::all().bits();
        for i in 0..200_000u64 {
            let gfp = Gfp::from_bits_truncate((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & all);
            assert_eq!(gfp.to_string().parse::<Gfp>().unwrap(), gfp, "{gfp}");
        }
    }

    #[test]
    fn usual_flags_have_short_names() {
        assert_eq!(Gfp::KERNEL.to_string(), "KERNEL");
        assert_eq!(Gfp::KERNEL.with(GfpFlags::ZERO).to_string(), "KERNEL|ZERO");
        assert_eq!(Gfp::NONE.to_string(), "NONE");
        assert_eq!(Gfp::new(GfpFlags::ZERO).to_string(), "ZERO");
    }

    #[test]
    fn an_unknown_name_is_named_in_the_error() {
        let error = "KERNEL|ZER0".parse::<Gfp>().unwrap_err();
        assert!(error.to_string().contains("`ZER0`"), "{error}");
    }
}
