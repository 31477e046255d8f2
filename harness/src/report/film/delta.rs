//! What changed between two states.

use super::state::{Area, BlockRecord, CacheRecord, Leaf, Map, State};
use crate::report::owners::OWNER_BITS;
use serde::{Serialize, Serializer};

/// The differences from one state to the next. The same state again is an empty one.
///
/// ```text
/// D1  the changes from a to b, made to a, give b, if their lists are equally long
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(in crate::report) struct Delta {
    #[serde(rename = "f", skip_serializing_if = "Vec::is_empty")]
    frames: Vec<i64>,
    #[serde(rename = "p", skip_serializing_if = "Vec::is_empty")]
    pageblocks: Vec<i64>,
    #[serde(rename = "z", skip_serializing_if = "Vec::is_empty")]
    free: Vec<i64>,
    #[serde(rename = "n", skip_serializing_if = "Vec::is_empty")]
    counts: Vec<i64>,
    #[serde(rename = "w", skip_serializing_if = "Changes::is_empty")]
    window: Changes<Area>,
    #[serde(rename = "l", skip_serializing_if = "Changes::is_empty")]
    leaves: Changes<Leaf>,
    #[serde(rename = "b", skip_serializing_if = "Changes::is_empty")]
    blocks: Changes<BlockRecord>,
    #[serde(rename = "c", skip_serializing_if = "Changes::is_empty")]
    caches: Changes<CacheRecord>,
}

impl Delta {
    /// The differences between two states of one machine.
    pub(in crate::report) fn between(from: &State, to: &State) -> Self {
        Self {
            frames: runs(&from.frames, &to.frames),
            pageblocks: runs(&from.pageblocks, &to.pageblocks),
            free: runs(&from.free, &to.free),
            counts: runs(&from.counts, &to.counts),
            window: Changes::between(&from.window, &to.window),
            leaves: Changes::between(&from.leaves, &to.leaves),
            blocks: Changes::between(&from.blocks, &to.blocks),
            caches: Changes::between(&from.caches, &to.caches),
        }
    }

    /// The owners, by number, of the frames and pages that changed theirs.
    pub(in crate::report) fn owners(&self) -> impl Iterator<Item = i64> {
        let frames = self.frames.chunks_exact(3).map(|run| run[2] & ((1 << OWNER_BITS) - 1));
        frames.chain(self.window.set.values().map(|area| area.1))
    }
}

/// The places where `to` is different, as runs of one value: entries to skip since the last run, entries, value.
fn runs(from: &[i64], to: &[i64]) -> Vec<i64> {
    let mut runs: Vec<i64> = Vec::new();
    let mut end = 0;
    for (at, (_, &value)) in from.iter().zip(to).enumerate().filter(|(_, (old, new))| old != new) {
        match runs.as_mut_slice() {
            [.., len, last] if end == at && *last == value => *len += 1,
            _ => runs.extend([(at - end) as i64, 1, value]),
        }
        end = at + 1;
    }
    runs
}

/// What changed in a map: entries that are new or different, and keys that are gone. In JSON one object; what is gone has
/// `null`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changes<T> {
    set: Map<T>,
    gone: Vec<u64>,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { set: Map::new(), gone: Vec::new() }
    }
}

impl<T: Clone + PartialEq> Changes<T> {
    /// Goes through both maps at once: most entries are the same, and there may be thousands.
    fn between(from: &Map<T>, to: &Map<T>) -> Self {
        let mut changes = Self::default();
        let mut old = from.iter().peekable();
        for (key, value) in to {
            while let Some((gone, _)) = old.next_if(|(other, _)| *other < key) {
                changes.gone.push(*gone);
            }
            if old.next_if(|(other, _)| *other == key).is_none_or(|(_, before)| before != value) {
                changes.set.insert(*key, value.clone());
            }
        }
        changes.gone.extend(old.map(|(gone, _)| *gone));
        changes
    }
}

