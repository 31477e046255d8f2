//! Cases of Linux's `mm/kasan/kasan_test_c.c` for these allocators, under their own names: each wrong access makes one report.
//!
//! KASAN checks every load and store. Here the model judges what a program is about to access ([`judge_access`]), and the
//! allocator judges what is given back to it. What cannot be shown:
//!
//! | cases | reason |
//! |---|---|
//! | `global`, `stack`, `alloca` | not about an allocator |
//! | tags (`match_all_*`, `vmap_tags`, `vm_map_ram_tags`, `vmalloc_helpers_tags`) | addresses carry no tags |
//! | `kmalloc_track_caller_oob_right` | one call with `kmalloc_oob_right`: its place is what debug caches record |
//! | `mempool_*` | there is no mempool |
//! | `rcu_uaf`, `workqueue_uaf`, `kmem_cache_rcu_*` | with the frees that wait for readers |
//! | atomics, bit operations, `strings`, `copy_user` | loads and stores like the others |

use kmem::{CacheId, FreeError, Geometry, GfpFlags, PageDebug, PoisonDamage, VirtAddr, Warning};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::model::Model;
use kmem_harness::model::caches::CacheSpec;
use kmem_harness::oracle::{Step, judge_access};
use kmem_harness::subject::{Call, Reply, Strength, Subject};
use kmem_harness::subjects::{KmemSubject, Spare};

const KERNEL: GfpFlags = GfpFlags::KERNEL;
/// The granule of generic KASAN.
const G: usize = 8;

/// A machine and what the model knows about it.
struct Kasan {
    subject: KmemSubject,
    model: Model,
}

impl Kasan {
    fn new() -> Self {
        Self::checking(PageDebug::empty())
    }

    fn checking(page_debug: PageDebug) -> Self {
        let mut geometry = Geometry::flat(4096);
        geometry.page_debug = page_debug;
        let subject = KmemSubject::new(&geometry, Spare::default(), TlbFlushes::Obeyed).unwrap();
        Self { model: Model::new(&geometry, Strength::Tight), subject }
    }

    fn call(&mut self, call: Call) -> Reply {
        self.subject.begin_step();
        let reply = self.subject.call(&call);
        let step = Step { op: 0, call, reply: reply.clone(), fault_struck: false };
        self.model.update(&step, &self.subject);
        reply
    }

    fn block(&mut self, call: Call) -> u64 {
        match self.call(call) {
            Reply::Block { addr, .. } => addr,
            other => panic!("{other:?}"),
        }
    }

    fn kmalloc(&mut self, size: usize) -> u64 {
        self.block(Call::Kmalloc { size, gfp: KERNEL })
    }

    fn krealloc(&mut self, addr: u64, size: usize) -> u64 {
        self.block(Call::Krealloc { addr, size, gfp: KERNEL })
    }

    fn kfree(&mut self, addr: u64) -> Reply {
        self.call(Call::Kfree { addr })
    }

    /// What the last call warned of.
    fn warnings(&self) -> &[Warning] {
        self.subject.white_box().unwrap().warnings()
    }

    /// The access is reported.
    fn reports(&self, addr: u64, len: usize) {
        assert!(judge_access(&self.model, addr, len).is_err(), "{len} bytes at {addr:#x}");
    }

    /// The access is a program's right.
    fn allows(&mut self, addr: u64, len: usize) {
        assert_eq!(judge_access(&self.model, addr, len), Ok(()), "{len} bytes at {addr:#x}");
        self.subject.write(addr, &vec![0x5c; len]).unwrap();
    }

    /// One report for each of these bytes, none for the byte before the first.
    fn oob_right(&mut self, addr: u64, size: usize, beyond: &[usize]) {
        self.allows(addr, size);
        beyond.iter().for_each(|&at| self.reports(addr + (size + at) as u64, 1));
        assert_eq!(self.subject.kmem().audit(), Ok(()));
    }
}

#[test]
fn kmalloc_oob_right() {
    let mut k = Kasan::new();
    let size = 128 - G - 5;
    let addr = k.kmalloc(size);
    k.oob_right(addr, size, &[0, 5, G + 5]);
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn kmalloc_oob_left() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(15);
    k.reports(addr - 1, 1);
}

