//! A whole program on `KmemAlloc`: this one, its test harness and threads included.
#![cfg(all(feature = "std", target_os = "linux", target_pointer_width = "64"))]

use kmem::hosted::KmemAlloc;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;

#[global_allocator]
static ALLOCATOR: KmemAlloc = KmemAlloc::new();

const MIB: usize = 1 << 20;

fn is_ours(block: *const u8) -> bool {
    ALLOCATOR.usable_size(block.cast_mut()).is_ok()
}

static BEFORE_MAIN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn before_main() {
    let text: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    BEFORE_MAIN.store(text.join(",").len(), Relaxed);
    // SAFETY: the function takes no arguments and does not unwind.
    unsafe { libc::atexit(after_main) };
}

extern "C" fn after_main() {
    let mut map: BTreeMap<usize, Vec<u8>> = (0..1000).map(|n| (n, vec![n as u8; n])).collect();
    map.retain(|n, _| n % 7 == 0);
    let large = vec![1_u8; 6 * MIB];
    let sum: usize = map.values().map(Vec::len).sum();
    if sum != 7 * (142 * 143) / 2 || large.iter().any(|&byte| byte != 1) || !is_ours(large.as_ptr()) {
        // SAFETY: the call does not return.
        unsafe { libc::abort() };
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = before_main;

#[test]
fn it_is_used_before_main_and_by_all_of_this_program() {
    assert_eq!(BEFORE_MAIN.load(Relaxed), 289);
    let small = Box::new(5_u64);
    assert!(is_ours((&raw const *small).cast()));
    let large = vec![7_u8; 20 * MIB];
    assert!(is_ours(large.as_ptr()) && large.iter().all(|&byte| byte == 7));
    assert!(!is_ours((&raw const BEFORE_MAIN).cast()));
}

#[test]
fn zeroed_and_aligned_blocks_of_every_size() {
    for size in [1, 7, 8, 24, 100, 4096, 5000, 65_537, MIB, 5 * MIB] {
        for align in [1, 16, 64, 4096, 1 << 16, 1 << 23] {
            let layout = Layout::from_size_align(size, align).unwrap();
            for _ in 0..3 {
                // SAFETY: the layout's size is not 0.
                let block = unsafe { ALLOCATOR.alloc_zeroed(layout) };
                assert!(!block.is_null() && (block as usize).is_multiple_of(align), "{layout:?}");
                // SAFETY: the block has so many bytes, which are this test's.
                let bytes = unsafe { std::slice::from_raw_parts_mut(block, size) };
                assert!(bytes.iter().all(|&byte| byte == 0), "{layout:?}");
                bytes.fill(0xa5);
                // SAFETY: the block is live and has this layout.
                unsafe { ALLOCATOR.dealloc(block, layout) };
            }
        }
    }
    assert_eq!(ALLOCATOR.allocate(1, 3, false), None);
    assert_eq!(ALLOCATOR.allocate(usize::MAX, 16, false), None);
    assert_eq!(ALLOCATOR.allocate(1 << 50, 16, false), None);
}

#[test]
fn a_block_keeps_its_contents_through_every_size() {
    let sizes = [1, 16, 100, 8192, 8193, 60_000, 900_000, MIB, 3 * MIB, 40 * MIB, 9 * MIB, 300_000, 200_000, 5000, 3];
    let mut block = ALLOCATOR.allocate(1, 1, false).unwrap();
    let mut had = 1;
    // SAFETY: the block has a byte.
    unsafe { block.write(0) };
    for size in sizes {
        block = ALLOCATOR.resize(block, size, 1).unwrap();
        // SAFETY: the block has so many bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), size) };
        let kept = had.min(size);
        assert!((0..kept).all(|at| bytes[at] == (at / 7) as u8), "from {had} to {size}");
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7) as u8);
        had = size;
    }
    ALLOCATOR.release(block.as_ptr()).unwrap();
    assert!(ALLOCATOR.release(block.as_ptr()).is_err(), "a second free is named");
}

