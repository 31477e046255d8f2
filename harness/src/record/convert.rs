//! Turns the events of a program into a trace.
//!
//! A trace names a block by its place among the live ones, a program by its address. So the conversion executes what it
//! has written so far: the model then knows the place of each block, also of those that fell back to vmalloc or moved.

use super::log::Event;
use crate::model::{Model, Tiers};
use crate::oracle::Step;
use crate::subject::{Call, Reply};
use crate::subjects::{Guest, Spare, SubjectKind};
use crate::trace::{GeometrySpec, Gfp, MAX_FRAMES, MAX_TRACE_CPUS, Op, Trace};
use kmem::{GfpFlags, PAGE_SIZE};
use std::collections::{BTreeMap, HashMap};

/// A machine that no recorded program is too small for.
const MIN_FRAMES: u32 = 2048;

/// Makes a trace of the first `max_ops` events.
///
/// # Errors
///
/// The machine cannot be made.
pub fn to_trace(events: &[Event], max_ops: usize) -> Result<Trace, String> {
    let events = &events[..events.len().min(max_ops)];
    let geometry = machine_for(events);
    let mut converter = Converter::new(geometry)?;
    events.iter().for_each(|event| converter.convert(event));
    let mut trace = Trace::new(converter.ops);
    trace.ops.truncate(max_ops);
    trace.geometry = geometry;
    Ok(trace)
}

/// A machine with about twice the memory that the program had in use at its peak, and a CPU for each thread.
fn machine_for(events: &[Event]) -> GeometrySpec {
    let number = |event: &Event| if let Event::Thread { number } = event { *number } else { 0 };
    let threads = events.iter().map(number).max().unwrap_or(0) + 1;
    let mut live: HashMap<u64, u64> = HashMap::new();
    let (mut now, mut peak) = (0u64, 0u64);
    for event in events {
        let (gone, come) = match *event {
            Event::Alloc { addr, size } => (addr, Some((addr, size))),
            Event::ZeroedArray { addr, n, size } => (addr, Some((addr, n.saturating_mul(size)))),
            Event::Realloc { from, addr, size } => (from, Some((addr, size))),
            Event::Free { addr } => (addr, None),
            Event::Thread { .. } => continue,
        };
        now -= live.remove(&gone).unwrap_or(0);
        if let Some((addr, size)) = come {
            now = now.saturating_add(size);
            now -= live.insert(addr, size).unwrap_or(0);
        }
        peak = peak.max(now);
    }
    let pages = u32::try_from(peak / PAGE_SIZE as u64).unwrap_or(MAX_FRAMES).saturating_mul(2);
    let frames = pages.clamp(MIN_FRAMES, MAX_FRAMES).next_power_of_two();
    let cpus = threads.clamp(2, MAX_TRACE_CPUS.into()) as u16;
    GeometrySpec {
        cpus,
        frames,
        max_order: 10,
        pageblock_order: 9,
        vmalloc_pages: frames * 4,
        ..GeometrySpec::default()
    }
    .normalized()
}

/// Executes while it writes.
struct Converter {
    subject: Box<dyn Guest>,
    model: Model,
    /// Where the subject put the block that the program has at an address.
    placed: BTreeMap<u64, u64>,
    ops: Vec<Op>,
}

impl Converter {
    fn new(spec: GeometrySpec) -> Result<Self, String> {
        let geometry = spec.to_geometry();
        let subject = SubjectKind::KMEM.build(&geometry, Spare::default()).map_err(|e| format!("{e:?}"))?;
        let model = Model::new(&geometry, subject.strength());
        Ok(Self { subject, model, placed: BTreeMap::new(), ops: Vec::new() })
    }

    fn convert(&mut self, event: &Event) {
        match *event {
            Event::Alloc { addr, size } => {
                let call = Call::Kvmalloc { size: bytes(size), gfp: GfpFlags::KERNEL };
                self.allocate(addr, Op::Kvmalloc { size, gfp: Gfp::KERNEL }, call);
            }
            Event::ZeroedArray { addr, n, size } => {
                let gfp = Gfp::KERNEL.with(GfpFlags::ZERO);
                let call = Call::KvmallocArray { n: bytes(n), size: bytes(size), gfp: gfp.to_flags() };
                self.allocate(addr, Op::KvmallocArray { n, size, gfp }, call);
            }
            Event::Realloc { from, addr, size } => self.reallocate(from, addr, size),
            Event::Free { addr } => self.free(addr),
            Event::Thread { number } => {
                let cpu = (number % u64::from(self.model.geometry().cpus.max(1))) as u16;
                self.ops.push(Op::SetCpu { cpu });
                self.execute(Call::SetCpu { cpu });
            }
        }
    }

