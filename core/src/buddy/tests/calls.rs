//! The calls with this file as their caller.

use crate::addr::Pfn;
use crate::buddy::PageAllocator;
use crate::error::AllocError;
use crate::gfp::GfpFlags;
use crate::numa::NodeId;
use crate::order::Order;
use crate::platform::Platform;
use core::panic::Location;

impl<P: Platform> PageAllocator<P> {
    #[track_caller]
    pub(crate) fn alloc_pages_node(
        &self,
        order: Order,
        gfp: GfpFlags,
        node: Option<NodeId>,
    ) -> Result<Pfn, AllocError> {
        self.alloc_pages_at(order, gfp, node, Location::caller())
    }

    #[track_caller]
    pub(crate) fn alloc_pages_exact(&self, size: usize, gfp: GfpFlags) -> Result<Pfn, AllocError> {
        self.alloc_pages_exact_at(size, gfp, Location::caller())
    }
}