#[test]
fn wrong_frees_are_errors() {
    let block = ALLOCATOR.allocate(100, 16, false).unwrap();
    let inside = NonNull::new(block.as_ptr().wrapping_add(8)).unwrap();
    assert!(ALLOCATOR.release(inside.as_ptr()).is_err());
    assert_eq!(ALLOCATOR.resize(inside, 10, 1), None);
    let area = ALLOCATOR.allocate(20 * MIB, 16, false).unwrap();
    assert!(ALLOCATOR.release(area.as_ptr().wrapping_add(4096)).is_err());
    assert!(ALLOCATOR.release((&raw const BEFORE_MAIN).cast_mut().cast()).is_err());
    ALLOCATOR.release(area.as_ptr()).unwrap();
    assert!(ALLOCATOR.release(area.as_ptr()).is_err());
    ALLOCATOR.release(block.as_ptr()).unwrap();
}

#[test]
fn a_freed_area_is_given_to_the_next_request_that_it_fits() {
    // An allocator of its own: others use the program's.
    static OWN: KmemAlloc = KmemAlloc::new();
    let fill = |block: NonNull<u8>, byte| {
        // SAFETY: the block has at least so many bytes, and is this test's.
        unsafe { block.write_bytes(byte, 7 * MIB) };
    };
    let first = OWN.allocate(7 * MIB + 5, 16, false).unwrap();
    fill(first, 7);
    let shows = OWN.host_counts().shows;
    OWN.release(first.as_ptr()).unwrap();
    assert!(OWN.host_counts().kept_bytes >= 7 * MIB);
    assert!(OWN.release(first.as_ptr()).is_err() && OWN.usable_size(first.as_ptr()).is_err(), "it is nobody's");
    assert!(OWN.release(first.as_ptr().wrapping_add(4096)).is_err());
    assert_eq!(OWN.resize(first, 8 * MIB, 1), None);
    let again = OWN.allocate(7 * MIB, 16, true).unwrap();
    assert_eq!(again, first);
    // SAFETY: the block has so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(again.as_ptr(), 7 * MIB) };
    assert!(bytes.iter().all(|&byte| byte == 0), "nothing of what was there");
    assert_eq!((OWN.host_counts().shows, OWN.host_counts().reused), (shows, 1));
    let other = OWN.allocate(7 * MIB, 16, false).unwrap();
    assert_ne!(other, again);
    [again, other].into_iter().for_each(|block| OWN.release(block.as_ptr()).unwrap());
    assert!(OWN.trim() > 0);
    assert_eq!(OWN.host_counts().kept_bytes, 0);
}

/// Allocates while the thread's values are dropped.
struct Late(RefCell<Vec<Vec<u8>>>);

impl Drop for Late {
    fn drop(&mut self) {
        let mut more: Vec<Vec<u8>> = (0..200).map(|n| vec![n as u8; n * 50]).collect();
        more.append(&mut self.0.borrow_mut());
        assert!(more.iter().all(|bytes| bytes.iter().all(|byte| *byte == bytes[0])));
    }
}

thread_local! {
    static LATE: Late = const { Late(RefCell::new(Vec::new())) };
}

#[test]
fn many_more_threads_than_numbers_and_their_ends() {
    for _ in 0..3 {
        let (give, take) = mpsc::channel::<Vec<u8>>();
        let take = Mutex::new(take);
        std::thread::scope(|scope| {
            for thread in 0..150_usize {
                let (give, take) = (give.clone(), &take);
                scope.spawn(move || {
                    LATE.with(|late| late.0.borrow_mut().push(vec![3; 700]));
                    for round in 0..40_usize {
                        give.send(vec![(thread + round) as u8; 16 << (round % 12)]).unwrap();
                        // Others' blocks are freed here.
                        let block = take.lock().unwrap().recv().unwrap();
                        assert!(block.iter().all(|byte| *byte == block[0]));
                    }
                });
            }
        });
    }
}

