//! Cases of Linux's `mm/kasan/kasan_test_c.c` for these allocators, under their own names: each wrong access makes one report.
//!
//! KASAN checks every load and store. Here the model judges what a program is about to access ([`judge_access`],
//! [`judge_read`]), and the allocator judges what is given back to it. Linux's groups, line by line:
//!
//! | group | cases | where |
//! |---|---|---|
//! | kmalloc, beyond an object | `kmalloc_oob_right`, `kmalloc_oob_left`, `kmalloc_node_oob_right`, `kmalloc_track_caller_oob_right`, `kmalloc_big_oob_right`, `kmalloc_large_oob_right` | [`kmalloc`] |
//! | kmalloc, wrong frees | `kmalloc_large_uaf`, `kmalloc_large_invalid_free`, `kmalloc_double_kzfree`, `kfree_via_page`, `kfree_via_phys` | [`kmalloc`] |
//! | pages | `page_alloc_oob_right`, `page_alloc_uaf` | [`pages`] |
//! | krealloc | `krealloc_more_oob`, `krealloc_less_oob`, `krealloc_large_more_oob`, `krealloc_large_less_oob`, `krealloc_uaf` | [`realloc`] |
//! | copies | `kmalloc_oob_16`, `kmalloc_uaf_16`, `kmalloc_oob_in_memset`, `kmalloc_oob_memset_2` to `_16`, `kmalloc_memmove_negative_size`, `kmalloc_memmove_invalid_size` | [`kmalloc`] |
//! | use after free | `kmalloc_uaf`, `kmalloc_uaf_memset`, `kmalloc_uaf2`, `kmalloc_uaf3`, `kasan_atomics` | [`kmalloc`] |
//! | ksize | `ksize_unpoisons`, `ksize_uaf` | [`kmalloc`] |
//! | caches | `kmem_cache_oob`, `kmem_cache_double_free`, `kmem_cache_invalid_free`, `kmem_cache_rcu_uaf`, `kmem_cache_rcu_reuse`, `kmem_cache_double_destroy`, `kmem_cache_accounted`, `kmem_cache_bulk` | [`caches`] |
//! | readers and workers | `rcu_uaf`, `workqueue_uaf` | [`caches`] |
//! | vmalloc | `vmalloc_oob`; `vmap_tags` and `vm_map_ram_tags` without their tags | [`pages`] |
//! | `mempool_*` | left out: a mempool is a stock of elements that its user keeps above an allocator, not one of the four tiers | – |
//! | `vmalloc_helpers_tags`, `match_all_*` | left out: addresses carry no tags on x86-64 | – |
//! | `global`, `stack`, `alloca`, bit operations, `strings`, `copy_user` | left out: not about an allocator, or loads and stores like the others | – |

mod caches;
mod kmalloc;
mod pages;
mod realloc;

use kmem::{Geometry, GfpFlags, PageDebug, Warning};
use kmem_harness::machine::TlbFlushes;
use kmem_harness::model::Model;
use kmem_harness::oracle::{Step, judge_access, judge_read};
use kmem_harness::subject::{Call, ObjectsCall, Reply, Strength, Subject};
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
        geometry.cpus = 2;
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

    /// The objects that a call gives.
    fn objects(&mut self, call: ObjectsCall) -> Vec<u64> {
        let reply = self.whole_and_parts(call);
        match reply {
            Reply::Objects(objects) => objects.into_iter().map(|(addr, _)| addr).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// The one object that a call gives.
    fn object(&mut self, call: ObjectsCall) -> u64 {
        self.objects(call)[0]
    }

    fn give_back(&mut self, call: ObjectsCall) {
        assert_eq!(self.whole_and_parts(call), Reply::Done);
    }

    /// The model follows the single calls for which the call stood.
    fn whole_and_parts(&mut self, call: ObjectsCall) -> Reply {
        let reply = self.call(Call::Objects(call.clone()));
        for (call, reply) in call.parts(&reply) {
            self.model.update(&Step { op: 0, call, reply, fault_struck: false }, &self.subject);
        }
        reply
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

    /// A read is a program's right only as long as a reader may be there.
    fn allows_readers(&mut self, addr: u64, len: usize, allowed: bool) {
        let (_, completed) = self.subject.white_box().unwrap().grace_periods();
        assert_eq!(judge_read(&self.model, completed, addr, len).is_ok(), allowed, "{len} bytes at {addr:#x}");
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
