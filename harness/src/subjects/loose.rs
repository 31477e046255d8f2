//! A simple allocator that promises only what every allocator promises, and the mistakes that can be built into it.

use super::heap::Heap;
use super::{Guest, Spare, ordinary_bytes};
use crate::machine::SimMachine;
use crate::subject::{AccessFault, Call, Reply, Strength, Subject};
use kmem::{AllocError, FreeError, Geometry, GfpFlags, MAX_PAGE_ORDER, Order, PAGE_SIZE, VirtAddr};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a degenerate allocator does differently; every default is right.
pub trait Flaw {
    /// The subject's name.
    fn name(&self) -> &'static str;

    /// Chooses where a block goes.
    fn place(&mut self, heap: &mut Heap, size: u64, align: u64) -> Option<Range<u64>> {
        heap.take(size, align)
    }

    /// How many bytes are zeroed where `bytes` should be.
    fn zeroed(&mut self, bytes: usize) -> usize {
        bytes
    }

    /// How many bytes a reallocation copies where `bytes` should be.
    fn copied(&mut self, bytes: usize) -> usize {
        bytes
    }

    /// Hears that somebody reads memory.
    fn looked(&mut self) {}

    /// How many bytes the caller is told to have where there are `bytes`.
    fn usable(&mut self, bytes: usize) -> usize {
        bytes
    }
}

/// No mistake.
#[derive(Default)]
pub struct Honest;

impl Flaw for Honest {
    fn name(&self) -> &'static str {
        "loose"
    }
}

/// Where a live block is.
struct Placed {
    range: Range<u64>,
    usable: usize,
}

/// A first-fit allocator over the direct map: pages, `kmalloc`, and `kvmalloc` without the fallback.
pub struct Loose<F> {
    machine: SimMachine,
    heap: Heap,
    live: BTreeMap<u64, Placed>,
    flaw: F,
}

const NO_PAGES: Reply = Reply::Refused(AllocError::NoPages { order: Order::ZERO });
/// Blocks are multiples of this, and aligned to it.
const GRAIN: usize = 8;

impl<F: Flaw> Loose<F> {
    /// Builds the allocator over all frames but those of the movable zone, which ordinary requests may not use.
    pub fn new(geometry: &Geometry, spare: Spare, flaw: F) -> Self {
        let base = geometry.direct_map.as_u64();
        Self {
            machine: spare.machine(geometry),
            heap: Heap::new(base..base + ordinary_bytes(geometry)),
            live: BTreeMap::new(),
            flaw,
        }
    }

    fn alloc(&mut self, size: usize, align: usize, gfp: GfpFlags) -> Reply {
        if gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32) {
            return Reply::Unsupported;
        }
        let Some(reserved) = size.checked_next_multiple_of(GRAIN) else { return NO_PAGES };
        let Some(range) = self.flaw.place(&mut self.heap, reserved as u64, align.max(GRAIN) as u64) else {
            return NO_PAGES;
        };
        let usable = self.flaw.usable(reserved);
        if gfp.wants_zero() {
            self.zero(range.start, reserved);
        }
        let addr = range.start;
        self.live.insert(addr, Placed { range, usable });
        Reply::Block { addr, usable }
    }

    fn zero(&mut self, addr: u64, bytes: usize) {
        let bytes = self.flaw.zeroed(bytes);
        self.fill_with_zero(addr, bytes);
    }

    fn fill_with_zero(&self, addr: u64, bytes: usize) {
        let zeros = [0; PAGE_SIZE];
        for at in (0..bytes).step_by(PAGE_SIZE) {
            let written = self.machine.write(addr + at as u64, &zeros[..PAGE_SIZE.min(bytes - at)]);
            debug_assert_eq!(written, Ok(()), "the block lies in the direct map");
        }
    }

    fn alloc_pages(&mut self, order: u8, gfp: GfpFlags) -> Reply {
        match Order::new(order) {
            Some(order) => self.alloc(order.bytes(), order.bytes(), gfp),
            None => Reply::Refused(AllocError::OrderTooLarge { max: Order::MAX }),
        }
    }

    fn alloc_pages_exact(&mut self, size: usize, gfp: GfpFlags) -> Reply {
        match size.checked_next_multiple_of(PAGE_SIZE) {
            Some(0) => Reply::Refused(AllocError::ZeroSize),
            Some(bytes) => self.alloc(bytes, Order::for_bytes(bytes).unwrap_or_default().bytes(), gfp),
            None => NO_PAGES,
        }
    }

    fn kmalloc(&mut self, size: usize, gfp: GfpFlags) -> Reply {
        let limit = PAGE_SIZE << MAX_PAGE_ORDER;
        if size == 0 {
            return Reply::Block { addr: VirtAddr::ZERO_SIZE.as_u64(), usable: 0 };
        }
        if size > limit {
            return Reply::Refused(AllocError::TooLarge { requested: size, limit });
        }
        self.alloc(size, 1 << size.trailing_zeros(), gfp)
    }

    fn array(&mut self, n: usize, size: usize, gfp: GfpFlags) -> Reply {
        n.checked_mul(size).map_or(Reply::Refused(AllocError::Overflow), |bytes| self.kmalloc(bytes, gfp))
    }

    fn realloc(&mut self, addr: u64, size: usize, gfp: GfpFlags) -> Reply {
        let old = self.live.get(&addr).map_or(0, |placed| (placed.range.end - placed.range.start) as usize);
        let reply = self.kmalloc(size, gfp - GfpFlags::ZERO);
        if let Reply::Block { addr: new, usable } = reply {
            let kept = old.min(size);
            let copied = self.flaw.copied(kept);
            self.copy(addr, new, copied);
            if gfp.wants_zero() {
                self.zero(new + kept as u64, usable - kept);
            }
            self.free(addr);
        }
        reply
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) {
        let mut buffer = vec![0; bytes];
        let copied = self.machine.read(from, &mut buffer).and_then(|()| self.machine.write(to, &buffer));
        debug_assert!(copied.is_ok() || bytes == 0, "both blocks lie in the direct map");
    }

    fn free(&mut self, addr: u64) -> Reply {
        if VirtAddr::new(addr).is_zero_or_null() {
            return Reply::Done;
        }
        match self.live.remove(&addr) {
            Some(placed) => {
                self.heap.give(placed.range);
                Reply::Done
            }
            None => Reply::Rejected(FreeError::Foreign(VirtAddr::new(addr))),
        }
    }

    fn wipe_and_free(&mut self, addr: u64, len: usize) -> Reply {
        if let Some(placed) = self.live.get(&addr) {
            self.fill_with_zero(addr, len.min(placed.usable));
        }
        self.free(addr)
    }

    fn usable(&self, addr: u64) -> usize {
        self.live.get(&addr).map_or(0, |placed| placed.usable)
    }
}

