//! The byte encoding: a header, then fixed-width records. Every byte string decodes.
//!
//! ```text
//! with header     0 magic "kmt2"   4 swarm   8 frames  12 dma  16 movable  20 cpus  22 max order  23 pageblock order
//!                24 vmalloc pages  28 min free  32 hardening, debugging of kmalloc  33 number of faults
//!                34 page checks, 4 bits; order of guards, 4 bits
//!                36 swarm, upper half
//!                40 dma32  44 nodes  45 nodes with CPUs  46 CMA pageblocks  47 mobility  48 zero
//!                72 faults, 8 bytes each: point, 3 zero bytes, nth       then records
//! older header    0 magic "kmt1"   as above up to 40, where the faults begin; what is missing has its default
//! without magic   0 selects a machine  1..8 ignored                       8 records
//! record          0 kind  1 mode  2 pick, cache, cpu or nth  4 flags  8 small numbers or n  16 size
//! ```
//!
//! Numbers are little-endian. In mode 0, the only one that is written, a record's numbers stand as they are. In every
//! other mode they select from the tables of interesting numbers, so that random bytes are useful requests too: an
//! engine that knows nothing of this format still gets small sizes, boundaries and usual flags.

use super::cache_flags::CacheFlags;
use super::geometry::GeometrySpec;
use super::op::{Op, OpKind};
use super::role::Role;
use super::swarm::Swarm;
use super::{FaultSpec, MAX_FAULTS, MAX_OPS, Trace, VERSION, interesting};
use kmem::{FaultPoint, Hardening, Mobility};

/// What a trace in bytes begins with.
pub const MAGIC: [u8; 4] = *b"kmt2";
/// What a trace in bytes began with when its header was shorter.
const OLD_MAGIC: [u8; 4] = *b"kmt1";
/// Bytes before the first fault.
pub const HEADER_BYTES: usize = 72;
/// Bytes before the first fault after the old magic.
const OLD_HEADER_BYTES: usize = 40;
/// Bytes of an operation.
pub const RECORD_BYTES: usize = 24;
/// Bytes before the first record when the magic is missing.
const BARE_HEADER_BYTES: usize = 8;
/// Bytes of a planned failure.
const FAULT_BYTES: usize = 8;

/// The ways with mobility, in the order of their numbers.
const MOBILITIES: [Mobility; 3] = [Mobility::Grouped, Mobility::Defrag, Mobility::Mixed];

/// The numbers stand in the record as they are.
const EXACT: u8 = 0;

impl Trace {
    /// Decodes any byte string; what [`Self::to_bytes`] wrote comes back as it was.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut trace = match () {
            () if bytes.starts_with(&MAGIC) => with_header(bytes, bytes.get(HEADER_BYTES..)),
            () if bytes.starts_with(&OLD_MAGIC) => {
                let mut header = bytes.to_vec();
                header.truncate(OLD_HEADER_BYTES);
                with_header(&header, bytes.get(OLD_HEADER_BYTES..))
            }
            () => without_header(bytes),
        };
        trace.normalize();
        trace
    }

    /// Encodes the trace; one that [`Self::normalize`] would change is encoded as if normalized.
    pub fn to_bytes(&self) -> Vec<u8> {
        let faults = self.faults.iter().take(MAX_FAULTS);
        let ops = self.ops.iter().take(MAX_OPS);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + faults.len() * FAULT_BYTES + ops.len() * RECORD_BYTES);
        bytes.extend(encode_header(self, faults.len() as u8));
        faults.for_each(|fault| bytes.extend(encode_fault(*fault)));
        ops.for_each(|op| bytes.extend(encode_op(op)));
        bytes
    }
}

/// Reads `N` bytes at an offset; bytes past the end are zero.
fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    let there = bytes.get(offset..).unwrap_or_default();
    out.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
    out
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(at(bytes, offset))
}

