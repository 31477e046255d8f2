//! What the numbers of operations mean.

/// What a number of an operation means: which record slot holds it and how it is drawn, tweaked and simplified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// log2 of a block's pages; may be above the geometry's largest.
    Order,
    /// Allocation flags, as bits.
    Gfp,
    /// Which live block: an index modulo the live blocks that the operation can work on; none live: no effect.
    Pick,
    /// Which cache: an index modulo the caches that exist; none exist: no effect.
    Cache,
    /// Which CPU: modulo the geometry's CPUs.
    Cpu,
    /// Bytes.
    Size,
    /// Elements of an array.
    N,
    /// How many blocks or pages.
    Count,
    /// A page's index inside a block: modulo the block's pages.
    Page,
    /// Alignment in bytes; 0 means the default, and values that are no power of two are to be refused.
    Align,
    /// log2 of an alignment in bytes; above 40 it means one that is no power of two and is to be refused.
    Shift,
    /// A yes or no.
    Flag,
    /// A second yes or no.
    Flag2,
    /// Which fault point.
    Point,
    /// Which question about a fault point fails; 0 is the next one.
    Nth,
    /// Which tier a macro operation allocates from, or which mistake a misuse makes.
    Tier,
    /// Every how many blocks; 0 counts as 1.
    Step,
    /// Which of the blocks in a step is meant: modulo the step.
    Phase,
    /// How full memory shall be; above 100 counts as 100.
    Percent,
    /// How many blocks stay unallocated.
    Spare,
    /// Flags of a cache, as bits.
    CacheFlags,
    /// A byte's place in an object.
    Offset,
    /// Bytes of a part of an object.
    Length,
    /// Where the free pointer of a cache lies, in halves of a word from 1 on; 0 leaves it to the allocator.
    FreePointer,
    /// Objects in a sheaf of a cache; 0 leaves it to the allocator.
    Capacity,
    /// A frame of memory: modulo a few more than there are.
    Frame,
    /// Which memory node: modulo those that a machine may have, or one more, which means none in particular.
    Node,
    /// What a debug cache checks, as bits.
    Checks,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 28] = [
        Self::Order,
        Self::Gfp,
        Self::Pick,
        Self::Cache,
        Self::Cpu,
        Self::Size,
        Self::N,
        Self::Count,
        Self::Page,
        Self::Align,
        Self::Shift,
        Self::Flag,
        Self::Flag2,
        Self::Point,
        Self::Nth,
        Self::Tier,
        Self::Step,
        Self::Phase,
        Self::Percent,
        Self::Spare,
        Self::CacheFlags,
        Self::Offset,
        Self::Length,
        Self::FreePointer,
        Self::Capacity,
        Self::Frame,
        Self::Node,
        Self::Checks,
    ];
}