impl<T> Changes<T> {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }
}

impl<T: Serialize> Serialize for Changes<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let set = self.set.iter().map(|(key, value)| (key, Some(value)));
        serializer.collect_map(set.chain(self.gone.iter().map(|key| (key, None))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    /// What the script of the page does, in Rust.
    impl State {
        fn apply(&mut self, delta: &Delta) {
            fill(&mut self.frames, &delta.frames);
            fill(&mut self.pageblocks, &delta.pageblocks);
            fill(&mut self.free, &delta.free);
            fill(&mut self.counts, &delta.counts);
            delta.window.apply(&mut self.window);
            delta.leaves.apply(&mut self.leaves);
            delta.blocks.apply(&mut self.blocks);
            delta.caches.apply(&mut self.caches);
        }
    }

    /// Writes the runs into a list; what does not fit is left out.
    fn fill(list: &mut [i64], runs: &[i64]) {
        let mut at = 0;
        for run in runs.chunks_exact(3) {
            let start = at + run[0] as usize;
            at = start + run[1] as usize;
            if let Some(part) = list.get_mut(start..at) {
                part.fill(run[2]);
            }
        }
    }

    impl<T: Clone> Changes<T> {
        fn apply(&self, map: &mut Map<T>) {
            map.retain(|key, _| self.gone.binary_search(key).is_err());
            map.extend(self.set.iter().map(|(key, value)| (*key, value.clone())));
        }
    }

    fn state() -> impl Strategy<Value = State> {
        let list = |most: i64, len: usize| vec(0..most, len);
        let lists = (list(3, 40), list(4, 5), list(9, 11), list(50, 8));
        let area = || (1..9_u64, 17..26_i64).prop_map(|(pages, code)| Area(pages, code));
        let leaf = || (1..9_u64, 0..40_u32).prop_map(|(pages, pfn)| Leaf(pages, pfn, 0, true));
        let block = || (0..3_u64).prop_map(|addr| BlockRecord { addr, ..BlockRecord::default() });
        let cache = || (0..3_u64).prop_map(|active| CacheRecord("a".to_owned(), active, 1));
        let maps = (
            btree_map(0..12_u64, area(), 0..6),
            btree_map(0..12_u64, leaf(), 0..6),
            btree_map(0..12_u64, block(), 0..6),
            btree_map(0..12_u64, cache(), 0..6),
        );
        (lists, maps).prop_map(|((frames, pageblocks, free, counts), (window, leaves, blocks, caches))| State {
            frames,
            pageblocks,
            free,
            counts,
            window,
            leaves,
            blocks,
            caches,
        })
    }

    proptest! {
        /// D1.
        #[test]
        fn replayed_deltas_give_each_state(states in vec(state(), 2..8)) {
            let mut replayed = states[0].clone();
            for (from, to) in states.iter().zip(&states[1..]) {
                replayed.apply(&Delta::between(from, to));
                prop_assert_eq!(&replayed, to);
            }
        }

        #[test]
        fn what_did_not_change_takes_no_room(state in state()) {
            prop_assert_eq!(serde_json::to_string(&Delta::between(&state, &state)).unwrap(), "{}");
        }
    }

    #[test]
    fn a_run_of_one_value_is_three_numbers() {
        let to = [0, 0, 7, 7, 7, 0, 8, 9];
        let encoded = runs(&[0; 8], &to);
        assert_eq!(encoded, [2, 3, 7, 1, 1, 8, 0, 1, 9]);
        let mut list = [0; 8];
        fill(&mut list, &encoded);
        assert_eq!(list, to);
    }

    #[test]
    fn what_is_gone_is_null() {
        let (old, new) = (Map::from([(1, "a"), (2, "b")]), Map::from([(2, "c")]));
        assert_eq!(serde_json::to_string(&Changes::between(&old, &new)).unwrap(), r#"{"2":"c","1":null}"#);
    }
}
