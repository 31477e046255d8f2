//! The live set: blocks by tier for picks, by address for overlap.

use super::block::{Block, Tier, Tiers};
use std::collections::BTreeMap;

/// The live blocks.
///
/// ```text
/// slots[i] is a block  <=>  by_addr[slots[i].addr] == i  <=>  lists[tier][places[i]] == i
/// ```
#[derive(Debug, Default)]
pub(super) struct LiveSet {
    slots: Vec<Option<Block>>,
    vacant: Vec<u32>,
    /// Slots of each tier, in allocation order but for removals, which move the last one into the hole.
    lists: [Vec<u32>; Tier::COUNT],
    /// Where each slot stands in its list.
    places: Vec<u32>,
    by_addr: BTreeMap<u64, u32>,
}

impl LiveSet {
    pub(super) fn len(&self) -> usize {
        self.by_addr.len()
    }

    pub(super) fn insert(&mut self, block: Block) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.places.push(0);
            (self.slots.len() - 1) as u32
        });
        let list = &mut self.lists[block.tier as usize];
        self.places[slot as usize] = list.len() as u32;
        list.push(slot);
        self.by_addr.insert(block.addr, slot);
        self.slots[slot as usize] = Some(block);
    }

    pub(super) fn remove(&mut self, addr: u64) -> Option<Block> {
        let slot = self.by_addr.remove(&addr)?;
        let block = self.slots[slot as usize].take()?;
        self.vacant.push(slot);
        let list = &mut self.lists[block.tier as usize];
        let place = self.places[slot as usize];
        list.swap_remove(place as usize);
        if let Some(&moved) = list.get(place as usize) {
            self.places[moved as usize] = place;
        }
        Some(block)
    }

    pub(super) fn get(&self, addr: u64) -> Option<&Block> {
        self.slot(*self.by_addr.get(&addr)?)
    }

    pub(super) fn get_mut(&mut self, addr: u64) -> Option<&mut Block> {
        self.slots[*self.by_addr.get(&addr)? as usize].as_mut()
    }

    /// The block with the number `n` modulo their count, among the tiers of the set.
    pub(super) fn pick(&self, tiers: Tiers, n: usize) -> Option<&Block> {
        let mut n = n.checked_rem(self.count(tiers))?;
        for tier in Tier::ALL.into_iter().filter(|&t| tiers.contains(t)) {
            let list = &self.lists[tier as usize];
            match list.get(n) {
                Some(&slot) => return self.slot(slot),
                None => n -= list.len(),
            }
        }
        None
    }

    pub(super) fn count(&self, tiers: Tiers) -> usize {
        Tier::ALL.into_iter().filter(|&t| tiers.contains(t)).map(|t| self.lists[t as usize].len()).sum()
    }

    pub(super) fn iter(&self, tiers: Tiers) -> impl Iterator<Item = &Block> {
        let lists = Tier::ALL.into_iter().filter(move |&t| tiers.contains(t)).map(|t| &self.lists[t as usize]);
        lists.flatten().filter_map(|&slot| self.slot(slot))
    }

    /// A block that shares a byte with `[start, end)`, other than the one that starts at `except`.
    pub(super) fn overlapping(&self, start: u64, end: u64, except: Option<u64>) -> Option<&Block> {
        let below = self.by_addr.range(..end).rev().filter(|&(&addr, _)| Some(addr) != except);
        // Live blocks are disjoint, so the last one that starts below `end` reaches furthest.
        let block = below.map(|(_, &slot)| slot).next().and_then(|slot| self.slot(slot))?;
        (block.end() > start).then_some(block)
    }

    fn slot(&self, slot: u32) -> Option<&Block> {
        self.slots.get(slot as usize)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::block;

    #[test]
    fn picks_are_total_and_follow_removals() {
        let mut set = LiveSet::default();
        assert!(set.pick(Tiers::ALL, 7).is_none());
        for i in 0..5 {
            set.insert(block(Tier::Kmalloc, 0x1000 + i * 64, 64));
        }
        set.insert(block(Tier::Pages, 0x8000, 4096));
        assert_eq!(set.pick(Tiers::KMALLOC, 6).map(|b| b.addr), Some(0x1040));
        assert_eq!(set.pick(Tiers::PAGES, 3).map(|b| b.addr), Some(0x8000));
        assert!(set.remove(0x1000).is_some());
        assert_eq!(set.pick(Tiers::KMALLOC, 0).map(|b| b.addr), Some(0x1100), "the last one moved into the hole");
        assert!(set.remove(0x1100).is_some());
        assert_eq!((set.len(), set.count(Tiers::KMALLOC)), (4, 3));
        assert!(set.remove(0x1100).is_none());
    }

    #[test]
    fn overlap_is_found_on_both_sides_and_touching_is_none() {
        let mut set = LiveSet::default();
        set.insert(block(Tier::Kmalloc, 0x1000, 64));
        assert!(set.overlapping(0xfc0, 0x1000, None).is_none());
        assert!(set.overlapping(0x1040, 0x1080, None).is_none());
        assert!(set.overlapping(0xfff, 0x1001, None).is_some());
        assert!(set.overlapping(0x103f, 0x1041, None).is_some());
        assert!(set.overlapping(0x1000, 0x1040, Some(0x1000)).is_none());
    }
}
