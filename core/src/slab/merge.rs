//! Caches that share slabs, and who still uses them.
//!
//! A cache whose objects would lie exactly as those of an existing one gets no slabs of its own: it becomes an *alias*
//! with a number of its own, and the existing cache is its *root*.
//!
//! | number | role | slabs |
//! |---|---|---|
//! | a root | `User` | its own |
//! | a root whose creator destroyed it, with aliases left | `Orphan` | its own |
//! | an alias | `Alias` | its root's |
//!
//! ```text
//! C1  an alias's root is a User or an Orphan
//! C2  an Orphan has at least one alias, unless it is being destroyed
//! C3  stride(root) mod align(alias) == 0;  object_size(alias) <= object_size(root) <= stride(root)
//! ```
//!
//! Source: `find_mergeable` and `slab_unmergeable` in `mm/slab_common.c`, as described in section 2.12 of the behaviour
//! page.

use super::node::Identity;
use super::shape::{Role, Shape};
use super::{CacheArgs, SlabFlags, SlabLayer, cache_id};
use crate::error::{CacheError, CacheId, Invariant, Violation};
use crate::geometry::SlabMerge;

/// Who hands out cache numbers. Held while a cache is made or let go, so that a root cannot vanish under a new alias.
pub(super) struct Numbers {
    /// Where the search for a vacant number begins: after the last one given, so that a number that was destroyed stays
    /// vacant for long and a late call with it is refused.
    next: usize,
}

impl Numbers {
    pub(super) const fn new() -> Self {
        Self { next: 0 }
    }
}

/// What is left of a cache when one of its users has gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LetGo {
    /// Others use the slabs: this many.
    Shared(u32),
    /// Nobody does; this number has them.
    Last(usize),
}

impl SlabLayer {
    /// The number whose slabs a cache uses: its own, unless it is an alias.
    pub(super) fn root(&self, id: usize) -> usize {
        self.shapes.get(id).and_then(|record| record.root()).unwrap_or(id)
    }

    /// Makes a cache, on its own slabs or on those of a similar one.
    ///
    /// # Errors
    ///
    /// `TooMany`.
    pub(super) fn install_or_merge(
        &self,
        merge: SlabMerge,
        args: &CacheArgs,
        shape: &Shape,
        identity: Identity,
    ) -> Result<Installed, CacheError> {
        let mut numbers = self.numbers.lock();
        let known_name = self.has_name(&identity);
        let root = self.mergeable(merge, args, shape);
        let id = self.vacant(&numbers).ok_or(CacheError::TooMany(self.nr_caches() as u16))?;
        let installed = match root {
            Some(root) => self.install_alias(id, root, shape, identity),
            None => self.install(id, shape, identity),
        };
        debug_assert!(installed, "number {id} was vacant");
        numbers.next = id + 1;
        Ok(Installed { cache: cache_id(id), is_alias: root.is_some(), known_name })
    }

    /// The first vacant number from where the last search ended, that is not set aside for kmalloc.
    fn vacant(&self, numbers: &Numbers) -> Option<usize> {
        let first = super::KmallocType::ALL.len() * super::NR_CLASSES;
        let from = numbers.next.clamp(first, self.nr_caches());
        (from..self.nr_caches()).chain(first..from).find(|&id| self.role(id) == Role::Vacant)
    }

    fn has_name(&self, identity: &Identity) -> bool {
        (0..self.nr_caches()).any(|id| self.identity(id).is_some_and(|other| other.name == identity.name))
    }

    /// The cache whose slabs a new one can use.
    fn mergeable(&self, merge: SlabMerge, args: &CacheArgs, shape: &Shape) -> Option<usize> {
        if merge == SlabMerge::Never || !may_merge(args) || shape.role != Role::User {
            return None;
        }
        self.caches().find(|&id| self.users(id) > 0 && self.shape(id).is_some_and(|root| can_hold(&root, shape)))
    }

