//! A tree of areas: a height-balanced search tree by address, in which every node knows the free pages before its
//! area and the largest such gap below. It holds all areas of the window.
//!
//! ```text
//! window.start      a.start  a.end     b.start   b.end        window.end
//!      |── gap(a) ────|█████████|─ gap(b) ─|████████|── tail ─────|
//!                      pages + guard
//! ```
//!
//! The free ranges are exactly the gaps and the tail, so there is no second structure that could disagree, and to
//! reserve or release a range needs no memory beyond the area's own record.
//!
//! ```text
//! I1.1  areas in address order do not overlap, guard pages included
//! I8.1  gap(n)     == start(n) - end of the area before, or of the window's start
//! I8.2  max_gap(n) == max(gap(n), max_gap(left(n)), max_gap(right(n)))
//! I8.3  height(n)  == 1 + max(height(left(n)), height(right(n))), and the two differ by at most 1
//! I8.4  nr_areas   == number of nodes
//! I10.3 areas lie in the window
//! ```

use super::area::Link;
use crate::error::{Invariant, Violation};
use crate::geometry::Geometry;
use core::cmp::Ordering;

/// An area's place in a tree of areas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    /// Number of the first page.
    pub(super) start: u64,
    /// Pages of address space, guard included.
    pub(super) span: u64,
    pub(super) left: Link,
    pub(super) right: Link,
    /// Levels of the subtree; 0 only in what is no record.
    pub(super) height: u8,
    /// Free pages between the end of the area before, or the start of the window, and this one.
    pub(super) gap: u64,
    /// The largest `gap` in the subtree.
    pub(super) max_gap: u64,
}

impl Spot {
    /// What a link that leads nowhere reads as.
    pub(super) const BROKEN: Self = Self { height: 0, ..Self::new(0, 0) };

    /// An area that is in no tree yet.
    pub(super) const fn new(start: u64, span: u64) -> Self {
        Self { start, span, left: Link::NIL, right: Link::NIL, height: 1, gap: 0, max_gap: 0 }
    }

    /// The number after the last page.
    pub(super) const fn end(&self) -> u64 {
        self.start.saturating_add(self.span)
    }
}

/// Where a tree's nodes are kept.
pub(super) trait Store {
    /// Reads a place; a link that leads nowhere reads as [`Spot::BROKEN`].
    fn load(&self, at: Link) -> Spot;
    /// Writes what a tree changes of a place: not its start and span.
    fn store(&self, at: Link, spot: &Spot);
}

/// What is looked for: so many pages in a row, guard included, from a multiple of `align` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// Pages, guard included.
    pub(super) span: u64,
    /// A power of two, in pages.
    pub(super) align: u64,
    /// The first page that it may have, and the number after the last; the window's ends count as well.
    pub(super) within: (u64, u64),
}

impl Want {
    /// The lowest place in the free range from `low` up to `high`.
    fn place_in(self, low: u64, high: u64) -> Option<u64> {
        let start = low.max(self.within.0).checked_next_multiple_of(self.align)?;
        (start.checked_add(self.span)? <= high.min(self.within.1)).then_some(start)
    }
}

/// All areas of the window, by address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    root: Link,
    /// Number of the window's first page, and the number after its last.
    window: (u64, u64),
    nr_areas: u64,
}

impl Tree {
    pub(super) const fn new(first: u64, end: u64) -> Self {
        Self { root: Link::NIL, window: (first, end), nr_areas: 0 }
    }

    /// An empty tree of areas of the geometry's window.
    pub(super) fn of_window(geometry: &Geometry) -> Self {
        let first = geometry.vmalloc_start.vpn().as_u64();
        Self::new(first, first + geometry.vmalloc_pages.get())
    }

    /// The lowest place for the wanted pages; `None` only if there is none at all.
    ///
    /// With `align` 1 the first subtree that is entered has it. With a larger one a gap may be long enough and yet miss
    /// the alignment, so the search goes on with the next gap: it never gives up while one is left.
    pub(super) fn lowest_fit(&self, store: &impl Store, want: Want) -> Option<u64> {
        lowest_fit_in(store, self.root, want).or_else(|| want.place_in(self.tail_start(store), self.window.1))
    }

    /// Where the free range after the last area starts.
    fn tail_start(&self, store: &impl Store) -> u64 {
        let (mut at, mut tail) = (self.root, self.window.0);
        while !at.is_nil() {
            let node = store.load(at);
            (at, tail) = (node.right, node.end());
        }
        tail
    }

