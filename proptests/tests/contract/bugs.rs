//! The planted bugs: each patch reads, applies, and has a witness that passes on the allocator as it is. Whether the
//! witnesses fail with the bugs takes a build for each, which `hammer bugs` does.

use kmem_harness::bugs;
use kmem_harness::engines::Executor;
use kmem_harness::generate::Target;
use kmem_harness::run::RunOptions;
use kmem_harness::subjects::SubjectKind;
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_planted_bug_applies_and_its_witness_passes_without_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut executor = Executor::new(SubjectKind::KMEM, RunOptions::default());
    let (mut controls, mut ids) = (0, BTreeSet::new());
    for bug in bugs::read_dir(&root.join("fuzz/bugs")).unwrap() {
        let bug = bug.unwrap();
        bug.patched(&root).unwrap_or_else(|e| panic!("{}: {e}", bug.name));
        assert!(ids.insert(bug.id().to_owned()), "two patches are called {}", bug.id());
        match &bug.witness {
            Some(witness) => {
                let violation = executor.execute(Target::Trace, witness).violation;
                assert!(violation.is_none(), "the witness of {} fails without it: {violation:?}", bug.name);
            }
            None => controls += 1,
        }
    }
    assert!(ids.len() >= 50 && controls >= 5, "{} patches, {controls} controls: are they there?", ids.len());
}
