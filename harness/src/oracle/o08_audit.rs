//! O8: does the subject's own recount find everything in order?
//!
//! Contract: I7 to I12, I16, I17 and I21, whatever `audit` recounts, of a tight subject or of a loose one that has an audit. The subject names the invariant
//! that is broken; this oracle only passes it on. Exact as far as that recount is, which the planted bugs test.

use super::{Context, Oracle, OracleId, Violation};

/// See the module.
pub(super) struct Audit;

impl Oracle for Audit {
    fn id(&self) -> OracleId {
        OracleId::O8Audit
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let objection = match cx.subject.white_box() {
            Some(inside) => inside.audit().err().map(|broken| broken.to_string()),
            None => cx.subject.recount(),
        };
        objection.map_or(Ok(()), |message| Err(cx.violation(OracleId::O8Audit, &[], message)))
    }

    fn at_end(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        self.audit(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context};
    use kmem::{Invariant, Violation as Broken};

    #[test]
    fn a_broken_invariant_is_passed_on_by_name() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        assert_eq!(Audit.audit(&mut context(&mut model, &mut subject)), Ok(()));
        let invariant = Invariant::I9Coalesced;
        subject.broken = Some(Broken { invariant, what: "two free buddies", at: 4, expected: 0, found: 1 });
        let wrong = Audit.at_end(&mut context(&mut model, &mut subject)).unwrap_err();
        assert!(wrong.message.contains("I9"), "{}", wrong.message);
    }
}