#[test]
fn kmalloc_node_oob_right_and_big_and_large() {
    let mut k = Kasan::new();
    for size in [4096, 8192 - 256, 8192 + 10] {
        let addr = k.kmalloc(size);
        k.oob_right(addr, size, &[0]);
    }
}

#[test]
fn kmalloc_large_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8192 + 10);
    k.kfree(addr);
    k.reports(addr, 1);
}

#[test]
fn kmalloc_large_invalid_free() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8192 + 10);
    let (inside, start) = (VirtAddr::new(addr + 1), VirtAddr::new(addr));
    assert_eq!(k.kfree(addr + 1), Reply::Rejected(FreeError::Interior { addr: inside, start }));
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn kmalloc_double_kzfree() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(16);
    assert_eq!(k.call(Call::KfreeSensitive { addr }), Reply::Done);
    assert_eq!(k.call(Call::KfreeSensitive { addr }), Reply::Rejected(FreeError::DoubleFree(VirtAddr::new(addr))));
}

#[test]
fn kfree_via_phys() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(8);
    let kmem = k.subject.kmem();
    let frame = kmem.virt_to_pfn(VirtAddr::new(addr)).unwrap();
    let back = kmem.page_address(frame).as_u64() + addr % 4096;
    assert_eq!(back, addr);
    assert_eq!(k.kfree(back), Reply::Done);
}

#[test]
fn page_alloc_oob_right() {
    let mut k = Kasan::new();
    let size = 4096 << 4;
    let addr = k.block(Call::AllocPages { order: 4, gfp: KERNEL });
    k.oob_right(addr, size, &[0]);
    k.reports(addr + size as u64 - 1, 2);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
}

/// Where pages are poisoned, the next owner hears of the write too: the byte and its frame, once.
#[test]
fn page_alloc_uaf() {
    let mut k = Kasan::checking(PageDebug::POISON);
    let pages = Call::AllocPages { order: 4, gfp: KERNEL };
    let addr = k.block(pages.clone());
    k.allows(addr, 4096 << 4);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
    k.reports(addr, 1);
    k.subject.write(addr + 4096 + 100, &[0x78]).unwrap();
    assert_eq!(k.block(pages.clone()), addr);
    let frame = k.subject.kmem().virt_to_pfn(VirtAddr::new(addr + 4096)).unwrap();
    let damage = PoisonDamage::Corruption { first: 100, last: 100 };
    assert_eq!(k.warnings(), [Warning::PoisonDamaged { frame, damage }]);
    assert_eq!(k.call(Call::FreePages { addr, order: 4 }), Reply::Done);
    assert_eq!(k.block(pages), addr);
    assert_eq!(k.warnings(), [], "what is poisoned anew is not damaged");
}

/// Grown or shrunk, the bytes beyond the new size are not the program's.
fn resized(old: usize, new: usize) {
    let mut k = Kasan::new();
    let addr = k.kmalloc(old);
    let addr = k.krealloc(addr, new);
    k.allows(addr + new as u64 - 1, 1);
    k.oob_right(addr, new, &[0, G]);
    if new < old {
        k.reports(addr + old as u64 - 1, 1);
    }
    assert_eq!(k.kfree(addr), Reply::Done);
}

#[test]
fn krealloc_more_oob() {
    resized(201, 235);
}

#[test]
fn krealloc_less_oob() {
    resized(235, 201);
}

#[test]
fn krealloc_large_more_oob() {
    resized(8192 + 201, 8192 + 235);
}

#[test]
fn krealloc_large_less_oob() {
    resized(8192 + 235, 8192 + 201);
}

#[test]
fn krealloc_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(201);
    k.kfree(addr);
    let answer = k.call(Call::Krealloc { addr, size: 235, gfp: KERNEL });
    assert_eq!(answer, Reply::Refused(kmem::AllocError::BadAddress(VirtAddr::new(addr))));
    k.reports(addr, 1);
}

#[test]
fn kmalloc_oob_16_and_memset() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(16 - 3);
    k.reports(addr, 16);
    let size = 128 - G;
    let addr = k.kmalloc(size);
    for len in [2, 4, 8, 16] {
        k.allows(addr + (size - len) as u64, len);
        k.reports(addr + (size + 1 - len) as u64, len);
    }
    k.reports(addr, size + G);
}

