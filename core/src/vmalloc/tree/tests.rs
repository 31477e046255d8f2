use super::*;
use crate::addr::PhysAddr;
use crate::testing::Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

const ANYWHERE: (u64, u64) = (0, u64::MAX);

fn want(span: u64, align: u64) -> Want {
    Want { span, align, within: ANYWHERE }
}

/// Records in a vector: link `n` is index `n`.
#[derive(Default)]
struct VecStore(RefCell<Vec<Spot>>);

impl VecStore {
    fn slot(at: Link) -> usize {
        at.as_u64() as usize
    }

    fn link(slot: usize) -> Link {
        Link::new(PhysAddr::new(slot as u64))
    }
}

impl Store for VecStore {
    fn load(&self, at: Link) -> Spot {
        self.0.borrow().get(Self::slot(at)).copied().unwrap_or(Spot::BROKEN)
    }

    fn store(&self, at: Link, node: &Spot) {
        self.0.borrow_mut()[Self::slot(at)] = *node;
    }
}

/// The tree, and beside it a plain map from start to end, guard included.
struct Twin {
    store: VecStore,
    unused: Vec<Link>,
    tree: Tree,
    model: BTreeMap<u64, u64>,
    window: (u64, u64),
}

impl Twin {
    fn new(first: u64, end: u64) -> Self {
        let (store, unused, model) = Default::default();
        Self { store, unused, tree: Tree::new(first, end), model, window: (first, end) }
    }

    /// Looks at one free range after the other, from the window's first page on.
    fn lowest_fit(&self, want: Want) -> Option<u64> {
        let mut free_from = self.window.0;
        let ends = self.model.iter().map(|(&start, &end)| (start, end)).chain([(self.window.1, 0)]);
        for (start, end) in ends {
            let place = free_from.max(want.within.0).next_multiple_of(want.align);
            if place + want.span <= start.min(want.within.1) {
                return Some(place);
            }
            free_from = end;
        }
        None
    }

    /// Reserves the lowest fit after comparing it with the model's.
    fn reserve(&mut self, want: Want) -> Option<u64> {
        let start = self.tree.lowest_fit(&self.store, want);
        assert_eq!(start, self.lowest_fit(want), "{want:?}");
        let start = start?;
        let node = Spot::new(start, want.span);
        let at = self.unused.pop().unwrap_or_else(|| {
            self.store.0.borrow_mut().push(node);
            VecStore::link(self.store.0.borrow().len() - 1)
        });
        self.tree.insert(&self.store, at, node);
        self.model.insert(start, start + want.span);
        Some(start)
    }

    fn release_nth(&mut self, n: usize) {
        let Some(start) = self.model.keys().nth(n).copied() else { return };
        let (at, _) = self.tree.floor(&self.store, start).unwrap();
        self.tree.remove(&self.store, start);
        self.model.remove(&start);
        self.unused.push(at);
    }

    fn check(&self) -> Result<(), Violation> {
        let mut seen = Vec::new();
        self.tree.check(&self.store, |_, node| {
            seen.push((node.start, node.end()));
            Ok(())
        })?;
        assert!(seen.into_iter().eq(self.model.iter().map(|(start, end)| (*start, *end))));
        Ok(())
    }
}

#[test]
fn agrees_with_a_plain_map_over_100_000_operations_at_every_alignment() {
    let mut rng = Rng::new(1);
    let mut twin = Twin::new(1000, 1000 + 4096);
    for n in 0..100_000u32 {
        // Waves of filling and emptying, so that both a full and a nearly empty window are met.
        if rng.below(100) < if n / 4000 % 2 == 0 { 60 } else { 40 } {
            let (span, align) = (2 + rng.below(40) as u64, 1 << rng.below(8));
            let first = 900 + rng.below(4300) as u64;
            let within = if n % 2 == 0 { ANYWHERE } else { (first, first + rng.below(4300) as u64) };
            twin.reserve(Want { within, ..want(span, align) });
        } else {
            twin.release_nth(rng.below(twin.model.len()));
        }
        let page = 990 + rng.below(4200) as u64;
        let found = twin.tree.find(&twin.store, page).map(|at| twin.store.load(at).start);
        assert_eq!(found, twin.model.contains_key(&page).then_some(page));
        let floor = twin.tree.floor(&twin.store, page).map(|(_, node)| node.start);
        assert_eq!(floor, twin.model.range(..=page).next_back().map(|(start, _)| *start));
        let ceiling = twin.tree.ceiling(&twin.store, page).map(|(_, node)| node.start);
        assert_eq!(ceiling, twin.model.range(page..).next().map(|(start, _)| *start));
        if n % 64 == 0 {
            twin.check().unwrap();
        }
    }
    assert!(twin.tree.nr_areas > 0);
}

