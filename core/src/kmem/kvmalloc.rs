//! kvmalloc: physically contiguous if it can be had without effort, virtually contiguous otherwise. Policy only.
//!
//! The decision order is that of Linux 7.2:
//!
//! 1. `kmalloc`, with flags adjusted for sizes above a page: no warning, no direct reclaim (unless the caller asked to
//!    try hard), no "must not fail". Contiguous memory is a bonus, not worth waiting for.
//! 2. A request of at most a page is refused if that was refused: vmalloc could not do better.
//! 3. A request above `INT_MAX` is refused: such sizes come from overflows.
//! 4. `vmalloc`, with the caller's own flags.
//!
//! The two kinds are told apart by address alone.

use super::Kmem;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::error::{AllocError, FreeError};
use crate::gfp::GfpFlags;
use crate::platform::{Event, Platform};
use crate::warn::Warning;

/// The largest request that kvmalloc considers, in bytes.
const KVMALLOC_MAX_SIZE: usize = i32::MAX as usize;

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
        match self.kmalloc(size, contiguous_flags(size, gfp)) {
            Ok(addr) => {
                self.pages.base.event(Event::KvContiguous);
                Ok(addr)
            }
            Err(refused) if size <= PAGE_SIZE => Err(refused),
            Err(_) if size > KVMALLOC_MAX_SIZE => {
                self.pages.base.warn(gfp, Warning::KvmallocTooLarge { bytes: size });
                Err(AllocError::TooLarge { requested: size, limit: KVMALLOC_MAX_SIZE })
            }
            Err(_) => {
                self.pages.base.event(Event::KvFallback);
                self.vmalloc(size, gfp)
            }
        }
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
