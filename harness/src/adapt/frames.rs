//! An allocator of page frames behind the calls of the harness. It never sees memory; the simulated machine has it.

use super::Reuse;
use crate::machine::SimMachine;
use crate::subject::{AccessFault, Call, Reply, Strength, Subject};
use crate::subjects::{Guest, Spare, ordinary_bytes};
use kmem::{AllocError, FreeError, Geometry, GeometryError, GfpFlags, Order, PAGE_SIZE, VirtAddr};
use std::collections::BTreeMap;

/// An allocator of page frames, which are numbered from 0.
pub trait Pages: Sized {
    /// What becomes of frames that were freed.
    const REUSE: Reuse = Reuse::Modest;

    /// Makes an allocator of this many frames.
    fn new(frames: usize) -> Self;

    /// Allocates `1 << order` frames, the first of which is a multiple of their number.
    fn alloc(&mut self, order: u8) -> Option<usize>;

    /// Frees them.
    fn free(&mut self, first: usize, order: u8);
}

/// The subject.
struct Framed<A> {
    name: &'static str,
    pages: A,
    machine: SimMachine,
    base: u64,
    bytes: u64,
    /// Orders of the live blocks, by address.
    live: BTreeMap<u64, u8>,
    /// The largest order that a new allocator gives, if it promises to give it again.
    whole: Option<u8>,
}

/// Builds the subject.
pub(super) fn build<A: Pages + 'static>(
    name: &'static str,
    geometry: &Geometry,
    spare: Spare,
) -> Result<Box<dyn Guest>, GeometryError> {
    geometry.validate()?;
    let bytes = ordinary_bytes(geometry);
    let frames = bytes as usize / PAGE_SIZE;
    let largest = || (0..=Order::MAX.get()).rev().find(|&order| A::new(frames).alloc(order).is_some());
    let whole = if A::REUSE == Reuse::Whole { largest() } else { None };
    Ok(Box::new(Framed {
        name,
        pages: A::new(frames),
        machine: spare.machine(geometry),
        base: geometry.direct_map.as_u64(),
        bytes,
        live: BTreeMap::new(),
        whole,
    }))
}

impl<A: Pages> Framed<A> {
    fn alloc(&mut self, order: u8, gfp: GfpFlags) -> Reply {
        if gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) {
            return Reply::Unsupported;
        }
        let Some(bytes) = Order::new(order).map(Order::bytes) else {
            return Reply::Refused(AllocError::OrderTooLarge { max: Order::MAX });
        };
        let Some(first) = self.pages.alloc(order) else {
            let refused = Reply::Refused(AllocError::NoPages { order: Order::ZERO });
            return if A::REUSE == Reuse::Never { Reply::Unsupported } else { refused };
        };
        let addr = self.base.wrapping_add((first as u64).wrapping_mul(PAGE_SIZE as u64));
        if self.has_memory(addr, bytes) {
            self.live.insert(addr, order);
            if gfp.wants_zero() {
                self.zero(addr, bytes);
            }
        }
        Reply::Block { addr, usable: bytes }
    }

    fn zero(&self, addr: u64, bytes: usize) {
        for page in (0..bytes as u64).step_by(PAGE_SIZE) {
            let written = self.machine.write(addr + page, &[0; PAGE_SIZE]);
            debug_assert_eq!(written, Ok(()), "the block lies in memory");
        }
    }

    fn free(&mut self, addr: u64) -> Reply {
        let Some(order) = self.live.remove(&addr) else {
            return Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr)));
        };
        self.pages.free(((addr - self.base) / PAGE_SIZE as u64) as usize, order);
        Reply::Done
    }
}

impl<A: Pages> Subject for Framed<A> {
    fn name(&self) -> &str {
        self.name
    }

    fn strength(&self) -> Strength {
        Strength::Loose
    }

    fn call(&mut self, call: &Call) -> Reply {
        match *call {
            Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. } => self.alloc(order, gfp),
            Call::FreePages { addr, .. } => self.free(addr),
            Call::DrainPages | Call::Purge | Call::Reclaim | Call::SetCpu { .. } => Reply::Done,
            _ => Reply::Unsupported,
        }
    }

    fn has_memory(&self, addr: u64, bytes: usize) -> bool {
        let end = addr.checked_sub(self.base).and_then(|offset| offset.checked_add(bytes as u64));
        end.is_some_and(|end| end <= self.bytes)
    }

    fn lost(&mut self) -> Option<String> {
        let whole = self.whole?;
        match self.pages.alloc(whole) {
            Some(first) => {
                self.pages.free(first, whole);
                None
            }
            None => Some(format!("a new allocator gave a block of order {whole}; with everything freed it does not")),
        }
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        self.machine.read(addr, into)
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        self.machine.write(addr, from)
    }

    fn translate(&self, addr: u64) -> Option<u64> {
        self.machine.translate(addr)
    }
}

impl<A: Pages> Guest for Framed<A> {
    fn into_spare(self: Box<Self>) -> Spare {
        Spare::of_machine(self.machine)
    }
}
