//! The names of things. Each is a number of its own type, so that one cannot stand for another.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A node of the cluster, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct NodeId(pub u64);

/// A node's folder, as it was formatted: never used again for another. Node and store together are a
/// voter, so that a wiped node cannot vote against what it promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub Uuid);

/// A shard. 0 is the system shard; data shards count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard that holds the shard map. It owns no slots.
    pub const SYSTEM: ShardId = ShardId(0);

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
display_number!(NodeId, StoreId, ShardId, Namespace, Incarnation);
