//! O4: does every block keep what was written into it?
//!
//! Contract: I2, I4 and I19. Each block gets a pattern keyed by its handle, its generation and the offset
//! ([`super::pattern`]): after the allocation, after each reallocation, and at each write operation. It is
//! compared before each free and reallocation, at read operations, and for a sample of blocks at each audit. A fresh
//! mapping of pages shows what these hold. Objects of a cache with a constructor are not written: they must be constructed
//! when handed out and still so when freed.
//! Precision: blocks above 256 bytes are sampled, at both ends and in every page.

use super::pattern::{self, CONSTRUCTED};
use super::window::shows_others;
use super::{Context, Oracle, OracleId, Violation};
use crate::model::{Block, Tiers, freed_address, old_address};
use crate::subject::{Call, Reply};
use kmem::{FreeError, PAGE_SIZE};

/// How many blocks an audit looks at.
const SAMPLE: usize = 16;

/// See the module.
pub(super) struct Content;

impl Oracle for Content {
    fn id(&self) -> OracleId {
        OracleId::O4Content
    }

    fn before_call(&self, cx: &mut Context<'_>, call: &Call) -> Result<(), Violation> {
        match freed_address(call).or_else(|| old_address(call)) {
            Some(addr) => read_block(cx, addr),
            None => Ok(()),
        }
    }

    /// A block that becomes single pages keeps its contents over the call; then each page gets its own.
    fn before_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        match cx.step.map(|step| (&step.call, &step.reply)) {
            Some((Call::SplitPage { addr, .. }, Reply::Done)) => read_block(cx, *addr),
            _ => Ok(()),
        }
    }

    fn after_update(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let Some(step) = cx.step else { return Ok(()) };
        for page in cx.model.notes.moved_pages.clone() {
            // What the call gave or resized is written anew below.
            let written = |addr: &u64| !matches!(step.reply, Reply::Block { addr: fresh, .. } if fresh == *addr);
            let area = cx.model.overlapping(page, page + 1, None).map(|block| block.addr);
            area.filter(written).map_or(Ok(()), |addr| read_block(cx, addr))?;
        }
        if let (Call::SplitPage { addr, order }, Reply::Done) = (&step.call, &step.reply) {
            let mut pages = (0..1 << order).map(|n| addr + n * PAGE_SIZE as u64);
            return pages.try_for_each(|page| write_block(cx, page));
        }
        match &step.reply {
            Reply::Block { addr, .. } if shows_others(&step.call) => check_shown(cx, *addr),
            Reply::Block { addr, .. } => write_block(cx, *addr),
            // The first page of a block that somebody else holds as well.
            Reply::Done if freed_address(&step.call).is_some_and(|addr| is_unwritten(cx, addr)) => {
                freed_address(&step.call).map_or(Ok(()), |addr| write_block(cx, addr))
            }
            Reply::Pages(pages) => pages.iter().try_for_each(|&addr| write_block(cx, addr)),
            Reply::Rejected(FreeError::Corrupted(addr)) if wipes(&step.call) => write_block(cx, addr.as_u64()),
            _ => Ok(()),
        }
    }

    fn audit(&self, cx: &mut Context<'_>) -> Result<(), Violation> {
        let count = cx.model.count(Tiers::OWNING);
        let from = cx.model.notes.sample;
        cx.model.notes.sample = from.wrapping_add(SAMPLE);
        for n in 0..count.min(SAMPLE) {
            let addr = cx.model.pick(Tiers::OWNING, from.wrapping_add(n)).map(|b| b.addr);
            addr.map_or(Ok(()), |addr| read_block(cx, addr))?;
        }
        Ok(())
    }
}

/// Tells whether a free overwrites the block before it is looked at: also one that is refused for damage around it.
fn wipes(call: &Call) -> bool {
    matches!(call, Call::KfreeSensitive { .. } | Call::KvfreeSensitive { .. })
}

fn is_unwritten(cx: &Context<'_>, addr: u64) -> bool {
    cx.model.block(addr).is_some_and(|block| !block.written)
}

/// Writes a live block anew, with its next generation. A block of a cache with a constructor is only looked at.
///
/// # Errors
///
/// O4 if the block cannot be written.
pub fn write_block(cx: &mut Context<'_>, addr: u64) -> Result<(), Violation> {
    if let Some(object) = constructed(cx, addr) {
        return check_constructed(cx, &object);
    }
    let Some(block) = cx.model.rewritten(addr).filter(|b| Tiers::OWNING.contains(b.tier)) else { return Ok(()) };
    match pattern::write(cx.subject, block) {
        Ok(()) => Ok(()),
        Err(damage) => {
            let (handle, message) = (block.handle, format!("{} cannot be written: {damage}", block.describe()));
            Err(cx.violation(OracleId::O4Content, &[handle], message))
        }
    }
}

/// Compares a live block with what was written last.
///
/// # Errors
///
/// O4 if it holds something else or cannot be read.
pub fn read_block(cx: &mut Context<'_>, addr: u64) -> Result<(), Violation> {
    if let Some(object) = constructed(cx, addr) {
        return check_constructed(cx, &object);
    }
    let Some(block) = cx.model.block(addr).filter(|b| b.written && Tiers::OWNING.contains(b.tier)) else {
        return Ok(());
    };
    match pattern::verify(cx.subject, addr, block, block.requested) {
        Ok(()) => Ok(()),
        Err(damage) => {
            let (handle, message) = (block.handle, format!("{} lost its contents: {damage}", block.describe()));
            Err(cx.violation(OracleId::O4Content, &[handle], message))
        }
    }
}

