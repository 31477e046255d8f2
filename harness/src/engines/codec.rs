//! The question of the `codec` target: do both encodings give back the trace that they were given?

use crate::oracle::{OracleId, Violation};
use crate::trace::Trace;

/// Encodes and decodes a trace in both ways.
pub(super) fn check(trace: &Trace) -> Result<(), Violation> {
    let mut expected = trace.clone();
    expected.normalize();
    same(&expected, &Trace::from_bytes(&expected.to_bytes()), "bytes")?;
    match Trace::from_text(&expected.to_text()) {
        Ok(decoded) => same(&expected, &decoded, "text"),
        Err(error) => Err(violation(0, format!("the text of a trace does not parse: {error}"))),
    }
}

fn same(expected: &Trace, decoded: &Trace, encoding: &str) -> Result<(), Violation> {
    let pairs = expected.ops.iter().zip(&decoded.ops).enumerate();
    if let Some((op, (was, is))) = pairs.into_iter().find(|(_, (was, is))| was != is) {
        return Err(violation(op, format!("through {encoding}, {was:?} became {is:?}")));
    }
    if expected != decoded {
        return Err(violation(0, format!("through {encoding}, the trace's head or length changed")));
    }
    Ok(())
}

fn violation(op: usize, message: String) -> Violation {
    Violation { oracle: OracleId::Codec, message, blocks: Vec::new(), op }
}
