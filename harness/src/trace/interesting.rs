//! Numbers at which allocators change their behaviour: the tables that decoding, generation and mutation draw from.

use super::gfp::Gfp;
use kmem::GfpFlags;

/// The kmalloc classes, the page, and every order up to 4 MiB.
pub const SMALL_BOUNDARIES: [u64; 23] = [
    8,
    16,
    32,
    64,
    96,
    128,
    192,
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    2 * 4096 + 4096,
    4 * 4096,
    8 * 4096,
    16 * 4096,
    32 * 4096,
    64 * 4096,
    128 * 4096,
    256 * 4096,
    512 * 4096,
    1024 * 4096,
];

/// Sizes that no machine here can serve: beyond memory, beyond an `int`, and near the end of the number line.
pub const HUGE_BOUNDARIES: [u64; 9] =
    [16 << 20, 256 << 20, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 48, (1 << 63) - 1, u64::MAX - 4096, u64::MAX - 1];

/// Flags that callers use, the usual ones several times, and some that contradict each other.
pub const USUAL_GFP: [Gfp; 28] = {
    const fn gfp(flags: GfpFlags) -> Gfp {
        Gfp::new(flags)
    }
    const KERNEL: GfpFlags = GfpFlags::KERNEL;
    [
        Gfp::KERNEL,
        Gfp::KERNEL,
        Gfp::KERNEL,
        Gfp::KERNEL,
        gfp(KERNEL.union(GfpFlags::ZERO)),
        gfp(KERNEL.union(GfpFlags::ZERO)),
        Gfp::ATOMIC,
        Gfp::NOWAIT,
        gfp(GfpFlags::NOFS),
        gfp(GfpFlags::NOIO),
        gfp(KERNEL.union(GfpFlags::NORETRY)),
        gfp(KERNEL.union(GfpFlags::RETRY_MAYFAIL)),
        gfp(KERNEL.union(GfpFlags::RECLAIMABLE)),
        gfp(GfpFlags::HIGHUSER_MOVABLE),
        gfp(KERNEL.union(GfpFlags::DMA)),
        gfp(GfpFlags::ATOMIC.union(GfpFlags::ZERO)),
        gfp(KERNEL.union(GfpFlags::NOFAIL)),
        gfp(KERNEL.union(GfpFlags::HIGH)),
        gfp(KERNEL.union(GfpFlags::MEMALLOC)),
        gfp(GfpFlags::ATOMIC.union(GfpFlags::NOMEMALLOC)),
        gfp(GfpFlags::MEMALLOC.union(GfpFlags::NOMEMALLOC)),
        gfp(KERNEL.union(GfpFlags::THISNODE)),
        gfp(KERNEL.union(GfpFlags::DMA32)),
        gfp(GfpFlags::NOFAIL.union(GfpFlags::ATOMIC)),
        // What no call can honour, or only some.
        gfp(KERNEL.union(GfpFlags::DMA).union(GfpFlags::DMA32)),
        gfp(KERNEL.union(GfpFlags::MOVABLE).union(GfpFlags::RECLAIMABLE)),
        gfp(KERNEL.union(GfpFlags::WRITE).union(GfpFlags::ACCOUNT)),
        gfp(KERNEL.union(GfpFlags::COMP)),
    ]
};

/// Returns one of the kmalloc classes, or a neighbour of it.
pub fn class_boundary(n: u64) -> u64 {
    const CLASSES: [u64; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];
    neighbour(pick(&CLASSES, n / 3), n)
}

/// Returns one of the boundaries up to 4 MiB, or a neighbour of it; every `n` names one.
pub fn boundary(n: u64) -> u64 {
    neighbour(pick(&SMALL_BOUNDARIES, n / 3), n)
}

/// Returns one of the sizes that are too large, or a neighbour of it.
pub fn huge(n: u64) -> u64 {
    neighbour(pick(&HUGE_BOUNDARIES, n / 3), n)
}

/// Returns flags that callers use.
pub fn usual_gfp(n: u64) -> Gfp {
    pick(&USUAL_GFP, n)
}

/// Returns a number with `n % (bits + 1)` significant bits: every magnitude is equally likely.
pub fn log_uniform(n: u64, bits: u32) -> u64 {
    let significant = n % u64::from(bits + 1);
    let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63;
    random.checked_shr(64 - significant as u32).unwrap_or(0)
}

/// `n` itself, one less, or one more, by `which % 3`.
pub fn neighbour(n: u64, which: u64) -> u64 {
    match which % 3 {
        0 => n,
        1 => n.saturating_sub(1),
        _ => n.saturating_add(1),
    }
}

/// The entry that `n` names.
pub fn pick<T: Copy, const N: usize>(table: &[T; N], n: u64) -> T {
    const { assert!(N > 0) };
    table[(n % N as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boundary_and_both_neighbours_are_reached() {
        let reached: Vec<u64> = (0..300).map(boundary).collect();
        for b in SMALL_BOUNDARIES {
            assert!([b - 1, b, b + 1].iter().all(|n| reached.contains(n)), "{b}");
        }
        assert!((0..60).map(huge).any(|n| n == u64::MAX));
    }

    #[test]
    fn log_uniform_reaches_every_magnitude_and_no_larger_one() {
        for bits in [0, 1, 13, 64] {
            let mut seen = vec![false; bits as usize + 1];
            for n in 0..1000 {
                seen[64 - log_uniform(n, bits).leading_zeros() as usize] = true;
            }
            assert!(seen.iter().all(|s| *s), "{bits} bits");
        }
    }
}
