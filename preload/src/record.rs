//! Writing down what a program does with its heap: sizes, alignments, threads, order and lifetimes, no contents.
//!
//! With `KMEM_RECORD=DIR` in its environment each process writes a file of its own, `DIR/PID-N.kmh`, through a mapping of
//! [`CHUNK`] bytes that moves along the file: nothing is kept in memory, and nothing is lost however the process ends.
//!
//! ```text
//! file    "kmh1" event* 0*
//! event   1 thread log2(align) size block    given          numbers are LEB128: 7 bits a byte, lowest first,
//!         2 thread n size block              given, zeros   the top bit says that more follow;
//!         3 thread old size block            resized        a block is the difference of its address / 16 from that
//!         4 thread block                     taken back     of the event before, zigzag
//! ```
//!
//! A block is written down after it was given and before it is taken back, so that no two live blocks have one address; what
//! is resized is under the lock meanwhile.

use core::cell::{Cell, UnsafeCell};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt::Write as _;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Bytes of the file that are mapped at a time.
const CHUNK: usize = 1 << 20;
/// Where a recording ends, in bytes.
const MOST: usize = 1 << 30;
/// The longest event.
const EVENT: usize = 48;
/// The first bytes of a file.
const MAGIC: &[u8] = b"kmh1";

/// Whether this process writes its heap down.
static RECORDS: AtomicBool = AtomicBool::new(false);
static RECORDER: Recorder =
    Recorder { lock: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER), stream: UnsafeCell::new(Stream::CLOSED) };
/// How many threads have a number.
static THREADS: AtomicU32 = AtomicU32::new(0);

