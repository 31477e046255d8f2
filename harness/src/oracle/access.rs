//! May a program access these bytes? What KASAN asks of every load and store, answered by the model.
//!
//! Contract: section 5.4. A program may access the bytes that it asked for of one live block, and nothing else: not the rest
//! of the class, even after `ksize` told of it, not the next block, not a block that it freed.

use crate::model::{Ghost, Model, Why};

/// An access that a program must not make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAccess {
    /// It begins in this block and leaves what was asked for, or begins behind that.
    OutOfBounds {
        /// Handle of the block.
        block: u64,
    },
    /// No live block is there: it was freed, or never given.
    Nowhere,
}

/// Judges an access of `len` bytes.
///
/// # Errors
///
/// What is wrong with it: one answer for the whole access.
pub fn judge_access(model: &Model, addr: u64, len: usize) -> Result<(), BadAccess> {
    let end = addr.saturating_add(len as u64);
    if end <= addr {
        return if len == 0 { Ok(()) } else { Err(BadAccess::Nowhere) };
    }
    let Some(block) = model.overlapping(addr, addr + 1, None) else { return Err(BadAccess::Nowhere) };
    let is_asked_for = end <= block.addr + block.requested as u64;
    if is_asked_for { Ok(()) } else { Err(BadAccess::OutOfBounds { block: block.handle }) }
}

/// Judges a read of `len` bytes by somebody who began to look before they were freed: besides what [`judge_access`] allows,
/// blocks that wait for readers, and the slabs of `TYPESAFE_BY_RCU` caches, until the last grace period that has ended,
/// `completed`, is late enough.
///
/// # Errors
///
/// As [`judge_access`].
pub fn judge_read(model: &Model, completed: u64, addr: u64, len: usize) -> Result<(), BadAccess> {
    let end = addr.saturating_add(len as u64);
    let waits = |ghost: &Ghost| {
        let may_be_seen = matches!(ghost.why, Why::Rcu { stamp, .. } if stamp > completed);
        may_be_seen && addr >= ghost.block.addr && end <= ghost.block.addr + ghost.block.requested as u64
    };
    let is_kept = |frame| model.guard_of(frame, completed).is_some();
    let is_typesafe = || len > 0 && model.direct_frames(addr, len).all(is_kept);
    if model.ghost_overlapping(addr, end).is_some_and(waits) || is_typesafe() {
        return Ok(());
    }
    judge_access(model, addr, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, step};
    use crate::subject::{Call, Reply};
    use kmem::GfpFlags;

    #[test]
    fn only_the_bytes_that_were_asked_for_may_be_accessed() {
        let subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(3);
        let call = Call::Kmalloc { size: 60, gfp: GfpFlags::KERNEL };
        model.update(&step(call, Reply::Block { addr, usable: 64 }), &subject);
        assert_eq!(judge_access(&model, addr, 60), Ok(()));
        assert_eq!(judge_access(&model, addr + 59, 1), Ok(()));
        assert_eq!(judge_access(&model, addr + 60, 0), Ok(()));
        let beyond = Err(BadAccess::OutOfBounds { block: 0 });
        assert_eq!((judge_access(&model, addr, 61), judge_access(&model, addr + 60, 1)), (beyond, beyond));
        for (addr, len) in [(addr - 1, 1), (addr + 64, 1), (u64::MAX, 2), (addr, usize::MAX)] {
            assert!(judge_access(&model, addr, len).is_err());
        }
        model.update(&step(Call::Kfree { addr }, Reply::Done), &subject);
        assert_eq!(judge_access(&model, addr, 1), Err(BadAccess::Nowhere));
    }
}
