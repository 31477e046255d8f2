//! The part of O17 that reads `vmallocinfo` back.
//!
//! Contract: section 4.8. Each line has the range with its guard, the size of that, and for a live area its mapped pages, its
//! kind and how many of its frames each memory node has, which is counted here from the frames that the model saw.

use super::Context;
use crate::model::{Block, Tier};
use kmem::{AreaKind, Geometry, MAX_NODES, PAGE_SIZE, VmallocEntry};

/// Compares every listed area with its text, and every live one with the model.
pub(super) fn check(cx: &Context<'_>) -> Result<(), String> {
    let Some(inside) = cx.subject.white_box() else { return Ok(()) };
    for entry in inside.vmallocinfo() {
        let text = entry.to_string();
        check_range(&entry, &text)?;
        if entry.kind == AreaKind::Ram {
            super::ram::check_listed(cx.model, &entry, &text)?;
            continue;
        }
        let block = cx.model.block(entry.start.as_u64()).filter(|block| block.tier.is_virtual());
        match (entry.kind.is_live(), block) {
            (true, Some(block)) => check_live(inside.geometry(), block, &text)?,
            (false, None) => check_dead(&entry, &text)?,
            _ => return Err(format!("vmallocinfo has {text:?}, the model {:?}", block.map(Block::describe))),
        }
    }
    Ok(())
}

/// The range, its guard included, and its size.
fn check_range(entry: &VmallocEntry, text: &str) -> Result<(), String> {
    let start = entry.start.as_u64();
    let bytes = (entry.pages.get() + entry.guard.get()) * PAGE_SIZE as u64;
    let expected = format!("{start:#018x}-{:#018x} {bytes:>7} ", start + bytes);
    if text.starts_with(&expected) { Ok(()) } else { Err(format!("vmallocinfo has {text:?} for {entry:?}")) }
}

fn check_live(geometry: &Geometry, block: &Block, text: &str) -> Result<(), String> {
    let word = if block.tier == Tier::Vmap { "vmap" } else { "vmalloc" };
    let words: Vec<&str> = text.split_whitespace().collect();
    let on_nodes: Vec<&str> = words.iter().copied().filter(|word| word.starts_with('N')).collect();
    let pages = format!("pages={}", block.frames.len());
    if words.contains(&word) && words.contains(&pages.as_str()) && on_nodes == counted(geometry, block) {
        return Ok(());
    }
    let counted = counted(geometry, block);
    Err(format!("vmallocinfo has {text:?} for {} with {pages} {word} {counted:?}", block.describe()))
}

/// What is said of frames by memory node.
fn counted(geometry: &Geometry, block: &Block) -> Vec<String> {
    let mut on_nodes = [0u32; MAX_NODES];
    for &pfn in &block.frames {
        let zones = geometry.zones().iter();
        let mut home = zones.filter(|zone| {
            let distance = pfn.checked_sub(zone.start.as_u32());
            distance.is_some_and(|distance| u64::from(distance) < zone.frames.get())
        });
        if let Some(zone) = home.next() {
            on_nodes[zone.node.index()] += 1;
        }
    }
    let used = on_nodes.iter().enumerate().filter(|(_, pages)| **pages > 0);
    used.map(|(node, pages)| format!("N{node}={pages}")).collect()
}

/// What is nobody's is said to be that, without pages by node.
fn check_dead(entry: &VmallocEntry, text: &str) -> Result<(), String> {
    let words = match entry.kind {
        AreaKind::Lazy => "unpurged vm_area",
        AreaKind::Pooled => "pooled vm_area",
        _ => return Ok(()),
    };
    if text.ends_with(words) { Ok(()) } else { Err(format!("vmallocinfo has {text:?} for {entry:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::fake::{FakeSubject, context, step};
    use crate::subject::{Call, Reply};
    use kmem::{GfpFlags, PageCount, VirtAddr, VmFlags};

    /// What is said to a machine with one live area of two pages, of which `change` changes the report.
    fn verdict(change: fn(&mut VmallocEntry)) -> Result<(), String> {
        let mut subject = FakeSubject::new(64);
        let mut model = subject.model();
        subject.map(2, &[7, 8]);
        let addr = subject.window(2);
        let call = Call::Vmalloc { size: 2 * PAGE_SIZE, gfp: GfpFlags::KERNEL };
        model.update(&step(call, Reply::Block { addr, usable: 2 * PAGE_SIZE }), &subject);
        let mut entry = VmallocEntry {
            start: VirtAddr::new(addr),
            pages: PageCount::new(2),
            guard: PageCount::new(1),
            mapped: PageCount::new(2),
            requested: 2 * PAGE_SIZE,
            kind: AreaKind::Vmalloc,
            flags: VmFlags::empty(),
            on_nodes: [2, 0, 0, 0],
        };
        change(&mut entry);
        subject.areas.push(entry);
        check(&context(&mut model, &mut subject))
    }

    #[test]
    fn a_line_that_is_off_by_one_is_found() {
        assert_eq!(verdict(|_| {}), Ok(()));
        assert!(verdict(|entry| entry.mapped = PageCount::new(1)).is_err());
        assert!(verdict(|entry| entry.on_nodes = [1, 1, 0, 0]).is_err());
        assert!(verdict(|entry| entry.kind = AreaKind::Vmap).is_err());
        assert!(verdict(|entry| entry.kind = AreaKind::Lazy).is_err(), "it is live");
    }
}
