//! A useful number for each role, from a uniform one: how the property engines choose the numbers of an operation.
//!
//! The generator of [`crate::generate`] has its own, weighted distributions; these are deliberately plain, so that the
//! engines do not share one blind spot.

use crate::generate::Target;
use crate::trace::{CacheFlags, OpGroup, Role, Swarm, interesting};

/// The groups of operations that a target aims at.
pub(super) fn groups(target: Target) -> Swarm {
    OpGroup::ALL.into_iter().filter(|&group| target.uses(group)).fold(Swarm::NONE, Swarm::with)
}

/// Turns a uniform number into one that is useful in this role.
pub(super) fn number(role: Role, raw: u64) -> u64 {
    match role {
        Role::Order => raw % 12,
        Role::Gfp => u64::from(interesting::usual_gfp(raw).bits()),
        Role::Size => size(raw),
        Role::N => raw % 64,
        Role::Count => raw % 24,
        Role::Align => 1 << (raw % 13),
        Role::Shift => raw % 24,
        Role::Nth => raw % 8,
        Role::Step => 1 + raw % 8,
        Role::Percent => raw % 101,
        Role::Spare => raw % 32,
        Role::Page => raw % 600,
        Role::CacheFlags => u64::from(CacheFlags::useful(raw).bits()),
        Role::Offset | Role::Length => raw % 80,
        Role::FreePointer => (raw % 16).saturating_sub(8),
        Role::Capacity => (raw % 96).saturating_sub(64),
        Role::Frame => raw % 4200,
        _ => raw,
    }
}

/// One in four at a boundary, one in sixteen too large for any machine, the rest log-uniform up to 4 MiB.
fn size(raw: u64) -> u64 {
    match raw % 16 {
        0..4 => interesting::boundary(raw / 16),
        4 => interesting::huge(raw / 16),
        _ => interesting::log_uniform(raw / 16, 22),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_cover_every_magnitude_and_its_boundaries() {
        let sizes: Vec<u64> = (0..100_000u64).map(|i| size(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        for wanted in [0, 1, 64, 4096, 4097, 1 << 20, u64::MAX] {
            assert!(sizes.contains(&wanted), "{wanted}");
        }
    }
}
