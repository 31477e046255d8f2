//! Looking at every slot of a debug cache.

use super::{Inspector, State};
use crate::addr::Pfn;
use crate::buddy::PageAllocator;
use crate::error::{CacheError, CacheId};
use crate::platform::Platform;
use crate::slab::SlabLayer;
use crate::slab::node::{LIST_ASIDE, Node};

impl SlabLayer {
    /// Checks and repairs every slab of a debug cache; returns how many reports and repairs that took. Of any other cache
    /// there is nothing to check.
    ///
    /// # Errors
    ///
    /// `Unknown`.
    pub(crate) fn cache_validate<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        cache: CacheId,
    ) -> Result<u32, CacheError> {
        let id = cache.index();
        let slabs = self.slabs(pages, id).ok_or(CacheError::Unknown(cache.get()))?;
        let Some(inspector) = self.inspector(pages, id, &slabs) else { return Ok(0) };
        self.nodes_of(id).for_each(|node| inspector.validate(&mut node.lock()));
        Ok(inspector.findings.get())
    }
}

impl<P: Platform> Inspector<'_, P> {
    fn validate(&self, node: &mut Node) {
        // A slab whose counts are repaired may change from one list to the next and is then met twice, the second time
        // without anything to find.
        for list in [Node::full_head, Node::partial_head, Node::aside_head] {
            let mut at = list(node);
            while let Some(head) = at {
                at = self.slabs.frames.next(head);
                self.validate_slab(node, head);
            }
        }
    }

    fn validate_slab(&self, node: &mut Node, head: Pfn) {
        let is_aside = self.slabs.frames.list(head) == LIST_ASIDE;
        self.check_slab_padding(head);
        if !is_aside {
            self.check_chain(node, head);
        }
        for index in 0..self.slabs.objects(head) {
            let object = self.slabs.object(head, index);
            let is_taken = self.slabs.occupancy.is_taken(head, index);
            let is_live = is_taken && self.is_live(object);
            // What is out of its slab and not live is lost or in quarantine: nobody may write it. Or it waits for readers
            // and looks like a live one; which of them it is cannot be told, and its free will look at it.
            if is_taken && !is_live && self.slabs.frames.waiting(head) > 0 {
                continue;
            }
            self.check_object(head, object, if is_live { State::Live } else { State::Free });
        }
    }
}
