//! `malloc` and its family for unmodified programs.
//!
//! ```console
//! $ cargo build --release -p kmem-preload
//! $ LD_PRELOAD=target/release/libkmem_preload.so git log
//! ```
//!
//! The functions do what C, POSIX and the manual pages of Linux say; where these leave a choice, it is the C library's: blocks
//! are aligned to 16 bytes, `malloc(0)` gives a block of its own, `realloc` to nothing frees and gives null, `errno` is `ENOMEM`
//! or `EINVAL` after a refusal and unchanged else, also by `free`. A wrong free ends the process with a message that names it.
//!
//! All of them are safe to use in several threads and around a fork, as [`KmemAlloc`] is.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod record;

use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use kmem::PAGE_SIZE;
use kmem::hosted::KmemAlloc;

/// What C aligns blocks to: enough for every type that it has.
const ALIGN: usize = 16;

static ALLOCATOR: KmemAlloc = KmemAlloc::new();

fn set_errno(error: c_int) {
    // SAFETY: the function gives a pointer that is valid in this thread for as long as it lives.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { errno.write(error) };
}

#[inline(always)]
fn or_no_memory(block: Option<NonNull<u8>>) -> *mut c_void {
    match block {
        Some(block) => block.as_ptr().cast(),
        None => no_memory(),
    }
}

#[cold]
fn no_memory() -> *mut c_void {
    set_errno(libc::ENOMEM);
    ptr::null_mut()
}

/// A block at a multiple of `align`, a power of two of at least [`ALIGN`]; `None` if there is no memory.
#[inline(always)]
fn allocate(align: usize, size: usize) -> Option<NonNull<u8>> {
    let block = ALLOCATOR.allocate(size, align, false)?;
    if record::is_on() {
        record::given(block.as_ptr().cast(), align, size);
    }
    Some(block)
}

/// The same for an alignment that a program gave.
fn aligned(align: usize, size: usize) -> *mut c_void {
    or_no_memory(allocate(align.max(ALIGN), size))
}

/// Allocates at least `size` bytes.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    or_no_memory(allocate(ALIGN, size))
}

/// Allocates `count` elements of `size` zero bytes.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let block = count.checked_mul(size).and_then(|bytes| ALLOCATOR.allocate(bytes, ALIGN, true));
    if record::is_on() {
        block.iter().for_each(|block| record::given_zeros(block.as_ptr().cast(), count, size));
    }
    or_no_memory(block)
}

/// Takes a block back; null is ignored.
///
/// # Safety
///
/// Nobody uses the block any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    if record::is_on() && !block.is_null() {
        record::taken(block);
    }
    ALLOCATOR.free(block.cast());
}

/// Changes the size of a block; it moves if it must. Null allocates; size 0 frees, and gives null.
///
/// # Safety
///
/// Nobody uses the block by its old address any more, unless the answer is null and the size is not 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    let Some(old) = NonNull::new(block.cast::<u8>()) else { return malloc(size) };
    if size == 0 {
        // SAFETY: passed on to the caller.
        unsafe { free(block) };
        return ptr::null_mut();
    }
    let resize = || ALLOCATOR.resize(old, size, ALIGN).map_or_else(|| refused(block), |moved| moved.as_ptr().cast());
    if record::is_on() { record::resized(block, size, resize) } else { resize() }
}

/// Why a block could not be resized: it is none, which ends the process, or there is no memory.
#[cold]
fn refused(block: *mut c_void) -> *mut c_void {
    if let Err(error) = ALLOCATOR.usable_size(block.cast()) {
        KmemAlloc::refuse(error);
    }
    no_memory()
}

/// [`realloc`] to `count` elements of `size` bytes; null if that wraps.
///
/// # Safety
///
/// As [`realloc`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: passed on to the caller.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => no_memory(),
    }
}

/// Stores at `place` a block at a multiple of `align`; returns an error's number, or 0.
///
/// # Safety
///
/// A pointer can be written to `place`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    match allocate(align.max(ALIGN), size) {
        Some(block) => {
            // SAFETY: passed on to the caller.
            unsafe { place.write(block.as_ptr().cast()) };
            0
        }
        None => libc::ENOMEM,
    }
}

/// Allocates at a multiple of `align`, a power of two.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if align.is_power_of_two() {
        return aligned(align, size);
    }
    set_errno(libc::EINVAL);
    ptr::null_mut()
}

/// [`aligned_alloc`] of old; an alignment that is no power of two is rounded up to one, as the C library does.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => aligned(align, size),
        None => no_memory(),
    }
}

/// Allocates at a multiple of the page size.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(PAGE_SIZE, size)
}

/// Allocates whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match size.max(1).checked_next_multiple_of(PAGE_SIZE) {
        Some(bytes) => aligned(PAGE_SIZE, bytes),
        None => no_memory(),
    }
}

/// How many bytes of a block its owner may use; 0 for null.
///
/// # Safety
///
/// Nobody takes the block back meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    if block.is_null() {
        return 0;
    }
    match ALLOCATOR.usable_size(block.cast()) {
        Ok(bytes) => bytes,
        Err(error) => KmemAlloc::refuse(error),
    }
}

/// Gives free memory back to the host; 1 if there was any.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(ALLOCATOR.trim() > 0)
}
