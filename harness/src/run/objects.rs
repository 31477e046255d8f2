//! Operations on several objects at once: which live blocks and sheaves they mean.

use super::session::{Session, Verdict};
use crate::model::{Block, SheafModel, Tiers};
use crate::subject::{Call, ObjectsCall};
use crate::trace::Op;
use kmem::{GfpFlags, MAX_NODES};

/// The call that returns a sheaf.
pub(super) fn return_call(sheaf: SheafModel) -> Call {
    Call::Objects(ObjectsCall::ReturnSheaf { sheaf: sheaf.number, cache: sheaf.cache })
}

impl Session {
    /// The call of an operation on several objects; `None` for other operations, and if a pick finds nothing.
    pub(super) fn resolve_objects(&self, op: &Op) -> Option<Call> {
        let cache = |n: u16| self.model.pick_cache(usize::from(n)).map(|cache| cache.id);
        let node = |n: u8| n % MAX_NODES as u8;
        Some(Call::Objects(match *op {
            Op::KmallocNode { size, gfp, node: n } => {
                ObjectsCall::KmallocNode { size: size as usize, gfp: gfp.to_flags(), node: node(n) }
            }
            Op::CacheAllocNode { cache: c, gfp, node: n } => {
                ObjectsCall::CacheAllocNode { cache: cache(c)?, gfp: gfp.to_flags(), node: node(n) }
            }
            Op::CacheAllocBulk { cache: c, count, gfp } => {
                ObjectsCall::AllocBulk { cache: cache(c)?, gfp: gfp.to_flags(), count: usize::from(count) }
            }
            Op::CacheFreeBulk { pick, count, mixed } => self.free_bulk(usize::from(pick), usize::from(count), mixed)?,
            Op::PrefillSheaf { cache: c, count, gfp } => {
                ObjectsCall::PrefillSheaf { cache: cache(c)?, gfp: gfp.to_flags(), count: usize::from(count) }
            }
            Op::AllocFromSheaf { pick, gfp } => {
                let sheaf = self.picked_sheaf(pick)?;
                ObjectsCall::AllocFromSheaf { sheaf: sheaf.number, cache: sheaf.cache, gfp: gfp.to_flags() }
            }
            Op::RefillSheaf { pick, count, gfp } => {
                let (sheaf, count) = (self.picked_sheaf(pick)?, usize::from(count));
                ObjectsCall::RefillSheaf { sheaf: sheaf.number, cache: sheaf.cache, gfp: gfp.to_flags(), count }
            }
            Op::KmallocNolock { size, gfp } => {
                // Most callers know what they may ask for.
                let gfp = gfp.to_flags();
                let gfp = if size % 16 == 15 { gfp } else { gfp & GfpFlags::ZERO };
                ObjectsCall::KmallocNolock { size: size as usize, gfp }
            }
            Op::KfreeNolock { pick } => {
                let block = self.model.pick(Tiers::OBJECTS, usize::from(pick))?;
                ObjectsCall::KfreeNolock { addr: block.addr, cache: block.cache }
            }
            Op::ReturnSheaf { pick } => return self.picked_sheaf(pick).map(return_call),
            _ => return None,
        }))
    }

    fn picked_sheaf(&self, pick: u16) -> Option<SheafModel> {
        let sheaves = self.model.sheaves();
        sheaves.get(usize::from(pick).checked_rem(sheaves.len())?).copied()
    }

    /// Up to `count` blocks from the picked one on: objects of the same cache, or any that `kfree` takes.
    fn free_bulk(&self, pick: usize, count: usize, mixed: bool) -> Option<ObjectsCall> {
        let tiers = if mixed { Tiers::OBJECTS } else { Tiers::CACHE };
        let cache = self.model.pick(tiers, pick)?.cache.filter(|_| !mixed);
        let picked = (0..count.min(self.model.count(tiers))).filter_map(|n| self.model.pick(tiers, pick + n));
        let fits = |block: &&Block| (mixed || block.cache == cache) && self.is_sound(block);
        let blocks = picked.filter(fits).map(|block| (block.addr, block.cache)).collect();
        Some(ObjectsCall::FreeBulk { cache, blocks })
    }

    /// Tells whether nothing around a block is damaged: one such object would have a whole bulk refused although the others
    /// are free.
    pub(super) fn is_sound(&self, block: &Block) -> bool {
        self.model.damage_at_free(&Call::Kfree { addr: block.addr }, block.addr) == 0
    }

    /// Destroys a cache; its owner returns the sheaves before.
    pub(super) fn destroy_cache(&mut self, n: u16) -> Verdict {
        let Some(cache) = self.model.pick_cache(usize::from(n)).map(|cache| cache.id) else { return Ok(()) };
        while let Some(sheaf) = self.model.sheaves().iter().find(|sheaf| sheaf.cache == cache).copied() {
            self.call(return_call(sheaf))?;
        }
        self.call(Call::CacheDestroy { cache }).map(drop)
    }
}