    /// Puts an area into a free range that holds it.
    pub(super) fn insert(&mut self, store: &impl Store, at: Link, spot: Spot) {
        let new = New { at, node: spot };
        self.root = insert_below(store, self.root, new, self.window.0).root;
        self.nr_areas += 1;
    }

    /// Takes out the area that starts at page `start`; its pages join the gap around them.
    pub(super) fn remove(&mut self, store: &impl Store, start: u64) {
        let mut freed = None;
        self.root = remove_below(store, self.root, start, &mut freed).root;
        if let Some(node) = freed {
            widen_gap_after(store, self.root, start, node.gap + node.span);
            self.nr_areas -= 1;
        }
    }

    /// The area that starts at page `start`; calls find live areas in their chains instead.
    #[cfg(test)]
    pub(super) fn find(&self, store: &impl Store, start: u64) -> Option<Link> {
        let mut at = self.root;
        while !at.is_nil() {
            let node = store.load(at);
            at = match start.cmp(&node.start) {
                Ordering::Equal => return Some(at),
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        None
    }

    /// The last area that starts at or before page `page`.
    pub(super) fn floor(&self, store: &impl Store, page: u64) -> Option<(Link, Spot)> {
        let (mut at, mut best) = (self.root, None);
        while !at.is_nil() {
            let node = store.load(at);
            if node.start <= page {
                best = Some((at, node));
                at = node.right;
            } else {
                at = node.left;
            }
        }
        best
    }

    /// The first area that starts at or after page `page`.
    pub(super) fn ceiling(&self, store: &impl Store, page: u64) -> Option<(Link, Spot)> {
        let mut first = None;
        self.walk_from(store, page, |at, spot| {
            first = Some((at, *spot));
            false
        });
        first
    }

    /// Shows the areas that start at or after page `page` in address order, as long as `see` agrees.
    pub(super) fn walk_from(&self, store: &impl Store, page: u64, mut see: impl FnMut(Link, &Spot) -> bool) {
        walk_from(store, self.root, u8::MAX, page, &mut see);
    }

    /// Shows all areas in address order, as long as `see` agrees, and checks the equations above on the way.
    ///
    /// # Errors
    ///
    /// The first broken invariant, or what `see` returned.
    pub(super) fn check(
        &self,
        store: &impl Store,
        see: impl FnMut(Link, &Spot) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut check = Check { store, see, end: self.window.0, nr_areas: 0 };
        check.subtree(self.root, None)?;
        if check.end > self.window.1 {
            let what = "the last area ends beyond the window (I10.3)";
            return Err(Violation::new(Invariant::I10InsideZone, what, check.end, self.window.1, check.end));
        }
        Violation::check_eq(Invariant::I8ListCounts, "number of areas (I8.4)", 0, check.nr_areas, self.nr_areas)
    }
}

/// An area on its way to its place.
#[derive(Clone, Copy)]
struct New {
    at: Link,
    node: Spot,
}

fn lowest_fit_in(store: &impl Store, at: Link, want: Want) -> Option<u64> {
    if at.is_nil() {
        return None;
    }
    let node = store.load(at);
    if node.max_gap < want.span {
        return None;
    }
    // Free pages before this area end at its start: below the wanted range, none of them and of those before can serve.
    let below = || if node.start > want.within.0 { lowest_fit_in(store, node.left, want) } else { None };
    let above = || if node.end() < want.within.1 { lowest_fit_in(store, node.right, want) } else { None };
    below().or_else(|| want.place_in(node.start - node.gap, node.start)).or_else(above)
}

/// A subtree after a change. If its root, height and largest gap are the same, nothing above it has to change: most
/// changes end a few levels above the place where they happen.
struct Subtree {
    root: Link,
    same: bool,
}

impl Subtree {
    const fn changed(root: Link) -> Self {
        Self { root, same: false }
    }

    const fn same(root: Link) -> Self {
        Self { root, same: true }
    }
}

/// `after` is where the free range before the subtree's first area starts.
fn insert_below(store: &impl Store, at: Link, mut new: New, after: u64) -> Subtree {
    if at.is_nil() {
        new.node.gap = new.node.start - after;
        return Subtree::changed(rebalance(store, new.at, new.node));
    }
    let old = store.load(at);
    let mut node = old;
    let below = if new.node.start < node.start {
        if node.start - node.gap <= new.node.start {
            node.gap = node.start - new.node.end();
        }
        let below = insert_below(store, node.left, new, after);
        node.left = below.root;
        below
    } else {
        let below = insert_below(store, node.right, new, node.end());
        node.right = below.root;
        below
    };
    if below.same && node.gap == old.gap { Subtree::same(at) } else { settle(store, at, &old, node) }
}

/// Leaves in `freed` the node taken out.
fn remove_below(store: &impl Store, at: Link, start: u64, freed: &mut Option<Spot>) -> Subtree {
    if at.is_nil() {
        return Subtree::same(at);
    }
    let old = store.load(at);
    let mut node = old;
    let below = match start.cmp(&node.start) {
        Ordering::Less => {
            let below = remove_below(store, node.left, start, freed);
            node.left = below.root;
            below
        }
        Ordering::Greater => {
            let below = remove_below(store, node.right, start, freed);
            node.right = below.root;
            below
        }
        Ordering::Equal => {
            *freed = Some(node);
            return Subtree::changed(join(store, node.left, node.right));
        }
    };
    if below.same { Subtree::same(at) } else { settle(store, at, &old, node) }
}

/// Makes one tree of two neighbours: the first node of the right one becomes the root.
fn join(store: &impl Store, left: Link, right: Link) -> Link {
    if right.is_nil() {
        return left;
    }
    let (first, rest) = take_first(store, right);
    let node = Spot { left, right: rest.root, ..store.load(first) };
    rebalance(store, first, node)
}

/// Takes the first node out of a subtree.
fn take_first(store: &impl Store, at: Link) -> (Link, Subtree) {
    let old = store.load(at);
    if old.left.is_nil() {
        return (at, Subtree::changed(old.right));
    }
    let (first, rest) = take_first(store, old.left);
    let left = if rest.same { Subtree::same(at) } else { settle(store, at, &old, Spot { left: rest.root, ..old }) };
    (first, left)
}

/// Adds to the gap of the first node after page `start`; tells whether the subtree's summary is the same after that, or
/// `None` if it has no such node.
fn widen_gap_after(store: &impl Store, at: Link, start: u64, by: u64) -> Option<bool> {
    if at.is_nil() {
        return None;
    }
    let old = store.load(at);
    let mut node = old;
    let below = if start < node.start { node.left } else { node.right };
    match widen_gap_after(store, below, start, by) {
        Some(true) => return Some(true),
        Some(false) => {}
        None if node.start <= start => return None,
        None => node.gap += by,
    }
    summarise(store, &mut node);
    store.store(at, &node);
    Some(node.max_gap == old.max_gap)
}

/// Writes a node of which something changed below or beside it.
fn settle(store: &impl Store, at: Link, old: &Spot, mut node: Spot) -> Subtree {
    let (left, right) = summarise(store, &mut node);
    if left.abs_diff(right) > 1 {
        return Subtree::changed(rebalance(store, at, node));
    }
    store.store(at, &node);
    Subtree { root: at, same: (node.height, node.max_gap) == (old.height, old.max_gap) }
}

/// Shows a subtree's areas from page `page` on; tells whether `see` wants more. Heights fall on the way down, so a link that
/// was corrupted into a cycle ends the walk instead of keeping it forever.
fn walk_from(store: &impl Store, at: Link, above: u8, page: u64, see: &mut impl FnMut(Link, &Spot) -> bool) -> bool {
    if at.is_nil() {
        return true;
    }
    let node = store.load(at);
    if node.height >= above {
        return true;
    }
    let is_wanted = node.start >= page;
    (!is_wanted || walk_from(store, node.left, node.height, page, see) && see(at, &node))
        && walk_from(store, node.right, node.height, page, see)
}

/// Height and largest gap of a subtree that may be empty.
fn summary(store: &impl Store, at: Link) -> (u8, u64) {
    if at.is_nil() {
        return (0, 0);
    }
    let node = store.load(at);
    (node.height, node.max_gap)
}

/// Recomputes what a node knows of its subtree; returns the heights of both sides.
fn summarise(store: &impl Store, node: &mut Spot) -> (u8, u8) {
    let ((left, left_gap), (right, right_gap)) = (summary(store, node.left), summary(store, node.right));
    node.height = left.max(right).saturating_add(1);
    node.max_gap = node.gap.max(left_gap).max(right_gap);
    (left, right)
}

/// Writes a node of which one side may have become two levels higher than the other; returns the subtree's root.
fn rebalance(store: &impl Store, at: Link, mut node: Spot) -> Link {
    let (left, right) = summarise(store, &mut node);
    if left > right.saturating_add(1) {
        return lower_left(store, at, node);
    }
    if right > left.saturating_add(1) {
        return lower_right(store, at, node);
    }
    store.store(at, &node);
    at
}

fn lower_left(store: &impl Store, at: Link, mut node: Spot) -> Link {
    let left = store.load(node.left);
    if summary(store, left.right).0 > summary(store, left.left).0 {
        node.left = rotate_left(store, node.left, left);
    }
    rotate_right(store, at, node)
}

fn lower_right(store: &impl Store, at: Link, mut node: Spot) -> Link {
    let right = store.load(node.right);
    if summary(store, right.left).0 > summary(store, right.right).0 {
        node.right = rotate_right(store, node.right, right);
    }
    rotate_left(store, at, node)
}

/// ```text
///      at              up
///     /  \            /  \
///    up   C    ──►   A    at
///   /  \                 /  \
///  A    B               B    C
/// ```
fn rotate_right(store: &impl Store, at: Link, mut node: Spot) -> Link {
    let up = node.left;
    let mut top = store.load(up);
    node.left = top.right;
    summarise(store, &mut node);
    store.store(at, &node);
    top.right = at;
    summarise(store, &mut top);
    store.store(up, &top);
    up
}

/// The mirror image of [`rotate_right`].
fn rotate_left(store: &impl Store, at: Link, mut node: Spot) -> Link {
    let up = node.right;
    let mut top = store.load(up);
    node.right = top.left;
    summarise(store, &mut node);
    store.store(at, &node);
    top.left = at;
    summarise(store, &mut top);
    store.store(up, &top);
    up
}

/// A walk in address order that checks each node against what came before it.
struct Check<'s, S, F> {
    store: &'s S,
    see: F,
    end: u64,
    nr_areas: u64,
}

impl<S: Store, F: FnMut(Link, &Spot) -> Result<(), Violation>> Check<'_, S, F> {
    /// Checks a subtree and returns its height and largest gap. Heights fall on the way down, so a link that was
    /// corrupted into a cycle ends the walk instead of keeping it forever.
    fn subtree(&mut self, at: Link, above: Option<u8>) -> Result<(u8, u64), Violation> {
        if at.is_nil() {
            return Ok((0, 0));
        }
        let node = self.store.load(at);
        if node.height == 0 || above.is_some_and(|above| node.height >= above) {
            let what = "height of a node, below that of the node above (I8.3)";
            let expected = above.unwrap_or(1);
            return Err(Violation::new(
                Invariant::I8ListCounts,
                what,
                at.as_u64(),
                expected.into(),
                node.height.into(),
            ));
        }
        let left = self.subtree(node.left, Some(node.height))?;
        self.place(&node)?;
        (self.see)(at, &node)?;
        let right = self.subtree(node.right, Some(node.height))?;
        self.shape(&node, left, right)?;
        Ok((node.height, node.max_gap))
    }

