//! Physical frames under live blocks.

use super::block::{Block, Tier};
use kmem::PAGE_SIZE;

/// Who uses a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Use {
    /// Live blocks of the direct map that touch it.
    direct: u32,
    /// Handle of the vmalloc block behind which it is, plus one; 0 for none.
    vmalloc: u64,
}

/// Use of each frame by live blocks. `vmap` areas use none: they alias.
#[derive(Debug)]
pub(super) struct FrameMap {
    uses: Vec<Use>,
    direct_map: u64,
}

impl FrameMap {
    pub(super) fn new(frames: u32, direct_map: u64) -> Self {
        Self { uses: vec![Use::default(); frames as usize], direct_map }
    }

    /// The frames that a block of the direct map touches; empty if it is not wholly inside.
    pub(super) fn direct_range(&self, addr: u64, bytes: usize) -> std::ops::Range<u32> {
        let Some(phys) = addr.checked_sub(self.direct_map) else { return 0..0 };
        let (first, end) = (phys / PAGE_SIZE as u64, (phys.saturating_add(bytes as u64)).div_ceil(PAGE_SIZE as u64));
        if end > self.uses.len() as u64 { 0..0 } else { first as u32..end as u32 }
    }

    pub(super) fn add(&mut self, block: &Block) {
        self.apply(block, |u| u.direct += 1, |u, handle| u.vmalloc = handle + 1);
    }

    pub(super) fn remove(&mut self, block: &Block) {
        self.apply(block, |u| u.direct = u.direct.saturating_sub(1), |u, _| u.vmalloc = 0);
    }

    fn apply(&mut self, block: &Block, direct: impl Fn(&mut Use), vmalloc: impl Fn(&mut Use, u64)) {
        match block.tier {
            Tier::Vmap | Tier::MapRam => {}
            Tier::Vmalloc => {
                for &frame in &block.frames {
                    if let Some(u) = self.uses.get_mut(frame as usize) {
                        vmalloc(u, block.handle);
                    }
                }
            }
            _ => {
                // An object of no bytes keeps its slab too.
                let range = self.direct_range(block.addr, block.usable.max(1));
                self.uses[range.start as usize..range.end as usize].iter_mut().for_each(direct);
            }
        }
    }

    /// The handle of the vmalloc block that owns a frame.
    pub(super) fn vmalloc_owner(&self, frame: u32) -> Option<u64> {
        self.uses.get(frame as usize)?.vmalloc.checked_sub(1)
    }

    /// Whether a live block of the direct map touches a frame.
    pub(super) fn used_directly(&self, frame: u32) -> bool {
        self.uses.get(frame as usize).is_some_and(|u| u.direct > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::block;

    #[test]
    fn frames_are_used_until_the_last_block_on_them_is_gone() {
        let mut map = FrameMap::new(4, 0x10000);
        let (a, b) = (block(Tier::Kmalloc, 0x11000, 64), block(Tier::Kmalloc, 0x11040, 64));
        map.add(&a);
        map.add(&b);
        map.remove(&a);
        assert!(map.used_directly(1) && !map.used_directly(0) && !map.used_directly(2));
        map.remove(&b);
        assert!(!map.used_directly(1));
    }

    #[test]
    fn a_block_outside_the_direct_map_touches_nothing() {
        let map = FrameMap::new(4, 0x10000);
        assert!(map.direct_range(0x1000, 64).is_empty());
        assert!(map.direct_range(0x13fff, 2).is_empty());
        assert_eq!(map.direct_range(0x12fff, 2), 2..4);
    }
}