    fn allocate(&mut self, addr: u64, op: Op, call: Call) {
        // The log shows no free of a block that a child inherited or that valgrind itself took back.
        self.free(addr);
        self.ops.push(op);
        if let Some(block) = self.execute(call) {
            self.placed.insert(addr, block);
        }
    }

    fn reallocate(&mut self, from: u64, addr: u64, size: u64) {
        let Some((pick, block)) = self.pick(from) else {
            let call = Call::Kvmalloc { size: bytes(size), gfp: GfpFlags::KERNEL };
            return self.allocate(addr, Op::Kvmalloc { size, gfp: Gfp::KERNEL }, call);
        };
        self.ops.push(Op::Kvrealloc { pick, size, gfp: Gfp::KERNEL });
        let call = Call::Kvrealloc { addr: block, size: bytes(size), gfp: GfpFlags::KERNEL };
        let moved = self.execute(call).unwrap_or(block);
        self.placed.remove(&from);
        self.placed.insert(addr, moved);
    }

    fn free(&mut self, addr: u64) {
        if let Some((pick, block)) = self.pick(addr) {
            self.ops.push(Op::Kvfree { pick });
            self.execute(Call::Kvfree { addr: block });
        }
        self.placed.remove(&addr);
    }

    /// The number by which a trace names the program's block, and where the subject put it.
    fn pick(&self, addr: u64) -> Option<(u16, u64)> {
        let block = *self.placed.get(&addr)?;
        let place = self.model.blocks(Tiers::KVMALLOC).position(|live| live.addr == block)?;
        u16::try_from(place).ok().map(|pick| (pick, block))
    }

    /// Executes a call; the new block's address, if it gave one.
    fn execute(&mut self, call: Call) -> Option<u64> {
        let reply = self.subject.call(&call);
        let step = Step { op: self.ops.len(), call, reply, fault_struck: false };
        self.model.update(&step, &*self.subject);
        match step.reply {
            Reply::Block { addr, usable } if usable > 0 => Some(addr),
            _ => None,
        }
    }
}

fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frees_pick_the_block_that_the_program_freed() {
        let alloc = |addr, size| Event::Alloc { addr, size };
        let events = [alloc(1, 100), alloc(2, 200), alloc(3, 20_000), Event::Free { addr: 1 }, Event::Free { addr: 3 }];
        let trace = to_trace(&events, 100).unwrap();
        // The first free leaves the second block at place 0 and the large one behind all small ones.
        assert_eq!(trace.ops[3..], [Op::Kvfree { pick: 0 }, Op::Kvfree { pick: 1 }]);
    }

    #[test]
    fn each_thread_is_a_cpu() {
        let alloc = |addr| Event::Alloc { addr, size: 100 };
        let events = [alloc(1), Event::Thread { number: 3 }, alloc(2), Event::Free { addr: 1 }];
        let trace = to_trace(&events, 100).unwrap();
        assert_eq!(trace.geometry.cpus, 4);
        assert_eq!(trace.ops[1..], [Op::SetCpu { cpu: 3 }, trace.ops[0], Op::Kvfree { pick: 0 }]);
    }

    #[test]
    fn a_block_that_was_never_given_is_not_freed() {
        let trace = to_trace(&[Event::Free { addr: 9 }, Event::Realloc { from: 8, addr: 9, size: 64 }], 100).unwrap();
        assert_eq!(trace.ops, [Op::Kvmalloc { size: 64, gfp: Gfp::KERNEL }]);
    }

    #[test]
    fn the_machine_has_room_for_the_peak() {
        let events: Vec<Event> = (0..100).map(|addr| Event::Alloc { addr, size: 1 << 20 }).collect();
        assert_eq!(machine_for(&events).frames, 65_536);
        assert_eq!(machine_for(&events[..1]).frames, MIN_FRAMES);
    }
}