/// Forks; the child runs `child` and ends with whether it was content.
fn fork(child: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child does nothing that another thread's state would matter for, and ends at once.
    match unsafe { libc::fork() } {
        0 => {
            let content = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
            // SAFETY: the call does not return.
            unsafe { libc::_exit(i32::from(!content)) }
        }
        child => child,
    }
}

fn is_content(child: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: the status is a variable of this function.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let mut ends = [0; 2];
    // SAFETY: the host writes two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the descriptor is new and this value's own.
    let read = unsafe { std::fs::File::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write = unsafe { std::fs::File::from_raw_fd(ends[1]) };
    (read, write)
}

#[test]
fn a_forks_child_has_memory_of_its_own_and_so_has_its_child() {
    let small: Vec<Box<[u64; 20]>> = (0..1000).map(|n| Box::new([n; 20])).collect();
    let mut areas: Vec<Vec<u8>> = (1..5_u8).map(|n| vec![n; 5 * MIB + usize::from(n)]).collect();
    let freed = vec![9_u8; 7 * MIB];
    drop(freed);
    let (mut wait, mut go) = pipe();
    let intact = move |areas: &[Vec<u8>]| {
        let areas = areas.iter().zip(1_u8..).all(|(area, n)| area.iter().all(|&byte| byte == n));
        areas && small.iter().zip(0..).all(|(words, n)| words.iter().all(|&word| word == n))
    };
    let child = fork(|| {
        // By then the parent has written all over its own.
        let mut byte = [0];
        wait.read_exact(&mut byte).unwrap();
        let before = intact(&areas);
        areas.iter_mut().for_each(|area| area.fill(0x55));
        areas[0].resize(30 * MIB, 0x55);
        areas.push(vec![0x55; 6 * MIB]);
        let grandchild = fork(|| areas.iter().all(|area| area.iter().all(|&byte| byte == 0x55)));
        let thread = std::thread::spawn(|| vec![1_u8; 5 * MIB].len() + vec![2_u8; 50].len());
        let all = areas.iter().all(|area| area.iter().all(|&byte| byte == 0x55));
        before && all && thread.join().unwrap() == 5 * MIB + 50 && is_content(grandchild)
    });
    areas.iter_mut().for_each(|area| area.fill(0xaa));
    areas[1].resize(20 * MIB, 0xaa);
    go.write_all(&[1]).unwrap();
    assert!(is_content(child));
    assert!(areas.iter().all(|area| area.iter().all(|&byte| byte == 0xaa)), "the child wrote its own only");
}

#[test]
fn forks_while_other_threads_allocate() {
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3_usize {
            let stop = &stop;
            scope.spawn(move || {
                let mut kept: Vec<Vec<u8>> = Vec::new();
                let mut round = thread;
                while stop.load(Relaxed) == 0 {
                    kept.push(vec![round as u8; 24 << (round % 14)]);
                    round += 1;
                    if kept.len() > 60 {
                        kept.drain(..40);
                    }
                }
            });
        }
        for _ in 0..25 {
            let child = fork(|| {
                let blocks: Vec<Vec<u8>> = (0..500).map(|n| vec![n as u8; n * 9]).collect();
                let area = vec![4_u8; 5 * MIB];
                blocks.iter().zip(0..).all(|(block, n)| block.iter().all(|&byte| byte == n as u8)) && area[MIB] == 4
            });
            assert!(is_content(child));
        }
        stop.store(1, Relaxed);
    });
}

#[test]
fn memory_goes_back_by_itself_and_is_zero_where_promised_when_it_comes_again() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    for round in 0..20_u8 {
        let mut blocks: Vec<Vec<u8>> = (0..8).map(|n| vec![round + n; 3 * MIB]).collect();
        blocks.push(vec![1; 30 * MIB]);
        let zeros = vec![0_u8; 3 * MIB];
        assert!(zeros.iter().all(|&byte| byte == 0));
    }
    ALLOCATOR.trim();
    // Other tests run beside this one.
    assert!(resident() < before + 200 * MIB, "{} -> {}", before, resident());
}