fn byte_at(bytes: &[u8], offset: usize) -> u8 {
    u8::from_le_bytes(at(bytes, offset))
}

fn with_header(bytes: &[u8], body: Option<&[u8]>) -> Trace {
    let nr_faults = usize::from(byte_at(bytes, 33)).min(MAX_FAULTS);
    let body = body.unwrap_or_default();
    let (faults, records) = body.split_at(body.len().min(nr_faults * FAULT_BYTES));
    Trace {
        version: VERSION,
        geometry: decode_geometry(bytes),
        swarm: Swarm::from_bits_truncate(u64::from(u32_at(bytes, 36)) << 32 | u64::from(u32_at(bytes, 4))),
        faults: faults.chunks_exact(FAULT_BYTES).map(decode_fault).collect(),
        ops: decode_records(records),
    }
}

fn without_header(bytes: &[u8]) -> Trace {
    let mut trace = Trace::new(decode_records(bytes.get(BARE_HEADER_BYTES..).unwrap_or_default()));
    trace.geometry = GeometrySpec::preset(u64::from(byte_at(bytes, 0)));
    trace
}

fn decode_records(bytes: &[u8]) -> Vec<Op> {
    bytes.as_chunks().0.iter().take(MAX_OPS).map(decode_op).collect()
}

fn decode_geometry(bytes: &[u8]) -> GeometrySpec {
    GeometrySpec {
        frames: u32_at(bytes, 8),
        dma_frames: u32_at(bytes, 12),
        dma32_frames: u32_at(bytes, 40),
        movable_frames: u32_at(bytes, 16),
        nodes: byte_at(bytes, 44),
        cpu_nodes: byte_at(bytes, 45),
        cma_blocks: byte_at(bytes, 46),
        mobility: interesting::pick(&MOBILITIES, u64::from(byte_at(bytes, 47))),
        cpus: u16::from_le_bytes(at(bytes, 20)),
        max_order: byte_at(bytes, 22),
        pageblock_order: byte_at(bytes, 23),
        vmalloc_pages: u32_at(bytes, 24),
        min_free: u32_at(bytes, 28),
        hardening: match byte_at(bytes, 32) & 3 {
            0 => Hardening::Checked,
            2 => Hardening::Paranoid,
            _ => Hardening::Off,
        },
        slub_debug: byte_at(bytes, 32) >> 3,
        trim_large: byte_at(bytes, 32) & TRIMMED != 0,
        pocket: byte_at(bytes, 35) & 3,
        page_debug: byte_at(bytes, 34) & 7,
        huge: byte_at(bytes, 34) & NO_HUGE == 0,
        guard_order: byte_at(bytes, 34) >> 4,
    }
}

/// Beside the checks of pages: no huge mappings.
const NO_HUGE: u8 = 8;
/// In the byte of the hardening: large blocks are trimmed.
const TRIMMED: u8 = 1 << 2;

fn encode_header(trace: &Trace, nr_faults: u8) -> [u8; HEADER_BYTES] {
    let g = trace.geometry.normalized();
    let mut out = [0; HEADER_BYTES];
    put(&mut out, 0, &MAGIC);
    put(&mut out, 4, &(trace.swarm.bits() as u32).to_le_bytes());
    put(&mut out, 36, &((trace.swarm.bits() >> 32) as u32).to_le_bytes());
    put(&mut out, 8, &g.frames.to_le_bytes());
    put(&mut out, 12, &g.dma_frames.to_le_bytes());
    put(&mut out, 16, &g.movable_frames.to_le_bytes());
    put(&mut out, 20, &g.cpus.to_le_bytes());
    put(&mut out, 22, &[g.max_order, g.pageblock_order]);
    put(&mut out, 24, &g.vmalloc_pages.to_le_bytes());
    put(&mut out, 28, &g.min_free.to_le_bytes());
    put(&mut out, 40, &g.dma32_frames.to_le_bytes());
    put(&mut out, 44, &[g.nodes, g.cpu_nodes, g.cma_blocks, g.mobility as u8]);
    let hardening = match g.hardening {
        Hardening::Checked => 0,
        Hardening::Off => 1,
        Hardening::Paranoid => 2,
    };
    let no_huge = if g.huge { 0 } else { NO_HUGE };
    let trimmed = if g.trim_large { TRIMMED } else { 0 };
    let frees = hardening | trimmed | g.slub_debug << 3;
    put(&mut out, 32, &[frees, nr_faults, g.guard_order << 4 | no_huge | g.page_debug, g.pocket]);
    out
}