    fn install_alias(&self, id: usize, root: usize, shape: &Shape, identity: Identity) -> bool {
        let (Some(record), Some(of_root)) = (self.shapes.get(id), self.shapes.get(root)) else { return false };
        if !self.set_identity(id, Some(identity)) {
            return false;
        }
        record.store(shape);
        record.make_alias(root);
        of_root.grow_object(shape.object_size);
        true
    }

    /// How many of the caches that users hold have their objects in the slabs of this number; 0 for any other number.
    pub(super) fn users(&self, root: usize) -> u32 {
        let own = u32::from(self.role(root) == Role::User);
        let aliases = self.shapes.iter().filter(|record| record.root() == Some(root)).count();
        if matches!(self.role(root), Role::User | Role::Orphan) { own + aliases as u32 } else { 0 }
    }

    /// Ends one user's hold on a cache. If it was the last one, the number with the slabs is left as an `Orphan` without
    /// aliases, which nobody can name, for the caller to take down.
    ///
    /// # Errors
    ///
    /// `Unknown`, `BuiltIn`.
    pub(super) fn let_go(&self, cache: CacheId) -> Result<LetGo, CacheError> {
        let _numbers = self.numbers.lock();
        let id = cache.index();
        let root = self.root(id);
        let left = self.users(root).saturating_sub(1);
        match (self.role(id), self.shapes.get(id)) {
            (Role::Vacant | Role::Orphan, _) | (_, None) => return Err(CacheError::Unknown(cache.get())),
            (Role::Kmalloc | Role::Internal, _) => return Err(CacheError::BuiltIn),
            (Role::User, Some(record)) => record.set_role(Role::Orphan),
            (Role::Alias, Some(_)) => self.vacate(id),
        }
        Ok(if left == 0 { LetGo::Last(root) } else { LetGo::Shared(left) })
    }

    /// Makes a number vacant.
    pub(super) fn vacate(&self, id: usize) {
        if let Some(record) = self.shapes.get(id) {
            record.set_role(Role::Vacant);
        }
        self.set_identity(id, None);
    }

    /// Checks C1 to C3.
    ///
    /// # Errors
    ///
    /// The first one broken.
    pub(super) fn check_aliases(&self) -> Result<(), Violation> {
        for (id, record) in self.shapes.iter().enumerate() {
            let role = record.role();
            let Some(root) = record.root() else {
                let forgotten = role == Role::Orphan && self.users(id) == 0;
                let what = "cache without users (C2)";
                Violation::check_eq(Invariant::I12SlabCounts, what, id as u64, 0, u64::from(forgotten))?;
                continue;
            };
            let broken = |what| Err(Violation::new(Invariant::I12SlabCounts, what, id as u64, root as u64, 0));
            let (Some(alias), Some(shape)) = (record.load(), self.shape(root)) else {
                return broken("root of an alias does not exist (C1)");
            };
            if !matches!(shape.role, Role::User | Role::Orphan) {
                return broken("root of an alias is no user's cache (C1)");
            }
            let fits = alias.object_size <= shape.object_size && shape.object_size <= shape.stride;
            if !fits || !shape.stride.is_multiple_of(alias.align) {
                return broken("objects of an alias do not fit its root (C3)");
            }
        }
        Ok(())
    }
}

/// A cache that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Installed {
    pub(super) cache: CacheId,
    /// Whether it shares the slabs of another.
    pub(super) is_alias: bool,
    /// Whether another cache had its name already.
    pub(super) known_name: bool,
}

/// Tells whether a cache with these arguments can share slabs at all.
pub(super) fn may_merge(args: &CacheArgs) -> bool {
    let special = args.flags.intersects(SlabFlags::NEVER_MERGE) || args.ctor.is_some();
    !special && args.usersize == 0 && args.sheaf_capacity == 0
}

/// Tells whether a cache's slabs can hold the objects of a new one: nearly no waste, aligned, from the same pages.
fn can_hold(root: &Shape, new: &Shape) -> bool {
    let waste = root.stride.checked_sub(new.stride);
    waste.is_some_and(|waste| waste < size_of::<usize>())
        && root.stride.is_multiple_of(new.align)
        && root.mergeable
        && root.flags & SlabFlags::MERGE_SAME == new.flags & SlabFlags::MERGE_SAME
}