std::thread_local! {
    /// The number of this thread plus one.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

struct Recorder {
    /// The C library's: its waiters sleep, and a fork's child can give it back.
    lock: UnsafeCell<libc::pthread_mutex_t>,
    stream: UnsafeCell<Stream>,
}

// SAFETY: the lock is one for threads, and the stream is used under it only.
unsafe impl Sync for Recorder {}

/// A file that is being written.
struct Stream {
    fd: c_int,
    chunk: *mut u8,
    /// Where the next byte goes, in the file; the chunk holds it if it is not at a chunk's start.
    at: usize,
    /// The address of the block that was written last, divided by 16.
    last: u64,
    /// The folder's path, ended by 0.
    folder: *const c_char,
}

/// An event, as it goes to the file.
struct Event {
    bytes: [u8; EVENT],
    len: usize,
}

impl Event {
    fn new(kind: u8) -> Self {
        let thread = THREAD.get();
        let thread = if thread == 0 { number_thread() } else { thread };
        let mut event = Self { bytes: [0; EVENT], len: 0 };
        event.byte(kind);
        event.number(u64::from(thread) - 1);
        event
    }

    fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    /// A block, as the way from the one before.
    fn block(&mut self, last: &mut u64, block: *const c_void) {
        let name = block as u64 / 16;
        let way = name.wrapping_sub(*last) as i64;
        *last = name;
        self.number((way << 1 ^ way >> 63) as u64);
    }
}

#[cold]
fn number_thread() -> u32 {
    let number = THREADS.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    THREAD.set(number);
    number
}

impl Stream {
    const CLOSED: Self = Self { fd: -1, chunk: ptr::null_mut(), at: 0, last: 0, folder: ptr::null() };

    /// Makes this process' file.
    fn open(&mut self) {
        for attempt in 0..1000 {
            let mut path = Path { bytes: [0; 512], len: 0 };
            // SAFETY: the folder is a string of the environment that was there at the start.
            let folder = unsafe { CStr::from_ptr(self.folder) };
            let pid = std::process::id();
            let fits = write!(path, "{}/{pid}-{attempt}.kmh\0", folder.to_str().unwrap_or("."));
            if fits.is_err() {
                return;
            }
            const NEW: c_int = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
            // SAFETY: the path ends with 0.
            self.fd = unsafe { libc::open(path.bytes.as_ptr().cast(), NEW, 0o644) };
            if self.fd >= 0 {
                (self.at, self.last) = (0, 0);
                return self.write(MAGIC);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.at.is_multiple_of(CHUNK) && !self.next_chunk() {
                return self.close();
            }
            // SAFETY: the chunk is mapped for writes, and the place is in it.
            let place = unsafe { self.chunk.add(self.at % CHUNK) };
            // SAFETY: as above.
            unsafe { place.write(byte) };
            self.at += 1;
        }
    }

    /// Maps what comes next of the file in the place of what is full.
    fn next_chunk(&mut self) -> bool {
        self.unmap();
        let end = (self.at + CHUNK) as libc::off_t;
        // SAFETY: the descriptor is the stream's; if the program has closed it, the host says so.
        if self.at >= MOST || unsafe { libc::ftruncate(self.fd, end) } != 0 {
            return false;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let offset = self.at as libc::off_t;
        // SAFETY: the host chooses unused addresses.
        let chunk = unsafe { libc::mmap(ptr::null_mut(), CHUNK, protection, libc::MAP_SHARED, self.fd, offset) };
        self.chunk = if chunk == libc::MAP_FAILED { ptr::null_mut() } else { chunk.cast() };
        !self.chunk.is_null()
    }

    fn unmap(&mut self) {
        if !self.chunk.is_null() {
            // SAFETY: the chunk is the stream's own.
            unsafe { libc::munmap(self.chunk.cast(), CHUNK) };
            self.chunk = ptr::null_mut();
        }
    }

    /// Ends the recording of this process.
    fn close(&mut self) {
        RECORDS.store(false, Ordering::Relaxed);
        self.unmap();
        if self.fd >= 0 {
            // SAFETY: the descriptor is the stream's own.
            unsafe { libc::close(self.fd) };
            self.fd = -1;
        }
    }
}

/// A path that is made without allocating.
struct Path {
    bytes: [u8; 512],
    len: usize,
}

impl core::fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl Recorder {
    fn lock(&self) {
        // SAFETY: the lock is initialised, never moves, and no thread takes it twice.
        unsafe { libc::pthread_mutex_lock(self.lock.get()) };
    }

    fn unlock(&self) {
        // SAFETY: the lock is initialised, and the caller has it.
        unsafe { libc::pthread_mutex_unlock(self.lock.get()) };
    }

    /// Runs `work` with the stream.
    fn with<T>(&self, work: impl FnOnce(&mut Stream) -> T) -> T {
        // SAFETY: the function gives a pointer that is valid in this thread for as long as it lives.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let before = unsafe { errno.read() };
        self.lock();
        // SAFETY: the lock is held, and nothing that is called from here comes back to this function.
        let result = work(unsafe { &mut *self.stream.get() });
        self.unlock();
        // SAFETY: as above.
        unsafe { errno.write(before) };
        result
    }
}

/// Whether the process writes its heap down.
#[inline(always)]
pub(super) fn is_on() -> bool {
    RECORDS.load(Ordering::Relaxed)
}

/// Writes down that a block was given.
#[cold]
pub(super) fn given(block: *const c_void, align: usize, size: usize) {
    write(|event, last| {
        event.number(u64::from(align.trailing_zeros()));
        event.number(size as u64);
        event.block(last, block);
        1
    });
}

/// Writes down that an array of zeros was given.
#[cold]
pub(super) fn given_zeros(block: *const c_void, count: usize, size: usize) {
    write(|event, last| {
        event.number(count as u64);
        event.number(size as u64);
        event.block(last, block);
        2
    });
}

/// Writes down that a block is taken back.
#[cold]
pub(super) fn taken(block: *const c_void) {
    write(|event, last| {
        event.block(last, block);
        4
    });
}

fn write(fill: impl FnOnce(&mut Event, &mut u64) -> u8) {
    RECORDER.with(|stream| {
        let mut event = Event::new(0);
        let kind = fill(&mut event, &mut stream.last);
        event.bytes[0] = kind;
        stream.write(event.bytes.get(..event.len).unwrap_or_default());
    });
}

/// Runs `resize`, which changes a block's size and gives the new address or null, and writes it down.
#[cold]
pub(super) fn resized(old: *const c_void, size: usize, resize: impl FnOnce() -> *mut c_void) -> *mut c_void {
    let mut errno_after = None;
    let block = RECORDER.with(|stream| {
        let block = resize();
        if block.is_null() {
            errno_after = Some(libc::ENOMEM);
            return block;
        }
        let mut event = Event::new(3);
        event.block(&mut stream.last, old);
        event.number(size as u64);
        event.block(&mut stream.last, block);
        stream.write(event.bytes.get(..event.len).unwrap_or_default());
        block
    });
    errno_after.into_iter().for_each(super::set_errno);
    block
}

extern "C" fn before_fork() {
    RECORDER.lock();
}

extern "C" fn after_fork_in_parent() {
    RECORDER.unlock();
}

/// The child writes a file of its own; what it has of the parent's heap it does not know.
extern "C" fn after_fork_in_child() {
    // SAFETY: the child has one thread, which holds the lock.
    let stream = unsafe { &mut *RECORDER.stream.get() };
    stream.unmap();
    if is_on() {
        // SAFETY: the descriptor is the child's copy of the parent's.
        unsafe { libc::close(stream.fd) };
        stream.open();
    }
    RECORDER.unlock();
}

/// Begins, if the environment says so: when the loader has prepared the library, and before the program's own code runs.
extern "C" fn begin() {
    // SAFETY: the name ends with 0, and no other thread is there yet that could change the environment.
    let folder = unsafe { libc::getenv(c"KMEM_RECORD".as_ptr()) };
    if folder.is_null() {
        return;
    }
    RECORDER.with(|stream| {
        stream.folder = folder;
        stream.open();
        RECORDS.store(stream.fd >= 0, Ordering::Relaxed);
    });
    // The allocator, which is made now at the latest, has to hear of a fork after the recorder has stopped: who waits for the
    // recorder is never inside of the allocator, but not the reverse.
    // The compiler knows what `malloc` and `free` mean, and would leave out a pair that nobody sees.
    let first = core::hint::black_box(super::malloc(1));
    // SAFETY: the block is nobody else's.
    unsafe { super::free(first) };
    // SAFETY: all three are functions without arguments, and are there for as long as the process is.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
