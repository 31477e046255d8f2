//! How often requests went through the fast and through the slow paths.

/// Requests by the path that served them, where [`Platform::STATISTICS`](crate::Platform::STATISTICS) asks for it; all 0
/// elsewhere. Each CPU's counters wrap at 2^32, as Linux's do.
///
/// A fast path takes from or gives to what the CPU keeps in reach, without a lock. A request that it does not serve goes
/// on to the slow path, and counts there also if it is refused. Calls that are slow by nature (bulk, by node, by
/// another order than 0, of several memory nodes) count on the slow path where they reach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PathCounts {
    /// Allocations that the fast path served.
    pub alloc_fastpath: u64,
    /// Allocations that came to the slow path.
    pub alloc_slowpath: u64,
    /// Frees that the fast path served.
    pub free_fastpath: u64,
    /// Frees that came to the slow path.
    pub free_slowpath: u64,
}

impl PathCounts {
    /// Adds up.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            alloc_fastpath: self.alloc_fastpath + other.alloc_fastpath,
            alloc_slowpath: self.alloc_slowpath + other.alloc_slowpath,
            free_fastpath: self.free_fastpath + other.free_fastpath,
            free_slowpath: self.free_slowpath + other.free_slowpath,
        }
    }
}
