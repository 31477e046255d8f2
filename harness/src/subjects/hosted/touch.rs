//! Reads and writes of blocks that a subject says it gave.

use kmem::hosted::{HostError, NoFault};
use std::sync::{Mutex, PoisonError};

/// Accesses through this process' mappings that tell of a fault.
pub(crate) struct Touch(Mutex<NoFault>);

impl Touch {
    /// Asks the host for what it takes.
    ///
    /// # Errors
    ///
    /// The host has no pipe to give.
    pub(crate) fn new() -> Result<Self, HostError> {
        NoFault::new().map(|memory| Self(Mutex::new(memory)))
    }

    /// Reads bytes.
    ///
    /// # Errors
    ///
    /// The address that faults.
    pub(crate) fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(addr, into)
    }

    /// Whether a byte can be read.
    pub(crate) fn can_read(&self, addr: u64) -> bool {
        self.read(addr, &mut [0]).is_ok()
    }

    /// Writes bytes of a block that the allocator under test gave.
    ///
    /// # Errors
    ///
    /// The address that faults.
    pub(crate) fn write(&self, addr: u64, from: &[u8]) -> Result<(), u64> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever asks has checked that the block lies in the allocator's memory, into which no reference is made,
        // and has it alone. An allocator that is wrong hands it out twice: then the bytes change, which is what is looked for.
        unsafe { memory.write(addr, from) }
    }
}
