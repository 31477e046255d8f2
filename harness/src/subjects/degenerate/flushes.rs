//! `kmem` on machines that do with requests to flush the TLB what wrong purges would do.

use crate::machine::TlbFlushes;
use crate::subjects::Twist;

/// The mistake, by its place in [`TWISTS`].
#[derive(Default)]
pub(super) struct Flushing<const N: usize>;

/// Name of each subject, and what becomes of flushes.
const TWISTS: [(&str, TlbFlushes); 5] = [
    ("forgets-tlb-flush", TlbFlushes::Lost),
    ("flushes-after-reuse", TlbFlushes::Late),
    ("flushes-a-page-too-few", TlbFlushes::OnePageShort),
    ("forgets-a-node's-range", TlbFlushes::WithoutOneNode),
    ("keeps-walking-freed-tables", TlbFlushes::KeepTables),
];

impl<const N: usize> Twist for Flushing<N> {
    fn name(&self) -> &'static str {
        const { TWISTS[N].0 }
    }

    fn flushes(&self) -> TlbFlushes {
        const { TWISTS[N].1 }
    }
}