/// Compares what is seen at another address with what was written last to a live block.
///
/// # Errors
///
/// O4 if something else is seen, or nothing can be read there.
pub fn read_alias(cx: &mut Context<'_>, addr: u64, alias: u64) -> Result<(), Violation> {
    let Some(block) = cx.model.block(addr).filter(|block| block.written) else { return Ok(()) };
    pattern::verify(cx.subject, alias, block, block.requested).map_err(|damage| {
        let message = format!("{} is not what is seen at {alias:#x}: {damage}", block.describe());
        cx.violation(OracleId::O4Content, &[block.handle], message)
    })
}

/// A fresh mapping shows what its frames hold: read by both addresses, as the processor reads.
fn check_shown(cx: &mut Context<'_>, addr: u64) -> Result<(), Violation> {
    let frames = cx.model.block(addr).map_or(Vec::new(), |block| block.frames.clone());
    for (at, frame) in (addr..).step_by(PAGE_SIZE).zip(frames) {
        let (mut shown, mut held) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let own = cx.model.address_of(frame);
        let read = cx.subject.read(at, &mut shown).and_then(|()| cx.subject.read(own, &mut held));
        if let Some(byte) = (0..PAGE_SIZE).find(|&byte| read.is_err() || shown[byte] != held[byte]) {
            let message = format!("{at:#x} does not show frame {frame:#x}: byte {byte} differs, or {read:?}");
            return Err(cx.violation(OracleId::O4Content, &[], message));
        }
    }
    Ok(())
}

/// The block, if its cache has a constructor.
fn constructed(cx: &Context<'_>, addr: u64) -> Option<Block> {
    if cx.model.caches().is_empty() {
        return None;
    }
    let block = cx.model.block(addr)?;
    cx.model.cache(block.cache?).filter(|c| c.ctor).map(|_| block.clone())
}

fn check_constructed(cx: &mut Context<'_>, block: &Block) -> Result<(), Violation> {
    let word = free_pointer(cx, block);
    let parts = [0..word.start, word.end..block.requested];
    let verdict = parts.into_iter().try_for_each(|part| match part.is_empty() {
        true => Ok(()),
        false => pattern::verify_bytes(cx.subject, block.addr, part, &CONSTRUCTED),
    });
    verdict.map_err(|damage| {
        let message = format!("{} is not as its constructor left it: {damage}", block.describe());
        cx.violation(OracleId::O4Content, &[block.handle], message)
    })
}

/// The word of a constructed object that its cache's maker gave away for the free list of a debug cache; empty if none.
fn free_pointer(cx: &Context<'_>, block: &Block) -> std::ops::Range<usize> {
    let cache = block.cache.and_then(|id| cx.model.cache(id)).filter(|cache| cache.spec.is_debugged());
    match cache.and_then(|cache| cache.spec.freeptr_offset) {
        Some(at) => at..(at + size_of::<u64>()).min(block.requested),
        None => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::caches::CacheSpec;
    use crate::oracle::constructed_byte;
    use crate::oracle::fake::{FakeSubject, ask, context, step};
    use kmem::{CacheId, GfpFlags};

    #[test]
    fn a_flipped_bit_is_found_before_the_free() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.direct(3);
        let kmalloc = step(Call::Kmalloc { size: 60, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 64 });
        assert_eq!(ask(&Content, &mut model, &mut subject, &kmalloc), Ok(()));
        let free = Call::Kfree { addr };
        assert_eq!(Content.before_call(&mut context(&mut model, &mut subject), &free), Ok(()));
        subject.flip(addr + 60);
        assert_eq!(Content.before_call(&mut context(&mut model, &mut subject), &free), Ok(()), "byte 60 is spare");
        subject.flip(addr + 59);
        let wrong = Content.before_call(&mut context(&mut model, &mut subject), &free).unwrap_err();
        assert_eq!(wrong.oracle, OracleId::O4Content);
        assert!(Content.audit(&mut context(&mut model, &mut subject)).is_err());
    }

    #[test]
    fn a_block_that_cannot_be_written_is_reported() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let addr = subject.window(3);
        let vmalloc = step(Call::Vmalloc { size: 60, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 60 });
        assert!(ask(&Content, &mut model, &mut subject, &vmalloc).is_err(), "nothing is mapped there");
    }

    #[test]
    fn a_constructed_object_must_be_constructed_when_handed_out() {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        let (addr, cache) = (subject.direct(3), CacheId::new(5));
        let create = Call::CacheCreate { spec: CacheSpec::own(24, 0, false, true) };
        ask(&Content, &mut model, &mut subject, &step(create, Reply::Cache(cache))).unwrap();
        let alloc = step(Call::CacheAlloc { cache, gfp: GfpFlags::KERNEL }, Reply::Block { addr, usable: 24 });
        assert!(ask(&Content, &mut model, &mut subject, &alloc).is_err());
        ask(&Content, &mut model, &mut subject, &step(Call::CacheFree { cache, addr }, Reply::Done)).unwrap();
        let bytes: Vec<u8> = (0..24).map(constructed_byte).collect();
        crate::subject::Subject::write(&mut subject, addr, &bytes).unwrap();
        assert_eq!(ask(&Content, &mut model, &mut subject, &alloc), Ok(()));
    }
}
