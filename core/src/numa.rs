//! Memory nodes: which memory is near to which CPU.

use core::fmt;

/// How many memory nodes a machine may have.
pub const MAX_NODES: usize = 4;
/// The distance of a node to itself. Source: `LOCAL_DISTANCE`, `include/linux/topology.h`.
pub const LOCAL_DISTANCE: u8 = 10;
/// The distance of two nodes when nothing else is known. Source: `REMOTE_DISTANCE`, `include/linux/topology.h`.
pub const REMOTE_DISTANCE: u8 = 20;

/// A memory node's number, below [`MAX_NODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct NodeId(u8);

impl NodeId {
    /// The first node; the only one of most machines.
    pub const ZERO: Self = Self(0);

    /// Names a node; `None` from [`MAX_NODES`] on.
    pub const fn new(n: u8) -> Option<Self> {
        if (n as usize) < MAX_NODES { Some(Self(n)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// All nodes that a machine may have, in ascending order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..MAX_NODES as u8).map(Self)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How far each node (row) is from each other (column), in Linux's units: 10 is local.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Distances([[u8; MAX_NODES]; MAX_NODES]);

impl Default for Distances {
    /// Every other node is equally far away.
    fn default() -> Self {
        let mut table = [[REMOTE_DISTANCE; MAX_NODES]; MAX_NODES];
        for (i, row) in table.iter_mut().enumerate() {
            row[i] = LOCAL_DISTANCE;
        }
        Self(table)
    }
}

impl Distances {
    /// Takes a table; `None` unless each node is [`LOCAL_DISTANCE`] from itself and farther from all others.
    pub fn new(table: [[u8; MAX_NODES]; MAX_NODES]) -> Option<Self> {
        let fits = |(i, row): (usize, &[u8; MAX_NODES])| {
            row.iter().enumerate().all(|(j, &d)| if i == j { d == LOCAL_DISTANCE } else { d > LOCAL_DISTANCE })
        };
        table.iter().enumerate().all(fits).then_some(Self(table))
    }

    /// Returns the distance from one node to another.
    pub const fn get(&self, from: NodeId, to: NodeId) -> u8 {
        self.0[from.index()][to.index()]
    }

    /// Returns all nodes in the order in which `from` prefers them: itself, then the nearer ones first; of equally near
    /// ones those with higher numbers before those with lower ones, so that the load of full nodes spreads.
    pub fn nearest_first(&self, from: NodeId) -> [NodeId; MAX_NODES] {
        let mut nodes: [NodeId; MAX_NODES] = core::array::from_fn(|n| NodeId(n as u8));
        nodes.sort_unstable_by_key(|&to| (self.get(from, to), to < from, to));
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(distances: &Distances, from: u8) -> [u8; MAX_NODES] {
        distances.nearest_first(NodeId(from)).map(NodeId::get)
    }

    #[test]
    fn a_node_prefers_itself_then_the_nearest_then_those_above_it() {
        let flat = Distances::default();
        assert_eq!(order(&flat, 0), [0, 1, 2, 3]);
        assert_eq!(order(&flat, 1), [1, 2, 3, 0]);
        assert_eq!(order(&flat, 3), [3, 0, 1, 2]);
        let ring = Distances::new([[10, 20, 30, 20], [20, 10, 20, 30], [30, 20, 10, 20], [20, 30, 20, 10]]).unwrap();
        assert_eq!(order(&ring, 0), [0, 1, 3, 2]);
        assert_eq!(order(&ring, 2), [2, 3, 1, 0]);
    }

    #[test]
    fn a_table_in_which_another_node_is_as_near_as_the_own_is_refused() {
        let mut table = Distances::default().0;
        table[2][3] = LOCAL_DISTANCE;
        assert_eq!(Distances::new(table), None);
        table[2][3] = REMOTE_DISTANCE;
        table[1][1] = 11;
        assert_eq!(Distances::new(table), None);
        assert_eq!(NodeId::new(MAX_NODES as u8), None);
        assert_eq!(NodeId::all().map(NodeId::get).collect::<std::vec::Vec<_>>(), [0, 1, 2, 3]);
    }
}
