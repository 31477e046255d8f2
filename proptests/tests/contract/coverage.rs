//! Is everything that the contract names reached, by the corpus and by a few generated traces? What a run of the engines would
//! never reach is never hammered, and nobody would notice from its silence.

use kmem_harness::engines::{Budget, Engine, Job, Live, props::Props};
use kmem_harness::generate::Target;
use kmem_harness::run::ContractCoverage;

/// Generated traces for each target.
const CASES: u64 = 400;

#[test]
fn nothing_of_the_contract_is_never_reached() {
    let mut reached = ContractCoverage::default();
    for folder in ["seeds", "regressions", "recorded"] {
        super::replay::coverage(folder).iter().for_each(|coverage| reached.add(coverage));
    }
    for target in Target::ALL {
        let job = Job {
            subject: kmem_harness::subjects::SubjectKind::KMEM,
            target,
            seed: 20_261_122,
            budget: Budget::cases(CASES),
            seeds: &[],
            max_ops: 256,
        };
        reached.add(&Props.run(&job, &Live::default()).unwrap().coverage);
    }
    assert_eq!(reached.never_reached(), [], "no trace of the corpus reaches it, nor any of {CASES} for each target");
}
