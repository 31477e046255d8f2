//! A heap behind the calls of the harness.

use super::raw::Seat;
use super::{Grant, Heap, Memory, Region, Reuse};
use crate::model::classes::kmalloc_align;
use crate::subject::{AccessFault, Call, Reply, Strength, Subject};
use crate::subjects::{Guest, Spare, ordinary_bytes};
use kmem::{AllocError, FreeError, Geometry, GeometryError, GfpFlags, Order, PAGE_SIZE, VirtAddr};
use std::alloc::Layout;

/// The subject.
struct Adapted<A> {
    name: &'static str,
    seat: Seat<A>,
}

const REFUSED: Reply = Reply::Refused(AllocError::NoPages { order: Order::ZERO });

/// Builds the subject of a heap that brings its own memory.
pub(super) fn build_hosted<A: Heap + Default + 'static>(
    name: &'static str,
    geometry: &Geometry,
    _: Spare,
) -> Result<Box<dyn Guest>, GeometryError> {
    geometry.validate()?;
    Ok(Box::new(Adapted { name, seat: Seat::<A>::hosted() }))
}

/// Builds the subject of a heap in a region: all frames but those of the movable zone, which ordinary requests may not use.
pub(super) fn build_region<A: Region + 'static>(
    name: &'static str,
    geometry: &Geometry,
    spare: Spare,
) -> Result<Box<dyn Guest>, GeometryError> {
    geometry.validate()?;
    let bytes = ordinary_bytes(geometry) as usize;
    let memory = spare.into_memory().filter(|memory| memory.len() == bytes).unwrap_or_else(|| Memory::new(bytes));
    match Seat::<A>::within(memory, geometry.direct_map.as_u64()) {
        Some(seat) => Ok(Box::new(Adapted { name, seat })),
        None => Err(GeometryError::Boot),
    }
}

impl<A: Heap> Adapted<A> {
    /// Asks for a block; `None` as alignment is one that is no power of two.
    fn alloc(&mut self, size: usize, align: Option<usize>, gfp: GfpFlags) -> Reply {
        if gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) {
            return Reply::Unsupported;
        }
        if size == 0 {
            return Reply::Block { addr: VirtAddr::ZERO_SIZE.as_u64(), usable: 0 };
        }
        let Some(layout) = align.and_then(|align| Layout::from_size_align(size, align).ok()) else {
            return Reply::Unsupported;
        };
        if size > A::LARGEST || layout.align() > A::LARGEST {
            return Reply::Unsupported;
        }
        let grant = self.seat.alloc(layout, gfp.wants_zero());
        reply::<A>(grant, size)
    }

    fn kmalloc(&mut self, size: usize, gfp: GfpFlags) -> Reply {
        self.alloc(size, Some(kmalloc_align(size)), gfp)
    }

    fn array(&mut self, n: usize, size: usize, gfp: GfpFlags) -> Reply {
        n.checked_mul(size).map_or(Reply::Refused(AllocError::Overflow), |bytes| self.kmalloc(bytes, gfp))
    }

    fn pages(&mut self, order: u8, gfp: GfpFlags) -> Reply {
        match Order::new(order) {
            Some(order) => self.alloc(order.bytes(), Some(order.bytes()), gfp),
            None => Reply::Refused(AllocError::OrderTooLarge { max: Order::MAX }),
        }
    }

    fn pages_exact(&mut self, size: usize, gfp: GfpFlags) -> Reply {
        match size {
            0 => Reply::Refused(AllocError::ZeroSize),
            _ => self.alloc(size, Some(PAGE_SIZE), gfp),
        }
    }

    /// Resizes by the heap's own call if that can give the alignment of the new size; else by a new block.
    fn realloc(&mut self, addr: u64, size: usize, gfp: GfpFlags) -> Reply {
        let Some(old) = self.seat.layout(addr) else { return self.kmalloc(size, gfp) };
        if size == 0 {
            self.seat.free(addr);
            return Reply::Block { addr: VirtAddr::ZERO_SIZE.as_u64(), usable: 0 };
        }
        if size > A::LARGEST || Layout::from_size_align(size, old.align()).is_err() {
            return Reply::Unsupported;
        }
        let fits = kmalloc_align(size) <= old.align();
        let grant = if fits { self.seat.realloc(addr, size) } else { None };
        let grant = grant.unwrap_or_else(|| self.move_to_new(addr, size, old));
        if let Grant::Block(addr) = grant
            && gfp.wants_zero()
        {
            self.seat.fill(addr, old.size().min(size), size);
        }
        reply::<A>(grant, size)
    }

    fn move_to_new(&mut self, addr: u64, size: usize, old: Layout) -> Grant {
        let Ok(layout) = Layout::from_size_align(size, kmalloc_align(size)) else { return Grant::Refused };
        let grant = self.seat.alloc(layout, false);
        if let Grant::Block(new) = grant
            && new != addr
        {
            self.seat.copy(addr, new, old.size().min(size));
            self.seat.free(addr);
        }
        grant
    }

    fn free(&mut self, addr: u64) -> Reply {
        if VirtAddr::new(addr).is_zero_or_null() || self.seat.free(addr) {
            return Reply::Done;
        }
        Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr)))
    }
}

