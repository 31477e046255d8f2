//! Linux's `lib/test_vmalloc.c` on a machine where every oracle looks at every call.

use kmem::{Geometry, PageCount};
use kmem_harness::run::{RunOptions, Runner};
use kmem_harness::suites::test_vmalloc::{Case, Passed, Plan, run};

/// 32 MiB and a window of 64 MiB, so that large alignments are refused.
fn machine(cpus: u16) -> Geometry {
    let mut geometry = Geometry::flat(8192);
    (geometry.cpus, geometry.vmalloc_pages) = (cpus, PageCount::new(1 << 14));
    geometry
}

fn judged(case: Case, plan: &Plan) -> Passed {
    let mut passed = None;
    for cpus in [1, 4] {
        let (report, answer) =
            Runner::new().run_program(&machine(cpus), &RunOptions::default(), |kernel| run(case, kernel, plan));
        assert_eq!(report.violation, None, "{} on {cpus} CPUs", case.name());
        passed = Some(answer.unwrap().unwrap_or_else(|stop| panic!("{} on {cpus} CPUs: {stop:?}", case.name())));
    }
    passed.unwrap()
}

macro_rules! cases {
    ($($name:ident: $case:ident;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(Case::$case.name(), stringify!($name));
            assert_eq!(judged(Case::$case, &Plan::judged()), Passed::Plainly);
        }
    )*};
}

cases! {
    fix_size_alloc_test: FixSizeAlloc;
    full_fit_alloc_test: FullFitAlloc;
    long_busy_list_alloc_test: LongBusyListAlloc;
    random_size_alloc_test: RandomSizeAlloc;
    fix_align_alloc_test: FixAlignAlloc;
    random_size_align_alloc_test: RandomSizeAlignAlloc;
    pcpu_alloc_test: PcpuAlloc;
    kvfree_rcu_1_arg_vmalloc_test: KvfreeRcu1ArgVmalloc;
    kvfree_rcu_2_arg_vmalloc_test: KvfreeRcu2ArgVmalloc;
    vm_map_ram_test: VmMapRam;
    no_block_alloc_test: NoBlockAlloc;
    vrealloc_test: VreallocTest;
}

/// Alignments up to the window's size are kept; the next one finds no place, which Linux expects (`xfail`).
#[test]
fn align_shift_alloc_test() {
    let passed = judged(Case::AlignShiftAlloc, &Plan::judged());
    assert!(matches!(passed, Passed::WithRefusal(granted) if granted > 20), "{passed:?}");
}

/// More pages than a mapping from a block has: each loop is an area of its own.
#[test]
fn vm_map_ram_test_with_many_pages() {
    for nr_pages in [3, 64, 65] {
        let plan = Plan { nr_pages, ..Plan::judged() };
        assert_eq!(judged(Case::VmMapRam, &plan), Passed::Plainly, "{nr_pages} pages");
    }
}

#[test]
fn fix_size_alloc_test_with_huge_leaves() {
    let plan = Plan { nr_pages: 600, use_huge: true, loops: 20, ..Plan::judged() };
    assert_eq!(judged(Case::FixSizeAlloc, &plan), Passed::Plainly);
}
