//! The host's calls, each as a function that cannot be misused: the only `unsafe` code of the hosted platform besides the
//! traits that are `unsafe` to implement.
//!
//! None of them allocates: they run inside an allocator. `errno` is as it was before, whatever happened: `free` must not
//! change it.

use super::cpus;
use super::platform::HostPlatform;
use crate::raw::{MetaRegion, PhysMem};
use crate::sync::{AtomicPtr, AtomicU32, Ordering};
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::NonNull;

/// Runs calls and puts `errno` back.
fn keep_errno<T>(calls: impl FnOnce() -> T) -> T {
    // SAFETY: the function gives a pointer that is valid in this thread for as long as it lives.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    let result = calls();
    // SAFETY: as above.
    unsafe { errno.write(before) };
    result
}

/// Address space that belongs to this value, and is unmapped with it.
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is a range of addresses, owned like a box of bytes; nothing in it knows a thread.
unsafe impl Send for Region {}
// SAFETY: as above; through a shared reference only its bounds can be read.
unsafe impl Sync for Region {}

impl Region {
    /// Addresses that fault, the first a multiple of `align`, a power of two of at least a page.
    pub(super) fn reserved(len: usize, align: usize) -> Option<Self> {
        let wide = map(None, len.checked_add(align)?, libc::PROT_NONE, PRIVATE, -1)?;
        let start = wide.as_ptr() as usize;
        let skip = start.wrapping_neg() & (align - 1);
        unmap(start, skip);
        unmap(start + skip + len, align - skip);
        // SAFETY: `skip < align`, and the mapping has `len + align` bytes.
        Some(Self { base: unsafe { wide.add(skip) }, len })
    }

    /// Zeros, which cost nothing until they are touched.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        let base = map(None, len, libc::PROT_READ | libc::PROT_WRITE, PRIVATE, -1)?;
        Some(Self { base, len })
    }

    /// Makes the first `len` bytes zeros of this process alone: a fork's child has a copy of its own.
    pub(super) fn back_privately(&self, len: usize) -> bool {
        let (at, len) = (self.start(), len.min(self.len));
        map(Some(at), len, libc::PROT_READ | libc::PROT_WRITE, PRIVATE, -1).is_some()
    }

    /// Makes the first bytes those of a memory file, which can be shown at other addresses too.
    pub(super) fn back_by(&self, file: &MemoryFile) -> bool {
        let len = file.len.min(self.len);
        map(Some(self.start()), len, libc::PROT_READ | libc::PROT_WRITE, SHARED, file.fd).is_some()
    }

    /// The first address.
    pub(super) fn start(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps the addresses for as long as the process lives.
    pub(super) fn leak(self) -> NonNull<u8> {
        core::mem::ManuallyDrop::new(self).base
    }

    /// Makes the region of a pointer that [`Self::leak`] gave.
    ///
    /// # Safety
    ///
    /// `base` came from `leak` of a region of `len` bytes, and nobody uses the addresses any more.
    pub(super) unsafe fn from_leaked(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        unmap(self.start(), self.len);
    }
}

const PRIVATE: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
const SHARED: c_int = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// Maps anywhere, or over what is at an address that the caller has reserved.
fn map(at: Option<usize>, len: usize, protection: c_int, flags: c_int, fd: c_int) -> Option<NonNull<u8>> {
    let (at, fixed) = at.map_or((0, 0), |at| (at, libc::MAP_FIXED));
    // SAFETY: without an address the host chooses unused ones; an address is in a region that the caller owns, where no Rust
    // reference lives.
    let mapped = keep_errno(|| unsafe { libc::mmap(at as *mut c_void, len, protection, flags | fixed, fd, 0) });
    if mapped == libc::MAP_FAILED { None } else { NonNull::new(mapped.cast()) }
}

fn unmap(at: usize, len: usize) {
    if len > 0 {
        // SAFETY: the range is a region's own or a part of it that is cut off, and nobody uses it any more.
        keep_errno(|| unsafe { libc::munmap(at as *mut c_void, len) });
    }
}

/// Makes addresses of a region fault.
pub(super) fn hide(at: usize, len: usize) -> bool {
    map(Some(at), len, libc::PROT_NONE, PRIVATE, -1).is_some()
}

