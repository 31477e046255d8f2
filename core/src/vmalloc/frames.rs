//! The page stage: where the frames of an area come from.
//!
//! An area needs single frames, but the fewer runs they form, the better: a run costs one look at a zone however long it
//! is, goes back as one, and 512 pages of one need a single entry. So the largest blocks come first (mixed backing), each cut into
//! single frames at once; what is left over comes page by page from this CPU's lists.

use super::alloc::Place;
use crate::addr::Pfn;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::fault::{FaultPoint, FaultSite};
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::page::{FrameKind, PageList};
use crate::paging::free_list;
use crate::platform::{Event, Platform};

/// A shorter run is not worth the zone's lock.
const SHORTEST_RUN: u8 = 3;

/// Gets the frames for a place, in the order of its pages, or none.
///
/// # Errors
///
/// `Injected`; the refusal of a single page, or of a run for a huge entry.
pub(super) fn alloc_frames<P: Platform>(
    pages: &PageAllocator<P>,
    place: &Place,
    gfp: GfpFlags,
    node: Option<NodeId>,
) -> Result<PageList, AllocError> {
    if pages.base.fault(FaultSite::new(FaultPoint::VmallocPages, gfp).with_order(place.leaf)) {
        return Err(AllocError::Injected(FaultPoint::VmallocPages));
    }
    let mut frames = PageList::EMPTY;
    let filled = if place.leaf == Order::ZERO {
        add_runs(pages, place.pages, gfp, node, &mut frames);
        add_singles(pages, place.pages, gfp, node, &mut frames)
    } else {
        add_leaves(pages, place, gfp, node, &mut frames)
    };
    match filled {
        Ok(()) => Ok(frames),
        Err(refused) => {
            free_list(pages, &mut frames);
            Err(refused)
        }
    }
}

/// Adds one run for each huge entry.
fn add_leaves<P: Platform>(
    pages: &PageAllocator<P>,
    place: &Place,
    gfp: GfpFlags,
    node: Option<NodeId>,
    frames: &mut PageList,
) -> Result<(), AllocError> {
    while u64::from(frames.len()) < place.pages {
        let run = pages.alloc_run(place.leaf, gfp, node, FrameKind::Vmalloc);
        add_run(pages, run.ok_or(AllocError::NoPages { order: place.leaf })?, place.leaf, frames);
    }
    Ok(())
}

/// Adds the longest runs that are free, as long as there is room for them.
fn add_runs<P: Platform>(
    pages: &PageAllocator<P>,
    count: u64,
    gfp: GfpFlags,
    node: Option<NodeId>,
    frames: &mut PageList,
) {
    let mut longest = pages.base.geometry.max_order.get();
    loop {
        let left = count.saturating_sub(frames.len().into());
        let fitting = left.checked_ilog2().unwrap_or(0) as u8;
        let Some(order) = Order::new(longest.min(fitting)).filter(|order| order.get() >= SHORTEST_RUN) else { return };
        match pages.alloc_run(order, gfp, node, FrameKind::Vmalloc) {
            Some(first) => {
                add_run(pages, first, order, frames);
                pages.base.event(Event::VmallocRun);
            }
            None => longest = order.get() - 1,
        }
    }
}

/// Adds single pages until there are `count`.
fn add_singles<P: Platform>(
    pages: &PageAllocator<P>,
    count: u64,
    gfp: GfpFlags,
    node: Option<NodeId>,
    frames: &mut PageList,
) -> Result<(), AllocError> {
    while u64::from(frames.len()) < count {
        let frame = pages.alloc_block_on(Order::ZERO, gfp, node, FrameKind::Vmalloc)?;
        frames.push_tail(&pages.base.frames, frame);
    }
    Ok(())
}

fn add_run<P: Platform>(pages: &PageAllocator<P>, first: Pfn, order: Order, frames: &mut PageList) {
    for frame in (0..order.pages()).map_while(|offset| first.checked_add(offset)) {
        frames.push_tail(&pages.base.frames, frame);
    }
}