    /// Checks the node's area against the end of the area before.
    fn place(&mut self, node: &Spot) -> Result<(), Violation> {
        let Some(gap) = node.start.checked_sub(self.end) else {
            let what = "an area starts before the end of the one before (I1.1)";
            return Err(Violation::new(Invariant::I1NoOverlap, what, node.start, self.end, node.start));
        };
        self.end = node.end();
        self.nr_areas += 1;
        Violation::check_eq(Invariant::I8ListCounts, "free pages before an area (I8.1)", node.start, gap, node.gap)
    }

    /// Checks what the node says of its subtree.
    fn shape(&self, node: &Spot, left: (u8, u64), right: (u8, u64)) -> Result<(), Violation> {
        let invariant = Invariant::I8ListCounts;
        let max_gap = node.gap.max(left.1).max(right.1);
        Violation::check_eq(invariant, "largest gap of a subtree (I8.2)", node.start, max_gap, node.max_gap)?;
        let height = left.0.max(right.0) + 1;
        Violation::check_eq(invariant, "height of a subtree (I8.3)", node.start, height.into(), node.height.into())?;
        let what = "sides of a node differ by more than one level (I8.3)";
        Violation::check_eq(invariant, what, node.start, 0, left.0.abs_diff(right.0).saturating_sub(1).into())
    }
}

#[cfg(test)]
mod tests;
