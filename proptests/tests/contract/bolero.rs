//! bolero: the same contract, from bolero's generators.
//!
//! bolero's own test engine draws its seeds from the operating system, so under `cargo test` the generator runs behind our
//! engine with a fixed seed. `cargo bolero test` sets `cfg(fuzzing)` and gets bolero's harness.

#[cfg(fuzzing)]
#[test]
fn traces() {
    use kmem_harness::engines::bolero::Traces;
    use kmem_harness::generate::Target;
    use kmem_harness::trace::Swarm;
    use kmem_proptests::{OPS, judge};

    bolero::check!().with_generator(Traces::new(Swarm::ALL, OPS)).with_max_len(64 + OPS * 40).for_each(|trace| {
        if let Err(message) = judge(Target::Trace, trace) {
            panic!("{message}");
        }
    });
}

#[cfg(not(fuzzing))]
#[test]
fn traces_of_a_fixed_seed_keep_the_contract() {
    use kmem_harness::engines::{Budget, Engine, Job, Live, bolero::Bolero};
    use kmem_harness::generate::Target;
    use kmem_proptests::{OPS, judge};

    for target in Target::ALL {
        let job = Job {
            subject: kmem_harness::subjects::SubjectKind::KMEM,
            target,
            seed: 20_261_122,
            budget: Budget::cases(200),
            seeds: &[],
            max_ops: OPS,
        };
        let outcome = Bolero.run(&job, &Live::default()).unwrap();
        if let Some(finding) = outcome.finding {
            panic!("{}", judge(target, &finding.trace).unwrap_err());
        }
        assert_eq!(outcome.executions, 200);
    }
}