#[test]
fn a_gap_that_only_just_holds_the_aligned_range_is_found() {
    let mut twin = Twin::new(0, 64);
    // 1..2 taken, 2..16 free, 16..32 taken: 8 pages at a multiple of 8 fit in 8..16 only, although 8 + 8 - 1 > 14.
    for (start, pages) in [(1, 0), (16, 15), (32, 31)] {
        let node = Spot::new(start, pages + 1);
        twin.store.0.borrow_mut().push(node);
        let at = VecStore::link(twin.store.0.borrow().len() - 1);
        twin.tree.insert(&twin.store, at, node);
        twin.model.insert(start, node.end());
    }
    twin.check().unwrap();
    assert_eq!(twin.reserve(want(8, 8)), Some(8));
    assert_eq!(twin.reserve(want(8, 8)), None);
}

#[test]
fn windows_of_4_to_64_pages_are_filled_to_the_last_page_and_emptied() {
    for pages in 4..=64 {
        let mut twin = Twin::new(7, 7 + pages);
        let mut taken = 0;
        for span in (2..=5).cycle() {
            let span = if taken + span > pages { pages - taken } else { span };
            if span < 1 || twin.reserve(want(span, 1)).is_none() {
                break;
            }
            taken += span;
        }
        assert_eq!(taken, pages);
        assert_eq!(twin.reserve(want(1, 1)), None);
        while !twin.model.is_empty() {
            twin.release_nth(twin.model.len() / 2);
            twin.check().unwrap();
        }
        assert_eq!(twin.reserve(want(pages, 1)), Some(7));
    }
}

#[test]
fn height_stays_logarithmic_when_areas_arrive_in_order() {
    let mut twin = Twin::new(0, 1 << 20);
    for _ in 0..10_000 {
        twin.reserve(want(2, 1));
    }
    let height = twin.store.load(twin.tree.root).height;
    assert!(height <= 19, "1.44 * log2(10,000) = 19.1, height is {height}");
}

/// A change to the root's record, and the invariant that it breaks.
type Corruption = (fn(&mut Spot), Invariant);

/// A tree of 20 areas with `change` done to its root's record, and what the check says to it.
fn corrupted(change: fn(&mut Spot)) -> Violation {
    let mut twin = Twin::new(0, 1000);
    for _ in 0..20 {
        twin.reserve(want(3, 8));
    }
    twin.check().unwrap();
    let mut node = twin.store.load(twin.tree.root);
    change(&mut node);
    twin.store.store(twin.tree.root, &node);
    twin.tree.check(&twin.store, |_, _| Ok(())).unwrap_err()
}

#[test]
fn each_corrupted_field_is_named_by_its_invariant() {
    let cases: [Corruption; 7] = [
        (|node| node.start = 0, Invariant::I1NoOverlap),
        (|node| node.span += 8, Invariant::I1NoOverlap),
        (|node| node.gap += 1, Invariant::I8ListCounts),
        (|node| node.max_gap -= 1, Invariant::I8ListCounts),
        (|node| node.height += 1, Invariant::I8ListCounts),
        (|node| node.left = node.right, Invariant::I8ListCounts),
        (|node| node.right = Link::NIL, Invariant::I8ListCounts),
    ];
    for (n, (change, invariant)) in cases.into_iter().enumerate() {
        assert_eq!(corrupted(change).invariant, invariant, "case {n}");
    }
}

#[test]
fn an_area_beyond_the_window_is_reported() {
    let mut twin = Twin::new(0, 10);
    let node = Spot::new(5, 6);
    twin.store.0.borrow_mut().push(node);
    twin.tree.insert(&twin.store, VecStore::link(0), node);
    assert_eq!(twin.tree.check(&twin.store, |_, _| Ok(())).unwrap_err().invariant, Invariant::I10InsideZone);
}
