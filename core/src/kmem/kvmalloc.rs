//! kvmalloc: physically contiguous if it can be had without effort, virtually contiguous otherwise. Policy only.
//!
//! The decision order is that of Linux 7.2:
//!
//! 1. `kmalloc`, with flags adjusted for sizes above a page: no warning, no direct reclaim (unless the caller asked to
//!    try hard), no "must not fail". Contiguous memory is a bonus, not worth waiting for.
//! 2. A request of at most a page is refused if that was refused: vmalloc could not do better.
//! 3. A request above `INT_MAX` is refused: such sizes come from overflows.
//! 4. `vmalloc`, with the caller's own flags, node and alignment, and with huge entries if the caller may wait.
//!
//! The two kinds are told apart by address alone.

use super::Kmem;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::error::{AllocError, FreeError};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::platform::{Event, Platform};
use crate::vmalloc::{VmFlags, VmallocArgs};
use crate::warn::Warning;

/// The largest request that kvmalloc considers, in bytes.
const KVMALLOC_MAX_SIZE: usize = i32::MAX as usize;
/// What every `kmalloc` block is aligned to, in bytes.
const KMALLOC_MIN_ALIGN: usize = 8;

/// The flags of the contiguous attempt.
fn contiguous_flags(size: usize, gfp: GfpFlags) -> GfpFlags {
    if size <= PAGE_SIZE {
        return gfp;
    }
    let gfp = (gfp | GfpFlags::NOWARN) - GfpFlags::NOFAIL;
    if gfp.contains(GfpFlags::RETRY_MAYFAIL) { gfp } else { gfp - GfpFlags::DIRECT_RECLAIM }
}