/// Copies `from` to an offset of `to`; what does not fit is dropped.
fn put(to: &mut [u8], offset: usize, from: &[u8]) {
    to.iter_mut().skip(offset).zip(from).for_each(|(to, from)| *to = *from);
}

fn decode_fault(bytes: &[u8]) -> FaultSpec {
    let point = interesting::pick(&FaultPoint::ALL, u64::from(byte_at(bytes, 0)));
    FaultSpec { point, nth: u32_at(bytes, 4) }
}

fn encode_fault(fault: FaultSpec) -> [u8; FAULT_BYTES] {
    let mut out = [0; FAULT_BYTES];
    put(&mut out, 0, &[fault.point as u8]);
    put(&mut out, 4, &fault.nth.to_le_bytes());
    out
}

/// Where a number stands in a record: first byte and width. Numbers that occur together have different places.
const fn place(role: Role) -> (usize, usize) {
    match role {
        Role::Pick | Role::Cache | Role::Cpu | Role::Nth => (2, 2),
        Role::Gfp => (4, 4),
        Role::N => (8, 8),
        Role::Page => (8, 4),
        Role::Count | Role::Spare | Role::Align => (8, 2),
        Role::Point => (8, 1),
        Role::Tier | Role::Step | Role::Percent | Role::Flag | Role::Checks => (10, 1),
        Role::Order | Role::Phase | Role::Flag2 => (11, 1),
        Role::Frame => (12, 4),
        Role::Shift => (8, 1),
        Role::Node => (9, 1),
        Role::Size => (16, 8),
        Role::Length => (2, 2),
        Role::CacheFlags => (4, 2),
        Role::Capacity => (6, 2),
        Role::FreePointer => (10, 1),
        Role::Offset => (12, 4),
    }
}

fn decode_op(record: &[u8; RECORD_BYTES]) -> Op {
    let kind = interesting::pick(&OpKind::ALL, u64::from(record[0]));
    let mode = record[1];
    Op::from_numbers(kind, |role| {
        let raw = read_number(record, role);
        if mode == EXACT { raw } else { useful_number(role, mode, raw) }
    })
}

fn encode_op(op: &Op) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    put(&mut out, 0, &[op.kind() as u8, EXACT]);
    op.each_number(|role, number| {
        let (offset, width) = place(role);
        let bytes = number.to_le_bytes();
        put(&mut out, offset, bytes.get(..width).unwrap_or(&bytes));
    });
    out
}

fn read_number(record: &[u8; RECORD_BYTES], role: Role) -> u64 {
    let (offset, width) = place(role);
    let field: [u8; 8] = at(record, offset);
    u64::from_le_bytes(field) & (u64::MAX >> (64 - 8 * width))
}

/// Turns arbitrary bits into a number that is worth trying.
fn useful_number(role: Role, mode: u8, raw: u64) -> u64 {
    match role {
        Role::Size => useful_size(mode, raw),
        Role::Gfp if mode < 0xf0 => u64::from(interesting::usual_gfp(raw).bits()),
        Role::Order => raw % 12,
        Role::N => interesting::log_uniform(raw, 12),
        Role::Count => raw % 48,
        Role::Align => 1 << (raw % 13),
        Role::Shift => raw % 24,
        Role::Nth => raw % 32,
        Role::Percent => raw % 101,
        Role::Step => raw % 9,
        Role::Spare => raw % 256,
        Role::CacheFlags => u64::from(CacheFlags::useful(raw).bits()),
        Role::Offset | Role::Length => interesting::log_uniform(raw, 8),
        Role::FreePointer | Role::Capacity => rarely(raw),
        Role::Node => raw % 4,
        _ => raw,
    }
}

