//! Numbers of operations, whatever their types.

use super::choice::{BurstTier, Misuse};
use super::interesting::pick;
use kmem::FaultPoint;

/// A number of an operation, whatever its type: what codec, mutators and shrinker see.
pub trait Number: Copy {
    /// The value as a plain number.
    fn to_number(self) -> u64;
    /// The value that a plain number names; total: too large a number saturates, wraps, or loses unknown bits.
    fn from_number(number: u64) -> Self;
}

macro_rules! unsigned_numbers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn to_number(self) -> u64 {
                u64::from(self)
            }
            fn from_number(number: u64) -> Self {
                Self::try_from(number).unwrap_or(Self::MAX)
            }
        }
    )*};
}
unsigned_numbers!(u8, u16, u32, u64);

impl Number for bool {
    fn to_number(self) -> u64 {
        u64::from(self)
    }
    fn from_number(number: u64) -> Self {
        number & 1 == 1
    }
}

/// Values of a table: the number is the place in it.
macro_rules! table_numbers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn to_number(self) -> u64 {
                self as u64
            }
            fn from_number(number: u64) -> Self {
                pick(&Self::ALL, number)
            }
        }
    )*};
}
table_numbers!(BurstTier, Misuse, FaultPoint);