/// Shows what is at `from`, in a mapping of a memory file, at `to` as well, in a region of the caller's.
///
/// This is `mremap` with an old size of 0, which maps the same file's pages once more: no descriptor has to stay open, which a
/// program could close that closes all that it does not know.
pub(super) fn show(from: usize, to: usize, len: usize) -> bool {
    const FLAGS: c_int = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both ranges are in regions of the caller's, and no Rust reference lives at `to`. A mapping that is not shared
    // is refused by the host.
    let shown = keep_errno(|| unsafe { libc::mremap(from as *mut c_void, 0, len, FLAGS, to as *mut c_void) });
    shown as usize == to
}

/// The same where `from` need not be fast from now on: the translations move with it, so that `to` causes no page faults.
pub(super) fn show_moved(from: usize, to: usize, len: usize) -> bool {
    const FLAGS: c_int = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: as in `show`; what is at `from` stays mapped.
    let shown = keep_errno(|| unsafe { libc::mremap(from as *mut c_void, len, len, FLAGS, to as *mut c_void) });
    shown as usize == to
}

/// Gives the memory behind private pages back; they read as zeros from now on.
pub(super) fn drop_private(at: usize, len: usize) -> bool {
    advise(at, len, libc::MADV_DONTNEED)
}

/// Gives the memory behind pages of a memory file back, wherever they are shown; they read as zeros from now on.
pub(super) fn drop_shared(at: usize, len: usize) -> bool {
    advise(at, len, libc::MADV_REMOVE)
}

fn advise(at: usize, len: usize, advice: c_int) -> bool {
    // SAFETY: the range is in a region of the caller's, and only free memory is in it: nobody reads what it held.
    keep_errno(|| unsafe { libc::madvise(at as *mut c_void, len, advice) }) == 0
}

/// Anonymous memory that can be mapped several times. The descriptor is closed with the value; mappings stay.
pub(super) struct MemoryFile {
    fd: c_int,
    len: usize,
}

impl MemoryFile {
    /// A file of `len` zeros, which cost nothing until they are touched.
    pub(super) fn new(len: usize) -> Option<Self> {
        // SAFETY: the name is a string that ends with 0.
        let fd = keep_errno(|| unsafe { libc::memfd_create(c"kmem".as_ptr(), libc::MFD_CLOEXEC) });
        let file = (fd >= 0).then_some(Self { fd, len })?;
        let length = libc::off_t::try_from(len).ok()?;
        // SAFETY: the descriptor is this value's own.
        let sized = keep_errno(|| unsafe { libc::ftruncate(fd, length) });
        (sized == 0).then_some(file)
    }

    /// Writes `len` bytes at `from`, which are readable, to the place `offset`.
    pub(super) fn copy_from(&self, from: usize, len: usize, offset: usize) -> bool {
        let mut done = 0;
        while done < len {
            let (at, place) = (from + done, (offset + done) as libc::off_t);
            // SAFETY: the host reads the bytes, and answers with an error where they cannot be read.
            let wrote = keep_errno(|| unsafe { libc::pwrite(self.fd, at as *const c_void, len - done, place) });
            match usize::try_from(wrote) {
                Ok(wrote) if wrote > 0 => done += wrote,
                _ => return false,
            }
        }
        true
    }

    /// The descriptor's number, which stays open.
    pub(super) fn into_raw(self) -> c_int {
        core::mem::ManuallyDrop::new(self).fd
    }

    /// The file of a number that [`Self::into_raw`] gave, in this process or the one that it was forked from.
    pub(super) fn from_raw(fd: c_int, len: usize) -> Self {
        Self { fd, len }
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        keep_errno(|| unsafe { libc::close(self.fd) });
    }
}

/// Words in a region of their own.
pub(super) struct Words {
    region: Region,
}

impl Words {
    /// So many zeros, which cost nothing until they are touched.
    pub(super) fn new(count: usize) -> Option<Self> {
        Region::zeroed(count.checked_mul(size_of::<AtomicU32>())?).map(|region| Self { region })
    }
}

impl Deref for Words {
    type Target = [AtomicU32];

    fn deref(&self) -> &[AtomicU32] {
        let count = self.region.len / size_of::<AtomicU32>();
        // SAFETY: the region is page aligned, has so many words, starts as zeros, and lives as long as the borrow.
        unsafe { core::slice::from_raw_parts(self.region.base.as_ptr().cast(), count) }
    }
}

/// A value in a region of its own, at an address that stays.
pub(super) struct Placed<T> {
    at: NonNull<T>,
}

// SAFETY: it owns the value, as a box does.
unsafe impl<T: Send> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Placed<T> {}

