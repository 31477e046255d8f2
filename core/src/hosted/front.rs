//! The two words of each thread that its fast paths read.
//!
//! In a program they are thread-local variables like any other. A shared library pays a call of the loader for each look at one
//! (`__tls_get_addr`, about twenty instructions), unless the variable is in the block that each thread has from its start. That is
//! the *initial-exec* model; the compiler takes it for programs only, so with the feature `shared-library` the words are written
//! down in assembly. The library must be there when the program starts, as by `LD_PRELOAD`, or be small enough for what the loader
//! sets aside for latecomers: it is, with 16 bytes.

use super::Inner;
use core::ptr::NonNull;

pub(super) use words::{get, set};

/// Where no allocator is.
const fn nowhere() -> NonNull<Inner> {
    NonNull::dangling()
}

/// Leaves the thread without a front.
pub(super) fn clear() {
    set(nowhere(), 0);
}

#[cfg(not(all(feature = "shared-library", target_arch = "x86_64")))]
mod words {
    use super::{Inner, NonNull, nowhere};
    use core::cell::Cell;

    struct Front {
        at: Cell<NonNull<Inner>>,
        number: Cell<u16>,
    }

    std::thread_local! {
        static FRONT: Front = const { Front { at: Cell::new(nowhere()), number: Cell::new(0) } };
    }

    /// The allocator whose fast paths this thread may take without entering, or nowhere, and the thread's number.
    #[inline(always)]
    pub(in super::super) fn get() -> (NonNull<Inner>, u16) {
        FRONT.with(|front| (front.at.get(), front.number.get()))
    }

    /// Sets both.
    pub(in super::super) fn set(at: NonNull<Inner>, number: u16) {
        FRONT.with(|front| {
            front.at.set(at);
            front.number.set(number);
        });
    }
}

#[cfg(all(feature = "shared-library", target_arch = "x86_64"))]
mod words {
    use super::{Inner, NonNull};
    use core::arch::{asm, global_asm};

    // An address that no allocator has, and 0. Hidden: each linked object has its own.
    global_asm!(
        ".pushsection .tdata.kmem_hosted_front, \"awT\", @progbits",
        ".balign 16",
        ".globl kmem_hosted_front",
        ".hidden kmem_hosted_front",
        ".type kmem_hosted_front, @object",
        ".size kmem_hosted_front, 16",
        "kmem_hosted_front:",
        ".quad {nowhere}",
        ".quad 0",
        ".popsection",
        nowhere = const align_of::<Inner>(),
    );

    /// The allocator whose fast paths this thread may take without entering, or nowhere, and the thread's number.
    #[inline(always)]
    pub(in super::super) fn get() -> (NonNull<Inner>, u16) {
        let (at, number): (*mut Inner, u64);
        // SAFETY: the words are this thread's own, 16 bytes at this distance from the thread's pointer, and are read only.
        unsafe {
            asm!(
                "mov {number}, qword ptr [rip + kmem_hosted_front@GOTTPOFF]",
                "mov {at}, qword ptr fs:[{number}]",
                "mov {number}, qword ptr fs:[{number} + 8]",
                at = out(reg) at,
                number = out(reg) number,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: the first word is never null: what it begins with is not, and addresses are all that is stored there.
        (unsafe { NonNull::new_unchecked(at) }, number as u16)
    }

    /// Sets both.
    pub(in super::super) fn set(at: NonNull<Inner>, number: u16) {
        // SAFETY: the words are this thread's own, 16 bytes at this distance from the thread's pointer, and nobody refers to them.
        unsafe {
            asm!(
                "mov {place}, qword ptr [rip + kmem_hosted_front@GOTTPOFF]",
                "mov qword ptr fs:[{place}], {at}",
                "mov qword ptr fs:[{place} + 8], {number}",
                place = out(reg) _,
                at = in(reg) at.as_ptr(),
                number = in(reg) u64::from(number),
                options(nostack, preserves_flags),
            );
        }
    }
}
