//! Sets of flags as values of the trace language: what allocation flags, cache flags and swarms have in common.

/// Lets a type with `Display` and `FromStr` be written and read as that text everywhere; `$expected` says what it looks like.
macro_rules! written_as_text {
    ($set:ident, $expected:literal) => {
        impl std::fmt::Debug for $set {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $set {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $set {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Names;
                impl serde::de::Visitor<'_> for Names {
                    type Value = $set;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$set, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Names)
            }
        }
    };
}
pub(super) use written_as_text;

/// Defines flags of the library as bits that are always known ones, written as text and numbered by those bits.
macro_rules! flags_of_the_library {
    ($(#[$doc:meta])* $set:ident of $flags:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $set(u32);

        impl $set {
            /// Makes flags from bits; unknown bits are dropped.
            pub const fn from_bits_truncate(bits: u32) -> Self {
                Self($flags::from_bits_truncate(bits).bits())
            }

            /// Makes flags from those of the library.
            pub const fn new(flags: $flags) -> Self {
                Self(flags.bits())
            }

            /// Returns the bits.
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Returns the flags as the library takes them.
            pub const fn to_flags(self) -> $flags {
                $flags::from_bits_truncate(self.0)
            }
        }

        impl super::number::Number for $set {
            fn to_number(self) -> u64 {
                u64::from(self.0)
            }
            fn from_number(number: u64) -> Self {
                Self::from_bits_truncate(number as u32)
            }
        }

        super::flags::written_as_text!($set, $expected);
    };
}
pub(super) use flags_of_the_library;