impl<T> Placed<T> {
    /// Puts a value in a region of its own; `None` if the host has no memory.
    pub(super) fn new(value: T) -> Option<Self> {
        const { assert!(align_of::<T>() <= crate::PAGE_SIZE) };
        let at = Region::zeroed(size_of::<T>())?.leak().cast::<T>();
        // SAFETY: the region is new, page aligned, and has room for the value.
        unsafe { at.write(value) };
        Some(Self { at })
    }

    /// The value's address. It stays where it is for as long as the process lives.
    pub(super) fn leak(self) -> *mut T {
        core::mem::ManuallyDrop::new(self).at.as_ptr()
    }
}

impl<T> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value was written when this one was made, and is dropped with it.
        unsafe { self.at.as_ref() }
    }
}

impl<T> Drop for Placed<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped once, and nobody has it any more.
        unsafe { self.at.drop_in_place() };
        // SAFETY: the region was leaked by `new`, and the value in it is gone.
        drop(unsafe { Region::from_leaked(self.at.cast(), size_of::<T>()) });
    }
}

/// The value behind the address that [`Placed::leak`] gave and this place keeps; `None` for null.
#[inline(always)]
pub(super) fn placed<T>(place: &AtomicPtr<T>) -> Option<&T> {
    // SAFETY: only addresses of values that live as long as the process are put into such places, after they were made.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

/// As [`placed`], if the address is the given one, which is not null.
#[inline(always)]
pub(super) fn placed_here<T>(place: &AtomicPtr<T>, here: NonNull<T>) -> Option<&T> {
    if place.load(Ordering::Acquire) != here.as_ptr() {
        return None;
    }
    // SAFETY: as in `placed`: this is the address that the place keeps.
    Some(unsafe { here.as_ref() })
}

/// The allocator that a place of the list of those that are watched has.
pub(super) fn watched(place: &AtomicPtr<super::Inner>) -> Option<&super::Inner> {
    // SAFETY: the list has addresses of allocators that live: each is taken off it, by a thread that is inside, before it is
    // dropped, and those who look stop all others first, or build it.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

/// Copies the first `len` bytes of a block, whose owner has asked for another one, to that.
pub(super) fn copy_block(from: NonNull<u8>, to: NonNull<u8>, len: usize) {
    // SAFETY: the allocator has found both to be live blocks of at least `len` bytes, so they do not overlap.
    unsafe { to.copy_from_nonoverlapping(from, len) };
}

/// Zeroes the first `len` bytes of a block that nobody has yet.
pub(super) fn zero_block(block: NonNull<u8>, len: usize) {
    // SAFETY: the allocator has just made the block, of at least `len` bytes.
    unsafe { block.write_bytes(0, len) };
}

/// Zeroes what a block has after its first `kept` bytes; nobody has used that yet.
pub(super) fn zero_tail(block: NonNull<[u8]>, kept: usize) {
    let kept = kept.min(block.len());
    // SAFETY: `kept` is at most the block's length.
    let tail = unsafe { block.cast::<u8>().add(kept) };
    // SAFETY: the block has so many bytes after that.
    unsafe { tail.write_bytes(0, block.len() - kept) };
}

const MEMBARRIER_EXPEDITED: c_int = 1 << 3;
const MEMBARRIER_REGISTER_EXPEDITED: c_int = 1 << 4;

fn membarrier(command: c_int) -> bool {
    // SAFETY: the call touches no memory.
    keep_errno(|| unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }) == 0
}

/// Asks for [`heavy_fence`]; `false` if the host has none.
pub(super) fn register_heavy_fence() -> bool {
    membarrier(MEMBARRIER_REGISTER_EXPEDITED)
}

/// Has every thread of the process execute a full memory barrier before it returns; `false` if the host would not.
pub(super) fn heavy_fence() -> bool {
    membarrier(MEMBARRIER_EXPEDITED)
}

/// Lets another thread run.
pub(super) fn yield_now() {
    // SAFETY: the call touches no memory.
    keep_errno(|| unsafe { libc::sched_yield() });
}

/// How many processors this process may use, at least one.
pub(super) fn processors() -> usize {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the host writes no more than the size that it is told.
    let done = keep_errno(|| unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) });
    // SAFETY: all zeros is a set without processors.
    let set = unsafe { set.assume_init() };
    // SAFETY: the set is a value; the function only counts its bits.
    let count = unsafe { libc::CPU_COUNT(&set) };
    if done == 0 { usize::try_from(count).unwrap_or(1).max(1) } else { 1 }
}

