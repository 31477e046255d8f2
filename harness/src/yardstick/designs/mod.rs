//! The harnesses of others, re-expressed: what each draws, what it asks, when it stops.
//!
//! Written afresh from descriptions of the projects; these are our readings of their designs, not their code. Each draws
//! only the operations that it has in its own project, as calls of the front (`kvmalloc`, `kvfree`, `kvrealloc`), on the default
//! machine: where a project has one allocator, this is the one. A `Layout` becomes a request whose size is a power of two,
//! which is how `kmalloc` promises alignment. Where the project's fuzzer is guided by coverage, so is the design
//! ([`Design::guided`]), with byte mutation and the feedback that our own engine has, which favours it.

mod acid;
mod arbitrary;
mod dlmalloc;
mod linked_list;
mod mimalloc;
mod random;
mod rlsf;
mod scudo;
mod snmalloc;
mod talc;
mod zephyr;

use crate::generate::TraceRng;
use crate::run::{Held, Stranger};
use crate::subject::Subject;
use crate::trace::{Gfp, Op, OpKind, Trace, interesting};
use kmem::GfpFlags;
use rand::Rng;

pub use arbitrary::derived;

/// The harness of somebody else.
#[derive(Clone, Copy)]
pub struct Design {
    /// The project.
    pub name: &'static str,
    /// What it draws, in a few words.
    pub draws: &'static str,
    /// What it asks, in a few words.
    pub checks: &'static str,
    /// The operations that it has.
    pub kinds: &'static [OpKind],
    /// Draws a trace of at most so many operations.
    pub draw: fn(&mut TraceRng, usize) -> Vec<Op>,
    /// Whether its fuzzer keeps and mutates what reached something new.
    pub guided: bool,
    /// Makes its questions.
    pub asks: fn() -> Box<dyn Stranger>,
}

/// All designs.
pub const DESIGNS: [Design; 10] = [
    dlmalloc::DESIGN,
    talc::DESIGN,
    linked_list::DESIGN,
    rlsf::DESIGN,
    acid::DESIGN,
    snmalloc::DESIGN,
    mimalloc::DESIGN,
    scudo::DESIGN,
    zephyr::DESIGN,
    random::DESIGN,
];

/// The operations of `malloc`, `free` and `realloc`.
const MALLOC: &[OpKind] = &[OpKind::Kvmalloc, OpKind::Kvfree, OpKind::Kvrealloc];
/// Those without `realloc`.
const ALLOC_FREE: &[OpKind] = &[OpKind::Kvmalloc, OpKind::Kvfree];

impl Design {
    /// A trace of the design's operations, on the default machine.
    pub fn trace(&self, rng: &mut TraceRng, max_ops: usize) -> Trace {
        let mut ops = (self.draw)(rng, max_ops);
        ops.truncate(max_ops);
        Trace::new(ops)
    }

    /// Takes out what the design has not, of a mutant.
    pub fn restrict(&self, trace: &mut Trace) {
        let machine = Trace::default().geometry;
        if self.kinds.len() < OpKind::ALL.len() {
            (trace.geometry, trace.faults) = (machine, Vec::new());
        }
        trace.ops.retain(|op| self.kinds.contains(&op.kind()));
        trace.ops.iter_mut().for_each(|op| {
            if self.kinds.len() < OpKind::ALL.len() {
                plain(op)
            }
        });
    }
}

/// A caller of `malloc` has no flags: only whether memory is to be zeroed is left of them.
fn plain(op: &mut Op) {
    match op {
        Op::Kvmalloc { gfp, .. } | Op::Kvrealloc { gfp, .. } => {
            *gfp = if gfp.to_flags().wants_zero() { Gfp::KERNEL.with(GfpFlags::ZERO) } else { Gfp::KERNEL };
        }
        _ => {}
    }
}

/// `malloc`.
fn malloc(size: u64) -> Op {
    Op::Kvmalloc { size, gfp: Gfp::KERNEL }
}

/// `calloc`.
fn calloc(size: u64) -> Op {
    Op::Kvmalloc { size, gfp: Gfp::KERNEL.with(GfpFlags::ZERO) }
}

/// `free` of any block.
fn free(rng: &mut TraceRng) -> Op {
    Op::Kvfree { pick: rng.next_u32() as u16 }
}

/// `realloc` of any block.
fn realloc(rng: &mut TraceRng, size: u64) -> Op {
    Op::Kvrealloc { pick: rng.next_u32() as u16, size, gfp: Gfp::KERNEL }
}

/// A request for a `Layout`: an alignment above the usual one makes the size a power of two.
fn layout(size: u64, align_bits: u32) -> u64 {
    let align = 1 << align_bits.min(12);
    if align <= 8 { size } else { size.clamp(align, 1 << 22).next_power_of_two() }
}

/// Writes one byte all over a block.
fn fill(memory: &mut dyn Subject, block: &Held, byte: u8) -> Result<(), String> {
    fill_with(memory, block, |_| byte)
}

/// Writes a byte to each place of a block.
fn fill_with(memory: &mut dyn Subject, block: &Held, byte: impl Fn(usize) -> u8) -> Result<(), String> {
    let mut buffer = [0; CHUNK];
    for start in (0..block.bytes).step_by(CHUNK) {
        let part = &mut buffer[..CHUNK.min(block.bytes - start)];
        part.iter_mut().zip(start..).for_each(|(to, at)| *to = byte(at));
        memory.write(block.addr + start as u64, part).map_err(|fault| format!("a write faults: {fault:?}"))?;
    }
    Ok(())
}

/// Compares the first bytes of a block.
fn compare(memory: &mut dyn Subject, block: &Held, bytes: usize, expected: impl Fn(usize) -> u8) -> Result<(), String> {
    let mut buffer = [0; CHUNK];
    for start in (0..bytes).step_by(CHUNK) {
        let part = &mut buffer[..CHUNK.min(bytes - start)];
        memory.read(block.addr + start as u64, part).map_err(|fault| format!("a read faults: {fault:?}"))?;
        if let Some(at) = part.iter().zip(start..).position(|(found, at)| *found != expected(at)) {
            return Err(format!("byte {} of the block at {:#x} is {:#x}", start + at, block.addr, part[at]));
        }
    }
    Ok(())
}

/// How many bytes are written or read at a time.
const CHUNK: usize = 256;

/// The allocator's own look at itself, where it has one.
fn own_audit(memory: &dyn Subject) -> Result<(), String> {
    memory.white_box().map_or(Ok(()), |inside| inside.audit().map_err(|violation| violation.to_string()))
}

/// Objects to an address that is no multiple of what was promised.
fn aligned(block: &Held) -> Result<(), String> {
    if block.addr.is_multiple_of(block.align) {
        return Ok(());
    }
    Err(format!("{:#x} is no multiple of {}", block.addr, block.align))
}

/// A size of any magnitude.
fn any_size(rng: &mut TraceRng, bits: u32) -> u64 {
    interesting::log_uniform(rng.next_u64(), bits)
}