/// Zero for three numbers of four.
fn rarely(raw: u64) -> u64 {
    if raw.is_multiple_of(4) { raw / 4 % 64 } else { 0 }
}

fn useful_size(mode: u8, raw: u64) -> u64 {
    match mode % 8 {
        0..4 => interesting::log_uniform(raw, 13),
        4 | 5 => interesting::boundary(raw),
        6 => interesting::log_uniform(raw, 23),
        _ if raw.is_multiple_of(16) => interesting::huge(raw / 16),
        _ => interesting::boundary(raw / 16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Generator, Target};
    use crate::mutate::mutate;
    use rand::{Rng, RngExt, SeedableRng};
    use rand_xoshiro::Xoshiro256PlusPlus;

    #[test]
    fn a_generated_or_mutated_trace_survives_bytes() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for seed in 0..300 {
            let target = interesting::pick(&Target::ALL, seed);
            let mut trace = Generator::new(seed).trace(target, 200);
            for _ in 0..4 {
                assert_eq!(Trace::from_bytes(&trace.to_bytes()), trace, "seed {seed}");
                mutate(&mut trace, &mut rng, 200);
            }
        }
    }

    #[test]
    fn every_operation_with_extreme_numbers_survives_bytes() {
        for extreme in [0, 1, 0x7f, 0xff, 0xffff, u64::from(u32::MAX), u64::MAX, 0x0123_4567_89ab_cdef] {
            let ops: Vec<Op> = OpKind::ALL.map(|kind| Op::from_numbers(kind, |_| extreme)).to_vec();
            assert_eq!(Trace::from_bytes(&Trace::new(ops.clone()).to_bytes()).ops, ops);
        }
    }

    #[test]
    fn any_byte_string_is_a_trace_in_range() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
        for case in 0..2000 {
            let mut bytes = vec![0; rng.random_range(0..600)];
            rng.fill_bytes(&mut bytes);
            match case % 3 {
                0 => put(&mut bytes, 0, &MAGIC),
                1 => put(&mut bytes, 0, &OLD_MAGIC),
                _ => {}
            }
            let trace = Trace::from_bytes(&bytes);
            let mut normal = trace.clone();
            normal.normalize();
            assert_eq!(trace, normal);
            assert_eq!(Trace::from_bytes(&trace.to_bytes()), trace);
        }
    }

    #[test]
    fn random_bytes_give_one_operation_per_record_and_mostly_small_sizes() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut bytes = vec![0; BARE_HEADER_BYTES + 4096 * RECORD_BYTES];
        rng.fill_bytes(&mut bytes);
        let trace = Trace::from_bytes(&bytes);
        assert_eq!(trace.ops.len(), 4096);
        let sizes: Vec<u64> = trace.ops.iter().filter_map(|op| op.number(Role::Size)).collect();
        let small = sizes.iter().filter(|&&size| size <= 8192).count();
        assert!(small * 2 > sizes.len(), "{small} of {} sizes are small", sizes.len());
        assert!(sizes.iter().any(|&size| size > 1 << 31));
    }

    #[test]
    fn numbers_of_one_operation_have_different_places() {
        for kind in OpKind::ALL {
            let mut used = [false; RECORD_BYTES];
            for &role in kind.roles() {
                let (offset, width) = place(role);
                for byte in &mut used[offset..offset + width] {
                    assert!(!*byte, "{} {role:?}", kind.name());
                    *byte = true;
                }
            }
        }
    }
}
