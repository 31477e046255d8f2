//! Frees that wait for readers: what is still to be found where it was.

use super::Model;
use super::block::Tier;
use super::limbo::Why;
use crate::subject::{Reply, Subject};
use kmem::{AreaKind, CacheId, FrameKind, PAGE_SIZE, SlabFlags};
use std::collections::BTreeMap;

/// Calls about frees that wait, and about readers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RcuCall {
    /// `kfree_rcu` with a head at this place.
    Kfree {
        /// The block.
        addr: u64,
        /// Where the head is.
        head: usize,
    },
    /// `kvfree_rcu`.
    Kvfree {
        /// The block.
        addr: u64,
        /// Where the head is.
        head: usize,
    },
    /// `kvfree_rcu_mightsleep`.
    KvfreeMightsleep {
        /// The block.
        addr: u64,
    },
    /// `kfree_rcu_monitor`.
    Monitor,
    /// `kvfree_rcu_barrier`.
    Barrier,
    /// A reader enters a section.
    ReadLock,
    /// A reader leaves its section.
    ReadUnlock {
        /// Which one, modulo their count.
        n: usize,
    },
    /// The grace periods that no reader holds up end.
    GracePeriod,
}

impl RcuCall {
    /// The block that the call gives up, and the head in it.
    pub fn block(&self) -> Option<(u64, Option<usize>)> {
        match *self {
            Self::Kfree { addr, head } | Self::Kvfree { addr, head } => Some((addr, Some(head))),
            Self::KvfreeMightsleep { addr } => Some((addr, None)),
            _ => None,
        }
    }
}

/// Frames on which objects of a `TYPESAFE_BY_RCU` cache were, and since when a reader may not look at them any more.
#[derive(Debug, Default)]
pub(super) struct Guards {
    frames: BTreeMap<u32, (CacheId, u64)>,
}

impl Model {
    /// Follows such a call.
    pub(super) fn follow_rcu(&mut self, call: &RcuCall, reply: &Reply) {
        let Some((addr, head)) = call.block().filter(|_| *reply == Reply::Done) else { return };
        let stamp = self.notes.time + 1;
        if let Some(block) = self.remove(addr) {
            self.guard(&block, stamp);
            self.limbo.add(block, Why::Rcu { stamp, head });
        }
    }

    /// Forgets what the subject has freed after its grace period.
    pub(super) fn settle(&mut self, subject: &dyn Subject) {
        let Some(inside) = subject.white_box() else { return };
        let (_, completed) = inside.grace_periods();
        self.guards.frames.retain(|_, (_, stamp)| *stamp > completed);
        if self.limbo.is_empty() {
            return;
        }
        let first_frame = |addr: u64| self.direct_frames(addr, PAGE_SIZE).start;
        let is_listed = |addr: u64, kind| inside.vm_area(addr).is_some_and(|area| area.kind == kind);
        let gone = |ghost: &&super::Ghost| match (ghost.why, ghost.block.tier) {
            (Why::Deferred, _) => !is_listed(ghost.block.addr, AreaKind::Deferred),
            (_, Tier::LargeKmalloc) => inside.frame_kind(first_frame(ghost.block.addr)) != FrameKind::LargePending,
            (_, Tier::Vmalloc) => !is_listed(ghost.block.addr, AreaKind::Pending),
            _ => true,
        };
        let waiting = self.limbo.deferred().chain(self.limbo.awaited(completed));
        let gone: Vec<u64> = waiting.filter(gone).map(|ghost| ghost.block.addr).collect();
        for ghost in gone {
            if let Some(ghost) = self.limbo.remove(ghost).filter(|ghost| ghost.why == Why::Deferred) {
                self.drop_pages(&ghost.block);
            }
        }
    }

    /// Notes which frames an object leaves whose cache promises its readers that the frames keep their type.
    pub(super) fn guard(&mut self, block: &super::Block, stamp: u64) {
        let Some(cache) = block.cache.and_then(|id| self.cache(id)) else { return };
        if cache.spec.flags.contains(SlabFlags::TYPESAFE_BY_RCU) {
            let root = cache.root;
            for frame in self.direct_frames(block.addr, block.usable) {
                self.guards.frames.insert(frame, (root, stamp));
            }
        }
    }

    /// The cache whose readers may still look at a frame.
    pub fn guard_of(&self, frame: u32, completed: u64) -> Option<CacheId> {
        self.guards.frames.get(&frame).filter(|(_, stamp)| *stamp > completed).map(|(cache, _)| *cache)
    }

    /// Pages that blocks of a tier still have although they were given up.
    pub fn waiting_pages(&self, tier: Tier) -> u64 {
        self.limbo.waiting_pages(tier)
    }
}
