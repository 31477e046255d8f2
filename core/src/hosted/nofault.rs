//! Accesses that tell of a fault instead of ending the process, as Linux's `copy_from_kernel_nofault`.
//!
//! The bytes go through a pipe: the host copies them out of, or into, this process' addresses with the processor's own
//! accesses, by the same mappings as the program's, and answers `EFAULT` where those would have raised a signal.

use super::HostError;
use super::sys::Pipe;
use crate::PAGE_SIZE;

/// Reads and writes memory of this process at addresses that may fault.
///
/// # Examples
///
/// ```
/// use kmem::GfpFlags;
/// use kmem::hosted::{HostConfig, Hosted, NoFault};
///
/// let hosted = Hosted::new(&HostConfig::new(64 << 20))?;
/// let area = hosted.enter().vzalloc(4096, GfpFlags::KERNEL)?.as_u64();
/// let mut memory = NoFault::new()?;
/// let mut bytes = [1; 8];
/// assert_eq!(memory.read(area + 4088, &mut bytes), Ok(()));
/// assert_eq!(bytes, [0; 8]);
/// assert_eq!(memory.read(area + 4092, &mut bytes), Err(area + 4096), "the guard page");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct NoFault {
    pipe: Pipe,
}

impl NoFault {
    /// A pipe to copy through.
    ///
    /// # Errors
    ///
    /// [`HostError::Memory`] if the host gives no pipe.
    pub fn new() -> Result<Self, HostError> {
        Pipe::new().map(|pipe| Self { pipe }).ok_or(HostError::Memory { bytes: PAGE_SIZE })
    }

    /// Copies bytes from an address.
    ///
    /// # Errors
    ///
    /// The first address that faults; what is before it was copied.
    pub fn read(&mut self, from: u64, mut into: &mut [u8]) -> Result<(), u64> {
        let mut at = from;
        while !into.is_empty() {
            let (chunk, rest) = into.split_at_mut(in_page(at, into.len()));
            let filled = self.pipe.fill_from(at as usize, chunk.len());
            if filled < chunk.len() {
                self.pipe.forget();
                return Err(at);
            }
            let drained = self.pipe.drain_into(chunk);
            debug_assert_eq!(drained, filled, "what went into the pipe comes out of it");
            at = at.wrapping_add(filled as u64);
            into = rest;
        }
        Ok(())
    }

    /// Copies bytes to an address.
    ///
    /// # Errors
    ///
    /// The first address that faults; what is before it was written.
    ///
    /// # Safety
    ///
    /// The bytes are not behind a Rust reference, and no other thread accesses them meanwhile.
    pub unsafe fn write(&mut self, to: u64, mut from: &[u8]) -> Result<(), u64> {
        let mut at = to;
        while !from.is_empty() {
            let (chunk, rest) = from.split_at(in_page(at, from.len()));
            let filled = self.pipe.fill_from(chunk.as_ptr() as usize, chunk.len());
            debug_assert_eq!(filled, chunk.len(), "a slice does not fault, and the pipe was empty");
            // SAFETY: passed on to the caller.
            if unsafe { self.pipe.drain_to(at as usize, chunk.len()) } < chunk.len() {
                self.pipe.forget();
                return Err(at);
            }
            at = at.wrapping_add(chunk.len() as u64);
            from = rest;
        }
        Ok(())
    }
}

/// How many of `len` bytes from an address on are in its page: all or none of them fault.
fn in_page(at: u64, len: usize) -> usize {
    len.min(PAGE_SIZE - at as usize % PAGE_SIZE)
}