impl<P: Platform> Kmem<P> {
    /// Allocates at least `size` bytes, physically contiguous if that is easy, else virtually contiguous.
    ///
    /// Size 0 gives [`VirtAddr::ZERO_SIZE`]. Of the alignment, what `kmalloc` promises for the size is kept up to a page.
    ///
    /// # Errors
    ///
    /// [`AllocError::TooLarge`] above `INT_MAX` bytes; as [`Self::kmalloc`] up to a page, as [`Self::vmalloc`] above.
    #[track_caller]
    pub fn kvmalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kvmalloc_any(size, 1, gfp, None)
    }

    /// [`Self::kvmalloc`] from the memory of `node`; if that has none to give, from the nearest that has, unless the flags
    /// say [`THISNODE`](GfpFlags::THISNODE). Without a node it is a plain [`Self::kvmalloc`].
    ///
    /// # Errors
    ///
    /// As [`Self::kvmalloc`].
    #[track_caller]
    pub fn kvmalloc_node(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        self.kvmalloc_any(size, 1, gfp, node)
    }

    /// [`Self::kvmalloc_node`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::kvmalloc`].
    #[track_caller]
    pub fn kvzalloc_node(&self, size: usize, gfp: GfpFlags, node: Option<NodeId>) -> Result<VirtAddr, AllocError> {
        self.kvmalloc_any(size, 1, gfp | GfpFlags::ZERO, node)
    }

    /// [`Self::kvmalloc_node`] with an alignment, in bytes, that [`Self::kmalloc`] promises for the size anyway: a power of
    /// two that divides it, or is at most 8. Also a block that is only virtually contiguous is aligned so.
    ///
    /// # Errors
    ///
    /// [`AllocError::BadAlign`] for any other alignment; as [`Self::kvmalloc`] otherwise.
    #[track_caller]
    pub fn kvmalloc_node_align(
        &self,
        size: usize,
        align: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        let promised = align.is_power_of_two() && (align <= KMALLOC_MIN_ALIGN || size.is_multiple_of(align));
        if promised { self.kvmalloc_any(size, align, gfp, node) } else { Err(AllocError::BadAlign(align)) }
    }

    #[inline(always)]
    #[track_caller]
    fn kvmalloc_any(
        &self,
        size: usize,
        align: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        match self.kmalloc_node(size, contiguous_flags(size, gfp), node) {
            Ok(addr) => {
                self.pages.base.event(Event::KvContiguous);
                Ok(addr)
            }
            Err(refused) if size <= PAGE_SIZE => Err(refused),
            Err(_) => self.kvmalloc_fallback(size, align, gfp, node),
        }
    }

    /// The virtually contiguous attempt: huge entries only for callers that may wait.
    #[cold]
    #[inline(never)]
    fn kvmalloc_fallback(
        &self,
        size: usize,
        align: usize,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<VirtAddr, AllocError> {
        if size > KVMALLOC_MAX_SIZE {
            self.pages.base.warn(gfp, Warning::KvmallocTooLarge { bytes: size });
            return Err(AllocError::TooLarge { requested: size, limit: KVMALLOC_MAX_SIZE });
        }
        self.pages.base.event(Event::KvFallback);
        let flags = if gfp.may_block() { VmFlags::ALLOW_HUGE_VMAP } else { VmFlags::empty() };
        self.vmalloc_node_range(&VmallocArgs { align, flags, node, ..VmallocArgs::new(size, gfp) })
    }

    /// [`Self::kvmalloc`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::kvmalloc`].
    #[track_caller]
    pub fn kvzalloc(&self, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kvmalloc(size, gfp | GfpFlags::ZERO)
    }

    /// [`Self::kvmalloc`] of `n` elements.
    ///
    /// # Errors
    ///
    /// [`AllocError::Overflow`] if the product wraps; as [`Self::kvmalloc`] otherwise.
    #[track_caller]
    pub fn kvmalloc_array(&self, n: usize, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kvmalloc(n.checked_mul(size).ok_or(AllocError::Overflow)?, gfp)
    }

    /// [`Self::kvmalloc_array`] of zeroed memory.
    ///
    /// # Errors
    ///
    /// As [`Self::kvmalloc_array`].
    #[track_caller]
    pub fn kvcalloc(&self, n: usize, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        self.kvmalloc_array(n, size, gfp | GfpFlags::ZERO)
    }

    /// Changes the size of a block of [`Self::kvmalloc`]; its contents are kept up to the smaller size.
    ///
    /// A vmalloc block stays one, however small it becomes. Size 0 frees: it gives [`VirtAddr::NULL`] for a vmalloc
    /// block and [`VirtAddr::ZERO_SIZE`] for any other. A chain of calls passes [`GfpFlags::ZERO`] always or never.
    ///
    /// # Errors
    ///
    /// As [`Self::kvmalloc`], and [`AllocError::BadAddress`]; the old block is untouched then.
    #[track_caller]
    pub fn kvrealloc(&self, addr: VirtAddr, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        if self.is_vmalloc_addr(addr) {
            return self.vrealloc(addr, size, gfp);
        }
        match self.krealloc(addr, size, contiguous_flags(size, gfp)) {
            Err(error @ (AllocError::BadAddress(_) | AllocError::BadFlags)) => Err(error),
            Err(_) => self.kvrealloc_to_new(addr, size, gfp),
            moved => moved,
        }
    }

    /// krealloc was refused: a new block of either kind, the contents copied, the old block freed.
    #[track_caller]
    fn kvrealloc_to_new(&self, old: VirtAddr, size: usize, gfp: GfpFlags) -> Result<VirtAddr, AllocError> {
        let bad_address = |_| AllocError::BadAddress(old);
        let keep = self.slab.owned_size(&self.pages, old).map_err(bad_address)?.min(size);
        let new = self.kvmalloc(size, gfp)?;
        self.copy(old, new, keep);
        self.slab.free_repaired(&self.pages, old).map_err(bad_address)?;
        Ok(new)
    }

    /// Frees a block of [`Self::kvmalloc`], or of either kind alone. Null and zero-size addresses are ignored.
    ///
    /// # Errors
    ///
    /// Which misuse it would have been; nothing is changed then.
    #[track_caller]
    pub fn kvfree(&self, addr: VirtAddr) -> Result<(), FreeError> {
        if self.is_vmalloc_addr(addr) { self.vfree(addr) } else { self.kfree(addr) }
    }

    /// [`Self::kvfree`] for a caller that may not sleep: an area's free is put off, see [`Self::vfree_atomic`].
    ///
    /// # Errors
    ///
    /// As [`Self::kfree`] and [`Self::vfree_atomic`].
    #[track_caller]
    pub fn kvfree_atomic(&self, addr: VirtAddr) -> Result<(), FreeError> {
        if self.is_vmalloc_addr(addr) { self.vfree_atomic(addr) } else { self.kfree(addr) }
    }

    /// Wipes the first `len` bytes of a block, at most its usable size, then frees it.
    ///
    /// # Errors
    ///
    /// As [`Self::kvfree`]; nothing is wiped then, unless it is [`FreeError::Corrupted`]: what is around a block is looked at
    /// last.
    #[track_caller]
    pub fn kvfree_sensitive(&self, addr: VirtAddr, len: usize) -> Result<(), FreeError> {
        if addr.is_zero_or_null() {
            return Ok(());
        }
        let usable = self.kvsize(addr)?;
        self.wipe(addr, len.min(usable));
        self.kvfree(addr)
    }

    /// Returns how many bytes of a block of [`Self::kvmalloc`] are its owner's. Unlike [`Self::ksize`] it changes nothing.
    ///
    /// # Errors
    ///
    /// Which misuse freeing it would have been.
    pub fn kvsize(&self, addr: VirtAddr) -> Result<usize, FreeError> {
        if self.is_vmalloc_addr(addr) {
            self.vmalloc.size_of(&self.pages, addr)
        } else {
            self.slab.usable_size(&self.pages, addr)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_contiguous_attempt_follow_the_table() {
        let f = contiguous_flags;
        let nofail = GfpFlags::KERNEL | GfpFlags::NOFAIL | GfpFlags::ZERO;
        assert_eq!(f(4096, nofail), nofail, "up to a page nothing changes");
        let adjusted = f(4097, nofail);
        assert!(adjusted.contains(GfpFlags::NOWARN | GfpFlags::ZERO | GfpFlags::KSWAPD_RECLAIM));
        assert!(!adjusted.intersects(GfpFlags::NOFAIL | GfpFlags::DIRECT_RECLAIM));
        let hard = f(4097, GfpFlags::KERNEL | GfpFlags::RETRY_MAYFAIL);
        assert!(hard.contains(GfpFlags::DIRECT_RECLAIM | GfpFlags::RETRY_MAYFAIL));
    }
}
