//! Tests of the page allocator as a whole, on small machines.

mod blocks;
mod bulk;
mod calls;
mod contig;
mod corrupt;
mod moving;
mod nolock;
mod policy;
mod random;
mod refs;
mod requests;
mod reserves;

use super::PageAllocator;
use crate::addr::Pfn;
use crate::geometry::{Geometry, ZoneKind};
use crate::gfp::GfpFlags;
use crate::order::{NR_PAGE_ORDERS, Order};
use crate::testing::{TestPlatform, zoned};
use std::vec::Vec;

type Pages = PageAllocator<TestPlatform>;

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

fn pfn(n: u32) -> Pfn {
    Pfn::new(n)
}

/// Zones on one node, with a largest order and a pageblock order; no reserve, one CPU.
fn shaped(zones: &[(ZoneKind, u32, u32)], max: u8, pageblock: u8) -> Geometry {
    let mut geometry = zoned(zones);
    geometry.max_order = order(max);
    geometry.pageblock_order = order(pageblock);
    geometry
}

/// Free blocks by zone and order, all types together.
fn free_blocks(pages: &Pages) -> Vec<[u32; NR_PAGE_ORDERS]> {
    (0..).map_while(|zone| pages.zone_info(zone)).map(|info| info.free).collect()
}

/// Allocates until it is refused.
fn exhaust(pages: &Pages, size: Order, gfp: GfpFlags) -> Vec<Pfn> {
    core::iter::from_fn(|| pages.alloc_pages(size, gfp).ok()).collect()
}
