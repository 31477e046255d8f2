//! How pages that can be moved are kept apart from those that cannot, and what is set aside for contiguous ranges.

use crate::addr::{PageCount, Pfn};

/// How many areas a geometry may set aside.
pub const MAX_CMA_AREAS: usize = 4;

/// How pages of different mobility are kept apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Mobility {
    /// By pageblocks; types mix when a node has nothing else left.
    #[default]
    Grouped,
    /// By pageblocks; every request tries all zones before types mix (Linux: `vm.defrag_mode`).
    Defrag,
    /// Not at all: every request takes what is nearest, as if it were for unmovable pages (Linux does so on machines of less
    /// than six pageblocks). Movable blocks can be moved all the same.
    Mixed,
}

/// Pageblocks set aside for contiguous ranges: only movable pages may use them meanwhile, because those can be moved out of
/// the way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CmaArea {
    /// First frame, at the start of a pageblock.
    pub start: Pfn,
    /// How many frames, a multiple of a pageblock; 0: there is no such area.
    pub pages: PageCount,
}

impl CmaArea {
    /// No area.
    pub const NONE: Self = Self { start: Pfn::new(0), pages: PageCount::ZERO };

    /// Returns the frame after the last; `None` past the frame number space.
    pub const fn end(&self) -> Option<Pfn> {
        self.start.checked_add(self.pages.get())
    }

    /// Tells whether the frame is in the area.
    pub fn contains(&self, pfn: Pfn) -> bool {
        pfn >= self.start && self.end().is_some_and(|end| pfn < end)
    }
}
