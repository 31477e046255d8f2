//! Forks: the child gets memory of its own.
//!
//! Private memory is copied by the host, page by page as it is written. A memory file is not: parent and child would both
//! go on with the same one. So whoever forks
//!
//! ```text
//! before     stops all threads at the door of the allocator, and copies the frames that are in use to a new file
//! parent     closes the new file; all go on
//! child      maps the new file where the old one was, shows the areas again, and goes on alone
//! ```
//!
//! The copy is taken while the other threads of the parent run: what they write outside of the allocator during it, the child
//! may have or not, as if it had been written a moment later. What the forking thread has written it has. It costs about
//! 2 us a page, and twice the memory for as long as both live; that is why [`KmemAlloc`](super::KmemAlloc) keeps only large
//! blocks in such memory. A child without a copy, because the host had no memory for it, loses what was in those blocks, and
//! a touch of them is a fault: nothing of it reaches the parent.
//!
//! `vfork` and `posix_spawn` need none of this: their child uses the parent's memory until it executes a program. A child that is
//! made past the C library, by the system call itself, is not seen here, and must do no more than that either.

use super::sys::{self, MemoryFile};
use super::{Inner, cpus};
use crate::addr::Pfn;
use crate::page::FrameKind;
use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use core::ptr;

/// How many allocators of areas may live at once.
pub(super) const MOST_ALLOCATORS: usize = 64;

/// An allocator whose memory is a file, and its copy while somebody forks.
struct Watched {
    inner: AtomicPtr<Inner>,
    /// The descriptor of the copy plus one; 0 if there is none.
    copy: AtomicU32,
}

static WATCHED: [Watched; MOST_ALLOCATORS] =
    [const { Watched { inner: AtomicPtr::new(ptr::null_mut()), copy: AtomicU32::new(0) } }; MOST_ALLOCATORS];

/// Allocators whose fast paths threads take without entering: they live as long as the process.
static FRONTS: [AtomicPtr<Inner>; MOST_ALLOCATORS] = [const { AtomicPtr::new(ptr::null_mut()) }; MOST_ALLOCATORS];

/// Whether the C library calls us around forks.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Has the process' forks watched. Once is enough, and it may allocate: so it is called when that is possible.
pub(super) fn register() {
    if !REGISTERED.swap(true, Ordering::AcqRel) && !sys::around_fork(before, in_parent, in_child) {
        sys::die(b"kmem: no memory to watch forks\n");
    }
}

/// Copies this allocator's memory at each fork from now on; `false` if too many are watched.
pub(super) fn watch(inner: &Inner) -> bool {
    register();
    let address = ptr::from_ref(inner).cast_mut();
    let free = |watched: &&Watched| {
        watched.inner.compare_exchange(ptr::null_mut(), address, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    WATCHED.iter().find(free).is_some()
}

/// Stops this allocator's fast paths at each fork from now on; `false` if there are too many such. It lives as long as the
/// process.
pub(super) fn watch_front(inner: &Inner) -> bool {
    register();
    let address = ptr::from_ref(inner).cast_mut();
    let take = |place: &&AtomicPtr<Inner>| {
        place.compare_exchange(ptr::null_mut(), address, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    FRONTS.iter().find(take).is_some()
}

fn fronts() -> impl Iterator<Item = &'static Inner> + Clone {
    FRONTS.iter().filter_map(sys::placed)
}

/// Copies it no longer.
pub(super) fn forget(inner: &Inner) {
    let address = ptr::from_ref(inner).cast_mut();
    let own = |watched: &&Watched| watched.inner.load(Ordering::Acquire) == address;
    if let Some(watched) = WATCHED.iter().find(own) {
        watched.inner.store(ptr::null_mut(), Ordering::Release);
    }
}

impl Watched {
    fn inner(&self) -> Option<&Inner> {
        sys::watched(&self.inner)
    }

    /// The copy that was made, if there is one.
    fn take_copy(&self, inner: &Inner) -> Option<MemoryFile> {
        let fd = self.copy.swap(0, Ordering::AcqRel).checked_sub(1)?;
        Some(MemoryFile::from_raw(i32::try_from(fd).ok()?, inner.kmem.platform().direct().len()))
    }
}

extern "C" fn before() {
    let inside = cpus::enter();
    cpus::stop(&inside);
    cpus::close(&inside, fronts());
    // It stays inside until the fork is done.
    core::mem::forget(inside);
    for watched in &WATCHED {
        let copy = watched.inner().filter(|inner| !inner.is_dead()).and_then(|inner| {
            // Nobody has what is kept: it is not worth a copy.
            if inner.free_kept() {
                inner.kmem.vm_unmap_aliases();
            }
            copy_of(inner)
        });
        let number = copy.map_or(0, |copy| copy.into_raw().unsigned_abs() + 1);
        watched.copy.store(number, Ordering::Release);
    }
}

/// A file with all frames that are in use.
fn copy_of(inner: &Inner) -> Option<MemoryFile> {
    let direct = inner.kmem.platform().direct();
    let copy = MemoryFile::new(direct.len())?;
    let frames = inner.kmem.meminfo().managed as u32;
    let mut at = 0;
    while at < frames {
        let run = (at..frames).take_while(|&frame| is_in_use(inner, frame)).count() as u32;
        let (offset, len) = ((at as usize) << crate::PAGE_SHIFT, (run as usize) << crate::PAGE_SHIFT);
        if !copy.copy_from(direct.start() + offset, len, offset) {
            return None;
        }
        at += run.max(1);
    }
    Some(copy)
}

fn is_in_use(inner: &Inner, frame: u32) -> bool {
    let kind = inner.kmem.frame_kind(Pfn::new(frame));
    !matches!(kind, FrameKind::Free | FrameKind::Pcp | FrameKind::Guard | FrameKind::Absent)
}

extern "C" fn in_parent() {
    for watched in &WATCHED {
        drop(watched.inner().and_then(|inner| watched.take_copy(inner)));
    }
    go_on(|_| ());
}

extern "C" fn in_child() {
    for watched in &WATCHED {
        let Some(inner) = watched.inner() else { continue };
        let platform = inner.kmem.platform();
        let copy = watched.take_copy(inner);
        if !copy.is_some_and(|copy| platform.adopt(&copy)) {
            platform.disown();
            inner.dead.store(true, Ordering::Relaxed);
        }
    }
    go_on(cpus::forget_others);
}

/// Leaves what `before` has entered, and lets everybody go on.
fn go_on(also: impl FnOnce(&cpus::Inside)) {
    let here = cpus::enter();
    also(&here);
    cpus::open(fronts());
    cpus::start();
    here.leave_twice();
}