/// A refusal of a heap that never promises anything says nothing.
fn reply<A: Heap>(grant: Grant, size: usize) -> Reply {
    match grant {
        Grant::Block(addr) | Grant::Outside(addr) => Reply::Block { addr, usable: size },
        Grant::Refused if A::REUSE == Reuse::Never => Reply::Unsupported,
        Grant::Refused => REFUSED,
    }
}

impl<A: Heap> Subject for Adapted<A> {
    fn name(&self) -> &str {
        self.name
    }

    fn strength(&self) -> Strength {
        Strength::Loose
    }

    fn call(&mut self, call: &Call) -> Reply {
        match *call {
            Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. } => self.pages(order, gfp),
            Call::AllocPagesExact { size, gfp } => self.pages_exact(size, gfp),
            Call::Kmalloc { size, gfp } | Call::Kvmalloc { size, gfp } => self.kmalloc(size, gfp),
            Call::KvmallocNode { size, align, gfp, .. } => {
                self.alloc(size, Some(align).filter(|align| align.is_power_of_two()), gfp)
            }
            Call::KmallocArray { n, size, gfp } | Call::KvmallocArray { n, size, gfp } => self.array(n, size, gfp),
            Call::Krealloc { addr, size, gfp } | Call::Kvrealloc { addr, size, gfp } => self.realloc(addr, size, gfp),
            Call::FreePages { addr, .. }
            | Call::FreePagesExact { addr, .. }
            | Call::Kfree { addr }
            | Call::KfreeSensitive { addr }
            | Call::Kvfree { addr }
            | Call::KvfreeSensitive { addr, .. } => self.free(addr),
            Call::DrainPages | Call::Purge | Call::Reclaim | Call::SetCpu { .. } => Reply::Done,
            _ => Reply::Unsupported,
        }
    }

    fn has_memory(&self, addr: u64, bytes: usize) -> bool {
        self.seat.holds(addr, bytes)
    }

    fn trespass(&self) -> Option<String> {
        self.seat.trespass()
    }

    fn lost(&mut self) -> Option<String> {
        self.seat.lost()
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        if self.seat.read(addr, into) { Ok(()) } else { Err(AccessFault::BusError(addr)) }
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        if self.seat.write(addr, from) { Ok(()) } else { Err(AccessFault::BusError(addr)) }
    }

    fn translate(&self, _: u64) -> Option<u64> {
        None
    }
}

impl<A: Heap> Guest for Adapted<A> {
    fn into_spare(self: Box<Self>) -> Spare {
        self.seat.into_memory().map_or_else(Spare::default, Spare::of_memory)
    }
}