/// How many bytes of memory the host has; 0 if it does not say.
pub(super) fn memory_bytes() -> usize {
    let mut info = MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the host writes one such value.
    let done = keep_errno(|| unsafe { libc::sysinfo(info.as_mut_ptr()) });
    // SAFETY: all zeros is a value of it.
    let info = unsafe { info.assume_init() };
    let bytes = (info.totalram as usize).saturating_mul(info.mem_unit as usize);
    if done == 0 { bytes } else { 0 }
}

/// How many mappings a process may have.
pub(super) fn most_mappings() -> usize {
    const USUAL: usize = 65_530;
    let mut text = [0_u8; 24];
    // SAFETY: the path is a string that ends with 0.
    let fd =
        keep_errno(|| unsafe { libc::open(c"/proc/sys/vm/max_map_count".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) });
    if fd < 0 {
        return USUAL;
    }
    let file = MemoryFile::from_raw(fd, 0);
    // SAFETY: the host writes no more than the length that it is told.
    let got = keep_errno(|| unsafe { libc::read(file.fd, text.as_mut_ptr().cast(), text.len()) });
    let digits = text.get(..usize::try_from(got).unwrap_or(0)).unwrap_or_default();
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_usize, |n, byte| n.saturating_mul(10).saturating_add(usize::from(byte - b'0')));
    if number == 0 { USUAL } else { number }
}

/// Writes a message to the standard error output.
pub(super) fn write_error(message: &[u8]) {
    // SAFETY: the bytes are a slice.
    keep_errno(|| unsafe { libc::write(2, message.as_ptr().cast(), message.len()) });
}

/// Writes a message to the standard error output, and ends the process.
pub(super) fn die(message: &[u8]) -> ! {
    write_error(message);
    // SAFETY: the call does not return.
    unsafe { libc::abort() }
}

/// A pipe that nobody waits for.
#[derive(Debug)]
pub(super) struct Pipe {
    out: c_int,
    into: c_int,
}

impl Pipe {
    pub(super) fn new() -> Option<Self> {
        let mut ends = [0; 2];
        // SAFETY: the host writes two descriptors.
        let made = keep_errno(|| unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) });
        (made == 0).then_some(Self { out: ends[0], into: ends[1] })
    }

    /// Puts bytes from any address in; returns how many could be read there.
    pub(super) fn fill_from(&self, at: usize, len: usize) -> usize {
        // SAFETY: the host only reads at the address, and answers with an error where that cannot be done.
        let put = keep_errno(|| unsafe { libc::write(self.into, at as *const c_void, len) });
        usize::try_from(put).unwrap_or(0)
    }

    /// Takes bytes out; returns how many there were.
    pub(super) fn drain_into(&self, bytes: &mut [u8]) -> usize {
        // SAFETY: the slice has so many bytes.
        unsafe { self.drain_to(bytes.as_mut_ptr() as usize, bytes.len()) }
    }

    /// Takes bytes out to an address; returns how many could be written there.
    ///
    /// # Safety
    ///
    /// The bytes there may be overwritten, if they are mapped.
    pub(super) unsafe fn drain_to(&self, at: usize, len: usize) -> usize {
        // SAFETY: passed on to the caller; where nothing is mapped the host answers with an error.
        let got = keep_errno(|| unsafe { libc::read(self.out, at as *mut c_void, len) });
        usize::try_from(got).unwrap_or(0)
    }

    /// Drops what is left in it.
    pub(super) fn forget(&self) {
        let mut scratch = [0; 256];
        while self.drain_into(&mut scratch) > 0 {}
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for end in [self.out, self.into] {
            // SAFETY: the descriptor is this value's alone.
            keep_errno(|| unsafe { libc::close(end) });
        }
    }
}

/// The key whose destructor runs at the end of each thread that has a number; one more than the key, 0 while there is none.
static EXIT_KEY: AtomicU32 = AtomicU32::new(0);

extern "C" fn at_exit(number: *mut c_void) {
    cpus::give_back((number as usize).wrapping_sub(1));
}

/// Prepares [`tell_exit`]; `false` if the process has no key left for which the C library does not allocate: the first 32.
pub(super) fn prepare_exit() -> bool {
    let mut key = 0;
    // SAFETY: the host writes a key; the destructor is a function that takes any pointer.
    let made = unsafe { libc::pthread_key_create(&mut key, Some(at_exit)) } == 0;
    if made && key >= 32 {
        // SAFETY: the key was just made, and no thread has a value for it.
        unsafe { libc::pthread_key_delete(key) };
        return false;
    }
    if made {
        EXIT_KEY.store(key.wrapping_add(1), Ordering::Release);
    }
    made
}