#[test]
fn kmalloc_memmove_sizes() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(64);
    k.reports(addr + 4, (-2isize) as usize);
    k.reports(addr + 4, 64);
    k.allows(addr + 4, 60);
}

#[test]
fn kmalloc_uaf_cases() {
    let mut k = Kasan::new();
    for (size, at, len) in [(10, 8, 1), (33, 0, 33), (43, 40, 1), (100, 50, 1)] {
        let addr = k.kmalloc(size);
        k.kfree(addr);
        k.reports(addr + at, len);
    }
}

#[test]
fn kmalloc_uaf2() {
    let mut k = Kasan::new();
    let first = k.kmalloc(43);
    let second = k.kmalloc(43);
    k.kfree(first);
    k.reports(first + 40, 1);
    assert_ne!(first, second, "a live block is not given again");
    k.allows(second + 40, 1);
}

#[test]
fn ksize_unpoisons() {
    let mut k = Kasan::new();
    let size = 128 - G - 5;
    let addr = k.kmalloc(size);
    let Reply::Size(real) = k.call(Call::Ksize { addr }) else { panic!("a live block has a size") };
    assert!(real > size);
    k.reports(addr + size as u64, 1);
    k.reports(addr + real as u64 - 1, 1);
}

#[test]
fn ksize_uaf() {
    let mut k = Kasan::new();
    let addr = k.kmalloc(128 - G);
    k.kfree(addr);
    assert!(matches!(k.call(Call::Ksize { addr }), Reply::Rejected(FreeError::DoubleFree(_))));
    k.reports(addr, 1);
}

fn cache(k: &mut Kasan, size: usize) -> CacheId {
    match k.call(Call::CacheCreate { spec: CacheSpec::own(size, 0, false, false) }) {
        Reply::Cache(id) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kmem_cache_oob_and_double_free_and_invalid_free() {
    let mut k = Kasan::new();
    let id = cache(&mut k, 200);
    let addr = k.block(Call::CacheAlloc { cache: id, gfp: KERNEL });
    k.oob_right(addr, 200, &[0, 4]);
    let (inside, start) = (VirtAddr::new(addr + 1), VirtAddr::new(addr));
    let invalid = k.call(Call::CacheFree { cache: id, addr: addr + 1 });
    assert_eq!(invalid, Reply::Rejected(FreeError::Interior { addr: inside, start }));
    assert_eq!(k.call(Call::CacheFree { cache: id, addr }), Reply::Done);
    assert_eq!(k.call(Call::CacheFree { cache: id, addr }), Reply::Rejected(FreeError::DoubleFree(start)));
}

#[test]
fn kmem_cache_double_destroy() {
    let mut k = Kasan::new();
    let id = cache(&mut k, 200);
    assert!(k.subject.kmem().kmem_cache_destroy(id).is_ok());
    assert!(k.subject.kmem().kmem_cache_destroy(id).is_err());
}

#[test]
fn kmem_cache_bulk() {
    let mut k = Kasan::new();
    let id = cache(&mut k, 200);
    let objects: Vec<u64> = (0..10).map(|_| k.block(Call::CacheAlloc { cache: id, gfp: KERNEL })).collect();
    for &addr in &objects {
        k.allows(addr, 200);
        k.reports(addr, 201);
    }
    for addr in objects {
        assert_eq!(k.call(Call::CacheFree { cache: id, addr }), Reply::Done);
    }
}

#[test]
fn vmalloc_oob() {
    let mut k = Kasan::new();
    let size = 2048 - G - 5;
    let addr = k.block(Call::Vmalloc { size, gfp: KERNEL });
    k.oob_right(addr, size, &[0, G]);
    let less = size - G - 1;
    assert_eq!(k.block(Call::Vrealloc { addr, size: less, gfp: KERNEL }), addr);
    k.oob_right(addr, less, &[0, G]);
    let more = less + 2 * G + 2;
    assert_eq!(k.block(Call::Vrealloc { addr, size: more, gfp: KERNEL }), addr);
    k.oob_right(addr, more, &[0, G]);
    let frame = k.subject.kmem().vmalloc_to_page(VirtAddr::new(addr)).unwrap();
    let page = k.subject.kmem().page_address(frame).as_u64();
    k.subject.write(page, &[0]).unwrap();
    assert_eq!(k.call(Call::Vfree { addr }), Reply::Done);
    k.reports(addr, 1);
}