impl<F: Flaw> Subject for Loose<F> {
    fn name(&self) -> &str {
        self.flaw.name()
    }

    fn strength(&self) -> Strength {
        Strength::Loose
    }

    fn call(&mut self, call: &Call) -> Reply {
        match *call {
            Call::AllocPages { order, gfp } | Call::AllocPagesNode { order, gfp, .. } => self.alloc_pages(order, gfp),
            Call::AllocPagesExact { size, gfp } => self.alloc_pages_exact(size, gfp),
            Call::Kmalloc { size, gfp } | Call::Kvmalloc { size, gfp } => self.kmalloc(size, gfp),
            Call::KmallocArray { n, size, gfp } | Call::KvmallocArray { n, size, gfp } => self.array(n, size, gfp),
            Call::Krealloc { addr, size, gfp } | Call::Kvrealloc { addr, size, gfp } => self.realloc(addr, size, gfp),
            Call::FreePages { addr, .. }
            | Call::FreePagesExact { addr, .. }
            | Call::Kfree { addr }
            | Call::Kvfree { addr } => self.free(addr),
            Call::KfreeSensitive { addr } => self.wipe_and_free(addr, usize::MAX),
            Call::KvfreeSensitive { addr, len } => self.wipe_and_free(addr, len),
            Call::Ksize { addr } => Reply::Size(self.usable(addr)),
            Call::DrainPages | Call::Purge | Call::Reclaim => Reply::Done,
            Call::SetCpu { cpu } => {
                self.machine.set_cpu(cpu);
                Reply::Done
            }
            _ => Reply::Unsupported,
        }
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        self.flaw.looked();
        self.machine.read(addr, into)
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        self.machine.write(addr, from)
    }

    fn translate(&self, addr: u64) -> Option<u64> {
        self.machine.translate(addr)
    }

    fn tlb_lookup(&self, addr: u64) -> Option<u64> {
        self.machine.tlb_lookup(addr)
    }
}

impl<F: Flaw> Guest for Loose<F> {
    fn into_spare(self: Box<Self>) -> Spare {
        Spare::of_machine(self.machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loose() -> Loose<Honest> {
        Loose::new(&Geometry::flat(16), Spare::default(), Honest)
    }

    fn block(reply: Reply) -> (u64, usize) {
        match reply {
            Reply::Block { addr, usable } => (addr, usable),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reallocation_keeps_the_prefix_and_zeroes_the_growth() {
        let mut subject = loose();
        let gfp = GfpFlags::KERNEL | GfpFlags::ZERO;
        let (old, _) = block(subject.call(&Call::Kmalloc { size: 10, gfp }));
        subject.write(old, b"0123456789").unwrap();
        let (new, usable) = block(subject.call(&Call::Krealloc { addr: old, size: 100, gfp }));
        let mut bytes = vec![1; usable];
        subject.read(new, &mut bytes).unwrap();
        assert_eq!(&bytes[..10], b"0123456789");
        assert!(bytes[10..].iter().all(|&byte| byte == 0));
        assert_eq!(subject.call(&Call::Ksize { addr: old }), Reply::Size(0));
    }

    #[test]
    fn everything_freed_is_one_block_again() {
        let mut subject = loose();
        let pages = Call::AllocPages { order: 1, gfp: GfpFlags::KERNEL };
        let blocks: Vec<u64> = (0..8).map(|_| block(subject.call(&pages)).0).collect();
        assert_eq!(subject.call(&pages), NO_PAGES);
        for addr in blocks {
            assert_eq!(subject.call(&Call::FreePages { addr, order: 1 }), Reply::Done);
        }
        block(subject.call(&Call::AllocPages { order: 4, gfp: GfpFlags::KERNEL }));
    }
}