/// Has [`cpus::give_back`] called with this number when the current thread ends; `false` if that cannot be.
pub(super) fn tell_exit(number: usize) -> bool {
    let Some(key) = EXIT_KEY.load(Ordering::Acquire).checked_sub(1) else { return false };
    // SAFETY: the key was made, and the value is a number that nobody dereferences.
    keep_errno(|| unsafe { libc::pthread_setspecific(key, (number + 1) as *const c_void) }) == 0
}

/// Has these called around each fork: before it, after it in the parent, after it in the child.
pub(super) fn around_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    // SAFETY: all three are functions without arguments, and are there for as long as the process is.
    unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) == 0 }
}

/// The window onto memory that a region of so many frames is.
pub(super) fn window_onto(region: &Region, frames: u32) -> PhysMem {
    assert!((frames as usize) << crate::PAGE_SHIFT <= region.len, "the region is too small");
    // SAFETY: the region is mapped for reads and writes, as its owner's constructor made sure, and lives as long as the
    // platform that has both; no reference into it is ever made.
    unsafe { PhysMem::from_raw_parts(region.base, frames) }
}

/// The metadata that a region of zeros is, which is the allocator's from now on.
pub(super) fn metadata_in(region: &Region) -> MetaRegion {
    // SAFETY: the region is zeros that nobody else uses; its owner drops it after the allocator.
    unsafe { MetaRegion::from_zeroed_raw_parts(region.base, region.len) }
}

// SAFETY: the memory window is only read through `&self`, and its handle was made by `from_raw_parts`: nothing in it is
// counted without synchronisation. All else is atomics and locks.
unsafe impl Sync for HostPlatform {}
// SAFETY: as above; nothing in it knows a thread.
unsafe impl Send for HostPlatform {}
// SAFETY: (1) `Hosted::enter` is the only way to a `Kmem` on this platform; it leases a number that no other thread inside has,
// and keeps it until the guard is dropped. (2) `heavy_fence` is `membarrier`; where there is none, one number is all there
// are, and no two threads are ever inside. (3) Both were made by `from_raw_parts`.
unsafe impl crate::SmpPlatform for HostPlatform {}

// SAFETY: all that keeps an allocator on its thread are handles that are counted without synchronisation; those of the memory
// window and the metadata were made by `from_raw_parts`, and count nothing.
unsafe impl Send for super::Inner {}

/// Bytes of a live block of a test, as its program uses them.
#[cfg(test)]
pub(super) fn program_bytes<'a>(at: usize, len: usize) -> &'a mut [u8] {
    // SAFETY: tests ask for bytes of blocks that they have, and use one such slice at a time.
    unsafe { core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(at), len) }
}

/// Writes to a live block of a test, or to where nothing is mapped.
#[cfg(test)]
pub(super) fn write_nofault(memory: &mut super::NoFault, to: u64, from: &[u8]) -> Result<(), u64> {
    // SAFETY: tests write to blocks that they have, through no reference.
    unsafe { memory.write(to, from) }
}

#[cfg(test)]
use allocator_api2::alloc::{Allocator, Layout};

/// Grows a block of a test.
#[cfg(test)]
pub(super) fn grow_zeroed(of: &impl Allocator, block: NonNull<u8>, old: Layout, new: Layout) -> NonNull<[u8]> {
    // SAFETY: tests grow live blocks with their layouts.
    unsafe { of.grow_zeroed(block, old, new) }.unwrap_or_else(|error| panic!("{error}"))
}

/// Gives a block of a test back.
#[cfg(test)]
pub(super) fn give_back(of: &impl Allocator, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests give live blocks back with their layouts.
    unsafe { of.deallocate(block, layout) };
}

/// Forks, has the child say whether it is content, and returns what it said.
#[cfg(test)]
pub(super) fn ask_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child needs no other thread, and ends at once.
    let process = unsafe { libc::fork() };
    if process == 0 {
        let content = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: the call does not return.
        unsafe { libc::_exit(c_int::from(!content)) }
    }
    let mut status = 0;
    // SAFETY: the status is a variable of this function.
    let waited = unsafe { libc::waitpid(process, &mut status, 0) };
    waited == process && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}
