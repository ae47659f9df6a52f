//! The names of things. Each is a number of its own type, so that one cannot stand for another.

use std::fmt;

/// A node of the cluster, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A shard. 0 is the system shard; data shards count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The first data shard: the only one of a default cluster.
    pub const FIRST_DATA: ShardId = ShardId(1);
}

/// A keyspace of its own within a shard. Only [`Namespace::DEFAULT`] is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(pub u32);

impl Namespace {
    /// The namespace of callers that name none.
    pub const DEFAULT: Namespace = Namespace(0);
}

/// A life of a shard's state on one node: a snapshot is installed into the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

macro_rules! display_number {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    )*};
}
display_number!(NodeId, ShardId, Namespace, Incarnation);
