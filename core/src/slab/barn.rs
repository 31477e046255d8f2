//! Full and empty sheaves that all CPUs of a node share (Bonwick's depot).

use super::sheaf::{Sheaf, SheafId, SheafPool};

/// The most full, and the most empty, sheaves in a barn.
pub(super) const BARN_SHELF: usize = 10;

/// A stack of at most [`BARN_SHELF`] buffers.
pub(super) struct Shelf {
    slots: [Option<SheafId>; BARN_SHELF],
}

impl Shelf {
    const EMPTY: Self = Self { slots: [const { None }; BARN_SHELF] };

    pub(super) fn is_full(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    /// Puts a buffer; gives it back if the shelf is full.
    pub(super) fn push(&mut self, id: SheafId) -> Result<(), SheafId> {
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(id);
                Ok(())
            }
            None => Err(id),
        }
    }

    pub(super) fn pop(&mut self) -> Option<SheafId> {
        self.slots.iter_mut().rev().find_map(Option::take)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SheafId> {
        self.slots.iter().flatten()
    }
}

/// A cache's full and empty sheaves, shared by all CPUs under the cache's lock.
pub(super) struct Barn {
    pub(super) full: Shelf,
    pub(super) empty: Shelf,
}

impl Barn {
    pub(super) const EMPTY: Self = Self { full: Shelf::EMPTY, empty: Shelf::EMPTY };

    /// Moves the objects of a full sheaf into `main`, which is empty, and keeps the buffer; `false` if there is none.
    pub(super) fn fill(&mut self, pool: &SheafPool, main: &mut Sheaf) -> bool {
        let Some(id) = self.full.pop() else { return false };
        pool.with(&id, |sheaf| sheaf.move_to(main));
        if let Err(id) = self.empty.push(id) {
            pool.put(id);
        }
        true
    }

    /// As [`Self::fill`], if there is room to keep the buffer: then the pool is not needed.
    pub(super) fn fill_if_kept(&mut self, pool: &SheafPool, main: &mut Sheaf) -> bool {
        !self.empty.is_full() && self.fill(pool, main)
    }

    /// As [`Self::store`], if there is an empty buffer in the barn: then the pool is not needed.
    pub(super) fn store_if_empty(&mut self, pool: &SheafPool, main: &mut Sheaf) -> Stored {
        if self.empty.iter().next().is_none() { Stored::NoBuffer } else { self.store(pool, main) }
    }

    /// Moves the objects of `main` into an empty buffer and keeps it as a full sheaf.
    pub(super) fn store(&mut self, pool: &SheafPool, main: &mut Sheaf) -> Stored {
        if self.full.is_full() {
            return Stored::BarnFull;
        }
        let Some(id) = self.empty.pop().or_else(|| pool.take()) else { return Stored::NoBuffer };
        pool.with(&id, |sheaf| main.move_to(sheaf));
        match self.full.push(id) {
            Ok(()) => Stored::Done,
            Err(_) => Stored::BarnFull,
        }
    }
}

/// What became of a full sheaf that was offered to a barn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stored {
    /// The barn has it.
    Done,
    /// The barn has [`BARN_SHELF`] full ones.
    BarnFull,
    /// No empty buffer was left.
    NoBuffer,
}

#[cfg(test)]
mod tests {
    use super::super::sheaf::tests::{filled, pool};
    use super::*;

    #[test]
    fn a_barn_takes_ten_full_sheaves_and_gives_them_back_whole() {
        let pool = pool(20);
        let mut barn = Barn::EMPTY;
        for _ in 0..BARN_SHELF {
            assert_eq!(barn.store(&pool, &mut filled(12)), Stored::Done);
        }
        let mut main = filled(12);
        assert_eq!(barn.store(&pool, &mut main), Stored::BarnFull);
        main.clear();
        for _ in 0..BARN_SHELF {
            assert!(barn.fill(&pool, &mut main));
            assert_eq!(main.len(), 12);
            main.clear();
        }
        assert!(!barn.fill(&pool, &mut main));
        assert_eq!(barn.empty.iter().count(), BARN_SHELF);
        assert_eq!(pool.free_count(), 10);
    }

    #[test]
    fn without_buffers_the_objects_stay_where_they_are() {
        let pool = pool(0);
        let mut main = filled(12);
        let mut barn = Barn::EMPTY;
        assert_eq!(barn.store(&pool, &mut main), Stored::NoBuffer);
        assert_eq!(main.len(), 12);
    }
}
