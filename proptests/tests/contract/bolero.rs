//! bolero: the same contract, from bolero's generators. `cargo bolero test traces` fuzzes it.

use kmem_harness::engines::bolero::Traces;
use kmem_harness::generate::Target;
use kmem_harness::trace::Swarm;
use kmem_proptests::{OPS, judge};
use std::time::Duration;

/// Without a number of iterations bolero stops after a second, whatever it has done.
const ITERATIONS: usize = 500;

#[test]
fn traces() {
    bolero::check!()
        .with_generator(Traces::new(Swarm::ALL, OPS))
        .with_iterations(ITERATIONS)
        // An operation takes a kind and at most four numbers.
        .with_max_len(64 + OPS * 40)
        .with_shrink_time(Duration::ZERO)
        .for_each(|trace| {
            if let Err(message) = judge(Target::Trace, trace) {
                panic!("{message}");
            }
        });
}
