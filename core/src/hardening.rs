//! How cautious an allocator is: what a free verifies, and what the kmalloc caches check.

use bitflags::bitflags;

/// What a free verifies before it believes its caller.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Hardening {
    /// The frame's owner only: a double or interior free of a slab object is not looked for.
    Off,
    /// Owner, object boundary and liveness: each wrong free is reported and changes nothing.
    #[default]
    Checked,
    /// All of that, and every cache is a debug cache with every check: what is written beyond a block or after its free is
    /// found when the block is freed or handed out again. Blocks of a slab are handed out in an order that depends on
    /// [`Geometry::secret`](crate::Geometry::secret), red zones and free pointers depend on it too, and a freed block waits
    /// before it is used again. Slow, and twice the memory for small blocks.
    Paranoid,
}

bitflags! {
    /// Which checks the kmalloc caches get, as `slab_debug=…,kmalloc-*` on the command line of Linux says; the letters are
    /// Linux's.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SlubDebug: u8 {
        /// `F`: [`SlabFlags::CONSISTENCY_CHECKS`](crate::SlabFlags::CONSISTENCY_CHECKS).
        const CONSISTENCY_CHECKS = 1 << 0;
        /// `Z`: [`SlabFlags::RED_ZONE`](crate::SlabFlags::RED_ZONE).
        const RED_ZONE = 1 << 1;
        /// `P`: [`SlabFlags::POISON`](crate::SlabFlags::POISON).
        const POISON = 1 << 2;
        /// `U`: [`SlabFlags::STORE_USER`](crate::SlabFlags::STORE_USER).
        const STORE_USER = 1 << 3;
        /// `T`: [`SlabFlags::TRACE`](crate::SlabFlags::TRACE).
        const TRACE = 1 << 4;
    }
}
bitflags! {
    /// Checks of pages that cost time or memory.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct PageDebug: u8 {
        /// Pages are looked at when they are handed out and freed, whoever owned them (Linux: `check_pages`).
        const CHECK = 1 << 0;
        /// Free pages are filled with 0xaa, and compared with that before they are handed out (Linux: `page_poison`).
        const POISON = 1 << 1;
        /// For each block it is noted who allocated it (Linux: `page_owner`).
        const OWNER = 1 << 2;
    }
}
