//! Ballots: the numbers that order leaders.

use std::fmt;

/// A node of the group. The caller gives the numbers their meaning; 0 is never a node.
pub type NodeId = u64;

/// A place in the log, from 1. Lamport's *instance*, van Renesse's *slot*.
pub type Index = u64;

/// A leader's number: higher ballots win. Two nodes never share one, since each carries its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Compared first.
    pub round: u64,
    /// The node that may propose at this ballot; breaks ties.
    pub node: NodeId,
}

impl Ballot {
    /// Below every ballot that a node may propose at.
    pub const ZERO: Ballot = Ballot { round: 0, node: 0 };
    /// Above every ballot that a node may propose at: a value known to be chosen.
    pub(crate) const CHOSEN: Ballot = Ballot { round: u64::MAX, node: u64::MAX };
}

impl fmt::Display for Ballot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.round, self.node)
    }
}
